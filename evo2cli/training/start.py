"""The initial model of a run: random weights of a shape, or a checkpoint, extended if asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from evo2cli import __version__
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import find_initial_weights, naming
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.assembly import Adopt, assemble
from stripedhyena2.checkpoint import Checkpoint, read_checkpoint, save_weights
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.extension import Extension
from stripedhyena2.fingerprint import fingerprint


@dataclass(frozen=True)
class Start:
    """The initial model of a run: how to build it, and how to write its weights after training.

    Attributes:
        config: Its shape.
        weights: Weights by name in inference form, and in training form where the checkpoint has
            them, see `assemble`; None for random ones from the seed of the recipe.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor] | None = None

    def build(self, recipe: Recipe, adopt: Adopt) -> nn.Module:
        """Build the model in training form.

        Args:
            recipe: The recipe.
            adopt: As in `assemble`.
        """
        return assemble(
            self.config,
            seed=recipe.seed,
            weights=self.weights,
            published=recipe.optimizer.decay == "evo2-published",
            adopt=adopt,
        )

    def of_block(self, kind: str) -> Self:
        """A model of a single block of this kind, with random weights, to compile its kernels."""
        return replace(self, config=replace(self.config, stripes=kind), weights=None)

    def inputs(self, recipe: Recipe, device: torch.device) -> tuple[Tensor, ...]:
        """Dummy inputs of the model: a batch of the recipe, all zeros."""
        batch = recipe.batch
        return (torch.zeros(batch.sequences, batch.length, dtype=torch.long, device=device),)

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        """Write trained weights, as `Engine.weights` returns them, to a new folder."""
        save_weights(self.config, weights, folder, provenance)


def trunk_of(model: nn.Module) -> StripedHyena2 | None:
    """The StripedHyena 2 of a model: the model itself or its submodule `trunk`; None without."""
    trunk = model if isinstance(model, StripedHyena2) else getattr(model, "trunk", None)
    return trunk if isinstance(trunk, StripedHyena2) else None


def read_start(recipe: Recipe) -> tuple[Start, dict[str, Any]]:
    """Read the initial weights of a recipe with `init`, and apply its context extension.

    Args:
        recipe: The recipe; weights that already have the context of `[extend]` stay as they are.

    Returns:
        The initial model, and entries for the provenance of the run: `before`, the provenance of
        the checkpoint, and the record of the extension.

    Raises:
        UserError: `init` has not been trained yet, cannot be read, or cannot be extended.
    """
    source = find_initial_weights(recipe)
    with naming(f"{recipe.file}: init"):
        checkpoint = read_checkpoint(source)
        provenance = {"before": checkpoint.provenance}
        extension = recipe.extension(checkpoint.config.context)
        if extension is not None:
            checkpoint, _ = extend(checkpoint, source, extension)
            provenance = checkpoint.provenance
    weights = [Tensors.of(checkpoint.tensors), Tensors.of(checkpoint.training_form)]
    return Start(checkpoint.config, Tensors.joined(weights)), provenance


def extend(
    checkpoint: Checkpoint, source: str, extension: Extension
) -> tuple[Checkpoint, dict[str, Any]]:
    """Extend the context of a checkpoint in memory.

    Args:
        checkpoint: The checkpoint.
        source: Its path or name, for the provenance.
        extension: The new context length and the scheme.

    Returns:
        The extended checkpoint, and the record of the extension, which is also in its provenance:
        source and source_hash (`fingerprint`), scheme, factor (new / old context), and context,
        rotary_scale and rotary_base before and after.

    Raises:
        ConfigError: The new context is not a multiple of the old one.
        CheckpointError: The rotary frequencies of the checkpoint do not match its shape.
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


def extension_line(name: str, record: Mapping[str, Any]) -> str:
    """Summarize the record of an extension in one line."""
    before, after = record["before"], record["after"]
    return (
        f"{name}: context {before['context']:,} -> {after['context']:,}, "
        f"rotary scale {before['rotary_scale']:g} -> {after['rotary_scale']:g}, "
        f"rotary base {before['rotary_base']:g} -> {after['rotary_base']:g}"
    )


def _facts(config: ModelConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in ("context", "rotary_scale", "rotary_base")}
