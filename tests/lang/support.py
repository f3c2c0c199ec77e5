"""Traces kernels for tests, runs them on the reference interpreter, and shows errors without this machine's paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tilus.errors import TilusError
from tilus.ir import Kernel, Operation, walk
from tilus.ir.interpreter import run
from tilus.ir.verifier import verify
from tilus.lang import KernelSource


def trace(function: Callable[..., Any], /, **constexprs: Any) -> Kernel:
    """Trace a kernel with its default types; what the front end makes is always well formed."""
    source = KernelSource(function)
    kernel = source.trace(constexprs, source.default_types(constexprs))
    verify(kernel)
    return kernel


def execute(function: Callable[..., Any], /, *args: Any, **constexprs: Any) -> Kernel:
    """Trace a kernel and run it on the interpreter."""
    kernel = trace(function, **constexprs)
    run(kernel, args)
    return kernel


def operations(kernel: Kernel, *kinds: type[Operation]) -> list[Operation]:
    """Return the operations of the body of some kinds, in program order."""
    return [made for made in walk(kernel.body) if not kinds or isinstance(made, kinds)]


def opcodes(kernel: Kernel) -> list[str]:
    """Return the opcodes of the body, in program order."""
    return [made.opcode for made in walk(kernel.body)]


def error_of(function: Callable[..., Any], *wanted: type[TilusError], **constexprs: Any) -> TilusError:
    """Return the error of a kernel that must not compile."""
    with pytest.raises(wanted or (TilusError,)) as caught:
        trace(function, **constexprs)
    return caught.value


def anonymous(error: TilusError) -> str:
    """Return the text of an error with the names of files instead of their paths."""
    text = f"{type(error).__name__}: {error}"
    location = error.location
    while location is not None:
        text = text.replace(location.file, Path(location.file).name)
        location = location.caller
    return text
