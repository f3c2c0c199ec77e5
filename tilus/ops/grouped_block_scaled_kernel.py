"""The kernels behind `grouped_matmul_block_scaled`: each block of rows is multiplied with its own expert's matrix.

Both are made as those of `block_scaled_kernel`: sums over 128 of k are exact enough in the tensor core, and are scaled
and added up in float32 registers.
"""

from __future__ import annotations

from math import gcd

import tilus
from tilus import Tensor, constexpr, float16, float32, int32
from tilus.ops.block_scaled_kernel import BLOCK, bring_scales, column_scales, columns_of, scaled_product
from tilus.ops.grouped_tiles import GroupedTiles, located, tile_of, tiles_of
from tilus.ops.hopper_matmul_kernel import fetch, following, send


@tilus.kernel
def hopper_grouped_block_scaled_kernel(
    a: Tensor["dtype", "groups rows k"],
    b: Tensor["b_dtype", "experts n k"],
    c: Tensor["out_dtype", "groups rows n"],
    a_scale: Tensor[float32, "groups k_blocks padded_rows"],
    b_scale: Tensor[float32, "experts n_blocks k_blocks"],
    owners: Tensor[int32, "owners"],
    blocks: int32,
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    masked: constexpr = False,
    block: constexpr = 128,
    swap: constexpr = False,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    stages: constexpr = 5,
    consumers: constexpr = 2,
    cluster_n: constexpr = 1,
    bulk_store: constexpr = True,
):
    """c[g, r] = (a[g, r] * its scales) @ (b[expert of row r of group g] * its scales).T, in persistent blocks.

    They find their tiles, share a's in clusters, and `swap` operands as those of `grouped_hopper_kernel` do.
    """
    # Swapped, a tile has one scale of b.
    tilus.static_assert(not swap or BLOCK % block_n == 0)
    groups, rows, k = a.shape
    n = c.shape[2]
    warps = 4 * consumers
    tilus.grid(blocks, warps=warps + 4, cluster=cluster_n)
    how = GroupedTiles(block_m, block_n, block, masked, cluster_n)
    tiles, space = tiles_of(owners, groups, rows, n, how)
    *_, rank = space
    steps = tilus.cdiv(k, BLOCK)

    # Each consumer multiplies rows, or swapped columns, of its own: rows at its own pace.
    lanes = 1 if swap else consumers
    height = block_m // lanes
    sa = tilus.shared(dtype, (stages, lanes, height, BLOCK))
    sb = tilus.shared(b_dtype, (stages, block_n, BLOCK))
    # A bulk copy begins at a multiple of 128 bytes.
    scales = max(height, 32)
    ss = tilus.shared(float32, (stages, lanes, scales))
    sw = tilus.shared(float32, (stages, 2))
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
                of_columns = column_scales(b_scale, expert, column, 0, block_n)
                for step in range(steps if expert >= 0 else 0):
                    tilus.wait(empty, phase, index=stage)
                    bring_scales(sw[stage], of_columns)
                    tilus.arrive(full, index=stage, bytes=(block_m + block_n) * BLOCK + 4 * lanes * scales)
                    at = step * BLOCK
                    fetch(sb[stage], b, expert, column, at, True, full, stage, 0, 1, 0)
                    for lane in tilus.static_range(lanes):
                        here = row + lane * height
                        fetch(
                            sa[stage][lane], a, batch, here, at, True, full, stage, rank, cluster_n,
                            (1 << cluster_n) - 1,
                        )  # fmt: skip
                        tilus.copy_bulk(ss[stage][lane], a_scale, (batch, step, here), full, index=stage)
                    # A step ahead, so that no copy waits for memory.
                    of_columns = column_scales(b_scale, expert, column, step + 1, block_n)
                    stage, phase = following(stage, phase, stages)

    for lane in tilus.static_range(lanes):
        with tilus.warps(4 * lane, warps // lanes, registers=232 if budget else 0):
            width = gcd(block_n, 1024 // out_dtype.bits)
            sc = tilus.shared(out_dtype, (1, height, block_n) if swap else (2, height, width))
            # As in the product of one pair: the second consumer's stages stay in uniform registers.
            tilus.sync()
            stage, phase, found = 0, 0, (0, 0)
            for tile in range(*tiles):
                found, batch, row, column, expert, over = located(tile, found, space, how)
                if over:
                    break
                if expert >= 0:
                    row += lane * height
                    sums, stage, phase, _, _ = scaled_product(
                        sa, sb, ss, sw, full, empty, stage, phase, lane, column, 0, steps, cluster_n, swap
                    )
                    parts = 1 if swap else block_n // width
                    for part in tilus.static_range(parts):
                        here = sums[0].transpose() if swap else columns_of(sums, part * width, width)
                        out = tilus.cast(here, out_dtype)
                        send(c, sc, out, batch, row, column + part * width, part, parts, bulk_store)
            if bulk_store:
                tilus.bulk_wait(0, read=False)


@tilus.kernel
def grouped_block_scaled_kernel(
    a: Tensor["dtype", "groups rows k"],
    b: Tensor["b_dtype", "experts n k"],
    c: Tensor["out_dtype", "groups rows n"],
    a_scale: Tensor[float32, "groups k_blocks padded_rows"],
    b_scale: Tensor[float32, "experts n_blocks k_blocks"],
    owners: Tensor[int32, "owners"],
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    native: constexpr = True,
    masked: constexpr = False,
    block: constexpr = 64,
    block_m: constexpr = 64,
    block_n: constexpr = 64,
    stages: constexpr = 3,
    warps: constexpr = 4,
):
    """The same on every target: tensor cores that have no float8 (`native`) get it as float16, which is exact."""
    groups, rows, k = a.shape
    n = c.shape[2]
    tilus.grid(tilus.cdiv(rows, block_m) * tilus.cdiv(n, block_n) * groups, warps=warps)
    how = GroupedTiles(block_m, block_n, block, masked)
    batch, row, column, expert, used = tile_of(owners, rows, n, how)
    end = k if used else 0
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, end, BLOCK), stages=stages):
        sa, sb = tilus.shared(dtype, (block_m, BLOCK)), tilus.shared(b_dtype, (block_n, BLOCK))
        tilus.copy_async(sa, a, (batch, row, k0))
        tilus.copy_async(sb, b, (expert, column, k0))
        left, right = tilus.load(sa), tilus.load(sb.transpose())
        if not native:
            left, right = left.to(float16), right.to(float16)
        factor = tilus.load(b_scale, (expert, column // BLOCK, k0 // BLOCK))
        factors = tilus.load(a_scale, (batch, k0 // BLOCK, row), block_m) * factor
        acc += tilus.dot(left, right, out_dtype=float32) * factors[:, None]
    if used:
        tilus.store(c, acc.to(out_dtype), (batch, row, column))
