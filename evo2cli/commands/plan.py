"""`evo2 plan`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/40b.toml.")],
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs in all.", show_default="as few as share a window"),
    ] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: h100-80gb, h200, ...")] = "h100-80gb",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one value of the recipe."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", min=0, help="In dollars.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Tell what a recipe needs: memory, time, cost, and whether it fits; nothing runs."""
    from evo2cli.plan.page import plan_page
    from evo2cli.plan.run import plan_recipe

    result = plan_recipe(
        recipe, gpus=gpus, gpu=gpu, settings=settings or (), price_per_gpu_hour=price
    )
    if json:
        console.write_json(result)
    else:
        console.write_page(plan_page(result))
