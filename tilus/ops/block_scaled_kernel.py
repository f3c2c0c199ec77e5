"""Products of float8 matrices with a scale for each block: each row and each 128 of k of the first, each 128 x 128 of
the second.

The sum over a block is exact enough in the tensor core; across blocks it is taken in float32 registers (DeepSeek-V3
technical report, section 3.3).
"""

from __future__ import annotations

from math import gcd

import tilus
from tilus import Tensor, constexpr, float8_e4m3, float16, float32, int32
from tilus.ops.hopper_matmul_kernel import (
    fetch,
    following,
    masks,
    pieces_of,
    place,
    place_here,
    release,
    send,
    work_of,
)

BLOCK = 128
"""Elements along k, and along n, that share a scale."""


@tilus.kernel
def hopper_block_scaled_kernel(
    a: Tensor["dtype", "batch m k"],
    b: Tensor["b_dtype", "batch n k"],
    c: Tensor["out_dtype", "batch m n"],
    a_scale: Tensor[float32, "k_blocks padded_m"],
    b_scale: Tensor[float32, "one n_blocks k_blocks"],
    partial: Tensor[float32, "slots slot_m slot_n"],
    blocks: int32,
    shared_tiles: int32,
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    stages: constexpr = 5,
    consumers: constexpr = 2,
    stream: constexpr = False,
    bulk_store: constexpr = True,
    cluster_m: constexpr = 1,
    cluster_n: constexpr = 1,
    group: constexpr = 8,
):
    """c = (a * its scales) @ (b * its scales).T, as `hopper_matmul_kernel`; each consumer stores its own rows."""
    m, n, k = c.shape[1], c.shape[2], a.shape[2]
    warps, size = 4 * consumers, cluster_m * cluster_n
    tilus.grid(blocks, warps=warps + 4, cluster=size)
    team, teams = tilus.block_id(0) // size, tilus.grid_dim(0) // size
    rank = tilus.cluster_rank() if size > 1 else 0
    rank_m, rank_n = rank // cluster_n, rank % cluster_n
    row_mask, column_mask = masks(rank, cluster_m, cluster_n)
    rows, columns = tilus.cdiv(m, block_m * cluster_m), tilus.cdiv(n, block_n * cluster_n)
    steps = tilus.cdiv(k, BLOCK)
    whole = rows * columns - shared_tiles if stream else rows * columns
    own = tilus.cdiv(tilus.max(whole - team, 0), teams)
    pieces = pieces_of(team, teams, shared_tiles, steps) if stream else 0

    # Each consumer multiplies its own rows, at its own pace: while one stores, the other has a step or two in hand.
    height = block_m // consumers
    sa = tilus.shared(dtype, (stages, consumers, height, BLOCK))
    sb = tilus.shared(b_dtype, (stages, block_n, BLOCK))
    ss = tilus.shared(float32, (stages, consumers, height))
    sw = tilus.shared(float32, (stages, 2))
    full = tilus.barrier(stages)
    empty = tilus.barrier(stages, arrivals=size * warps)
    budget = consumers > 1
    if stream:
        # The kernel that adds up the parts is launched while this one runs.
        tilus.launch_next()

    with tilus.warps(warps, 4, registers=40 if budget else 0):
        with tilus.warps(warps, 1):
            stage, phase = 0, 1
            for unit in range(own + pieces):
                tile, first, length = work_of(unit, own, whole, team, teams, shared_tiles, steps, stream)
                _, i, j = place(tile, rows, columns, group)
                row = (i * cluster_m + rank_m) * block_m
                column = (j * cluster_n + rank_n) * block_n
                scales = column_scales(b_scale, 0, column, first, block_n)
                for step in range(first, first + length):
                    tilus.wait(empty, phase, index=stage)
                    bring_scales(sw[stage], scales)
                    tilus.arrive(full, index=stage, bytes=(block_m + block_n) * BLOCK + 4 * block_m)
                    at = step * BLOCK
                    fetch(sb[stage], b, 0, column, at, True, full, stage, rank_m, cluster_m, column_mask)
                    for lane in tilus.static_range(consumers):
                        here = row + lane * height
                        fetch(sa[stage][lane], a, 0, here, at, True, full, stage, rank_n, cluster_n, row_mask)
                        tilus.copy_bulk(ss[stage][lane], a_scale, (step, here), full, index=stage)
                    # A step ahead, so that no copy waits for memory.
                    scales = column_scales(b_scale, 0, column, step + 1, block_n)
                    stage, phase = following(stage, phase, stages)

    for lane in tilus.static_range(consumers):
        with tilus.warps(4 * lane, 4, registers=232 if budget else 0):
            width = gcd(block_n, 1024 // out_dtype.bits)
            sc = tilus.shared(out_dtype, (2, height, width))
            # After a barrier the assembler knows that the warp's threads are together: it keeps stages and descriptors
            # of the second consumer in uniform registers, too.
            tilus.sync()
            stage, phase = 0, 0
            tile, _, _ = work_of(0, own, whole, team, teams, shared_tiles, steps, stream)
            _, i, j = place(tile, rows, columns, group)
            for unit in range(own + pieces):
                _, first, length = work_of(unit, own, whole, team, teams, shared_tiles, steps, stream)
                row = (i * cluster_m + rank_m) * block_m + lane * height
                column = (j * cluster_n + rank_n) * block_n
                later, _, _ = work_of(unit + 1, own, whole, team, teams, shared_tiles, steps, stream)
                sums, stage, phase, i, j = scaled_product(
                    sa, sb, ss, sw, full, empty, stage, phase, lane, column, first, length, size, False,
                    i, j, (later, rows, columns, group),
                )  # fmt: skip
                if stream and length < steps:
                    slot = 2 * team + (0 if unit == own else 1)
                    for number, half in enumerate(sums):
                        at = number * half.shape[1]
                        tilus.store(partial, half, (slot * size + rank, lane * height, at))
                else:
                    parts = block_n // width
                    for part in tilus.static_range(parts):
                        out = tilus.cast(columns_of(sums, part * width, width), out_dtype)
                        send(c, sc, out, 0, row, column + part * width, part, parts, bulk_store)
            if bulk_store:
                tilus.bulk_wait(0, read=False)


@tilus.inline
def scaled_product(
    sa, sb, ss, sw, full, empty, stage, phase, lane, column, first, length, size, swap=False, i=0, j=0, later=None
):  # fmt: skip
    """Return the sums of scaled products of a consumer over steps along k, and the stage and its phase after them.

    With `swap` they are the sums' transpose, whose rows are those of b. Two more results tell where the tile `later`
    lies, for `place`; they are i and j if it is None.

    The sums of a tile of two whole blocks of columns are in two halves, for a thread has not the registers for both
    products of a step at a time: the second one takes those of the first.
    """
    stages, _, block_m, _ = sa.shape
    block_n = sb.shape[1]
    halves = 2 if block_n == 2 * BLOCK else 1
    width = block_n // halves
    sums = [
        tilus.zeros((width, block_m) if swap else (block_m, width), float32)
        for _ in tilus.static_range(halves)
    ]
    for step in range(first, first + length):
        tilus.wait(full, phase, index=stage)
        for half in tilus.static_range(halves):
            there = sb[stage][half * width : (half + 1) * width]
            if swap:
                product = tilus.dot_async(there, sa[stage][lane].transpose(), out_dtype=float32)
            elif half == 0:
                product = tilus.dot_async(sa[stage][lane], there.transpose(), out_dtype=float32)
            else:
                product = tilus.dot_async(sa[stage][lane], there.transpose(), over=product)
            if half == 0:
                if later is not None:
                    if step == first:
                        # While the tensor cores are busy: divisions take as long as a product.
                        _, i, j = place_here(*later)
                factors = tilus.load(ss[stage][lane][:block_m])
                scale = tilus.load(sw[stage][0:1])
                next_scale = scale if BLOCK % block_n == 0 else tilus.load(sw[stage][1:2])
            product = tilus.dot_wait(product)
            if half == halves - 1:
                release(empty, stage, size)
            if swap:
                # Of all rows of b in a tile the scale is the same.
                more = sums[half] + product * (factors * scale)[None, :]
            elif halves == 1:
                more = promoted(sums[half], product, factors, scale, next_scale, column)
            elif half == 0:
                more = added(sums[half], product, (factors * scale)[:, None])
            else:
                more = sums[half] + product * (factors * next_scale)[:, None]
            sums = [more if number == half else old for number, old in enumerate(sums)]
        stage, phase = following(stage, phase, stages)
    return sums, stage, phase, i, j


@tilus.inline
def added(sums, product, factor):
    """Return sums + product * factor, computed here: the compiler would add both halves at the end."""
    factor = tilus.broadcast_to(factor, sums.shape)
    return tilus.inline_ptx("fma.rn.f32 $0, $1, $2, $3;", (product, factor, sums), float32, volatile=True)


@tilus.inline
def columns_of(sums, first, width):
    """Return some columns of what `scaled_product` gave, all of one half."""
    each = sums[0].shape[1]
    return sums[first // each][:, first % each : first % each + width]


@tilus.inline
def column_scales(b_scale, matrix, column, step, block_n):
    """Return the scales of a tile's columns in a step: it may lie in two blocks of columns."""
    # Where the last of these tiles begins in a block, it ends in the next one.
    tilus.static_assert(block_n <= BLOCK + gcd(block_n, BLOCK))
    scale = tilus.load(b_scale, (matrix, column // BLOCK, step))
    if BLOCK % block_n == 0:
        return scale, scale
    return scale, tilus.load(b_scale, (matrix, column // BLOCK + 1, step))


@tilus.inline
def bring_scales(target, scales):
    """Put what `column_scales` gave into a stage: the arrival after it tells consumers that it is there."""
    for number in tilus.static_range(2):
        tilus.store(target[number : number + 1], tilus.full(1, scales[number]))


@tilus.inline
def promoted(acc, sums, factors, scale, next_scale, column):
    """Add scaled sums of a block of k to those of all: a thread's own numbers, in float32."""
    width = acc.shape[1]
    if BLOCK % width == 0:
        return acc + sums * (factors * scale)[:, None]
    # Tiles begin at multiples of their width: which block so many columns are of is one question.
    first = tilus.arange(width) & -gcd(width, BLOCK)
    own = (first < BLOCK - column % BLOCK)[None, :]
    return acc + sums * tilus.where(own, (factors * scale)[:, None], (factors * next_scale)[:, None])


@tilus.kernel
def block_scaled_kernel(
    a: Tensor["dtype", "m k"],
    b: Tensor["b_dtype", "n k"],
    c: Tensor["out_dtype", "m n"],
    a_scale: Tensor[float32, "k_blocks padded_m"],
    b_scale: Tensor[float32, "n_blocks k_blocks"],
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    native: constexpr = True,
    block_m: constexpr = 64,
    block_n: constexpr = 64,
    stages: constexpr = 3,
    warps: constexpr = 4,
):
    """The same on every target: tensor cores that have no float8 (`native`) get it as float16, which is exact."""
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=warps)
    i, j = tilus.block_id()
    row, column = i * block_m, j * block_n
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, k, BLOCK), stages=stages):
        sa, sb = tilus.shared(dtype, (block_m, BLOCK)), tilus.shared(b_dtype, (block_n, BLOCK))
        tilus.copy_async(sa, a, (row, k0))
        tilus.copy_async(sb, b, (column, k0))
        left, right = tilus.load(sa), tilus.load(sb.transpose())
        if not native:
            left, right = left.to(float16), right.to(float16)
        factor = tilus.load(b_scale, (column // BLOCK, k0 // BLOCK))
        factors = tilus.load(a_scale, (k0 // BLOCK, row), block_m) * factor
        acc += tilus.dot(left, right, out_dtype=float32) * factors[:, None]
    tilus.store(c, acc.to(out_dtype), (row, column))


@tilus.kernel
def quantize_blocks_kernel(
    x: Tensor["dtype", "m k"],
    codes: Tensor[float8_e4m3, "m k"],
    scale: Tensor[float32, "scale_rows k_blocks"],
    *,
    dtype: constexpr,
    height: constexpr = 1,
    block_m: constexpr = 16,
):
    """Scale blocks of `height` x 128 so that the largest magnitude becomes the largest of float8, and round."""
    m, k = x.shape
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(k, BLOCK), warps=4)
    i, j = tilus.block_id()
    tile = tilus.load(x, (i * block_m, j * BLOCK), (block_m, BLOCK)).to(float32)
    largest = tilus.max(tilus.abs(tile), axis=1, keepdims=True)
    if height > 1:
        largest = tilus.broadcast_to(tilus.max(largest, axis=0, keepdims=True), (block_m, 1))
    # A block of zeros, or nearly so, has a scale that is no denormal.
    step = tilus.maximum(largest, SMALLEST) / LARGEST
    tilus.store(codes, (tile / step).to(float8_e4m3), (i * block_m, j * BLOCK))
    if height > 1:
        tilus.store(scale, step[0:1, :], (i, j))
    else:
        tilus.store(scale, step, (i * block_m, j))


LARGEST = 448.0
"""Of float8_e4m3."""
SMALLEST = 1e-4
"""Magnitudes below are taken for this one."""
