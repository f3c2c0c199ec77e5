"""Functions that kernels call and that become a part of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import Any

from tilus.errors import SyntaxNotSupported
from tilus.lang.frontend.function import FunctionSource


class InlineFunction:
    """A Python function written in the language; see `inline`."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        # Read now: the file may be edited while the process runs.
        self.source = FunctionSource.of(function)
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> str:
        # By name, as Python pickles and copies functions.
        return self.function.__qualname__

    def __repr__(self) -> str:
        return f"<inline function {self.function.__qualname__}>"


def inline(function: Callable[..., Any]) -> InlineFunction:
    """Mark a function that kernels call; its body is traced anew at each call.

    Tiles, scalars and compile-time values may be passed and returned.

    Parameters
    ----------
    function : function
        Written in the language of kernels; its parameters need no annotations.

    Returns
    -------
    InlineFunction
    """
    if isinstance(function, InlineFunction):
        return function
    if not isinstance(function, FunctionType):
        raise SyntaxNotSupported(
            f"@tilus.inline marks a function, not {function!r}", hint="a function with def"
        )
    return InlineFunction(function)
