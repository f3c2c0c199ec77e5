"""The SIMD video instructions on bytes and halves: ``vadd4``, ``vsub2``, ``vabsdiff4``, ``vset2`` and their like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import Decoder
from .operations import Map, Operation
from .types import TYPES

_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_NAMES = ("vadd", "vsub", "vavrg", "vabsdiff", "vmin", "vmax", "vset")


def _parts(word: Any, bits: int, signed: bool) -> Any:
    dtype = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    word = np.ascontiguousarray(np.atleast_1d(np.asarray(word).astype(np.uint32)))
    return word.view(dtype).reshape(len(word), 32 // bits).astype(np.int64)


def _operate(name: str, comparison: str | None, a: Any, b: Any) -> Any:
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
    return _COMPARISONS[comparison or "eq"](a, b).astype(np.int64)


def _decoder(name: str, bits: int) -> Callable[[Decoder], Operation]:
    def decode(d: Decoder) -> Operation:
        comparison = d.take(*_COMPARISONS) if name == "vset" else None
        accumulate, saturate = d.flag("add"), d.flag("sat")
        types = [m for m in d.mods if m in ("u32", "s32")]
        if len(types) != (2 if name == "vset" else 3) or len(types) != len(d.mods):
            raise d.fail("byte and half selectors other than the default are not supported")
        d.mods.clear()
        d.count(4)
        signed_a, signed_b = types[-2] == "s32", types[-1] == "s32"
        signed_d = name != "vset" and types[0] == "s32"
        mask = (1 << bits) - 1

        def apply(a: Any, b: Any, c: Any) -> Any:
            a, b, c = np.broadcast_arrays(*(np.atleast_1d(v) for v in (a, b, c)))
            value = _operate(name, comparison, _parts(a, bits, signed_a), _parts(b, bits, signed_b))
            if saturate:
                low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed_d else (0, mask)
                value = np.clip(value, low, high)
            if accumulate:
                return ((c.astype(np.int64) + value.sum(axis=1)) & 0xFFFFFFFF).astype(np.uint32)
            shifts = np.arange(0, 32, bits)
            return ((value & mask) << shifts).sum(axis=1).astype(np.uint32)

        word = TYPES["b32"]
        return Map(apply, [d.target(d.operands[0], word)], [d.source(o, word) for o in d.operands[1:]])

    return decode


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    f"{name}{32 // bits}": _decoder(name, bits) for name in _NAMES for bits in (8, 16)
}
