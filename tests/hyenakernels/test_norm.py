"""The norms: the kernel equals its reference in float64, and outputs have the right dtypes.

On a machine without a GPU the kernels run in Triton's interpreter.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

from hyenakernels import add_rms_norm, dispatch, rms_norm
from hyenakernels.norm import kernel, reference
from hyenakernels.norm import op as norm
from stripedhyena2 import ModelConfig, StripedHyena2
from tests.hyenakernels.tensors import Inputs, assert_close, leaves

pytestmark = pytest.mark.usefixtures("poison")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-3  # large enough to tell whether it is outside the root
NARROW, HALF, WIDE = torch.bfloat16, torch.float16, torch.float32

# ||x - exact|| / ||exact||. The interpreter truncates to bf16 where a GPU rounds to the nearest:
# each rounding error is twice as large, and all of them have the same sign.
TOLERANCE = {WIDE: 1e-6, HALF: 5e-4 if DEVICE == "cuda" else 1e-3}
TOLERANCE[NARROW] = 4e-3 if DEVICE == "cuda" else 1e-2


@pytest.fixture
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public operators use the kernels, interpreted where there is no GPU."""
    monkeypatch.setattr(norm, "kernels_support", lambda *_, **__: True)


@dataclass(frozen=True)
class Case:
    """One problem; `added` is the dtype of y, None for the norm of x alone."""

    batch: int = 1
    length: int = 5
    width: int = 32
    dtype: torch.dtype = WIDE
    added: torch.dtype | None = None
    scale: torch.dtype = WIDE
    out: torch.dtype = WIDE

    def __str__(self) -> str:
        added = "-" if self.added is None else f"-plus-{str(self.added)[6:]}-"
        dtypes = f"{str(self.dtype)[6:]}{added}{str(self.scale)[6:]}-to-{str(self.out)[6:]}"
        return f"B{self.batch}-L{self.length}-D{self.width}-{dtypes}"

    @property
    def tolerance(self) -> float:
        if self.width == 1:  # x / |x| is constant: its gradient is only due to eps
            return 1e-3
        dtypes = (self.dtype, self.scale, self.out, self.added or self.dtype)
        return max(TOLERANCE[dtype] for dtype in dtypes)


