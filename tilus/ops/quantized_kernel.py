"""The kernel behind `quantized_matmul`: one source for every weight type, for activations of 16 and of 8 bits."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32, uint8
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_parts import across, by_column, collected, finished, stored
from tilus.ops.quantized_sums import Steps, place_of, prefetch, stage_buffers, sums_over
from tilus.ops.shared_tiles import begin_of, in_order, kept_last, share_of


@tilus.kernel
def quantized_matmul_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units rows row"],
    scale: Tensor["s_dtype", "groups n_padded"],
    zero: Tensor["out_dtype", "zero_groups zero_n"],
    row_scale: Tensor[float32, "scale_rows m_padded"],
    bias: Tensor["out_dtype", "bias_n"],
    c: Tensor["out_dtype", "1 m n_out"],
    parts: Tensor[float32, "slots part_m part_n"],
    arrivals: Tensor[int32, "counters"],
    alpha: float32,
    n: int32,
    blocks: int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    w_dtype: constexpr,
    s_dtype: constexpr,
    out_dtype: constexpr,
    group: constexpr,
    span: constexpr,
    has_zero: constexpr,
    late: constexpr,
    has_row_scale: constexpr = False,
    by_block: constexpr = False,
    halves: constexpr = False,
    exponent: constexpr = 0,
    s_exponent: constexpr = 0,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    swap: constexpr = False,
    deep: constexpr = 1,
    block_m: constexpr = 16,
    block_n: constexpr = 128,
    stages: constexpr = 3,
    warps: constexpr = 4,
    bulk: constexpr = False,
    lookup: constexpr = False,
    split: constexpr = False,
    stream: constexpr = False,
):
    """c = activation(alpha * a @ ((b - zero) * scale) + bias), the weight's codes b decoded in registers.

    Scales that multiply weights are read over 2**s_exponent, which multiplies sums (`tilus.ops.scales`). If they are
    `late`, scales multiply sums of products: that is the only way with activations of 8 bits, which weights become too,
    and with few rows the cheaper one, for there are fewer sums than weights. Sums over `span` elements of k have a
    scale of their own; a span of 0 is all of k. `row_scale` has a row for each 128 elements of k with `by_block`, else
    one. Zero points are then taken off with ``sum(a * (b - zero)) = sum(a * b) - zero * sum(a)``.

    With `swap` the weights are the first operand of the tensor core, whose rows are more than the second one's columns:
    that is for few rows of a. A block has a tile; with `split` so many `blocks` sum up a part of k of each; with
    `stream` so many `blocks` have an equal part each of the work on all tiles (`tilus.ops.shared_tiles`).
    """
    m, k = a.shape
    tiles_m = tilus.cdiv(m, block_m)
    tiles = tiles_m * tilus.cdiv(n, block_n)
    tilus.grid(blocks if stream else tiles * blocks, warps=warps)
    # A step is `deep` units of k of a tile. A block's work is consecutive steps, tile by tile.
    steps = tilus.cdiv(k, deep * UNIT_K)
    block = tilus.block_id(0)
    if stream:
        begin, end = share_of(block, tiles * steps, blocks)
        tile, first = begin // steps, begin % steps
        last = tilus.min(first + end - begin, steps)
        pieces = (end - 1) // steps - tile + 1 if end > begin else 0
    else:
        tile = block % tiles
        length = tilus.cdiv(steps, blocks)
        first = block // tiles * length
        last = tilus.min(first + length, steps)
        begin, end = first, last
    how = Steps(
        a_dtype, b_dtype, w_dtype, s_dtype, out_dtype, group, span, has_zero, late, exponent, swap, deep, block_m,
        block_n, stages, warps, bulk, s_exponent, by_block, halves, lookup,
    )  # fmt: skip
    sources = a, b, scale, zero, row_scale
    buffers = stage_buffers(how)
    ahead = prefetch(sources, buffers, tile, first, end - begin, steps, tiles_m, how)
    if stream:
        next_step, next_row, next_column, left = ahead
        stage, phase = 0, 0
        for _ in range(pieces):
            row, column = place_of(tile, tiles_m, how)
            ahead = next_step, next_row, next_column, left
            acc, sums, ahead, stage, phase = sums_over(
                sources, buffers, ahead, stage, phase, row, column, first, last, steps, tiles_m, how
            )
            next_step, next_row, next_column, left = ahead
            total = total_of(acc, sums, scale, zero, row_scale, alpha, row, column, has_row_scale, how)
            if last - first == steps:
                write(c, total, bias, row, column, has_bias, activation, gated, how)
            else:
                # Blocks whose work begins in a tile keep its part in their first slot, the one before in its second.
                work = tile * steps
                head, before = begin_of(work, tiles * steps, blocks)
                count = begin_of(work + steps - 1, tiles * steps, blocks)[0] - head + 1
                slot = 2 * block + (1 if begin < work else 0)
                if kept_last(total, parts, slot, arrivals, tile, count, deep, warps):
                    leading = 2 * head + (1 if before < work else 0)
                    whole = in_order(
                        parts, block_m, block_n, leading, 2 * head, 2, count, arrivals, tile, warps
                    )
                    write(c, whole, bias, row, column, has_bias, activation, gated, how)
            tile += 1
            first, last = 0, tilus.min(end - tile * steps, steps)
    else:
        row, column = place_of(tile, tiles_m, how)
        acc, sums, _, _, _ = sums_over(
            sources, buffers, ahead, 0, 0, row, column, first, last, steps, tiles_m, how
        )
        total = total_of(acc, sums, scale, zero, row_scale, alpha, row, column, has_row_scale, how)
        if split:
            slot = tile * blocks + block // tiles
            if kept_last(total, parts, slot, arrivals, tile, blocks, deep, warps):
                slot = tile * blocks
                whole = in_order(parts, block_m, block_n, slot, slot, 1, blocks, arrivals, tile, warps)
                write(c, whole, bias, row, column, has_bias, activation, gated, how)
        else:
            write(c, total, bias, row, column, has_bias, activation, gated, how)


@tilus.inline
def total_of(acc, sums, scale, zero, row_scale, alpha, row, column, has_row_scale, how):
    """Return a tile's sums as rows x columns, with what multiplies all of a row or a column, but for the bias."""
    if not how.late:
        return collected(acc, how.deep, how.swap) * (alpha * 2.0**how.s_exponent)
    total = tilus.cast(acc, float32)
    if how.has_zero and not how.span:
        zeros = tilus.cast(by_column(tilus.load(zero, (0, column), (1, how.block_n)), how.deep), float32)
        total = total - across(zeros, 0, how.swap) * 2.0**-how.exponent * sums
    total = collected(total, how.deep, how.swap) * (alpha * 2.0**how.exponent)
    if not how.span:
        total = total * tilus.cast(tilus.load(scale, (0, column), (1, how.block_n)), float32)
    if has_row_scale and not how.by_block:
        total = total * tilus.transpose(tilus.load(row_scale, (0, row), (1, how.block_m)))
    return total


@tilus.inline
def write(c, total, bias, row, column, has_bias, activation, gated, how):
    """Finish a tile of sums, and store it."""
    out = finished(total, bias, column, has_bias, activation, gated)
    stored(c, out, 0, row, column // 2 if gated else column, how.warps, how.deep)
