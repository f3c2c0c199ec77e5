"""Integer arithmetic: add to dp4a, with carry, saturation, wide and high halves, and packed 16-bit pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import Decoder
from .operands import Register
from .operations import Map, Operation
from .types import TYPES, ScalarType

_INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
_PAIRS = ("u16x2", "s16x2")
U32 = TYPES["u32"]


def pair_map(function: Callable[..., Any], signed: bool) -> Callable[..., Any]:
    """Apply a function of 16-bit integers to both halves of 32-bit words."""
    dtype = np.int16 if signed else np.uint16

    def apply(*words: Any) -> Any:
        words = tuple(np.ascontiguousarray(w).view(dtype).reshape((*np.shape(w), 2)) for w in words)
        result = np.ascontiguousarray(function(*np.broadcast_arrays(*words)))
        return result.view(np.uint32)[..., 0]

    return apply


def saturating(function: Callable[..., Any]) -> Callable[..., Any]:
    """A signed 32-bit operation computed in 64 bits and clamped."""

    def apply(*values: Any) -> Any:
        wide = function(*[np.asarray(v).astype(np.int64) for v in values])
        return np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)

    return apply


def high(a: Any, b: Any) -> Any:
    """The upper half of a full product."""
    dtype = np.asarray(a).dtype if np.ndim(a) else np.asarray(b).dtype
    bits = dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")
        return (np.multiply(a, b, dtype=wide) >> wide.type(bits)).astype(dtype)
    unsigned = _unsigned_high(np.asarray(a).astype(np.uint64), np.asarray(b).astype(np.uint64))
    if dtype.kind == "u":
        return unsigned
    result = unsigned.view(np.int64) - np.where(np.asarray(a) < 0, b, 0) - np.where(np.asarray(b) < 0, a, 0)
    return result.astype(np.int64)


def _unsigned_high(a: Any, b: Any) -> Any:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    al, ah, bl, bh = a & low, a >> half, b & low, b >> half
    middle = ah * bl + ((al * bl) >> half)
    return ah * bh + (middle >> half) + ((al * bh + (middle & low)) >> half)


def divide(a: Any, b: Any) -> Any:
    """Division rounding towards zero; by zero gives all ones, as the hardware's sequence does."""
    if np.asarray(a).dtype.kind == "u":
        quotient = np.floor_divide(a, b)
    else:
        quotient = np.floor_divide(a - np.fmod(a, b), b)
    return np.where(np.equal(b, 0), np.asarray(-1).astype(quotient.dtype), quotient)


def _arithmetic(function: Any) -> Callable[[Decoder], Operation]:
    def decode(d: Decoder) -> Operation:
        type = d.type(*_INTEGERS, *_PAIRS)
        carry = d.flag("cc")
        saturate = d.flag("sat")
        d.count(3)
        if carry:
            return _with_carry(d, type, d.name, False, True)
        if type.name in _PAIRS:
            operation: Any = pair_map(function, type.name == "s16x2")
        else:
            operation = saturating(function) if saturate else function
        a, b = d.source(d.operands[1], type), d.source(d.operands[2], type)
        return Map(operation, [d.target(d.operands[0], type)], [a, b])

    return decode


def _with_carry(d: Decoder, type: ScalarType, name: str, carry_in: bool, carry_out: bool) -> Operation:
    """add, sub, mad with the condition code; subtraction adds the complement, CF is then the borrow's inverse."""
    bits = type.bits
    unsigned = TYPES[f"u{bits}"]
    word = unsigned.dtype.type
    flag = Register(1, d.scope.carry(), np.dtype(np.bool_))
    subtract = name.startswith("sub")
    sources = [d.source(o, unsigned) for o in d.operands[1:3]]
    targets: list[Any] = [d.target(d.operands[0], unsigned)]
    if carry_in:
        sources.append(flag)
    if carry_out:
        targets.append(flag)

    def apply(a: Any, b: Any, carry: Any = None) -> Any:
        a, b = np.asarray(a), np.asarray(b)
        extra = np.asarray(0 if carry is None else carry).astype(word)
        if subtract:
            first = a - b
            result = first - extra
            out = (a < b) | (first < extra)
        else:
            first = a + b
            result = first + extra
            out = (first < a) | (result < first)
        return (result, out) if carry_out else result

    return Map(apply, targets, sources)


