"""A kernel with what it is called with, to be run, compiled or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tilus.runtime.kernel import Kernel


@dataclass(frozen=True)
class Call:
    """A kernel and what it is called with.

    Attributes
    ----------
    kernel : Kernel
    arguments : tuple
    options : dict
    before : Call or None
        What runs first: a kernel that makes one of the arguments.
    """

    kernel: Kernel
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    before: Call | None = None

    def __call__(self) -> None:
        if self.before is not None:
            self.before()
        self.kernel(*self.arguments, **self.options)
