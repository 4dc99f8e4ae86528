"""What lies in the host's memory comes as it is, however the device is behind."""

import pytest
import torch
from torch import Tensor

from hyenakernels.host_memory import ahead, put

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
MANY_CYCLES = 2_000_000  # of the device: about a millisecond


def rooms(lengths: list[int], channels: int = 1_000) -> list[Tensor]:
    """Parts [B, L, C] of the host's memory that lie there as [L, B, C]; all NaN."""
    order = (sum(lengths), 2, channels)
    whole_LBC = torch.full(order, torch.nan, pin_memory=DEVICE.type == "cuda")
    return [part_LBC.transpose(0, 1) for part_LBC in whole_LBC.split(lengths)]


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda._sleep(MANY_CYCLES)


@pytest.mark.parametrize("lengths", [[7], [300, 300, 41], [5, 300, 300, 300]], ids=str)
def test_what_was_put_comes_in_its_order(lengths: list[int]) -> None:
    pairs = list(zip(rooms(lengths), rooms(lengths, channels=10), strict=True))
    right = [torch.randn(part.shape, device=DEVICE) for part, _ in pairs]
    for (part, few), x_BLC in zip(pairs, right, strict=True):
        wait()
        put(part, x_BLC)
        put(few, x_BLC[..., :10])
    for times in range(1, 4):  # each time what is put while it is read, too
        found = []
        for (part, _), (x_BLC, few_BLC) in zip(pairs, ahead(pairs, DEVICE), strict=True):
            wait()
            found.append((x_BLC.clone(), few_BLC.clone()))
            put(part, x_BLC + 1)
        for (x_BLC, few_BLC), expected in zip(found, right, strict=True):
            torch.testing.assert_close(x_BLC, expected + times - 1)
            torch.testing.assert_close(few_BLC, expected[..., :10])


def test_memory_is_not_given_away_while_a_part_is_on_its_way() -> None:
    parts = rooms([4_000] * 3)
    for part in parts:
        part.fill_(1)
    for _ in range(20):
        coming = ahead([(part,) for part in parts], DEVICE)
        next(coming)
        coming.close()  # the second one is on its way
        zeros = [torch.zeros(parts[0].shape, device=DEVICE) for _ in range(4)]
        assert not torch.stack(zeros).any()


def test_what_is_there_is_not_copied() -> None:
    x = torch.randn(3, 4, device=DEVICE)
    [(found,)] = ahead([(x,)], DEVICE)
    assert found is x
