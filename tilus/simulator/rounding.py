"""Correctly rounded binary32, binary64 and half arithmetic in every rounding mode, by error-free transformations.

An exact result is held as an unevaluated sum ``s + e`` of two binary64 numbers; rounding to odd keeps double
rounding away (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
rounding to odd").
"""

from __future__ import annotations

from typing import Any

import numpy as np

CANONICAL_NAN = {16: 0x7FFF, 32: 0x7FFFFFFF, 64: 0x7FFFFFFFFFFFFFFF}
TINY32 = np.float32(2.0**-126)
_SPLIT = np.float64(2**27 + 1)


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """``a + b`` exactly, as sum and error (binary64)."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def two_product(a: Any, b: Any) -> tuple[Any, Any]:
    """``a * b`` exactly, as product and error, for operands whose product neither over- nor underflows."""
    p = a * b
    t = _SPLIT * a
    ah = t - (t - a)
    al = a - ah
    t = _SPLIT * b
    bh = t - (t - b)
    bl = b - bh
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def to_odd(s: Any, e: Any) -> Any:
    """``s + e`` rounded to odd in binary64."""
    s = np.asarray(s, np.float64)
    bits = s.view(np.int64)
    fix = (e != 0) & (bits & 1 == 0) & np.isfinite(s)
    if not fix.any():
        return s
    return np.where(fix, np.nextafter(s, np.where(e > 0, np.inf, -np.inf)), s)


def to_single(s: Any, e: Any, mode: str) -> Any:
    """``s + e`` rounded to binary32."""
    if mode == "rn":
        return to_odd(s, e).astype(np.float32)
    r = np.asarray(s).astype(np.float32)
    distance = s - r.astype(np.float64)
    above = np.where(distance != 0, distance > 0, e > 0)
    below = np.where(distance != 0, distance < 0, e < 0)
    return directed(r, above, below, mode, np.isfinite(s))


def directed(r: Any, above: Any, below: Any, mode: str, finite: Any) -> Any:
    """Move a result rounded to nearest to the side that ``mode`` asks; ``above``: the exact value is above ``r``."""
    inf = r.dtype.type(np.inf)
    if mode == "rm":
        return np.where(below & finite, np.nextafter(r, -inf), r)
    if mode == "rp":
        return np.where(above & finite, np.nextafter(r, inf), r)
    negative = np.signbit(r)
    inward = np.where(negative, above, below) & finite
    return np.where(inward, np.nextafter(r, r.dtype.type(0)), r)


def zero_sign(result: Any, a: Any, b: Any, mode: str) -> Any:
    """An exact zero sum of non-zero or opposite terms is negative when rounding down."""
    if mode != "rm":
        return result
    exact_zero = (result == 0) & (a == -b) & ~(np.signbit(a) & np.signbit(b))
    both_positive = (a == 0) & (b == 0) & ~np.signbit(a) & ~np.signbit(b)
    return np.where(exact_zero & ~both_positive, -np.abs(result), result)


def _wide(*values: Any) -> list[Any]:
    return [np.asarray(v).astype(np.float64) for v in values]


def add32(a: Any, b: Any, mode: str) -> Any:
    """Binary32 sum."""
    if mode == "rn":
        return np.add(a, b)
    x, y = _wide(a, b)
    return zero_sign(to_single(*two_sum(x, y), mode), x, y, mode)


def mul32(a: Any, b: Any, mode: str) -> Any:
    """Binary32 product (exact in binary64)."""
    if mode == "rn":
        return np.multiply(a, b)
    x, y = _wide(a, b)
    return to_single(x * y, np.float64(0), mode)


def fma32(a: Any, b: Any, c: Any, mode: str = "rn") -> Any:
    """Binary32 fused multiply-add."""
    p = np.multiply(a, b, dtype=np.float64)
    if mode == "rn":
        s = p + c
        # Rounding twice differs only where the binary64 sum ends exactly between two binary32 numbers, or where
        # the result is subnormal.
        suspect = (s.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        r = s.astype(np.float32)
        small = np.abs(s) < 2.0**-125
        small &= s != 0
        suspect |= small
        if not suspect.any():
            return r
    z = np.asarray(c).astype(np.float64)
    s, e = two_sum(p, z)
    e = np.where(np.isfinite(s), e, 0.0)
    return zero_sign(to_single(s, e, mode), p, z, mode)


def div32(a: Any, b: Any, mode: str) -> Any:
    """Binary32 quotient; nearest needs no care since 53 >= 2 * 24 + 2."""
    if mode == "rn":
        return np.divide(a, b)
    x, y = _wide(a, b)
    r = (x / y).astype(np.float32)
    residual = x - r.astype(np.float64) * y
    sign = np.where(np.signbit(y), -residual, residual)
    finite = np.isfinite(x) & np.isfinite(y) & (y != 0)
    over = np.isinf(r) & finite
    negative = np.signbit(r)
    above = np.where(over, negative, sign > 0)
    below = np.where(over, ~negative, sign < 0)
    return directed(r, above, below, mode, finite)


def sqrt32(a: Any, mode: str) -> Any:
    """Binary32 square root."""
    if mode == "rn":
        return np.sqrt(a)
    x = np.asarray(a).astype(np.float64)
    r = np.sqrt(x).astype(np.float32)
    residual = x - r.astype(np.float64) ** 2
    return directed(r, residual > 0, residual < 0, mode, np.isfinite(x) & (x > 0))


def add64(a: Any, b: Any, mode: str) -> Any:
    """Binary64 sum."""
    s = np.add(a, b)
    if mode == "rn":
        return s
    s, e = two_sum(*_wide(a, b))
    x, y = _wide(a, b)
    return zero_sign(directed(s, e > 0, e < 0, mode, np.isfinite(s)), x, y, mode)


def _extreme(*values: Any) -> Any:
    bad = np.zeros(np.broadcast(*values).shape, bool)
    for v in values:
        size = np.abs(v)
        bad = bad | ~((size == 0) | ((size > 2.0**-400) & (size < 2.0**400)))
    return bad


def _exactly(function: Any, values: tuple[Any, ...], mode: str) -> Any:
    """Element by element with rationals: for operands so large or small that the error terms would be lost."""
    from fractions import Fraction

    arrays = np.broadcast_arrays(*[np.asarray(v, np.float64) for v in values])
    out = np.empty(arrays[0].shape, np.float64)
    for i in np.ndindex(out.shape):
        items = [float(v[i]) for v in arrays]
        if not all(np.isfinite(items)):
            out[i] = function(*[np.float64(v) for v in items])
            continue
        exact = function(*[Fraction(v) for v in items])
        nearest = _nearest64(exact)
        if exact == 0:
            plain = function(*[np.float64(v) for v in items])
            out[i] = plain if plain == 0 else 0.0
            continue
        r = np.float64(nearest)
        if np.isinf(r):
            above, below = exact < 0, exact > 0
        else:
            above, below = exact > Fraction(nearest), exact < Fraction(nearest)
        if r == 0:
            r = np.copysign(np.float64(0), -1.0 if exact < 0 else 1.0)
        out[i] = r if mode == "rn" else directed(r, np.bool_(above), np.bool_(below), mode, np.bool_(True))
    return out


def _nearest64(exact: Any) -> float:
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def mul64(a: Any, b: Any, mode: str) -> Any:
    """Binary64 product."""
    p = np.multiply(a, b)
    if mode == "rn":
        return p
    x, y = _wide(a, b)
    p, e = two_product(x, y)
    result = directed(np.asarray(p), e > 0, e < 0, mode, np.isfinite(p))
    bad = _extreme(x, y)
    return np.where(bad, _exactly(lambda u, v: u * v, (x, y), mode), result) if bad.any() else result


def fma64(a: Any, b: Any, c: Any, mode: str = "rn") -> Any:
    """Binary64 fused multiply-add."""
    x, y, z = np.broadcast_arrays(*_wide(a, b, c))
    uh, ul = two_product(x, y)
    th, tl = two_sum(z, ul)
    vh, vl = two_sum(uh, th)
    s, e = two_sum(vh, to_odd(*two_sum(tl, vl)))
    result = np.where(np.isfinite(s), s, x * y + z)
    if mode != "rn":
        result = zero_sign(directed(result, e > 0, e < 0, mode, np.isfinite(s)), x * y, z, mode)
    exact_zero = (result == 0) & (e == 0)
    if exact_zero.any() and mode == "rn":
        result = np.where(exact_zero, x * y + z, result)
    bad = _extreme(x, y, z)
    if not bad.any():
        return result
    out = np.array(result)
    out[bad] = _exactly(lambda u, v, w: u * v + w, (x[bad], y[bad], z[bad]), mode)
    return out


def div64(a: Any, b: Any, mode: str) -> Any:
    """Binary64 quotient."""
    q = np.divide(a, b)
    if mode == "rn":
        return q
    x, y = np.broadcast_arrays(*_wide(a, b))
    p, e = two_product(q, y)
    residual = (x - p) - e
    sign = np.where(np.signbit(y), -residual, residual)
    result = directed(np.asarray(q), sign > 0, sign < 0, mode, np.isfinite(q) & (y != 0))
    bad = _extreme(x, y, q) & (y != 0) & np.isfinite(x) & np.isfinite(y)
    if not bad.any():
        return result
    out = np.array(result)
    out[bad] = _exactly(lambda u, v: u / v, (x[bad], y[bad]), mode)
    return out


def sqrt64(a: Any, mode: str) -> Any:
    """Binary64 square root."""
    r = np.sqrt(a)
    if mode == "rn":
        return r
    x = np.asarray(a).astype(np.float64)
    # Scale by an even power of two so that the product neither over- nor underflows.
    _, exponent = np.frexp(x)
    half = exponent // 2
    p, e = two_product(np.ldexp(r, -half), np.ldexp(r, -half))
    residual = (np.ldexp(x, -2 * half) - p) - e
    return directed(np.asarray(r), residual > 0, residual < 0, mode, np.isfinite(x) & (x > 0))


def bfloat_to_single(bits: Any) -> Any:
    """bfloat16 bits to binary32."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def single_to_bfloat(value: Any) -> Any:
    """Binary32 to bfloat16 bits, to nearest even; NaN becomes the canonical 0x7fff."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


def odd_single(s: Any, e: Any) -> Any:
    """``s + e`` rounded to odd in binary32, from where rounding to a narrower type is rounding once."""
    wide = to_odd(s, e)
    r = to_single(wide, np.float64(0), "rz")
    inexact = (r.astype(np.float64) != wide) & np.isfinite(r)
    return np.where(inexact, (r.view(np.uint32) | np.uint32(1)).view(np.float32), r)


def fma_half(a: Any, b: Any, c: Any) -> Any:
    """binary16 fused multiply-add (operands and result binary16)."""
    x, y, z = _wide(a, b, c)
    s, e = two_sum(x * y, z)
    return to_odd(s, np.where(np.isfinite(s), e, 0.0)).astype(np.float16)


def fma_bfloat(a: Any, b: Any, c: Any) -> Any:
    """bfloat16 fused multiply-add (operands binary32 values of bfloat16 numbers, result bits)."""
    x, y, z = _wide(a, b, c)
    s, e = two_sum(x * y, z)
    return single_to_bfloat(odd_single(s, np.where(np.isfinite(s), e, 0.0)))


def flush(value: Any) -> Any:
    """Subnormal binary32 numbers to zero of the same sign."""
    value = np.asarray(value)
    small = np.abs(value) < TINY32
    if not small.any():
        return value
    return np.where(small, np.copysign(np.float32(0), value), value)
