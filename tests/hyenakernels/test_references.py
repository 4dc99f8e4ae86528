"""Each reference equals its definition as a loop, its finite differences, and itself when cut."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyenakernels import causal_fir, long_conv, modal_conv
from tests.hyenakernels.tensors import random

Op = Callable[..., tuple[Tensor, Tensor]]


def poles(channels: int, modes: int) -> Tensor:
    return -0.01 - random(channels, modes, seed=9).abs()


def loop_convolution(u_BLD: Tensor, filter_GK: Tensor, past_BPD: Tensor) -> Tensor:
    """y[t] = sum_j h[j] u[t - j], as a loop."""
    extended = torch.cat([past_BPD, u_BLD], dim=1)
    group_size = u_BLD.shape[2] // filter_GK.shape[0]
    y = torch.zeros_like(u_BLD)
    for b in range(u_BLD.shape[0]):
        for t in range(u_BLD.shape[1]):
            for d in range(u_BLD.shape[2]):
                newest = past_BPD.shape[1] + t
                for j in range(min(filter_GK.shape[1], newest + 1)):
                    y[b, t, d] += filter_GK[d // group_size, j] * extended[b, newest - j, d]
    return y


@pytest.mark.parametrize("taps", [1, 3, 7, 20], ids=lambda taps: f"K{taps}")
@pytest.mark.parametrize("groups", [1, 2, 6], ids=lambda groups: f"G{groups}")
@pytest.mark.parametrize("length", [1, 5, 30], ids=lambda length: f"L{length}")
def test_causal_fir_is_its_loop(length: int, groups: int, taps: int) -> None:
    x, h = random(2, length, 6, seed=1), random(groups, taps, seed=2)
    past = random(2, taps - 1, 6, seed=3)
    y, following = causal_fir(x, h, past)
    torch.testing.assert_close(y, loop_convolution(x, h, past))
    torch.testing.assert_close(following, torch.cat([past, x], dim=1)[:, length:])


@pytest.mark.parametrize("groups", [1, 2, 6], ids=lambda groups: f"G{groups}")
@pytest.mark.parametrize("filter_length", [1, 12, 40], ids=lambda length: f"K{length}")
@pytest.mark.parametrize("past_length", [0, 3], ids=lambda length: f"P{length}")
def test_long_conv_is_its_loop(groups: int, filter_length: int, past_length: int) -> None:
    u, h = random(2, 17, 6, seed=1), random(groups, filter_length, seed=2)
    past = random(2, past_length, 6, seed=3)
    torch.testing.assert_close(long_conv(u, h, past)[0], loop_convolution(u, h, past))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200], ids=lambda length: f"L{length}")
def test_modal_conv_is_its_recurrence(length: int) -> None:
    u, log_poles, residues = random(2, length, 3, seed=1), poles(3, 4), random(3, 4, seed=2)
    state = random(2, 3, 4, seed=3)
    y, last = modal_conv(u, log_poles, residues, state)
    expected = []
    for t in range(length):
        state = torch.exp(log_poles) * state + u[:, t, :, None]
        expected.append((residues * state).sum(-1))
    torch.testing.assert_close(y, torch.stack(expected, dim=1))
    torch.testing.assert_close(last, state)


def test_modal_conv_is_the_long_conv_of_its_filter() -> None:
    u, log_poles, residues = random(2, 300, 3, seed=1), poles(3, 16), random(3, 16, seed=2)
    time = torch.arange(300, dtype=torch.float64)
    explicit = (residues[:, :, None] * torch.exp(log_poles[:, :, None] * time)).sum(1)
    torch.testing.assert_close(modal_conv(u, log_poles, residues)[0], long_conv(u, explicit)[0])


def test_modal_conv_keeps_the_precision_of_a_pole_near_one() -> None:
    """Over many chunks in fp32 the state is that of the pole, not of the rounded pole."""
    log_poles = -torch.linspace(1e-7, 2e-6, 12).view(3, 4)
    length = 64 * 4000
    y, state = modal_conv(torch.ones(1, length, 3), log_poles, torch.ones(3, 4))
    wide = log_poles.double()
    exact = torch.expm1(wide * length) / torch.expm1(wide)
    torch.testing.assert_close(state[0].double(), exact, rtol=5e-6, atol=0)
    torch.testing.assert_close(y[0, -1].double(), exact.sum(1), rtol=5e-6, atol=0)


def test_modal_conv_in_fp32_is_that_in_float64_for_every_pole() -> None:
    """From poles that forget within a sample to those that never do, gradients included."""
    log_poles = -torch.logspace(1, -9, 32).view(8, 4)
    given = [random(2, 4000, 8, seed=1), log_poles, random(8, 4, seed=2), random(2, 8, 4, seed=3)]
    weights = random(2, 4000, 8, seed=4), random(2, 8, 4, seed=5)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.float().to(dtype).requires_grad_() for x in given]
        outputs = modal_conv(*inputs)
        gradients = torch.autograd.grad(outputs, inputs, [w.float().to(dtype) for w in weights])
        results.append([x.double() for x in (*outputs, *gradients)])
    for found, exact in zip(*results, strict=True):
        assert (found - exact).norm() <= 1e-6 * exact.norm()


CASES = {
    "fir-short": (causal_fir, (random(4, 7, seed=2),)),
    "fir-medium": (causal_fir, (random(2, 128, seed=2),)),
    "modal": (modal_conv, (poles(8, 16), random(8, 16, seed=2))),
    "long": (long_conv, (random(8, 400, seed=2),)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [0, 1, 5, 127, 128, 299, 300], ids=lambda cut: f"cut{cut}")
def test_a_cut_sequence_gives_the_whole(case: str, cut: int) -> None:
    op, weights = CASES[case]
    u = random(2, 300, 8, seed=1)
    whole, whole_past = op(u, *weights)
    first, past = op(u[:, :cut], *weights)
    second, last_past = op(u[:, cut:], *weights, past)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(last_past, whole_past)


@pytest.mark.parametrize(
    ("op", "weights", "past"),
    [
        (causal_fir, (random(2, 5, seed=2),), random(2, 4, 4, seed=3)),
        (modal_conv, (poles(4, 3), random(4, 3, seed=2)), random(2, 4, 3, seed=3)),
        (long_conv, (random(2, 9, seed=2),), random(2, 8, 4, seed=3)),
    ],
    ids=["fir", "modal", "long"],
)
def test_every_input_has_its_gradient(op: Op, weights: tuple[Tensor, ...], past: Tensor) -> None:
    inputs = [random(2, 70, 4, seed=1), *weights, past]
    for tensor in inputs:
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(op, inputs)


@pytest.mark.parametrize("case", CASES)
def test_narrow_input_is_summed_in_fp32(case: str) -> None:
    op, weights = CASES[case]
    narrow = random(2, 200, 8, seed=1, dtype=torch.bfloat16)
    y, _ = op(narrow, *weights)
    exact, _ = op(narrow.double(), *weights)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, exact.bfloat16(), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_autocast_does_not_narrow_the_sums(case: str) -> None:
    op, weights = CASES[case]
    u = random(2, 200, 8, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = op(u, *weights)
    torch.testing.assert_close(inside, op(u, *weights)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: causal_fir(torch.ones(1, 4, 6), torch.ones(4, 3)),
            "4 filter groups do not divide 6",
        ),
        (lambda: causal_fir(torch.ones(1, 4, 6), torch.ones(2, 3), torch.ones(1, 1, 6)), "past is"),
        (
            lambda: long_conv(torch.ones(1, 4, 6), torch.ones(4, 9)),
            "4 filter groups do not divide 6",
        ),
        (
            lambda: long_conv(torch.ones(1, 4, 6), torch.ones(2, 9), torch.ones(1, 3, 5)),
            "does not match",
        ),
        (lambda: modal_conv(torch.ones(1, 4, 6), torch.ones(5, 2), torch.ones(5, 2)), "6 channels"),
        (
            lambda: modal_conv(
                torch.ones(1, 4, 6), torch.ones(6, 2), torch.ones(6, 2), torch.ones(1, 6, 3)
            ),
            "state is",
        ),
    ],
    ids=["fir-groups", "fir-past", "long-groups", "long-past", "modal-poles", "modal-state"],
)
def test_shapes_that_do_not_fit_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
