"""Streaming of long sequences: layer by layer, and through each layer chunk by chunk.

A layer only needs its own past, so memory does not grow with the depth: it holds the residual
stream of all positions, the keys and values of one attention, and the activations of one chunk.
Chunks carry exact state, so the numbers are those of a single pass.

B batch, L tokens, D channels, V vocabulary, M channels of the MLP.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyenakernels.attention.op import PAST_BLOCK
from hyenakernels.host_memory import Chunks
from stripedhyena2.cache import Past
from stripedhyena2.config import ModelConfig
from stripedhyena2.ids import check_batch, check_range

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

MAX_CHUNK, MIN_CHUNK = 32_768, 1_024  # tokens


@dataclass(frozen=True)
class Streaming:
    """How a sequence is streamed.

    Attributes:
        chunk: Tokens that pass through a layer together.
        offload: Whether the residual stream and the keys and values are kept in host memory.
    """

    chunk: int = MAX_CHUNK
    offload: bool = False

    @property
    def fallback(self) -> "Streaming | None":
        """The next plan that needs less memory: smaller chunks, then host memory, then None."""
        if self.chunk > MIN_CHUNK:
            return Streaming(max(self.chunk // 2, MIN_CHUNK), self.offload)
        return None if self.offload else Streaming(MAX_CHUNK, offload=True)

    def peak_memory(self, config: ModelConfig, num_tokens: int, element_size: int) -> int:
        """Upper bound of the bytes used on the device, without the weights.

        Args:
            config: The model's shape.
            num_tokens: Tokens of all sequences together, B L.
            element_size: Bytes of one activation.
        """
        chunk = min(self.chunk, num_tokens)
        width, wide = config.width, max(3 * config.mlp_width, 8 * config.width)
        activations = chunk * (
            element_size * (wide + 6 * width) + 4 * (2 * width + 4 * config.vocabulary)
        )

        def grown(tokens: int) -> int:
            """Bytes of the largest past of a block that grows with the sequence (a KV cache)."""
            return max(
                mixer.state_bytes(config, tokens, element_size)
                - mixer.state_bytes(config, 0, element_size)
                for mixer in config.mixers
            )

        row = element_size * config.width
        if self.offload:  # chunks in, in use and out; blocks of keys and values, in use and next
            return activations + 3 * row * chunk + 2 * grown(min(PAST_BLOCK, num_tokens))
        return activations + row * num_tokens + grown(num_tokens)  # with the residual stream


def fastest_streaming(
    config: ModelConfig, num_tokens: int, element_size: int, weights: int, memory: float
) -> Streaming:
    """The fastest plan that needs at most `memory` bytes.

    Args:
        config: The model's shape.
        num_tokens: As for `Streaming.peak_memory`.
        element_size: As for `Streaming.peak_memory`.
        weights: Bytes of the weights, which `memory` includes.
        memory: Bytes.

    Raises:
        MemoryError: Every plan needs more; the message gives the smallest need.
    """
    streaming: Streaming | None = Streaming()
    least = float("inf")
    while streaming is not None:
        needed = weights + streaming.peak_memory(config, num_tokens, element_size)
        if needed <= memory:
            return streaming
        least, streaming = min(least, needed), streaming.fallback
    raise MemoryError(
        f"{num_tokens:,} tokens need {least / 2**20:,.0f} MiB with the weights, and there are "
        f"{memory / 2**20:,.0f}"
    )


@torch.no_grad()
def stream(
    model: "StripedHyena2", ids_BL: Tensor, streaming: Streaming | None = None
) -> Iterator[tuple[int, Tensor | None]]:
    """Logits of whole sequences, chunk by chunk.

    Every module of the model is called once per chunk, in the order of the chunks, so a forward
    hook sees all positions of a layer before any of the next layer.

    Args:
        model: The model.
        ids_BL: int64 token ids in [0, V) on the model's device.
        streaming: The plan; None for chunks of `MAX_CHUNK`, all on the device.

    Raises:
        InputError: The ids are not integers [B, L], or out of range.

    Yields:
        The number of tokens that have passed one more layer, and their logits [B, chunk, V] if
        that layer was the last one, otherwise None.
    """
    check_batch(ids_BL)
    check_range(ids_BL, model.config.vocabulary)
    streaming = streaming or Streaming()
    device, dtype = ids_BL.device, model.embedding.weight.dtype
    batch, length = ids_BL.shape
    x_LBD = torch.empty(
        (length, batch, model.config.width),
        dtype=dtype,
        device=torch.device("cpu") if streaming.offload else device,
        pin_memory=streaming.offload and device.type == "cuda",
    )
    windows = [slice(start, start + streaming.chunk) for start in range(0, length, streaming.chunk)]
    chunks = Chunks([x_LBD[window].transpose(0, 1) for window in windows], device)
    for index, window in enumerate(windows):
        chunks.put(index, model.embedding(ids_BL[:, window]))
    for block, mixer in zip(model.blocks, model.mixers, strict=True):
        past: Past | None = mixer.new_past(batch, length, on_host=streaming.offload)
        for index, x_BLD in enumerate(chunks):
            y_BLD, past = block(x_BLD, past)
            chunks.put(index, y_BLD.to(device))
            yield x_BLD.shape[1], None
    for x_BLD in chunks:
        yield x_BLD.shape[1], model.unembed(x_BLD)
