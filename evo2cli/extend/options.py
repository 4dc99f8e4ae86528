"""Options of `evo2 extend`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import ConfigOptions, DeviceOptions, JSONOptions
from evo2cli.training.options import DataOptions, SettingsOptions


class Scheme(StrEnum):
    """How rotary positions change: `stripedhyena2.extension.Scheme`, which imports torch."""

    INTERPOLATION = "interpolation"
    BASE = "base"
    BOTH = "both"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(ConfigOptions, panel="Checkpoint"):
    """What applies to a checkpoint; a recipe says it itself."""

    to: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="Positions of the new context: 65536, 32k, 1M."),
    ] = None
    output: Annotated[
        Path | None, typer.Option("--output", "-O", metavar="FOLDER", help="Checkpoint to write.")
    ] = None
    scheme: Annotated[
        Scheme,
        typer.Option(
            help="interpolation divides rotary positions by new / old context, as Evo 2 was "
            "extended; base raises the rotary base; both; none."
        ),
    ] = Scheme.INTERPOLATION


@dataclass(frozen=True, kw_only=True)
class StageOptions(DataOptions, DeviceOptions, SettingsOptions, panel="Recipe"):
    """What applies to a recipe, which is trained."""


@dataclass(frozen=True, kw_only=True)
class ExtendOptions(JSONOptions, StageOptions, CheckpointOptions):
    """Options of `evo2 extend`."""

    subject: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RECIPE",
            help="Checkpoint folder, file or name; or a recipe of an extension, to train and "
            "verify.",
        ),
    ]
