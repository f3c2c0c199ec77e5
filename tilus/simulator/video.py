"""The video instructions: on a byte, half or word of each operand (``vadd``), and on all at once (``vadd4``).

ISA 9.7.18: values are extracted with the sign of their type, operated on, clamped if asked, then combined with the
third operand, to which they are added or compared, or into which they are merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import Decoder
from .operations import Map, Operation
from .syntax import Name, Negated
from .types import TYPES

_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_SELECTOR = re.compile(r"(.+)\.([bh])(\d+)$")
_WORD = TYPES["b32"]


def _selected(d: Decoder, operand: Any) -> tuple[Any, Any]:
    """An operand without its selector, and the selector: bits of a part, and the parts from the lowest on."""
    if isinstance(operand, Name) and not operand.offset and d.scope.register(operand.text) is None:
        match = _SELECTOR.match(operand.text)
        if match is not None and d.scope.register(match[1]) is not None:
            return Name(match[1]), (8 if match[2] == "b" else 16, [int(i) for i in reversed(match[3])])
    return operand, None


def _words(*values: Any) -> list[Any]:
    return [np.atleast_1d(np.asarray(v)).astype(np.int64) & 0xFFFFFFFF for v in values]


def _signed(value: Any, bits: int, signed: bool) -> Any:
    value = value & ((1 << bits) - 1)
    return np.where(value >> (bits - 1) != 0, value - (1 << bits), value) if signed else value


def _clamp(value: Any, bits: int, signed: bool) -> Any:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return np.clip(value, low, high)


def _operate(name: str, how: str | None, a: Any, b: Any) -> Any:
    if name == "vadd":
        return a + b
    if name == "vsub":
        return a - b
    if name == "vavrg":
        total = a + b
        return np.where(total >= 0, (total + 1) >> 1, total >> 1)
    if name == "vabsdiff":
        return np.abs(a - b)
    if name == "vmin":
        return np.minimum(a, b)
    if name == "vmax":
        return np.maximum(a, b)
    if name in ("vshl", "vshr"):
        by = b & 31 if how == "wrap" else np.minimum(b, 32)
        if name == "vshr":
            return a >> by
        # A shift by 32 leaves no low bits; it must only stay beyond all ranges that it may be clamped to.
        return np.where(by == 32, np.clip(a, -(1 << 30), 1 << 30), a) << by
    return _COMPARISONS[how or "eq"](a, b).astype(np.int64)


def _scalar(name: str) -> Callable[[Decoder], Operation]:
    """``vadd`` and its like on one part of each operand."""

    def decode(d: Decoder) -> Operation:
        how = d.take(*_COMPARISONS) if name == "vset" else None
        if name in ("vshl", "vshr"):
            how = d.take("clamp", "wrap")
        saturate = d.flag("sat")
        types = _types(d, 2 if name == "vset" else 3)
        second = d.take("add", "min", "max")
        d.count(3 if second is None else 4, 4)
        operands = [_selected(d, operand) for operand in d.operands]
        merge = operands[0][1]
        if (len(operands) == 4) != (second is not None or merge is not None) or (second and merge):
            raise d.fail("the third source is for .add, .min or .max, or for a part of the destination")
        signed_a, signed_b = types[-2] == "s32", types[-1] == "s32"
        signed_d = name != "vset" and types[0] == "s32"

        def part(word: Any, selector: Any, signed: bool) -> Any:
            bits, parts = selector or (32, [0])
            return _signed(word >> (bits * parts[0]), bits, signed)

        def apply(a: Any, b: Any, c: Any = 0) -> Any:
            a, b, c = _words(a, b, c)
            value = _operate(name, how, part(a, operands[1][1], signed_a), part(b, operands[2][1], signed_b))
            if saturate:
                value = _clamp(value, merge[0] if merge else 32, signed_d)
            if second is not None:
                third = _signed(c, 32, signed_d)
                value = {"add": np.add, "min": np.minimum, "max": np.maximum}[second](value, third)
            elif merge is not None:
                mask = (1 << merge[0]) - 1
                shift = merge[0] * merge[1][0]
                value = ((value & mask) << shift) | (c & ~(mask << shift))
            return (value & 0xFFFFFFFF).astype(np.uint32)

        return _map(d, apply, [operand for operand, _ in operands])

    return decode


def _types(d: Decoder, count: int) -> list[str]:
    types = [m for m in d.mods if m in ("u32", "s32")]
    if len(types) != count:
        raise d.fail(f"{len(types)} types where {count} are expected")
    d.mods[:] = [m for m in d.mods if m not in ("u32", "s32")]
    return types


def _map(d: Decoder, function: Callable[..., Any], operands: list[Any]) -> Operation:
    return Map(function, [d.target(operands[0], _WORD)], [d.source(o, _WORD) for o in operands[1:]])


def _vmad(d: Decoder) -> Operation:
    """``vmad``: multiplication and addition, exact before it is scaled and clamped."""
    saturate, plus_one = d.flag("sat"), d.flag("po")
    scale = int((d.take("shr7", "shr15") or "shr0")[3:])
    types = _types(d, 3)
    d.count(4)
    negated = [isinstance(operand, Negated) for operand in d.operands]
    plain = [operand.item if isinstance(operand, Negated) else operand for operand in d.operands]
    operands = [_selected(d, operand) for operand in plain]
    minus = negated[1] != negated[2]
    if (minus and negated[3]) or (plus_one and any(negated)):
        raise d.fail("either the product or the third source may be negated, and none with .po")
    signed_a, signed_b = types[1] == "s32", types[2] == "s32"
    signed = signed_a or signed_b or minus or negated[3]

    def part(word: Any, selector: Any, sign: bool) -> Any:
        bits, parts = selector or (32, [0])
        return _signed(word >> (bits * parts[0]), bits, sign).astype(object)

    def apply(a: Any, b: Any, c: Any) -> Any:
        a, b, c = np.broadcast_arrays(*_words(a, b, c))
        total = part(a, operands[1][1], signed_a) * part(b, operands[2][1], signed_b)
        if minus:
            total = -total
        third = ~c & 0xFFFFFFFF if negated[3] else c
        total = total + _signed(third, 32, signed).astype(object) + int(plus_one or negated[3])
        total = total >> scale
        if saturate:
            total = _clamp(total, 32, signed)
        return (total & 0xFFFFFFFF).astype(np.uint32)

    return _map(d, apply, [operand for operand, _ in operands])


def _simd(name: str, bits: int) -> Callable[[Decoder], Operation]:
    """``vadd2``, ``vadd4`` and their like on all halves or bytes."""
    count = 32 // bits

    def decode(d: Decoder) -> Operation:
        comparison = d.take(*_COMPARISONS) if name == "vset" else None
        accumulate, saturate = d.flag("add"), d.flag("sat")
        types = _types(d, 2 if name == "vset" else 3)
        d.count(4)
        operands = [_selected(d, operand) for operand in d.operands]
        signed_a, signed_b = types[-2] == "s32", types[-1] == "s32"
        signed_d = name != "vset" and types[0] == "s32"
        defaults = [range(count), range(count), range(count, 2 * count)]
        parts: list[list[int]] = []
        for (_, selector), default, most in zip(operands, defaults, (count, 2 * count, 2 * count)):
            width, chosen = selector or (bits, list(default))
            right = len(set(chosen)) == len(chosen) if most == count else len(chosen) == count
            if width != bits or not right or max(chosen) >= most:
                raise d.fail(f"a selector that does not name {count} parts of {bits} bits")
            parts.append(chosen)

        def apply(a: Any, b: Any, c: Any) -> Any:
            a, b, c = np.broadcast_arrays(*_words(a, b, c))
            both = a | (b << 32)
            total = c if accumulate else np.zeros_like(c)
            for i in range(count):
                value = _operate(
                    name,
                    comparison,
                    _signed(both >> (bits * parts[1][i]), bits, signed_a),
                    _signed(both >> (bits * parts[2][i]), bits, signed_b),
                )
                if saturate:
                    value = _clamp(value, bits, signed_d)
                if accumulate:
                    total = total + (value if i in parts[0] else 0)
                else:
                    chosen = value if i in parts[0] else c >> (bits * i)
                    total = total | (chosen & ((1 << bits) - 1)) << (bits * i)
            return (total & 0xFFFFFFFF).astype(np.uint32)

        return _map(d, apply, [operand for operand, _ in operands])

    return decode


_ON_ALL = ("vadd", "vsub", "vavrg", "vabsdiff", "vmin", "vmax", "vset")
_ON_ONE = ("vadd", "vsub", "vabsdiff", "vmin", "vmax", "vshl", "vshr", "vset")
INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    **{f"{name}{32 // bits}": _simd(name, bits) for name in _ON_ALL for bits in (8, 16)},
    **{name: _scalar(name) for name in _ON_ONE},
    "vmad": _vmad,
}
