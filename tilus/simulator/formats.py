"""Number formats of PTX as bits: decoding to and encoding from NumPy floats, with the rules of ``cvt``.

PTX ISA, "Fundamental Types", "Alternate Floating-Point Data Formats" and ``cvt``. A value of a format
narrower than 8 bits stands in the low bits of an unsigned integer; ``tf32`` is the upper 19 bits of a
32-bit word.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes
    ----------
    exponent_bits, mantissa_bits, bias : int
        The fields; every format but ``ue8m0`` has subnormal numbers.
    storage : type
        The unsigned integer that holds one value.
    signed : bool
        Whether the bit above the exponent is a sign.
    special : str
        ``"ieee"``: the largest exponent means infinity and NaN. ``"nan"``: only the code of all ones (sign
        aside) is NaN and there is no infinity. ``"finite"``: every code is a number.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    storage: type
    signed: bool = True
    special: str = "ieee"

    @property
    def magnitude_bits(self) -> int:
        """Bits without the sign."""
        return self.exponent_bits + self.mantissa_bits

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.magnitude_bits + int(self.signed)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def max_code(self) -> int:
        """Code of the largest finite number."""
        ones = (1 << self.magnitude_bits) - 1
        if self.special == "ieee":
            return ones - (1 << self.mantissa_bits)
        return ones - 1 if self.special == "nan" else ones

    @property
    def infinity_code(self) -> int:
        """Code that an overflow gives: infinity, else NaN, else the largest number."""
        return self.max_code + 1 if self.special != "finite" else self.max_code

    @property
    def nan_code(self) -> int:
        """Canonical NaN (all ones, positive); the largest number where there is no NaN (``cvt``)."""
        return (1 << self.magnitude_bits) - 1


FORMATS = {
    f.name: f
    for f in (
        Format("f16", 5, 10, 15, np.uint16),
        Format("bf16", 8, 7, 127, np.uint16),
        Format("tf32", 8, 10, 127, np.uint32),
        Format("e5m2", 5, 2, 15, np.uint8),
        Format("e4m3", 4, 3, 7, np.uint8, special="nan"),
        Format("e2m3", 2, 3, 1, np.uint8, special="finite"),
        Format("e3m2", 3, 2, 3, np.uint8, special="finite"),
        Format("e2m1", 2, 1, 1, np.uint8, special="finite"),
        Format("ue4m3", 4, 3, 7, np.uint8, signed=False, special="nan"),
        Format("ue8m0", 8, 0, 127, np.uint8, signed=False, special="nan"),
    )
}

ROUNDINGS = ("rn", "rz", "rm", "rp", "rna", "rs")

_TF32_KEPT = 0xFFFFE000  # the ISA leaves the low 13 bits of a tf32 register out of the value


def format_of(name: str) -> Format:
    """Look a format up by its PTX name.

    Parameters
    ----------
    name : str
        For example ``"e4m3"``.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"unknown number format {name!r}; use one of {', '.join(FORMATS)}") from None


@cache
def decode_table(name: str, dtype: type = np.float32) -> Array:
    """Values of all codes of a format of at most 16 bits, as a read-only array indexed by the code.

    Codes wider than the format (an ``e2m3`` in a byte) have the unused upper bits ignored.
    """
    fmt = format_of(name)
    if fmt.bits > 16:
        raise ValueError(f"a table of {name} would have 2**{fmt.bits} entries; call decode instead")
    code = np.arange(256 if fmt.bits <= 8 else 65536)
    if name == "ue8m0":
        values = np.where(code == 0xFF, np.nan, np.ldexp(1.0, code - fmt.bias))
    else:
        exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
        mantissa = code & ((1 << fmt.mantissa_bits) - 1)
        normal = exponent > 0
        significand = mantissa + np.where(normal, 1 << fmt.mantissa_bits, 0)
        values = np.ldexp(
            significand.astype(np.float64),
            np.maximum(exponent, 1) - fmt.bias - fmt.mantissa_bits,
        )
        magnitude = code & ((1 << fmt.magnitude_bits) - 1)
        if fmt.special == "ieee":
            values = np.where(magnitude == fmt.infinity_code, np.inf, values)
        if fmt.special != "finite":
            values = np.where(magnitude > fmt.max_code + int(fmt.special == "ieee"), np.nan, values)
        if fmt.signed:
            values = np.where((code >> fmt.magnitude_bits) & 1, -values, values)
    table: Array = values.astype(dtype)
    table.flags.writeable = False
    return table


def decode(bits: Array, name: str, dtype: type = np.float32) -> Array:
    """Value of each code.

    Parameters
    ----------
    bits : array
        Codes, any unsigned integer type wide enough.
    name : str
        A format of `FORMATS`.
    dtype : type
        ``numpy.float32`` (exact for every format) or ``numpy.float64``.
    """
    fmt = format_of(name)
    if name == "tf32":
        words = np.asarray(bits, dtype=np.uint32) & np.uint32(_TF32_KEPT)
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return words.view(np.float32).astype(dtype, copy=False)
    codes = np.asarray(bits)
    if codes.dtype != fmt.storage:
        codes = codes.astype(fmt.storage)
    return decode_table(name, dtype).take(codes)


