"""Reading layouts from text, as in ``spatial(8, 4).local(1, 2)``."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from tilus.layout.errors import LayoutError
from tilus.layout.hopper import canonical
from tilus.layout.register import (
    RegisterLayout,
    coalesced,
    column_local,
    column_spatial,
    local,
    replicated,
    spatial,
)
from tilus.layout.shared import (
    SharedLayout,
    column_major,
    padded,
    row_major,
    strided,
    swizzled_row_major,
)
from tilus.layout.swizzle import Swizzle

CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "Swizzle": Swizzle,
    "canonical": canonical,
    "coalesced": coalesced,
    "column_local": column_local,
    "column_major": column_major,
    "column_spatial": column_spatial,
    "local": local,
    "padded": padded,
    "replicated": replicated,
    "row_major": row_major,
    "spatial": spatial,
    "strided": strided,
    "swizzled_row_major": swizzled_row_major,
}

METHODS: dict[type, frozenset[str]] = {
    RegisterLayout: frozenset(
        {
            "column_local",
            "column_spatial",
            "concat",
            "expand",
            "flatten",
            "left_divide",
            "local",
            "reduce",
            "replicated",
            "reshape",
            "slice",
            "spatial",
            "squeeze",
            "transpose",
            "unsqueeze",
            "with_replication",
        }
    ),
    SharedLayout: frozenset({"prepend", "reshape", "squeeze", "transpose", "unsqueeze", "with_swizzle"}),
}

# No layout of interest is larger, and text should not be able to ask for unbounded work.
MAX_INTEGER = 1 << 24
MAX_LENGTH = 4096


def parse(text: str) -> RegisterLayout | SharedLayout:
    """Return the layout that an expression describes.

    Parameters
    ----------
    text : str
        Calls of the constructors of this package and of the layouts' methods, ``*`` and ``/`` between
        layouts, integers, and tuples of them. Nothing else is evaluated.

    Raises
    ------
    LayoutError
        With the place in the text, shown by a caret.
    """
    if len(text) > MAX_LENGTH:
        raise LayoutError(f"a layout expression has at most {MAX_LENGTH} characters, found {len(text)}")
    line = " ".join(text.splitlines()).strip()
    try:
        tree = ast.parse(line, mode="eval")
    except SyntaxError as error:
        raise LayoutError(
            _located(line, (error.offset or 1) - 1, f"not an expression: {error.msg}")
        ) from None
    except (RecursionError, MemoryError, ValueError):
        raise LayoutError("the layout expression is nested too deeply or is not text") from None
    reader = _Reader(line)
    value = reader.value(tree.body)
    if not isinstance(value, (RegisterLayout, SharedLayout)):
        raise reader.error(tree.body, f"expected a layout, found {_kind(value)}")
    return value


class _Reader:
    """Evaluates a syntax tree of the few kinds of nodes that a layout expression has."""

    def __init__(self, text: str) -> None:
        self.text = text

    def error(self, node: ast.expr, message: str) -> LayoutError:
        column = node.col_offset
        if isinstance(node, ast.Attribute) and node.end_col_offset is not None:
            column = node.end_col_offset - len(node.attr.encode())
        elif isinstance(node, ast.BinOp):
            column = node.right.col_offset
        # The syntax tree counts bytes of UTF-8, the caret characters.
        return LayoutError(_located(self.text, len(self.text.encode()[:column].decode()), message))

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return self.constant(node)
        if isinstance(node, (ast.Tuple, ast.List)):
            return tuple(self.value(item) for item in node.elts)
        if isinstance(node, ast.BinOp):
            return self.binary(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Name):
            raise self.error(
                node,
                f"{node.id!r} is not called; write {node.id}(...)"
                if node.id in CONSTRUCTORS
                else self.unknown(node.id),
            )
        raise self.error(
            node,
            "expected calls of layout constructors, * and / between layouts, integers and tuples, "
            f"found {type(node).__name__}",
        )

    def constant(self, node: ast.Constant) -> Any:
        if node.value is None or isinstance(node.value, (bool, str)):
            return node.value
        if isinstance(node.value, int) and node.value <= MAX_INTEGER:
            return node.value
        raise self.error(node, f"expected an integer up to {MAX_INTEGER}, found {node.value!r}")

    def binary(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        multiplies = isinstance(node.op, ast.Mult)
        if not multiplies and not isinstance(node.op, ast.Div):
            raise self.error(node, f"layouts have * and /, but not {type(node.op).__name__}")
        try:
            if isinstance(left, RegisterLayout) and isinstance(right, RegisterLayout):
                return left * right if multiplies else left / right
            if isinstance(left, SharedLayout) and isinstance(right, SharedLayout) and multiplies:
                return left * right
        except LayoutError as error:
            raise self.error(node, str(error)) from None
        sign = "*" if multiplies else "/"
        raise self.error(node, f"cannot compute {_kind(left)} {sign} {_kind(right)}")

    def call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name):
            if node.func.id not in CONSTRUCTORS:
                raise self.error(node.func, self.unknown(node.func.id))
            name, function = node.func.id, CONSTRUCTORS[node.func.id]
        elif isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            name = node.func.attr
            allowed = METHODS.get(type(owner), frozenset())
            if name not in allowed:
                known = ", ".join(sorted(allowed)) or "none"
                raise self.error(node.func, f"{_kind(owner)} has no operation {name!r}; it has: {known}")
            function = getattr(owner, name)
        else:
            raise self.error(node, "expected the name of a layout constructor before the parenthesis")
        arguments = [self.value(argument) for argument in node.args]
        keywords = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.error(keyword.value, "'**' is not understood in a layout expression")
            keywords[keyword.arg] = self.value(keyword.value)
        try:
            return function(*arguments, **keywords)
        except LayoutError as error:
            raise self.error(node.func, str(error)) from None
        except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError):
            raise self.error(node.func, f"{name} does not take these arguments") from None

    def unknown(self, name: str) -> str:
        return f"unknown layout constructor {name!r}; there are: {', '.join(sorted(CONSTRUCTORS))}"


def _kind(value: object) -> str:
    if isinstance(value, RegisterLayout):
        return "a register layout"
    if isinstance(value, SharedLayout):
        return "a shared layout"
    return f"{value!r}"


def _located(text: str, column: int, message: str) -> str:
    return f"column {column + 1}: {message}\n    {text}\n    {' ' * column}^"
