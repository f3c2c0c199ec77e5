"""How the CUDA C++ kernels of models, training and generation, are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    BF16,
    F16,
    F32,
    Check,
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

# __expf has an error of 2 + floor(|1.173 x|) units (CUDA C++ Programming Guide); arguments here stay above -12.
EXP = 17 * 2 * F32


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Training ----------------------------------------------------------------------------------------------------


@program("training", "softmax_backward")
def _(rng: Generator) -> Launch:
    dy = normal(rng, (8, 320), np.float16)
    y = softmax(rng.standard_normal((8, 320))).astype(np.float16)
    dx = zeros((8, 320), np.float16)
    dot = (wide(dy) * wide(y)).sum(-1, keepdims=True)
    size = (np.abs(wide(dy)) * wide(y)).sum(-1, keepdims=True)
    want = (wide(dy) - dot) * wide(y)
    bound = np.abs(want) * F16 + (330 * F32 * size + 4 * F32 * (np.abs(wide(dy)) + size)) * wide(y) + 2.0**-25
    return Launch([dx, dy, y, 320], [Check(dx, want, bound)], grid=(2, 1, 1), block=(128, 1, 1))


@program("training", "layer_norm_backward")
def _(rng: Generator) -> Launch:
    rows, columns = 7, 200
    x, dy, weight = normal(rng, (rows, columns)), normal(rng, (rows, columns)), normal(rng, columns)
    mean = x.mean(-1)
    inverse = (1 / np.sqrt(x.var(-1) + 1e-5)).astype(np.float32)
    dx, dweight, dbias = zeros((rows, columns)), zeros(columns), zeros(columns)
    hat = (wide(x) - wide(mean)[:, None]) * wide(inverse)[:, None]
    g = wide(dy) * wide(weight)
    first, second = g.sum(-1, keepdims=True), (g * hat).sum(-1, keepdims=True)
    want = wide(inverse)[:, None] * (g - (first + hat * second) / columns)
    sizes = np.abs(g).sum(-1, keepdims=True), np.abs(g * hat).sum(-1, keepdims=True)
    unit = 260 * F32
    bound = unit * wide(inverse)[:, None] * (np.abs(g) + (sizes[0] + np.abs(hat) * sizes[1]) / columns + 1)
    return Launch(
        [dx, dweight, dbias, dy, x, weight, mean, inverse, rows, columns],
        [
            Check(dx, want, bound),
            Check(dweight, (wide(dy) * hat).sum(0), 16 * F32 * (np.abs(wide(dy)) * (np.abs(hat) + 1)).sum(0)),
            Check(dbias, wide(dy).sum(0), 16 * F32 * np.abs(wide(dy)).sum(0)),
        ],
        grid=(3, 1, 1),
        block=(128, 1, 1),
        shared_bytes=8 * columns,
    )


@program("training", "dropout")
def _(rng: Generator) -> Launch:
    x, out, mask = normal(rng, 500), zeros(500), zeros(500, np.uint8)
    z = np.arange(500, dtype=np.uint64) + np.uint64(77 << 33)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    draw = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    keep = np.float32(0.8)
    kept = draw < keep
    want = np.where(kept, x / keep, np.float32(0))
    return Launch(
        [out, mask, x, 0.8, 77 << 33, 500],
        [Check(mask, kept.astype(np.uint8)), Check(out, want)],
        grid=(2, 1, 1),
        block=(64, 1, 1),
    )


@program("training", "adam")
def _(rng: Generator) -> Launch:
    n, rate, correct1, correct2 = 300, 0.01, 1.5, 4.0
    p, m, v = normal(rng, n), normal(rng, n), np.abs(normal(rng, n)) + np.float32(0.1)
    g, low = normal(rng, n, ml_dtypes.bfloat16), zeros(n, ml_dtypes.bfloat16)
    first = 0.9 * wide(m) + 0.1 * wide(g)
    second = 0.999 * wide(v) + 0.001 * wide(g) ** 2
    step = first * correct1 / (np.sqrt(second * correct2) + 1e-8) + 0.01 * wide(p)
    want = wide(p) - rate * step
    sizes = 0.9 * np.abs(wide(m)) + 0.1 * np.abs(wide(g))
    bound = 4 * F32 * np.abs(want) + 16 * F32 * rate * (
        sizes / np.sqrt(second) + np.abs(wide(p)) + np.abs(step)
    )
    return Launch(
        [p, m, v, g, low, rate, correct1, correct2, n],
        [
            Check(m, first, 4 * F32 * sizes),
            Check(v, second, 4 * F32 * second),
            Check(p, want, bound),
            Check(low, want, BF16 * np.abs(want) + 2 * bound),
        ],
        grid=(2, 1, 1),
        block=(64, 1, 1),
    )


@program("training", "embedding_backward")
def _(rng: Generator) -> Launch:
    tokens = ints(rng, 0, 5, 12, np.int64)
    weight, dy = zeros((5, 64)), normal(rng, (12, 64))
    want = np.zeros((5, 64))
    np.add.at(want, tokens, wide(dy))
    size = np.zeros((5, 64))
    np.add.at(size, tokens, np.abs(wide(dy)))
    return Launch(
        [weight, dy, tokens, 64], [Check(weight, want, 12 * F32 * size)], grid=(12, 1, 1), block=(64, 1, 1)
    )


@program("training", "gradient_norm")
def _(rng: Generator) -> Launch:
    x, total, count, partial = normal(rng, 3000), zeros(1), zeros(1, np.uint32), zeros(5)
    want = np.sqrt((wide(x) ** 2).sum(keepdims=True))
    return Launch(
        [total, count, partial, x, 3000],
        [Check(total, want, 30 * F32 * want), Check(count, zeros(1, np.uint32))],
        grid=(5, 1, 1),
        block=(128, 1, 1),
    )


# Generation --------------------------------------------------------------------------------------------------


@program("serving", "paged_attention")
def _(rng: Generator) -> Launch:
    heads, lengths = 2, np.array([37, 90], np.int32)
    table = np.array([[3, 0, 5, -1, -1, -1], [1, 4, 2, 7, 6, 8]], np.int32)
    q = normal(rng, (2, heads, 64), np.float16)
    keys, values = (normal(rng, (9, heads, 16, 64), np.float16) for _ in range(2))
    out = zeros((2, heads, 64))
    want, bound = np.zeros(out.shape), np.zeros(out.shape)
    for i, length in enumerate(lengths):
        pages = table[i, : -(-int(length) // 16)]
        for head in range(heads):
            k, v = (wide(x[pages, head]).reshape(-1, 64)[:length] for x in (keys, values))
            p = softmax(k @ wide(q[i, head]) * 0.125)
            want[i, head] = p @ v
            bound[i, head] = (EXP + 250 * F32) * (p @ np.abs(v))
    return Launch(
        [out, q, keys, values, table, lengths, 6, 0.125],
        [Check(out, want, bound)],
        grid=(heads, 2, 1),
        block=(128, 1, 1),
    )


@program("serving", "selective_scan")
def _(rng: Generator) -> Launch:
    length, channels = 12, 4
    x, delta = normal(rng, (length, channels)), rng.random((length, channels)).astype(np.float32)
    a = -rng.random((channels, 16)).astype(np.float32)
    b, c = normal(rng, (length, 16)), normal(rng, (length, 16))
    y = zeros((length, channels))
    h, size = np.zeros((channels, 16)), np.zeros((channels, 16))
    want, bound = np.zeros(y.shape), np.zeros(y.shape)
    for t in range(length):
        decay = np.exp(wide(delta[t])[:, None] * wide(a))
        enters = (wide(delta[t]) * wide(x[t]))[:, None] * wide(b[t])
        h, size = decay * h + enters, decay * size + np.abs(enters)
        want[t] = h @ wide(c[t])
        bound[t] = (12 * EXP + 60 * F32) * (size @ np.abs(wide(c[t])))
    return Launch([y, x, delta, a, b, c, length], [Check(y, want, bound)], grid=(2, 1, 1), block=(64, 1, 1))


@program("serving", "gemv_int4")
def _(rng: Generator) -> Launch:
    rows, k = 8, 512
    numbers = ints(rng, 0, 16, (rows, k))
    packed = zeros((rows, k // 8), np.uint32)
    for j in range(8):
        packed |= numbers[:, j::8].astype(np.uint32) << np.uint32(4 * j)
    scale = (rng.random((rows, k // 128)) + 0.5).astype(np.float16)
    zero = normal(rng, (rows, k // 128), np.float16)
    weight = (numbers.reshape(rows, -1, 128) * wide(scale)[..., None] + wide(zero)[..., None]).reshape(
        rows, k
    )
    x, out = normal(rng, k, np.float16), zeros(rows)
    halves = [np.repeat(s[..., None], 2, -1) for s in (scale, zero)]
    # Each weight is rounded to a half.
    bound = dot_bound(weight, wide(x), np.float32, operands=F16)
    return Launch(
        [out, packed, *halves, x, k], [Check(out, weight @ wide(x), bound)], grid=(2, 1, 1), block=(128, 1, 1)
    )


@program("serving", "sample")
def _(rng: Generator) -> Launch:
    n = 600
    logits = normal(rng, (5, n))
    chosen = np.array([0, 17, 255, 256, 599], np.int32)
    total = np.cumsum(softmax(wide(logits)), -1)
    before = np.concatenate([np.zeros((5, 1)), total], -1)
    # In the middle of each token's share, far from where rounding could decide.
    draw = np.array([(before[i, t] + before[i, t + 1]) / 2 for i, t in enumerate(chosen)], np.float32)
    token = zeros(5, np.int32)
    return Launch([token, logits, draw, n], [Check(token, chosen)], grid=(5, 1, 1), block=(256, 1, 1))


@program("serving", "quantize_cache")
def _(rng: Generator) -> Launch:
    x = normal(rng, (4, 200), np.float16)
    slots = np.array([5, -1, 0, 3], np.int32)
    cache, scales = zeros((6, 200), np.int8), zeros(6)
    want, want_scales = cache.copy(), scales.copy()
    for row, slot in enumerate(slots):
        if slot >= 0:
            want_scales[slot] = np.abs(x[row]).max().astype(np.float32) / np.float32(127)
            want[slot] = np.rint(x[row].astype(np.float32) / want_scales[slot]).astype(np.int8)
    return Launch(
        [cache, scales, x, slots, 200],
        [Check(cache, want), Check(scales, want_scales)],
        grid=(4, 1, 1),
        block=(128, 1, 1),
    )


@program("serving", "largest_of_row")
def _(rng: Generator) -> Launch:
    x = np.round(normal(rng, (3, 300)), 1)
    order = np.argsort(-x, -1, kind="stable")[:, :6].astype(np.int32)
    index, value = zeros((3, 6), np.int32), zeros((3, 6))
    # -0.0 sorts below 0.0 by its bits.
    x += np.float32(0)
    return Launch(
        [index, value, x, 300, 6],
        [Check(index, order), Check(value, np.take_along_axis(x, order.astype(np.int64), -1))],
        grid=(3, 1, 1),
        block=(128, 1, 1),
    )
