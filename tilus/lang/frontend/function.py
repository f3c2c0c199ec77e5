"""A Python function as the front end reads it: its syntax tree, its names, and where it stands."""

from __future__ import annotations

import ast
import builtins
import inspect
from dataclasses import dataclass
from functools import cached_property
from types import CellType, FunctionType
from typing import Any

from tilus.errors import Location, SyntaxNotSupported
from tilus.lang.diagnostics import node_location
from tilus.lang.frontend.liveness import Liveness, analyse, assigned

MISSING = object()
"""Stands for a name that is not defined."""


@dataclass(frozen=True, eq=False)
class FunctionSource:
    """The source of one Python function.

    Attributes
    ----------
    function : function
        The Python function itself.
    file : str
        The file it is in.
    first_line : int
        The line of its `def`, or of its first decorator.
    lines : list of str
        Its source lines.
    tree : ast.FunctionDef
        Its syntax tree, with the line and column numbers of the file.
    """

    function: FunctionType
    file: str
    first_line: int
    lines: list[str]
    tree: ast.FunctionDef

    @classmethod
    def of(cls, function: FunctionType) -> FunctionSource:
        """Read the source of a function."""
        if not isinstance(function, FunctionType):
            raise SyntaxNotSupported(
                f"a kernel is made of a Python function, not of {function!r}",
                hint="def with @tilus.kernel above it",
            )
        file = inspect.getsourcefile(function) or function.__code__.co_filename
        if function.__name__ == "<lambda>":
            raise SyntaxNotSupported(
                "a lambda cannot be a kernel or an inline function",
                Location(file, function.__code__.co_firstlineno),
                "a function with def",
            )
        try:
            lines, first_line = inspect.getsourcelines(function)
        except (OSError, TypeError):
            nameless = "Python keeps none of code given to exec, to python -c or to its plain prompt"
            reason = nameless if file.startswith("<") else f"there is no such file as {file}"
            raise SyntaxNotSupported(
                f"the source of {function.__name__} cannot be read: {reason}",
                Location(file, function.__code__.co_firstlineno),
                "the function in a file that is imported or run, or in a cell of a notebook",
            ) from None
        text = "".join(lines)
        indented = lines[0][:1].isspace()
        # A function inside of another one is parsed under an `if`, so that columns stay those of the file.
        tree = ast.parse("if True:\n" + text if indented else text)
        ast.increment_lineno(tree, first_line - (2 if indented else 1))
        found = next(n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
        source = cls(function, file, first_line, [line.rstrip("\n") for line in lines], found)  # type: ignore[arg-type]
        if isinstance(found, ast.AsyncFunctionDef) or inspect.isgeneratorfunction(function):
            raise SyntaxNotSupported(
                "a kernel is neither a coroutine nor a generator",
                source.location(found),
                "a plain def without yield",
            )
        return source

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def text(self) -> str:
        """The function's source."""
        return "\n".join(self.lines)

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's parameters."""
        return inspect.signature(self.function)

    @cached_property
    def liveness(self) -> Liveness:
        """Which names are read later."""
        return analyse(self.tree)

    @cached_property
    def local_names(self) -> frozenset[str]:
        """The names that belong to the function, as Python decides it: those that it binds anywhere."""
        arguments = self.tree.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        return frozenset(a.arg for a in every) | frozenset(assigned(self.tree.body))

    @cached_property
    def cells(self) -> dict[str, CellType]:
        """The variables of enclosing functions that the function reads."""
        return dict(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True))

    @property
    def closure(self) -> dict[str, Any]:
        """What these variables hold now; one that is not bound yet is left out."""
        found = {}
        for name, cell in self.cells.items():
            try:
                found[name] = cell.cell_contents
            except ValueError:
                continue
        return found

    def location(self, node: ast.AST, caller: Location | None = None) -> Location:
        """Return where a node stands."""
        return node_location(node, self.file, self.lines, self.first_line, caller)

    @cached_property
    def def_location(self) -> Location:
        """Where the function's name stands after `def`."""
        line = self.tree.lineno
        text = self.lines[line - self.first_line]
        column = text.index("def") + 4
        return Location(self.file, line, column, column + len(self.name))

    def outer(self, name: str) -> object:
        """Return what a name that is not local means: of an enclosing function, the module or Python itself."""
        closure = self.closure
        if name in closure:
            return closure[name]
        if name in self.function.__globals__:
            return self.function.__globals__[name]
        return getattr(builtins, name, MISSING)

    def owner(self, name: str) -> object:
        """Return what holds a name that is not local: a closure's variable, or what a module defines."""
        if name in self.cells:
            return self.cells[name]
        known = self.function.__globals__
        return known if name in known else builtins

    def outer_names(self) -> set[str]:
        """Return all names that `outer` knows."""
        return {*self.closure, *self.function.__globals__, *dir(builtins)}
