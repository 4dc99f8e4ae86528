"""Triton's interpreter, without what it does again and again.

It replaces the functions of the language by its own at every call of a device function, which takes
as long as all that the kernels compute. Once a launch for each module does the same.
"""

import os
from importlib.util import find_spec
from typing import Any

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    from triton.runtime import interpreter

    prepared: set[str] = set()  # modules, in this launch
    launch = interpreter.GridExecutor.__call__

    def launch_kernel(self: interpreter.GridExecutor, *arguments: Any, **named: Any) -> None:
        prepared.clear()
        launch(self, *arguments, **named)

    def call_function(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn.__module__)
        return self.rewrite()(*arguments, **named)

    interpreter.GridExecutor.__call__ = launch_kernel
    interpreter.InterpretedFunction.__call__ = call_function