def _decode_addc(d: Decoder) -> Operation:
    type = d.type("u32", "s32", "u64", "s64")
    carry = d.flag("cc")
    d.count(3)
    return _with_carry(d, type, d.name, True, carry)


def _decode_mul(d: Decoder) -> Operation:
    type = d.type(*_INTEGERS)
    part = d.take("lo", "hi", "wide")
    if part is None:
        raise d.fail("an integer multiplication needs .lo, .hi or .wide")
    d.count(3)
    a, b = d.source(d.operands[1], type), d.source(d.operands[2], type)
    if part == "wide":
        wide = wide_of(d, type)
        return Map(lambda x, y: np.multiply(x, y, dtype=wide.dtype), [d.target(d.operands[0], wide)], [a, b])
    return Map(np.multiply if part == "lo" else high, [d.target(d.operands[0], type)], [a, b])


def wide_of(d: Decoder, type: ScalarType) -> ScalarType:
    """The type of twice the width."""
    if type.bits > 32:
        raise d.fail(".wide is for 16- and 32-bit types")
    return TYPES[f"{type.kind}{type.bits * 2}"]


def _decode_mad(d: Decoder) -> Operation:
    type = d.type(*_INTEGERS)
    part = d.take("lo", "hi", "wide")
    if part is None:
        raise d.fail("an integer mad needs .lo, .hi or .wide")
    saturate = d.flag("sat")
    carry_out, carry_in = d.flag("cc"), d.name == "madc"
    d.count(4)
    a, b = d.source(d.operands[1], type), d.source(d.operands[2], type)
    if part == "wide":
        wide = wide_of(d, type)

        def widened(x: Any, y: Any, z: Any) -> Any:
            return np.multiply(x, y, dtype=wide.dtype) + z

        return Map(widened, [d.target(d.operands[0], wide)], [a, b, d.source(d.operands[3], wide)])
    product: Any = np.multiply if part == "lo" else high
    c = d.source(d.operands[3], type)
    if carry_in or carry_out:
        return _mad_carry(d, type, product, carry_in, carry_out, [a, b, c])
    if saturate:

        def saturated(x: Any, y: Any, z: Any) -> Any:
            total = high(x, y).astype(np.int64) + z
            return np.clip(total, -(2**31), 2**31 - 1).astype(np.int32)

        return Map(saturated, [d.target(d.operands[0], type)], [a, b, c])
    return Map(lambda x, y, z: product(x, y) + z, [d.target(d.operands[0], type)], [a, b, c])


def _mad_carry(
    d: Decoder, type: ScalarType, product: Any, carry_in: bool, carry_out: bool, abc: list[Any]
) -> Operation:
    word = np.dtype(f"u{type.bits // 8}")
    flag = Register(1, d.scope.carry(), np.dtype(np.bool_))

    def apply(a: Any, b: Any, c: Any, carry: Any = None) -> Any:
        extra = np.asarray(0 if carry is None else carry).astype(word)
        p = np.asarray(product(a, b)).astype(word)
        first = p + np.asarray(c).astype(word)
        result = first + extra
        out = (first < p) | (result < first)
        return (result, out) if carry_out else result

    targets = [d.target(d.operands[0], TYPES[f"u{type.bits}"])] + ([flag] if carry_out else [])
    return Map(apply, targets, abc + ([flag] if carry_in else []))


def _low24(value: Any, signed: bool) -> Any:
    wide = np.asarray(value).astype(np.int64) & 0xFFFFFF
    return np.where(wide & 0x800000, wide - 0x1000000, wide) if signed else wide


def _decode_24(d: Decoder) -> Operation:
    type = d.type("u32", "s32")
    part = d.take("lo", "hi")
    saturate = d.flag("sat")
    signed = type.kind == "s"
    shift = 16 if part == "hi" else 0

    def apply(a: Any, b: Any, c: Any = 0) -> Any:
        product = (_low24(a, signed) * _low24(b, signed)) >> shift
        if not saturate:
            return (product + c).astype(np.uint32)
        low = (product & 0xFFFFFFFF).astype(np.uint32).view(np.int32).astype(np.int64)
        return np.clip(low + c, -(2**31), 2**31 - 1).astype(np.int32)

    sources = [d.source(o, type) for o in d.operands[1:]]
    target = d.target(d.operands[0], type)
    return Map(lambda *v: np.asarray(apply(*v)).astype(np.int64).astype(type.dtype), [target], sources)


