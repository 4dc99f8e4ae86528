"""From logits to the next token.

B batch, V vocabulary.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class Uniforms:
    """Numbers in [0, 1), decided by a key and nothing else, on any machine.

    They are the raw words of Philox (a counter-based generator) under a hash of the key, of which
    the upper 53 bits are taken.
    """

    def __init__(self, *key: int | bytes) -> None:
        digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    def draw(self) -> float:
        """The next one."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Sampler:
    """How a token is drawn: of the `top_k` likeliest, softened, of the `top_p` likeliest.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only so many of the likeliest tokens; 0 means all, 1 is greedy.
        top_p: Only the smallest set of likeliest tokens that holds this probability; 1 means all.
    """

    temperature: float = 1.0
    top_k: int = 4
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature} must be 0 or more, and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} must not be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn at random."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits_BV: Tensor, allowed_BV: Tensor | None = None) -> Tensor:
        """The distribution tokens are drawn from, [B, V].

        Args:
            logits_BV: Finite.
            allowed_BV: Tokens that may be drawn, at least one a row, to which the distribution is
                limited before all else; None for all.
        """
        logits = logits_BV
        if allowed_BV is not None:
            logits = logits.masked_fill(~allowed_BV, -torch.inf)
        if self.greedy:
            return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        # Next to 0 a quotient of what is not the largest may be -inf, of the largest it is 0.
        below = logits - logits.amax(dim=1, keepdim=True)
        probabilities = torch.softmax(below / self.temperature, dim=1)
        if self.top_p < 1:
            ascending, order = probabilities.sort(dim=1)
            # A token goes when it and all less likely ones hold no more than 1 - top_p.
            dropped = ascending.cumsum(1) <= 1 - self.top_p
            dropped[:, -1] = False  # not even where 1 - top_p is 1, rounded
            probabilities = probabilities.masked_fill(dropped.scatter(1, order, dropped), 0)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        return probabilities


def draw(probabilities_BV: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The token of each row where the sum of probabilities passes the row's uniform, [B].

    The inverse of the cumulative distribution: a token of probability 0 is never drawn.

    Args:
        probabilities_BV: In fp64, on the CPU.
        uniforms: In [0, 1), one a row.
    """
    cumulative_BV = probabilities_BV.cumsum(1)
    total_B1 = cumulative_BV[:, -1:]
    wanted_B1 = torch.tensor(uniforms, dtype=torch.float64)[:, None] * total_B1
    # Rounding may carry a uniform near 1 up to the total, which nothing passes.
    wanted_B1 = torch.minimum(wanted_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, wanted_B1, right=True)[:, 0]
