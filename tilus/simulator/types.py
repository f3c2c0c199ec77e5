"""PTX scalar types: width, kind, and the NumPy type that holds one value."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class ScalarType(NamedTuple):
    """A PTX type suffix. ``kind`` is one of ``b`` (bits), ``u``, ``s``, ``f``, ``p`` (predicate)."""

    name: str
    kind: str
    bits: int
    dtype: Any

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return max(1, self.bits // 8)


_WORD = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}

TYPES: dict[str, ScalarType] = {"pred": ScalarType("pred", "p", 1, np.dtype(np.bool_))}
for _bits in (8, 16, 32, 64):
    TYPES[f"b{_bits}"] = ScalarType(f"b{_bits}", "b", _bits, np.dtype(_WORD[_bits]))
    TYPES[f"u{_bits}"] = ScalarType(f"u{_bits}", "u", _bits, np.dtype(_WORD[_bits]))
    TYPES[f"s{_bits}"] = ScalarType(f"s{_bits}", "s", _bits, np.dtype(_SIGNED[_bits]))
TYPES["b128"] = ScalarType("b128", "b", 128, np.dtype((np.uint64, (2,))))
TYPES["f16"] = ScalarType("f16", "f", 16, np.dtype(np.float16))
TYPES["f32"] = ScalarType("f32", "f", 32, np.dtype(np.float32))
TYPES["f64"] = ScalarType("f64", "f", 64, np.dtype(np.float64))
# Formats that NumPy lacks travel as bits; the instructions that know them decode.
for _name, _bits in (
    ("bf16", 16),
    ("tf32", 32),
    ("f16x2", 32),
    ("bf16x2", 32),
    ("u16x2", 32),
    ("s16x2", 32),
    ("f32x2", 64),
):
    TYPES[_name] = ScalarType(_name, "x", _bits, np.dtype(_WORD[_bits]))

BITS_OF_WIDTH = {
    1: TYPES["pred"],
    8: TYPES["b8"],
    16: TYPES["b16"],
    32: TYPES["b32"],
    64: TYPES["b64"],
    128: TYPES["b128"],
}


def bits_to_float(raw: int, bits: int) -> float:
    """The value of a binary32 or binary64 bit pattern."""
    return float(np.array(raw, _WORD[bits]).view({32: np.float32, 64: np.float64, 16: np.float16}[bits]))
