"""How the CUDA C++ kernels about blocks, calls, memory and output are launched, and what they must give."""

from __future__ import annotations

import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    F32,
    F64,
    Check,
    Launch,
    Program,
    dot_bound,
    ints,
    normal,
    philox,
    registry,
    signed,
    wide,
    zeros,
)

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")

bfloat16 = ml_dtypes.bfloat16


# Reductions --------------------------------------------------------------------------------------------------


@program("reduce", "sum_float")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, 1000), zeros(1)
    check = Check(out, wide(x).sum(keepdims=True), 1000 * F32 * np.abs(x).sum())
    return Launch([out, x, 1000], [check], grid=(3, 1, 1), block=(128, 1, 1))


@program("reduce", "sum_double")
def _(rng: Generator) -> Launch:
    x, out = rng.standard_normal(500), zeros(1, np.float64)
    want = np.sqrt((x * x).sum(keepdims=True))
    return Launch([out, x, 500], [Check(out, want, 500 * F64 * want)], block=(96, 1, 1))


@program("reduce", "sum_tree")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -(2**31), 2**31, (2, 128)), zeros(2, np.int64)
    return Launch(
        [out, x],
        [Check(out, x.sum(1, dtype=np.int64))],
        grid=(2, 1, 1),
        block=(128, 1, 1),
        shared_bytes=128 * 8,
    )


@program("reduce", "sum_last_block")
def _(rng: Generator) -> Launch:
    x, out, partial = normal(rng, 600), zeros(1), zeros(5)
    check = Check(out, wide(x).sum(keepdims=True), 600 * F32 * np.abs(x).sum())
    return Launch([out, partial, x, 600], [check], grid=(5, 1, 1), block=(128, 1, 1))


# Output ------------------------------------------------------------------------------------------------------


@program("printf", "hello")
def _(rng: Generator) -> Launch:
    x = np.array([0.5, -1.25, 3.0], np.float32)
    line = "thread %d of block (%d, %d): %f and %s %d %s %5.2e %x\n"
    lines = [
        line % (i, b, 0, x[i], ("even", "odd")[i % 2], i << 40, chr(97 + i), x[i] * 1000.0, i * 255)
        for b in range(2) for i in range(3)
    ]  # fmt: skip
    lines.insert(3, "100%\n")
    return Launch([x, 3], [Check(x, x.copy())], grid=(2, 1, 1), output="".join(lines))


@program("printf", "asserting")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, 0, 100, 32), zeros(32, np.int32)
    return Launch([out, x], [Check(out, x + 1)])


# Functions ---------------------------------------------------------------------------------------------------


@program("functions", "complex_power")
def _(rng: Generator) -> Launch:
    x = rng.standard_normal((64, 2))
    out = zeros((64, 2), np.float64)
    want = (x[:, 0] + 1j * x[:, 1]) ** 5
    bound = 40 * F64 * np.abs(want)[:, None]
    return Launch([out, x, 5], [Check(out, np.stack([want.real, want.imag], 1), bound)], grid=(2, 1, 1))


@program("functions", "polynomial")
def _(rng: Generator) -> Launch:
    x, c, out = normal(rng, 64), normal(rng, 7), zeros(64)
    degree = 6 - np.arange(64) % 3
    want = np.array([np.polyval(wide(c)[d::-1], v) for d, v in zip(degree, wide(x))])
    size = np.array([np.polyval(np.abs(wide(c))[d::-1], abs(v)) for d, v in zip(degree, wide(x))])
    return Launch([out, x, c, 6], [Check(out, want, 2 * 14 * F32 * size)], grid=(2, 1, 1))


@program("recursion", "recursion")
def _(rng: Generator) -> Launch:
    out = zeros(32, np.uint32)
    fibonacci = np.array([0, 1, 1, 2, 3, 5, 8, 13, 21], np.uint32)
    return Launch([out], [Check(out, fibonacci[np.arange(32) % 9])])


@program("functions", "indirect")
def _(rng: Generator) -> Launch:
    a, b, which, out = (
        ints(rng, -99, 99, 32),
        ints(rng, -99, 99, 32),
        ints(rng, 0, 3, 32),
        zeros(32, np.int32),
    )
    return Launch([out, a, b, which], [Check(out, np.choose(which, [a + b, a - b, a ^ b]))])


