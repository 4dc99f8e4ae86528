"""What a model remembers of the tokens it has seen: one past per block.

B batch, D channels, S modes, H heads, W channels a head, T tokens seen, P past samples.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyenakernels import HyenaPast, HyenaSlots, host_memory
from hyenakernels.attention.float8 import Float8Rows, Rows


@dataclass(frozen=True)
class AttentionPast:
    """The past of attention: every key (already rotated) and value seen, as [B, H, T, W]."""

    keys_BHTW: Rows
    values_BHTW: Rows

    def extended(self, k_BHLW: Tensor, v_BHLW: Tensor) -> "AttentionPast":
        """The past after L more tokens."""
        assert isinstance(self.keys_BHTW, Tensor)
        assert isinstance(self.values_BHTW, Tensor)
        return AttentionPast(
            torch.cat([self.keys_BHTW, k_BHLW], dim=2),
            torch.cat([self.values_BHTW, v_BHLW], dim=2),
        )


@dataclass(frozen=True)
class RoomyPast(AttentionPast):
    """A past that grows in memory taken beforehand; only the last of its line may be extended.

    Attributes:
        room: Keys and values of all tokens to come, [B, H, capacity, W] each.
    """

    room: tuple[Rows, Rows]

    @classmethod
    def within(cls, room: tuple[Rows, Rows]) -> "RoomyPast":
        """Before the first token, with room for T."""
        keys_BHTW, values_BHTW = room
        return cls(keys_BHTW[:, :, :0], values_BHTW[:, :, :0], room)

    def extended(self, k_BHLW: Tensor, v_BHLW: Tensor) -> "RoomyPast":
        """As `AttentionPast`; ValueError beyond the room."""
        seen, new = self.keys_BHTW.shape[2], k_BHLW.shape[2]
        if seen + new > self.room[0].shape[2]:
            raise ValueError(
                f"{seen} tokens and {new} more need more room than for {self.room[0].shape[2]}"
            )
        for room_BHTW, x_BHLW in zip(self.room, (k_BHLW, v_BHLW), strict=True):
            if isinstance(room_BHTW, Float8Rows):
                room_BHTW[:, :, seen : seen + new] = x_BHLW
            else:
                host_memory.put(room_BHTW[:, :, seen : seen + new], x_BHLW)
        keys_BHTW, values_BHTW = (room_BHTW[:, :, : seen + new] for room_BHTW in self.room)
        return RoomyPast(keys_BHTW, values_BHTW, self.room)


@dataclass(frozen=True)
class AttentionSlots:
    """Keys and values of sequences of different lengths that grow in place, a token at a time.

    Attributes:
        keys_BHTW: Room for T tokens a sequence, of which the first `lengths` are there.
        values_BHTW: As well.
        lengths_B: Tokens seen, below T, int64; who owns the slots counts them on.
    """

    keys_BHTW: Rows
    values_BHTW: Rows
    lengths_B: Tensor

    def put(self, row: int, past: AttentionPast) -> None:
        """Place what a single sequence has seen in a row, unless it was read there."""
        count = past.keys_BHTW.shape[2]
        for room, x in ((self.keys_BHTW, past.keys_BHTW), (self.values_BHTW, past.values_BHTW)):
            if room[row].data_ptr() == x.data_ptr():
                continue
            if isinstance(room, Float8Rows):
                room[row, :, :count] = x[0]
            else:
                room[row, :, :count] = x[0] if isinstance(x, Tensor) else x[0].to(room.device)


Past = HyenaPast | AttentionPast
Slots = HyenaSlots | AttentionSlots


@dataclass
class Cache:
    """The state of a batch of sequences; the model moves it on.

    It changes no tensor in place, but for those of a `RoomyPast`.

    Attributes:
        batch_size: Sequences that run side by side.
        position: Tokens seen by each of them.
        pasts: One for each block; None before the first token.
    """

    batch_size: int
    position: int
    pasts: list[Past | None]

    def clone(self) -> "Cache":
        """An independent continuation from here, if no past is a `RoomyPast`; it shares tensors."""
        return replace(self, pasts=list(self.pasts))