def _decode_div(d: Decoder) -> Operation:
    type = d.type(*_INTEGERS)
    d.count(3)
    return Map(divide, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _remainder(a: Any, b: Any) -> Any:
    return np.where(np.equal(b, 0), a, np.fmod(a, b))


def _decode_rem(d: Decoder) -> Operation:
    type = d.type(*_INTEGERS)
    d.count(3)
    return Map(_remainder, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _decode_abs(d: Decoder) -> Operation:
    type = d.type("s16", "s32", "s64")
    d.count(2)
    return Map(np.abs, [d.target(d.operands[0], type)], [d.source(d.operands[1], type)])


def _decode_neg(d: Decoder) -> Operation:
    type = d.type("s16", "s32", "s64")
    d.count(2)
    return Map(np.negative, [d.target(d.operands[0], type)], [d.source(d.operands[1], type)])


def _decode_minmax(d: Decoder) -> Operation:
    type = d.type(*_INTEGERS, *_PAIRS)
    relu = d.flag("relu")
    d.count(3)
    pick: Any = np.minimum if d.name == "min" else np.maximum
    function = pick
    if relu:

        def function(a: Any, b: Any) -> Any:
            return np.maximum(pick(a, b), np.asarray(a).dtype.type(0))

    if type.name in _PAIRS:
        function = pair_map(function, type.name == "s16x2")
    return Map(function, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _decode_sad(d: Decoder) -> Operation:
    type = d.type(*_INTEGERS)
    d.count(4)

    def apply(a: Any, b: Any, c: Any) -> Any:
        return c + np.where(np.less(a, b), b - a, a - b)

    return Map(apply, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _lanes_of(word: Any, dtype: Any) -> Any:
    word = np.ascontiguousarray(np.asarray(word).astype(np.uint32))
    return word.view(dtype).reshape((*word.shape, 4 // np.dtype(dtype).itemsize)).astype(np.int64)


def _decode_dot(d: Decoder) -> Operation:
    types = [d.mods.pop() for _ in range(2)][::-1]
    if any(t not in ("u32", "s32") for t in types):
        raise d.fail("dp4a and dp2a take .u32 and .s32 types")
    half = d.take("lo", "hi") if d.name == "dp2a" else None
    d.count(4)
    a_type, b_type = (np.int8 if t == "s32" else np.uint8 for t in types)
    a_half = np.int16 if types[0] == "s32" else np.uint16
    signed = "s32" in types

    def apply(a: Any, b: Any, c: Any) -> Any:
        if half is None:
            products = _lanes_of(a, a_type) * _lanes_of(b, b_type)
        else:
            start = 2 if half == "hi" else 0
            products = _lanes_of(a, a_half) * _lanes_of(b, b_type)[..., start : start + 2]
        total = products.sum(axis=-1) + np.asarray(c).astype(np.int64)
        return (total & 0xFFFFFFFF).astype(np.uint32)

    sources = [d.source(d.operands[1], U32), d.source(d.operands[2], U32)]
    sources.append(d.source(d.operands[3], TYPES["s32" if signed else "u32"]))
    return Map(apply, [d.target(d.operands[0], U32)], sources)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "add": _arithmetic(np.add),
    "sub": _arithmetic(np.subtract),
    "addc": _decode_addc,
    "subc": _decode_addc,
    "mul": _decode_mul,
    "mad": _decode_mad,
    "madc": _decode_mad,
    "mul24": _decode_24,
    "mad24": _decode_24,
    "div": _decode_div,
    "rem": _decode_rem,
    "abs": _decode_abs,
    "neg": _decode_neg,
    "min": _decode_minmax,
    "max": _decode_minmax,
    "sad": _decode_sad,
    "dp4a": _decode_dot,
    "dp2a": _decode_dot,
}
