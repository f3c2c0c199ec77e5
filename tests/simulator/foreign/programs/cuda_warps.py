"""How the CUDA C++ kernels about warps and atomics are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import F32, Check, Launch, ints, normal, registry, wide, zeros

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")

bfloat16 = ml_dtypes.bfloat16


# Warps -------------------------------------------------------------------------------------------------------


@program("warp", "votes")
def _(rng: Generator) -> Launch:
    n = 64
    x = ints(rng, -100, 100, n)
    x[32:48] = 7
    lane, warp, x2 = np.arange(n) % 32, np.arange(n) // 32, x.reshape(2, 32)
    bits = np.uint64(1) << np.arange(32, dtype=np.uint64)

    def ballot(p: np.ndarray) -> np.ndarray:
        return (p.reshape(2, 32) * bits).sum(1, dtype=np.uint64).astype(np.int64)[warp]

    def spread(per_warp: np.ndarray) -> np.ndarray:
        return np.asarray(per_warp).astype(np.int64)[warp]

    mod5 = np.fmod(x2, 5)
    match = (
        ((mod5[:, :, None] == mod5[:, None, :]) * bits).sum(2, dtype=np.uint64).astype(np.int64).reshape(-1)
    )
    thousand = np.trunc(x2 / 1000)
    same = (thousand == thousand[:, :1]).all(1)

    def shuffle(source: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return np.where(valid, x[warp * 32 + np.where(valid, source, lane)], x)

    segment16, segment8 = lane // 16 * 16, lane // 8 * 8
    positive = x2 > 0
    first = np.array([x2[w][positive[w]][0] for w in range(2)])
    diverged = np.where(
        x > 0,
        spread(positive.sum(1)) + spread(first),
        ballot((x <= 0) & (x % 2 == 0)) ^ 0x80000000,
    )
    want = np.stack([
        ballot(x > 0), ballot(x > 90).astype(bool) + 2 * spread((x2 > -100).all(1)), match,
        spread(np.where(same, 0xFFFFFFFF, 0)) + spread(same), spread(x2.sum(1)), spread(x2.max(1)) ^ spread(x2.min(1)),
        spread(np.bitwise_and.reduce(x2 | 1, 1) ^ np.bitwise_or.reduce(x2 & 0xF0, 1) ^ np.bitwise_xor.reduce(x2, 1)),
        shuffle(lane * 7 % 32, lane >= 0), shuffle(lane - 3, lane - 3 >= segment16),
        shuffle(lane + 5, lane + 5 < segment8 + 8), shuffle(lane ^ 9, lane >= 0), diverged,
        np.full(n, (x > 0).sum() * 4 + (x < 1000).all() * 2 + (x == 12345).any()),
        (x[np.arange(n) ^ 1].astype(np.int64) << 33) >> 32,
    ])  # fmt: skip
    out = zeros(want.shape, np.uint32)
    return Launch([out, x], [Check(out, (want % 2**32).astype(np.uint32))], block=(n, 1, 1))


@program("warp", "compact")
def _(rng: Generator) -> Launch:
    x, out, count = ints(rng, -50, 50, 100), zeros(100, np.int32), zeros(1, np.int32)
    kept = np.sort(x[x > 0])
    checks = [
        Check(count, np.array([len(kept)], np.int32)),
        Check(out[: len(kept)], kept, unordered=True),
        Check(out[len(kept) :], np.zeros(100 - len(kept), np.int32)),
    ]
    return Launch([out, count, x, 100], checks, grid=(2, 1, 1), block=(64, 1, 1))


@program("warp", "tiles")
def _(rng: Generator) -> Launch:
    n = 64
    x, out = normal(rng, n), zeros((4, n))
    warps = wide(x).reshape(2, 32)
    want = np.zeros((4, n))
    want[0] = np.repeat(wide(x).reshape(8, 8).sum(1), 8)
    want[1] = np.cumsum(warps, 1).reshape(-1)
    for w in range(2):
        for part in (warps[w] > 0, warps[w] <= 0):
            want[2, w * 32 : w * 32 + 32][part] = warps[w][part].max() + part.sum()
    label = np.arange(n) % 3
    for w in range(2):
        seen = [0, 0, 0]
        for i in range(w * 32, w * 32 + 32):
            want[3, i] = seen[label[i]] + 100 * label_rank(label[w * 32 : w * 32 + 32], label[i])
            seen[label[i]] += 1
    bound = np.stack([40 * F32 * np.full(n, np.abs(x).sum())] * 2 + [np.full(n, 40 * F32 * 2), np.zeros(n)])
    return Launch([out, x], [Check(out, want, bound)], block=(n, 1, 1))


def label_rank(labels: np.ndarray, label: int) -> int:
    """The rank of a label's group: groups are numbered by the first thread of each."""
    order = list(dict.fromkeys(labels.tolist()))
    return order.index(label)


