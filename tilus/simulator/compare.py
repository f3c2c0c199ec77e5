"""Comparisons: ``setp`` and ``set`` for integers, floats, halves and packed pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import rounding
from .decoder import Decoder
from .floating import join_pair, split_pair
from .operations import Map, Operation
from .types import TYPES, ScalarType

PRED = TYPES["pred"]


def _ordered(function: Any) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(a, b) & ~(np.isnan(a) | np.isnan(b))


def _unordered(function: Any) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


_INTEGER: dict[str, Any] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
# NumPy's comparisons are false for NaN except not_equal, which PTX's ordered `ne` is not.
_FLOAT: dict[str, Any] = {
    "eq": np.equal,
    "ne": _ordered(np.not_equal),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": _unordered(np.equal),
    "neu": np.not_equal,
    "ltu": _unordered(np.less),
    "leu": _unordered(np.less_equal),
    "gtu": _unordered(np.greater),
    "geu": _unordered(np.greater_equal),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
_BOOLEAN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_COMPARED = (
    "b16",
    "b32",
    "b64",
    "u16",
    "u32",
    "u64",
    "s16",
    "s32",
    "s64",
    "f16",
    "f32",
    "f64",
    "bf16",
    "f16x2",
    "bf16x2",
)


def comparison(d: Decoder, operator: str, type: ScalarType, ftz: bool) -> Callable[[Any, Any], Any]:
    """The comparison of two values of a type; packed types give ``[..., 2]`` flags."""
    floating = type.name in ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2")
    table = _FLOAT if floating else _INTEGER
    if operator not in table:
        raise d.fail(f"comparison .{operator} is not defined for .{type.name}")
    function = table[operator]
    if type.name == "bf16":
        return lambda a, b: function(rounding.bfloat_to_single(a), rounding.bfloat_to_single(b))
    if type.name == "f16x2":
        return lambda a, b: function(split_pair(a, np.float16), split_pair(b, np.float16))
    if type.name == "bf16x2":
        return lambda a, b: function(
            rounding.bfloat_to_single(split_pair(a, np.uint16)),
            rounding.bfloat_to_single(split_pair(b, np.uint16)),
        )
    if ftz and type.name == "f32":
        return lambda a, b: function(rounding.flush(a), rounding.flush(b))
    return function


def _operators(d: Decoder) -> tuple[str, str | None, bool]:
    operator = d.take(*_FLOAT, *_INTEGER)
    boolean = d.take(*_BOOLEAN)
    if operator is None:
        raise d.fail("no comparison operator")
    return operator, boolean, d.flag("ftz")


def _decode_setp(d: Decoder) -> Operation:
    type = d.type(*_COMPARED)
    operator, boolean, ftz = _operators(d)
    compare = comparison(d, operator, type, ftz)
    d.count(3, 4)
    first, second = d.pair(d.operands[0])
    sources = [d.source(d.operands[1], type), d.source(d.operands[2], type)]
    targets = [d.target(first, PRED)]
    if second is not None:
        targets.append(d.target(second, PRED))
    combine = _BOOLEAN[boolean] if boolean else None
    if combine is not None:
        sources.append(d.predicate(d.operands[3]))
    packed = type.name in ("f16x2", "bf16x2")

    def apply(a: Any, b: Any, c: Any = None) -> Any:
        flags = compare(a, b)
        if packed:
            low, high = flags[..., 0], flags[..., 1]
            if combine is not None:
                low, high = combine(low, c), combine(high, c)
            return (low, high) if second is not None else low
        result = flags if combine is None else combine(flags, c)
        if second is None:
            return result
        other = ~flags if combine is None else combine(~flags, c)
        return result, other

    simple = combine is None and second is None and not packed
    return Map(compare if simple else apply, targets, sources)


def _decode_set(d: Decoder) -> Operation:
    type = d.type(*_COMPARED)
    result = d.type("u16", "s16", "u32", "s32", "f16", "f32", "bf16", "f16x2", "bf16x2")
    operator, boolean, ftz = _operators(d)
    compare = comparison(d, operator, type, ftz)
    d.count(3, 4)
    sources = [d.source(d.operands[1], type), d.source(d.operands[2], type)]
    combine = _BOOLEAN[boolean] if boolean else None
    if combine is not None:
        sources.append(d.predicate(d.operands[3]))
    packed = type.name in ("f16x2", "bf16x2")
    # Set gives 1.0 for float results and all ones for integer results.
    ones: dict[str, Any] = {
        "f32": np.float32(1),
        "f16": np.float16(1),
        "bf16": np.uint16(0x3F80),
        "f16x2": np.uint16(0x3C00),
        "bf16x2": np.uint16(0x3F80),
        "u32": np.uint32(2**32 - 1),
        "s32": np.int32(-1),
        "u16": np.uint16(2**16 - 1),
        "s16": np.int16(-1),
    }
    one = np.uint16(0xFFFF) if packed and result.name in ("u32", "s32") else ones[result.name]

    def apply(a: Any, b: Any, c: Any = None) -> Any:
        flags = compare(a, b)
        if combine is not None:
            flags = combine(flags, np.asarray(c)[..., None] if packed else c)
        values = np.where(flags, one, one.dtype.type(0))
        return join_pair(values) if packed else values

    return Map(apply, [d.target(d.operands[0], TYPES["b32"] if packed else result)], sources)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"setp": _decode_setp, "set": _decode_set}
