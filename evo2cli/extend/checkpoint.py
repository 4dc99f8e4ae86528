"""A checkpoint for a longer context, and the record of how it was made."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evo2cli import __version__
from evo2cli.errors import UserError
from evo2cli.training.engine import Start
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import find_initial_weights
from stripedhyena2 import CheckpointError, ConfigError, ModelConfig
from stripedhyena2.checkpoint import Checkpoint, native, read_checkpoint, released
from stripedhyena2.extension import Extension, Scheme
from stripedhyena2.fingerprint import fingerprint


def extend_checkpoint(
    source: str,
    output: Path,
    *,
    to: int,
    scheme: str = Scheme.INTERPOLATION,
    config: str | None = None,
) -> dict[str, Any]:
    """Extend a checkpoint and write it as a native folder, whole or not at all.

    Args:
        source: Anything that `stripedhyena2.load` reads.
        output: Folder to write.
        to: Positions of the new context, a multiple of the old one.
        scheme: A value of `Scheme`.
        config: Shape of a released source whose name does not tell it.

    Returns:
        output, and the record of the extension, see `extend`.

    Raises:
        UserError: The context would not grow by a whole factor, or `output` is `source` or holds
            another checkpoint.
        CheckpointError: The source cannot be read, or the output not written.
    """
    if output.suffix in released.SUFFIXES:
        raise UserError(f"{output}: is written as a folder; `evo2 convert` makes a file of it")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"{output}: is the checkpoint itself; choose another --output")
    checkpoint = read_checkpoint(source, config=config)
    try:
        extended, record = extend(checkpoint, source, Extension(to, Scheme(scheme)))
    except ConfigError as error:
        raise UserError(f"{source}: {error}") from None
    native.refuse_another(extended, output)
    native.write(extended, output)
    return {"output": str(output), **record}


def extend(
    checkpoint: Checkpoint, source: str, extension: Extension
) -> tuple[Checkpoint, dict[str, Any]]:
    """Extend a checkpoint.

    Args:
        checkpoint: What is extended.
        source: Where it comes from, for the record.
        extension: What is to be done.

    Returns:
        The checkpoint, and the record that its provenance begins with: source and source_hash
        (`fingerprint`), scheme, factor (new / old context), and of before and after: context,
        rotary_scale and rotary_base.

    Raises:
        ConfigError: The context would not grow by a whole factor.
        CheckpointError: The checkpoint's frequencies are not those of its shape.
    """
    extended = extension.apply(checkpoint)
    record = {
        "source": source,
        "source_hash": fingerprint(checkpoint.config, checkpoint.tensors),
        "scheme": str(extension.scheme),
        "factor": extension.to // checkpoint.config.context,
        "before": _facts(checkpoint.config),
        "after": _facts(extended.config),
    }
    provenance = {
        "extended_by": f"evo2cli {__version__}",
        "extended": record,
        "before": checkpoint.provenance,
    }
    return replace(extended, provenance=provenance), record


def read_start(recipe: Recipe, path: Path) -> tuple[Start, dict[str, Any]]:
    """Where a run that has an `init` begins: there, extended in memory if the recipe says so.

    Args:
        recipe: Its `[extend]` does nothing to weights that already have the context.
        path: Its file, for messages.

    Returns:
        Shape and weights, and what provenance has to say of an extension; nothing without one.

    Raises:
        UserError: `init` was not trained yet, cannot be read, or cannot be extended like this.
    """
    source = find_initial_weights(recipe, path)
    lineage: dict[str, Any] = {}
    try:
        checkpoint = read_checkpoint(source)
        extension = recipe.extension(checkpoint.config.context)
        if extension is not None:
            checkpoint, _ = extend(checkpoint, source, extension)
            lineage = checkpoint.provenance
    except (CheckpointError, ConfigError) as error:
        raise UserError(f"{path}: init: {error}") from None
    return Start(checkpoint.config, checkpoint.tensors), lineage


def extension_line(name: str, record: Mapping[str, Any]) -> str:
    """What was done, by its record, for people."""
    before, after = record["before"], record["after"]
    return (
        f"{name}: context {before['context']:,} -> {after['context']:,}, "
        f"rotary scale {before['rotary_scale']:g} -> {after['rotary_scale']:g}, "
        f"rotary base {before['rotary_base']:g} -> {after['rotary_base']:g}"
    )


def _facts(config: ModelConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in ("context", "rotary_scale", "rotary_base")}
