"""How the scans, sorts, random numbers, atomics and casts in Triton are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    F32,
    Check,
    Launch,
    normal,
    philox,
    rounding,
    wide,
)
from tests.simulator.foreign.programs.triton_launch import launch, registry

Generator = np.random.Generator
PROGRAMS, program = registry()
bfloat16, e4m3, e5m2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


@program("triton_cumulative_sum_sm80")
def _(name: str, rng: Generator) -> Launch:
    x, out = normal(rng, (4, 128)), np.zeros((4, 128), np.float32)
    bound = 128 * F32 * np.cumsum(np.abs(wide(x)), 1)
    return launch(name, [out, x], [Check(out, np.cumsum(wide(x), 1), bound)], grid=(1,))


@program("triton_cumulative_sum_columns_sm80")
def _(name: str, rng: Generator) -> Launch:
    x, out = rng.integers(-(2**31), 2**31, (64, 16), np.int32), np.zeros((64, 16), np.int32)
    return launch(name, [out, x], [Check(out, np.cumsum(x[::-1], 0, dtype=np.int32)[::-1])], grid=(1,))


@program("triton_recurrence_sm80")
def _(name: str, rng: Generator) -> Launch:
    n = 256
    a, b = rng.uniform(-1, 1, (2, n)).astype(np.float32), normal(rng, (2, n))
    out, want, size = np.zeros((2, n), np.float32), np.zeros((2, n)), np.zeros((2, n))
    h, s = np.zeros(2), np.zeros(2)
    for i in range(n):
        h, s = wide(a[:, i]) * h + wide(b[:, i]), np.abs(wide(a[:, i])) * s + np.abs(wide(b[:, i]))
        want[:, i], size[:, i] = h, s
    return launch(name, [out, a, b], [Check(out, want, 2 * n * F32 * size)], grid=(2,))


@program("triton_sort_sm80", "triton_sort_descending_sm90")
def _(name: str, rng: Generator) -> Launch:
    if "descending" in name:
        x = rng.integers(-50, 50, (1, 128), np.int32)
        want = -np.sort(-x, 1)
    else:
        x = normal(rng, (2, 128))
        want = np.sort(x, 1)
    out = np.zeros_like(x)
    return launch(name, [out, x], [Check(out, want)], grid=(1,))


@program("triton_largest_sm80")
def _(name: str, rng: Generator) -> Launch:
    x, out = normal(rng, (2, 64)), np.zeros((2, 8), np.float32)
    return launch(name, [out, x], [Check(out, np.sort(x, 1)[:, ::-1][:, :8].copy())], grid=(1,))


@program("triton_histogram_sm80", "triton_histogram_sm90")
def _(name: str, rng: Generator) -> Launch:
    n, bins, block = (700, 64, 256) if "sm80" in name else (900, 32, 512)
    x, counts = (rng.exponential(8.0, n).astype(np.int32) % bins), np.zeros(bins, np.int32)
    return launch(
        name,
        [counts, x, n],
        [Check(counts, np.bincount(x, minlength=bins).astype(np.int32))],
        grid=(-(-n // block),),
    )


@program("triton_scatter_counts_sm80")
def _(name: str, rng: Generator) -> Launch:
    n = 600
    x = rng.integers(0, 10, n, np.int32)
    counts, weights = np.zeros(10, np.int32), np.zeros(10, np.float32)
    checks = [
        Check(counts, np.bincount(x, minlength=10).astype(np.int32)),
        Check(
            weights, np.bincount(x, np.arange(n), 10).astype(np.float32)
        ),  # whole numbers below 2^24: exact in any order
    ]
    return launch(name, [counts, weights, x, n], checks, grid=(3,))


@program("triton_atomics_sm80")
def _(name: str, rng: Generator) -> Launch:
    n = 256
    x = rng.integers(-100, 100, n, np.int32)
    cells = rng.integers(-100, 100, 4 * n + 16, np.int32)
    cells[3 * n : 3 * n + n : 2] = x[::2]
    before = cells.copy()
    own = before[: 4 * n].reshape(4, n)
    want = np.stack(
        [np.maximum(own[0], x), np.minimum(own[1], x), own[2] ^ x, np.where(own[3] == x, x + 1, own[3])]
    )
    old = np.zeros((4, n), np.int32)
    together = cells[4 * n :].reshape(4, 4)
    start, lane = together.copy(), np.arange(n) % 4
    checks = [Check(cells[: 4 * n].reshape(4, n), want), Check(old, own)]
    for i in range(4):
        mine = x[lane == i]
        checks += [
            Check(
                together[i, :1],
                np.bitwise_or.reduce(mine, initial=start[i, 0], keepdims=True).astype(np.int32),
            ),
            Check(
                together[i, 1:2],
                np.bitwise_and.reduce(mine, initial=start[i, 1], keepdims=True).astype(np.int32),
            ),
            Check(together[i, 2:3], (start[i, 2] + mine.sum(keepdims=True)).astype(np.int32)),
            Check(together[i, 3:], np.array([i * 7 + 1], np.int32)),
        ]
    return launch(name, [cells, old, x], checks, grid=(2,))


def uniform(bits: np.ndarray) -> np.ndarray:
    """Triton's float32 in [0, 1) from 32 bits."""
    signed = bits.view(np.int32)
    return np.where(signed < 0, -signed - 1, signed).astype(np.float32) * np.float32(4.6566127342e-10)


