"""The interpreter as conftest.py changes it computes the same, with fewer replacements."""

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
