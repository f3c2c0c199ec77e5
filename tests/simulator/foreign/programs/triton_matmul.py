"""How the matrix products in Triton are launched, and what they must give."""

from __future__ import annotations

from typing import Any

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
    rounding,
    wide,
)
from tests.simulator.foreign.programs.triton_launch import described, launch, registry

Generator = np.random.Generator
PROGRAMS, program = registry()
bfloat16, e4m3, e5m2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray, **bounds: float) -> list[Check]:
    return [Check(out, wide(a) @ wide(b), dot_bound(a, b, out.dtype, **bounds))]


@program(
    "triton_matmul_f16_sm80",
    "triton_matmul_f16_sm90",
    "triton_matmul_f16_8warps_sm90",
    "triton_matmul_bf16_sm80",
    "triton_matmul_cluster_sm90",
)
def _(name: str, rng: Generator) -> Launch:
    bm, bn = {"f16_sm80": (64, 64), "f16_sm90": (64, 64), "8warps_sm90": (128, 64), "bf16_sm80": (32, 64),
              "cluster_sm90": (128, 64)}["_".join(name.split("_")[-2:])]  # fmt: skip
    dtype, out = (bfloat16, np.float32) if "bf16" in name else (np.float16, np.float16)
    m, n, k = bm + 13, bn + 16, 112
    a, b, c = normal(rng, (m, k), dtype), normal(rng, (k, n), dtype), np.zeros((m, n), out)
    return launch(name, [a, b, c, m, n, k, k, n, n], product(a, b, c), grid=(2, 2))


@program("triton_matmul_f16_unaligned_sm80")
def _(name: str, rng: Generator) -> Launch:
    m, n, k = 37, 45, 51
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (k, n), np.float16), np.zeros((m, n), np.float16)
    return launch(name, [a, b, c, m, n, k, k, n, n], product(a, b, c), grid=(2, 2))


WHOLE: dict[str, tuple[Any, Any, tuple[int, int, int], dict[str, float]]] = {
    # Operand type, result type, (block_m, block_n, k), and what is lost beyond the float32 accumulation.
    "triton_matmul_bf16_nt_sm90": (bfloat16, bfloat16, (64, 128, 192), {}),
    "triton_matmul_f16acc_sm80": (
        np.float16,
        np.float16,
        (32, 32, 96),
        {"accumulate": 2 * F16 / 16},
    ),  # one rounding for each product of 16
    "triton_matmul_tf32_sm80": (np.float32, np.float32, (32, 32, 64), {"operands": 2 * TF32}),
    "triton_matmul_tf32_sm90": (np.float32, np.float32, (64, 32, 96), {"operands": 2 * TF32}),
    "triton_matmul_tf32x3_sm80": (np.float32, np.float32, (32, 32, 48), {"operands": 4 * TF32**2}),
    "triton_matmul_f32_sm80": (np.float32, np.float32, (16, 16, 48), {}),
    "triton_matmul_f64_sm80": (np.float64, np.float64, (16, 16, 48), {"accumulate": 2.0**-53}),
    # Hopper's fp8 products keep about 14 bits of a partial sum.
    "triton_matmul_fp8_sm90": (e4m3, np.float16, (64, 64, 192), {"accumulate": 2.0**-13 / 32}),
    "triton_matmul_fp8_e5m2_sm90": (e5m2, np.float32, (64, 32, 128), {"accumulate": 2.0**-13 / 32}),
    "triton_matmul_fp8_sm89": (e4m3, np.float16, (32, 32, 128), {"accumulate": 2.0**-13 / 32}),
    "triton_matmul_fp8_e5m2_sm80": (e5m2, np.float16, (32, 32, 96), {}),
    "triton_matmul_int8_sm80": (np.int8, np.int32, (32, 32, 128), {}),
    "triton_matmul_int8_sm90": (np.int8, np.int32, (64, 64, 192), {}),
}


@program(*WHOLE)
def _(name: str, rng: Generator) -> Launch:
    dtype, out, (bm, bn, k), bounds = WHOLE[name]
    m, n = 2 * bm, bn
    if dtype is np.int8:
        a, b = rng.integers(-128, 128, (m, k), dtype), rng.integers(-128, 128, (n, k), dtype)
    else:
        a, b = normal(rng, (m, k), dtype), normal(rng, (n, k), dtype)
    c = np.zeros((m, n), out)
    if dtype is np.int8:
        checks = [Check(c, a.astype(np.int32) @ b.T.astype(np.int32))]
    else:
        checks = product(a, b.T, c, **bounds)
    return launch(name, [a, b, c, k, k, k, n], checks, grid=(2, 1))


