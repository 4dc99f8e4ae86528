"""The chunked convolution equals the reference for all chunks, and its memory is bounded."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenakernels import long_conv
from hyenakernels.longconv import chunked, reference
from tests.hyenakernels.tensors import random

CHANNELS = 12


@pytest.fixture(params=["whole", "groups", "parts", "channels"])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chunks of all channels, of some groups, of parts of a group, of one channel."""
    most = {"whole": 12, "groups": 7, "parts": 2, "channels": 1}[request.param]
    cut = chunked._chunks

    def chunks(u_BLD: Tensor, filter_GK: Tensor, points: int) -> Any:
        one = u_BLD.shape[0] * (points // 2 + 1) * (16 if u_BLD.dtype == torch.float64 else 8)
        monkeypatch.setattr(chunked, "SPECTRUM_BYTES", most * one)
        return cut(u_BLD, filter_GK, points)

    monkeypatch.setattr(chunked, "_chunks", chunks)
    return str(request.param)


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("groups", [1, 4, CHANNELS], ids=lambda groups: f"G{groups}")
@pytest.mark.parametrize("length", [1, 13, 40], ids=lambda length: f"L{length}")
@pytest.mark.parametrize("filter_length", [1, 9, 100], ids=lambda length: f"K{length}")
@pytest.mark.parametrize("past_length", [None, 0, 5, 30], ids=lambda length: f"P{length}")
def test_every_chunking_is_the_reference(
    groups: int, length: int, filter_length: int, past_length: int | None
) -> None:
    u, h = random(2, length, CHANNELS, seed=1), random(groups, filter_length, seed=2)
    past = random(2, past_length or 0, CHANNELS, seed=3)
    inputs = [tensor.requires_grad_(True) for tensor in (u, h, past)]
    expected = reference.long_conv(*inputs)
    actual = long_conv(u, h) if past_length is None else long_conv(u, h, past)
    weights = [random(*tensor.shape, seed=4) for tensor in expected]
    torch.testing.assert_close(actual, expected)

    wanted = torch.autograd.grad(expected, inputs, weights)
    if past_length is None:
        wanted, inputs = wanted[:2], inputs[:2]
    torch.testing.assert_close(torch.autograd.grad(actual, inputs, weights), wanted)


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("groups", [1, 2], ids=lambda groups: f"G{groups}")
def test_gradients_are_finite_differences(groups: int) -> None:
    inputs = [random(2, 6, 4, seed=1), random(groups, 5, seed=2), random(2, 4, 4, seed=3)]
    assert torch.autograd.gradcheck(long_conv, [tensor.requires_grad_(True) for tensor in inputs])


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_bf16_is_summed_in_fp32_both_ways(autocast: bool) -> None:
    narrow = [random(2, 200, CHANNELS, seed=1), random(4, 300, seed=2), random(2, 9, 12, seed=3)]
    narrow = [tensor.bfloat16().requires_grad_(True) for tensor in narrow]
    wide = [tensor.detach().double().requires_grad_(True) for tensor in narrow]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y, _ = long_conv(*narrow)
        gradients = torch.autograd.grad(y, narrow, torch.ones_like(y))
    exact, _ = reference.long_conv(*wide)
    exact_gradients = torch.autograd.grad(exact, wide, torch.ones_like(exact))
    for actual, expected in zip((y, *gradients), (exact, *exact_gradients), strict=True):
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, expected.bfloat16(), rtol=2**-7, atol=1e-4)


def test_no_new_samples() -> None:
    u, h, past = random(2, 0, 4, seed=1), random(2, 6, seed=2), random(2, 9, 4, seed=3)
    y, following = long_conv(u, h, past)
    assert y.shape == u.shape
    assert torch.equal(following, past[:, 4:])


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor of fp32 or complex numbers that any operation returned."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.dtype != torch.bfloat16:
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("groups", [1, 6, 96], ids=lambda groups: f"G{groups}")
@pytest.mark.parametrize("budget", [20_000, 100_000])
def test_no_tensor_is_larger_than_the_budget(
    monkeypatch: pytest.MonkeyPatch, groups: int, budget: int
) -> None:
    monkeypatch.setattr(chunked, "SPECTRUM_BYTES", budget)
    u = random(2, 1000, 96, seed=1, dtype=torch.bfloat16).requires_grad_(True)
    h = random(groups, 40, seed=2, dtype=torch.bfloat16).requires_grad_(True)
    with LargestTensor() as largest:
        y, _ = long_conv(u, h)
        y.backward(torch.ones_like(y))
    assert budget / 2 < largest.nbytes <= budget


def test_an_fft_has_the_next_length_without_large_primes() -> None:
    def is_smooth(number: int) -> bool:
        for prime in (2, 3, 5):
            while number % prime == 0:
                number //= prime
        return number == 1

    smooth = [number for number in range(1, 5000) if is_smooth(number)]
    for least in range(1, smooth[-1] + 1):
        assert chunked.smooth_length(least) == next(n for n in smooth if n >= least)
    assert chunked.smooth_length(2**21 - 1) == 2**21
