"""Context extension: checkpoints with rotary positions for a longer context, to be trained further.

Only attention changes. Filters keep their values: SE and MR see as few positions as before, the
exponentials of LI work for any length, and the taps of MR continue to train under the decay window
of the first training (`ModelConfig.base_context`).
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.config import ConfigError, ModelConfig, change_config

ROUNDING = 2**-8  # relative; released files contain frequencies rounded to bf16


class Scheme(StrEnum):
    """How rotary embeddings change when the context grows by a factor f.

    INTERPOLATION: positions are also divided by f, so angles stay in the trained range. This is how
        Evo 2 was extended.
    BASE: the base is multiplied by 10^log2(f): slow pairs of channels rotate more slowly, fast ones
        as before.
    BOTH: both; this is what the configuration files of Evo 2's extension specify.
    NONE: neither; attention extrapolates to angles that it has not seen.

    From 8,192 positions and base b these are, with m = L / 8,192 and k = log2(m), Savanna's
    "evo1" (b, m), "log" (b 10^k, 1) and "hybrid log_evo1" (b 10^k, m). Factors of stages multiply,
    so several stages give the same as one.
    """

    INTERPOLATION = "interpolation"
    BASE = "base"
    BOTH = "both"
    NONE = "none"


@dataclass(frozen=True)
class Extension:
    """An extension of the context.

    Attributes:
        to: The new context length, a multiple of the old one.
        scheme: How rotary embeddings change.
    """

    to: int
    scheme: Scheme = Scheme.INTERPOLATION

    def config(self, config: ModelConfig) -> ModelConfig:
        """The shape after the extension.

        Raises:
            ConfigError: The new context is no longer than the old, or not a multiple of it.
        """
        factor, rest = divmod(self.to, config.context)
        if factor < 2 and self.to <= config.context:
            raise ConfigError(
                f"{self.to:,} positions are not more than the context of {config.context:,}"
            )
        if rest:
            raise ConfigError(
                f"{self.to:,} positions are not a multiple of the context of {config.context:,}; "
                f"the next one is {(factor + 1) * config.context:,}"
            )
        divides = self.scheme in (Scheme.INTERPOLATION, Scheme.BOTH)
        rebased = self.scheme in (Scheme.BASE, Scheme.BOTH)
        changes = {
            "context": self.to,
            "base_context": config.original_context,
            "rotary_scale": config.rotary_scale * (factor if divides else 1),
            "rotary_base": config.rotary_base * (10 ** math.log2(factor) if rebased else 1),
        }
        return change_config(config, changes, f"{self.to:,} positions")

    def apply(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint after the extension; the caller writes the provenance.

        The rotary frequencies are a buffer in the checkpoint. In Savanna the new base of a stage
        never took effect, because loading restored the old buffer: Evo 2 was extended by
        interpolation alone. Here a new base gives new buffers, base^(-2i / head width) for the
        pairs i of a head in fp32; with an unchanged base they are kept bit for bit, after checking
        that they are of that base.

        Raises:
            ConfigError: As `config`.
            CheckpointError: The frequencies in a buffer are not those of the base in the shape.
        """
        before, after = checkpoint.config, self.config(checkpoint.config)
        changed: dict[str, Tensor] = {}
        for index, mixer in enumerate(before.mixers):
            new = mixer.buffers_of(after)
            for key, old in mixer.buffers_of(before).items():
                name = f"blocks.{index}.mixer.{key}"
                _require_base(name, checkpoint.tensors[name], old, before)
                if not torch.equal(old, new[key]):
                    changed[name] = new[key]
        tensors = Tensors.joined([Tensors.of(checkpoint.tensors), Tensors.of(changed)])
        return replace(checkpoint, config=after, tensors=tensors)


def _require_base(name: str, stored: Tensor, expected: Tensor, config: ModelConfig) -> None:
    if not torch.allclose(stored.float(), expected, rtol=ROUNDING, atol=0):
        raise CheckpointError(
            f"tensor {name!r} does not hold the frequencies of rotary_base = "
            f"{config.rotary_base:g}; set rotary_base in the shape to the base it was trained with"
        )
