"""How the CUDA C++ kernels about the language and about sharing among blocks are launched, and what they must give."""

from __future__ import annotations

import numpy as np

from tests.simulator.foreign.corpus import F32, Check, Launch, ints, normal, registry, signed, wide, zeros

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")


# Objects -----------------------------------------------------------------------------------------------------


@program("objects", "shapes")
def _(rng: Generator) -> Launch:
    size, out = rng.random(70).astype(np.float32), zeros(70)
    circle, box = 3.25 * wide(size) ** 2 * 4, 2 * wide(size) ** 2 * 4 + 1
    want = np.where((size * np.float32(4)).astype(int) % 2 == 0, circle, box)
    return Launch([out, size, 70], [Check(out, want, 6 * F32 * want)], grid=(2, 1, 1), block=(64, 1, 1))


@program("objects", "table")
def _(rng: Generator) -> Launch:
    a, b = ints(rng, -1000, 1000, 100), ints(rng, -1000, 1000, 100)
    which, out = ints(rng, 0, 256, 100, np.uint8), zeros(100, np.int32)
    want = np.choose(which % 4, [a + b, a - b, a * b, np.maximum(a, b)])
    return Launch([out, a, b, which, 100], [Check(out, want)], grid=(2, 1, 1), block=(64, 1, 1))


@program("objects", "lambdas")
def _(rng: Generator) -> Launch:
    x, out, n = normal(rng, 50) * np.float32(20), zeros(50), 50
    value = wide(x) * 3 + np.arange(50)
    size = np.abs(wide(x)) * 3 + np.arange(50)
    # None of them is so near to n that rounding would decide.
    value = np.where(value > n, value * 3, -value) * 3
    return Launch([out, x, 3.0, n], [Check(out, value, 40 * F32 * size)], block=(64, 1, 1))


@program("objects", "fields")
def _(rng: Generator) -> Launch:
    words = rng.integers(0, 2**32, (40, 2), np.uint32)
    total, want_words, want = zeros(40, np.int32), words.copy(), []
    for i, (first, second) in enumerate(words.tolist()):
        low, high = first & 7, first >> 14
        middle = (low * high + 5) & 0x7FF
        delta = signed((second & 127) - 1, 7)
        want_words[i] = low | middle << 3 | high << 14, (second & ~127) | (delta & 127)
        want.append(low + middle + high + delta)
    checks = [Check(total, np.array(want, np.int32)), Check(words, want_words)]
    return Launch([words, total, 40], checks, block=(64, 1, 1))


@program("objects", "machine")
def _(rng: Generator) -> Launch:
    steps = 60
    code, start, out = (
        ints(rng, 0, 12, (4, steps), np.uint8),
        ints(rng, -(2**31), 2**31, 64),
        zeros(64, np.int32),
    )
    want = []
    for i in range(64):
        stack, at = [int(start[i])], 0
        while at < steps:
            op = int(code[i & 3, at])
            x = stack[-1]
            if op == 0:
                stack.append(x)
            elif op == 1:
                stack[-1] = signed(-x, 32)
            elif op in (2, 3) and len(stack) > 1:
                stack.pop()
                stack[-1] = signed(stack[-1] + x if op == 2 else stack[-1] * x, 32)
            elif op == 4:
                stack[-1] = x ^ 0x55
            elif op == 5 and len(stack) > 1:
                stack[-1], stack[-2] = stack[-2], x
            elif op == 6:
                stack[-1] = x >> 1
            elif op == 7:
                stack[-1] = signed(x * 3 + 1, 32)
            elif op == 8:
                stack.append(i)
            elif op == 9 and x < 0:
                at += 1
            del stack[14:]
            at += 1
        total = 0
        while stack:
            total = signed(total * 31 + stack.pop(), 32)
        want.append(total)
    return Launch([out, code, start, steps], [Check(out, np.array(want, np.int32))], block=(64, 1, 1))


@program("objects", "library")
def _(rng: Generator) -> Launch:
    z = normal(rng, (32, 2))
    z[0] = 7.0, 0.0
    out, roots = zeros((32, 2)), zeros(32, np.int32)
    c = wide(z) @ np.array([1, 1j])
    total = c + c * c + c * c * c
    size = np.abs(c) + np.abs(c) ** 2 + np.abs(c) ** 3
    squares = np.array([int(i**0.5) if int(i**0.5) ** 2 == i else -1 for i in range(32)], np.int32)
    want = np.stack([total.real, total.imag], -1)
    return Launch([out, roots, z], [Check(out, want, 16 * F32 * size[:, None]), Check(roots, squares)])


@program("objects", "trees")
def _(rng: Generator) -> Launch:
    # A chain, a full tree and a leaf; lanes sort rows of their own.
    nodes = [(i, i + 1 if i < 4 else -1, -1) for i in range(5)]
    nodes += [(i, 5 + 2 * (i - 5) + 1, 5 + 2 * (i - 5) + 2) for i in range(5, 8)]
    nodes += [(i, -1, -1) for i in range(8, 12)]
    roots = np.array([0, 5, 11, 3, 6, -1, 2, 5], np.int32)
    values, depths = ints(rng, -50, 50, (8, 11)), zeros(8, np.int32)
    want = np.array([5, 3, 1, 2, 2, 0, 3, 3], np.int32)
    return Launch(
        [depths, values, np.array(nodes, np.int32), roots, 11],
        [Check(depths, want), Check(values, np.sort(values, -1))],
        block=(8, 1, 1),
    )


