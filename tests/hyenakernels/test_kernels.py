"""Every kernel equals its reference in float64: outputs, all gradients, and cut sequences.

On a machine without a GPU the kernels run in Triton's interpreter.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

from hyenakernels import (
    FIRFilters,
    HyenaPast,
    HyenaSlots,
    ModalFilters,
    dispatch,
    hyena_fir,
    hyena_fir_step,
    hyena_modal,
    hyena_modal_step,
)
from hyenakernels.fir import op as fir
from hyenakernels.fir import reference as fir_reference
from hyenakernels.fir import tiles
from hyenakernels.gate.reference import gated
from hyenakernels.modal import gradient as modal_gradient
from hyenakernels.modal import kernel as modal_kernel
from hyenakernels.modal import op as modal
from hyenakernels.modal import reference as modal_reference
from tests.hyenakernels.tensors import Inputs, assert_close, leaves

pytestmark = pytest.mark.usefixtures("poison")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# ||x - exact|| / ||exact||. The interpreter truncates to bf16 where a GPU rounds to the nearest:
# each rounding error is twice as large, and all of them have the same sign.
TOLERANCE = {
    torch.float32: 1e-6,
    torch.float16: 5e-4 if DEVICE == "cuda" else 1e-3,
    torch.bfloat16: 4e-3 if DEVICE == "cuda" else 1e-2,
}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequences of these tests are short; cut them into several segments nevertheless."""
    monkeypatch.setattr(tiles, "fir_segment", lambda *_: 64)
    for module in (modal_kernel, modal_gradient, modal):
        monkeypatch.setattr(module, "modal_segment", lambda width: 16)  # noqa: ARG005


@dataclass(frozen=True)
class Case:
    """One problem: `taps` > 0 is an FIR, `modes` > 0 a modal filter.

    `spread` poles lie between -10, which forgets within a row, and -1e-9, which never does.
    """

    batch: int = 1
    length: int = 37
    width: int = 32
    groups: int = 2
    taps: int = 0
    modes: int = 0
    featurizer: int = 3
    past: bool = False
    skip: bool = True
    spread: bool = False
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        kind = f"K{self.taps}-G{self.groups}" if self.taps else f"S{self.modes}"
        kind += "-spread" * self.spread
        flags = "-past" * self.past + "-noskip" * (not self.skip)
        size = f"B{self.batch}-L{self.length}-D{self.width}-F{self.featurizer}"
        return f"{kind}-{size}{flags}-{str(self.dtype)[6:]}"


def spread_poles(width: int, modes: int) -> Tensor:
    return -torch.logspace(1, -9, width * modes, device=DEVICE).view(width, modes)


def filters_of(case: Case, tensors: Inputs) -> FIRFilters | ModalFilters:
    """The record of an operator's parameters, given in its order."""
    return (FIRFilters if case.taps else ModalFilters)(*tensors)  # type: ignore[arg-type]


