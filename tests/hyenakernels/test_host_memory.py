"""Tensors in host memory arrive as they are, however late the device runs."""

import pytest
import torch
from torch import Tensor

from hyenakernels.host_memory import Chunks, prefetch, put

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
MANY_CYCLES = 2_000_000  # device cycles: about a millisecond


def rooms(lengths: list[int], channels: int = 1_000) -> list[Tensor]:
    """Parts [B, L, C] of host memory, in the memory order [L, B, C], filled with NaN."""
    order = (sum(lengths), 2, channels)
    whole_LBC = torch.full(order, torch.nan, pin_memory=DEVICE.type == "cuda")
    return [part_LBC.transpose(0, 1) for part_LBC in whole_LBC.split(lengths)]


def delay_device() -> None:
    if DEVICE.type == "cuda":
        torch.cuda._sleep(MANY_CYCLES)  # private; there is no public way to delay a stream


@pytest.mark.parametrize("lengths", [[7], [300, 300, 41], [5, 300, 300, 300]], ids=str)
def test_parts_arrive_in_order(lengths: list[int]) -> None:
    pairs = list(zip(rooms(lengths), rooms(lengths, channels=10), strict=True))
    right = [torch.randn(part.shape, device=DEVICE) for part, _ in pairs]
    for (part, few), x_BLC in zip(pairs, right, strict=True):
        delay_device()
        put(part, x_BLC)
        put(few, x_BLC[..., :10])
    for times in range(1, 4):  # each round reads what the round before has put
        found = []
        for (part, _), (x_BLC, few_BLC) in zip(pairs, prefetch(pairs, DEVICE), strict=True):
            delay_device()
            found.append((x_BLC.clone(), few_BLC.clone()))
            put(part, x_BLC + 1)
        for (x_BLC, few_BLC), expected in zip(found, right, strict=True):
            torch.testing.assert_close(x_BLC, expected + times - 1)
            torch.testing.assert_close(few_BLC, expected[..., :10])


@pytest.mark.parametrize("lengths", [[7], [300, 300, 41], [300, 300, 300, 300, 5]], ids=str)
def test_chunks_are_read_as_they_were_last_put(lengths: list[int]) -> None:
    chunks = Chunks(rooms(lengths), DEVICE)
    expected = [torch.randn(chunk.shape, device=DEVICE) for chunk in chunks.chunks]
    for index, x_BLC in enumerate(expected):
        delay_device()
        chunks.put(index, x_BLC.clone())
    for times in range(1, 4):
        for index, x_BLC in enumerate(chunks):
            torch.testing.assert_close(x_BLC, expected[index] + times - 1)
            delay_device()
            chunks.put(index, x_BLC + 1)
            torch.full_like(x_BLC, torch.nan)  # takes what is free by now
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    for chunk, x_BLC in zip(chunks.chunks, expected, strict=True):
        torch.testing.assert_close(chunk.to(DEVICE), x_BLC + 3)


def test_memory_is_not_reused_while_a_part_is_in_transfer() -> None:
    parts = rooms([4_000] * 3)
    for part in parts:
        part.fill_(1)
    for _ in range(20):
        coming = prefetch([(part,) for part in parts], DEVICE)
        next(coming)
        coming.close()  # the second one is in transfer
        zeros = [torch.zeros(parts[0].shape, device=DEVICE) for _ in range(4)]
        assert not torch.stack(zeros).any()


def test_a_tensor_on_the_device_is_not_copied() -> None:
    x = torch.randn(3, 4, device=DEVICE)
    [(found,)] = prefetch([(x,)], DEVICE)
    assert found is x
