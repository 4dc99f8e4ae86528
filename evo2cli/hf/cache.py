"""The generation cache of Evo 2, with the interface of `transformers.Cache`.

Padding is not cached, so the rows of a batch may hold different numbers of tokens.

B rows, N new positions, D channels, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from stripedhyena2 import Cache, Decoder, StripedHyena2
from stripedhyena2.generation import prefill

Run = Callable[[Tensor, Cache | None], list[Tensor]]


class Evo2Cache(transformers.Cache):
    """The cached states of a batch of sequences, updated in place by the model.

    Args:
        capacity: Maximum number of positions of a row. If given, the rows are kept in the static
            buffers of a `Decoder`, for single-token steps without gradients; the first call that
            a `Decoder` cannot serve moves them out of it permanently.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.layers: list[Any] = []  # for the base class; states are in `_decoder` or `_groups`
        self._positions = 0  # including padding
        self._capacity = capacity
        self._decoder: Decoder | None = None
        self._groups: list[tuple[list[int], Cache]] = []  # rows with the same number of tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions processed, including padding."""
        del layer_idx
        return self._positions

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The capacity, or -1 if unlimited."""
        del layer_idx
        return self._capacity or -1

    @property
    def is_compileable(self) -> bool:
        """Always false: on a GPU, a decoding step is a CUDA graph already."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Always false: filter and modal states cannot be rewound."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether any position has been processed."""
        return self._positions > 0

    @property
    def is_linear(self) -> list[bool]:
        """False, as the attention blocks are not linear and need positions."""
        return [False]

    @property
    def is_sliding(self) -> list[bool]:
        """False: no block uses sliding-window attention."""
        return [False]

    def crop(self, tokens_to_remove: int) -> None:
        """Not supported.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"cannot remove {tokens_to_remove} tokens from the cache of a Hyena model; process the "
            "sequence again with a new cache"
        )

    def reset(self) -> None:
        """Empty the cache."""
        self._positions, self._decoder, self._groups = 0, None, []

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows, in this order; a row may be selected several times."""
        self._leave_decoder()
        old_rows = indices.tolist()
        groups = []
        for rows, cache in self._groups:
            index_of = {row: index for index, row in enumerate(rows)}
            new_rows = [new for new, old in enumerate(old_rows) if old in index_of]
            if new_rows:
                selected = cache.select([index_of[old_rows[new]] for new in new_rows])
                groups.append((new_rows, selected))
        self._groups = groups

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, copies next to each other."""
        num_rows = sum(len(rows) for rows, _ in self._groups)
        self.batch_select_indices(torch.arange(num_rows).repeat_interleave(repeats))

    def advance(
        self, model: StripedHyena2, x_BND: Tensor, counts: Sequence[int], run: Run
    ) -> list[Tensor]:
        """Append tokens to every row, running the rows of equal length as one batch.

        Args:
            model: The model.
            x_BND: Embedded tokens, right-padded.
            counts: Number of tokens of each row; the rest of its positions are padding.
            run: Runs the model on embedded tokens [b, n, D] with the cache of these rows; returns
                tensors [b, n, D].

        Returns:
            The tensors [B, N, D] of `run` for all rows; zeros at padding.

        Raises:
            ValueError: All positions are padding.
        """
        if not any(counts):
            raise ValueError("attention_mask hides every token; give at least one")
        self._leave_decoder()
        self._groups = self._groups or [(list(range(len(counts))), model.new_cache(len(counts)))]
        self._positions += x_BND.shape[1]
        outputs: list[Tensor] = []
        groups = []
        for rows, cache in self._groups:
            for count in sorted({counts[row] for row in rows}):
                indices = [index for index, row in enumerate(rows) if counts[row] == count]
                group_rows, group_cache = [rows[index] for index in indices], cache
                if len(indices) < len(rows):
                    group_cache = cache.select(indices)
                groups.append((group_rows, group_cache))
                if not count:
                    continue
                if len(group_rows) == len(x_BND) and count == x_BND.shape[1]:
                    outputs = run(x_BND, group_cache)
                    continue
                rows_b = torch.tensor(group_rows, device=x_BND.device)
                group_outputs = run(x_BND[rows_b, :count], group_cache)
                outputs = outputs or [x_BND.new_zeros(x_BND.shape) for _ in group_outputs]
                for output, group_output in zip(outputs, group_outputs, strict=True):
                    output[rows_b, :count] = group_output.to(output.device)
        self._groups = groups
        return outputs

    def can_decode(self, num_new: int) -> bool:
        """Whether `decode` can append `num_new` positions."""
        if self._capacity is None or self._groups or torch.is_grad_enabled():
            return False
        is_step = self._decoder is None or num_new == 1
        return is_step and self._positions + num_new <= self._capacity

    def decode(self, model: StripedHyena2, ids_BN: Tensor, counts: Sequence[int]) -> Tensor:
        """Append tokens to every row of the decoder: prefill first, then one token per call.

        Args:
            model: The model.
            ids_BN: Token ids, right-padded.
            counts: Number of tokens of each row, at least one.

        Returns:
            Next-token logits [B, V] after the last token of each row.

        Raises:
            ValueError: A row has only padding.
        """
        assert self._capacity is not None
        self._positions += ids_BN.shape[1]
        if self._decoder is not None:
            return self._decoder.step(ids_BN[:, 0])
        if 0 in counts:
            raise ValueError(f"row {counts.index(0)} has only padding; give every row a token")
        self._decoder = Decoder(model, len(ids_BN), self._capacity)
        logits: list[Tensor] = []
        previous_1L: Tensor | None = None
        for row, count in enumerate(counts):
            ids_1L = ids_BN[row : row + 1, :count]
            # Samples of the same prompt share its prefill.
            if previous_1L is None or not torch.equal(ids_1L, previous_1L):
                previous_1L, past = ids_1L, self._decoder.new_cache(row)
                logits_1V = prefill(model, ids_1L, past)
            self._decoder.place(row, past)
            logits.append(logits_1V)
        return torch.cat(logits)

    def _leave_decoder(self) -> None:
        """Move all rows out of the decoder, permanently."""
        self._capacity = None
        if self._decoder is None:
            return
        by_length: dict[int, list[tuple[int, Cache]]] = {}
        for row in range(self._decoder.batch_size):
            past = self._decoder.take(row)
            by_length.setdefault(past.position, []).append((row, past))
        self._groups = [
            ([row for row, _ in rows], Cache.join([past for _, past in rows]))
            for rows in by_length.values()
        ]
        self._decoder = None
