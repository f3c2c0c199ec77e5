"""A stable text of all that a kernel's meaning depends on in its users' Python.

It holds the source of the kernel, of the functions that it calls, and the values of the global constants that it
reads, so that a cache keyed by it is never stale.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilus.dtypes import DType
from tilus.lang.frontend.function import FunctionSource
from tilus.lang.inline import InlineFunction
from tilus.lang.reads import Read, belongs_to_tilus, outside_reads
from tilus.layout import RegisterLayout, SharedLayout

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice)

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Fingerprint:
    """Collects the text.

    Parameters
    ----------
    home : str
        The module of the kernel: functions of installed packages other than its own count by name and version.

    Attributes
    ----------
    reads : list of Read
        What the users' functions among those that were added read from outside.
    """

    def __init__(self, home: str = "") -> None:
        self.home = home.partition(".")[0]
        self.lines: list[str] = []
        self.seen: dict[int, int] = {}
        self.alive: list[object] = []
        self.reads: list[Read] = []

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
        if isinstance(value, (dict, types.MappingProxyType)):
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
        state = fields(value)
        if state:
            return f"instance:{self.text(cls)}:{self.text(state)}"
        name = getattr(value, "__qualname__", None)
        if name is not None:
            return f"{getattr(value, '__module__', cls.__module__)}.{name}"
        return f"instance:{self.text(cls)}:{self.stored(value)}"

    def stored(self, value: Any) -> str:
        """Return the text of what pickle would store of an object; of what it does not take, what Python shows.

        What Python shows of a tensor of torch is rounded.
        """
        try:
            if hasattr(value, "untyped_storage"):
                codes = value.detach().cpu().reshape(-1).view(sys.modules["torch"].uint8).numpy()
                return self.text((value.dtype, tuple(value.shape), codes))
            reduce = copyreg.dispatch_table.get(type(value))
            parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception:
            # Addresses are others in every process.
            return ADDRESS.sub("", repr(value))
        if isinstance(parts, str):
            return parts
        return self.text([list(part) if isinstance(part, Iterator) else part for part in parts])

    def python_function(self, function: types.FunctionType) -> str:
        """Return the text of a Python function and of what it reads."""
        foreign = self.foreign(function)
        if foreign is not None:
            return foreign
        try:
            return self.function(FunctionSource.of(function))
        except Exception:
            return self.sourceless(function)

    def sourceless(self, function: types.FunctionType) -> str:
        """Return the text of a function whose source cannot be read: of its code, and of what that can read."""
        known = function.__globals__
        names = {name: known[name] for name in all_names(function.__code__) if name in known}
        cells = [_contents(cell) for cell in function.__closure__ or ()]
        state = [names, cells, function.__defaults__, function.__kwdefaults__]
        return f"code:{self.code(function.__code__)}:{self.text(state)}"

    def code(self, code: types.CodeType) -> str:
        """Return the text of compiled code and of the functions inside of it."""
        constants = [self.code(v) if isinstance(v, types.CodeType) else self.text(v) for v in code.co_consts]
        return f"{code.co_code.hex()}:{code.co_names!r}:{constants!r}"

    def python_class(self, cls: type) -> str:
        """Return the text of a class: of its source and bases, of what it holds, and of what its methods read."""
        name = f"class:{cls.__module__}.{cls.__qualname__}"
        foreign = self.foreign(cls)
        if foreign is not None:
            return foreign
        source = _source(cls)
        held: dict[str, object] = {}
        for attribute, value in vars(cls).items():
            method = method_of(value)
            # Methods without source in a class that has one are made by a decorator, from what the class says.
            if method is not None and (not source or _source(method)):
                held[attribute] = method
            elif method is None and not hasattr(type(value), "__get__") and not is_special(attribute):
                held[attribute] = value
        return f"{name}:{source}:{self.text([base for base in cls.__bases__ if base is not object])}:{self.text(held)}"

    def foreign(self, value: Any) -> str | None:
        """Return the name and version of what an installed package or Python defines, None for the user's own."""
        home = value.__module__ or ""
        if belongs_to_tilus(home):
            return f"{home}.{value.__qualname__}"
        module = sys.modules.get(home)
        top = home.partition(".")[0]
        if module is None or top == self.home:
            return None
        # What has no file is a notebook or made by a program, and the user's own.
        file = getattr(module, "__file__", None)
        installed = file is not None and any(Path(file).is_relative_to(f) for f in installed_folders())
        if installed or top in sys.stdlib_module_names:
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
        reads = outside_reads(source)
        if not (source.function.__module__ or "").startswith("tilus."):
            self.reads += reads
        for read in reads:
            parts.append(f"{read.path}={self.text(read.value)}")
        return "\n".join(parts)


@functools.cache
def installed_folders() -> tuple[str, ...]:
    """Return the folders of Python's own modules and of installed packages."""
    paths = sysconfig.get_paths()
    return tuple({paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def fields(value: object) -> dict[str, object]:
    """Return what an object holds by name: in its dictionary and in the slots of its classes."""
    held = dict(getattr(value, "__dict__", None) or {})
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            attribute = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            if attribute not in ("__dict__", "__weakref__") and hasattr(value, attribute):
                held[attribute] = getattr(value, attribute)
    return held


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return ""


def _contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def all_names(code: types.CodeType) -> list[str]:
    """Return the names that code, and the functions inside of it, read from outside or as attributes."""
    names = set(code.co_names)
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            names.update(all_names(value))
    return sorted(names)


def method_of(value: object) -> types.FunctionType | None:
    """Return the function of a method, also of a static method, a class method or a property; None for a value."""
    for found in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "func"))):
        if isinstance(found, types.FunctionType):
            return found
    return None


def is_special(name: str) -> bool:
    """Tell whether a name is one that Python gives a meaning, such as `__doc__`."""
    return name.startswith("__") and name.endswith("__")
