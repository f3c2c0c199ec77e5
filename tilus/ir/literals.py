"""The text of constants: numbers, strings, dtypes, tuples and layouts, as the textual IR writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tilus.dtypes import DType
from tilus.layout import Digit, RegisterLayout, SharedLayout

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def format_list(items: Iterable[object]) -> str:
    """Return items as text in brackets."""
    return "[" + ", ".join(map(str, items)) + "]"


def format_digits(digits: tuple[Digit, ...]) -> str:
    """Return the digits of a layout: `size@dim:stride`, or `size@_` for a replication."""
    return format_list(
        f"{d.size}@_" if d.dim is None else f"{d.size}@{d.dim}:{d.stride}" for d in digits
    )  # fmt: skip


def format_layout(layout: RegisterLayout | SharedLayout) -> str:
    """Return a layout as text that the parser reads back."""
    if isinstance(layout, RegisterLayout):
        spatial, local = format_digits(layout.spatial_digits), format_digits(layout.local_digits)
        return f"#reg({format_list(layout.shape)}, {spatial}, {local})"
    text = f"{format_list(layout.shape)}, {format_digits(layout.digits)}"
    swizzle = layout.swizzle
    if swizzle is not None:
        text += f", swizzle({swizzle.bits}, {swizzle.base}, {swizzle.shift})"
    if layout.size != SharedLayout(layout.shape, layout.digits, swizzle).size:
        text += f", size={layout.size}"
    return f"#shared({text})"


def format_literal(value: Any) -> str:
    """Return an attribute's value as text that the parser reads back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, DType):
        return value.short
    if isinstance(value, tuple):
        return format_list(map(format_literal, value))
    if isinstance(value, (RegisterLayout, SharedLayout)):
        return format_layout(value)
    raise TypeError(
        f"an attribute holds a number, string, dtype, layout or tuple, not {type(value).__name__}"
    )
