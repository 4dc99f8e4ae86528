"""Options of `evo2 plan`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from evo2cli.training.options import RecipeOptions


@dataclass(frozen=True, kw_only=True)
class PlanOptions(RecipeOptions, panel="Plan"):
    """A recipe, and the GPUs to estimate it for."""

    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of GPUs.",
            show_default="the fewest on which the recipe fits",
        ),
    ] = None
    gpu: Annotated[str, typer.Option(metavar="NAME", help="GPU model, e.g. h100-80gb or h200.")] = (
        "h100-80gb"
    )
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-gpu-hour",
            min=0,
            metavar="DOLLARS",
            help="Price of one GPU hour, to estimate the cost.",
        ),
    ] = None
