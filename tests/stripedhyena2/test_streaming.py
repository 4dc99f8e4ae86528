"""A streamed sequence has the logits of one pass, whatever the piece; the way fits the memory."""

import pytest
import torch
from torch import Tensor

from stripedhyena2 import ModelConfig, StripedHyena2, load
from stripedhyena2.streaming import SMALLEST_PIECE, Streaming, fitting, stream


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offload", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("piece", [1, 7, 150, 400], ids=lambda piece: f"piece{piece}")
def test_pieces_give_the_whole(tiny_model: StripedHyena2, piece: int, offload: bool) -> None:
    ids = random_ids(2, 20 if piece == 1 else 300)
    with torch.no_grad():
        whole = tiny_model(ids)
    told = list(stream(tiny_model, ids, Streaming(piece, offload)))
    found = torch.cat([logits for _, logits in told if logits is not None], dim=1)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)
    passes = tiny_model.config.depth + 1
    assert sum(count for count, _ in told) == passes * ids.shape[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_host_lends_a_gpu_its_memory(dtype: torch.dtype) -> None:
    model = load("nano", device="cuda", dtype=dtype).requires_grad_(False)
    ids = torch.randint(65, 85, (1, 5000), generator=torch.Generator().manual_seed(0)).cuda()
    right = model(ids).float()
    ways = []
    for offload in (False, True):
        told = stream(model, ids, Streaming(1024, offload))
        ways.append(torch.cat([logits for _, logits in told if logits is not None], dim=1))
    for found in ways:
        error = float((found - right).norm() / right.norm())
        assert error < (1e-4 if dtype == torch.float32 else 0.02)
    if dtype == torch.bfloat16:  # by FlashAttention, which does not ask how keys lie in memory
        assert torch.equal(*ways)


def test_a_layer_is_done_before_the_next(tiny_model: StripedHyena2) -> None:
    heard: list[tuple[str, int]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, x, __, name=name: heard.append((name, x[0].shape[1]))
        )
        for name, module in tiny_model.named_modules()
        if name in ("embedding", "blocks.0", "blocks.1.mlp.down", "norm")
    ]
    for _ in stream(tiny_model, random_ids(1, 25), Streaming(10)):
        pass
    for hook in hooks:
        hook.remove()
    names = ("embedding", "blocks.0", "blocks.1.mlp.down", "norm")
    assert heard == [(name, count) for name in names for count in (10, 10, 5)]


def test_the_way_fits_the_memory(tiny_config: ModelConfig) -> None:
    length, element = 1_000_000, 2
    needs = [Streaming().memory(tiny_config, length, element)]
    for memory in (needs[0], needs[0] * 0.9, needs[0] * 0.5, 2e7):
        way = fitting(tiny_config, length, element, 100, memory + 100)
        assert way.memory(tiny_config, length, element) <= memory
        needs.append(way.memory(tiny_config, length, element))
    assert way.offload
    with pytest.raises(MemoryError, match=r"need \d+ MiB with the weights, and there are 3"):
        fitting(tiny_config, length, element, 2**21, 3 * 2**20)


def test_ways_descend_to_an_end() -> None:
    way: Streaming | None = Streaming()
    seen = []
    while way is not None:
        seen.append(way)
        way = way.smaller
    assert len(set(seen)) == len(seen)
    assert seen[-1] == Streaming(SMALLEST_PIECE, offload=True)
