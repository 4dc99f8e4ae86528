"""`evo2 convert`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def convert(
    source: Annotated[
        str,
        typer.Argument(help="A native folder, a released .pt or .partN, a .safetensors, a name."),
    ],
    destination: Annotated[
        Path, typer.Argument(help="A folder (native), or a .pt or .safetensors file (vortex).")
    ],
    to: Annotated[
        str, typer.Option(help="native or vortex (the released layout); auto: by DESTINATION.")
    ] = "auto",
    config: Annotated[
        str | None,
        typer.Option(help="Shape of a released SOURCE: its yml or TOML, or a published name."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Summary as JSON on stdout.")] = False,
) -> None:
    """Convert a checkpoint between the native folder and the released layout, bit for bit."""
    from evo2cli.convert import convert_checkpoint

    summary = convert_checkpoint(source, destination, to=to, config=config)
    if json:
        console.write_json(summary)
    else:
        console.say(
            f"{summary['destination']}: {summary['layout']} layout, {summary['tensors']} tensors, "
            f"{summary['parameters']:,} parameters, {summary['bytes']:,} bytes"
        )
