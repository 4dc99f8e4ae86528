"""`evo2 plan`."""

from evo2cli import console
from evo2cli.options import takes
from evo2cli.plan.options import PlanOptions


@takes(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Estimate memory, time and cost of a recipe without running it."""
    write_plan(options)


def write_plan(options: PlanOptions) -> None:
    """Write a plan to stdout, also for `evo2 train --dry-run`."""
    from evo2cli.plan.page import plan_page
    from evo2cli.plan.run import plan_recipe

    result = plan_recipe(options)
    if options.json:
        console.write_json(result)
    else:
        console.write_page(plan_page(result))
