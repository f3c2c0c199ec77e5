"""How the CUDA C++ kernels about groups of threads, pipelines and sorting are launched, and what they must give."""

from __future__ import annotations

import numpy as np

from tests.simulator.foreign.corpus import (
    F32,
    Check,
    Launch,
    dot_bound,
    ints,
    normal,
    registry,
    signed,
    wide,
    zeros,
)

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")


# Cooperative groups ------------------------------------------------------------------------------------------


@program("groups", "tile_sums")
def _(rng: Generator) -> Launch:
    x = ints(rng, -1000, 1000, (2, 8, 8))
    sums, scans, most = zeros((2, 64), np.int32), zeros((2, 64), np.int32), zeros((2, 64))
    total = np.repeat(x.sum(-1, dtype=np.int32), 8, -1).reshape(2, 64)
    before = (np.cumsum(x, -1) - x).astype(np.int32).reshape(2, 64)
    # The pairs of a tile count from 0 within it, the tiles of 8 within their block.
    pairs = np.repeat(x.reshape(2, 32, 2).max(-1), 2, -1) * 0.5 + np.repeat(np.arange(8), 8)
    checks = [Check(sums, total), Check(scans, before), Check(most, pairs.astype(np.float32))]
    return Launch([sums, scans, most, x], checks, grid=(2, 1, 1), block=(64, 1, 1))


@program("groups", "labels")
def _(rng: Generator) -> Launch:
    label, x = ints(rng, 0, 4, 32), ints(rng, 0, 1000, 32)
    sums, ranks = zeros(32, np.int32), zeros(32, np.int32)
    want = np.array([x[label == k].sum() for k in label], np.int32)
    rank = np.array([(label[:i] == k).sum() * 100 + (label == k).sum() for i, k in enumerate(label)])
    parity = np.array([(x % 2 == v % 2).sum() for v in x])
    checks = [Check(sums, want), Check(ranks, (rank + 10000 * parity).astype(np.int32))]
    return Launch([sums, ranks, label, x], checks)


@program("groups", "diverged")
def _(rng: Generator) -> Launch:
    x = ints(rng, 0, 90, 64)
    chosen = x[x % 3 == 0]
    out, count = zeros(len(chosen), np.int32), zeros(2, np.int32)
    odd = sum(int((part % 3 == 0).sum()) // 2 for part in x.reshape(2, 32))
    checks = [
        Check(out, np.sort(chosen), unordered=True),
        Check(count, np.array([len(chosen), odd], np.int32)),
    ]
    return Launch([out, count, x], checks, block=(64, 1, 1))


@program("groups", "copy_in")
def _(rng: Generator) -> Launch:
    n = 300
    x, out = normal(rng, n), zeros(1)
    weight = np.zeros(n)
    for start in range(0, n, 128):
        count = min(128, n - start)
        weight[start : start + count] = start + np.arange(count)[::-1]
    want = wide(x) @ weight
    bound = 20 * F32 * (np.abs(wide(x)) @ weight)
    return Launch([out, x, n], [Check(out, want[None], bound)], block=(64, 1, 1), shared_bytes=512)


@program("groups", "cluster_scan")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -1000, 1000, (2, 256)), zeros((2, 256), np.int32)
    want = np.cumsum(x, -1).astype(np.int32)
    return Launch([out, x], [Check(out, want)], grid=(8, 1, 1), block=(64, 1, 1), cluster=(4, 1, 1))


@program("groups", "wide_tiles")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, 0, 100, (3, 64)), zeros((3, 64), np.int32)
    x[:2, 5] = 7
    x[2][x[2] == 7] = 8
    want = x.sum(1, dtype=np.int32) + 3 * x[:, 40] + np.array([1000000, 1000000, 0], np.int32)
    return Launch(
        [out, x], [Check(out, np.repeat(want, 64).reshape(3, 64).astype(np.int32))], block=(192, 1, 1)
    )


# Pipelines ---------------------------------------------------------------------------------------------------


@program("pipelines", "staged")
def _(rng: Generator) -> Launch:
    tiles = 5
    x, out = normal(rng, (tiles, 128)), zeros(32)
    scaled = wide(x)[:, ::-1] * (np.arange(tiles) + 1)[:, None]
    want = scaled.reshape(tiles, 4, 32).sum((0, 1))
    bound = 40 * F32 * np.abs(scaled).reshape(tiles, 4, 32).sum((0, 1))
    return Launch([out, x, tiles], [Check(out, want, bound)])


@program("pipelines", "roles")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -1000, 1000, (6, 32)), zeros(32, np.int32)
    want = np.zeros(32, np.int32)
    for tile in x:
        want = want * 3 + tile[np.arange(32) ^ 5]
    return Launch([out, x, 6], [Check(out, want)], block=(64, 1, 1))