@program("triton_matmul_int4_sm80", "triton_matmul_int4_sm90")
def _(name: str, rng: Generator) -> Launch:
    m, k, n = (64, 128, 64) if "sm90" in name else (32, 96, 64)
    a, scale = normal(rng, (m, k), np.float16), rng.uniform(0.1, 0.3, n).astype(np.float32)
    b = rng.integers(-8, 8, (k, n))
    packed = ((b[0::2] & 15) | (b[1::2] & 15) << 4).astype(np.uint8).view(np.int8)
    c = np.zeros((m, n), np.float16)
    want = wide(a) @ b * wide(scale)
    bound = (
        dot_bound(a, b, np.float32) * wide(scale) + rounding(want, np.float16) + rounding(want, np.float32)
    )
    return launch(name, [a, packed, scale, c, k, k, n, n], [Check(c, want, bound)], grid=(1, 2))


@program("triton_matmul_split_k_sm80", "triton_matmul_split_k_f32_sm90")
def _(name: str, rng: Generator) -> Launch:
    out, m = (np.float32, 64) if "f32" in name else (np.float16, 32)
    n, k = 32, 160
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (k, n), np.float16), np.zeros((m, n), out)
    half = np.arange(k) // 32 % 2 == 0
    parts = [wide(a[:, half]) @ wide(b[half]), wide(a[:, ~half]) @ wide(b[~half])]
    bound = dot_bound(a, b, out) + sum(rounding(p, out) for p in parts)
    return launch(name, [a, b, c, k, k, n, n], [Check(c, parts[0] + parts[1], bound)], grid=(1, 1, 2))


@program("triton_matmul_semaphore_sm80")
def _(name: str, rng: Generator) -> Launch:
    m, n, k = 32, 32, 160
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (k, n), np.float16), np.zeros((m, n), np.float16)
    partial, turn = np.zeros((3, m, n), np.float32), np.zeros(1, np.int32)
    checks = [*product(a, b, c), Check(turn, np.array([3], np.int32))]
    return launch(name, [a, b, c, partial, turn, k, k, n, n], checks, grid=(3,))


@program(
    "triton_matmul_descriptor_sm90",
    "triton_matmul_descriptor_narrow_sm90",
    "triton_matmul_warp_specialized_sm90",
)
def _(name: str, rng: Generator) -> Launch:
    narrow = "narrow" in name
    bn, k = (32, 120) if narrow else (64, 232)
    m, n = 64 + 24, bn + 16
    a, b = normal(rng, (m, k), np.float16), normal(rng, (k, n), np.float16)
    c = np.zeros((m, n), np.float32 if narrow else np.float16)
    return launch(name, [*described(name, a, b, c), k], product(a, b, c), grid=(2, 2))


@program("triton_matmul_device_descriptor_sm90")
def _(name: str, rng: Generator) -> Launch:
    m, n, k = 100, 80, 112
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (n, k), np.float16), np.zeros((m, n), np.float16)
    return launch(name, [a, b, c, m, n, k], product(a, b.T, c), grid=(2, 2))


@program("triton_matmul_persistent_sm90", "triton_matmul_persistent_fp8_sm90")
def _(name: str, rng: Generator) -> Launch:
    fp8 = "fp8" in name
    m, n, k = 130, 120, 144
    dtype = e4m3 if fp8 else np.float16
    a, b, c = normal(rng, (m, k), dtype), normal(rng, (n, k), dtype), np.zeros((m, n), np.float16)
    checks = product(a, b.T, c, accumulate=2.0**-13 / 32 if fp8 else 2 * F32)
    return launch(name, [*described(name, a, b, c), m, n, k, 2], checks, grid=(2,))


@program("triton_matmul_descriptor_reduce_sm90")
def _(name: str, rng: Generator) -> Launch:
    m, n, k = 64, 32, 128
    a, b, c = normal(rng, (m, k), np.float16), normal(rng, (k, n), np.float16), np.zeros((m, n), np.float32)
    return launch(name, [*described(name, a, b, c), k], product(a, b, c), grid=(1, 1, 2))


@program("triton_matmul_mxfp8_sm90", "triton_matmul_mxfp4_sm90")
def _(name: str, rng: Generator) -> Launch:
    m, n, k = 64, 32, 128
    exponents = [rng.integers(125, 130, (rows, k // 32), np.uint8) for rows in (m, n)]
    scales = [np.repeat(2.0 ** (e.astype(np.float64) - 127), 32, 1) for e in exponents]
    if "fp4" in name:
        a, codes = normal(rng, (m, k), bfloat16), rng.integers(0, 16, (n, k), np.uint8)
        b_args, b = (codes[:, 0::2] | codes[:, 1::2] << 4), codes.view(ml_dtypes.float4_e2m1fn)
    else:
        a, b = normal(rng, (m, k), e4m3), normal(rng, (n, k), e5m2)
        b_args = b
    c = np.zeros((m, n), np.float32)
    x, y = wide(a) * scales[0], wide(b) * scales[1]
    return launch(
        name,
        [a, exponents[0], b_args, exponents[1], c, k],
        [Check(c, x @ y.T, dot_bound(x, y.T, np.float32))],
        grid=(1, 1),
    )
