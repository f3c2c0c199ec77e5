"""How the CUDA C++ kernels about arithmetic are launched, and what they must give."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    F16,
    F32,
    F64,
    Check,
    Launch,
    dot_bound,
    erf,
    ints,
    normal,
    quotient,
    registry,
    rounded,
    rounding,
    signed,
    wide,
    zeros,
)

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")

bfloat16 = ml_dtypes.bfloat16


# Doubles -----------------------------------------------------------------------------------------------------


@program("doubles", "matrix_vector_double")
def _(rng: Generator) -> Launch:
    m, v, out = rng.standard_normal((8, 70)), rng.standard_normal(70), zeros(8, np.float64)
    return Launch([out, m, v, 70], [Check(out, m @ v, 70 * F64 * (np.abs(m) @ np.abs(v)))], grid=(2, 1, 1))


@program("doubles", "matrix_vector_float")
def _(rng: Generator) -> Launch:
    m, v, out = normal(rng, (6, 70)), normal(rng, 70), zeros(6)
    return Launch(
        [out, m, v, 70], [Check(out, wide(m) @ wide(v), dot_bound(m, v, np.float32))], grid=(2, 1, 1)
    )


@program("doubles", "jacobi")
def _(rng: Generator) -> Launch:
    x = rng.standard_normal((13, 27))
    out, padded = np.zeros_like(x), np.pad(x, 1)
    want = 0.25 * (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:])
    check = Check(out, want, 8 * F64 * (np.abs(padded).max()))
    return Launch([out, x, 27, 13], [check], grid=(2, 2, 1), block=(16, 8, 1))


@program("doubles", "mandelbrot")
def _(rng: Generator) -> Launch:
    out = zeros((8, 64), np.int32)
    step, limit = 0.046875, 40
    cx, cy = (
        -2.0 + np.arange(64) * step + 0 * np.arange(8)[:, None],
        1.0 - np.arange(8)[:, None] * step + 0 * np.arange(64),
    )
    x, y, want, alive = np.zeros((8, 64)), np.zeros((8, 64)), zeros((8, 64), np.int32), np.ones((8, 64), bool)
    for _ in range(limit):
        alive &= x * x + y * y <= 4.0
        want += alive
        x, y = np.where(alive, x * x - y * y + cx, x), np.where(alive, 2 * x * y + cy, y)
    return Launch([out, -2.0, 1.0, step, limit], [Check(out, want)], grid=(2, 8, 1))


def elementary(x: np.ndarray, big: np.ndarray) -> np.ndarray:
    v = wide(x)
    rounded = (
        np.rint(wide(x * x.dtype.type(10)))
        + np.floor(wide(x * x.dtype.type(7)))
        + np.trunc(wide(-x * x.dtype.type(5)))
    )
    return np.stack([
        np.exp(v), np.log(v), np.sin(v), np.cos(wide(big)), np.tanh(v), erf(v), v ** wide(x.dtype.type(2.7)),
        np.sqrt(v), 1 / v, np.cbrt(v), np.arctan(v), np.fmod(v, wide(x.dtype.type(0.37))), 1 / np.sqrt(v),
        np.arcsin(v / 4), np.log1p(v), rounded,
    ])  # fmt: skip


@program("doubles", "functions_double")
def _(rng: Generator) -> Launch:
    n = 80
    x, out = rng.uniform(0.05, 3.0, n), zeros((16, n), np.float64)
    want = elementary(x, x * 1.0e6)
    # Units in the last place that the CUDA documentation grants to double precision, and one for the reference.
    ulps = np.array([1, 1, 2, 2, 2, 2, 2, 0, 0, 1, 2, 0, 1, 2, 1, 0])[:, None] + 1.0
    bound = rounding(want, np.float64, 1.0) * ulps
    bound[[11, 15]] = 0
    return Launch([out, x, n], [Check(out, want, bound)], grid=(3, 1, 1))


@program("doubles", "functions_float")
def _(rng: Generator) -> Launch:
    n = 80
    x, out = rng.uniform(0.05, 3.0, n).astype(np.float32), zeros((16, n))
    want = elementary(x, x * np.float32(1.0e6))
    ulps = np.array([1, 1, 2, 2, 2, 2, 4, 0.5, 0.5, 1, 2, 0, 2, 2, 1, 0])[:, None]
    return Launch([out, x, n], [Check(out, want, rounding(want, np.float32, 1.0) * ulps)], grid=(3, 1, 1))


@program("doubles", "conversions")
def _(rng: Generator) -> Launch:
    x = rng.standard_normal(32) * 10
    single = x.astype(np.float32)
    up = np.where(wide(single) < x, np.nextafter(single, np.float32(np.inf)), single)
    tenth = [Fraction(float(v)) + Fraction(0.1) for v in x]
    third = [Fraction(float(v)) / 3 for v in x]

    def toward_zero(exact: Fraction) -> float:
        near = float(exact)
        return float(np.nextafter(near, 0.0)) if abs(Fraction(near)) > abs(exact) else near

    def upward(exact: Fraction) -> float:
        near = float(exact)
        return float(np.nextafter(near, np.inf)) if Fraction(near) < exact else near

    product = wide(single) * np.float64(np.float32(0.3))
    down = product.astype(np.float32)
    down = np.where(wide(down) > product, np.nextafter(down, np.float32(-np.inf)), down)
    want = np.stack([
        wide(single), np.trunc(x), np.trunc(np.abs(x)), wide(up), np.floor(x), wide(x.view(np.int64) >> 32),
        [toward_zero(v) for v in tenth], [upward(v) for v in third], wide(np.rint(single).astype(np.float32) + down),
        np.minimum(x, 0.5) + np.maximum(x, -0.5) + np.copysign(2.0, x) + np.abs(x),
    ])  # fmt: skip
    out = zeros(want.shape, np.float64)
    return Launch([out, x, 32], [Check(out, want)])


@program("fast_math", "fast_functions")
def _(rng: Generator) -> Launch:
    n = 90
    x, out = rng.uniform(0.05, 3.0, n).astype(np.float32), zeros((12, n))
    v = wide(x)
    want = np.stack([
        np.exp(v), np.log(v), np.sin(v), np.cos(v), np.tanh(v), v**1.5, np.sqrt(v), 1 / v, 1 / np.sqrt(v),
        v / (v + 3), 0 * v, np.clip(v - 1, 0, 1),
    ])  # fmt: skip
    bound = np.abs(want) * 2.0**-21
    bound[0] *= 4  # the product with log2(e) is rounded before ex2.approx
    bound[1] = 2.0**-21
    bound[2:4] = 2.0**-20.5
    bound[4] *= 2.0**11  # tanh.approx: 2^-11 relative
    bound[5] *= 8
    bound[10] = 0
    bound[11] = F32
    return Launch([out, x, n], [Check(out, want, bound)], grid=(3, 1, 1))


@program("fast_math", "gelu")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, 256), zeros(256)
    v = wide(x)
    inner = 0.7978845608 * (v + 0.044715 * v**3)
    want = 0.5 * v * (1 + np.tanh(inner))
    return Launch(
        [out, x],
        [Check(out, want, np.abs(v) * (2.0**-11 * np.abs(np.tanh(inner)) + 16 * F32))],
        grid=(2, 1, 1),
    )


# Integers ----------------------------------------------------------------------------------------------------


def python_ints(x: np.ndarray) -> list[int]:
    return [int(v) for v in x]


def each(function: Callable[..., int], *arrays: np.ndarray, bits: int = 64) -> np.ndarray:
    """A function of Python integers over arrays, wrapped to a number of bits."""
    unsigned = {32: np.uint32, 64: np.uint64}[bits]
    return np.array([function(*values) % 2**bits for values in zip(*map(python_ints, arrays))], unsigned)


def reverse(x: int, bits: int) -> int:
    return int(f"{x:0{bits}b}"[::-1], 2)


@program("integers", "wide")
def _(rng: Generator) -> Launch:
    n = 96
    a = rng.integers(0, 2**64, n, np.uint64) >> rng.integers(0, 50, n, np.uint64)
    b = (rng.integers(0, 2**64, n, np.uint64) >> rng.integers(0, 18, n, np.uint64)) | np.uint64(1 << 45)
    i = np.arange(n)

    def s(x: int) -> int:
        return signed(x, 64)

    def count(x: int, y: int, i: int) -> int:
        up, right = (x << i % 64) % 2**64, y >> i % 64
        return x.bit_count() * 10000 + (64 - right.bit_length()) * 100 + ((up & -up).bit_length())

    def remainder(x: int, y: int) -> int:
        return x - quotient(x, y) * y

    want = np.stack([
        each(lambda x, y: x * y, a, b),
        each(lambda x, y: x * y >> 64, a, b),
        each(lambda x, y: s(x) * s(y) >> 64, a, b),
        each(lambda x, y: x // y, a, b),
        each(lambda x, y: x % y, a, b),
        each(lambda x, y: quotient(s(x), s(y) >> 20), a, b),
        each(lambda x, y: remainder(s(x), (s(y) >> 40) | 1), a, b),
        each(count, a, b, i),
        each(lambda x, y: reverse(x, 64) ^ (x >> (y & 63)) ^ (s(x) >> (x & 63)), a, b),
        each(lambda x, y: (x * y + (y << 64) - x) % 2**128 >> 64, a, b),
        each(lambda x, y: x * y + (y << 64) - x, a, b),
        each(lambda x, y: x * 1000003 >> 17, a, b),
    ])  # fmt: skip
    out = zeros(want.shape, np.uint64)
    return Launch([out, a, b, n], [Check(out, want)], block=(n, 1, 1))


def lanes(x: int, bits: int, is_signed: bool = False) -> list[int]:
    parts = [x >> at & (2**bits - 1) for at in range(0, 32, bits)]
    return [signed(p, bits) for p in parts] if is_signed else parts


def join(parts: list[int], bits: int) -> int:
    return sum((p % 2**bits) << (i * bits) for i, p in enumerate(parts))


@program("integers", "narrow")
def _(rng: Generator) -> Launch:
    n = 96
    a, b, c = (rng.integers(0, 2**32, n, np.uint32) >> rng.integers(0, 20, n, np.uint32) for _ in range(3))
    b |= np.uint32(1 << 12)

    def s(x: int) -> int:
        return signed(x, 32)

    def remainder(x: int, y: int) -> int:
        return x - quotient(x, y) * y

    def permute(x: int, y: int, z: int) -> int:
        pool = (y << 32 | x).to_bytes(8, "little")
        return sum(pool[z >> 4 * i & 7] << 8 * i for i in range(4))

    def dot(x: int, y: int, z: int, is_signed: bool) -> int:
        return z + sum(p * q for p, q in zip(lanes(x, 8, is_signed), lanes(y, 8, is_signed)))

    def dot2(x: int, y: int, z: int, is_signed: bool, high: int) -> int:
        return z + sum(p * q for p, q in zip(lanes(x, 16, is_signed), lanes(y, 8, is_signed)[2 * high :]))

    def each_lane(
        function: Callable[[int, int], int], x: int, y: int, bits: int, is_signed: bool = False
    ) -> int:
        return join(
            [function(p, q) for p, q in zip(lanes(x, bits, is_signed), lanes(y, bits, is_signed))], bits
        )

    def mul24(x: int, y: int, is_signed: bool) -> int:
        return signed(x, 24) * signed(y, 24) if is_signed else x % 2**24 * (y % 2**24)

    want = np.stack([each(f, a, b, c, bits=32) for f in (
        lambda x, y, z: x.bit_count() + (32 - y.bit_length()) * 64 + (z & -z).bit_length() * 4096,
        lambda x, y, z: reverse(x, 32),
        lambda x, y, z: permute(x, y, z & 0x7777),
        lambda x, y, z: ((y << 32 | x) << (z & 31)) >> 32,
        lambda x, y, z: (y << 32 | x) >> min(z % 40, 32),
        lambda x, y, z: dot(x, y, z, True),
        lambda x, y, z: dot(x, y, z, False),
        lambda x, y, z: dot2(x, y, z, True, 0) + dot2(x, y, z, False, 1),
        lambda x, y, z: (x * y >> 32) ^ (s(x) * s(y) >> 32),
        lambda x, y, z: (abs(x - y) + z) ^ (abs((s(x) >> 2) - (s(y) >> 2)) + z),
        lambda x, y, z: each_lane(lambda p, q: p + q, x, y, 8),
        lambda x, y, z: each_lane(lambda p, q: abs(p - q), x, y, 8),
        lambda x, y, z: each_lane(max, x, y, 16, True) ^ each_lane(min, y, z, 8),
        lambda x, y, z: quotient(s(x), s(y) | 1) + remainder(s(x), (s(z) >> 8) | 1),
        lambda x, y, z: x // 7 + y % 1000 + quotient(s(x), -13),
        lambda x, y, z: (x + y >> 1) ^ mul24(x, y, True) % 2**32 ^ mul24(y, z, False) % 2**32,
        lambda x, y, z: (x & y) | (~x & z),
        lambda x, y, z: min(s(x), s(y)) % 2**32 ^ max(y, z) ^ abs(s(z) >> 1),
        lambda x, y, z: each_lane(lambda p, q: -(p > q), x, y, 8) ^ each_lane(lambda p, q: int(p < q), y, z, 16),
        lambda x, y, z: max((s(x) >> 1) + (s(y) >> 1), s(z)) % 2**32 ^ max(x, y, z),
    )])  # fmt: skip
    out = zeros(want.shape, np.uint32)
    return Launch([out, a, b, c, n], [Check(out, want)], block=(n, 1, 1))


@program("integers", "small")
def _(rng: Generator) -> Launch:
    n = 64
    a, b = ints(rng, -128, 128, n, np.int8), ints(rng, 0, 65536, n, np.uint16)
    x, y = a.astype(np.int64), b.astype(np.int64)
    short = b.view(np.int16).astype(np.int64)
    want = np.stack([
        x * y, (x + y) & 255, b.astype(np.uint8).view(np.int8) >> 2,
        [quotient(int(p), int(q) or 3) for p, q in zip(y, x)], np.where(x < short, x, y),
        (y << 3).astype(np.int16) >> 4,
    ]).astype(np.int64).astype(np.uint16).view(np.int16)  # fmt: skip
    out = zeros(want.shape, np.int16)
    return Launch([out, a, b, n], [Check(out, want)], block=(n, 1, 1))


@program("integers", "primes")
def _(rng: Generator) -> Launch:
    count = zeros(1, np.uint32)
    want = sum(all(i % d for d in range(2, int(i**0.5) + 1)) for i in range(2, 300))
    return Launch([count, 300], [Check(count, np.array([want], np.uint32))], grid=(5, 1, 1), block=(64, 1, 1))


# Narrow floats -----------------------------------------------------------------------------------------------


@program("half", "half_operations")
def _(rng: Generator) -> Launch:
    n = 32
    a, b = normal(rng, (n, 2), np.float16), normal(rng, (n, 2), np.float16)
    b[np.abs(b) < 0.01] = 1
    a[3, 0], b[4, 1] = np.nan, np.nan
    x, y = wide(a), wide(b)
    i = np.arange(n)
    h = np.float16
    fma = x * y + x
    fma2 = x * y + y
    with np.errstate(invalid="ignore"):
        relu = np.where(np.isnan(fma2), np.nan, np.maximum(fma2, 0))
        saturated = np.where(np.isnan(fma2), 0, np.clip(fma2, 0, 1))
        greater = rounded(x > y, h)
        picked = np.where(x[:, 0] < y[:, 0], x[:, 0], y[:, 1])
        integer = np.where(np.isnan(x[:, 0]), 0, np.trunc(x[:, 0])) * 9
        five = rounded(np.rint(wide(rounded(x * 5, h))), h)
        scaled = np.stack(
            [rounded(rounded(x[:, 0] * 3, np.float32), h), rounded(rounded(y[:, 1] / 7, np.float32), h)], 1
        )
    exact = {
        0: rounded(x + y, h), 1: rounded(x - y, h), 2: rounded(x * y, h), 3: rounded(fma, h), 4: rounded(relu, h),
        5: rounded(saturated, h), 6: np.fmax(a, b), 7: np.minimum(a, b), 8: -np.abs(a), 12: five, 13: greater,
        14: rounded(np.stack([x[:, 1], picked], 1), h), 15: scaled, 16: rounded(np.stack([integer, i * 100.0], 1), h),
    }  # fmt: skip
    close = {9: np.exp2(x), 10: np.sqrt(np.abs(x)), 11: x / y, 17: np.tanh(x)}
    out = zeros((18, n, 2), h)
    checks = [Check(out[row], want, 0.0) for row, want in exact.items()]
    # ex2.approx.f16 may miss by 2^-9.9, tanh.approx.f16 by 2^-10.987 (PTX ISA).
    bounds = {9: 2.0**-9.9, 10: 2 * F16, 11: 2 * F16, 17: 2.0**-10.9}
    checks += [Check(out[row], want, bounds[row] * np.abs(want) + 2.0**-24) for row, want in close.items()]
    return Launch([out, a, b, n], checks)


@program("half", "bfloat_operations")
def _(rng: Generator) -> Launch:
    n = 32
    a, b = normal(rng, (n, 2), bfloat16), normal(rng, (n, 2), bfloat16)
    x, y = wide(a), wide(b)
    i = np.arange(n)
    toward_zero = (np.float32(1.2345) * a[:, 0].astype(np.float32)).view(np.uint32) & np.uint32(0xFFFF0000)
    exact = {
        0: rounded(x + y, bfloat16), 1: rounded(x * y, bfloat16), 2: rounded(x * y + x, bfloat16), 3: np.maximum(a, b),
        4: rounded(np.abs(x) - y, bfloat16), 5: rounded(np.maximum(x * y + y, 0), bfloat16),
        6: rounded(np.stack([x[:, 0] * 3, rounded(y[:, 1] / 7, np.float32)], 1), bfloat16),
        8: rounded(x <= y, bfloat16), 9: rounded(np.stack([toward_zero.view(np.float32), i * 1001.0], 1), bfloat16),
    }  # fmt: skip
    out = zeros((10, n, 2), bfloat16)
    checks = [Check(out[row], want) for row, want in exact.items()]
    checks.append(Check(out[7], np.exp(x), 2 * 2.0**-7 * np.exp(x)))
    return Launch([out, a, b, n], checks)


@program("small_floats", "float8")
def _(rng: Generator) -> Launch:
    n = 32
    x = (rng.standard_normal((n, 2)) * np.exp2(rng.integers(-10, 8, (n, 2)))).astype(np.float32)
    x[0], x[1], x[2] = [1000.0, -1000.0], [0.0, -0.0], [448.0, 57344.0]

    def saturated(v: np.ndarray, dtype: Any) -> np.ndarray:
        top = float(ml_dtypes.finfo(dtype).max)
        return np.clip(v.astype(np.float32), -top, top).astype(dtype)

    four, five = saturated(x, ml_dtypes.float8_e4m3fn), saturated(x, ml_dtypes.float8_e5m2)
    swapped = saturated(x[:, ::-1].astype(np.float16), ml_dtypes.float8_e4m3fn)
    single = saturated(x[:, 1].astype(bfloat16), ml_dtypes.float8_e4m3fn)
    mixed = five[:, 0].view(np.uint8).astype(np.uint16) * 256 + single.view(np.uint8)
    pairs = [np.ascontiguousarray(v).view(np.uint16)[:, 0] for v in (four, five, swapped)]
    codes, back = zeros((4, n), np.uint16), zeros((2, n, 2), np.float16)
    checks = [
        Check(codes, np.stack([*pairs, mixed.astype(np.uint16)])),
        Check(back, np.stack([four.astype(np.float16), five.astype(np.float16)])),
    ]
    return Launch([codes, back, x, n], checks)


@program("small_floats", "packed")
def _(rng: Generator) -> Launch:
    n = 32
    a, b = normal(rng, (n, 2), bfloat16), normal(rng, (n, 2), bfloat16)
    a[5, 1] = np.nan
    x, y = wide(a), wide(b)
    want = np.stack([rounded(v, bfloat16) for v in (x + y, x * y, x - y, x * y + x, ~(x <= y))])
    out = zeros((5, n, 2), bfloat16)
    return Launch([out, a, b, n], [Check(out, want, 0.0)])


@program("small_floats", "reduce_vectors")
def _(rng: Generator) -> Launch:
    x, sums = normal(rng, (32, 4)), zeros((2, 4))
    pairs = wide(x).reshape(16, 2, 4)
    return Launch([sums, x], [Check(sums, pairs.sum(0), 16 * F32 * np.abs(pairs).sum(0))])
