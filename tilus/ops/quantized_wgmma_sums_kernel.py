"""The quantised matmul on warpgroups for activations of 8 bits: scales multiply sums of products, not weights.

As in `quantized_wgmma_kernel`, c^T = b^T a^T, and weights are decoded in registers to become the first operand. Sums of
integers are exact; sums of float8 are taken up in float32 after at most 128 terms, for the tensor core adds them with
few bits. While one half of a warp's columns is multiplied, the other half's sums are scaled.
"""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32, uint8
from tilus.ops.hopper_matmul_kernel import here, release
from tilus.ops.prepack import UNIT_K, UNIT_N
from tilus.ops.quantized_parts import finished
from tilus.ops.quantized_wgmma_parts import (
    ROW,
    Tiles,
    codes_of,
    divided,
    finishes,
    own_place,
    part_layout,
    part_of,
    prefetch,
    sent,
    stage_before,
    summed,
    values_of,
    went_on,
    work_at,
)

# Columns of a warp whose sums are scaled at once: those that it has in one instruction.
HALF = 16
# Shared memory that bulk copies write begins at multiples of 128 bytes: as many values of float32.
FEWEST_FACTORS = 32


@tilus.kernel
def quantized_wgmma_sums_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units rows row"],
    scale: Tensor["s_dtype", "groups n_padded"],
    zero: Tensor["out_dtype", "zero_groups zero_n"],
    row_scale: Tensor[float32, "scale_rows scale_m"],
    row_sum: Tensor[float32, "sum_rows sum_m"],
    bias: Tensor["out_dtype", "bias_n"],
    c: Tensor["c_dtype", "one m n_out"],
    partial: Tensor["p_dtype", "slots lines threads four"],
    arrived: Tensor[int32, "shared"],
    alpha: float32,
    n: int32,
    shared_tiles: int32,
    clusters: int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    w_dtype: constexpr,
    s_dtype: constexpr,
    out_dtype: constexpr,
    p_dtype: constexpr,
    c_dtype: constexpr,
    group: constexpr,
    span: constexpr,
    by_group: constexpr,
    has_zero: constexpr,
    has_row_scale: constexpr = False,
    by_block: constexpr = False,
    exponent: constexpr = 0,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    block_m: constexpr = 64,
    block_n: constexpr = 256,
    stages: constexpr = 3,
    pieces: constexpr = 1,
    group_m: constexpr = 16,
    cluster_m: constexpr = 1,
    cluster_n: constexpr = 1,
    stream: constexpr = False,
    bulk_store: constexpr = True,
):
    """c = activation(alpha * (a * row_scale) @ ((b - zero) * scale) + bias) with tiles as `quantized_wgmma_kernel` has.

    Sums over `span` elements of k are scaled and added up in float32; a span of 0 is all of k. With `by_group` scales
    differ along k: those of the weight and, with `by_block`, those of the rows, which have one for each 128 elements.
    Zero points are taken off with ``sum(a * (b - zero)) = sum(a * b) - zero * sum(a)``; `row_sum` is sum(a), a row for
    each span with `by_group`, else one.
    """
    m, k = a.shape
    warps = block_n // UNIT_N
    how = Tiles(
        block_m, block_n, stages, pieces, cluster_m, cluster_n, group_m, stream, b_dtype.bits, group
    )  # fmt: skip
    tilus.grid(clusters * how.size, warps=warps, cluster=how.size)
    share, works, turns = divided(m, n, k, shared_tiles, how)
    groups = tilus.max(UNIT_K // group, 1) if by_group else 1
    part_k = span if span else 64
    parts = UNIT_K // part_k
    sum_dtype = int32 if a_dtype.is_integer else float32
    sums = by_group and has_zero
    sa = tilus.shared(a_dtype, (stages, parts, block_m, part_k))
    sb = tilus.shared(uint8, (stages, cluster_m, how.rows // cluster_m, ROW))
    factors = tilus.max(block_m, FEWEST_FACTORS)
    ss = tilus.shared(s_dtype, (stages, groups, block_n)) if by_group else None
    sz = tilus.shared(out_dtype, (stages, groups, block_n)) if sums else None
    sr = tilus.shared(float32, (stages, 1, factors)) if by_block else None
    su = tilus.shared(float32, (stages, parts, factors)) if sums else None
    sc = tilus.shared(c_dtype, (how.piece_m, block_n // 2 if gated else block_n))
    full, empty = tilus.barrier(stages), tilus.barrier(stages, arrivals=how.size * warps)
    sources, buffers = (a, b, scale, zero, row_scale, row_sum), (sa, sb, ss, sz, sr, su)
    if has_zero:
        # The kernel before may still be adding up the rows.
        tilus.wait_for_previous()
    with tilus.warps(0, warps):
        ahead = prefetch(sources, buffers, full, turns, share, how)
        turn, stage, phase = 0, 0, 0
        for work in range(works):
            tile, row, column, _, length = work_at(work, share, how)
            row, column = own_place(row, column, share)
            # Sums of all of k, or of the first and the second half of each warp's columns.
            acc = tilus.zeros((HALF * warps if span else block_n, block_m), float32 if span else sum_dtype)
            other = tilus.zeros((HALF * warps if span else HALF, block_m), float32)
            for _ in range(length):
                tilus.wait(full, phase, index=stage)
                if not span and how.bits == 8:
                    # The codes themselves are operands: a product that is under way reads these registers.
                    tilus.dot_wait(pending=0)
                codes = codes_of(sb[stage], how)
                before = stage_before(stage, how)
                if span:
                    if turn > 0:
                        release(empty, before, how.size)
                    of_rows = tilus.load(sr[stage]) if by_block else 1.0
                    for number in tilus.static_range(parts):
                        low = part_of(codes, b_dtype, number, part_k, part_layout(part_k, warps, 8))
                        weight = tilus.cast(low, w_dtype, arranged=True, exponent=exponent)
                        tile_of_rows = sa[stage][number].transpose()
                        # Both halves are under way while the first one's sums are scaled.
                        one = tilus.dot_async(half_of(weight, 0), tile_of_rows, out_dtype=sum_dtype)
                        two = tilus.dot_async(half_of(weight, 1), tile_of_rows, out_dtype=sum_dtype)
                        at = number * part_k // group if group < UNIT_K else 0
                        scales = values_of(ss[stage][at], float32, 0) if by_group else 1.0
                        zeros = values_of(sz[stage][at], float32, -exponent) if sums else 0.0
                        of_sums = tilus.load(su[stage][number : number + 1, :]) if sums else 0.0
                        one = tilus.dot_wait(one, pending=1)
                        acc = acc + promoted(
                            one, 0, scales, zeros, of_rows, of_sums, by_group, sums, by_block
                        )
                        acc = here(acc)
                        two = tilus.dot_wait(two)
                        other = other + promoted(
                            two, 1, scales, zeros, of_rows, of_sums, by_group, sums, by_block
                        )
                else:
                    for number in tilus.static_range(parts):
                        low = part_of(codes, b_dtype, number, part_k, part_layout(part_k, warps, 8))
                        weight = tilus.cast(low, w_dtype, arranged=True, exponent=exponent)
                        acc = tilus.dot_async(weight.transpose(), sa[stage][number].transpose(), acc)
                        # The product before this one is done: the registers of its weights are free.
                        tilus.dot_wait(pending=1)
                        if number == 0 and turn > 0:
                            release(empty, before, how.size)
                ahead, turn, stage, phase = went_on(
                    sources, buffers, full, empty, ahead, turn, stage, phase, turns, share, how
                )
            acc = joined(acc, other) if span else tilus.dot_wait(acc)
            if finishes(partial, arrived, acc, tile, length, share, how):
                for piece in tilus.static_range(pieces):
                    start = piece * how.piece_m
                    held = summed(partial, acc, start, tile, length, share, how)
                    total = tilus.transpose(tilus.cast(held, float32))
                    if has_zero and not by_group:
                        points = (
                            tilus.cast(tilus.load(zero, (0, column), (1, block_n)), float32) * 2.0**-exponent
                        )
                        of_sums = tilus.load(row_sum, (0, row + start), (1, how.piece_m))
                        total = total - points * tilus.transpose(of_sums)
                    total = total * (alpha * 2.0**exponent)
                    if not by_group:
                        total = total * tilus.cast(tilus.load(scale, (0, column), (1, block_n)), float32)
                    if has_row_scale and not by_block:
                        total = total * tilus.transpose(
                            tilus.load(row_scale, (0, row + start), (1, how.piece_m))
                        )
                    out = tilus.cast(finished(total, bias, column, has_bias, activation, gated), c_dtype)
                    sent(c, sc, out, row + start, column // 2 if gated else column, bulk_store)
        if bulk_store:
            tilus.bulk_wait(0, read=False)


@tilus.inline
def half_of(weight, half: constexpr):
    """Return one half of each warp's columns as the first operand."""
    part_k, columns = weight.shape
    pairs = tilus.reshape(weight.transpose(), (columns // UNIT_N, 2, HALF, part_k))
    return tilus.reshape(pairs[:, half : half + 1, :, :], (columns // 2, part_k))


@tilus.inline
def joined(one, two):
    """Return both halves of each warp's columns as they lie in memory."""
    rows, block_m = one.shape
    first = tilus.reshape(one, (rows // HALF, 1, HALF, block_m))
    second = tilus.reshape(two, (rows // HALF, 1, HALF, block_m))
    return tilus.reshape(tilus.concat((first, second), axis=1), (2 * rows, block_m))


@tilus.inline
def promoted(value, half: constexpr, scales, zeros, of_rows, of_sums, by_group, sums, by_block):
    """Return the scaled sums of one half of each warp's columns over a span of k."""
    _, block_m = value.shape
    value = tilus.cast(value, float32)
    if sums:
        value = value - chosen(zeros, half) * of_sums[:, :block_m]
    if by_block:
        value = value * of_rows[:, :block_m]
    return value * chosen(scales, half) if by_group else value


@tilus.inline
def chosen(values, half: constexpr):
    """Return the values of one half of each warp's columns, to be broadcast with its sums."""
    (columns,) = values.shape
    pairs = tilus.reshape(values, (columns // UNIT_N, 2, HALF))
    return tilus.reshape(pairs[:, half : half + 1, :], (columns // 2, 1))


@tilus.kernel
def row_sums_kernel(
    a: Tensor["a_dtype", "m k"],
    out: Tensor[float32, "spans m_padded"],
    *,
    a_dtype: constexpr,
    span: constexpr,
    rows: constexpr = 16,
    block: constexpr = 1024,
):
    """Add up the rows of a over `span` elements each, 32, 64 or 128, or over all of k if that is 0."""
    tilus.launch_next()
    m, k = a.shape
    tilus.grid(tilus.cdiv(m, rows), tilus.cdiv(k, block) if span else 1, warps=4)
    row, part = tilus.block_id(0) * rows, tilus.block_id(1)
    if span:
        tile = terms(tilus.load(a, (row, part * block), (rows, block)))
        sums = tilus.sum(tilus.reshape(tile, (rows, block // span, span)), axis=2)
        tilus.store(out, tilus.transpose(tilus.cast(sums, float32)), (part * (block // span), row))
    else:
        total = tilus.zeros(rows, int32 if a_dtype.is_integer else float32)
        for start in range(0, k, block):
            total = total + tilus.sum(terms(tilus.load(a, (row, start), (rows, block))), axis=1)
        tilus.store(out, tilus.cast(total, float32)[None, :], (0, row))


@tilus.inline
def terms(tile):
    """Return activations in the type in which they are added up."""
    return tilus.cast(tile, int32 if tile.dtype.is_integer else float32)