# Sharing -----------------------------------------------------------------------------------------------------


@program("sharing", "hash_insert")
def _(rng: Generator) -> Launch:
    keys = ints(rng, 1, 40, 200, np.uint32)
    table, distinct = zeros(64, np.uint64), zeros(1, np.int32)
    found, counts = np.unique(keys, return_counts=True)
    want = np.sort(
        np.concatenate([np.zeros(64 - len(found), np.uint64), found.astype(np.uint64) << np.uint64(32) | counts.astype(np.uint64)])
    )  # fmt: skip
    checks = [Check(table, want, unordered=True), Check(distinct, np.array([len(found)], np.int32))]
    return Launch([table, distinct, keys, 200, 63], checks, grid=(4, 1, 1), block=(64, 1, 1))


class Lists(Check):
    """Every node is in its bucket's list once, whatever the order."""

    def failure(self) -> str | None:
        n = len(self.want)
        for bucket in range(4):
            seen, at = [], int(self.got[bucket])
            while at >= 0 and len(seen) <= n:
                seen.append(at)
                at = int(self.got[4 + at])
            if sorted(seen) != list(range(bucket, n, 4)):
                return f"the list of bucket {bucket} holds {seen[:5]} and {len(seen)} nodes in all"
        return None


@program("sharing", "push")
def _(rng: Generator) -> Launch:
    n = 90
    # The heads and the links in one array, so that one check sees both.
    links, value = np.full(4 + n, -1, np.int32), zeros(n, np.int32)
    checks = [Lists(links, np.arange(n)), Check(value, 3 * np.arange(n, dtype=np.int32))]
    return Launch([links, links[4:], value, n], checks, grid=(3, 1, 1), block=(32, 1, 1))


@program("sharing", "ticket")
def _(rng: Generator) -> Launch:
    blocks = 4
    tickets, serving, balance = zeros(1, np.int32), zeros(1, np.int32), zeros(1, np.float64)
    order = np.full(3 * blocks, -1, np.int32)
    want = 0.0
    for _ in range(3 * blocks):
        want = want * 0.5 + 1
    full = np.full(1, 3 * blocks, np.int32)
    checks = [
        Check(balance, np.array([want])),
        Check(tickets, full),
        Check(serving, full),
        Check(order, np.repeat(np.arange(blocks, dtype=np.int32), 3), unordered=True),
    ]
    return Launch([tickets, serving, balance, order], checks, grid=(blocks, 1, 1))


@program("sharing", "system_counters")
def _(rng: Generator) -> Launch:
    n, block = 90, 64
    counts, wide_, total = zeros(4, np.uint32), np.array([0, 2**60, 2**60], np.uint64), zeros(1)
    i = np.arange(n)
    bits = np.bincount(i % 64, minlength=64) % 2
    want = np.array([n, (i * 7 % 1001).max(), i[:block].sum(), i[block:].sum()], np.uint32)
    low = np.array([sum(int(b) << k for k, b in enumerate(bits)), 0, 3 * block], np.uint64)
    checks = [Check(counts, want), Check(wide_, low), Check(total, np.array([n / 4], np.float32))]
    return Launch([counts, wide_, total, n], checks, grid=(2, 1, 1), block=(block, 1, 1))


@program("sharing", "look_back")
def _(rng: Generator) -> Launch:
    x, out, state = ints(rng, -1000, 1000, 700), zeros(700, np.int32), zeros(6, np.uint64)
    want = np.cumsum(x).astype(np.int32)
    return Launch([out, x, state, 700], [Check(out, want)], grid=(6, 1, 1), block=(128, 1, 1))


@program("sharing", "persistent")
def _(rng: Generator) -> Launch:
    work, queue = ints(rng, 1, 500, 9), zeros(1, np.int32)
    out = zeros((9, 64), np.int32)
    want = np.zeros((9, 64), np.int32)
    for i, start in enumerate(work):
        for t in range(64):
            x, steps = int(start) + t, 0
            while x > 1 and steps < 40:
                x, steps = (3 * x + 1 if x & 1 else x // 2), steps + 1
            want[i, t] = steps
    checks = [Check(out, want), Check(queue, np.array([9 + 3], np.int32))]
    return Launch([out, queue, work, 9], checks, grid=(3, 1, 1), block=(64, 1, 1))


@program("sharing", "rounds")
def _(rng: Generator) -> Launch:
    data = ints(rng, 0, 1000, (2, 128))
    want = data.copy()
    for step in range(5):
        want[(step + 1) % 2] = np.roll(want[step % 2], -1) + 1
    return Launch([data, 5], [Check(data, want)], grid=(4, 1, 1))


@program("sharing", "sequence")
def _(rng: Generator) -> Launch:
    version, pair, torn = zeros(1, np.int32), zeros(2, np.int32), zeros(1, np.int32)
    checks = [
        Check(version, np.array([40], np.int32)),
        Check(pair, np.array([20, -20], np.int32)),
        Check(torn, zeros(1, np.int32)),
    ]
    return Launch([version, pair, torn], checks, grid=(3, 1, 1))


@program("sharing", "relay")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -(2**20), 2**20, (5, 64)), zeros((5, 64), np.int32)
    return Launch([out, x], [Check(out, 2 * x[:, ::-1])], block=(128, 1, 1))
