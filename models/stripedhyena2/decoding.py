"""Generation at the speed of memory: sequences side by side that grow by a token a step.

All memory is taken once, and on a GPU a step is one CUDA graph: the same kernels on the same
addresses, without Python between them. A model spread over several GPUs does without.

B sequences side by side, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenakernels import added_linear, gated_linear, normed_linear
from hyenakernels.attention.float8 import Float8Rows, Rows
from stripedhyena2.cache import AttentionPast, AttentionSlots, Cache, HyenaPast, Past, RoomyPast
from stripedhyena2.model import Block, StripedHyena2
from stripedhyena2.operators import Attention


class Decoder:
    """Sequences that each take one token a step; they may differ in length.

    Args:
        model: The model; its weights must stay where they are.
        batch_size: Sequences side by side.
        capacity: Tokens that a sequence may reach, prompt included.
        float8: Keep keys and values in FP8.

    Raises:
        ValueError: There is no sequence, or no room.
    """

    def __init__(
        self, model: StripedHyena2, batch_size: int, capacity: int, *, float8: bool = False
    ) -> None:
        if batch_size < 1 or capacity < 1:
            raise ValueError(f"{batch_size} sequences of up to {capacity} tokens: both must be 1+")
        self._model = model
        self.capacity = capacity
        device = model.embedding.weight.device
        self._ids_B1 = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        devices = {parameter.device for parameter in model.parameters()}
        # On each device that a spread model has, the same.
        self._lengths = {
            each: torch.zeros_like(self._ids_B1[:, 0], device=each) for each in devices
        }
        self._can_record = devices == {device} and device.type == "cuda"
        self._pasts = self._room(float8=float8)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BV = self._ids_B1.new_empty(0)

    @torch.no_grad()
    def _room(self, *, float8: bool) -> list[Past]:
        """Pasts of all sequences: as a single one leaves them after a token, so many times."""
        model, batch = self._model, len(self._ids_B1)
        cache = model.new_cache(1)
        model(self._ids_B1[:1], cache=cache)
        room: list[Past] = []
        for block, past in zip(model.blocks, cache.pasts, strict=True):
            if isinstance(past, HyenaPast):
                parts = (past.featurizer_BPC, past.inner)
                room.append(HyenaPast(*(_repeated(x, batch) for x in parts)))
            else:
                assert isinstance(block.mixer, Attention)
                keys, values = block.mixer.room(batch, self.capacity + 1, float8=float8)
                room.append(AttentionSlots(keys, values, self._lengths[keys.device]))
        return room

    def new_cache(self, row: int) -> Cache:
        """The state of a sequence before its first token, whose keys and values lie in a row.

        So a prompt that is read with it is not there twice. What was in the row is lost; before the
        next step, `place` must put a sequence there.
        """
        cache = self._model.new_cache(1)
        for index, room in enumerate(self._pasts):
            if isinstance(room, AttentionSlots):
                own = slice(row, row + 1)
                memory = room.keys_BHTW[own], room.values_BHTW[own]
                cache.pasts[index] = RoomyPast.within(memory)
        return cache

    @torch.no_grad()
    def place(self, row: int, cache: Cache) -> None:
        """Put a sequence in a row, in the place of what was there.

        Args:
            row: 0-based.
            cache: A single sequence with one token at least, as the model has left it.

        Raises:
            ValueError: It is longer than the capacity, or not a single sequence.
        """
        if cache.batch_size != 1 or not 0 < cache.position <= self.capacity:
            raise ValueError(
                f"a row takes one sequence of 1 to {self.capacity} tokens; the cache holds "
                f"{cache.batch_size} of {cache.position}"
            )
        for room, past in zip(self._pasts, cache.pasts, strict=True):
            if isinstance(room, HyenaPast) and isinstance(past, HyenaPast):
                room.featurizer_BPC[row] = past.featurizer_BPC[0]
                room.inner[row] = past.inner[0]
            elif isinstance(room, AttentionSlots) and isinstance(past, AttentionPast):
                part = (row, slice(None), slice(cache.position))
                _put(room.keys_BHTW, part, past.keys_BHTW[0])
                _put(room.values_BHTW, part, past.values_BHTW[0])
        for lengths_B in self._lengths.values():
            lengths_B[row] = cache.position

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append a token to every sequence.

        Args:
            ids_B: int64 token ids; any for a row that is not in use.

        Returns:
            Logits of what follows, [B, V]. A row at its capacity stays there, and what it gives has
            no meaning.
        """
        self._ids_B1.copy_(ids_B[:, None])
        if self._can_record:
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()
        else:
            self._logits_BV = self._advanced()
        return self._logits_BV.clone()

    def _advanced(self) -> Tensor:
        """One step: the model on the pasts where they are, and the new ones in their place."""
        x_B1D, pasts = self._model.embedding(self._ids_B1), []
        for block, room in zip(self._model.blocks, self._pasts, strict=True):
            x_B1D, past = _through_block(block, x_B1D, room)
            pasts.append(past)
        logits_BV = self._model.unembed(x_B1D)[:, 0]
        pairs = [
            (old, new)
            for room, past in zip(self._pasts, pasts, strict=True)
            if isinstance(room, HyenaPast) and isinstance(past, HyenaPast)
            for old, new in (
                (room.featurizer_BPC, past.featurizer_BPC),
                (room.inner, past.inner),
            )
        ]
        for kind in {(old.dtype, old.device) for old, _ in pairs}:  # alike, one kernel copies them
            alike = [pair for pair in pairs if (pair[0].dtype, pair[0].device) == kind]
            torch._foreach_copy_([old for old, _ in alike], [new for _, new in alike])
        for lengths_B in self._lengths.values():
            lengths_B.add_(1).clamp_(max=self.capacity)
        return logits_BV

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Record a step. What a first run compiles must not happen while recording."""
        state = [x.clone() for x in self._state()]
        self._advanced()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits_BV = self._advanced()
        for x, before in zip(self._state(), state, strict=True):
            x.copy_(before)
        return graph

    def _state(self) -> list[Tensor]:
        """What a step changes, but for keys and values, which it writes once more alike."""
        pasts = [past for past in self._pasts if isinstance(past, HyenaPast)]
        return [
            *self._lengths.values(),
            *(x for past in pasts for x in (past.featurizer_BPC, past.inner)),
        ]


def _through_block(block: nn.Module, x_B1D: Tensor, past: Past) -> tuple[Tensor, Past]:
    """What the block computes, in launches that read its weights once, for a token a sequence."""
    assert isinstance(block, Block)
    norm, mlp = block.post_norm, block.mlp
    mixer: Any = block.mixer  # it takes the pasts that it gives
    x_B1D = x_B1D.to(norm.scale.device)
    if isinstance(mixer.project_in, nn.Linear):
        before = block.pre_norm
        z_B1C = normed_linear(x_B1D, before.scale, before.eps, mixer.project_in.weight)
    else:
        z_B1C = mixer.project_in(block.pre_norm(x_B1D))
    y_B1D, past = mixer.mix(z_B1C, past)
    x_B1D = added_linear(y_B1D, mixer.project_out.weight, mixer.project_out.bias, x_B1D)
    weights = mlp.gate.weight, mlp.up.weight
    y_B1M = gated_linear(x_B1D, norm.scale, norm.eps, *weights, gelu=mlp.activation is F.gelu)
    return added_linear(y_B1M, mlp.down.weight, None, x_B1D), past


def _repeated(x: Tensor, batch_size: int) -> Tensor:
    """Zeros for so many sequences, in memory as those of the single one `x`."""
    strides = (x[0].numel(), *x.stride()[1:])
    shape = (batch_size, *x.shape[1:])
    return torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device).zero_()


def _put(room: Rows, part: tuple[int, slice, slice], x: Rows) -> None:
    """Into a part of the room, rounded or restored to what the room keeps; not onto itself."""
    if room[part].data_ptr() == x.data_ptr():
        return
    if isinstance(room, Float8Rows):
        room[part] = x
    else:
        room[part] = x if isinstance(x, Tensor) else x.to(room.device)
