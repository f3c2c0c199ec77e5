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
from tilus.layout import Digit, RegisterLayout, local
from tilus.ops.hopper_matmul_kernel import masks, pieces_of, work_of
from tilus.ops.prepack import ATOM, UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_parts import finished
from tilus.ops.quantized_wgmma_parts import (
    ROW,
    arrive_last,
    bring_rows,
    bring_units,
    held_layout,
    in_order,
    place,
    release,
    row_layout,
    sent,
    share_of,
    values_of,
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
    bits = b_dtype.bits
    warps = block_n // UNIT_N
    size = cluster_m * cluster_n
    height, width = cluster_m * block_m, cluster_n * block_n
    tiles_m, tiles_n = tilus.cdiv(m, height), tilus.cdiv(n, width)
    tiles = tiles_m * tiles_n
    tilus.grid(clusters * size, warps=warps, cluster=size)
    # What the last unit of k lacks is read as zeros.
    steps = tilus.cdiv(k, UNIT_K)
    team, teams = tilus.cluster_id(0), tilus.max(tilus.grid_dim(0) // size, 1)
    rank = tilus.cluster_rank() if size > 1 else 0
    rank_m, rank_n = rank // cluster_n, rank % cluster_n
    whole_tiles = tiles - shared_tiles if stream else tiles
    own = tilus.cdiv(tilus.max(whole_tiles - team, 0), teams)
    works, turns = own, own * steps
    if stream:
        works += pieces_of(team, teams, shared_tiles, steps)
        turns += share_of(team, teams, shared_tiles, steps)
    groups = tilus.max(UNIT_K // group, 1)
    parts = UNIT_K // part_k
    # With one row of zero points for many weights it pays to prepare them.
    plain = b_dtype.kind == "uint" and not exponent and biased_cast(b_dtype, a_dtype) is not None
    folded = has_zero and groups == 1 and plain
    rows = warps * unit_bytes(bits) // ROW
    sa = tilus.shared(a_dtype, (stages, parts, block_m, part_k))
    sb = tilus.shared(uint8, (stages, cluster_m, rows // cluster_m, ROW))
    ss = tilus.shared(s_dtype, (stages, groups, block_n))
    sz = tilus.shared(a_dtype, (stages, groups, block_n)) if has_zero else ss
    piece_m = block_m // pieces
    sc = tilus.shared(c_dtype, (piece_m, block_n // 2 if gated else block_n))
    full, empty = tilus.barrier(stages), tilus.barrier(stages, arrivals=size * warps)
    taken = block_m * UNIT_K * a_dtype.nbytes + rows * ROW
    taken += groups * block_n * (s_dtype.nbytes + (a_dtype.nbytes if has_zero else 0))
    with tilus.warps(0, warps):
        # What is fetched next: the copies run ahead, into the next tile too.
        next_work = 0
        ahead, next_step, left = work_of(0, own, whole_tiles, team, teams, shared_tiles, steps, stream)
        next_row, next_column = place(ahead, tiles_m, tiles_n, height, width, group_m)
        for turn in range(tilus.min(stages, turns)):
            with tilus.warps(0, 1):
                fetch(
                    a, b, scale, zero, sa[turn], sb[turn], ss[turn], sz[turn], full, turn,
                    next_row + rank_m * block_m, next_column + rank_n * block_n, next_step, rank,
                    cluster_m=cluster_m, cluster_n=cluster_n, bits=bits, group=group, has_zero=has_zero, taken=taken,
                )  # fmt: skip
            next_step, left = next_step + 1, left - 1
            if left == 0:
                next_work += 1
                ahead, next_step, left = work_of(
                    next_work, own, whole_tiles, team, teams, shared_tiles, steps, stream
                )
                next_row, next_column = place(ahead, tiles_m, tiles_n, height, width, group_m)
        turn, stage, phase = 0, 0, 0
        for work in range(works):
            tile, _, length = work_of(work, own, whole_tiles, team, teams, shared_tiles, steps, stream)
            row, column = place(tile, tiles_m, tiles_n, height, width, group_m)
            row, column = row + rank_m * block_m, column + rank_n * block_n
            acc = tilus.zeros((block_n, block_m), float32)
            for _ in range(length):
                tilus.wait(full, phase, index=stage)
                codes = tilus.load(sb[stage], layout=row_layout(bits, warps, cluster_m))
                before = stages - 1 if stage == 0 else stage - 1
                if folded:
                    scales = values_of(ss[stage], a_dtype, -s_exponent)
                    whole, rest = parted(values_of(sz[stage], a_dtype, 0))
                    rest = rest * scales
                for number in tilus.static_range(parts):
                    k0 = number * part_k
                    low = part_of(codes, b_dtype, number, part_k, warps)
                    if folded:
                        weight = shifted(low, a_dtype, whole, rest, scales, warps)
                    else:
                        weight = tilus.cast(low, a_dtype, arranged=True, exponent=exponent)
                        if has_zero:
                            weight = weight - spread(sz[stage], a_dtype, k0, part_k, -exponent)
                        weight = weight * spread(ss[stage], a_dtype, k0, part_k, exponent - s_exponent)
                    acc = tilus.dot_async(weight.transpose(), sa[stage][number].transpose(), acc)
                    # The product before this one is done: the registers of its weights are free.
                    tilus.dot_wait(pending=1)
                    if number == 0 and turn > 0:
                        release(empty, before, size)
                # By now the other warps, too, are done with the stage before.
                if turn > 0 and turn + stages - 1 < turns:
                    with tilus.warps(0, 1):
                        # That stage's last phase is the one of this stage, or the one before it.
                        tilus.wait(empty, 1 - phase if stage == 0 else phase, index=before)
                        fetch(
                            a, b, scale, zero, sa[before], sb[before], ss[before], sz[before], full, before,
                            next_row + rank_m * block_m, next_column + rank_n * block_n, next_step, rank,
                            cluster_m=cluster_m, cluster_n=cluster_n, bits=bits, group=group, has_zero=has_zero,
                            taken=taken,
                        )  # fmt: skip
                    next_step, left = next_step + 1, left - 1
                    if left == 0:
                        next_work += 1
                        ahead, next_step, left = work_of(
                            next_work, own, whole_tiles, team, teams, shared_tiles, steps, stream
                        )
                        next_row, next_column = place(ahead, tiles_m, tiles_n, height, width, group_m)
                turn += 1
                phase = 1 - phase if stage == stages - 1 else phase
                stage = 0 if stage == stages - 1 else stage + 1
            acc = tilus.dot_wait(acc)
            last = True
            if stream and length < steps:
                last = arrive_last(
                    partial, arrived, acc, team, teams, tile - whole_tiles, shared_tiles, steps, rank, size=size,
                    piece_m=piece_m,
                )  # fmt: skip
            if last:
                for piece in tilus.static_range(pieces):
                    start = piece * piece_m
                    sums = acc[:, start : start + piece_m]
                    if stream and length < steps:
                        sums = in_order(
                            partial, sums, start, team, teams, tile - whole_tiles, shared_tiles, steps, rank,
                            size=size,
                        )  # fmt: skip
                    total = tilus.transpose(sums * (alpha * 2.0**s_exponent))
                    out = tilus.cast(finished(total, bias, column, has_bias, activation, gated), c_dtype)
                    sent(c, sc, out, row + start, column // 2 if gated else column, bulk_store)
        if bulk_store:
            tilus.bulk_wait(0, read=False)


@tilus.inline
def fetch(
    a, b, scale, zero, sa, sb, ss, sz, full, stage, row, column, unit, rank, *,
    cluster_m: constexpr, cluster_n: constexpr, bits: constexpr, group: constexpr, has_zero: constexpr,
    taken: constexpr,
):  # fmt: skip
    """Start to copy what a block's tile needs of one unit along k, of which other blocks bring parts."""
    beside, below = masks(rank, cluster_m, cluster_n)
    tilus.arrive(full, index=stage, bytes=taken)
    bring_rows(sa, a, row, unit, full, stage, rank % cluster_n, cluster_n, beside)
    bring_units(sb, b, unit, column * 2 * bits // UNIT_N, full, stage, rank // cluster_n, cluster_m, below)
    at = (unit * UNIT_K // group, column)
    tilus.copy_bulk(ss, scale, at, full, index=stage)
    if has_zero:
        tilus.copy_bulk(sz, zero, at, full, index=stage)


@tilus.inline
def part_of(codes, b_dtype: constexpr, number: constexpr, part_k: constexpr, warps: constexpr):
    """Return one of the parts along k of a unit's codes."""
    parts = UNIT_K // part_k
    held = tilus.view(
        codes,
        uint8,
        (32 * warps, parts, 16 * b_dtype.bits // parts),
        layout=held_layout(b_dtype.bits, parts, warps),
    )
    return tilus.view(
        held[:, number : number + 1, :], b_dtype, (part_k, UNIT_N * warps), layout=part_layout(part_k, warps)
    )


@tilus.inline
def parted(points):
    """Return zero points as whole numbers, which such large floats are, and what is left: halves, or little."""
    large = 1024.0 if points.dtype == float16 else 128.0
    whole = (points + large) - large
    return whole, points - whole


@tilus.inline
def shifted(low, dtype: constexpr, whole, rest, scales, warps: constexpr):
    """Return (codes - whole) * scales - rest, rounded once.

    The cast leaves an offset in each number, which depends on its place alone and is taken off with the whole number.
    """
    nothing = tilus.zeros(low.shape, low.dtype, layout=part_layout(low.shape[0], warps))
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


def part_layout(part_k: int, warps: int) -> RegisterLayout:
    """Return the layout of a part of k of the tile's codes."""
    outer = RegisterLayout((1, warps), (Digit(warps, 1, 1),), ())
    return outer * local(part_k // 16, UNIT_N // 8) * ATOM
