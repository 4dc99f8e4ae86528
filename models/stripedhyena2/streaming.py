"""A sequence of any length through a model, a piece at a time, with exact state.

B batch, L tokens, D channels, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stripedhyena2.model import StripedHyena2

PIECE = 8192  # tokens in one forward pass; bounds its memory

Watch = Callable[[str, int, Tensor], None]


@torch.no_grad()
def stream(
    model: StripedHyena2, ids_BL: Tensor, *, piece: int = PIECE, watch: Watch | None = None
) -> Iterator[Tensor]:
    """Logits of a whole sequence, [B, up to `piece`, V] at a time.

    Args:
        model: What reads it.
        ids_BL: int64 token ids in [0, V).
        piece: Tokens at a time.
        watch: Hears a name, a position and the output [B, up to `piece`, D] there, of every part:
            "embedding", "blocks.0", "blocks.1", ..., "norm"; those of each part in order.
    """
    cache, start = model.new_cache(ids_BL.shape[0]), 0

    def hear(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        assert watch is not None
        watch(name, start, output[0] if isinstance(output, tuple) else output)

    blocks = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    parts = {"embedding": model.embedding, **blocks, "norm": model.norm} if watch else {}
    hooks = [part.register_forward_hook(partial(hear, name)) for name, part in parts.items()]
    try:
        for start in range(0, ids_BL.shape[1], piece):
            yield model(ids_BL[:, start : start + piece], cache=cache)
    finally:
        for hook in hooks:
            hook.remove()
