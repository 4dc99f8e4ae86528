"""Extend the context of a checkpoint, and record how in its provenance."""

from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.training.start import extend
from stripedhyena2 import ConfigError
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.layouts import native, vortex
from stripedhyena2.extension import Extension, Scheme


def extend_checkpoint(
    source: str,
    output: Path,
    *,
    to: int,
    scheme: str = Scheme.INTERPOLATION,
    config: Path | None = None,
) -> dict[str, Any]:
    """Extend the context of a checkpoint and write it atomically as a native folder.

    Args:
        source: Anything that `stripedhyena2.load` reads.
        output: Folder to write.
        to: New context length in positions, a multiple of the old one.
        scheme: A value of `Scheme`.
        config: Shape of a released file, if its name does not imply it.

    Returns:
        output, and the record of the extension, see `extend`.

    Raises:
        UserError: The new context is not a multiple of the old one, or `output` is `source` or
            holds another checkpoint.
        CheckpointError: The source cannot be read, or the output not written.
    """
    if output.suffix in vortex.SUFFIXES:
        raise UserError(f"{output}: is written as a folder; `evo2 convert` can make it a file")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"{output}: is the checkpoint itself; choose another --output")
    checkpoint = read_checkpoint(source, config=config)
    try:
        extended, record = extend(checkpoint, source, Extension(to, Scheme(scheme)))
    except ConfigError as error:
        raise UserError(f"{source}: {error}") from None
    native.write(extended, output, over_another=False)
    return {"output": str(output), **record}