@program("warp", "collatz")
def _(rng: Generator) -> Launch:
    n = 60
    steps, want = zeros(n, np.int32), []
    for x in range(1, n + 1):
        count = 0
        while x != 1:
            x, count = (x // 2 if x % 2 == 0 else 3 * x + 1), count + 1
        want.append(count)
    return Launch([steps, n], [Check(steps, np.array(want, np.int32))], grid=(2, 1, 1))


# Atomics -----------------------------------------------------------------------------------------------------


@program("atomics", "largest")
def _(rng: Generator) -> Launch:
    x, out = rng.standard_normal(100), zeros(1, np.float64)
    return Launch(
        [out, x, 100], [Check(out, np.maximum(x.max(keepdims=True), 0))], grid=(2, 1, 1), block=(64, 1, 1)
    )


@program("atomics", "operations")
def _(rng: Generator) -> Launch:
    n = 128
    x = rng.integers(0, 2**20, n, np.uint32)
    cells = rng.integers(0, 2**20, 10 + n, np.uint32)
    cells[0], cells[1], cells[2], cells[3], cells[7] = 5, 6, 2**31, 7, 3
    start = cells.copy()
    wide_cells = np.array([7, 8, 9], np.uint64)
    sums, total, pair, single = zeros(5), zeros(1, np.float64), zeros(2, np.float16), zeros(1, bfloat16)

    def wrap_up(value: int, limit: int) -> int:
        return 0 if value >= limit else value + 1

    def wrap_down(value: int, limit: int) -> int:
        return limit if value == 0 or value > limit else value - 1

    local_inc, dec = 0, int(start[7])
    for _ in range(64):
        local_inc = wrap_up(local_inc, 9)
    for _ in range(n):
        dec = wrap_down(dec, 12)
    total_x = int(x.astype(np.int64).sum())
    want = start.copy()
    want[:10] = [
        (int(start[0]) + total_x) % 2**32, max(6, x.max()), x.min(), 7 + 2 * local_inc,
        start[4] & np.bitwise_and.reduce(x | np.uint32(0xFF00FF00)),
        start[5] | np.bitwise_or.reduce(x & np.uint32(0x0F0F0F0F)),
        start[6] ^ np.bitwise_xor.reduce(x), dec, (int(start[8]) - total_x) % 2**32, max(start[9], x.max()),
    ]  # fmt: skip
    want[10:] += x
    xor = 0
    for v in x.tolist():
        xor ^= v << v % 32
    wide_want = np.array([7 + (total_x << 20), max(8, int(x.max()) ** 2), 9 ^ xor], np.uint64)
    sums_want = np.concatenate([np.bincount(x % 3, minlength=3), [32.0, 32.0]]).astype(np.float32)
    checks = [
        Check(cells, want), Check(wide_cells, wide_want), Check(sums, sums_want),
        Check(total, np.array([0.25 * total_x])), Check(pair, np.array([128, 32], np.float16)),
        Check(single, np.array([128], bfloat16)),
    ]  # fmt: skip
    return Launch([cells, wide_cells, sums, total, pair, single, x], checks, grid=(2, 1, 1), block=(64, 1, 1))


@program("atomics", "locked")
def _(rng: Generator) -> Launch:
    lock, value = zeros(1, np.int32), np.array([1], np.int32)
    want = 1
    for _ in range(2 * 2 * 3):
        want = want * 3 + 1
    checks = [Check(lock, zeros(1, np.int32)), Check(value, np.array([want], np.int64).astype(np.int32))]
    return Launch([lock, value, 3], checks, grid=(2, 1, 1), block=(64, 1, 1))


@program("atomics", "chain")
def _(rng: Generator) -> Launch:
    data, flag = zeros((4, 32), np.int32), zeros(1, np.int32)
    want, previous = np.zeros_like(data), np.ones(32, np.int32)
    for i in range(4):
        want[i] = previous * 2 + np.arange(32)
        previous = np.roll(want[i], -1)
    return Launch([data, flag], [Check(data, want), Check(flag, np.array([4], np.int32))], grid=(4, 1, 1))


@program("atomics", "grid_barrier")
def _(rng: Generator) -> Launch:
    x, out, scratch, arrived = normal(rng, 128), zeros(128), zeros(128), zeros(1, np.int32)
    square = x * x
    want = square[::-1] + np.roll(square, -32)
    return Launch([out, scratch, arrived, x], [Check(out, want)], grid=(4, 1, 1))
