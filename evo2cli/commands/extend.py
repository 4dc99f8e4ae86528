"""`evo2 extend`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console
from evo2cli.errors import UserError


def extend(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RECIPE",
            help="A checkpoint folder, file or name; or a recipe that extends, to run whole.",
        ),
    ],
    to: Annotated[
        str | None, typer.Option(help="Positions of the new context: 32k, 1M, 65536.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-O", help="Folder to make of a checkpoint.")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help="Of rotary positions: interpolation (as Evo 2 was extended), base, both, none.",
            show_default="interpolation",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Shape of a released file: its yml or TOML, or a published name."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one value of a recipe."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A recipe's: auto, cpu, cuda, ...", show_default="auto")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Summary as JSON on stdout.")] = False,
) -> None:
    """Make a checkpoint ready for a longer context, or run a recipe that does it and trains.

    Positions are divided by new / old context, filters stay as they are. A checkpoint is written
    anew, to be trained later. A recipe (recipes/extend/7b-32k.toml, or just 7b-32k) is run whole:
    its weights are extended and trained, then losses before and after and recall are measured. Run
    it again to go on after a stop.
    """
    from evo2cli.extend.checkpoint import extend_checkpoint
    from evo2cli.extend.stage import find_stage
    from evo2cli.training.start import extension_line

    stage = find_stage(subject)
    if stage is not None:
        given = {"--to": to, "--output": output, "--scheme": scheme, "--config": config}
        _refuse(given, f"{subject}: a recipe says this itself")
        _run_stage(stage, settings or [], device or "auto", json=json)
        return
    _refuse({"--set": settings, "--device": device}, f"{subject}: is no recipe (.toml)")
    if to is None or output is None:
        raise UserError(f"{subject}: a checkpoint needs --to, the new context, and --output")
    summary = extend_checkpoint(
        subject, output, to=to, scheme=scheme or "interpolation", config=config
    )
    if json:
        console.write_json(summary)
    else:
        console.say(extension_line(summary["output"], summary))


def _refuse(options: Mapping[str, object], why: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UserError(f"{why}; drop {' and '.join(given)}")


def _run_stage(stage: Path, settings: list[str], device: str, *, json: bool) -> None:
    from evo2cli.extend.stage import extend_stage
    from evo2cli.extend.verification import verification_page
    from evo2cli.train.run import summary_line

    summary = extend_stage(stage, settings=settings, device=device)
    if summary.pop("rank") > 0:
        return
    if json:
        console.write_json(summary)
        return
    console.say(summary_line(summary))
    if "verification" in summary:
        console.write_page(verification_page(summary["verification"]), stderr=True)
