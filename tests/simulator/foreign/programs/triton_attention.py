"""How the attention programs in Triton are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    BF16,
    F16,
    F32,
    Check,
    Launch,
    normal,
    rounding,
    wide,
)
from tests.simulator.foreign.programs.triton_launch import described, launch, registry

Generator = np.random.Generator
PROGRAMS, program = registry()
EX2 = 2.0**-22  # relative error of ex2.approx (PTX ISA: 2 ulp; subnormals flushed), rounded up
bfloat16, e4m3, e5m2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The result, the logarithm (base 2) of the norm, and the result with |v| for v, over (heads, length, features)."""
    score = wide(q) @ wide(k).swapaxes(1, 2) * scale
    if causal:
        score = np.where(np.tril(np.ones(score.shape[1:], bool)), score, -np.inf)
    top = score.max(2, keepdims=True)
    weight = np.exp(score - top)
    norm = weight.sum(2, keepdims=True)
    return weight @ wide(v) / norm, (top + np.log(norm))[:, :, 0] / np.log(2), weight @ np.abs(wide(v)) / norm


def attention_bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool) -> np.ndarray:
    want, _, size = attend(q, k, v, scale, causal)
    unit = {np.dtype(np.float16): F16, np.dtype(bfloat16): BF16}[q.dtype]
    # The weights are rounded to the narrow type; scores of magnitude s have an error of (features + 4) s 2^-23.
    score = (np.abs(wide(q)) @ np.abs(wide(k)).swapaxes(1, 2) * scale).max(2, keepdims=True)
    relative = unit + 2 * (q.shape[2] + 4) * 2 * F32 * score + (k.shape[1] + 8) * 2 * F32 + 2 * EX2
    return relative * size + rounding(want, q.dtype)


@program("triton_attention_sm80", "triton_attention_causal_sm80", "triton_attention_causal_sm90")
def _(name: str, rng: Generator) -> Launch:
    features, block, length = {"triton_attention_sm80": (32, 64, 128), "triton_attention_causal_sm80": (64, 32, 96),
                               "triton_attention_causal_sm90": (64, 64, 128)}[name]  # fmt: skip
    causal, dtype = "causal" in name, bfloat16 if name == "triton_attention_causal_sm80" else np.float16
    q, k, v = (normal(rng, (2, length, features), dtype) for _ in range(3))
    out, lse = np.zeros_like(q), np.zeros((2, length), np.float32)
    scale = features**-0.5
    want, log_norm, _ = attend(q, k, v, scale, causal)
    checks = [
        Check(out, want, attention_bound(q, k, v, scale, causal)),
        Check(lse, log_norm, (features + length) * 4 * F32 * (4 + np.abs(log_norm))),
    ]
    return launch(name, [q, k, v, out, lse, scale, length], checks, grid=(length // block, 2))


@program("triton_attention_descriptor_sm90", "triton_attention_warp_specialized_sm90")
def _(name: str, rng: Generator) -> Launch:
    heads, length, features = 2, 128, 64
    q, k, v = (normal(rng, (heads * length, features), np.float16) for _ in range(3))
    out = np.zeros_like(q)
    split = [x.reshape(heads, length, features) for x in (q, k, v)]
    want = attend(*split, features**-0.5, False)[0].reshape(out.shape)
    bound = attention_bound(*split, features**-0.5, False).reshape(out.shape)
    args = [*described(name, q, k, v, out), features**-0.5, length]
    return launch(name, args, [Check(out, want, bound)], grid=(length // 64, heads))


@program("triton_attention_decode_sm80")
def _(name: str, rng: Generator) -> Launch:
    sequences, features, page, pages = 3, 64, 16, 4
    lengths = np.array([5, 48, 61], np.int32)
    table = rng.permutation(12).astype(np.int32).reshape(sequences, pages)
    q, out = normal(rng, (sequences, features), np.float16), np.zeros((sequences, features), np.float16)
    k, v = (normal(rng, (12, page, features), np.float16) for _ in range(2))
    want, bound = np.zeros(out.shape), np.zeros(out.shape)
    for i, length in enumerate(lengths):
        keys, values = (x[table[i]].reshape(1, pages * page, features)[:, :length] for x in (k, v))
        want[i] = attend(q[None, i : i + 1], keys, values, 0.125, False)[0][0, 0]
        bound[i] = attention_bound(q[None, i : i + 1], keys, values, 0.125, False)[0, 0]
    return launch(name, [q, k, v, out, table, lengths, 0.125], [Check(out, want, bound)], grid=(sequences,))
