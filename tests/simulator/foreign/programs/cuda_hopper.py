"""How the CUDA C++ kernels for Hopper and consumer Blackwell are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    Check,
    Descriptor,
    Launch,
    dot_bound,
    ints,
    normal,
    registry,
    wide,
    zeros,
)

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def e3m2(codes: np.ndarray) -> np.ndarray:
    exponent, mantissa = codes >> 2 & 7, codes & 3
    size = np.where(exponent == 0, mantissa / 16.0, (4 + mantissa) / 4.0 * 2.0 ** (exponent - 3.0))
    return np.where(codes >> 5 & 1, -size, size)


def e2m1(codes: np.ndarray) -> np.ndarray:
    return np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7]


def e2m3(codes: np.ndarray) -> np.ndarray:
    exponent, mantissa = codes >> 3 & 3, codes & 7
    size = np.where(exponent == 0, mantissa / 8.0, (8 + mantissa) / 8.0 * 2.0 ** (exponent - 1.0))
    return np.where(codes >> 5 & 1, -size, size)


# Hopper ------------------------------------------------------------------------------------------------------


@program("hopper", "matmul_roles")
def _(rng: Generator) -> Launch:
    m, n, k = 128, 64, 320
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (n, k), np.float16), zeros((m, n), np.float16)
    args = [Descriptor(a, (64, 64), 3), Descriptor(b, (64, 64), 3), Descriptor(c, (64, 64), 3), k]
    check = Check(c, wide(a) @ wide(b).T, dot_bound(a, b.T, np.float16))
    return Launch(args, [check], grid=(n // 64, m // 64, 1), block=(256, 1, 1), shared_bytes=7 * 64 * 64 * 2)


@program("hopper", "ring_sum")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -1000, 1000, (2, 4, 64)), zeros((2, 4, 64), np.int32)
    want = x.copy()
    for step in range(1, 4):
        want = want * 3 + np.roll(x, step, 1)
    return Launch([out, x], [Check(out, want)], grid=(8, 1, 1), block=(64, 1, 1), cluster=(4, 1, 1))


@program("hopper", "exchange")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (2, 2, 128)), zeros((2, 2, 128))
    want = (x[:, ::-1, ::-1] - x) * np.float32(2)
    # Doubling is exact, so one subtraction is rounded.
    return Launch([out, x], [Check(out, want)], grid=(4, 1, 1), block=(128, 1, 1), cluster=(2, 1, 1))


# Blackwell ---------------------------------------------------------------------------------------------------


@program("blackwell", "scaled_mma")
def _(rng: Generator) -> Launch:
    a, b = ints(rng, 0, 64, (16, 32), np.uint8), normal(rng, (8, 32), ml_dtypes.float8_e4m3fn)
    scale_a, scale_b = ints(rng, 124, 131, 16, np.uint8), ints(rng, 124, 131, 8, np.uint8)
    x = e3m2(a) * np.exp2(scale_a.astype(float) - 127)[:, None]
    y = wide(b) * np.exp2(scale_b.astype(float) - 127)[:, None]
    d = zeros((16, 8))
    bound = dot_bound(x, y.T, np.float32, accumulate=2.0**-13 / 32)
    return Launch([d, a, b, scale_a, scale_b], [Check(d, x @ y.T, bound)])


@program("blackwell", "small_mma")
def _(rng: Generator) -> Launch:
    a, b = ints(rng, 0, 16, (16, 32), np.uint8), normal(rng, (8, 32), ml_dtypes.float8_e5m2)
    x, y, d = e2m1(a), wide(b), zeros((16, 8))
    start = np.array([[1, 2]] * 8 + [[3, 4]] * 8)
    want = x @ y.T + np.tile(start, 4)
    bound = dot_bound(x, y.T, np.float32, accumulate=2.0**-13 / 32) + 2.0**-11
    return Launch([d, a << np.uint8(2), b], [Check(d, want, bound)])


@program("blackwell", "narrow")
def _(rng: Generator) -> Launch:
    x = (normal(rng, (32, 2)) * np.exp2(rng.integers(-3, 4, (32, 1)))).astype(np.float32)
    x[0] = 0.25, -0.75
    codes, back, want = zeros((32, 6), np.uint8), zeros((32, 2)), zeros((32, 6), np.uint8)

    def nearest(value: float, table: np.ndarray) -> int:
        """The code of the nearest entry of the same sign, ties to even codes, as the tables rise with their codes."""
        half = len(table) // 2
        distance = np.abs(table[:half] - abs(value))
        best = np.flatnonzero(distance == distance.min())
        code = int(best[0]) if len(best) == 1 else int(best[best % 2 == 0][0])
        return code + (half if np.signbit(value) else 0)

    tables = [f(np.arange(n)) for f, n in ((e2m1, 16), (e3m2, 64), (e2m3, 64))]
    for i, (first, second) in enumerate(x.tolist()):
        four = [nearest(v, tables[0]) for v in (first, second)]
        want[i, 0] = four[0] | four[1] << 4
        want[i, 1:3] = [nearest(v, tables[1]) for v in (first, second)]
        want[i, 3:5] = [nearest(v, tables[2]) for v in (first, second)]
        want[i, 5] = int(np.ceil(np.log2(np.float32(abs(np.float32(first))) + np.float32(1)))) + 127
    halves = np.stack([e2m1(want[:, 0] & 15), e2m1(want[:, 0] >> 4)], -1).astype(np.float32)
    return Launch([codes, back, x], [Check(codes, want), Check(back, halves)])
