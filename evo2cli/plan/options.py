"""Options of `evo2 plan`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import Options


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """Which recipe, and what to change in it."""

    recipe: Annotated[Path, typer.Argument(help="Recipe, e.g. recipes/nano.toml or just nano.")]
    settings: Annotated[
        tuple[str, ...],
        typer.Option(
            "--set", metavar="TABLE.KEY=VALUE", help="Change one value of the recipe; repeatable."
        ),
    ] = ()
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False


@dataclass(frozen=True, kw_only=True)
class HardwareOptions(Options):
    """The GPUs that a plan is made for."""

    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of GPUs.",
            show_default="the fewest that the recipe's context parallelism allows",
        ),
    ] = None
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="Kind of GPU, e.g. h100-80gb or h200.")
    ] = "h100-80gb"


@dataclass(frozen=True, kw_only=True)
class PlanOptions(HardwareOptions, RecipeOptions):
    """Options of `evo2 plan`."""

    price: Annotated[
        float | None,
        typer.Option("--price-per-gpu-hour", min=0, metavar="DOLLARS", help="Price of a GPU hour."),
    ] = None
