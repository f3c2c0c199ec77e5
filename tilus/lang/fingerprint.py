"""A stable text of all that a kernel's meaning depends on in its users' Python.

It holds the source of the kernel, of the functions that it calls, and the values of the global constants that it
reads, so that a cache keyed by it is never stale.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

from tilus.dtypes import DType
from tilus.lang.frontend.function import MISSING, FunctionSource
from tilus.lang.inline import InlineFunction
from tilus.layout import RegisterLayout, SharedLayout

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice)


class Fingerprint:
    """Collects the text.

    Parameters
    ----------
    home : str
        The module of the kernel: functions of installed packages other than its own count by name and version.
    """

    def __init__(self, home: str = "") -> None:
        self.home = home.partition(".")[0]
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
        return self.instance(value)

    def instance(self, value: Any) -> str:
        """Return the text of an object by its class and state."""
        cls = type(value)
        if isinstance(value, functools.partial):
            return f"partial:{self.text((value.func, value.args, value.keywords))}"
        if hasattr(value, "tobytes") and hasattr(value, "dtype"):
            # The text of a large array is shortened.
            return f"array:{value.dtype}:{getattr(value, 'shape', ())}:{hashlib.sha256(value.tobytes()).hexdigest()}"
        if dataclasses.is_dataclass(value):
            state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return f"instance:{self.text(cls)}:{self.text(state)}"
        if getattr(value, "__dict__", None):
            return f"instance:{self.text(cls)}:{self.text(dict(vars(value)))}"
        name = getattr(value, "__qualname__", None)
        if name is not None:
            return f"{getattr(value, '__module__', cls.__module__)}.{name}"
        return f"{cls.__module__}.{cls.__qualname__}:{value!r}"

    def python_function(self, function: types.FunctionType) -> str:
        """Return the text of a Python function and of what it reads."""
        foreign = self.foreign(function)
        if foreign is not None:
            return foreign
        try:
            return self.function(FunctionSource.of(function))
        except Exception:
            code = function.__code__
            return f"code:{code.co_code.hex()}:{code.co_consts!r}:{code.co_names!r}"

    def python_class(self, cls: type) -> str:
        """Return the text of a class."""
        name = f"class:{cls.__module__}.{cls.__qualname__}"
        foreign = self.foreign(cls)
        if foreign is not None:
            return foreign
        try:
            return f"{name}:{inspect.getsource(cls)}"
        except (OSError, TypeError):
            return name

    def foreign(self, value: Any) -> str | None:
        """Return the name and version of what an installed package or Python defines, None for the user's own."""
        if belongs_to_tilus(value):
            return f"{value.__module__}.{value.__qualname__}"
        module = sys.modules.get(value.__module__)
        top = value.__module__.partition(".")[0]
        file = getattr(module, "__file__", None)
        if module is None or top == self.home:
            return None
        if file is None or any(Path(file).is_relative_to(folder) for folder in installed_folders()):
            version = getattr(sys.modules.get(top), "__version__", "")
            return f"{value.__module__}.{value.__qualname__}:{version}"
        return None

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


@functools.cache
def installed_folders() -> tuple[str, ...]:
    """Return the folders of Python's own modules and of installed packages."""
    paths = sysconfig.get_paths()
    return tuple({paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


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
            value = source.outer(path[0])
            for used in range(1, len(path) + 1):
                # The module is no value; what is set in a class or an object is, besides its source.
                if value is not MISSING and not isinstance(value, types.ModuleType) and not is_builtin(value):
                    found[".".join(path[:used])] = value
                if used == len(path) or not has_static_attribute(value, path[used]):
                    break
                value = getattr(value, path[used])
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(source.tree)
    return sorted(found.items())


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


def is_builtin(value: object) -> bool:
    """Tell whether a value is a function or class of Python itself, or one of tilus."""
    if isinstance(value, types.BuiltinFunctionType):
        return True
    return isinstance(value, (type, types.FunctionType)) and (
        value.__module__ == "builtins" or belongs_to_tilus(value)
    )
