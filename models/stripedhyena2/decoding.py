"""Decoding: one token per step for each sequence of a batch, bound by memory bandwidth.

All memory is allocated once, and on a GPU a step is a CUDA graph: the same kernels on the same
addresses, without Python between them. A model on several GPUs runs without a graph.

B sequences (rows), V vocabulary.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenakernels import added_linear, gated_linear, normed_linear, rms_norm
from hyenakernels.linear.reference import Weight
from stripedhyena2.cache import Cache, Slots
from stripedhyena2.ids import check_range

if TYPE_CHECKING:
    from stripedhyena2.model import Block, StripedHyena2


class Decoder:
    """A batch of sequences that each grow by one token per step; their lengths may differ.

    Args:
        model: The model; its weights must not move in memory while the decoder is in use.
        batch_size: Number of sequences.
        capacity: The maximum number of tokens of a sequence, including its prompt.
        float8: Store keys and values in FP8.

    Raises:
        ValueError: The batch size or the capacity is below 1.
    """

    def __init__(
        self, model: "StripedHyena2", batch_size: int, capacity: int, *, float8: bool = False
    ) -> None:
        if batch_size < 1 or capacity < 1:
            raise ValueError(
                f"{batch_size} sequences of up to {capacity} tokens: both must be at least 1"
            )
        self._model = model
        self.batch_size = batch_size
        self.capacity = capacity
        device = model.embedding.weight.device
        self._ids_B1 = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        devices = {parameter.device for parameter in model.parameters()}
        # A model on several devices needs a copy on each of them.
        self._lengths = {
            other: torch.zeros_like(self._ids_B1[:, 0], device=other) for other in devices
        }
        self._can_record = devices == {device} and device.type == "cuda"
        self._slots = self._new_slots(float8=float8)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_BV = self._ids_B1.new_empty(0)

    def _new_slots(self, *, float8: bool) -> list[Slots]:
        """The pasts of all sequences, in memory that does not move."""
        all_slots: list[Slots] = []
        for mixer in self._model.mixers:
            lengths_B = self._lengths[mixer.project_out.weight.device]
            slots = mixer.new_slots(self.batch_size, self.capacity, lengths_B, float8=float8)
            all_slots.append(slots)
        return all_slots

    def new_cache(self, row: int) -> Cache:
        """An empty cache for the prefill of one sequence, with its keys and values in a row.

        So they need no copy later. The prefill overwrites the sequence in that row, so `place` must
        be called before the next step. Reading more tokens than the capacity raises ValueError.
        """
        cache = self._model.new_cache(1)
        cache.pasts = [slots.past_in(row) for slots in self._slots]
        return cache

    @torch.no_grad()
    def place(self, row: int, cache: Cache) -> None:
        """Put a sequence into a row, in place of the one that is there.

        Args:
            row: Index of the row, 0-based.
            cache: The cache of one sequence with at least one token.

        Raises:
            ValueError: The cache holds several sequences, no token, or more than the capacity.
        """
        if cache.batch_size != 1 or not 0 < cache.position <= self.capacity:
            raise ValueError(
                f"a row takes one sequence of 1 to {self.capacity} tokens; the cache holds "
                f"{cache.batch_size} of {cache.position}"
            )
        for slots, past in zip(self._slots, cache.pasts, strict=True):
            slots.put(row, past, cache.position)
        for lengths_B in self._lengths.values():
            lengths_B[row] = cache.position

    @torch.no_grad()
    def take(self, row: int) -> Cache:
        """A copy of the cache of the sequence in a row, for `place`."""
        length = int(next(iter(self._lengths.values()))[row])
        return Cache(1, length, [slots.take(row, length) for slots in self._slots])

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append a token to every sequence.

        Args:
            ids_B: int64 token ids in [0, V); any id for a row that is not in use. Ids on the CPU
                are checked without synchronizing with the GPU.

        Returns:
            Next-token logits [B, V]; meaningless for a row that has reached its capacity.

        Raises:
            InputError: An id is out of range.
        """
        check_range(ids_B, self._model.config.vocabulary)
        self._ids_B1.copy_(ids_B[:, None])
        if self._can_record:
            with torch.cuda.device_of(self._ids_B1):  # the graph records its stream
                if self._graph is None:
                    self._graph = self._capture()
                self._graph.replay()
        else:
            self._logits_BV = self._advance()
        return self._logits_BV.clone()

    def _advance(self) -> Tensor:
        """One step: the tokens pass all blocks, whose pasts are updated in place."""
        x_B1D = self._model.embedding(self._ids_B1)
        for block, slots in zip(self._model.blocks, self._slots, strict=True):
            x_B1D = _through_block(cast("Block", block), x_B1D, slots)
        logits_BV = self._model.unembed(x_B1D)[:, 0]
        for lengths_B in self._lengths.values():
            lengths_B.add_(1).clamp_(max=self.capacity)
        return logits_BV

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture a step, after a warm-up that compiles the kernels and cannot be captured."""
        state = [x.clone() for x in self._state()]
        self._advance()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._ids_B1.device)  # torch's default is on the first device
        with torch.cuda.graph(graph, stream=stream):
            self._logits_BV = self._advance()
        for x, before in zip(self._state(), state, strict=True):
            x.copy_(before)
        return graph

    def _state(self) -> list[Tensor]:
        """What a step changes, except KV caches: there, a repeated step writes the same values."""
        states = [state for slots in self._slots for state in slots.state()]
        return [*self._lengths.values(), *states]


def _through_block(block: "Block", x_B1D: Tensor, slots: Slots) -> Tensor:
    """One token of each sequence through a block, by fused kernels that read its weights once."""
    norm, mlp = block.post_norm, block.mlp
    mixer: Any = block.mixer  # its slots have the matching type
    x_B1D = x_B1D.to(norm.scale.device)
    before = block.pre_norm
    if (weight := _weight(mixer.project_in)) is not None:
        z_B1C = normed_linear(x_B1D, before.scale, before.eps, weight)
    else:
        z_B1C = mixer.project_in(before(x_B1D))
    y_B1D = mixer.step(z_B1C, slots)
    if (weight := _weight(mixer.project_out)) is not None:
        x_B1D = added_linear(y_B1D, weight, mixer.project_out.bias, x_B1D)
    else:
        x_B1D = x_B1D + mixer.project_out(y_B1D)
    gate, up, down = (_weight(layer) for layer in (mlp.gate, mlp.up, mlp.down))
    if gate is None or up is None or down is None:
        mixed_B1D: Tensor = mlp(rms_norm(x_B1D, norm.scale, norm.eps))
        return x_B1D + mixed_B1D
    is_gelu = mlp.activation is F.gelu
    y_B1M = gated_linear(x_B1D, norm.scale, norm.eps, gate, up, gelu=is_gelu)
    return added_linear(y_B1M, down, None, x_B1D)


def _weight(layer: nn.Module) -> Weight | None:
    """The weight of a layer that is a plain product; None if the layer must be called.

    Replacements of linear layers, in FP8 or with an adapter, must be called unless they have an
    `operand`.
    """
    if isinstance(layer, nn.Linear):
        return layer.weight
    operand: Weight | None = getattr(layer, "operand", None)
    return operand
