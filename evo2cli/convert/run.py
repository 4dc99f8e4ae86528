"""Convert a checkpoint from any layout that is read to any that is written."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from evo2cli import __version__, console
from evo2cli.convert.options import Target
from evo2cli.convert.verify import verify
from evo2cli.errors import UserError
from evo2cli.files import sha256
from stripedhyena2.checkpoint import Checkpoint, read_checkpoint
from stripedhyena2.checkpoint.files import refuse_full
from stripedhyena2.checkpoint.layouts import hf, native, savanna, vortex
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.costs import count_parameters

_WRITE: dict[Target, Callable[[Checkpoint, Path], None]] = {
    Target.NATIVE: partial(native.write, over_another=False),
    Target.VORTEX: vortex.write,
    Target.HF: hf.write,
    Target.SAVANNA: savanna.write,
}
# Checks of the destination, before a large source is read for its hash.
_REFUSE: dict[Target, Callable[[Path], None]] = {
    Target.NATIVE: native.refuse_other,
    Target.HF: refuse_full,
    Target.SAVANNA: refuse_full,
}


def convert_checkpoint(
    source: str,
    destination: Path,
    *,
    to: Target | str = Target.AUTO,
    config: Path | None = None,
    verified: bool = False,
) -> dict[str, Any]:
    """Convert `source` into `destination`; stored dtypes and bits stay as they are.

    Args:
        source: Anything `stripedhyena2.load` reads.
        destination: A folder; or a .pt or .safetensors file for the layout of the released files
            (vortex), next to which the shape is written as yml.
        to: Layout to write; "auto" is vortex for a file and native for a folder, and refuses a
            new folder with another suffix of letters, such as x.bin.
        config: Shape of the source: a yml or TOML file, or the name of a published model. Needed
            if neither the source nor its name implies it.
        verified: Compare source and destination afterwards, see `evo2cli.convert.verify`.

    Returns:
        destination, source_layout, layout, stripes, tensors, parameters, bytes, seconds, and
        verification (None without `verified`).

    Raises:
        UserError: The destination cannot be of this layout, or the verification failed.
        CheckpointError: The source cannot be read, or the destination cannot be written.
        ConfigError: The shape is not valid, or the layout cannot express it.
    """
    layout = _target(destination, Target(to))
    if layout in _REFUSE:
        _REFUSE[layout](destination)
    checkpoint = read_checkpoint(source, config=config)
    if layout is not Target.VORTEX:
        checkpoint = replace(checkpoint, provenance=_provenance(checkpoint))
    summary = write_checkpoint(checkpoint, destination, to=layout)
    verification = None
    if verified:
        verification = verify(source, destination, config=config)
        if (destination / native.PROVENANCE).exists():
            native.add_to_provenance(destination, {"verification": verification})
    return {
        "source_layout": checkpoint.provenance.get("layout", "native"),
        **summary,
        "verification": verification,
    }


def write_checkpoint(
    checkpoint: Checkpoint, destination: Path, *, to: Target | str = Target.AUTO
) -> dict[str, Any]:
    """Write a checkpoint, with a progress bar.

    Args:
        checkpoint: The checkpoint.
        destination: As for `convert_checkpoint`.
        to: As for `convert_checkpoint`.

    Returns:
        destination, layout, stripes, tensors, parameters, bytes, seconds.

    Raises:
        UserError: The destination cannot be of this layout.
        CheckpointError: It cannot be written.
        ConfigError: The layout cannot express the shape.
    """
    layout = _target(destination, Target(to))
    tensors = Tensors.of(checkpoint.tensors)
    start = monotonic()
    with console.progress("convert", tensors.nbytes, "bytes") as bar:
        _WRITE[layout](replace(checkpoint, tensors=tensors.watched(bar.advance)), destination)
    return {
        "destination": str(destination),
        "layout": layout.value,
        "stripes": checkpoint.config.stripes,
        "tensors": len(checkpoint.tensors),
        "parameters": count_parameters(checkpoint.config),
        "bytes": _bytes(destination),
        "seconds": round(monotonic() - start, 3),
    }


def _target(destination: Path, to: Target) -> Target:
    is_file = destination.suffix in vortex.SUFFIXES
    if to is Target.AUTO:
        # A name such as evo2-7b-v1.5 is that of a folder.
        if destination.suffix[1:].isalpha() and not (is_file or destination.is_dir()):
            raise UserError(
                f"{destination}: checkpoint files end in {' or '.join(vortex.SUFFIXES)}; for a "
                "folder of this name, give --to native, hf or savanna"
            )
        return Target.VORTEX if is_file else Target.NATIVE
    if is_file != (to is Target.VORTEX):
        form = "a .pt or .safetensors file" if to is Target.VORTEX else "a folder, not a file"
        raise UserError(f"{destination}: the {to} layout is written as {form}")
    return to


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """The provenance of the source, with SHA-256 hashes added if it has none."""
    provenance = {"converted_by": f"evo2cli {__version__}", **checkpoint.provenance}
    if checkpoint.files and "sha256" not in provenance:
        provenance["sha256"] = {file.name: sha256([file]) for file in checkpoint.files}
    return provenance


def _bytes(destination: Path) -> int:
    files = destination.rglob("*") if destination.is_dir() else [destination]
    return sum(file.stat().st_size for file in files if file.is_file())
