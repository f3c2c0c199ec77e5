"""Grouped products on targets with wgmma: persistent blocks of a TMA producer and wgmma consumers.

As many blocks as there are multiprocessors take one tile after another. Which tiles there are is said on the device,
by who owns each block of rows or how many rows each expert has: warps that copy and warps that multiply find the next
tile by themselves, and copies for it begin while the one before is still multiplied.
"""

from __future__ import annotations

from math import gcd

import tilus
from tilus import Tensor, constexpr, float32, int32
from tilus.ops.grouped_kernel import rescaled
from tilus.ops.grouped_tiles import GroupedTiles, located, tiles_of
from tilus.ops.hopper_matmul_kernel import fetch, following, operand, release, send
from tilus.ops.matmul_kernel import activate


@tilus.kernel
def grouped_hopper_kernel(
    a: Tensor["dtype", "groups rows k"],
    b: Tensor["b_dtype", "experts b_rows b_columns"],
    bias: Tensor["out_dtype", "bias_experts bias_n"],
    a_scale: Tensor[float32, "scale_groups scale_rows"],
    b_scale: Tensor[float32, "scale_experts scale_n"],
    owners: Tensor[int32, "owners"],
    c: Tensor["out_dtype", "groups rows n"],
    blocks: int32,
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    acc_dtype: constexpr = float32,
    b_turned: constexpr = False,
    masked: constexpr = False,
    has_bias: constexpr = False,
    a_scales: constexpr = "",
    b_scales: constexpr = "",
    activation: constexpr = "",
    block: constexpr = 128,
    swap: constexpr = False,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 64,
    stages: constexpr = 4,
    consumers: constexpr = 2,
    cluster_n: constexpr = 1,
    bulk_store: constexpr = True,
):
    """c[g, r] = activation(a[g, r] @ b[expert of row r of group g] + bias of that expert), as `grouped_matmul_kernel`.

    The blocks of a cluster work on tiles beside one another, whose rows and expert are the same: each copies a part of
    a's tile to all of them.

    With `swap` the transpose of a tile is multiplied: the tensor core's first operand has at least 64 rows, and these
    are columns of the result then, so that blocks of few rows waste nothing.
    """
    groups, rows, k = a.shape
    n = c.shape[2]
    warps = 4 * consumers
    tilus.grid(blocks, warps=warps + 4, cluster=cluster_n)
    how = GroupedTiles(block_m, block_n, block, masked, cluster_n)
    tiles, space = tiles_of(owners, groups, rows, n, how)
    *_, rank = space
    steps = tilus.cdiv(k, block_k)

    sa = tilus.shared(dtype, (stages, block_m, block_k))
    sb = tilus.shared(b_dtype, (stages, block_n, block_k) if b_turned else (stages, block_k, block_n))
    full = tilus.barrier(stages)
    empty = tilus.barrier(stages, arrivals=cluster_n * warps)
    budget = consumers > 1

    with tilus.warps(warps, 4, registers=40 if budget else 0):
        with tilus.warps(warps, 1):
            stage, phase, found = 0, 1, (0, 0)
            for tile in range(*tiles):
                found, batch, row, column, expert, over = located(tile, found, space, how)
                if over:
                    break
                for step in range(steps if expert >= 0 else 0):
                    tilus.wait(empty, phase, index=stage)
                    tilus.arrive(full, index=stage, bytes=(block_m + block_n) * block_k * dtype.bits // 8)
                    at = step * block_k
                    mask = (1 << cluster_n) - 1
                    fetch(sa[stage], a, batch, row, at, True, full, stage, rank, cluster_n, mask)
                    fetch(sb[stage], b, expert, column, at, b_turned, full, stage, 0, 1, 0)
                    stage, phase = following(stage, phase, stages)

    with tilus.warps(0, warps, registers=232 if budget else 0):
        width = gcd(block_n, 1024 // out_dtype.bits)
        sc = tilus.shared(out_dtype, (1, block_m, block_n) if swap else (2, block_m, width))
        stage, phase, found = 0, 0, (0, 0)
        for tile in range(*tiles):
            found, batch, row, column, expert, over = located(tile, found, space, how)
            if over:
                break
            if expert >= 0:
                tilus.wait(full, phase, index=stage)
                acc = product(sa[stage], operand(sb[stage], b_turned), swap, acc_dtype)
                read = stage
                stage, phase = following(stage, phase, stages)
                # One product stays in flight while the next one is started.
                for _ in range(1, steps):
                    tilus.wait(full, phase, index=stage)
                    acc = product(sa[stage], operand(sb[stage], b_turned), swap, acc_dtype, acc)
                    tilus.dot_wait(pending=1)
                    release(empty, read, cluster_n)
                    read = stage
                    stage, phase = following(stage, phase, stages)
                acc = tilus.dot_wait(acc)
                release(empty, read, cluster_n)
                parts = 1 if swap else block_n // width
                for part in tilus.static_range(parts):
                    here = acc.transpose() if swap else acc[:, part * width : (part + 1) * width]
                    at = column + part * width
                    out = tilus.cast(here, float32)
                    out = rescaled(out, a_scale, b_scale, batch, row, expert, at, a_scales, b_scales)
                    if has_bias:
                        more = tilus.load(bias, (expert, at), (1, out.shape[1]))
                        out = out + tilus.cast(more, float32)
                    out = tilus.cast(activate(out, activation), out_dtype)
                    send(c, sc, out, batch, row, at, part, parts, bulk_store)
        if bulk_store:
            tilus.bulk_wait(0, read=False)


@tilus.inline
def product(a, b, swap, acc_dtype, acc=None):
    """Start a @ b, or its transpose."""
    if swap:
        return tilus.dot_async(b.transpose(), a.transpose(), acc, out_dtype=acc_dtype)
    return tilus.dot_async(a, b, acc, out_dtype=acc_dtype)
