"""What a model remembers of the tokens it has seen, as transformers' cache.

Rows may have different numbers of tokens, because padding is not remembered.

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
    """The state of a batch of sequences, updated by the model.

    Args:
        capacity: The most positions of a row. If it is given, rows are kept in a `Decoder`, in
            memory that does not move, for steps of one token without gradients; what such steps
            cannot do moves the rows out of it for good.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.layers: list[Any] = []  # of the base class; ours are in the two forms below
        self._positions = 0  # with padding
        self._capacity = capacity
        self._decoder: Decoder | None = None
        self._groups: list[tuple[list[int], Cache]] = []  # rows with equally many tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions seen, with padding."""
        del layer_idx
        return self._positions

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The capacity; -1 if there is none."""
        del layer_idx
        return self._capacity or -1

    @property
    def is_compileable(self) -> bool:
        """Never: on a GPU, a step is a CUDA graph already."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Never: filters and modal states do not run backwards."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether it has seen anything."""
        return self._positions > 0

    @property
    def is_linear(self) -> list[bool]:
        """Not all blocks are: positions are counted."""
        return [False]

    @property
    def is_sliding(self) -> list[bool]:
        """No block has a window."""
        return [False]

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"cannot remove {tokens_to_remove} tokens from the past of a Hyena model; read the "
            "sequence again with a new cache"
        )

    def reset(self) -> None:
        """Forget everything."""
        self._positions, self._decoder, self._groups = 0, None, []

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self._leave_decoder()
        wanted = indices.tolist()
        groups = []
        for rows, cache in self._groups:
            places = {row: place for place, row in enumerate(rows)}
            chosen = [new for new, old in enumerate(wanted) if old in places]
            if chosen:
                groups.append((chosen, cache.select([places[wanted[new]] for new in chosen])))
        self._groups = groups

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        num_rows = sum(len(rows) for rows, _ in self._groups)
        self.batch_select_indices(torch.arange(num_rows).repeat_interleave(repeats))

    def advance(
        self, model: StripedHyena2, x_BND: Tensor, counts: Sequence[int], run: Run
    ) -> list[Tensor]:
        """Append tokens to every row.

        Args:
            model: The model.
            x_BND: Embedded tokens, those of a row first.
            counts: The number of tokens of each row; the rest of its positions are padding.
            run: Takes embedded tokens [b, n, D] and a cache of the model for them; returns tensors
                [b, n, D].

        Returns:
            What `run` returns, for all rows; zeros at padding.
        """
        if not any(counts):
            raise ValueError("attention_mask hides every token; give at least one")
        self._leave_decoder()
        self._groups = self._groups or [(list(range(len(counts))), model.new_cache(len(counts)))]
        self._positions += x_BND.shape[1]
        found: list[Tensor] = []
        groups = []
        for rows, cache in self._groups:
            for count in sorted({counts[row] for row in rows}):
                places = [place for place, row in enumerate(rows) if counts[row] == count]
                some, part = [rows[place] for place in places], cache
                if len(places) < len(rows):
                    part = cache.select(places)
                groups.append((some, part))
                if not count:
                    continue
                if len(some) == len(x_BND) and count == x_BND.shape[1]:
                    found = run(x_BND, part)
                    continue
                at = torch.tensor(some, device=x_BND.device)
                outputs = run(x_BND[at, :count], part)
                found = found or [x_BND.new_zeros(x_BND.shape) for _ in outputs]
                for whole, output in zip(found, outputs, strict=True):
                    whole[at, :count] = output.to(whole.device)
        self._groups = groups
        return found

    def can_decode(self, num_new: int) -> bool:
        """Whether `decode` can append so many positions."""
        if self._capacity is None or self._groups or torch.is_grad_enabled():
            return False
        is_step = self._decoder is None or num_new == 1
        return is_step and self._positions + num_new <= self._capacity

    def decode(self, model: StripedHyena2, ids_BN: Tensor, counts: Sequence[int]) -> Tensor:
        """Append tokens to every row of a decoder: prompts at first, then one token at a time.

        Args:
            model: The model.
            ids_BN: Token ids, those of a row first.
            counts: The number of tokens of each row, at least one.

        Returns:
            Logits [B, V] of what follows the last token of each row.
        """
        assert self._capacity is not None
        self._positions += ids_BN.shape[1]
        if self._decoder is not None:
            return self._decoder.step(ids_BN[:, 0])
        if 0 in counts:
            raise ValueError(f"row {counts.index(0)} has only padding; give every row a token")
        self._decoder = Decoder(model, len(ids_BN), self._capacity)
        logits: list[Tensor] = []
        before_1L: Tensor | None = None
        for row, count in enumerate(counts):
            ids_1L = ids_BN[row : row + 1, :count]
            if before_1L is None or not torch.equal(ids_1L, before_1L):  # samples share a prompt
                before_1L, past = ids_1L, self._decoder.new_cache(row)
                logits_1V = prefill(model, ids_1L, past)
            self._decoder.place(row, past)
            logits.append(logits_1V)
        return torch.cat(logits)

    def _leave_decoder(self) -> None:
        """Move all rows out of the decoder, for what only the whole model can do."""
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
