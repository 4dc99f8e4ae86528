"""`evo2 extend`."""

from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.extend.options import CheckpointOptions, ExtendOptions, StageOptions
from evo2cli.lengths import parse_length
from evo2cli.options import refuse, shared, takes
from evo2cli.training.options import RunOptions


@takes(ExtendOptions)
def extend(options: ExtendOptions) -> None:
    """Extend the context of a model; with a recipe, also train it and verify the result.

    Rotary positions are divided by new / old context; filters keep their values. Given a
    checkpoint, the extended one is written to a new folder, to be trained later. Given a recipe
    (recipes/extend/7b-32k.toml, or just 7b-32k), its initial weights are extended and trained, and
    the loss before and after and the recall over long distances are measured. To resume a stopped
    recipe, run the same command again.
    """
    from evo2cli.extend.checkpoint import extend_checkpoint
    from evo2cli.extend.stage import find_stage
    from evo2cli.training.start import extension_line

    subject = options.subject
    stage = find_stage(subject)
    if stage is not None:
        refuse(options, f"{subject}: a recipe says this itself", CheckpointOptions)
        _run_stage(stage, options)
        return
    refuse(options, f"{subject}: is not a recipe (.toml)", StageOptions)
    if options.to is None or options.output is None:
        raise UserError(f"{subject}: a checkpoint needs --to, the new context, and --output")
    summary = extend_checkpoint(
        subject,
        options.output,
        to=parse_length(options.to, "--to"),
        scheme=options.scheme,
        config=options.config,
    )
    if options.json:
        console.write_json(summary)
    else:
        console.say(extension_line(summary["output"], summary))


def _run_stage(stage: Path, options: ExtendOptions) -> None:
    from evo2cli.extend.stage import extend_stage
    from evo2cli.extend.verification import verification_page
    from evo2cli.train.run import summary_line

    summary = extend_stage(shared(options, RunOptions, recipe=stage))
    if summary.pop("rank") > 0:
        return
    if options.json:
        console.write_json(summary)
        return
    console.say(summary_line(summary))
    if "verification" in summary:
        console.write_page(verification_page(summary["verification"]), stderr=True)
