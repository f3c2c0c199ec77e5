"""A stable text of all that a kernel's meaning depends on in its users' Python.

It holds the source of the kernel, of the functions that it calls, and the values of the global constants that it
reads, so that a cache keyed by it is never stale.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import types
from typing import Any

from tilus.dtypes import DType
from tilus.lang.frontend.function import MISSING, FunctionSource
from tilus.lang.inline import InlineFunction
from tilus.layout import RegisterLayout, SharedLayout

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice)


class Fingerprint:
    """Collects the text."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen: dict[int, int] = {}
        self.alive: list[object] = []

    def digest(self) -> str:
        """Return the hash of the text so far."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def add(self, label: str, value: object) -> None:
        """Add a value under a label."""
        self.lines.append(f"{label} = {self.text(value)}")

    def text(self, value: object) -> str:
        """Return a text that is equal for equal values, in every process."""
        if isinstance(value, PLAIN):
            return f"{type(value).__name__}:{value!r}"
        if isinstance(value, (DType, RegisterLayout, SharedLayout)):
            return f"{type(value).__name__}:{value}:{dataclasses.astuple(value)!r}"
        if isinstance(value, types.ModuleType):
            return f"module:{value.__name__}"
        # What is met again, such as a function that calls itself, is named by its number.
        if id(value) in self.seen:
            return f"seen:{self.seen[id(value)]}"
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}:[{', '.join(map(self.text, value))}]"
        if isinstance(value, dict):
            return "dict:{" + ", ".join(f"{self.text(k)}: {self.text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, (set, frozenset)):
            return "set:{" + ", ".join(sorted(map(self.text, value))) + "}"
        if isinstance(value, InlineFunction):
            return self.function(value.source)
        if isinstance(value, types.FunctionType):
            return self.python_function(value)
        if isinstance(value, types.MethodType):
            return f"method:{self.text(value.__func__)}:{self.text(value.__self__)}"
        if isinstance(value, type):
            return self.python_class(value)
        module = type(value).__module__
        if dataclasses.is_dataclass(value):
            state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return f"{module}.{type(value).__qualname__}:{self.text(state)}"
        if getattr(value, "__dict__", None) and not callable(value):
            return f"{module}.{type(value).__qualname__}:{self.text(dict(vars(value)))}"
        name = getattr(value, "__qualname__", None)
        if name is not None:
            return f"{getattr(value, '__module__', module)}.{name}"
        return f"{module}.{type(value).__qualname__}:{value!r}"

    def python_function(self, function: types.FunctionType) -> str:
        """Return the text of a Python function and of what it reads."""
        if belongs_to_tilus(function):
            return f"{function.__module__}.{function.__qualname__}"
        try:
            return self.function(FunctionSource.of(function))
        except Exception:
            code = function.__code__
            return f"code:{code.co_code.hex()}:{code.co_consts!r}:{code.co_names!r}"

    def python_class(self, cls: type) -> str:
        """Return the text of a class."""
        name = f"class:{cls.__module__}.{cls.__qualname__}"
        if belongs_to_tilus(cls) or cls.__module__ == "builtins":
            return name
        try:
            return f"{name}:{inspect.getsource(cls)}"
        except (OSError, TypeError):
            return name

    def function(self, source: FunctionSource) -> str:
        """Return the text of a function's source and of the globals that it reads."""
        self.seen.setdefault(id(source.function), len(self.seen))
        parts = [f"function:{source.file}:{source.first_line}:{source.text}"]
        for parameter in source.signature.parameters.values():
            if parameter.default is not parameter.empty:
                parts.append(f"{parameter.name}={self.text(parameter.default)}")
        for path, value in globals_read(source):
            parts.append(f"{path}={self.text(value)}")
        return "\n".join(parts)


def belongs_to_tilus(value: Any) -> bool:
    """Tell whether something is a part of the package, whose version is a part of every cache key."""
    module = getattr(value, "__module__", None) or ""
    return module == "tilus" or (module.startswith("tilus.") and not module.startswith("tilus.ops"))


def globals_read(source: FunctionSource) -> list[tuple[str, Any]]:
    """Return the values from outside that a function reads, through modules where it names them by attributes."""
    found: dict[str, Any] = {}

    def visit(node: ast.AST) -> None:
        path = attribute_path(node)
        if path is not None and path[0] not in source.local_names:
            value, used = source.outer(path[0]), 1
            while used < len(path) and isinstance(value, types.ModuleType) and hasattr(value, path[used]):
                value, used = getattr(value, path[used]), used + 1
            if value is not MISSING and not is_builtin(value):
                found[".".join(path[:used])] = value
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(source.tree)
    return sorted(found.items())


def attribute_path(node: ast.AST) -> tuple[str, ...] | None:
    """Return the names of `a.b.c`, or None for other syntax."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        base = attribute_path(node.value)
        return None if base is None else (*base, node.attr)
    return None


def is_builtin(value: object) -> bool:
    """Tell whether a value is a function or class of Python itself, or one of tilus."""
    if isinstance(value, types.BuiltinFunctionType):
        return True
    return isinstance(value, (type, types.FunctionType)) and (
        value.__module__ == "builtins" or belongs_to_tilus(value)
    )