def encode(
    values: Array,
    name: str,
    rounding: str = "rn",
    *,
    satfinite: bool = False,
    relu: bool = False,
    random_bits: Array | None = None,
    random_width: int = 0,
) -> Array:
    """Code of each value, as ``cvt`` converts it.

    Parameters
    ----------
    values : array
        ``float16``, ``float32`` or ``float64``; the value is rounded once.
    name : str
        Destination format. ``tf32`` codes are 32-bit words with 13 low zeros.
    rounding : str
        ``rn`` (nearest even), ``rz``, ``rm`` (down), ``rp`` (up), ``rna`` (nearest, ties away) or ``rs``
        (stochastic).
    satfinite : bool
        Values beyond the largest finite number give it, with their sign.
    relu : bool
        Negative results (also -0) become +0; NaN becomes the canonical NaN.
    random_bits, random_width : array, int
        For ``rs``: unsigned integers of `random_width` bits that are added to the leading discarded bits; a
        carry out rounds away from zero.

    Returns
    -------
    array of the format's storage type
    """
    fmt = format_of(name)
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; use one of {', '.join(ROUNDINGS)}")
    values = np.asarray(values)
    if name == "ue8m0":
        return _encode_ue8m0(values, rounding, satfinite)
    if rounding == "rn" and not satfinite and not relu:
        if name == "f16":
            return _encode_f16_nearest(values)
        if name == "bf16" and values.dtype == np.float32:
            return _encode_bf16_nearest(values)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        wide = values.astype(np.float64)
    negative = np.signbit(wide)
    magnitude = np.abs(wide)
    nan = np.isnan(magnitude)
    infinite = np.isinf(magnitude)
    magnitude = np.where(nan | infinite, 0.0, magnitude)

    exponent = np.maximum(np.frexp(magnitude)[1].astype(np.int64) - 1, fmt.min_exponent)
    exponent = np.where(magnitude == 0.0, fmt.min_exponent, exponent)
    scaled = np.ldexp(magnitude, (fmt.mantissa_bits - exponent).astype(np.int32))
    whole = np.floor(scaled)
    rest = scaled - whole
    whole = whole.astype(np.int64)
    if rounding == "rn":
        up = (rest > 0.5) | ((rest == 0.5) & (whole & 1 == 1))
    elif rounding == "rna":
        up = rest >= 0.5
    elif rounding == "rz":
        up = np.zeros(rest.shape, dtype=bool)
    elif rounding == "rs":
        if random_bits is None or random_width < 1:
            raise ValueError("rounding 'rs' needs random_bits and their random_width")
        top = np.ldexp(rest, random_width).astype(np.int64)
        up = top + np.asarray(random_bits).astype(np.int64) >= 1 << random_width
    else:
        up = (rest > 0.0) & (negative if rounding == "rm" else ~negative)
    # A carry out of the mantissa raises the exponent by itself.
    code = ((exponent - fmt.min_exponent) << fmt.mantissa_bits) + whole + up

    over = code > fmt.max_code
    if satfinite:
        code = np.where(over | infinite, fmt.max_code, code)
    else:
        toward_zero = (rounding == "rz") | ((rounding == "rm") & ~negative) | ((rounding == "rp") & negative)
        code = np.where(over, np.where(toward_zero, fmt.max_code, fmt.infinity_code), code)
        code = np.where(infinite, fmt.infinity_code, code)
    if fmt.signed:
        code = code | (negative.astype(np.int64) << fmt.magnitude_bits)
        if relu:
            code = np.where(negative, 0, code)
    else:
        code = np.where(negative, 0, code)
    code = np.where(nan, fmt.nan_code, code)
    if name == "tf32":
        # cvt gives the canonical NaN of .f32 here.
        return np.where(nan, 0x7FFFFFFF, code << 13).astype(np.uint32)
    return code.astype(fmt.storage)


def _encode_f16_nearest(values: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    code = half.view(np.uint16)
    nan = np.isnan(half)
    if nan.any():
        code = np.where(nan, np.uint16(0x7FFF), code)
    return code


def _encode_bf16_nearest(values: Array) -> Array:
    words = np.ascontiguousarray(values).view(np.uint32)
    code = ((words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    nan = np.isnan(values)
    if nan.any():
        code = np.where(nan, np.uint16(0x7FFF), code)
    return code


def _encode_ue8m0(values: Array, rounding: str, satfinite: bool) -> Array:
    """Power of two below (``rz``) or above (``rp``) the magnitude; the format has neither sign nor zero."""
    if rounding not in ("rz", "rp"):
        raise ValueError(f"ue8m0 is rounded with 'rz' or 'rp', not {rounding!r}")
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(values.astype(np.float64))
    nan = np.isnan(magnitude)
    infinite = np.isinf(magnitude)
    fraction, exponent = np.frexp(np.where(nan | infinite, 1.0, magnitude))
    code = exponent.astype(np.int64) - 1 + 127
    if rounding == "rp":
        code = code + (fraction > 0.5)
    code = np.where(magnitude == 0.0, 0, np.maximum(code, 0))
    code = np.where(infinite | (code > 0xFE), 0xFE if satfinite or rounding == "rz" else 0xFF, code)
    if not satfinite:
        code = np.where(infinite, 0xFF, code)
    return np.where(nan, 0xFF, code).astype(np.uint8)
