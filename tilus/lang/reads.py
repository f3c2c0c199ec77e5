"""What a function written in the language reads from outside of itself, and whether that is another object by now."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tilus.lang.frontend.function import MISSING, FunctionSource

Watched = tuple[Callable[[str], object], str, object]
"""What reads a name, the name, and the object that it named."""


@dataclass(frozen=True, eq=False)
class Read:
    """A value from outside.

    Attributes
    ----------
    path : str
        The names that lead to it, with dots.
    owner : object
        What holds it: a module's dictionary, the cell of a closure, or an object of which it is an attribute.
    name : str
        Its name there.
    value : object
        The value.
    """

    path: str
    owner: Any
    name: str
    value: Any

    def watched(self) -> Watched | None:
        """Return what `changed` needs, or None for a value that is a new object whenever it is read."""
        owner = self.owner
        if isinstance(owner, types.CellType):
            read: Callable[[str], object] = functools.partial(_contents, owner)
        else:
            read = owner.get if isinstance(owner, dict) else functools.partial(getattr, owner)
        return (read, self.name, self.value) if read(self.name) is self.value else None


def _contents(cell: types.CellType, name: str) -> object:
    return cell.cell_contents


def outside_reads(source: FunctionSource) -> list[Read]:
    """Return the values from outside that a function reads, through modules where it names them by attributes."""
    found: dict[str, Read] = {}

    def visit(node: ast.AST) -> None:
        path = attribute_path(node)
        if path is not None and path[0] not in source.local_names:
            owner, value = source.owner(path[0]), source.outer(path[0])
            for used in range(1, len(path) + 1):
                # The module is no value; what is set in a class or an object is, besides its source.
                if value is not MISSING and not isinstance(value, types.ModuleType) and not is_builtin(value):
                    name = ".".join(path[:used])
                    found[name] = Read(name, owner, path[used - 1], value)
                if used == len(path) or not has_static_attribute(value, path[used]):
                    break
                owner, value = value, getattr(value, path[used])
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(source.tree)
    return [found[name] for name in sorted(found)]


def watch(reads: Iterable[Read]) -> tuple[Watched, ...]:
    """Return what `changed` needs of some values, each of them once; what tilus itself defines stays."""
    found: dict[tuple[int, str], Watched] = {}
    for read in reads:
        if isinstance(read.owner, types.ModuleType) and belongs_to_tilus(read.owner.__name__):
            continue
        watched = read.watched()
        if watched is not None:
            found[id(read.owner), read.name] = watched
    return tuple(found.values())


def changed(watched: Iterable[Watched]) -> bool:
    """Tell whether a name stands for another object than it did. Objects that are changed in place are not noticed."""
    try:
        for read, name, value in watched:
            if read(name) is not value:
                return True
    except (AttributeError, ValueError):
        # It is there no longer.
        return True
    return False


def has_static_attribute(value: object, name: str) -> bool:
    """Tell whether an attribute can be read without running code of a property."""
    found = inspect.getattr_static(value, name, MISSING)
    return (
        found is not MISSING
        and not isinstance(found, property)
        or (isinstance(value, types.ModuleType) and hasattr(value, name))
    )


def attribute_path(node: ast.AST) -> tuple[str, ...] | None:
    """Return the names of `a.b.c`, or None for other syntax."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        base = attribute_path(node.value)
        return None if base is None else (*base, node.attr)
    return None


def belongs_to_tilus(module: str | None) -> bool:
    """Tell whether a module is a part of the package, whose version is a part of every cache key."""
    module = module or ""
    return module == "tilus" or (module.startswith("tilus.") and not module.startswith("tilus.ops"))


def is_builtin(value: object) -> bool:
    """Tell whether a value is a function or class of Python itself, or one of tilus."""
    if isinstance(value, types.BuiltinFunctionType):
        return True
    return isinstance(value, (type, types.FunctionType)) and (
        value.__module__ == "builtins" or belongs_to_tilus(value.__module__)
    )
