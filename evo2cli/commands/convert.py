"""`evo2 convert`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console
from evo2cli.options import ConfigOptions, JSONOptions, takes


class Layout(StrEnum):
    """Layout of a checkpoint; AUTO follows the suffix of the destination."""

    AUTO = "auto"
    NATIVE = "native"
    VORTEX = "vortex"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(JSONOptions, ConfigOptions):
    """Options of `evo2 convert`."""

    source: Annotated[
        str,
        typer.Argument(
            help="Checkpoint: a native folder, a .pt, .partN or .safetensors file, or a name."
        ),
    ]
    destination: Annotated[
        Path,
        typer.Argument(help="A folder (native layout), or a .pt or .safetensors file (vortex)."),
    ]
    to: Annotated[
        Layout,
        typer.Option(
            help="Layout to write: native, or vortex (that of the released files). "
            "auto follows the suffix of DESTINATION."
        ),
    ] = Layout.AUTO


@takes(ConvertOptions)
def convert(options: ConvertOptions) -> None:
    """Convert a checkpoint between the native folder and the released layout, bit for bit."""
    from evo2cli.convert import convert_checkpoint

    summary = convert_checkpoint(
        options.source, options.destination, to=options.to.value, config=options.config
    )
    if options.json:
        console.write_json(summary)
    else:
        console.say(
            f"{summary['destination']}: {summary['layout']} layout, {summary['tensors']} tensors, "
            f"{summary['parameters']:,} parameters, {summary['bytes']:,} bytes"
        )