def inputs_of(case: Case, seed: int = 0) -> Inputs:
    """Random z, featurizer taps, taps or poles and residues, skip, and both pasts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    channels = 3 * case.width
    z = draw(case.batch, case.length, channels, dtype=case.dtype)
    featurizer = draw(channels, case.featurizer)
    skip = draw(case.width) if case.skip else None
    z_past = draw(case.batch, case.featurizer - 1, channels, dtype=case.dtype)
    if case.taps:
        parameters = [draw(case.groups, case.taps) / case.taps**0.5]
        past = draw(case.batch, case.taps - 1, case.width, dtype=case.dtype)
    else:
        poles = -0.01 - 0.3 * draw(case.width, case.modes).abs()
        if case.spread:
            poles = spread_poles(case.width, case.modes)
        parameters = [poles, draw(case.width, case.modes)]
        past = draw(case.batch, case.modes, case.width)
    if not case.past:
        past, z_past = (None, None) if case.taps else (0 * past, 0 * z_past)
    return [z, featurizer, *parameters, skip, z_past, past]


def by_kernel(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    outputs = (fir if case.taps else modal).fused(*inputs)
    return outputs[0], outputs[1]


def by_reference(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    z, featurizer, *parameters, skip, z_past, past = inputs
    assert z is not None
    if z_past is None:
        z_past = z.new_zeros(case.batch, case.featurizer - 1, 3 * case.width)
    if case.taps:
        if past is None:
            past = z.new_zeros(case.batch, case.taps - 1, case.width)
        convolve: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda u: fir_reference.causal_fir(  # noqa: E731
            u, parameters[0], past
        )
    else:
        convolve = lambda u: modal_reference.modal_conv(u, *parameters, past.transpose(1, 2))  # noqa: E731
    y, past_after = gated(convolve, z, filters_of(case, [featurizer, *parameters, skip]), z_past)
    return y, past_after.inner if case.taps else past_after.inner.transpose(1, 2)


def assert_kernel_is_reference(case: Case) -> None:
    """Compare outputs, pasts, and all gradients for random gradients of both."""
    inputs = inputs_of(case)
    mine, exact = leaves(inputs), leaves(inputs, torch.float64)
    y, past_after = by_kernel(case, mine)
    exact_y, exact_past = by_reference(case, exact)
    tolerance = TOLERANCE[case.dtype]
    assert_close("y", y, exact_y, tolerance)
    assert_close("past", past_after, exact_past, tolerance)

    torch.manual_seed(1)
    weights = [torch.randn_like(y), torch.randn_like(past_after)]
    torch.autograd.backward([y, past_after], weights)
    torch.autograd.backward([exact_y, exact_past], [weight.double() for weight in weights])
    names = ["z", "featurizer", *(["taps"] if case.taps else ["poles", "residues"])]
    names += ["skip", "featurizer past", "past"]
    for name, tensor, reference in zip(names, mine, exact, strict=True):
        if tensor is not None and tensor.numel():
            assert tensor.grad is not None, name
            assert reference is not None
            exact_grad = reference.grad if reference.grad is not None else 0 * reference.detach()
            assert_close(f"gradient of {name}", tensor.grad, exact_grad, tolerance)


def slow(*cases: Any) -> list[Any]:
    """Cases that a quick run leaves out, since others state the same law."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


FIR_CASES = [
    Case(taps=7, batch=2, skip=False),
    Case(taps=7, dtype=torch.bfloat16, length=71, past=True),
    Case(taps=7, length=1),
    Case(taps=7, length=1, past=True, batch=2),
    Case(taps=7, length=3, past=True),
    Case(taps=1, length=20, past=True),
    Case(taps=2, length=17, featurizer=1),
    Case(taps=16, length=33, featurizer=2, past=True),
    Case(taps=64, length=30),
]
MORE_FIR_CASES = [
    Case(taps=7, batch=2, length=71, past=True),
    Case(taps=7, dtype=torch.float16, length=40),
    Case(taps=128, length=70, past=True),
    Case(taps=128, length=150, dtype=torch.bfloat16, groups=1, width=16),
    Case(taps=128, length=1, past=True, dtype=torch.bfloat16, groups=1, width=16),
    Case(taps=17, length=33, featurizer=4, past=True),
    Case(taps=65, length=40, past=True, groups=1),
    Case(taps=129, length=20, groups=1, width=16),
    Case(taps=256, length=40, groups=1, width=16, past=True),
]
GROUP_CASES = [
    Case(taps=7, width=30, groups=2, past=True),  # 15 channels in a group, as in Evo 2 1B
    Case(taps=33, width=3, groups=3),  # ungrouped
    Case(taps=7, width=40, groups=2),  # parts of 16 and 4 channels
]
MORE_GROUP_CASES = [
    Case(taps=40, width=30, groups=2),
    Case(taps=7, width=3, groups=3, length=70, past=True),
    Case(taps=20, width=6, groups=2, past=True),
    Case(taps=7, width=48, groups=1),
]
MODAL_CASES = [
    Case(modes=2, length=48, featurizer=1),
    Case(modes=1, length=1),
    Case(modes=5, length=1, past=True, batch=2),
    Case(modes=2, length=16, width=70, past=True),
    Case(modes=64, length=5, width=4, past=True),
    Case(modes=1, length=19, featurizer=4, past=True),
]
MORE_MODAL_CASES = [
    Case(modes=16, length=21),
    Case(modes=3, length=37, batch=2, past=True),
    Case(modes=3, length=37, skip=False, dtype=torch.bfloat16, past=True),
    Case(modes=1, length=400, featurizer=1, past=True, spread=True),
]
KERNEL_CASES = [*FIR_CASES, *GROUP_CASES, *MODAL_CASES]
KERNEL_CASES += slow(*MORE_FIR_CASES, *MORE_GROUP_CASES, *MORE_MODAL_CASES)


