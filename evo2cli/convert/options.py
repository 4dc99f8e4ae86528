"""Options of `evo2 convert`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import ConfigOptions, JSONOptions


class Target(StrEnum):
    """Layout to write; AUTO follows the suffix of the destination."""

    AUTO = "auto"
    NATIVE = "native"
    VORTEX = "vortex"
    HF = "hf"
    SAVANNA = "savanna"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(JSONOptions, ConfigOptions):
    """Options of `evo2 convert`."""

    source: Annotated[
        str,
        typer.Argument(
            help="Checkpoint in any layout: a folder, a .pt, .partN, .ckpt or .safetensors file, "
            "the name of a model, or owner/name of a repository on the hub."
        ),
    ]
    destination: Annotated[
        Path, typer.Argument(help="A folder; or a .pt or .safetensors file (vortex).")
    ]
    to: Annotated[
        Target,
        typer.Option(
            help="Layout to write: native (our folder), vortex (the released files), hf (a folder "
            "for Hugging Face's libraries) or savanna. auto is vortex for a file, else native."
        ),
    ] = Target.AUTO
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare the losses and logits of source and destination on two windows of real "
            "DNA, and check for known errors of earlier conversions.",
        ),
    ] = False
