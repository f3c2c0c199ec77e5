"""Exact fused multiply-add on float64 arrays with the four rounding modes of PTX.

NumPy has none. The usual case is the algorithm of Boldo and Melquiond ("Emulation of FMA and correctly
rounded sums: proved algorithms using rounding to odd", 2008): error-free product and sums, the small terms
rounded to odd. Near overflow and underflow the few elements concerned are computed with rational numbers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Inside, no error-free transformation over- or underflows.
_TINY = 2.0**-450
_HUGE = 2.0**450


def fused_multiply_add(a: Array, b: Array, c: Array, rounding: str = "rn") -> Array:
    """``a * b + c`` rounded once.

    Parameters
    ----------
    a, b, c : array of float64
        Broadcast against each other.
    rounding : str
        ``rn``, ``rz``, ``rm`` or ``rp``.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    with np.errstate(all="ignore"):
        plain = a * b + c
        product, product_error = _two_product(a, b)
        low, low_error = _two_sum(c, product_error)
        high, high_error = _two_sum(product, low)
        result = _rounded_sum(high, _sum_to_odd(low_error, high_error), rounding)
        # An exact zero takes its sign from the plain operation; opposite terms cancel to -0 for rm only.
        zero = result == 0.0
        if zero.any():
            opposite = (c != 0.0) | (np.signbit(a) ^ np.signbit(b) ^ np.signbit(c))
            cancelled = -0.0 if rounding == "rm" else 0.0
            result = np.where(zero, np.where(opposite, cancelled, plain), result)
        result = np.where(np.isfinite(a) & np.isfinite(b) & np.isfinite(c), result, plain)
    unsafe = ~(_safe(a) & _safe(b) & _safe(c)) & np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    for at in zip(*np.nonzero(unsafe), strict=True):
        result[at] = _exact(float(a[at]), float(b[at]), float(c[at]), rounding)
    return result


def _safe(x: Array) -> Array:
    size = np.abs(x)
    safe: Array = (size < _HUGE) & (size > _TINY) | (x == 0.0)
    return safe


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _split(x: Array) -> tuple[Array, Array]:
    scaled = 134217729.0 * x  # 2**27 + 1
    high = scaled - (scaled - x)
    return high, x - high


def _two_product(x: Array, y: Array) -> tuple[Array, Array]:
    product = x * y
    x_high, x_low = _split(x)
    y_high, y_low = _split(y)
    error = ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low
    return product, error


def _sum_to_odd(x: Array, y: Array) -> Array:
    total, error = _two_sum(x, y)
    even = total.view(np.int64) & 1 == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0.0) & even, odd, total)


def _rounded_sum(x: Array, y: Array, rounding: str) -> Array:
    total, error = _two_sum(x, y)
    if rounding == "rn":
        return total
    if rounding == "rm":
        move, goal = error < 0, np.full(total.shape, -np.inf)
    elif rounding == "rp":
        move, goal = error > 0, np.full(total.shape, np.inf)
    else:
        move, goal = (error != 0.0) & (np.signbit(error) != np.signbit(total)), np.zeros(total.shape)
    return np.where(move, np.nextafter(total, goal), total)


def _exact(a: float, b: float, c: float, rounding: str) -> float:
    value = Fraction(a) * Fraction(b) + Fraction(c)
    if value == 0:
        if c == 0.0 and (a == 0.0 or b == 0.0):
            zero = math.copysign(1.0, a) * math.copysign(1.0, b)
            both_negative = zero < 0 and math.copysign(1.0, c) < 0
            any_negative = zero < 0 or math.copysign(1.0, c) < 0
            return -0.0 if both_negative or (any_negative and rounding == "rm") else 0.0
        return -0.0 if rounding == "rm" else 0.0
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    if rounding == "rn":
        if nearest == 0.0:
            return math.copysign(0.0, value)
        return nearest
    if math.isinf(nearest):
        below = nearest < 0 if rounding == "rm" else False
        above = nearest > 0 if rounding == "rp" else False
        return nearest if below or above else math.copysign(math.nextafter(math.inf, 0.0), nearest)
    goal = {"rm": -math.inf, "rp": math.inf, "rz": 0.0}[rounding]
    exact = Fraction(nearest)
    down = value < exact and (rounding == "rm" or (rounding == "rz" and value > 0))
    up = value > exact and (rounding == "rp" or (rounding == "rz" and value < 0))
    result = math.nextafter(nearest, goal) if down or up else nearest
    return math.copysign(0.0, value) if result == 0.0 else result
