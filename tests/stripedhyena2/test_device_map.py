"""Blocks fill devices in order, and a model on several devices gives the same numbers."""

import pytest
import torch
from torch import Tensor

from stripedhyena2 import StripedHyena2, load
from stripedhyena2.decoding import Decoder
from stripedhyena2.device_map import (
    block_sizes,
    choose_devices,
    device_map,
    device_of,
    move_activations,
)
from stripedhyena2.streaming import Streaming, stream

DEVICES = [torch.device("cuda", index) for index in range(3)]


def test_neighbours_stay_together_and_devices_are_filled_alike() -> None:
    sizes = [5, 5, 5, 1, 1, 1, 1, 1, 1, 9]
    found = device_map(sizes, DEVICES)
    assert [device.index for device in found] == sorted(device.index for device in found)
    assert set(found) == set(DEVICES)
    loads = [sum(s for s, device in zip(sizes, found, strict=True) if device == d) for d in DEVICES]
    assert loads == [10, 10, 10]
    assert device_map([3, 3], DEVICES[:1]) == [DEVICES[0]] * 2


def test_as_few_devices_as_hold_the_weights() -> None:
    assert choose_devices(79, [100, 100, 100]) == [0]
    assert choose_devices(81, [100, 100, 100]) == [0, 1]
    assert choose_devices(240, [100, 100, 100]) == [0, 1, 2]
    assert choose_devices(79, [50, 100, 200]) == [1]  # the first is busy
    assert choose_devices(161, [50, 200, 100, 200]) == [1, 3]
    with pytest.raises(MemoryError, match="more than is free: 2 x 50 GB"):
        choose_devices(81 * 10**9, [10**11, 5 * 10**10])


def test_a_tensor_goes_where_its_block_is(tiny_model: StripedHyena2) -> None:
    sizes = block_sizes(tiny_model.state_dict(), tiny_model.config.depth, 2)
    assert sizes == [2 * sum(x.numel() for x in b.state_dict().values()) for b in tiny_model.blocks]
    narrow = block_sizes(
        tiny_model.state_dict(), tiny_model.config.depth, 2, {"blocks.1.mlp.up.weight"}
    )
    saved = [whole - part for whole, part in zip(sizes, narrow, strict=True)]
    up = tiny_model.blocks[1].mlp.up.weight
    assert saved == [up.numel() if index == 1 else 0 for index in range(len(sizes))]
    blocks = [DEVICES[index % 3] for index in range(12)]
    for name, index in {"embedding.weight": 0, "norm.scale": 0, "blocks.11.mlp.up": 2}.items():
        assert device_of(name, blocks).index == index


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_spread_model_is_the_model() -> None:
    alone = load("nano", device="cuda:0").requires_grad_(False)
    spread = load("nano", device="cuda:0").requires_grad_(False)
    devices = device_map([1] * alone.config.depth, DEVICES[:2])
    for block, device in zip(spread.blocks, devices, strict=True):
        block.to(device)
    move_activations(spread)
    ids = torch.randint(65, 85, (2, 300), generator=torch.Generator().manual_seed(0)).cuda()

    def readings(model: StripedHyena2) -> list[Tensor]:
        streamed = [
            logits
            for offload in (False, True)
            for _, logits in stream(model, ids, Streaming(100, offload))
            if logits is not None
        ]
        decoder, cache = Decoder(model, 1, 120), model.new_cache(1)
        model(ids[:1, :100], cache=cache)
        decoder.place(0, cache)
        steps = [decoder.step(ids[:1, t]) for t in range(100, 110)]
        return [model(ids), torch.cat(streamed, dim=1), torch.stack(steps)]

    for found, right in zip(readings(spread), readings(alone), strict=True):
        assert torch.equal(found, right)
