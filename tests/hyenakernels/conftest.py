"""Make Triton's interpreter faster, without changing what it computes.

At every call of a device function the interpreter replaces the functions of `triton.language` by
its own, which takes as long as all computations of the kernels here. Once in each launch and module
is enough. There is no public hook for this: it relies on `interpreter._patch_lang` and the methods
below, and tests/hyenakernels/test_interpreter.py fails when they change.
"""

import os
from importlib.util import find_spec
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
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

    interpreter.GridExecutor.__call__ = launch_kernel
    interpreter.InterpretedFunction.__call__ = call_function
