"""Generation at the speed of memory: sequences side by side that grow by a token a step.

All memory is taken once, and on a GPU a step is one CUDA graph: the same kernels on the same
addresses, without Python between them. A model spread over several GPUs does without.

B sequences side by side, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenakernels import HyenaPast, HyenaSlots, added_linear, gated_linear, normed_linear
from stripedhyena2.cache import (
    AttentionPast,
    AttentionSlots,
    Cache,
    RoomyPast,
    Slots,
)
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

    def _room(self, *, float8: bool) -> list[Slots]:
        """Pasts of all sequences, in memory that stays."""
        batch = len(self._ids_B1)
        room: list[Slots] = []
        for block in self._model.blocks:
            assert isinstance(block, Block)
            mixer = block.mixer
            lengths_B = self._lengths[mixer.project_out.weight.device]
            if isinstance(mixer, Attention):
                rows = mixer.room(batch, self.capacity + 1, float8=float8)
                room.append(AttentionSlots(*rows, lengths_B))
            else:
                room.append(HyenaSlots(*mixer.room(batch), lengths_B))
        return room

    def new_cache(self, row: int) -> Cache:
        """The state of a sequence before its first token, whose keys and values lie in a row.

        So a prompt that is read with it is not there twice. What was in the row is lost; before the
        next step, `place` must put a sequence there. A model that reads more into it than the row
        holds raises ValueError.
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
            if isinstance(room, HyenaSlots) and isinstance(past, HyenaPast):
                room.put(row, past, cache.position)
            elif isinstance(room, AttentionSlots) and isinstance(past, AttentionPast):
                room.put(row, past)
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
            with torch.cuda.device_of(self._ids_B1):  # the one whose stream is recorded
                if self._graph is None:
                    self._graph = self._captured()
                self._graph.replay()
        else:
            self._logits_BV = self._advanced()
        return self._logits_BV.clone()

    def _advanced(self) -> Tensor:
        """One step: a token through all blocks, whose pasts move on in place."""
        x_B1D = self._model.embedding(self._ids_B1)
        for block, slots in zip(self._model.blocks, self._pasts, strict=True):
            x_B1D = _through_block(block, x_B1D, slots)
        logits_BV = self._model.unembed(x_B1D)[:, 0]
        for lengths_B in self._lengths.values():
            lengths_B.add_(1).clamp_(max=self.capacity)
        return logits_BV

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Record a step. What a first run compiles must not happen while recording."""
        state = [x.clone() for x in self._state()]
        self._advanced()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._ids_B1.device)  # torch's own is that of the first graph
        with torch.cuda.graph(graph, stream=stream):
            self._logits_BV = self._advanced()
        for x, before in zip(self._state(), state, strict=True):
            x.copy_(before)
        return graph

    def _state(self) -> list[Tensor]:
        """What a step changes; that it puts a token at its place once more changes nothing."""
        states = [past.inner for past in self._pasts if isinstance(past, HyenaSlots)]
        return [*self._lengths.values(), *states]


def _through_block(block: nn.Module, x_B1D: Tensor, slots: Slots) -> Tensor:
    """What the block computes, in launches that read its weights once, for a token a sequence."""
    assert isinstance(block, Block)
    norm, mlp = block.post_norm, block.mlp
    mixer: Any = block.mixer  # its slots are of its kind
    x_B1D = x_B1D.to(norm.scale.device)
    if isinstance(mixer.project_in, nn.Linear):
        before = block.pre_norm
        z_B1C = normed_linear(x_B1D, before.scale, before.eps, mixer.project_in.weight)
    else:
        z_B1C = mixer.project_in(block.pre_norm(x_B1D))
    y_B1D = mixer.step(z_B1C, slots)
    x_B1D = added_linear(y_B1D, mixer.project_out.weight, mixer.project_out.bias, x_B1D)
    weights = mlp.gate.weight, mlp.up.weight
    y_B1M = gated_linear(x_B1D, norm.scale, norm.eps, *weights, gelu=mlp.activation is F.gelu)
    return added_linear(y_B1M, mlp.down.weight, None, x_B1D)
