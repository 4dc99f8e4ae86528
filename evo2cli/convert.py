"""Convert checkpoints between the native and the released layout."""

from pathlib import Path
from typing import Any, Literal

from evo2cli import __version__
from evo2cli.errors import UserError
from stripedhyena2.checkpoint import native, read_checkpoint, released
from stripedhyena2.costs import count_parameters


def convert_checkpoint(
    source: str,
    destination: Path,
    *,
    to: Literal["auto", "native", "vortex"] = "auto",
    config: Path | None = None,
) -> dict[str, Any]:
    """Convert `source` into `destination`; stored dtypes and bits stay as they are.

    Args:
        source: Anything `stripedhyena2.load` reads.
        destination: A folder for the native layout; a .pt or .safetensors file for that of the
            released files ("vortex"), beside which the shape is written as yml.
        to: Layout that `destination` must be of; "auto" accepts both.
        config: Shape of a released source: a yml or TOML file, or the name of a published model.
            Needed where the file name does not say.

    Returns:
        What was written: destination, layout, stripes, tensors, parameters, bytes.

    Raises:
        UserError: The destination is not of the layout `to`.
        CheckpointError: The source cannot be read, or the destination cannot be written.
        ConfigError: The shape is not valid, or the released layout cannot express it.
    """
    is_file = destination.suffix in released.SUFFIXES
    layout = "vortex" if is_file else "native"
    if to not in ("auto", layout):
        raise UserError(
            f"{destination}: the {to} layout is written as "
            + ("a .pt or .safetensors file" if to == "vortex" else "a folder, not a file")
        )
    checkpoint = read_checkpoint(source, config=config)
    if layout == "native":
        checkpoint.provenance.setdefault("converted_by", f"evo2cli {__version__}")
        native.refuse_another(checkpoint, destination)
        native.write(checkpoint, destination)
        size = sum(file.stat().st_size for file in destination.iterdir())
    else:
        released.write(checkpoint, destination)
        size = destination.stat().st_size
    return {
        "destination": str(destination),
        "layout": layout,
        "stripes": checkpoint.config.stripes,
        "tensors": len(checkpoint.tensors),
        "parameters": count_parameters(checkpoint.config),
        "bytes": size,
    }
