"""How the kernels of models in Triton are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    F16,
    F32,
    TF32,
    Check,
    Launch,
    dot_bound,
    normal,
    wide,
)
from tests.simulator.foreign.programs.triton_launch import launch, registry

Generator = np.random.Generator
PROGRAMS, program = registry()
bfloat16, e4m3, e5m2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@program("triton_attention_backward_sm80", "triton_attention_backward_sm90")
def _(name: str, rng: Generator) -> Launch:
    n, d, block = (96, 32, 32) if "sm80" in name else (128, 64, 64)
    q, k, v, do = (normal(rng, (n, d), np.float16) for _ in range(4))
    scale = np.float32(1 / np.sqrt(d))
    causal = np.tril(np.ones((n, n), bool))
    scores = np.where(causal, wide(q) @ wide(k).T * scale, -np.inf)
    lse = np.log(np.exp(scores).sum(-1)).astype(np.float32)
    p = np.where(causal, np.exp(scores - wide(lse)[:, None]), 0)
    delta = (wide(do) * (p @ wide(v))).sum(-1).astype(np.float32)
    dp = wide(do) @ wide(v).T
    ds = p * (dp - wide(delta)[:, None]) * scale
    dq, dk, dv = (np.zeros((n, d), np.float32) for _ in range(3))
    # exp2's error of 2**-22, that of its argument, and the rounding of p and ds to float16.
    p_error = p * (F16 + 2.0**-22 + 40 * F32 * (1 + np.abs(np.where(causal, scores, 0)))) + 2.0**-25
    ds_error = (p_error * np.abs(dp - wide(delta)[:, None]) + p * 200 * F32 * (np.abs(dp) + 10)) * scale
    ds_error = np.where(causal, ds_error + np.abs(ds) * F16 + 2.0**-25, 0)
    sums = 2 * n * 2 * F32
    return launch(
        name,
        [dq, dk, dv, q, k, v, do, lse, delta, float(scale)],
        [
            Check(dv, p.T @ wide(do), p_error.T @ np.abs(wide(do)) + sums * (p.T @ np.abs(wide(do)))),
            Check(dk, ds.T @ wide(q), ds_error.T @ np.abs(wide(q)) + sums * (np.abs(ds).T @ np.abs(wide(q)))),
            Check(dq, ds @ wide(k), ds_error @ np.abs(wide(k)) + sums * (np.abs(ds) @ np.abs(wide(k)))),
        ],
        grid=(n // block,),
    )


@program("triton_paged_decode_sm75")
def _(name: str, rng: Generator) -> Launch:
    lengths = np.array([83, 16, 1], np.int32)
    table = np.array([[4, 1, 7, 0, 9, 5], [3, -1, -1, -1, -1, -1], [8, -1, -1, -1, -1, -1]], np.int32)
    q = normal(rng, (3, 64), np.float16)
    keys, values = (normal(rng, (10, 16, 64), np.float16) for _ in range(2))
    out, want, bound = np.zeros((3, 64), np.float32), np.zeros((3, 64)), np.zeros((3, 64))
    for i, length in enumerate(lengths):
        pages = table[i, : -(-int(length) // 16)]
        k, v = (wide(x[pages]).reshape(-1, 64)[:length] for x in (keys, values))
        scores = k @ wide(q[i]) * 0.125
        p = softmax(scores)
        want[i] = p @ v
        error = 8 * 2.0**-22 + 300 * F32 * (1 + np.abs(scores).max())
        bound[i] = error * (p @ np.abs(v))
    return launch(name, [out, q, keys, values, table, lengths, 0.125], [Check(out, want, bound)], grid=(3,))


@program("triton_selective_scan_sm89")
def _(name: str, rng: Generator) -> Launch:
    length, channels = 50, 3
    x, delta = normal(rng, (length, channels)), rng.random((length, channels)).astype(np.float32)
    a = -rng.random((channels, 16)).astype(np.float32)
    b, c = normal(rng, (length, 16)), normal(rng, (length, 16))
    y, want, bound = np.zeros((length, channels), np.float32), np.zeros(x.shape), np.zeros(x.shape)
    h, size = np.zeros((channels, 16)), np.zeros((channels, 16))
    for t in range(length):
        decay = np.exp(wide(delta[t])[:, None] * wide(a))
        enters = (wide(delta[t]) * wide(x[t]))[:, None] * wide(b[t])
        h, size = decay * h + enters, decay * size + np.abs(enters)
        want[t] = h @ wide(c[t])
        bound[t] = length * (2.0**-21 + 8 * F32) * (size @ np.abs(wide(c[t])))
    return launch(name, [y, x, delta, a, b, c, length], [Check(y, want, bound)], grid=(channels,))


@program("triton_grouped_matmul_sm86", "triton_grouped_matmul_sm90")
def _(name: str, rng: Generator) -> Launch:
    dtype = np.float16 if "sm86" in name else bfloat16
    n, k, ends = 64, 96, np.array([40, 40, 101, 150], np.int32)
    a, b = normal(rng, (150, k), dtype), normal(rng, (4, k, n), dtype)
    c, want, bound = np.zeros((150, n), dtype), np.zeros((150, n)), np.zeros((150, n))
    first = 0
    for group, end in enumerate(ends):
        rows = slice(first, end)
        want[rows] = wide(a[rows]) @ wide(b[group])
        bound[rows] = dot_bound(a[rows], b[group], dtype)
        first = end
    return launch(name, [c, a, b, ends, n, k, 4], [Check(c, want, bound)], grid=(3,))


@program("triton_moments_sm80")
def _(name: str, rng: Generator) -> Launch:
    columns = 300
    x = normal(rng, (4, columns)) + np.float32(2)
    mean, variance = np.zeros(4, np.float32), np.zeros(4, np.float32)
    checks = [
        Check(mean, wide(x).mean(-1), 40 * F32 * np.abs(wide(x)).max(-1)),
        Check(variance, wide(x).var(-1), 80 * F32 * (wide(x) ** 2).mean(-1)),
    ]
    return launch(name, [mean, variance, x, columns], checks, grid=(4,))


@program("triton_shuffled_sm90")
def _(name: str, rng: Generator) -> Launch:
    x, out = normal(rng, (8, 64)), np.zeros((16, 64), np.float32)
    z = (wide(x).reshape(8, 32, 2) @ np.array([1, 1j])) * (0.6 + 0.8j)
    y = np.stack([z.real, z.imag], -1).reshape(8, 64)[:, ::-1]
    size = 4 * F32 * np.abs(wide(x)).max()
    grown = np.cumprod(1 + y * 0.01, 1)
    want = np.concatenate([y, grown])
    bound = np.concatenate([np.full((8, 64), size), grown * 64 * (2 * F32 + 0.02 * size)])
    return launch(name, [out, x], [Check(out, want, bound)], grid=(1,))


@program("triton_batched_sm80", "triton_batched_tf32_sm120")
def _(name: str, rng: Generator) -> Launch:
    tf32 = "tf32" in name
    b, m, n, k = (2, 32, 16, 32) if tf32 else (4, 16, 32, 32)
    dtype = np.float32 if tf32 else np.float16
    x, y = normal(rng, (b, m, k), dtype), normal(rng, (b, k, n), dtype)
    c = np.zeros((b, m, n), np.float32)
    bound = dot_bound(x, y, np.float32, operands=2 * TF32 if tf32 else 0.0)
    return launch(name, [c, x, y], [Check(c, wide(x) @ wide(y), bound)], grid=(1,))


@program("triton_scaled_e4m3_sm120", "triton_scaled_e2m1_sm120", "triton_scaled_e5m2_e4m3_sm120")
def _(name: str, rng: Generator) -> Launch:
    m, n, k = 128, 64, 256

    def operand(rows: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scale = rng.integers(124, 130, (rows, k // 32), np.uint8)
        if kind == "e2m1":
            codes = rng.integers(0, 16, (rows, k), np.uint8)
            table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            value = np.where(codes & 8, -1.0, 1.0) * table[codes & 7]
            stored = codes[:, ::2] | codes[:, 1::2] << 4
        else:
            stored = normal(rng, (rows, k), e4m3 if kind == "e4m3" else e5m2)
            value = wide(stored)
        return stored, scale, value * np.repeat(np.exp2(scale.astype(float) - 127), 32, 1)

    kinds = {
        "triton_scaled_e4m3_sm120": ("e4m3", "e4m3"),
        "triton_scaled_e2m1_sm120": ("e2m1", "e2m1"),
        "triton_scaled_e5m2_e4m3_sm120": ("e5m2", "e4m3"),
    }[name]
    a, a_scale, a_value = operand(m, kinds[0])
    b, b_scale, b_value = operand(n, kinds[1])
    c = np.zeros((m, n), np.float32)
    check = Check(c, a_value @ b_value.T, dot_bound(a_value, b_value.T, np.float32, accumulate=2.0**-13 / 32))
    return launch(name, [c, a, a_scale, b, b_scale, n, k], [check], grid=(1, 1))


@program("triton_matmul_bounds_sm75", "triton_matmul_bounds_sm89", "triton_matmul_bounds_sm120")
def _(name: str, rng: Generator) -> Launch:
    kind = name.rpartition("sm")[2]
    dtype, out, (m, n, k) = {
        "75": (np.float16, np.float16, (70, 45, 77)),
        "89": (e4m3, np.float32, (90, 48, 80)),
        "120": (bfloat16, bfloat16, (65, 80, 48)),
    }[kind]
    a, b, c = normal(rng, (m, k), dtype), normal(rng, (k, n), dtype), np.zeros((m, n), out)
    accumulate = 2.0**-13 / 32 if kind == "89" else 2 * F32
    check = Check(c, wide(a) @ wide(b), dot_bound(wide(a), wide(b), out, accumulate=accumulate))
    return launch(name, [c, a, b, m, n, k], [check], grid=(-(-m // 64), -(-n // 64)))


@program("triton_convolution_sm86")
def _(name: str, rng: Generator) -> Launch:
    h, w, channels, features = 9, 11, 32, 16
    x, weight = normal(rng, (h, w, channels), bfloat16), normal(rng, (3, 3, channels, features), bfloat16)
    out = np.zeros((h, w, features), np.float32)
    padded = np.pad(wide(x), ((1, 1), (1, 1), (0, 0)))
    windows = np.concatenate([padded[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)], -1)
    flat = windows.reshape(h * w, -1), wide(weight).reshape(-1, features)
    check = Check(out.reshape(h * w, features), flat[0] @ flat[1], dot_bound(flat[0], flat[1], np.float32))
    return launch(name, [out, x, weight, h, w], [check], grid=(-(-h * w // 64),))


@program("triton_quantize_rows_sm89")
def _(name: str, rng: Generator) -> Launch:
    columns = 300
    x = normal(rng, (3, columns), bfloat16)
    codes, scales = np.zeros((3, columns), e4m3), np.zeros(3, np.float32)
    want = np.abs(x.astype(np.float32)).max(-1) / np.float32(448)
    value = wide(x) / wide(want)[:, None]
    # Divisions may be off by two units, so the code by what one rounding more can do.
    bound = np.abs(value) * 2.0**-4 * (1 + 2.0**-10) + 2.0**-10
    checks = [Check(scales, want, 2 * F32 * want), Check(codes, value, bound)]
    return launch(name, [codes, scales, x, columns], checks, grid=(3,))


@program("triton_nucleus_sm80")
def _(name: str, rng: Generator) -> Launch:
    x, kept = normal(rng, (3, 256)) * np.float32(2), np.zeros((3, 256), np.int8)
    p = softmax(wide(x))
    order = np.sort(p, -1)[:, ::-1]
    # A share that lies between two running sums of every row, as far from each as may be.
    before = np.cumsum(order, -1) - order
    candidates = np.linspace(0.5, 0.9, 400)
    gaps = np.abs(before[None] - candidates[:, None, None]).min((1, 2))
    share = float(candidates[gaps.argmax()])
    smallest = np.where(before < share, order, 2.0).min(-1, keepdims=True)
    return launch(
        name, [kept, x, share], [Check(kept, (p >= smallest * (1 - 1e-6)).astype(np.int8))], grid=(3,)
    )


@program("triton_queue_sm75", "triton_queue_sm90")
def _(name: str, rng: Generator) -> Launch:
    items, programs = 7, 3
    x = rng.integers(-(2**20), 2**20, (items, 128), np.int32)
    out, head = np.zeros(4 + 128, np.int32), np.zeros(1, np.int32)
    out[1], out[4:] = -(2**31), 2**31 - 1
    want = out.copy()
    want[:4] = x.sum(dtype=np.int32), x.max(), np.bitwise_xor.reduce(x, axis=None), 2**programs - 1
    want[4:] = x.min(0)
    checks = [Check(out, want), Check(head, np.array([items + programs], np.int32))]
    return launch(name, [out, head, x, items], checks, grid=(programs,))


@program("triton_handed_on_sm90")
def _(name: str, rng: Generator) -> Launch:
    x = rng.integers(-(2**20), 2**20, (6, 128), np.int32)
    out, flags = np.zeros((6, 128), np.int32), np.zeros(6, np.int32)
    checks = [Check(out, np.cumsum(x, 0, dtype=np.int32)), Check(flags, np.ones(6, np.int32))]
    return launch(name, [out, flags, x], checks, grid=(6,))