@program("functions", "interpreter")
def _(rng: Generator) -> Launch:
    code, out = ints(rng, 0, 10, 40, np.uint8), zeros((2, 32, 2), np.int32)
    want = np.zeros_like(out)
    steps: list[Callable[[int, int, int], tuple[int, int]]] = [
        lambda a, b, pc: (a + b, b),
        lambda a, b, pc: (a, a * 3 - b),
        lambda a, b, pc: (a ^ b << 2, b),
        lambda a, b, pc: (a, ~b),
        lambda a, b, pc: (max(a, b), b),
        lambda a, b, pc: (a, b >> 1),
        lambda a, b, pc: (b, a),
        lambda a, b, pc: (a - 17, b),
        lambda a, b, pc: (a, b + pc),
        lambda a, b, pc: (-a, b),
    ]
    for block in range(2):
        for thread in range(32):
            a, b = thread, block + 1
            for pc in range(40):
                a, b = (signed(x, 32) for x in steps[code[(pc + thread) % 40]](a, b, pc))
            want[block, thread] = a, b
    return Launch([out, code, 40], [Check(out, want)], grid=(2, 1, 1))


@program("functions", "insertion_sort")
def _(rng: Generator) -> Launch:
    x = ints(rng, -1000, 1000, (32, 15), np.int16)
    out = np.zeros_like(x)
    return Launch([out, x, 15], [Check(out, np.sort(x, 1))])


@program("functions", "by_value")
def _(rng: Generator) -> Launch:
    table = [3, -5, 700, 0, 41]
    packed = struct.pack("<fB3xq5i4x", 2.5, 7, -(10**12), *table)
    out = zeros(32, np.int64)
    want = np.array([int(2.5 * table[i % 5]) + (-(10**12) >> 7) for i in range(32)])
    return Launch([out, packed], [Check(out, want)])


# Memory ------------------------------------------------------------------------------------------------------


@program("memory", "convolution")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, 150), zeros(150)
    taps = np.array([0.0625, -0.125, 0.25, 1.0, 0.25, -0.125, 0.0625])
    check = Check(
        out, np.convolve(wide(x), taps, "same"), 14 * F32 * np.convolve(np.abs(wide(x)), np.abs(taps), "same")
    )
    return Launch([out, x, 150], [check], grid=(3, 1, 1), block=(64, 1, 1))


@program("memory", "variables")
def _(rng: Generator) -> Launch:
    out, text = zeros(32, np.float64), zeros(14, np.uint8)
    primes, table = np.array([2, 3, 5, 7, 11, 13, 17, 19]), np.array([[1.5, 2.5, -3.5], [1e-3, 1e3, 1e300]])
    i = np.arange(32)
    # The first two terms are a float32 sum, exact; the rest is added in float64, in order.
    want = ((31 - i) * 0.5 + 42 + primes[i % 8]) + table[i % 2, i % 3]
    return Launch([out, text], [Check(out, want), Check(text, np.frombuffer(b"constant text\0", np.uint8))])


@program("memory", "vectors")
def _(rng: Generator) -> Launch:
    x, bytes_ = normal(rng, (2, 32, 2)), ints(rng, 0, 256, (32, 4), np.uint8)
    pixels = np.zeros(
        32, [("r", "u1"), ("g", "u1"), ("b", "u1"), ("gap", "u1"), ("weight", "f2"), ("tail", "u2")]
    )
    for channel in "rgb":
        pixels[channel] = ints(rng, 0, 256, 32, np.uint8)
    pixels["weight"] = normal(rng, 32, np.float16)
    wide_cells, odd = rng.integers(-(2**60), 2**60, (32, 2)), ints(rng, -999, 999, (32, 3), np.int16)
    before = pixels.copy()
    out = zeros((32, 4))
    b = bytes_.astype(np.float32)
    want = np.stack(
        [x[0, :, 0] + x[1, :, 0], x[0, :, 1] - x[1, :, 1], b[:, 0] * 256 + b[:, 1], b[:, 2] - b[:, 3]], 1
    )
    after = pixels.copy()
    after["r"] = before["r"] + before["g"]
    after["g"] = 255 - before["b"]
    after["b"] = before["b"] ^ 0x55
    after["weight"] = before["weight"] * np.float16(0.5)
    checks = [
        Check(out, want),
        *(Check(pixels[key], after[key]) for key in ("r", "g", "b", "weight")),
        Check(wide_cells, np.stack([wide_cells[:, 1], -wide_cells[:, 0]], 1)),
        Check(odd, odd[:, [2, 0, 1]]),
    ]
    return Launch([out, x, bytes_, pixels.view(np.uint8), wide_cells, odd], checks)


def spaces(which: int) -> Callable[[Generator], Launch]:
    def setup(rng: Generator) -> Launch:
        out = ints(rng, -99, 99, 96)
        want, i = out.copy(), np.arange(32)
        own, inside = (i % 4 + 1), i * 10
        want[:32] = {0: (i ^ 1) * 10 + 1000, 1: own + 2000, 2: out[32:64] + 3000}[which]
        if which == 2:
            want[32:64] = 5
        want[64:] = (5 if which == 1 else own) + (5 if which == 0 else inside)
        return Launch([out, which], [Check(out, want)])

    return setup


