"""Connects a stub of the language with its translation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

Implementation = Callable[..., Any]
_F = TypeVar("_F", bound=Implementation)


@dataclass(frozen=True)
class Function:
    """A stub and what it does: `implementation(tracer, **arguments)`, with the stub's parameters."""

    stub: Callable[..., Any]
    implementation: Implementation

    @cached_property
    def signature(self) -> inspect.Signature:
        """The stub's parameters."""
        return inspect.signature(self.stub)

    @property
    def signature_text(self) -> str:
        """The stub's parameters as text, without annotations."""
        plain = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        return str(inspect.Signature(plain))


FUNCTIONS: dict[Callable[..., Any], Function] = {}
"""All functions of the language, by stub."""


def implements(stub: Callable[..., Any]) -> Callable[[_F], _F]:
    """Declare the translation of a stub."""

    def declare(implementation: _F) -> _F:
        FUNCTIONS[stub] = Function(stub, implementation)
        return implementation

    return declare
