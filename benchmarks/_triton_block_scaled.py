"""The benchmarks' Triton opponent for float8 products with a scale for each block; imports Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

# Tile m, n, warps, stages; a tile along k is one block of scales.
CONFIGS = ((128, 128, 8, 3), (128, 128, 4, 4), (64, 128, 4, 4), (16, 128, 4, 5))


@triton.jit
def matmul_blocks(
    a, b, c, a_scale, b_scale, m, n, k, stride_scale_m, stride_scale_k, stride_scale_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """c = (a a_scale) (b b_scale)^T for k of whole blocks: each block's product is scaled, then added up."""
    pid = tl.program_id(0)
    rows_of_tiles, columns_of_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    first = pid // (GROUP * columns_of_tiles) * GROUP
    height = min(rows_of_tiles - first, GROUP)
    within = pid % (GROUP * columns_of_tiles)
    i, j = first + within % height, within // height
    rows, columns = i * BLOCK_M + tl.arange(0, BLOCK_M), j * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_at = a + (rows % m)[:, None].to(tl.int64) * k + depth[None, :]
    b_at = b + (columns % n)[None, :].to(tl.int64) * k + depth[:, None]
    by_row = a_scale + (rows % m) * stride_scale_m
    by_block = b_scale + j * BLOCK_N // 128 * stride_scale_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(k // BLOCK_K):
        factor = tl.load(by_row + step * stride_scale_k) * tl.load(by_block + step)
        acc += tl.dot(tl.load(a_at), tl.load(b_at)) * factor[:, None]
        a_at += BLOCK_K
        b_at += BLOCK_K
    keep = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None].to(tl.int64) * n + columns[None, :], acc.to(c.dtype.element_ty), mask=keep)


def block_variants(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the ways to compute the product that are worth trying, by name; none where k has a part of a block."""
    (m, k), n = a.shape, b.shape[0]
    variants: dict[str, Callable[[], torch.Tensor]] = {}
    if k % 128:
        return variants
    by_block = b_scale.contiguous()
    for block_m, block_n, warps, stages in CONFIGS:
        if block_m > max(2 * m, 16):
            continue

        def run(bm: int = block_m, bn: int = block_n, w: int = warps, s: int = stages) -> torch.Tensor:
            c = torch.empty((m, n), dtype=torch.bfloat16, device=a.device)
            matmul_blocks[(triton.cdiv(m, bm) * triton.cdiv(n, bn),)](
                a, b, c, a_scale, by_block, m, n, k, a_scale.stride(0), a_scale.stride(1), by_block.stride(0),
                BLOCK_M=bm, BLOCK_N=bn, BLOCK_K=128, GROUP=8, num_warps=w, num_stages=s,
            )  # fmt: skip
            return c

        variants[f"{block_m}x{block_n} {warps} warps {stages} stages"] = run
    return variants
