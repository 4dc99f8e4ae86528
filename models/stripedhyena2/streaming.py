"""Sequences too long to pass through the model at once: layer by layer, and in each in pieces.

A layer needs its own past alone, so no memory grows with the depth: there is the residual stream,
the keys and values of one attention, and what lies between the layers for one piece. Pieces carry
exact state, so the numbers are those of one pass.

B batch, L tokens, D channels, V vocabulary, M channels of the MLP.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyenakernels.attention.op import PAST_BLOCK
from hyenakernels.host_memory import prefetch, put
from stripedhyena2.cache import Past, RoomyPast
from stripedhyena2.config import ATTENTION, ModelConfig
from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import Attention

LARGEST_PIECE, SMALLEST_PIECE = 32_768, 1_024


@dataclass(frozen=True)
class Streaming:
    """How a sequence is streamed.

    Attributes:
        piece: Tokens at a time.
        offload: Whether what grows with the length lies in the host's memory.
    """

    piece: int = LARGEST_PIECE
    offload: bool = False

    @property
    def smaller(self) -> "Streaming | None":
        """What to try when memory did not suffice: smaller pieces, then the host; None at last."""
        if self.piece > SMALLEST_PIECE:
            return Streaming(max(self.piece // 2, SMALLEST_PIECE), self.offload)
        return None if self.offload else Streaming(LARGEST_PIECE, offload=True)

    def memory(self, config: ModelConfig, num_tokens: int, element: int) -> int:
        """Bytes on the device beside the weights, at most.

        Args:
            config: The model's shape.
            num_tokens: Of all sequences together, B L.
            element: Bytes of an activation.
        """
        piece = min(self.piece, num_tokens)
        width, wide = config.width, max(3 * config.mlp_width, 8 * config.width)
        between = piece * (element * (wide + 6 * width) + 4 * (2 * width + 4 * config.vocabulary))
        attends = ATTENTION in config.stripes
        if self.offload:  # of a piece and of a block of keys and values, one in use, one on its way
            rows = 2 * (piece + 2 * attends * min(PAST_BLOCK, num_tokens))
        else:  # the residual stream, keys and values
            rows = (1 + 2 * attends) * num_tokens
        return between + element * config.width * rows


def fitting(
    config: ModelConfig, num_tokens: int, element: int, weights: int, memory: float
) -> Streaming:
    """The fastest way that stays within `memory` bytes, of which the weights take some.

    Other arguments are as `Streaming.memory` has them.

    Raises:
        MemoryError: There is none; the message says what the smallest needs.
    """
    way: Streaming | None = Streaming()
    least = float("inf")
    while way is not None:
        needed = weights + way.memory(config, num_tokens, element)
        if needed <= memory:
            return way
        least, way = min(least, needed), way.smaller
    raise MemoryError(
        f"{num_tokens:,} tokens need {least / 2**20:,.0f} MiB with the weights, and there are "
        f"{memory / 2**20:,.0f}"
    )


@torch.no_grad()
def stream(
    model: StripedHyena2, ids_BL: Tensor, way: Streaming | None = None
) -> Iterator[tuple[int, Tensor | None]]:
    """Logits of whole sequences, piece by piece in their order.

    Every module of the model is called once for each piece, in their order, so a forward hook sees
    the whole of a layer before anything of the next.

    Args:
        model: The model.
        ids_BL: int64 token ids, where the model is.
        way: How; None for pieces of `LARGEST_PIECE`, all on the device.

    Yields:
        How many tokens have passed a further layer, and their logits [B, piece, V] once that is the
        last one, else None.
    """
    way = way or Streaming()
    device, dtype = ids_BL.device, model.embedding.weight.dtype
    batch, length = ids_BL.shape
    pinned = way.offload and device.type == "cuda"
    x_LBD = torch.empty(
        (length, batch, model.config.width),
        dtype=dtype,
        device=torch.device("cpu") if way.offload else device,
        pin_memory=pinned,
    )
    pieces = [slice(first, first + way.piece) for first in range(0, length, way.piece)]
    rooms = [x_LBD[piece].transpose(0, 1) for piece in pieces]

    def on_device() -> Iterator[Tensor]:
        return (x_BLD for (x_BLD,) in prefetch([(room,) for room in rooms], device))

    for piece, room in zip(pieces, rooms, strict=True):
        put(room, model.embedding(ids_BL[:, piece]))
    for block in model.blocks:
        past: Past | None = None
        if isinstance(block.mixer, Attention):
            past = RoomyPast.within(block.mixer.room(batch, length, on_host=way.offload))
        for room, x_BLD in zip(rooms, on_device(), strict=True):
            y_BLD, past = block(x_BLD, past)
            put(room, y_BLD.to(device))
            yield room.shape[1], None
    for room, x_BLD in zip(rooms, on_device(), strict=True):
        yield room.shape[1], model.unembed(x_BLD)
