"""Options of `evo2 extend`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import ConfigOptions, DeviceOptions, JSONOptions
from evo2cli.training.options import DataOptions, SettingsOptions


class Scheme(StrEnum):
    """How rotary positions change; mirrors `stripedhyena2.extension.Scheme`, without torch."""

    INTERPOLATION = "interpolation"
    BASE = "base"
    BOTH = "both"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(ConfigOptions, panel="Checkpoint"):
    """Options for a checkpoint; a recipe holds these values itself."""

    to: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="New context length, e.g. 65536, 32k or 1M."),
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
    """Options for a recipe, which is trained."""


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
