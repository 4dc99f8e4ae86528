"""A checkpoint for a longer context, with a record of how it came about."""

from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.lengths import parse_length
from evo2cli.training.start import extend
from stripedhyena2 import CheckpointError, ConfigError
from stripedhyena2.checkpoint import native, read_checkpoint, released
from stripedhyena2.extension import Extension, Scheme


def extend_checkpoint(
    source: str,
    output: Path,
    *,
    to: str,
    scheme: str = Scheme.INTERPOLATION,
    config: str | None = None,
) -> dict[str, Any]:
    """Write `source`, extended, as a native checkpoint folder; it appears whole or not at all.

    Args:
        source: Anything `stripedhyena2.load` reads.
        output: The folder.
        to: Positions of the new context, as `parse_length` reads them.
        scheme: A value of `Scheme`.
        config: The shape of a released source, where its name does not tell.

    Returns:
        output, and what provenance.json holds of it: see `extend`.

    Raises:
        UserError: The context would not grow, the source cannot be read, or the output not written.
    """
    if scheme not in [*Scheme]:
        raise UserError(f"--scheme {scheme}: not one of {', '.join(Scheme)}")
    extension = Extension(parse_length(to, "--to"), Scheme(scheme))
    if output.suffix in released.SUFFIXES:
        raise UserError(f"{output}: is written as a folder; `evo2 convert` makes a file of it")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"{output}: is the checkpoint itself; choose another --output")
    try:
        checkpoint, record = extend(read_checkpoint(source, config=config), source, extension)
        native.refuse_another(checkpoint, output)
        native.write(checkpoint, output)
    except ConfigError as error:
        raise UserError(f"{source}: --to {to}: {error}") from None
    except CheckpointError as error:
        raise UserError(str(error)) from None
    return {"output": str(output), **record}