for which in range(3):
    PROGRAMS.append(
        Program("nvcc_memory", "spaces", spaces(which), label=("shared", "local", "global")[which])
    )


# Algorithms --------------------------------------------------------------------------------------------------


@program("algorithms", "scan")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -999, 999, 128), zeros(128, np.int32)
    want = np.concatenate([[0], np.cumsum(x)[:-1]]).astype(np.int32)
    return Launch([out, x, 128], [Check(out, want)], block=(64, 1, 1), shared_bytes=512)


@program("algorithms", "bitonic")
def _(rng: Generator) -> Launch:
    keys = rng.integers(0, 2**64, (2, 128), np.uint64)
    return Launch([keys], [Check(keys, np.sort(keys, 1))], grid=(2, 1, 1), block=(128, 1, 1))


@program("algorithms", "fourier")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (2, 128, 2)), zeros((2, 128, 2))
    want = np.fft.fft(wide(x[..., 0]) + 1j * wide(x[..., 1]))
    # Seven stages, each rounding a few times; the twiddles are right to 2 units in the last place.
    bound = 7 * 8 * F32 * np.abs(x).sum((1, 2))[:, None, None]
    return Launch(
        [out, x], [Check(out, np.stack([want.real, want.imag], 2), bound)], grid=(2, 1, 1), block=(64, 1, 1)
    )


@program("algorithms", "product")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (32, 24)), normal(rng, (24, 64)), zeros((32, 64))
    return Launch(
        [c, a, b, 64, 24],
        [Check(c, wide(a) @ wide(b), dot_bound(a, b, np.float32))],
        grid=(2, 1, 1),
        block=(64, 1, 1),
    )


@program("algorithms", "transpose")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (40, 50)), zeros((50, 40))
    return Launch([out, x, 50, 40], [Check(out, x.T.copy())], grid=(2, 2, 1), block=(32, 8, 1))


@program("algorithms", "work_queue")
def _(rng: Generator) -> Launch:
    n = 150
    parent = np.array([0] + [int(rng.integers(0, i)) for i in range(1, n)], np.int32)
    depth, following = zeros(n, np.int32), zeros(1, np.int32)
    want = zeros(n, np.int32)
    for i in range(1, n):
        want[i] = want[parent[i]] + 1
    return Launch([depth, following, parent, n], [Check(depth, want)], grid=(2, 1, 1))


@program("algorithms", "philox")
def _(rng: Generator) -> Launch:
    out = zeros((64, 4), np.uint32)
    return Launch([out, 20201], [Check(out, np.stack(philox(np.arange(64), 20201), 1))], grid=(2, 1, 1))


@program("debug", "bodies")
def _(rng: Generator) -> Launch:
    n = 64
    body, forces = normal(rng, (n, 4)), zeros((n, 3))
    body[:, 3] = np.abs(body[:, 3])
    x = wide(body)
    d = x[None, :, :3] - x[:, None, :3]
    r2 = 0.01 + (d * d).sum(2)
    pull = (x[None, :, 3] / r2**1.5)[:, :, None] * d
    bound = F32 * (
        (n + 16) * np.abs(pull).sum(1)
        + (x[None, :, 3] / r2**1.5 * 6 * np.abs(x[:, :3]).max()).sum(1)[:, None]
    )
    return Launch([forces, body, n], [Check(forces, pull.sum(1), bound)], grid=(2, 1, 1))


@program("cub", "radix_sort")
def _(rng: Generator) -> Launch:
    keys, values = rng.integers(0, 2**16, (2, 128), np.uint32), np.arange(256, dtype=np.int32).reshape(2, 128)
    order = np.argsort(keys, 1, kind="stable")
    checks = [
        Check(keys, np.take_along_axis(keys, order, 1)),
        Check(values, np.take_along_axis(values, order, 1)),
    ]
    return Launch([keys, values], checks, grid=(2, 1, 1), block=(64, 1, 1))


@program("cub", "prefix")
def _(rng: Generator) -> Launch:
    x, out, carry, ready = (
        ints(rng, -999, 999, 768),
        zeros(768, np.int32),
        zeros(3, np.int32),
        zeros(3, np.int32),
    )
    sums = np.cumsum(x, dtype=np.int32)
    checks = [Check(out, sums), Check(carry, sums[255::256].copy())]
    return Launch([out, carry, ready, x], checks, grid=(3, 1, 1), block=(64, 1, 1))


@program("cub", "extent")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, 500), zeros(2)
    return Launch([out, x, 500], [Check(out, np.array([x.min(), x.max()]))], block=(96, 1, 1))
