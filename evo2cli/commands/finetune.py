"""`evo2 finetune`."""

from typing import Any

from evo2cli import console
from evo2cli.commands.plan import write_plan
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.options import takes
from evo2cli.plan.options import PlanOptions


@takes(FinetuneOptions)
def finetune(options: FinetuneOptions) -> None:
    """Fine-tune a model on labelled DNA. To resume a stopped run, run the same command again.

    The task is inferred from the table. The best model is written to FOLDER/final, for evo2 predict
    and evo2 eval task; FOLDER/report.json compares it with simple baselines on the test set.
    """
    from evo2cli.finetune.run import finetune as run
    from evo2cli.finetune.run import write_recipe_only

    if options.dry_run:
        write_plan(PlanOptions(recipe=write_recipe_only(options), json=options.json))
        return
    write_report(run(options), json=options.json)


def write_report(report: dict[str, Any], *, json: bool) -> None:
    """Write the report of a run to stdout, also for `evo2 train` on a recipe with [finetune]."""
    from evo2cli.finetune.report import report_page

    if report.pop("rank") > 0:
        return
    if json:
        console.write_json(report)
    elif report["finished"]:
        console.write_page(report_page(report))
