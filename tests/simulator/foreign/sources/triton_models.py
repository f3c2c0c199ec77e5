"""Kernels of models in Triton: attention backward, paged and grouped work, a selective scan, convolution, quantisation."""

import triton
import triton.language as tl


@triton.jit
def attention_backward(
    dq, dk, dv, q, k, v, do, lse, delta, scale, N: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Each program owns a tile of keys and values, and adds its part of dq by atomics; causal."""
    start = tl.program_id(0) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    inner = tl.arange(0, D)
    at_columns = columns[:, None] * D + inner[None, :]
    key, value = tl.load(k + at_columns), tl.load(v + at_columns)
    dkey, dvalue = tl.zeros((BLOCK, D), tl.float32), tl.zeros((BLOCK, D), tl.float32)
    for first in range(start, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        at_rows = rows[:, None] * D + inner[None, :]
        query, gradient = tl.load(q + at_rows), tl.load(do + at_rows)
        scores = tl.dot(query, tl.trans(key)) * scale - tl.load(lse + rows)[:, None]
        p = tl.where(rows[:, None] >= columns[None, :], tl.exp(scores), 0.0)
        dvalue += tl.dot(tl.trans(p).to(query.dtype), gradient)
        dp = tl.dot(gradient, tl.trans(value))
        ds = (p * (dp - tl.load(delta + rows)[:, None]) * scale).to(query.dtype)
        dkey += tl.dot(tl.trans(ds), query)
        tl.atomic_add(dq + at_rows, tl.dot(ds, key), sem="relaxed")
    tl.store(dk + at_columns, dkey)
    tl.store(dv + at_columns, dvalue)


@triton.jit
def paged_decode(
    out, q, keys, values, table, lengths, scale, D: tl.constexpr, PAGE: tl.constexpr, PAGES: tl.constexpr
):
    """One query of a sequence against keys that lie in pages which a table names."""
    sequence = tl.program_id(0)
    length = tl.load(lengths + sequence)
    inner, token = tl.arange(0, D), tl.arange(0, PAGE)
    query = tl.load(q + sequence * D + inner).to(tl.float32)
    most, total = -float("inf"), 0.0
    acc = tl.zeros((D,), tl.float32)
    for i in range(tl.cdiv(length, PAGE)):
        page = tl.load(table + sequence * PAGES + i).to(tl.int64)
        at = (page * PAGE + token)[:, None] * D + inner[None, :]
        keep = i * PAGE + token < length
        key = tl.load(keys + at, mask=keep[:, None], other=0.0).to(tl.float32)
        scores = tl.where(keep, tl.sum(key * query[None, :], 1) * scale, -float("inf"))
        now = tl.maximum(most, tl.max(scores, 0))
        p, shrink = tl.exp(scores - now), tl.exp(most - now)
        value = tl.load(values + at, mask=keep[:, None], other=0.0).to(tl.float32)
        acc = acc * shrink + tl.sum(p[:, None] * value, 0)
        total = total * shrink + tl.sum(p, 0)
        most = now
    tl.store(out + sequence * D + inner, acc / total)


@triton.jit
def advance(a_first, b_first, a_second, b_second):
    return a_first * a_second, b_first * a_second + b_second


@triton.jit
def selective_scan(y, x, delta, a, b, c, length, STATES: tl.constexpr, CHUNK: tl.constexpr):
    """A state space model of a channel, a chunk of time at once by a scan, with the state carried on."""
    channel, channels = tl.program_id(0), tl.num_programs(0)
    state, step = tl.arange(0, STATES), tl.arange(0, CHUNK)
    rate = tl.load(a + channel * STATES + state)
    h = tl.zeros((STATES,), tl.float32)
    for start in range(0, length, CHUNK):
        t = start + step
        keep = t < length
        d = tl.load(delta + t * channels + channel, mask=keep, other=0.0)
        u = tl.load(x + t * channels + channel, mask=keep, other=0.0)
        at = t[:, None] * STATES + state[None, :]
        decay = tl.exp(d[:, None] * rate[None, :])
        enters = (d * u)[:, None] * tl.load(b + at, mask=keep[:, None], other=0.0)
        decays, states = tl.associative_scan((decay, enters), 0, advance)
        states += decays * h[None, :]
        out = tl.sum(states * tl.load(c + at, mask=keep[:, None], other=0.0), 1)
        tl.store(y + t * channels + channel, out, mask=keep)
        h = tl.sum(tl.where((step == CHUNK - 1)[:, None], states, 0.0), 0)


@triton.jit
def grouped_matmul(c, a, b, ends, n, k, groups, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Rows of each group meet the matrix of their group; programs go over all tiles of all groups."""
    tile = tl.program_id(0)
    columns = tl.cdiv(n, BN)
    first, before = 0, 0
    for group in range(groups):
        end = tl.load(ends + group)
        tiles = tl.cdiv(end - first, BM) * columns
        while tile < before + tiles:
            row = first + (tile - before) // columns * BM + tl.arange(0, BM)
            column = (tile - before) % columns * BN + tl.arange(0, BN)
            acc = tl.zeros((BM, BN), tl.float32)
            for depth in range(0, k, BK):
                inner = depth + tl.arange(0, BK)
                x = tl.load(a + row[:, None] * k + inner[None, :], mask=(row < end)[:, None], other=0.0)
                w = tl.load(b + (group * k + inner)[:, None] * n + column[None, :])
                acc = tl.dot(x, w, acc)
            tl.store(
                c + row[:, None] * n + column[None, :], acc.to(c.dtype.element_ty), mask=(row < end)[:, None]
            )
            tile += tl.num_programs(0)
        before += tiles
        first = end


@triton.jit
def joined(mean_a, square_a, count_a, mean_b, square_b, count_b):
    count = count_a + count_b
    difference = mean_b - mean_a
    share = tl.where(count == 0.0, 0.0, count_b / count)
    return mean_a + difference * share, square_a + square_b + difference * difference * count_a * share, count


@triton.jit
def moments(mean, variance, inp, columns, BLOCK: tl.constexpr):
    """Mean and variance by Welford's merging of parts, as a reduction of three values."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    keep = at < columns
    x = tl.load(inp + row * columns + at, mask=keep, other=0.0)
    m, square, count = tl.reduce((x, tl.zeros_like(x), keep.to(tl.float32)), 0, joined)
    tl.store(mean + row, m)
    tl.store(variance + row, square / count)


@triton.jit
def shuffled(out, inp, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pairs are split, turned as complex numbers, joined again, reversed, and multiplied up."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(inp + at)
    re, im = tl.split(tl.reshape(x, (ROWS, COLUMNS // 2, 2)))
    y = tl.interleave(re * 0.6 - im * 0.8, re * 0.8 + im * 0.6)
    y = tl.flip(y, 1)
    z = tl.reshape(tl.permute(tl.join(y, tl.cumprod(1.0 + y * 0.01, 1)), (2, 0, 1)), (2 * ROWS, COLUMNS))
    rows = tl.arange(0, 2 * ROWS)
    tl.store(out + rows[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], z)


@triton.jit
def batched(c, a, b, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """A product of three-dimensional tiles."""
    batch = tl.arange(0, B)[:, None, None]
    m, n = tl.arange(0, M)[None, :, None], tl.arange(0, N)[None, None, :]
    x = tl.load(a + (batch * M + m) * K + tl.arange(0, K)[None, None, :])
    y = tl.load(b + (batch * K + tl.arange(0, K)[None, :, None]) * N + n)
    tl.store(c + (batch * M + m) * N + n, tl.dot(x, y))


@triton.jit
def scaled(c, a, a_scale, b, b_scale, N, K, A: tl.constexpr, B: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
           BK: tl.constexpr):  # fmt: skip
    """Small floats with a scale for each 32, as tensor cores of consumer Blackwell take them."""
    row, column = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    pa: tl.constexpr = 2 if A == "e2m1" else 1
    pb: tl.constexpr = 2 if B == "e2m1" else 1
    acc = tl.zeros((BM, BN), tl.float32)
    for depth in range(0, K, BK):
        group = depth // 32 + tl.arange(0, BK // 32)
        x = tl.load(a + row[:, None] * (K // pa) + (depth // pa + tl.arange(0, BK // pa))[None, :])
        y = tl.load(b + column[None, :] * (K // pb) + (depth // pb + tl.arange(0, BK // pb))[:, None])
        sx = tl.load(a_scale + row[:, None] * (K // 32) + group[None, :])
        sy = tl.load(b_scale + column[:, None] * (K // 32) + group[None, :])
        acc = tl.dot_scaled(x, sx, A, y, sy, B, acc)
    tl.store(c + row[:, None] * N + column[None, :], acc)


@triton.jit
def matmul_bounds(c, a, b, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Masks at all borders."""
    row, column = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for depth in range(0, k, BK):
        inner = depth + tl.arange(0, BK)
        x = tl.load(
            a + row[:, None] * k + inner[None, :], mask=(row < m)[:, None] & (inner < k)[None, :], other=0.0
        )
        y = tl.load(
            b + inner[:, None] * n + column[None, :],
            mask=(inner < k)[:, None] & (column < n)[None, :],
            other=0.0,
        )
        acc = tl.dot(x, y, acc)
    keep = (row < m)[:, None] & (column < n)[None, :]
    tl.store(c + row[:, None] * n + column[None, :], acc.to(c.dtype.element_ty), mask=keep)


@triton.jit
def convolution(out, inp, weight, H, W, C: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    """Three by three, as a product of gathered pixels with weights; channels last."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // W, pixel % W
    channel, feature = tl.arange(0, C), tl.arange(0, F)
    acc = tl.zeros((BLOCK, F), tl.float32)
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            py, px = y + dy - 1, x + dx - 1
            keep = (py >= 0) & (py < H) & (px >= 0) & (px < W)
            at = (py * W + px)[:, None] * C + channel[None, :]
            value = tl.load(inp + at, mask=keep[:, None], other=0.0)
            w = tl.load(weight + ((dy * 3 + dx) * C + channel)[:, None] * F + feature[None, :])
            acc = tl.dot(value, w, acc)
    tl.store(out + pixel[:, None] * F + feature[None, :], acc, mask=(pixel < H * W)[:, None])


@triton.jit
def quantize_rows(codes, scales, inp, columns, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """Rows in eight bits: float8 of torch's kind, with a scale that maps the largest to the largest."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    keep = at < columns
    x = tl.load(inp + row * columns + at, mask=keep, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(x), 0) / LARGEST
    tl.store(scales + row, scale)
    tl.store(codes + row * columns + at, (x / scale).to(codes.dtype.element_ty), mask=keep)


@triton.jit
def nucleus(kept, inp, share, BLOCK: tl.constexpr):
    """Which probabilities make up a share of all, the largest first: sort, running sum, and the last that is needed."""
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    p = tl.softmax(tl.load(inp + row * BLOCK + at))
    ordered = tl.sort(p, descending=True)
    before = tl.cumsum(ordered, 0) - ordered
    smallest = tl.min(tl.where(before < share, ordered, 2.0), 0)
    tl.store(kept + row * BLOCK + at, (p >= smallest).to(tl.int8))


@triton.jit
def queue(out, head, inp, items, BLOCK: tl.constexpr):
    """Programs take numbers from a counter until there are none, and sum with atomics of every strength."""
    at = tl.arange(0, BLOCK)
    item = tl.atomic_add(head, 1, sem="relaxed", scope="gpu")
    while item < items:
        x = tl.load(inp + item * BLOCK + at)
        tl.atomic_add(out, tl.sum(x, 0), sem="release", scope="sys")
        tl.atomic_max(out + 1, tl.max(x, 0), sem="acq_rel", scope="gpu")
        tl.atomic_xor(out + 2, tl.xor_sum(x, 0), sem="acquire", scope="gpu")
        tl.atomic_min(out + 4 + at, x, sem="relaxed", scope="cta" if BLOCK == 1 else "gpu")
        item = tl.atomic_add(head, 1, sem="relaxed", scope="gpu")
    tl.atomic_or(out + 3, 1 << tl.program_id(0))


@triton.jit
def handed_on(out, flags, inp, BLOCK: tl.constexpr):
    """Each program waits for the one before it, and adds to what it left."""
    program, at = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(inp + program * BLOCK + at)
    if program > 0:
        while tl.atomic_cas(flags + program - 1, 1, 1, sem="acquire") != 1:
            pass
        x += tl.load(out + (program - 1) * BLOCK + at)
    tl.store(out + program * BLOCK + at, x)
    tl.debug_barrier()
    tl.atomic_xchg(flags + program, 1, sem="release")


HALF = dict(q="*fp16:16", k="*fp16:16", v="*fp16:16", do="*fp16:16")
BACKWARD = (
    dict(dq="*fp32:16", dk="*fp32:16", dv="*fp32:16", lse="*fp32:16", delta="*fp32:16", scale="fp32") | HALF
)
SCALED = dict(c="*fp32:16", a="*u8:16", a_scale="*u8:16", b="*u8:16", b_scale="*u8:16", N="i32:16", K="i32:16", BM=128, BN=64,
              BK=128)  # fmt: skip
MATMUL = dict(m="i32", n="i32", k="i32", BM=64, BN=64, BK=32)


def scaled_types(a: str, b: str) -> dict:
    pointers = {"e4m3": "*fp8e4nv:16", "e5m2": "*fp8e5:16", "e2m1": "*u8:16"}
    return SCALED | dict(a=pointers[a], b=pointers[b], A=a, B=b)


VARIANTS = {
    "triton_attention_backward_sm80": dict(kernel=attention_backward, arch=80, args=BACKWARD | dict(N=96, D=32, BLOCK=32)),
    "triton_attention_backward_sm90": dict(kernel=attention_backward, arch=90, args=BACKWARD | dict(N=128, D=64, BLOCK=64)),
    "triton_paged_decode_sm75": dict(
        kernel=paged_decode,
        arch=75,
        args=dict(out="*fp32:16", q="*fp16:16", keys="*fp16:16", values="*fp16:16", table="*i32", lengths="*i32", scale="fp32",
                  D=64, PAGE=16, PAGES=6),
    ),
    "triton_selective_scan_sm89": dict(
        kernel=selective_scan,
        arch=89,
        args=dict(y="*fp32", x="*fp32", delta="*fp32", a="*fp32:16", b="*fp32:16", c="*fp32:16", length="i32", STATES=16,
                  CHUNK=32),
    ),
    "triton_grouped_matmul_sm86": dict(
        kernel=grouped_matmul,
        arch=86,
        args=dict(c="*fp16:16", a="*fp16:16", b="*fp16:16", ends="*i32", n="i32:16", k="i32:16", groups="i32", BM=32, BN=32,
                  BK=32),
    ),
    "triton_grouped_matmul_sm90": dict(
        kernel=grouped_matmul,
        arch=90,
        args=dict(c="*bf16:16", a="*bf16:16", b="*bf16:16", ends="*i32", n="i32:16", k="i32:16", groups="i32", BM=64, BN=64,
                  BK=32),
    ),
    "triton_moments_sm80": dict(
        kernel=moments, arch=80, args=dict(mean="*fp32", variance="*fp32", inp="*fp32", columns="i32", BLOCK=512)
    ),
    "triton_shuffled_sm90": dict(
        kernel=shuffled, arch=90, args=dict(out="*fp32:16", inp="*fp32:16", ROWS=8, COLUMNS=64)
    ),
    "triton_batched_sm80": dict(
        kernel=batched, arch=80, args=dict(c="*fp32:16", a="*fp16:16", b="*fp16:16", B=4, M=16, N=32, K=32)
    ),
    "triton_batched_tf32_sm120": dict(
        kernel=batched, arch=120, args=dict(c="*fp32:16", a="*fp32:16", b="*fp32:16", B=2, M=32, N=16, K=32)
    ),
    "triton_scaled_e4m3_sm120": dict(kernel=scaled, arch=120, args=scaled_types("e4m3", "e4m3")),
    "triton_scaled_e2m1_sm120": dict(kernel=scaled, arch=120, args=scaled_types("e2m1", "e2m1")),
    "triton_scaled_e5m2_e4m3_sm120": dict(kernel=scaled, arch=120, args=scaled_types("e5m2", "e4m3")),
    "triton_matmul_bounds_sm75": dict(
        kernel=matmul_bounds, arch=75, args=MATMUL | dict(c="*fp16", a="*fp16", b="*fp16")
    ),
    "triton_matmul_bounds_sm89": dict(
        kernel=matmul_bounds, arch=89, args=MATMUL | dict(c="*fp32:16", a="*fp8e4nv:16", b="*fp8e4nv:16", k="i32:16", n="i32:16")
    ),
    "triton_matmul_bounds_sm120": dict(
        kernel=matmul_bounds, arch=120, args=MATMUL | dict(c="*bf16:16", a="*bf16:16", b="*bf16:16", k="i32:16", n="i32:16")
    ),
    "triton_convolution_sm86": dict(
        kernel=convolution,
        arch=86,
        args=dict(out="*fp32:16", inp="*bf16:16", weight="*bf16:16", H="i32", W="i32", C=32, F=16, BLOCK=64),
    ),
    "triton_quantize_rows_sm89": dict(
        kernel=quantize_rows,
        arch=89,
        args=dict(codes="*fp8e4nv:16", scales="*fp32", inp="*bf16:16", columns="i32", LARGEST=448.0, BLOCK=512),
    ),
    "triton_nucleus_sm80": dict(kernel=nucleus, arch=80, args=dict(kept="*i8", inp="*fp32:16", share="fp32", BLOCK=256)),
    "triton_queue_sm75": dict(kernel=queue, arch=75, args=dict(out="*i32", head="*i32", inp="*i32:16", items="i32", BLOCK=128)),
    "triton_queue_sm90": dict(kernel=queue, arch=90, args=dict(out="*i32", head="*i32", inp="*i32:16", items="i32", BLOCK=128)),
    "triton_handed_on_sm90": dict(
        kernel=handed_on, arch=90, args=dict(out="*i32:16", flags="*i32", inp="*i32:16", BLOCK=128)
    ),
}  # fmt: skip
