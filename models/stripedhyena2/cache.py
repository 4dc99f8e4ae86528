"""What a model remembers of the tokens it has seen: one past per block.

B batch, D channels, S modes, H heads, W channels a head, T tokens seen, P past samples.
"""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class HyenaPast:
    """The past of a Hyena operator.

    Attributes:
        featurizer_BPC: The last inputs of the featurizer, in the 3D channels as stored.
        inner: The past of the inner convolution: samples [B, P, D], or modal states [B, D, S].
    """

    featurizer_BPC: Tensor
    inner: Tensor


@dataclass(frozen=True)
class AttentionPast:
    """The past of attention: every key (already rotated) and value seen, as [B, H, T, W]."""

    keys_BHTW: Tensor
    values_BHTW: Tensor


Past = HyenaPast | AttentionPast


@dataclass
class Cache:
    """The state of a batch of sequences; the model moves it on, never changing a tensor in place.

    Attributes:
        batch_size: Sequences that run side by side.
        position: Tokens seen by each of them.
        pasts: One for each block; None before the first token.
    """

    batch_size: int
    position: int
    pasts: list[Past | None]

    def clone(self) -> "Cache":
        """An independent continuation from here. It shares tensors, which nothing changes."""
        return replace(self, pasts=list(self.pasts))
