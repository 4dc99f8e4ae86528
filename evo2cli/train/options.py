"""Options of `evo2 train`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from evo2cli.plan.options import PlanOptions
from evo2cli.training.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class TrainOptions(PlanOptions, RunOptions, panel="Plan", without=("price",)):
    """A training run, or with `dry_run` its plan."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Estimate memory, time and cost instead of training, as `evo2 plan` does.",
        ),
    ] = False
