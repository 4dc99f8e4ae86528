"""Causal multi-head attention with rotary position embedding, and its KV caches.

B batch, L new tokens, T tokens seen, D channels, C = 3D channels, H heads, W channels per head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyenakernels import (
    append_token,
    causal_attention,
    decode_attention,
    host_memory,
    pooled_attention,
    rotary,
)
from hyenakernels.attention.float8 import Float8Rows, Rows
from hyenakernels.attention.reference import rotary_angles
from hyenakernels.parallel import attention_all_to_all, attention_ring, attention_zigzag
from stripedhyena2.cache import Launch, Pool, Slots, padded_rows
from stripedhyena2.config import ModelConfig
from stripedhyena2.errors import InputError
from stripedhyena2.layout import Entry, by_owner, by_part
from stripedhyena2.mixer import Mixer

# Bytes per channel that rotary embedding and the splitting of projections read and write, in a
# forward pass and in a backward pass.
ROTARY_FORWARD, ROTARY_BACKWARD = 8, 28


@dataclass(frozen=True)
class AttentionPast:
    """The KV cache: every (rotated) key and every value seen, [B, H, T, W]."""

    keys_BHTW: Rows
    values_BHTW: Rows

    def extended(self, k_BHLW: Tensor, v_BHLW: Tensor) -> "AttentionPast":
        """The past with L more tokens."""
        assert isinstance(self.keys_BHTW, Tensor)
        assert isinstance(self.values_BHTW, Tensor)
        return AttentionPast(
            torch.cat([self.keys_BHTW, k_BHLW], dim=2),
            torch.cat([self.values_BHTW, v_BHLW], dim=2),
        )


@dataclass(frozen=True)
class PreallocatedKV(AttentionPast):
    """A KV cache that grows in preallocated memory; only the latest one may be extended.

    Attributes:
        memory: The memory of keys and values, [B, H, capacity, W] each.
    """

    memory: tuple[Rows, Rows]

    @classmethod
    def empty(cls, memory: tuple[Rows, Rows]) -> "PreallocatedKV":
        """The past before the first token."""
        keys_BHTW, values_BHTW = memory
        return cls(keys_BHTW[:, :, :0], values_BHTW[:, :, :0], memory)

    def extended(self, k_BHLW: Tensor, v_BHLW: Tensor) -> "PreallocatedKV":
        """As in `AttentionPast`, up to the capacity; writes to the memory in place."""
        seen, new = self.keys_BHTW.shape[2], k_BHLW.shape[2]
        for memory_BHTW, x_BHLW in zip(self.memory, (k_BHLW, v_BHLW), strict=True):
            if isinstance(memory_BHTW, Float8Rows):
                memory_BHTW[:, :, seen : seen + new] = x_BHLW
            else:
                host_memory.put(memory_BHTW[:, :, seen : seen + new], x_BHLW)
        keys_BHTW, values_BHTW = (memory_BHTW[:, :, : seen + new] for memory_BHTW in self.memory)
        return PreallocatedKV(keys_BHTW, values_BHTW, self.memory)


@dataclass(frozen=True)
class AttentionSlots(Slots):
    """The KV cache of sequences of different lengths.

    Attributes:
        keys_BHTW: Keys of up to T tokens per sequence, of which the first `lengths` are filled.
        values_BHTW: Values, likewise.
        lengths_B: Tokens seen by each sequence, below T, int64.
    """

    keys_BHTW: Rows
    values_BHTW: Rows
    lengths_B: Tensor

    def put(self, row: int, past: AttentionPast, length: int) -> None:
        """As in `Slots`; a past from `past_in` for this row is already in place."""
        for memory, x in ((self.keys_BHTW, past.keys_BHTW), (self.values_BHTW, past.values_BHTW)):
            if memory[row].data_ptr() == x.data_ptr():
                continue
            if isinstance(memory, Float8Rows):
                memory[row, :, :length] = x[0]
            else:
                memory[row, :, :length] = x[0] if isinstance(x, Tensor) else x[0].to(memory.device)

    def take(self, row: int, length: int) -> AttentionPast:
        """As in `Slots`."""
        assert isinstance(self.keys_BHTW, Tensor)
        assert isinstance(self.values_BHTW, Tensor)
        rows = slice(row, row + 1)
        return AttentionPast(
            self.keys_BHTW[rows, :, :length].clone(), self.values_BHTW[rows, :, :length].clone()
        )

    def past_in(self, row: int) -> PreallocatedKV:
        """As in `Slots`."""
        rows = slice(row, row + 1)
        return PreallocatedKV.empty((self.keys_BHTW[rows], self.values_BHTW[rows]))


class AttentionPool(Pool):
    """A paged KV cache (with pages of one token) for the tokens of many prefixes.

    Attributes:
        keys_NHW: Rotated keys; None before the first tokens are read.
        values_NHW: Values, likewise.
    """

    is_paged = True

    def __init__(self) -> None:
        super().__init__()
        self._num_pages = 1
        self.keys_NHW: Tensor | None = None
        self.values_NHW: Tensor | None = None

    def reserve(self, num_states: int, num_pages: int) -> None:
        """As in `Pool`."""
        del num_states
        self._num_pages = max(num_pages, self._num_pages)
        if self.keys_NHW is not None and self.values_NHW is not None:
            self.keys_NHW = padded_rows(self.keys_NHW, self._num_pages)
            self.values_NHW = padded_rows(self.values_NHW, self._num_pages)

    def rows(self, like_BLHW: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values; their memory is allocated on the first call."""
        if self.keys_NHW is None or self.values_NHW is None:
            empty_NHW = like_BLHW.new_zeros(0, *like_BLHW.shape[2:])
            self.keys_NHW = padded_rows(empty_NHW, self._num_pages)
            self.values_NHW = padded_rows(empty_NHW, self._num_pages)
        return self.keys_NHW, self.values_NHW

    def store(self, launch: Launch, k_BLHW: Tensor, v_BLHW: Tensor) -> None:
        """Store the keys and values of the sequences for which the launch has new pages."""
        if launch.new_pages_NL is None:
            return
        count, pages = len(launch.new_pages_NL), launch.new_pages_NL.flatten()
        for memory_NHW, x_BLHW in zip(self.rows(k_BLHW), (k_BLHW, v_BLHW), strict=True):
            memory_NHW.index_copy_(0, pages, x_BLHW[:count].flatten(0, 1))


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position, rotary_base^(-2i / head width) for each pair i of a head, in fp32."""
    evens = range(0, config.width // config.num_heads, 2)
    # In Python floats: arithmetic of torch on the meta device would import torch._dynamo.
    radians = [config.rotary_base ** (-even * config.num_heads / config.width) for even in evens]
    return torch.tensor(radians, dtype=torch.float32)


class Attention(Mixer, letter="A"):
    """Causal multi-head attention with rotary position embedding.

    The frequencies are a buffer, not recomputed: those in released checkpoints are rounded.
    """

    title = "attention"
    colour = "magenta"
    fp32_tensors = ("inverse_frequency",)
    released_indices = "attn_layer_idxs"
    is_quadratic = True
    scheme = "attention"
    exchanges = {  # noqa: RUF012 - declared a ClassVar by Mixer
        "heads": attention_all_to_all,
        "ring": attention_ring,
        "zigzag": attention_zigzag,
    }

    attend: Callable[..., Tensor] = staticmethod(causal_attention)
    inverse_frequency: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.num_heads = config.num_heads
        self.rotary_scale = config.rotary_scale
        self.register_buffer("inverse_frequency", rotary_frequencies(config))

    def rotate(self, x_BLHW: Tensor, positions_BL: Tensor) -> Tensor:
        """Rotate each pair (i, i + W/2) by its angle; the batch size of the positions may be 1.

        angle(t, i) = t / rotary_scale * inverse_frequency[i], in fp32 or better.
        """
        angle_BLV = rotary_angles(positions_BL, self.inverse_frequency, self.rotary_scale)
        return rotary(x_BLHW, angle_BLV.cos(), angle_BLV.sin())

    def forward(self, x_BLD: Tensor, past: AttentionPast | None) -> tuple[Tensor, AttentionPast]:
        """As in `Mixer`."""
        length, device = x_BLD.shape[1], x_BLD.device
        first = past.keys_BHTW.shape[2] if past else self.first_position
        positions_1L = torch.arange(first, first + length, device=device)[None]
        q_BLHW, k_BLHW, v_BLHW = self._heads(x_BLD, positions_1L)
        q, k, v = (part.transpose(1, 2) for part in (q_BLHW, k_BLHW, v_BLHW))
        past = past.extended(k, v) if past else AttentionPast(k, v)
        y_BHLW = self.attend(q, past.keys_BHTW, past.values_BHTW)
        return self.project_out(y_BHLW.transpose(1, 2).flatten(2)), past

    def _heads(self, x_BLD: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, and values, [B, L, H, W] each."""
        qkv_BLHW = self.project_in(x_BLD).unflatten(2, (3 * self.num_heads, -1))
        qk_BLHW, v_BLHW = qkv_BLHW.split([2 * self.num_heads, self.num_heads], dim=2)
        return *self.rotate(qk_BLHW, positions_BL).chunk(2, dim=2), v_BLHW

    def new_pool(self) -> AttentionPool:
        """As in `Mixer`."""
        return AttentionPool()

    def read_rows(self, x_BLD: Tensor, pool: AttentionPool, launch: Launch) -> Tensor:
        """As in `Mixer`."""
        new_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        q_BLHW, k_BLHW, v_BLHW = self._heads(x_BLD, launch.past_lengths_B[:, None] + new_L)
        rows = *pool.rows(k_BLHW), launch.page_table_BT, launch.past_lengths_B
        y_BLHW = pooled_attention(q_BLHW, k_BLHW, v_BLHW, *rows)
        pool.store(launch, k_BLHW, v_BLHW)
        projected_BLD: Tensor = self.project_out(y_BLHW.flatten(2))
        return projected_BLD

    def step(self, z_B1C: Tensor, slots: AttentionSlots) -> Tensor:
        """As in `Mixer`."""
        rows = slots.keys_BHTW, slots.values_BHTW
        angles = self.inverse_frequency, self.rotary_scale
        q_BHW = append_token(z_B1C[:, 0], *angles, *rows, slots.lengths_B)
        return decode_attention(q_BHW, *rows, slots.lengths_B + 1).flatten(1)[:, None]

    def check_capacity(self, past: AttentionPast | None, num_tokens: int) -> None:
        """As in `Mixer`: a `PreallocatedKV` has a capacity."""
        if isinstance(past, PreallocatedKV):
            seen, capacity = past.keys_BHTW.shape[2], past.memory[0].shape[2]
            if seen + num_tokens > capacity:
                raise InputError(
                    f"{seen} tokens seen and {num_tokens} new ones exceed the capacity of "
                    f"{capacity} tokens"
                )

    def new_past(
        self, batch_size: int, num_tokens: int, *, on_host: bool = False, float8: bool = False
    ) -> PreallocatedKV:
        """As in `Mixer`."""
        memory = self._memory(batch_size, num_tokens, on_host=on_host, float8=float8)
        return PreallocatedKV.empty(memory)

    def new_slots(
        self, batch_size: int, capacity: int, lengths_B: Tensor, *, float8: bool = False
    ) -> AttentionSlots:
        """As in `Mixer`, with room for the token that rows at their capacity still write."""
        memory = self._memory(batch_size, capacity + 1, on_host=False, float8=float8)
        return AttentionSlots(*memory, lengths_B)

    def _memory(
        self, batch_size: int, num_tokens: int, *, on_host: bool, float8: bool
    ) -> tuple[Rows, Rows]:
        """Allocate keys and values, [B, H, T, W] each.

        On the host they are pinned, and laid out as [T, B, H, W], so that slices of tokens are
        contiguous.
        """
        # The bias has the dtype of the activations, even if weights are in FP8.
        like = self.project_out.bias
        width = len(like) // self.num_heads
        heads, dtype = self.num_heads, like.dtype

        def allocate() -> Rows:
            if on_host:
                order = (num_tokens, batch_size, heads, width)
                pinned_TBHW = torch.empty(order, dtype=dtype, pin_memory=like.is_cuda)
                return pinned_TBHW.permute(1, 2, 0, 3)
            sizes = (batch_size, heads, num_tokens, width)
            if float8:
                return Float8Rows.empty(sizes, dtype, like.device)
            return like.new_empty(sizes)

        return allocate(), allocate()

    def wrap_operator(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """As in `Mixer`."""
        self.attend = wrap(self.attend)

    @classmethod
    def buffers_of(cls, config: ModelConfig) -> dict[str, Tensor]:
        """As in `Mixer`: the rotary frequencies."""
        return {"inverse_frequency": rotary_frequencies(config)}

    @classmethod
    def state_bytes(cls, config: ModelConfig, length: int, element: int) -> int:
        """As in `Mixer`: a key and a value per token."""
        return 2 * length * config.width * element

    @classmethod
    def flops(cls, config: ModelConfig, length: int) -> int:
        """As in `Mixer`: 2 L D.

        Scores and weighted sums take 2D each per visible position, and a token sees half of the
        window on average.
        """
        return 2 * length * config.width

    @classmethod
    def saved_bytes(cls, config: ModelConfig, element: int) -> float:
        """As in `Mixer`, plus rotated queries and keys (2D), and the fp32 log-sum-exp per head."""
        return (
            super().saved_bytes(config, element) + 2 * element * config.width + 4 * config.num_heads
        )

    @classmethod
    def moved_bytes(cls, config: ModelConfig, element: int, recomputed: int) -> float:  # noqa: ARG003 - measured for bf16
        """As in `Mixer`: rotary embedding and the splitting of projections."""
        return (ROTARY_FORWARD * (1 + recomputed) + ROTARY_BACKWARD) * config.width

    @classmethod
    def sent_numbers(cls, config: ModelConfig, scheme: str, count: int) -> float:
        """As in `Mixer`.

        "heads": an all-to-all of q, k, v and y. "ring": the visible keys and values. "zigzag": as
        many on average, and half of q, k, v and y to reshard.
        """
        numbers = {
            "heads": 4 * (1 - 1 / count),
            "ring": count - 1,
            "zigzag": 1.5 * (count - 1) + 2,
        }
        return numbers[scheme] * config.width

    @classmethod
    def check_exchange(cls, config: ModelConfig, scheme: str, count: int) -> None:
        """As in `Mixer`."""
        if scheme == "heads" and config.num_heads < count:
            raise ValueError(
                f'attention = "heads": {config.num_heads} heads for {count} ranks; use "zigzag"'
            )

    @classmethod
    def released_tensors(cls, config: ModelConfig) -> Iterator[Entry]:
        """As in `Mixer`."""
        heads = config.num_heads
        yield Entry(
            "project_in.weight",
            "inner_mha_cls.Wqkv.weight",
            lambda rows: by_part(rows, heads),
            lambda rows: by_owner(rows, heads),
        )
        yield Entry("project_out.weight", "inner_mha_cls.out_proj.weight")
        yield Entry("project_out.bias", "inner_mha_cls.out_proj.bias")
        yield Entry("inverse_frequency", "inner_mha_cls.rotary_emb.inv_freq")
