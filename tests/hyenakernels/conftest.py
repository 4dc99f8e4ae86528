"""Memory of NaN for kernels; and Triton's interpreter made faster.

It computes and refuses what it did:

- At every call of a device function it replaces the functions of `triton.language` by its own,
  which takes as long as all computations of the kernels here: once in each launch and module is
  enough.
- Whether an integer operation overflows it finds by eight operations of `triton.language`: NumPy
  finds it by one.
- It builds its table of data types at every look-up: an answer can be kept.

There is no public hook for this: it relies on `interpreter._patch_lang`, `_get_np_dtype` and the
methods below, and tests/hyenakernels/test_interpreter.py fails when they change.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    import numpy as np
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    patched_modules: set[str] = set()  # in the current launch
    launch = interpreter.GridExecutor.__call__

    def launch_kernel(self: interpreter.GridExecutor, *arguments: Any, **named: Any) -> None:
        patched_modules.clear()
        launch(self, *arguments, **named)

    def call_function(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ not in patched_modules:
            interpreter._patch_lang(self.fn)
            patched_modules.add(self.fn.__module__)
        return self.rewrite()(*arguments, **named)

    find_dtype = interpreter._get_np_dtype
    found_dtypes: dict[str, Any] = {}  # by the names of Triton's types: some have no hash

    def find_dtype_once(kind: Any) -> Any:
        if kind.name not in found_dtypes:
            found_dtypes[kind.name] = find_dtype(kind)
        return found_dtypes[kind.name]

    OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def refuse_overflow(self: TritonSemantic, left: Any, right: Any, operation: Any) -> None:
        """Raise where the exact result is no number of the operands' type."""
        kind = left.type.scalar
        if kind.int_bitwidth >= 64:
            return
        wide = (tensor.handle.data.astype(np.int64) for tensor in (left, right))
        exact = OPERATIONS[operation.__name__](*wide)
        fits = kind.get_int_min_value() <= exact.min() and exact.max() <= kind.get_int_max_value()
        message = f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"
        self.builder.create_assert(fits, message)

    interpreter.GridExecutor.__call__ = launch_kernel
    interpreter.InterpretedFunction.__call__ = call_function
    interpreter._get_np_dtype = find_dtype_once
    TritonSemantic.binary_op_sanitize_overflow_impl = refuse_overflow


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill memory that a kernel does not write with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
