"""How the row-wise Triton programs are launched, and what they must give."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    F32,
    Check,
    Launch,
    erf,
    lgamma,
    normal,
    rounding,
    wide,
)
from tests.simulator.foreign.programs.triton_launch import launch, registry

Generator = np.random.Generator
PROGRAMS, program = registry()
EX2 = 2.0**-22  # relative error of ex2.approx (PTX ISA: 2 ulp; subnormals flushed), rounded up
bfloat16, e4m3, e5m2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def softmax_case(
    rng: Generator, rows: int, columns: int, stride: int, dtype: Any
) -> tuple[list[Any], list[Check]]:
    x = np.zeros((rows, stride), dtype)
    x[:, :columns] = normal(rng, (rows, columns), dtype)
    out = np.full((rows, stride), 7, dtype)
    kept = wide(x[:, :columns])
    e = np.exp(kept - kept.max(1, keepdims=True))
    want = np.full((rows, stride), 7.0)
    want[:, :columns] = e / e.sum(1, keepdims=True)
    # exp(x) = ex2(x log2(e)): the product is rounded, which the exponential turns into a relative error.
    relative = EX2 + 2 * F32 * (1 + np.abs(kept - kept.max(1, keepdims=True)).max()) + (columns + 8) * F32
    bound = 2 * relative * want + rounding(want, dtype)
    bound[:, columns:] = 0
    return [out, x, columns, stride], [Check(out, want, bound)]


@program("triton_softmax_sm80")
def _(name: str, rng: Generator) -> Launch:
    return launch(name, *softmax_case(rng, 5, 100, 103, np.float32), grid=(5,))


@program("triton_softmax_wide_sm80")
def _(name: str, rng: Generator) -> Launch:
    return launch(name, *softmax_case(rng, 3, 777, 784, np.float32), grid=(3,))


@program("triton_softmax_f16_sm90")
def _(name: str, rng: Generator) -> Launch:
    return launch(name, *softmax_case(rng, 3, 400, 416, np.float16), grid=(3,))


@program("triton_online_softmax_sm80")
def _(name: str, rng: Generator) -> Launch:
    return launch(name, *softmax_case(rng, 4, 300, 300, np.float32), grid=(4,))


@program("triton_layer_norm_sm80", "triton_layer_norm_bf16_sm90", "triton_layer_norm_sm120")
def _(name: str, rng: Generator) -> Launch:
    dtype, rows_per_block, columns = (bfloat16, 2, 240) if "bf16" in name else (np.float16, 4, 100)
    rows = rows_per_block * 2
    x, out = normal(rng, (rows, columns), dtype), np.zeros((rows, columns), dtype)
    w, b = normal(rng, columns, dtype), normal(rng, columns, dtype)
    mean_out, rstd_out = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    mean = wide(x).mean(1, keepdims=True)
    rstd = 1 / np.sqrt(wide(x).var(1, keepdims=True) + 1e-5)
    unit = (wide(x) - mean) * rstd
    want = unit * wide(w) + wide(b)
    small = (columns + 8) * F32
    bound = small * (4 * np.abs(unit * wide(w)) + np.abs(want) + np.abs(wide(w)) * rstd) + rounding(
        want, dtype
    )
    checks = [
        Check(out, want, bound),
        Check(mean_out, mean[:, 0], small * np.abs(wide(x)).mean(1)),
        Check(rstd_out, rstd[:, 0], 2 * small * rstd[:, 0]),
    ]
    return launch(name, [out, x, w, b, mean_out, rstd_out, columns, 1e-5], checks, grid=(2,))


@program("triton_layer_norm_backward_sm80")
def _(name: str, rng: Generator) -> Launch:
    rows, columns = 4, 100
    x, dy = normal(rng, (rows, columns)), normal(rng, (rows, columns))
    w = normal(rng, columns)
    mean, rstd = wide(x).mean(1).astype(np.float32), (1 / wide(x).std(1)).astype(np.float32)
    dx, dw, lock = np.zeros_like(x), np.zeros(columns, np.float32), np.zeros(1, np.int32)
    unit = (wide(x) - mean[:, None]) * rstd[:, None]
    wg = wide(w) * wide(dy)
    c1, c2 = (unit * wg).mean(1, keepdims=True), wg.mean(1, keepdims=True)
    want = (wg - (unit * c1 + c2)) * rstd[:, None]
    small = (columns + 8) * F32
    size = (
        np.abs(wg)
        + np.abs(unit) * np.abs(unit * wg).mean(1, keepdims=True)
        + np.abs(wg).mean(1, keepdims=True)
    ) * rstd[:, None]
    terms = np.abs(wide(dy) * unit).sum(0)
    checks = [
        Check(dx, want, small * size),
        Check(dw, (wide(dy) * unit).sum(0), (rows + 4) * F32 * (terms + np.abs(wide(dy)).sum(0))),
        Check(lock, np.zeros(1, np.int32)),
    ]
    return launch(name, [dx, dw, dy, x, w, mean, rstd, lock, columns], checks, grid=(rows,))


@program("triton_extremes_sm80")
def _(name: str, rng: Generator) -> Launch:
    x = normal(rng, (3, 256))
    x[1, 40] = x[1, 200] = 9.0
    x[2, 3] = x[2, 4] = -9.0
    out = [np.zeros(3, dtype) for dtype in (np.float32, np.int32, np.float32, np.int32)]
    want = [x.max(1), x.argmax(1).astype(np.int32), x.min(1), x.argmin(1).astype(np.int32)]
    return launch(name, [*out, x], [Check(g, w) for g, w in zip(out, want)], grid=(3,))


@program("triton_cross_entropy_sm90")
def _(name: str, rng: Generator) -> Launch:
    logits, target = normal(rng, (6, 90)), rng.integers(0, 90, 6)
    loss = np.zeros(6, np.float32)
    want = np.log(np.exp(wide(logits)).sum(1)) - wide(logits)[np.arange(6), target]
    return launch(
        name, [loss, logits, target, 90], [Check(loss, want, 100 * F32 * (1 + np.abs(want)))], grid=(6,)
    )


@program("triton_rotary_sm80")
def _(name: str, rng: Generator) -> Launch:
    rows, head = 32, 32
    x, out = normal(rng, (rows, head)), np.zeros((rows, head), np.float32)
    # The reference starts from the float32 angle as the kernel computes it; pow may miss by 4 units in the last place.
    frequency = (10000.0 ** (-2.0 * np.arange(head // 2) / head))[None, :]
    angle = np.arange(rows)[:, None] * 1000.0 * frequency
    left, right = wide(x[:, : head // 2]), wide(x[:, head // 2 :])
    want = np.concatenate(
        [left * np.cos(angle) - right * np.sin(angle), left * np.sin(angle) + right * np.cos(angle)], 1
    )
    error = np.abs(angle) * 12 * F32 + 8 * F32
    size = np.abs(left) + np.abs(right)
    return launch(name, [out, x, 10000.0], [Check(out, want, np.tile(size * error, 2))], grid=(2,))


@program("triton_math_sm80")
def _(name: str, rng: Generator) -> Launch:
    n = 200
    x, out = normal(rng, n), np.zeros((16, n), np.float32)
    x[np.abs(x) < 0.01] = 0.5
    v = wide(x)
    want = np.stack([
        erf(v), 1 / (1 + np.exp(-v)), np.tanh(v), np.log2(np.abs(v)), np.exp2(v), np.sqrt(np.abs(v)), 1 / v,
        np.floor(v * 8) + np.ceil(v), np.log1p(np.abs(v)), np.expm1(v), np.arctan2(v, 0.5), v * v + 1,
        np.sin(v) + np.cos(v), 1 / np.sqrt(np.abs(v)), lgamma(np.abs(v) + 0.5), np.fmod(v, np.float64(np.float32(0.3))),
    ])  # fmt: skip
    # Units in the last place that the CUDA documentation grants; where two results are added, of each of them.
    ulps = np.array([2, 8, 2, 2, 2, 0.5, 0.5, 0, 1, 1, 3, 0.5, 0, 2, 6, 0])[:, None]
    bound = rounding(want, np.float32, 1.0) * ulps
    bound[3] += 2.0**-22
    bound[12] = 2.0**-19
    bound[14] += 8 * F32
    bound[15] = 2.0**-24
    return launch(name, [out, x, n], [Check(out, want, bound)], grid=(2,))
