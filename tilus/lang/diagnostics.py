"""Words for error messages: what a value is, the nearest known name, and where a piece of syntax stands."""

from __future__ import annotations

import ast
import difflib
import types
from collections.abc import Iterable

from tilus.dtypes import DType
from tilus.errors import Location
from tilus.ir import BarrierType, GlobalType, PointerType, RegisterType, ScalarType, SharedType, Type, Value
from tilus.layout import RegisterLayout, SharedLayout


def with_article(dtype: DType) -> str:
    """Write a dtype's name after `a` or `an`."""
    return f"an {dtype}" if dtype.name[0] in "aeino" else f"a {dtype}"


def describe_type(type: Type) -> str:
    """Say what a run-time value of a type is."""
    if isinstance(type, ScalarType):
        return f"{with_article(type.dtype)} scalar"
    if isinstance(type, RegisterType):
        return f"{with_article(type.dtype)} tile of shape {list(type.shape)}"
    if isinstance(type, SharedType):
        where = " of another block" if type.remote else ""
        return f"a shared {type.dtype} tensor{where} of shape {list(type.shape)}"
    if isinstance(type, GlobalType):
        return f"a global {type.dtype} tensor of rank {type.rank}"
    if isinstance(type, PointerType):
        return f"a pointer to {type.dtype}"
    assert isinstance(type, BarrierType)
    return f"an array of {type.count} barriers"


def describe(value: object) -> str:
    """Say what a value is, known at run time or at compile time."""
    if isinstance(value, Value):
        return describe_type(value.type)
    if isinstance(value, DType):
        return f"the dtype {value}"
    if isinstance(value, (RegisterLayout, SharedLayout)):
        return f"the layout {value}"
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, (int, float, complex)):
        return f"the {type(value).__name__} {value}"
    if isinstance(value, str):
        return f"the str {value!r}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    name = getattr(value, "__name__", None)
    if callable(value) and isinstance(name, str):
        return f"the function {name}" if not isinstance(value, type) else f"the class {name}"
    return f"a value of type {type(value).__name__}"


def shape_text(shape: Iterable[int]) -> str:
    """Write a shape."""
    return str(list(shape))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is nearest to a misspelt one, if any is near."""
    names = sorted({k for k in known if not k.startswith("_")})
    for candidate in names:
        if candidate.lower() == name.lower():
            return candidate
    # One or two letters are near to anything.
    cutoff = 0.6 if len(name) > 2 else 1.0
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return close[0] if close else None


def character_column(line: str, offset: int) -> int:
    """Turn the UTF-8 offset that the syntax tree has into a column that counts characters."""
    if line.isascii():
        return offset
    return len(line.encode()[:offset].decode(errors="ignore"))


def node_location(
    node: ast.AST, file: str, lines: list[str], first_line: int, caller: Location | None
) -> Location:
    """Return where a node of a syntax tree stands; `lines` start at `first_line` of the file."""
    line = getattr(node, "lineno", first_line)
    text = lines[line - first_line] if 0 <= line - first_line < len(lines) else ""
    start = character_column(text, getattr(node, "col_offset", 0))
    end_offset = getattr(node, "end_col_offset", None)
    end: int | None
    if end_offset is None:
        end = None
    elif getattr(node, "end_lineno", line) != line:
        end = len(text.rstrip())
    else:
        end = character_column(text, end_offset)
    return Location(file, line, start, end, caller)