@program("pipelines", "matmul")
def _(rng: Generator) -> Launch:
    m, n, k = 128, 64, 96
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (k, n), np.float16), zeros((m, n))
    check = Check(c, wide(a) @ wide(b), dot_bound(a, b, np.float32))
    return Launch([c, a, b, m, n, k], [check], grid=(n // 64, m // 64, 1), block=(128, 1, 1))


@program("pipelines", "stencil")
def _(rng: Generator) -> Launch:
    nz, ny, nx = 4, 13, 45
    x, out = normal(rng, (nz, ny, nx)), zeros((nz, ny, nx))
    padded = np.pad(wide(x), 1)
    want, size = -6 * wide(x), 6 * np.abs(wide(x))
    for axis in range(3):
        for shift in (0, 2):
            at = [slice(1, -1)] * 3
            at[axis] = slice(shift, padded.shape[axis] - 2 + shift)
            want = want + padded[tuple(at)]
            size = size + np.abs(padded[tuple(at)])
    return Launch([out, x, nx, ny, nz], [Check(out, want, 8 * F32 * size)], grid=(2, 2, 1), block=(32, 8, 1))


# Sorting -----------------------------------------------------------------------------------------------------


@program("sorting", "digits")
def _(rng: Generator) -> Launch:
    keys, counts = ints(rng, 0, 2**32, 300, np.uint32), zeros((16, 3), np.uint32)
    want = np.zeros((16, 3), np.uint32)
    np.add.at(want, (keys >> np.uint32(8) & np.uint32(15), np.arange(300) // 128), 1)
    return Launch([counts, keys, 300, 8], [Check(counts, want)], grid=(3, 1, 1), block=(128, 1, 1))


@program("sorting", "scatter")
def _(rng: Generator) -> Launch:
    keys, out = ints(rng, 0, 2**32, 300, np.uint32), zeros(300, np.uint32)
    digit = keys >> np.uint32(4) & np.uint32(15)
    counts = np.zeros((16, 3), np.uint32)
    np.add.at(counts, (digit, np.arange(300) // 128), 1)
    starts = (np.cumsum(counts) - counts.reshape(-1)).astype(np.uint32)
    want = keys[np.argsort(digit, kind="stable")]
    return Launch([out, keys, starts, 300, 4], [Check(out, want)], grid=(3, 1, 1), block=(128, 1, 1))


@program("sorting", "merge")
def _(rng: Generator) -> Launch:
    a, b = (np.sort(ints(rng, 0, 200, size)) for size in (150, 83))
    out = zeros(233, np.int32)
    want = np.sort(np.concatenate([a, b]))
    return Launch([out, a, b, 150, 83], [Check(out, want)], grid=(1, 1, 1), block=(32, 1, 1))


@program("sorting", "segments")
def _(rng: Generator) -> Launch:
    n = 400
    x, first, out = ints(rng, -99, 99, n), (rng.random(n) < 0.05).astype(np.uint8), zeros(n, np.int32)
    want, total = zeros(n, np.int32), 0
    for i in range(n):
        total = int(x[i]) + (0 if first[i] or i % 256 == 0 else total)
        want[i] = total
    return Launch([out, x, first, n], [Check(out, want)], grid=(2, 1, 1), block=(256, 1, 1))


@program("sorting", "runs")
def _(rng: Generator) -> Launch:
    lengths = np.array([5, 1, 33, 2, 40, 1, 1, 30], np.int32)
    keys = np.array([3, 9, 3, 4, 7, 8, 7, 1], np.int32)
    x = np.repeat(keys, lengths)
    got_keys, got_lengths, count = zeros(8, np.int32), zeros(8, np.int32), zeros(1, np.int32)
    checks = [
        Check(got_keys, keys),
        Check(got_lengths, lengths),
        Check(count, np.array([8], np.int32)),
    ]
    return Launch([got_keys, got_lengths, count, x, len(x)], checks, block=(128, 1, 1))


@program("sorting", "bytes")
def _(rng: Generator) -> Launch:
    a, b = (ints(rng, 0, 2**32, 32, np.uint32) for _ in range(2))
    out, want = zeros((32, 16), np.uint32), []
    for x, y in zip(a.tolist(), b.tolist()):

        def parts(bits: int, function, x: int = x, y: int = y, sign: bool = True) -> int:  # type: ignore[no-untyped-def]
            total = 0
            for at in range(0, 32, bits):
                pair = [(v >> at) % 2**bits for v in (x, y)]
                value = function(*(signed(v, bits) if sign else v for v in pair))
                total |= value % 2**bits << at
            return total

        def clamp(v: int, low: int, high: int) -> int:
            return max(low, min(high, v))

        def byte(v: int, at: int) -> int:
            return v >> 8 * at & 255

        pairs = [(byte(x, i), byte(y, i)) for i in range(4)]
        high, by = x >> 16, min(y & 255, 32)
        both = [byte(x, i) for i in range(4)] + [byte(y, i) for i in range(4)]
        want.append(
            [
                parts(8, lambda p, q: p + q),
                parts(8, lambda p, q: clamp(p - q, -128, 127)),
                parts(8, lambda p, q: abs(p - q)),
                parts(8, lambda p, q: (p + q + 1) >> 1, sign=False),
                parts(16, max),
                parts(8, lambda p, q: -int(p > q), sign=False),
                sum(abs(p - q) for p, q in pairs),
                parts(16, lambda p, q: min(p + q, 65535), sign=False),
                sum(both[0x2461 >> 4 * i & 7] << 8 * i for i in range(4)),
                abs(x - y) + 7,
                ((y << 32 | x) << (x & 31)) >> 32,
                signed(x, 32) * signed(y, 32) >> 32,
                clamp(byte(x, 2) + signed(y >> 16, 16), -(2**31), 2**31 - 1),
                (signed(x, 16) * byte(y, 3) + signed(x, 32)) >> 7,
                # The minimum is taken of all bits of what was shifted, and with the whole word.
                min(high << by, y),
                x + sum(int(p < signed(q, 8)) for p, q in pairs),
            ]
        )
    rows = np.array([[v % 2**32 for v in row] for row in want], np.uint32)
    return Launch([out, a, b], [Check(out, rows)])
