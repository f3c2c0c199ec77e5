"""The benchmarks' Triton opponents: a matrix product in two forms, and one with 4-bit weights; imports Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

INT4_DEPTH = 64
"""Rows of nibbles in one tile of bytes: a byte holds row r in its low and row r + 64 in its high half."""


@triton.jit
def tile_of(pid, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Return the tile of a program; programs that run together share rows and columns of tiles."""
    rows, columns = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    first = pid // (GROUP * columns) * GROUP
    height = min(rows - first, GROUP)
    within = pid % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def matmul_pointers(
    a, b, c, a_scale, b_scale, m, n, k, stride_am, stride_bk, stride_bn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """c = a b with loads through pointers; k is a multiple of BLOCK_K."""
    i, j = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, 8)
    rows = i * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = j * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_at = a + (rows % m)[:, None].to(tl.int64) * stride_am + depth[None, :]
    b_at = b + depth[:, None] * stride_bk + (columns % n)[None, :].to(tl.int64) * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, k, BLOCK_K):
        acc = tl.dot(tl.load(a_at), tl.load(b_at), acc)
        a_at += BLOCK_K
        b_at += BLOCK_K * stride_bk
    keep = (rows[:, None] < m) & (columns[None, :] < n)
    if SCALED:
        acc *= tl.load(a_scale + rows % m)[:, None] * tl.load(b_scale + columns % n)[None, :]
    at = c + rows[:, None].to(tl.int64) * n + columns[None, :]
    tl.store(at, acc.to(c.dtype.element_ty), mask=keep)


