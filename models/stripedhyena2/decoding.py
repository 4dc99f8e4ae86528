"""One token after the other for many sequences side by side.

B rows, V vocabulary.
"""

import torch
from torch import Tensor

from hyenakernels.precision import accumulation_dtype
from stripedhyena2.cache import Cache
from stripedhyena2.model import StripedHyena2


class Decoder:
    """Sequences side by side that each grow by one token a step.

    Every row is run by itself, so that none depends on the others to the last bit.
    """

    def __init__(self, model: StripedHyena2, batch_size: int, capacity: int) -> None:
        """Rows for `batch_size` sequences of at most `capacity` tokens, prompt included."""
        self._model = model
        self._capacity = capacity
        self._rows: list[Cache | None] = [None] * batch_size

    def place(self, row: int, cache: Cache) -> None:
        """Put the state of one sequence into a row, whatever was there before.

        Raises:
            ValueError: The cache holds several sequences, or more tokens than there is room for.
        """
        if cache.batch_size != 1:
            raise ValueError(f"a row takes one sequence, the cache holds {cache.batch_size}")
        if cache.position > self._capacity:
            raise ValueError(
                f"the cache holds {cache.position:,} tokens, a row at most {self._capacity:,}"
            )
        self._rows[row] = cache.clone()

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token in every row; rows not in use get zeros."""
        weight = self._model.embedding.weight
        logits_BV = torch.zeros(
            len(self._rows), len(weight), device=weight.device, dtype=accumulation_dtype(weight)
        )
        for row, cache in enumerate(self._rows):
            if cache is not None and cache.position < self._capacity:
                logits_BV[row] = self._model(ids_B[row, None, None], cache=cache)[0, -1]
        return logits_BV
