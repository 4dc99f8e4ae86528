"""Checkpoints from one layout to the other."""

from pathlib import Path
from typing import Any

from evo2cli import __version__
from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError, ConfigError
from stripedhyena2.checkpoint import native, read_checkpoint, released
from stripedhyena2.costs import count_parameters

LAYOUTS = ("native", "vortex")


def convert_checkpoint(
    source: str, destination: Path, *, to: str = "auto", config: str | None = None
) -> dict[str, Any]:
    """Convert `source` into `destination`; stored dtypes and bits stay as they are.

    Args:
        source: Anything `stripedhyena2.load` reads.
        destination: A folder for "native"; a .pt or .safetensors file for "vortex", which gets a
            yml of its shape beside it.
        to: "native", "vortex", or "auto": by the suffix of `destination`.
        config: The shape of a released source, where its name does not tell.

    Returns:
        What was written: destination, layout, tensors, parameters, bytes, stripes.

    Raises:
        UserError: The source cannot be read, or the destination cannot be written.
    """
    is_file = destination.suffix in released.SUFFIXES
    if to == "auto":
        to = "vortex" if is_file else "native"
    if to not in LAYOUTS:
        raise UserError(f"--to {to}: not one of auto, {', '.join(LAYOUTS)}")
    if (to == "vortex") != is_file:
        raise UserError(
            f"{destination}: the {to} layout is written as "
            + ("a .pt or .safetensors file" if to == "vortex" else "a folder, not a file")
        )
    try:
        checkpoint = read_checkpoint(source, config=config)
        if to == "native":
            checkpoint.provenance.setdefault("converted_by", f"evo2cli {__version__}")
            native.refuse_another(checkpoint, destination)
            native.write(checkpoint, destination)
            size = sum(file.stat().st_size for file in destination.iterdir())
        else:
            released.write(checkpoint, destination)
            size = destination.stat().st_size
    except (CheckpointError, ConfigError) as error:
        raise UserError(str(error)) from None
    return {
        "destination": str(destination),
        "layout": to,
        "stripes": checkpoint.config.stripes,
        "tensors": len(checkpoint.tensors),
        "parameters": count_parameters(checkpoint.config),
        "bytes": size,
    }