@triton.jit
def matmul_descriptors(
    a, b, c, a_scale, b_scale, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALED: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """c = a b^T with bulk copies through tensor descriptors, each program making several tiles."""
    tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        i, j = tile_of(tile, m, n, BLOCK_M, BLOCK_N, 8)
        row, column = i * BLOCK_M, j * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k0 in range(0, k, BLOCK_K):
            acc = tl.dot(a.load([row, k0]), b.load([column, k0]).T, acc)
        if SCALED:
            rows, columns = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
            acc *= tl.load(a_scale + rows % m)[:, None] * tl.load(b_scale + columns % n)[None, :]
        c.store([row, column], acc.to(c.dtype))


@triton.jit
def matmul_int4(
    a, b, scale, c, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """c = a ((b - 8) scale) for nibbles in groups of 2 HALF rows, k split over SPLIT programs that add up in c."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, HALF)
    groups = k // (2 * HALF)
    share = tl.cdiv(groups, SPLIT)
    first = tl.program_id(2) * share
    a_at = a + (rows % m)[:, None] * k + first * 2 * HALF + depth[None, :]
    b_at = b + (first * HALF + depth).to(tl.int64)[:, None] * n + (columns % n)[None, :]
    s_at = scale + first * n + columns % n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(first, min(first + share, groups)):
        packed = tl.load(b_at)
        factor = tl.load(s_at)[None, :]
        low = ((packed & 15).to(tl.float16) - 8) * factor
        high = ((packed >> 4).to(tl.float16) - 8) * factor
        acc = tl.dot(tl.load(a_at), low, acc)
        acc = tl.dot(tl.load(a_at + HALF), high, acc)
        a_at += 2 * HALF
        b_at += HALF * n
        s_at += n
    at = c + rows[:, None] * n + columns[None, :]
    keep = (rows[:, None] < m) & (columns[None, :] < n)
    if SPLIT == 1:
        tl.store(at, acc.to(tl.float16), mask=keep)
    else:
        tl.atomic_add(at, acc.to(tl.float16), mask=keep, sem="relaxed")


@triton.jit
def softmax_rows(x, out, columns, WIDTH: tl.constexpr):
    """Softmax of one row for each program."""
    at = tl.program_id(0) * columns + tl.arange(0, WIDTH)
    keep = tl.arange(0, WIDTH) < columns
    row = tl.load(x + at, mask=keep, other=float("-inf"))
    row = tl.exp(row - tl.max(row, axis=0))
    tl.store(out + at, row / tl.sum(row, axis=0), mask=keep)


# Tile m, n, k, warps, stages.
POINTER_CONFIGS = ((128, 256, 64, 8, 3), (128, 128, 64, 4, 4), (64, 128, 64, 4, 4), (16, 64, 128, 4, 5))
DESCRIPTOR_CONFIGS = ((128, 256, 64, 8, 3), (256, 128, 64, 8, 3), (128, 128, 64, 4, 4), (64, 128, 128, 4, 4))
# Tile m, n, splits, warps, stages.
INT4_CONFIGS = (
    (16, 64, 1, 4, 4), (16, 64, 4, 4, 4), (16, 128, 8, 4, 4), (32, 128, 2, 4, 4), (64, 128, 1, 4, 3), (128, 128, 1, 8, 3),
    (128, 256, 1, 8, 3),
)  # fmt: skip

Variants = dict[str, Callable[[], torch.Tensor]]


def _suits(block_m: int, m: int) -> bool:
    return block_m <= max(2 * m, 16) and (block_m >= 64 or m <= 128)


def matmul_variants(
    a: torch.Tensor,
    b: torch.Tensor,
    out_dtype: torch.dtype,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Variants:
    """Return the ways to compute a @ b that are worth trying, by name; b is a matrix or the transpose of one."""
    m, k = a.shape
    n = b.shape[1]
    eight_bit = a.dtype.itemsize == 1
    none = torch.empty(1, device=a.device)
    a_scale, b_scale = scales if scales is not None else (none, none)
    variants: Variants = {}
    for block_m, block_n, block_k, warps, stages in POINTER_CONFIGS:
        depth = block_k * (2 if eight_bit else 1)
        if not _suits(block_m, m) or k % depth:
            continue

        def pointers(
            bm: int = block_m, bn: int = block_n, bk: int = depth, w: int = warps, s: int = stages
        ) -> torch.Tensor:
            c = torch.empty((m, n), dtype=out_dtype, device=a.device)
            grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn),)
            matmul_pointers[grid](
                a, b, c, a_scale, b_scale, m, n, k, a.stride(0), b.stride(0), b.stride(1),
                BLOCK_M=bm, BLOCK_N=bn, BLOCK_K=bk, SCALED=scales is not None, num_warps=w, num_stages=s,
            )  # fmt: skip
            return c

        variants[f"pointers {block_m}x{block_n}x{depth} {warps} warps {stages} stages"] = pointers
    if a.device.type != "cuda" or torch.cuda.get_device_capability(a.device) < (9, 0) or b.stride(0) != 1:
        return variants
    programs = torch.cuda.get_device_properties(a.device).multi_processor_count
    for block_m, block_n, block_k, warps, stages in DESCRIPTOR_CONFIGS:
        depth = block_k * (2 if eight_bit else 1)
        if not _suits(block_m, m):
            continue

        def descriptors(
            bm: int = block_m, bn: int = block_n, bk: int = depth, w: int = warps, s: int = stages
        ) -> torch.Tensor:
            c = torch.empty((m, n), dtype=out_dtype, device=a.device)
            matmul_descriptors[(programs,)](
                TensorDescriptor.from_tensor(a, [bm, bk]), TensorDescriptor.from_tensor(b.T, [bn, bk]),
                TensorDescriptor.from_tensor(c, [bm, bn]), a_scale, b_scale, m, n, k,
                BLOCK_M=bm, BLOCK_N=bn, BLOCK_K=bk, SCALED=scales is not None, PROGRAMS=programs, num_warps=w, num_stages=s,
            )  # fmt: skip
            return c

        variants[f"descriptors {block_m}x{block_n}x{depth} {warps} warps {stages} stages"] = descriptors
    return variants


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Return k x n codes from 0 to 15 as k / 2 x n bytes, as `matmul_int4` reads them."""
    k, n = codes.shape
    halves = codes.to(torch.uint8).reshape(k // (2 * INT4_DEPTH), 2, INT4_DEPTH, n)
    return (halves[:, 0] | (halves[:, 1] << 4)).reshape(k // 2, n).contiguous()


def int4_variants(a: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> Variants:
    """Return the ways to multiply with 4-bit weights in groups of 128 that are worth trying, by name."""
    m, k = a.shape
    n = packed.shape[1]
    variants: Variants = {}
    for block_m, block_n, split, warps, stages in INT4_CONFIGS:
        if not _suits(block_m, m):
            continue

        def run(
            bm: int = block_m, bn: int = block_n, sp: int = split, w: int = warps, s: int = stages
        ) -> torch.Tensor:
            make: Any = torch.empty if sp == 1 else torch.zeros
            c = make((m, n), dtype=torch.float16, device=a.device)
            matmul_int4[(triton.cdiv(n, bn), triton.cdiv(m, bm), sp)](
                a,
                packed,
                scale,
                c,
                m,
                n,
                k,
                BLOCK_M=bm,
                BLOCK_N=bn,
                HALF=INT4_DEPTH,
                SPLIT=sp,
                num_warps=w,
                num_stages=s,
            )
            return c

        variants[f"{block_m}x{block_n} split {split} {warps} warps {stages} stages"] = run
    return variants
