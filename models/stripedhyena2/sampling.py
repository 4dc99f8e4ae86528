"""Sampling: from logits to the next token.

B batch, V vocabulary, C tokens that may be drawn.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stripedhyena2.errors import InputError, check_count


class Uniforms:
    """Uniform random numbers in [0, 1) that depend on a key alone, the same on every machine.

    They are the upper 53 bits of the raw words of Philox, a counter-based generator, seeded by a
    hash of the key.
    """

    def __init__(self, *key: int | bytes) -> None:
        digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    @classmethod
    def of_sample(cls, seed: int, prompt: bytes, number: int) -> "Uniforms":
        """The numbers for one sample of a prompt; `number` counts its samples from 1."""
        return cls(int(seed), prompt, number)  # a seed of numpy is the same as that of Python

    def draw(self) -> float:
        """The next number."""
        return float(int(self._bits.random_raw()) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Sampler:
    """The distribution that tokens are sampled from: top-k, then temperature, then top-p.

    Ties between equally likely tokens go to the lower id.

    Attributes:
        temperature: Divides the logits; 0 is greedy, i.e. always takes the likeliest token.
        top_k: Sample from the k likeliest tokens; 0 means all, 1 is greedy.
        top_p: Sample from the smallest set of likeliest tokens whose total probability is at least
            this; 1 means all.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 4
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, Real) and 0 <= self.temperature < math.inf):
            raise InputError(f"temperature = {self.temperature!r} must be 0 or more, and finite")
        check_count("top_k", self.top_k, least=0)
        if not (isinstance(self.top_p, Real) and 0 < self.top_p <= 1):
            raise InputError(f"top_p = {self.top_p!r} must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits_BV: Tensor, allowed_BV: Tensor | None = None) -> Tensor:
        """The distribution that tokens are drawn from, [B, V].

        Args:
            logits_BV: Finite logits.
            allowed_BV: Mask of tokens that may be drawn, at least one per row; the others are
                removed before top-k. None allows all.
        """
        logits = logits_BV
        if allowed_BV is not None:
            logits = logits.masked_fill(~allowed_BV, -torch.inf)
        if self.greedy:
            return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
        order_BC = self._order(logits, allowed_BV)
        if self.top_k > 0:
            logits = logits.scatter(1, order_BC[:, self.top_k :], -torch.inf)
        # With a temperature near 0, quotients may overflow to -inf, but the largest one is 0.
        below = logits - logits.amax(dim=1, keepdim=True)
        probabilities = torch.softmax(below / self.temperature, dim=1)
        if self.top_p < 1:
            # A token is dropped if those before it already reach top_p.
            held_BC = probabilities.gather(1, order_BC).cumsum(1) >= self.top_p
            dropped_BC = F.pad(held_BC[:, :-1], (1, 0))
            dropped_BV = torch.zeros_like(probabilities, dtype=torch.bool)
            dropped_BV = dropped_BV.scatter(1, order_BC, dropped_BC)
            probabilities = probabilities.masked_fill(dropped_BV, 0)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        return probabilities

    @staticmethod
    def _order(logits_BV: Tensor, allowed_BV: Tensor | None) -> Tensor:
        """The tokens that are allowed in any row, sorted in each row by descending logit, [B, C].

        The others have no probability and need no sorting; mostly four of 512 are left.
        """
        if allowed_BV is None:
            return logits_BV.argsort(dim=1, descending=True, stable=True)
        tokens_C = allowed_BV.any(0).nonzero()[:, 0]
        return tokens_C[logits_BV[:, tokens_C].argsort(dim=1, descending=True, stable=True)]


def draw(probabilities_BV: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The token of each row at which the cumulative probability exceeds a uniform number, [B].

    A token with probability 0 is never drawn.

    Args:
        probabilities_BV: fp64, on the CPU.
        uniforms: One number in [0, 1) per row.
    """
    cumulative_BV = probabilities_BV.cumsum(1)
    total_B1 = cumulative_BV[:, -1:]
    wanted_B1 = torch.tensor(uniforms, dtype=torch.float64)[:, None] * total_B1
    # Rounding may lift a product to the total, which no cumulative probability exceeds.
    wanted_B1 = torch.minimum(wanted_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, wanted_B1, right=True)[:, 0]
