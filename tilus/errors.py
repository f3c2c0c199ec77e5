"""The errors that users see, and the source locations that they carry."""

from __future__ import annotations

import linecache
from dataclasses import dataclass


@dataclass(frozen=True)
class Location:
    """A place in a user's source; `caller` is the call that inlined it, if any."""

    file: str
    line: int
    column: int = 0
    end_column: int | None = None
    caller: Location | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def excerpt(self) -> str:
        """Return the source line with a caret below the place, or nothing if the source is gone."""
        text = linecache.getline(self.file, self.line).rstrip("\n")
        if not text.strip():
            return ""
        indent = len(text) - len(text.lstrip())
        start = max(self.column - indent, 0)
        # `column` counts characters; a tab before the caret would misplace it.
        shown = text.lstrip().expandtabs(1)
        width = 1 if self.end_column is None else max(self.end_column - self.column, 1)
        width = min(width, max(len(shown) - start, 1))
        return f"    {shown}\n    {' ' * start}{'^' * width}"


class TilusError(Exception):
    """Base of all errors that tilus raises on purpose: a place, one sentence, and what to write instead.

    Parameters
    ----------
    message : str
        What was found and what was expected.
    location : Location, optional
        Where in the user's source.
    hint : str, optional
        What to write instead.
    """

    def __init__(self, message: str, location: Location | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.hint = hint

    def at(self, location: Location | None) -> TilusError:
        """Return the same error with a location, unless it has one already."""
        if self.location is None and location is not None:
            self.location = location
        return self

    def __str__(self) -> str:
        lines = []
        if self.location is not None:
            lines.append(f"{self.location}: {self.message}")
            excerpt = self.location.excerpt()
            if excerpt:
                lines.append(excerpt)
        else:
            lines.append(self.message)
        if self.hint:
            lines.append(f"  write instead: {self.hint}")
        caller = self.location.caller if self.location is not None else None
        while caller is not None:
            lines.append(f"  called from {caller}")
            excerpt = caller.excerpt()
            if excerpt:
                lines.append(excerpt)
            caller = caller.caller
        return "\n".join(lines)


class SyntaxNotSupported(TilusError):
    """Python that a kernel may not use."""


class NameNotFound(TilusError):
    """A name that is not defined, or not on every path."""


class TypeMismatch(TilusError, TypeError):
    """A dtype or kind of value other than the one expected."""


class ShapeMismatch(TilusError, ValueError):
    """Shapes that do not agree."""


class InvalidValue(TilusError, ValueError):
    """A name, a number or an array that a function does not take, though of the right kind."""


class LayoutConflict(TilusError):
    """Layouts that cannot be reconciled, or that an operation cannot take."""


class ResourceExceeded(TilusError):
    """More shared memory, threads or registers than the target has."""


class TargetNotSupported(TilusError):
    """A feature that the target does not have."""


class HazardFound(TilusError):
    """A missing wait or barrier that the verifier proved."""


class LaunchError(TilusError):
    """A launch with arguments that do not fit the kernel."""


class CompileError(TilusError):
    """A failure of LLVM or of the assembler on code that tilus made."""


class NoGradient(TilusError, RuntimeError):
    """A backward pass through an operator that has no gradient."""
