"""The float16 GEMMs whose compilation and main loops are measured: plain, and persistent."""

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


@tilus.kernel
def pipelined(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 64,
    stages: constexpr = 4,
    warps: constexpr = 8,
):
    """c = a @ b.T, one tile for each block; the weights' order of neural networks, which wgmma reads as it is."""
    tilus.grid(tilus.cdiv(a.shape[0], block_m), tilus.cdiv(b.shape[0], block_n), warps=warps)
    i, j = tilus.block_id()[:2]
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, a.shape[1], block_k), stages=stages):
        sa = tilus.shared(float16, (block_m, block_k))
        sb = tilus.shared(float16, (block_n, block_k))
        tilus.copy_async(sa, a, (i * block_m, k0))
        tilus.copy_async(sb, b, (j * block_n, k0))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    tilus.store(c, acc.to(float16), (i * block_m, j * block_n))


@tilus.kernel
def persistent(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 64,
    stages: constexpr = 4,
    warps: constexpr = 8,
    blocks: constexpr = 132,
):
    """c = a @ b.T by as many blocks as there are multiprocessors, each of which takes one tile after another."""
    m, k = a.shape
    tiles_n = tilus.cdiv(b.shape[0], block_n)
    tiles = tilus.cdiv(m, block_m) * tiles_n
    tilus.grid(
        tilus.min(tilus.cdiv(a.shape[0], block_m) * tilus.cdiv(b.shape[0], block_n), blocks), warps=warps
    )
    sc = tilus.shared(float16, (block_m, block_n))
    for tile in range(tilus.block_id(0), tiles, tilus.grid_dim(0)):
        i, j = tile // tiles_n * block_m, tile % tiles_n * block_n
        acc = tilus.zeros((block_m, block_n), float32)
        for k0 in tilus.pipeline(range(0, k, block_k), stages=stages):
            sa = tilus.shared(float16, (block_m, block_k))
            sb = tilus.shared(float16, (block_n, block_k))
            tilus.copy_async(sa, a, (i, k0))
            tilus.copy_async(sb, b, (j, k0))
            acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
        # The tile before has left shared memory.
        tilus.bulk_wait(0)
        tilus.sync()
        tilus.store(sc, acc.to(float16))
        tilus.store_bulk(c, sc, (i, j))
        tilus.bulk_commit()
    tilus.bulk_wait(0, read=False)
