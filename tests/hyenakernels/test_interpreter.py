"""The interpreter as conftest.py changes it computes and refuses the same, with less work."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime import interpreter

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels are compiled where there is a GPU"
)


@triton.jit
def _double(x):
    return x + x


@triton.jit
def _kernel(x, y, N: tl.constexpr):
    value = tl.load(x + tl.arange(0, N))
    for _ in tl.static_range(5):
        value = _double(value)
    tl.store(y + tl.arange(0, N), value)


def test_device_functions_are_patched_once_in_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    patch, calls = interpreter._patch_lang, []

    def counted(function: Any) -> Any:
        calls.append(function)
        return patch(function)

    monkeypatch.setattr(interpreter, "_patch_lang", counted)
    x = torch.arange(8.0)
    for launches in (1, 2):
        y = torch.empty(8)
        _kernel[(1,)](x, y, N=8)
        assert torch.equal(y, 32 * x)
        # Once by Triton for the kernel, once by conftest.py for the functions it calls.
        assert len(calls) == 2 * launches


@triton.jit
def _combine(x, y, z, OPERATION: tl.constexpr):
    left, right = tl.load(x + tl.arange(0, 2)), tl.load(y + tl.arange(0, 2))
    if OPERATION == "add":
        result = left + right
    elif OPERATION == "sub":
        result = left - right
    else:
        result = left * right
    tl.store(z + tl.arange(0, 2), result)


@pytest.mark.parametrize(
    ("operation", "left", "right", "fits"),
    [
        ("add", 2**31 - 2, 1, True),
        ("add", 2**31 - 1, 1, False),
        ("sub", -(2**31) + 1, 1, True),
        ("sub", -(2**31), 1, False),
        ("mul", 2**16, -(2**15), True),
        ("mul", 2**16, 2**15, False),
    ],
)
def test_an_overflow_is_refused(operation: str, left: int, right: int, fits: bool) -> None:
    x, y = (torch.tensor([number, 1], dtype=torch.int32) for number in (left, right))
    z = torch.zeros(2, dtype=torch.int32)
    if fits:
        _combine[(1,)](x, y, z, OPERATION=operation)
        exact = {"add": left + right, "sub": left - right, "mul": left * right}
        assert z[0].item() == exact[operation]
    else:
        with pytest.raises(Exception, match=f"int32 overflow detected for operation {operation}"):
            _combine[(1,)](x, y, z, OPERATION=operation)


def test_a_kept_dtype_is_that_of_its_type() -> None:
    kinds = {tl.int1: "bool", tl.bfloat16: "uint16", tl.uint16: "uint16", tl.float32: "float32"}
    for kind, expected in kinds.items():
        for _ in range(2):
            assert interpreter._get_np_dtype(kind) == expected
            assert interpreter._get_np_dtype(tl.block_type(kind, [4])) == expected
            assert interpreter._get_np_dtype(tl.pointer_type(kind)) == "uint64"


def test_a_kept_block_type_is_that_of_its_element_and_shape() -> None:
    for kind in (tl.float32, tl.int1, tl.pointer_type(tl.float32)):
        for shape in ([4], [2, 4], [tl.constexpr(2), tl.constexpr(4)]):
            for _ in range(2):
                made = tl.block_type(kind, shape)
                assert made.element_ty == kind
                assert made.shape.values == [tl.constexpr(size).value for size in shape]
                assert made.numel == 4 * 2 ** (len(shape) - 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="must be a power of 2"):
            tl.block_type(tl.float32, [3])
        with pytest.raises(TypeError):
            tl.block_type(tl.float32, [4.0])


@triton.jit
def _add(x, y, z, M: tl.constexpr, N: tl.constexpr):
    column, row = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    total = tl.load(x + column) + tl.load(y + row) + 1.0
    tl.static_assert(total.shape == [M, N])
    tl.store(z + column * N + row, total + total)


def test_operands_of_other_shapes_are_broadcast() -> None:
    x, y, z = torch.arange(4.0), torch.arange(2.0), torch.empty(4, 2)
    _add[(1,)](x, y, z, M=4, N=2)
    assert torch.equal(z, 2 * (x[:, None] + y + 1))
