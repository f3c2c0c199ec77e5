"""The float16 GEMM whose compilation is measured: plain, pipelined, one tile for each block."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float16, float32


@tilus.kernel
def gemm(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "k n"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 32,
    stages: constexpr = 3,
):
    """c = a @ b."""
    m, k = a.shape
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(b.shape[1], block_n), warps=4)
    i, j = tilus.block_id()[:2]
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, k, block_k), stages=stages):
        sa = tilus.shared(float16, (block_m, block_k))
        sb = tilus.shared(float16, (block_k, block_n))
        tilus.copy_async(sa, a, (i * block_m, k0))
        tilus.copy_async(sb, b, (k0, j * block_n))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb), acc)
    tilus.store(c, acc.to(float16), (i * block_m, j * block_n))