@program("triton_random_sm80")
def _(name: str, rng: Generator) -> Launch:
    n, seed, offset = 256, 1234, 77
    integers = philox(offset + np.arange(n), seed)
    u, v = wide(uniform(integers[0])), wide(uniform(integers[1]))
    gauss = np.sqrt(-2 * np.log(np.maximum(u, 1e-7))) * np.cos(2 * np.pi * v)
    got = [np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros((4, n), np.uint32)]
    checks = [
        Check(got[0], uniform(integers[0])),
        # The radius is below 5.7; the angle is rounded and the approximate cosine misses by up to 2^-20.5 near pi.
        Check(got[1], gauss, 6 * (8 * F32 * np.pi + 2.0**-20)),
        Check(got[2], np.stack(integers)),
    ]
    return launch(name, [*got, seed, offset], checks, grid=(2,))


@program("triton_dropout_sm90")
def _(name: str, rng: Generator) -> Launch:
    n, seed = 400, 4321
    x, out = normal(rng, n), np.full(n, 5, np.float32)
    kept = uniform(philox(np.arange(n), seed)[0]) < np.float32(0.7)
    want = np.where(kept, wide(x) / np.float64(np.float32(0.7)), 0)
    return launch(
        name, [out, x, n, 0.7, seed], [Check(out, want, rounding(want, np.float32, 2) * kept)], grid=(2,)
    )


@program("triton_transpose_sm80", "triton_transpose_f16_sm90")
def _(name: str, rng: Generator) -> Launch:
    block, dtype, rows, columns = (64, np.float16, 80, 96) if "f16" in name else (32, np.float32, 45, 50)
    x, out = normal(rng, (rows, columns), dtype), np.zeros((columns, rows), dtype)
    return launch(
        name,
        [out, x, rows, columns],
        [Check(out, x.T.copy())],
        grid=(-(-rows // block), -(-columns // block)),
    )


@program("triton_gather_sm80")
def _(name: str, rng: Generator) -> Launch:
    x, out, index = (
        normal(rng, (32, 16)),
        np.zeros((32, 16), np.float32),
        rng.integers(0, 32, (32, 16), np.int32),
    )
    return launch(name, [out, x, index], [Check(out, np.take_along_axis(x, index, 0))], grid=(1,))


@program("triton_embedding_sm80")
def _(name: str, rng: Generator) -> Launch:
    table, tokens, out = (
        normal(rng, (50, 64), bfloat16),
        rng.integers(0, 50, 24),
        np.zeros((24, 64), bfloat16),
    )
    return launch(name, [out, table, tokens], [Check(out, table[tokens])], grid=(3,))


@program("triton_casts_sm90")
def _(name: str, rng: Generator) -> Launch:
    n = 512
    x = (normal(rng, n) * np.exp2(rng.integers(-12, 5, n))).astype(np.float32)
    x[:8] = [0.0, -0.0, 448.0, -448.0, 1.0625, 0.001953125, 2.0**-10, 240.0]
    kinds = (e4m3, e5m2, bfloat16, np.float16)
    got = [np.zeros(n, kind) for kind in kinds]
    i8, back = np.zeros(n, np.int8), np.zeros(n, np.float32)
    small = np.clip(x, -12.7, 12.7)
    i8_in_range = np.abs(x) < 12.7
    checks = [Check(g, x.astype(kind)) for g, kind in zip(got, kinds)]
    checks.append(Check(back, x.astype(e4m3).astype(np.float32)))
    want_i8 = np.trunc(small * np.float32(10)).astype(np.int8)
    checks.append(Check(i8, wide(want_i8), np.where(i8_in_range, 0.0, 256.0)))
    return launch(name, [*got, i8, back, x], checks, grid=(2,))


@program("triton_integers_sm80")
def _(name: str, rng: Generator) -> Launch:
    n = 128
    a = rng.integers(-(2**62), 2**62, n) >> rng.integers(0, 50, n)
    b = (rng.integers(-(2**62), 2**62, n) >> rng.integers(0, 60, n)) | 1
    out = np.zeros((6, n), np.int64)
    quotient = np.array(
        [
            int(abs(x)) // int(abs(y)) * (1 if (x < 0) == (y < 0) else -1)
            for x, y in zip(a.tolist(), b.tolist())
        ]
    )
    high = np.array(
        [((x % 2**64) * (y % 2**64) >> 64) for x, y in zip(a.tolist(), b.tolist())], np.uint64
    ).view(np.int64)
    want = np.stack([a * b, quotient, a - quotient * b, high, (a << 5) ^ (b >> 3), np.maximum(a, b)])
    return launch(name, [out, a, b, n], [Check(out, want)], grid=(2,))


@program("triton_printing_sm80")
def _(name: str, rng: Generator) -> Launch:
    x = np.arange(40, dtype=np.float32) / 4
    lines = [
        f"pid ({i // 32}, 0, 0) idx ({i % 32:2d}) value: {x[i] if i < 40 else 0.0:f}\n" for i in range(64)
    ]
    return launch(name, [x, 40], [Check(x, x.copy())], grid=(2,), output="".join(lines))


@program("triton_dependent_sm90")
def _(name: str, rng: Generator) -> Launch:
    x, out, clock = normal(rng, 128), np.zeros(128, np.float32), np.zeros(2, np.int32)
    checks = [Check(out, x + np.float32(2)), Check(clock, np.array([2, 2], np.int32))]
    return launch(name, [out, x, clock], checks, grid=(1, 1, 2))


@program("triton_inline_assembly_sm80")
def _(name: str, rng: Generator) -> Launch:
    x, out = rng.integers(-128, 128, 1024, np.int8), np.zeros(1024, np.uint8)
    words = x.view(np.uint32)
    count = sum((words >> np.uint32(i)) & np.uint32(1) for i in range(32))
    return launch(name, [out, x], [Check(out, np.repeat(count, 4).astype(np.uint8))], grid=(2,))
