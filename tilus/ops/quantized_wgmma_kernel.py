"""The quantised matmul for targets with wgmma: weights are decoded in registers as its first operand.

The tensor core multiplies c^T = b^T a^T, for only its first operand may come from registers. A warp's packed unit of
128 x 32 codes, in the layout of mma.sync's second operand, is two of its parts of 16 rows, so that the same weights
serve both instructions. One warp copies in bulk; one or two warpgroups decode the codes of a part of k while their
product with the part before is under way.
"""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float16, float32, int32, uint8
from tilus.codegen.casts import biased_cast
from tilus.ops.hopper_matmul_kernel import release
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


@tilus.kernel
def quantized_wgmma_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units rows row"],
    scale: Tensor["s_dtype", "groups n_padded"],
    zero: Tensor["a_dtype", "zero_groups zero_n"],
    bias: Tensor["a_dtype", "bias_n"],
    c: Tensor["c_dtype", "one m n_out"],
    partial: Tensor[float32, "slots lines threads four"],
    arrived: Tensor[int32, "shared"],
    alpha: float32,
    n: int32,
    shared_tiles: int32,
    clusters: int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    s_dtype: constexpr,
    c_dtype: constexpr,
    group: constexpr,
    has_zero: constexpr,
    exponent: constexpr = 0,
    s_exponent: constexpr = 0,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    block_m: constexpr = 128,
    block_n: constexpr = 256,
    part_k: constexpr = 64,
    stages: constexpr = 3,
    pieces: constexpr = 1,
    group_m: constexpr = 16,
    cluster_m: constexpr = 1,
    cluster_n: constexpr = 1,
    stream: constexpr = False,
    bulk_store: constexpr = True,
):
    """c = activation(alpha * a @ ((b - zero) * scale) + bias) as `quantized_matmul_kernel` has it.

    Scales of 8 bits are read over 2**s_exponent, which multiplies sums instead (`tilus.ops.scales`). As many as
    `clusters` clusters take one tile after another: cluster_m x cluster_n blocks, of which those side by side share
    rows of a, and those one below the other share units of b. With `stream` the last `shared_tiles` are cut along k
    into a share for each cluster; `partial` and `arrived`, zeros before and after, are for the sums that they share.
    """
    m, k = a.shape
    warps = block_n // UNIT_N
    how = Tiles(
        block_m, block_n, stages, pieces, cluster_m, cluster_n, group_m, stream, b_dtype.bits, group
    )  # fmt: skip
    tilus.grid(clusters * how.size, warps=warps, cluster=how.size)
    share, works, turns = divided(m, n, k, shared_tiles, how)
    groups = tilus.max(UNIT_K // group, 1)
    parts = UNIT_K // part_k
    # With one row of zero points for many weights it pays to prepare them.
    plain = b_dtype.kind == "uint" and not exponent and biased_cast(b_dtype, a_dtype) is not None
    folded = has_zero and groups == 1 and plain
    sa = tilus.shared(a_dtype, (stages, parts, block_m, part_k))
    sb = tilus.shared(uint8, (stages, cluster_m, how.rows // cluster_m, ROW))
    ss = tilus.shared(s_dtype, (stages, groups, block_n))
    sz = tilus.shared(a_dtype, (stages, groups, block_n)) if has_zero else None
    sc = tilus.shared(c_dtype, (how.piece_m, block_n // 2 if gated else block_n))
    full, empty = tilus.barrier(stages), tilus.barrier(stages, arrivals=how.size * warps)
    sources, buffers = (a, b, scale, zero, None, None), (sa, sb, ss, sz, None, None)
    with tilus.warps(0, warps):
        ahead = prefetch(sources, buffers, full, turns, share, how)
        turn, stage, phase = 0, 0, 0
        for work in range(works):
            tile, row, column, _, length = work_at(work, share, how)
            row, column = own_place(row, column, share)
            acc = tilus.zeros((block_n, block_m), float32)
            for _ in range(length):
                tilus.wait(full, phase, index=stage)
                codes = codes_of(sb[stage], how)
                before = stage_before(stage, how)
                if folded:
                    scales = values_of(ss[stage], a_dtype, -s_exponent)
                    whole, rest = parted(values_of(sz[stage], a_dtype, 0))
                    rest = rest * scales
                for number in tilus.static_range(parts):
                    k0 = number * part_k
                    low = part_of(codes, b_dtype, number, part_k, part_layout(part_k, warps, 16))
                    if folded:
                        weight = shifted(low, a_dtype, whole, rest, scales)
                    else:
                        weight = tilus.cast(low, a_dtype, arranged=True, exponent=exponent)
                        if has_zero:
                            weight = weight - spread(sz[stage], a_dtype, k0, part_k, -exponent)
                        weight = weight * spread(ss[stage], a_dtype, k0, part_k, exponent - s_exponent)
                    acc = tilus.dot_async(weight.transpose(), sa[stage][number].transpose(), acc)
                    # The product before this one is done: the registers of its weights are free.
                    tilus.dot_wait(pending=1)
                    if number == 0 and turn > 0:
                        release(empty, before, how.size)
                ahead, turn, stage, phase = went_on(
                    sources, buffers, full, empty, ahead, turn, stage, phase, turns, share, how
                )
            acc = tilus.dot_wait(acc)
            if finishes(partial, arrived, acc, tile, length, share, how):
                for piece in tilus.static_range(pieces):
                    start = piece * how.piece_m
                    sums = summed(partial, acc, start, tile, length, share, how)
                    total = tilus.transpose(sums * (alpha * 2.0**s_exponent))
                    out = tilus.cast(finished(total, bias, column, has_bias, activation, gated), c_dtype)
                    sent(c, sc, out, row + start, column // 2 if gated else column, bulk_store)
        if bulk_store:
            tilus.bulk_wait(0, read=False)


@tilus.inline
def parted(points):
    """Return zero points as whole numbers, which such large floats are, and what is left: halves, or little."""
    large = 1024.0 if points.dtype == float16 else 128.0
    whole = (points + large) - large
    return whole, points - whole


@tilus.inline
def shifted(low, dtype: constexpr, whole, rest, scales):
    """Return (codes - whole) * scales - rest, rounded once.

    The cast leaves an offset in each number, which depends on its place alone and is taken off with the whole number.
    """
    nothing = tilus.zeros(low.shape, low.dtype, layout=part_layout(low.shape[0], low.shape[1] // UNIT_N, 16))
    offsets = tilus.cast(nothing, dtype, arranged=True, biased=True)
    return (tilus.cast(low, dtype, arranged=True, biased=True) - (whole + offsets)) * scales - rest


@tilus.inline
def spread(rows, dtype: constexpr, k0: constexpr, part_k: constexpr, exponent: constexpr):
    """Return a part of a tile of per-group values times 2**exponent, repeated so that there is one for each k."""
    groups, block_n = rows.shape
    group = UNIT_K // groups
    own = values_of(rows[k0 // group : tilus.cdiv(k0 + part_k, group), :], dtype, exponent)
    if part_k <= group:
        return own
    wide = tilus.broadcast_to(own[:, None, :], (part_k // group, group, block_n))
    return tilus.reshape(wide, (part_k, block_n))
