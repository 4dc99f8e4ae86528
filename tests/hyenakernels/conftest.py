"""Memory of NaN for kernels; and Triton's interpreter made faster.

It computes and refuses what it did:

- At every call of a device function it replaces the functions of `triton.language` by its own,
  which takes as long as all computations of the kernels here: once in each launch and module is
  enough.
- Whether an integer operation overflows it finds by eight operations of `triton.language`: NumPy
  finds it by one.
- It builds its table of data types at every look-up, and the type and shape of every result anew:
  each can be kept.
- To find that two operands have one shape, it builds the shape once more.

There is no public hook for this: it relies on `interpreter._patch_lang`, `_get_np_dtype` and the
methods below, and tests/hyenakernels/test_interpreter.py fails when they change.
"""

import math
import operator
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    import numpy as np
    import triton.language as tl
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

    make_block_type = tl.block_type.__init__
    made_block_types: dict[tuple[Any, ...], dict[str, Any]] = {}

    def make_block_type_once(self: tl.block_type, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *map(operator.index, shape))
        if key not in made_block_types:
            make_block_type(self, element_ty, shape)
            made_block_types[key] = vars(self)
        vars(self).update(made_block_types[key])

    @lru_cache
    def shape_and_size(*shape: int) -> tuple[tl.tuple, tl.constexpr]:
        return tl.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(shape))

    def make_tensor(self: tl.tensor, handle: Any, type: Any) -> None:  # noqa: A002 - Triton's name
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_and_size(*(type.shape if type.is_block() else ()))

    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_other_shapes(self: TritonSemantic, left: Any, right: Any) -> tuple[Any, Any]:
        are_blocks = left.type.is_block() and right.type.is_block()
        if are_blocks and left.type.shape.values == right.type.shape.values:
            return left, right
        return broadcast(self, left, right)

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
    tl.block_type.__init__ = make_block_type_once
    tl.tensor.__init__ = make_tensor
    TritonSemantic.broadcast_impl_value = broadcast_other_shapes
    TritonSemantic.binary_op_sanitize_overflow_impl = refuse_overflow


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill memory that a kernel does not write with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