def inputs_of(case: Case, seed: int = 0) -> Inputs:
    """x, y and the scale."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    shape = (case.batch, case.length, case.width)
    y = None if case.added is None else draw(*shape, dtype=case.added)
    return [draw(*shape, dtype=case.dtype), y, draw(case.width, dtype=case.scale)]


def by_kernel(case: Case, inputs: Inputs) -> list[Tensor]:
    """The normed rows, and the sum if there is one."""
    normed, total, _ = norm.fused(*inputs, EPS, case.out)
    return [normed] if case.added is None else [normed, total]


def by_reference(inputs: Inputs) -> list[Tensor]:
    x, y, scale = inputs
    assert x is not None
    assert scale is not None
    if y is None:
        return [reference.rms_norm(x, scale, EPS)]
    return list(reference.add_rms_norm(x, y, scale, EPS))


def results(run: Callable[[Inputs], list[Tensor]], inputs: Inputs) -> list[Tensor]:
    """Outputs of `run`, and the gradients of its inputs for a random weighting of the outputs."""
    outputs = run(inputs)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    torch.autograd.backward(outputs, weights)
    gradients = [tensor.grad for tensor in inputs if tensor is not None]
    assert all(gradient is not None for gradient in gradients)
    return [y.detach() for y in outputs] + [g for g in gradients if g is not None]


def assert_kernel_is_reference(case: Case) -> None:
    inputs = inputs_of(case)
    mine = results(partial(by_kernel, case), leaves(inputs))
    exact = results(by_reference, leaves(inputs, torch.float64))
    names = ["normed", "x", "scale"] if case.added is None else ["normed", "sum", "x", "y", "scale"]
    dtypes = [case.out, *([] if case.added is None else [case.dtype]), case.dtype]
    dtypes += [*([] if case.added is None else [case.added]), case.scale]
    for name, value, expected, dtype in zip(names, mine, exact, dtypes, strict=True):
        assert value.dtype == dtype, name
        assert_close(name, value, expected, case.tolerance)


DTYPES = [
    Case(),
    Case(added=WIDE),
    Case(dtype=NARROW, scale=NARROW, out=NARROW),
    Case(dtype=NARROW, added=NARROW, scale=NARROW, out=NARROW),
    Case(dtype=HALF, added=HALF, scale=HALF, out=HALF),
    Case(out=NARROW),  # autocast
    Case(added=NARROW, out=NARROW),
    Case(added=HALF, out=HALF),
]
# In a quick run two of them stand for all where a law has nothing to do with dtypes.
SOME_DTYPES = [
    case if case in (Case(), DTYPES[3]) else pytest.param(case, marks=pytest.mark.slow)
    for case in DTYPES
]
WIDTHS = [1, 2, 3, 31, 33, 120, 257]


@pytest.mark.parametrize("case", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3], ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize(
    "length",
    [
        pytest.param(1, id="length1"),
        pytest.param(23, id="length23", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_is_its_reference(case: Case, batch: int, length: int) -> None:
    assert_kernel_is_reference(replace(case, batch=batch, length=length))


@pytest.mark.parametrize("width", WIDTHS, ids=lambda width: f"width{width}")
@pytest.mark.parametrize("added", [None, WIDE], ids=["alone", "sum"])
def test_any_width(width: int, added: torch.dtype | None) -> None:
    assert_kernel_is_reference(Case(width=width, added=added))


@pytest.mark.parametrize("width", [1920, 4096, 8192, 16_384], ids=lambda width: f"width{width}")
@pytest.mark.parametrize("case", [Case(), Case(added=NARROW, out=NARROW)], ids=str)
def test_published_widths(case: Case, width: int) -> None:
    assert_kernel_is_reference(replace(case, width=width, length=2111 if DEVICE == "cuda" else 3))


@pytest.mark.parametrize("case", SOME_DTYPES, ids=str)
def test_the_same_bits_twice(case: Case) -> None:
    case = replace(case, batch=2, length=40)
    first, second = (results(partial(by_kernel, case), leaves(inputs_of(case))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", SOME_DTYPES, ids=str)
@pytest.mark.parametrize("width", [4, 31, 32], ids=lambda width: f"width{width}")
def test_a_row_does_not_depend_on_the_others(case: Case, width: int) -> None:
    """The same bits with any other rows and at any address, in the gradient too."""
    case = replace(case, batch=3, length=7, width=width)
    x, y, scale = inputs_of(case)
    found = []
    for rows in (slice(None), (slice(1, 2), slice(3, 4))):
        streams = [None if tensor is None else tensor[rows].detach() for tensor in (x, y)]
        inputs = [None if tensor is None else tensor.requires_grad_() for tensor in streams]
        outputs = by_kernel(case, [*inputs, scale])
        torch.autograd.backward([output.sum() for output in outputs])
        found.append(outputs + [tensor.grad for tensor in inputs if tensor is not None])
    for whole, alone in zip(*found, strict=True):
        assert torch.equal(whole[1:2, 3:4], alone)


@pytest.mark.parametrize("case", [Case(), Case(added=WIDE)], ids=str)
def test_a_view_gives_what_its_copy_gives(case: Case) -> None:
    plain = inputs_of(replace(case, length=case.width))
    turned = [
        None
        if t is None
        else t.transpose(-1, -2).contiguous().transpose(-1, -2)
        if t.ndim == 3
        else t
        for t in plain
    ]
    first, second = (
        results(partial(by_kernel, case), leaves(inputs)) for inputs in (plain, turned)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [Case(), Case(added=WIDE)], ids=str)
def test_nan_in_gives_nan_out(case: Case) -> None:
    inputs = leaves(inputs_of(case))
    x, _, scale = inputs
    assert x is not None
    assert scale is not None
    with torch.no_grad():
        x[0, 2, 7] = float("nan")
    normed, *_, dx = results(partial(by_kernel, case), inputs)[:-1]
    others = [0, 1, 3, 4]
    for rows in (normed, dx):
        assert rows[0, 2].isnan().all()
        assert rows[0, others].isfinite().all()
    assert scale.grad is not None
    assert scale.grad.isnan().all()


@pytest.mark.parametrize("path", ["kernel", "reference"])
def test_a_row_of_zeros_has_the_gradient_of_its_limit(path: str) -> None:
    """It is scale * dy / eps."""
    case = Case()
    inputs = leaves(inputs_of(case))
    x, _, scale = inputs
    assert x is not None
    assert scale is not None
    with torch.no_grad():
        x[0, 2] = 0
    (normed,) = by_kernel(case, inputs) if path == "kernel" else by_reference(inputs)
    normed.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert not normed[0, 2].any()
    torch.testing.assert_close(x.grad[0, 2], scale.detach() / EPS)
    assert x.grad.isfinite().all()
    assert scale.grad.isfinite().all()


def test_an_unused_output_has_no_gradient() -> None:
    for used in (0, 1):
        mine, exact = leaves(inputs_of(Case(added=NARROW))), leaves(inputs_of(Case(added=NARROW)))
        by_kernel(Case(added=NARROW), mine)[used].sum().backward()
        by_reference(exact)[used].sum().backward()
        for value, expected in zip(mine, exact, strict=True):
            assert value is not None
            assert value.grad is not None
            assert expected is not None
            wanted = torch.zeros_like(value.grad) if expected.grad is None else expected.grad
            assert_close(f"{used}", value.grad, wanted.double(), 1e-2)


@pytest.mark.parametrize("case", DTYPES[:2] + DTYPES[5:7], ids=str)
def test_fakes_have_the_shapes_of_the_kernels(case: Case) -> None:
    for inputs in (inputs_of(case), leaves(inputs_of(case))):
        torch.library.opcheck(
            norm.fused.traced,
            (*inputs, EPS, case.out),
            test_utils=("test_schema", "test_faketensor"),
        )
    normed, total, roots = norm.fused(*inputs_of(case), EPS, case.out)
    x, _, scale = inputs_of(case)
    for dtotal, dtype in ((None, None), (torch.ones_like(normed), NARROW)):
        torch.library.opcheck(
            norm.fused.traced_gradient,
            (x, scale, roots, torch.ones_like(normed), dtotal, EPS, dtype),
            test_utils=("test_schema", "test_faketensor"),
        )
    assert total.numel() == (0 if case.added is None else normed.numel())


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize("narrow", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("how", ["compiled", "checkpointed"])
def test_compile_and_checkpoint_change_nothing(how: str, narrow: bool) -> None:
    def run(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        with torch.autocast(DEVICE, NARROW) if narrow else nullcontext():
            normed, total = add_rms_norm(x, rms_norm(y, scale, EPS), scale, EPS)
            return normed.square() + total

    wrapped: Callable[..., Tensor]
    if how == "compiled":
        wrapped = torch.compile(run, backend="aot_eager", fullgraph=True)
    else:
        wrapped = partial(checkpoint, run, use_reentrant=False)
    found = []
    for function in (run, wrapped):
        inputs = leaves(inputs_of(Case(added=WIDE)))
        y = function(*inputs)
        y.sum().backward()
        found.append([y, *(tensor.grad for tensor in inputs if tensor is not None)])
    for plain, other in zip(*found, strict=True):
        assert torch.equal(plain, other)


# The dtypes of residual stream and parameters, whether under autocast, the dtypes of norm and sum.
RUNS = {
    "plain training": (WIDE, WIDE, True, NARROW, WIDE),
    "DeepSpeed": (NARROW, NARROW, False, NARROW, NARROW),
    "inference": (NARROW, NARROW, False, NARROW, NARROW),
    "fp32": (WIDE, WIDE, False, WIDE, WIDE),
}


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.parametrize(
    "run", [name if name != "fp32" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_dtypes_of_a_run(run: str, tiny_config: ModelConfig) -> None:
    residual, parameters, narrow, normed_dtype, sum_dtype = RUNS[run]
    model = StripedHyena2.from_seed(tiny_config, seed=0).to(DEVICE, parameters)
    model.requires_grad_(run != "inference")
    block, ids = model.blocks[0], torch.zeros(1, 9, dtype=torch.long, device=DEVICE)
    seen = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, inputs, output: seen.update({name: (inputs, output)})

    for name in ("pre_norm", "mixer", "post_norm", "mlp"):
        block.get_submodule(name).register_forward_hook(note(name))
    model.norm.register_forward_hook(note("norm"))
    with torch.autocast(DEVICE, NARROW, enabled=narrow):
        logits = model(ids)
    assert seen["pre_norm"][0][0].dtype == residual
    assert seen["pre_norm"][1].dtype == normed_dtype
    assert seen["mixer"][1][0].dtype == normed_dtype
    assert [tensor.dtype for tensor in seen["post_norm"][1]] == [normed_dtype, sum_dtype]
    assert seen["mlp"][0][0].dtype == normed_dtype
    assert seen["norm"][0][0].dtype == seen["norm"][1].dtype == logits.dtype == WIDE


def test_the_reference_leaves_the_cast_to_autocast() -> None:
    x, y, scale = (tensor for tensor in inputs_of(Case(added=NARROW)))
    assert x is not None
    assert y is not None
    assert scale is not None
    with torch.autocast("cpu", NARROW):
        normed, total = add_rms_norm(x.cpu(), y.cpu(), scale.cpu(), EPS)
        alone = rms_norm(total, scale.cpu(), EPS)
    assert normed.dtype == total.dtype == WIDE
    assert torch.equal(alone, normed)


@pytest.mark.usefixtures("kernels_everywhere")
@pytest.mark.filterwarnings("ignore:Memory Efficient attention")  # not tested here
@pytest.mark.parametrize("stripes", ["S", pytest.param("SMLASML", marks=pytest.mark.slow)])
def test_a_model_with_kernels_is_the_model_without(
    stripes: str, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, stripes=stripes)
    ids = torch.randint(0, 512, (2, 7), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found = []
    for takes in (True, False):
        monkeypatch.setattr(norm, "kernels_support", lambda *_, takes=takes, **__: takes)
        for group in (0, 2):
            model = StripedHyena2.from_seed(config, seed=0).to(DEVICE)
            model.activation_checkpointing = group
            logits = model(ids)
            logits.logsumexp(2).sum().backward()
            found.append([logits.detach(), *(p.grad for p in model.parameters())])
    fused, recomputed, plain, _ = found
    for mine, again, theirs in zip(fused, recomputed, plain, strict=True):
        assert torch.equal(mine, again)
        assert_close("gradient", mine, theirs.double(), 1e-4)


@pytest.mark.usefixtures("kernels_everywhere")
def test_a_sum_wider_than_the_residual_stays_wide() -> None:
    x, y, scale = inputs_of(Case(dtype=NARROW, added=WIDE))
    assert x is not None
    assert y is not None
    assert scale is not None
    normed, total = add_rms_norm(x, y, scale, EPS)
    assert normed.dtype == total.dtype == WIDE
    assert torch.equal(total, x + y)


def test_norms_without_a_kernel_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class OnGpu(Tensor):
        is_cuda = True

    dispatch.warn_once.cache_clear()
    x = torch.zeros(1, 1, 16_385).as_subclass(OnGpu)
    assert not dispatch.kernels_support(x, width=16_385)
    assert not dispatch.kernels_support(x, width=16_385)
    assert not dispatch.kernels_support(x[:0], width=5)
    assert [record.message for record in caplog.records] == [
        "norms of more than 16384 channels have no kernel; the slower reference runs instead"
    ]


def test_shapes_that_do_not_fit_are_named() -> None:
    x = torch.ones(1, 2, 6)
    with pytest.raises(ValueError, match="needs a scale of 6 channels"):
        rms_norm(x, torch.ones(5), EPS)
    with pytest.raises(ValueError, match=r"x is \(1, 2, 6\), but y is \(1, 1, 6\)"):
        add_rms_norm(x, torch.ones(1, 1, 6), torch.ones(6), EPS)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_more_elements_than_an_int32_counts() -> None:
    case = Case(length=2**18 + 5, width=8192, dtype=NARROW, scale=NARROW, out=NARROW)
    x = torch.zeros(1, case.length, case.width, device=DEVICE, dtype=NARROW)
    assert x.numel() > 2**31
    tail = replace(case, length=3)
    x[:, -3:], _, scale = inputs_of(tail)
    x.requires_grad_()
    (normed,) = by_kernel(case, [x, None, scale])
    (expected,) = by_kernel(tail, [x[:, -3:], None, scale])
    assert torch.equal(normed[:, -3:], expected)
    assert not normed[:, :-3].any()
    (gradient,) = torch.autograd.grad(normed, x, torch.ones_like(normed))
    (wanted,) = torch.autograd.grad(expected, x, torch.ones_like(expected))
    assert torch.equal(gradient[:, -3:], wanted[:, -3:])


def test_kernel_programs_cover_every_row() -> None:
    """More rows than programs, and fewer."""
    for length in (1, 1000):
        programs, sizes = kernel.sizes_of("backward", torch.empty(1, length, 64))
        assert programs <= sizes["rows"] == length