@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_a_kernel_is_its_reference(case: Case) -> None:
    assert_kernel_is_reference(case)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has small tiles only")
@pytest.mark.parametrize("case", GROUP_CASES + MORE_GROUP_CASES, ids=str)
def test_any_group_fits_the_tiles_of_tensor_cores(case: Case) -> None:
    assert_kernel_is_reference(replace(case, dtype=torch.bfloat16))


@pytest.mark.parametrize("length", [1, 3, 66, *slow(2, 63, 64, 65, 67, 68)])
def test_fir_segments_join_wherever_the_featurizer_reaches(length: int) -> None:
    assert_kernel_is_reference(
        Case(taps=3, length=length, featurizer=4, past=True, width=8, groups=1)
    )


@pytest.mark.parametrize("length", [2, 17, *slow(3, 15, 16, 18, 19, 20, 33, 34)])
def test_modal_segments_join_wherever_the_featurizer_reaches(length: int) -> None:
    assert_kernel_is_reference(Case(modes=1, length=length, featurizer=4, past=True, width=4))


def test_the_adjoint_of_a_slow_mode_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    """By less than a digit of fp32 in a row, but in many rows."""
    for module in (modal_kernel, modal_gradient, modal):
        monkeypatch.setattr(module, "modal_segment", lambda width: 128)  # noqa: ARG005
    case = Case(modes=1, length=300, width=2, featurizer=1)
    inputs = inputs_of(case)
    inputs[2] = torch.full((2, 1), -5e-8, device=DEVICE)
    mine, exact = leaves(inputs), leaves(inputs, torch.float64)
    weights = torch.randn(1, 300, 2, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for run, tensors in ((by_kernel, mine), (by_reference, exact)):
        y, past_after = run(case, tensors)
        ((weights * y).sum() + 100 * past_after.sum()).backward()
    for name, tensor, reference in zip(("z", "state"), mine[::6], exact[::6], strict=True):
        assert tensor is not None
        assert tensor.grad is not None
        assert reference is not None
        assert reference.grad is not None
        assert_close(f"gradient of {name}", tensor.grad, reference.grad, TOLERANCE[torch.float32])


@pytest.mark.skipif(DEVICE == "cpu", reason="too large for the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    "case",
    [
        Case(taps=7, length=2111, width=1920, groups=128),
        Case(taps=128, length=2111, width=1920, groups=128),
        Case(taps=7, length=2111, width=4096, groups=256, skip=False),
        Case(taps=128, length=2111, width=4096, groups=256, past=True),
        Case(taps=128, length=500, width=8192, groups=512, batch=2),
        Case(modes=16, length=2111, width=1920),
        Case(modes=16, length=1111, width=4096, past=True),
        Case(modes=16, length=4111, width=4096, past=True, spread=True),
    ],
    ids=str,
)
def test_published_shapes(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the segments of real use
    assert_kernel_is_reference(replace(case, dtype=dtype))


CUT_CASES = [
    Case(taps=7, length=70, width=16, groups=1),
    Case(taps=40, length=70, width=16, groups=1),
    Case(modes=3, length=40, width=16),
]
ONE_OF_EACH = [CUT_CASES[0], *slow(CUT_CASES[1]), CUT_CASES[2]]
ONE_FIR = [CUT_CASES[0], *slow(*CUT_CASES[1:])]


def run_public(
    case: Case, inputs: Inputs, past: HyenaPast | None = None
) -> tuple[Tensor, HyenaPast]:
    """The public operator; the pasts in `inputs` are not used."""
    z, *filters, _, _ = inputs
    op: Callable[..., tuple[Tensor, HyenaPast]] = hyena_fir if case.taps else hyena_modal
    return op(z, filters_of(case, filters), past)


def assert_same_past(found: HyenaPast, expected: HyenaPast) -> None:
    for name in ("featurizer_BPC", "inner"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5
        )


@pytest.fixture
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public operators use the kernels, interpreted where there is no GPU."""
    for module in (fir, modal):
        monkeypatch.setattr(module, "kernels_support", lambda *_, **__: True)


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("case", CUT_CASES, ids=str)
@pytest.mark.parametrize("cut", [2, 16, *slow(1, 33)], ids=lambda cut: f"cut{cut}")
def test_a_cut_sequence_gives_the_whole(case: Case, cut: int) -> None:
    inputs = inputs_of(case)
    whole, past_of_whole = run_public(case, inputs)
    z = inputs[0]
    assert z is not None
    first, past = run_public(case, [z[:, :cut], *inputs[1:]])
    second, past = run_public(case, [z[:, cut:], *inputs[1:]], past)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-5)
    assert_same_past(past, past_of_whole)


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_one_token_at_a_time_gives_the_whole(case: Case) -> None:
    inputs = inputs_of(replace(case, length=9, batch=2))
    whole, past_of_whole = run_public(case, inputs)
    z, past, outputs = inputs[0], None, []
    assert z is not None
    with torch.no_grad():
        for t in range(9):
            y, past = run_public(case, [z[:, t : t + 1], *inputs[1:]], past)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert past is not None
    assert_same_past(past, past_of_whole)


STEP_CASES = [
    Case(batch=2, taps=7, skip=False),
    Case(batch=2, taps=1, featurizer=1),
    Case(batch=2, modes=16, dtype=torch.bfloat16),
    Case(batch=2, modes=5, width=70, skip=False),
    Case(batch=2, modes=1, featurizer=1),
    *slow(
        Case(batch=2, taps=128, dtype=torch.bfloat16),
        Case(batch=2, taps=33, width=5, groups=5, featurizer=4),
    ),
]


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_steps_are_the_sequence(case: Case) -> None:
    """Two sequences in slots, row by row, the second 5 steps later = each as a whole."""
    inputs = inputs_of(replace(case, length=case.taps + 9))
    z, *filters, _, _ = inputs
    assert z is not None
    whole, _ = by_reference(case, leaves(inputs, torch.float64))
    whole = whole.detach()
    z_ring = z.new_zeros(2, case.featurizer, 3 * case.width)
    if case.taps:
        past = z.new_zeros(2, case.taps, case.width)
    else:
        past = torch.zeros(2, case.modes, case.width, device=DEVICE).transpose(1, 2)
    step = hyena_fir_step if case.taps else hyena_modal_step
    delay, lengths_B = 5, torch.zeros(2, dtype=torch.int64, device=DEVICE)
    slots = HyenaSlots(z_ring, past, lengths_B)
    found = torch.zeros_like(whole)
    for t in range(z.shape[1] + delay):
        rows = [min(t, z.shape[1] - 1), max(t - delay, 0)]
        if t == delay:  # the second begins
            lengths_B[1] = 0
            for x in (z_ring, past):
                x[1] = 0
        new = torch.stack([z[i, row] for i, row in enumerate(rows)])[:, None]
        with torch.no_grad():
            y = step(new, filters_of(case, filters), slots)
        for i, row in enumerate(rows):
            if (t < z.shape[1]) if i == 0 else (t >= delay):
                found[i, row] = y[i, 0].to(found.dtype)
        lengths_B += 1
    assert_close("y", found, whole, TOLERANCE[case.dtype])


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize(
    "case",
    [Case(taps=7, dtype=torch.bfloat16), Case(taps=33, width=48, groups=3), Case(modes=4)],
    ids=str,
)
def test_a_step_is_the_same_alone_and_among_many(case: Case) -> None:
    """More sequences than programs take at a time: each as if it were alone, bit for bit."""
    count, generator = 39, torch.Generator().manual_seed(3)
    z, *filters, _, _ = inputs_of(replace(case, batch=count, length=1))
    assert z is not None
    z_ring = torch.randn(count, case.featurizer, 3 * case.width, generator=generator).to(z)
    past = torch.randn(count, case.taps or case.modes, case.width, generator=generator).to(DEVICE)
    past = past.to(z.dtype) if case.taps else past.transpose(1, 2)
    lengths_B = torch.randint(0, 500, (count,), generator=generator).to(DEVICE)
    step = hyena_fir_step if case.taps else hyena_modal_step

    def stepped(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        inner = past[rows].clone(memory_format=torch.preserve_format)
        slots = HyenaSlots(z_ring[rows].clone(), inner, lengths_B[rows].clone())
        with torch.no_grad():
            return step(z[rows], filters_of(case, filters), slots), slots.featurizer_BFC, inner

    together = stepped(slice(None))
    for row in (0, 1, 16, count - 1):
        for mine, all_of_it in zip(stepped(slice(row, row + 1)), together, strict=True):
            assert torch.equal(mine[0], all_of_it[row])


@pytest.mark.parametrize("reverse", [False, True], ids=["states", "adjoints"])
def test_a_scan_over_many_segments_keeps_its_precision(reverse: bool) -> None:
    """As many as 256,000 rows have; poles from fast to slow."""
    segments, segment, modes, width = 500, 512, 1, 64
    poles, generator = spread_poles(width, modes), torch.Generator().manual_seed(0)
    ends = torch.randn(1, segments, modes, width, generator=generator).to(DEVICE)
    state = torch.randn(1, modes, width, generator=generator).to(DEVICE)
    found = modal_kernel.scan(ends, state, poles, segment, reverse=reverse)
    kept, last = torch.exp(poles.double() * segment).T, segments - 1
    exact = torch.empty_like(ends, dtype=torch.float64)
    exact[:, last if reverse else 0] = carried = state.double()
    for n in range(last):
        piece = last - n if reverse else n
        # In reverse the last segment has begun at the given state.
        carried = ends[:, piece] + (0 if reverse and n == 0 else kept * carried)
        exact[:, piece - 1 if reverse else piece + 1] = carried
    assert_close("states", found, exact, TOLERANCE[ends.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("path", ["kernel", "reference"])
def test_a_pole_near_one_keeps_its_precision(
    path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many steps the fp32 state is that of the pole, not of the rounded pole."""
    monkeypatch.setattr(modal, "kernels_support", lambda *_, **__: path == "kernel")
    width, modes, steps = 4, 8, 200
    poles = -torch.linspace(1e-5, 3e-5, width * modes, device=DEVICE).view(width, modes)
    filters = ModalFilters(torch.ones(3 * width, 1, device=DEVICE), poles, torch.ones_like(poles))
    state = torch.zeros(1, modes, width, device=DEVICE).transpose(1, 2)
    z, z_ring = torch.ones(2, 1, 1, 3 * width, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        for t in range(steps):
            lengths_1 = torch.tensor([t], device=DEVICE)
            y = hyena_modal_step(z, filters, HyenaSlots(z_ring, state, lengths_1))
    wide = poles.double()
    exact = torch.expm1(wide * steps) / torch.expm1(wide)
    assert_close("state", state[0], exact, 1e-6)
    assert_close("y", y[0, 0], exact.sum(dim=1), TOLERANCE[dtype])


@pytest.mark.usefixtures("kernels_everywhere")
def test_slots_and_filters_that_are_not_contiguous_are_left_to_the_reference() -> None:
    for case in (Case(taps=7), Case(modes=5)):
        z, *filters, _, _ = inputs_of(replace(case, length=1, batch=2))
        assert z is not None
        z_ring, ring = z.new_ones(2, 3, 96), z.new_ones(2, 7, 32)
        state = torch.ones(2, 5, 32, device=DEVICE).transpose(1, 2)
        past, step = (ring, hyena_fir_step) if case.taps else (state, hyena_modal_step)
        lengths_B = torch.tensor([4, 9], device=DEVICE)
        with torch.no_grad():
            given = filters_of(case, filters)
            y = step(z, given, HyenaSlots(z_ring.clone(), past.clone(), lengths_B))
            apart, *filters_apart = (
                None if x is None else torch.stack([x, x], dim=-1)[..., 0] for x in (z_ring, *given)
            )
            assert apart is not None
            assert not apart.is_contiguous()
            slots = HyenaSlots(z_ring.clone(), past.clone(), lengths_B)
            torch.testing.assert_close(step(z, type(given)(*filters_apart), slots), y)
            torch.testing.assert_close(step(z, given, HyenaSlots(apart, past, lengths_B)), y)
            with pytest.raises(ValueError, match=r"rows \(2, 2, 96\)"):
                step(z.expand(2, 2, 96), given, HyenaSlots(z_ring, past, lengths_B))


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_FIR, ids=str)
def test_the_same_bits_twice(case: Case) -> None:
    gradients = []
    for _ in range(2):
        inputs = leaves(inputs_of(replace(case, dtype=torch.bfloat16)))
        y, past_after = by_kernel(case, inputs)
        (y.float().square().sum() + past_after.float().sum()).backward()
        gradients.append([y, past_after, *(t.grad for t in inputs if t is not None)])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_a_row_does_not_depend_on_the_batch_or_on_later_rows(case: Case) -> None:
    """The same bits alone, in a batch, and with other later rows."""
    inputs = inputs_of(replace(case, batch=3))
    z, *rest = inputs
    assert z is not None
    batched, _ = by_kernel(case, inputs)
    rest[-1] = None if rest[-1] is None else rest[-1][1:2]
    alone, _ = by_kernel(case, [z[1:2, :23], *rest])
    assert torch.equal(alone[0], batched[1, :23])


def output_and_gradient(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """y, and the gradient of z when row t of y is weighted by t."""
    z, *rest = inputs
    assert z is not None
    z = z.detach().requires_grad_()
    y, _ = by_kernel(case, [z, *rest])
    weights = torch.arange(case.length, device=DEVICE, dtype=y.dtype)[:, None].expand_as(y[0])
    (gradient,) = torch.autograd.grad(y, z, weights.expand_as(y))
    return y.detach(), gradient


@pytest.mark.parametrize(
    ("length", "segment"),
    [(80, 128), *(pytest.param(150, n, marks=pytest.mark.slow) for n in (128, 512))],
)
def test_fir_segments_do_not_change_a_bit(
    length: int, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(taps=7, length=length, width=16, groups=1, dtype=torch.bfloat16)
    expected = output_and_gradient(case, inputs_of(case))  # in segments of 64
    monkeypatch.setattr(tiles, "fir_segment", lambda *_: segment)
    for mine, theirs in zip(output_and_gradient(case, inputs_of(case)), expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("case", ONE_FIR, ids=str)
def test_a_view_of_a_wider_tensor_is_read_in_place(case: Case) -> None:
    inputs = inputs_of(case)
    z, *rest = inputs
    assert z is not None
    wide = torch.full((2, case.length + 3, 3 * case.width + 16), float("nan"), device=DEVICE)
    view = wide[1:, 2:-1, 8:-8]
    view.copy_(z)
    mine, plain = (output_and_gradient(case, [tensor, *rest]) for tensor in (view, z))
    assert torch.equal(mine[0], plain[0])
    assert torch.equal(mine[1], plain[1])


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_nan_in_gives_nan_out(case: Case) -> None:
    case = replace(case, width=32, groups=2)
    inputs = inputs_of(case)
    assert inputs[0] is not None
    inputs[0][0, 20, 2 * case.width] = float("nan")  # v of the first channel
    y, past_after = by_kernel(case, inputs)
    assert y[0, 20:29, 0].isnan().all()
    assert y[0, :, 17:].isfinite().all()  # other groups are not affected
    _, gradient = output_and_gradient(case, inputs)
    assert gradient[0, 18:23, case.width].isnan().all()  # of x1, in all rows multiplied with that v
    assert gradient[0, :, case.width + 17 : 2 * case.width].isfinite().all()
    assert gradient[0, :18, case.width].isfinite().all()
    assert gradient[0, 23:, case.width].isfinite().all()
    if case.modes:
        assert past_after[0, :, 0].isnan().all()  # the state keeps it


@pytest.mark.parametrize(
    "case",
    [Case(taps=7, past=True), Case(taps=40, length=70), Case(modes=3, past=True)],
    ids=str,
)
def test_frozen_filters_change_no_gradient_of_the_inputs(case: Case) -> None:
    results = []
    for frozen in (False, True):
        inputs = leaves(inputs_of(case))
        for tensor in inputs[2:-2] if frozen else []:
            assert tensor is not None
            tensor.requires_grad_(False)
        y, past_after = by_kernel(case, inputs)
        (y.square().sum() + past_after.sum()).backward()
        results.append([None if tensor is None else tensor.grad for tensor in inputs])
    trained, kept = results
    assert all(gradient is None for gradient in kept[2:-2])
    for first, second in zip(trained[:2] + trained[-2:], kept[:2] + kept[-2:], strict=True):
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)


def test_fakes_have_the_shapes_of_the_kernels() -> None:
    for case in (Case(taps=7, past=True), Case(modes=3)):
        op = (fir if case.taps else modal).fused.traced
        torch.library.opcheck(
            op, tuple(leaves(inputs_of(case))), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("case", [Case(taps=7, length=9), Case(modes=3, length=9)], ids=str)
def test_eager_calls_are_those_of_the_custom_operator(case: Case) -> None:
    """The same bits and gradients, and no second derivative that is silently zero."""
    op, results = (fir if case.taps else modal).fused, []
    for run in (op, op.traced):
        inputs = leaves(inputs_of(replace(case, past=True)))
        y, past_after = run(*inputs)[:2]
        given = [tensor for tensor in inputs if tensor is not None]
        total = y.square().sum() + past_after.sum()
        results.append([y, past_after, *torch.autograd.grad(total, given, retain_graph=True)])
        first = torch.autograd.grad(total, given, create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            (total + first[0].square().sum()).backward()
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("case", [Case(taps=7, length=9), Case(modes=3, length=9)], ids=str)
@pytest.mark.parametrize("how", ["compiled", "checkpointed"])
def test_compile_and_checkpoint_change_nothing(case: Case, how: str) -> None:
    def run(*inputs: Tensor) -> Tensor:
        return run_public(case, [*inputs, None, None])[0].square()

    wrapped: Callable[..., Tensor]
    if how == "compiled":
        wrapped = torch.compile(run, backend="aot_eager", fullgraph=True)
    else:
        wrapped = partial(checkpoint, run, use_reentrant=False)
    results = []
    for function in (run, wrapped):
        inputs = leaves(inputs_of(case)[:-2])
        y = function(*inputs)
        y.sum().backward()
        results.append([y, *(tensor.grad for tensor in inputs if tensor is not None)])
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("case", [Case(taps=7, length=9), Case(modes=3, length=9)], ids=str)
def test_autocast_reaches_the_kernel_through_the_projection(case: Case) -> None:
    z, *parameters = inputs_of(case)[:-2]
    assert z is not None
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        projected = z @ torch.eye(3 * case.width, device=DEVICE)
        y = run_public(case, [projected, *parameters, None, None])[0]
    plain = run_public(case, [z.bfloat16(), *parameters, None, None])[0]
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain)


def test_inputs_without_a_kernel_are_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnGpu(Tensor):
        is_cuda = True

    dispatch.warn_once.cache_clear()
    z = torch.zeros(1, 4, 6, dtype=torch.float64).as_subclass(OnGpu)
    with caplog.at_level(logging.WARNING):
        assert not dispatch.kernels_support(z, 3, num_taps=7)
        assert not dispatch.kernels_support(z, 3, num_taps=7)
        assert not dispatch.kernels_support(z.float(), 3, num_taps=300)
    assert [record.message for record in caplog.records] == [
        "torch.float64 has no kernel; the slower reference runs instead",
        "filters of more than 256 taps have no kernel; the slower reference runs instead",
    ]
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert not dispatch.kernels_support(z.float(), 3)
    assert not dispatch.kernels_support(torch.zeros(1, 4, 6), 3)  # on a CPU nothing is logged


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("case", [Case(taps=7), Case(taps=128), Case(modes=16)], ids=str)
def test_more_elements_than_an_int32_counts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = replace(case, length=2**18 + 5, width=3072, groups=192, dtype=torch.bfloat16)
    generator = torch.Generator(DEVICE).manual_seed(0)
    z = torch.randn(1, case.length, 3 * case.width, device=DEVICE, generator=generator)
    z = z.to(case.dtype)
    assert z.numel() > 2**31
    inputs = [z, *inputs_of(replace(case, length=1))[1:]]
    y, _ = by_kernel(case, inputs)
    tail = 2000 if case.taps else 6000  # earlier rows have decayed by then
    ending = by_reference(
        replace(case, length=tail), leaves([z[:, -tail:], *inputs[1:]], torch.float64)
    )[0]
    assert_close("y", y[:, -256:], ending[:, -256:].detach(), TOLERANCE[case.dtype])
