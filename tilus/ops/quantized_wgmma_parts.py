"""Parts of the kernels with quantised weights on warpgroups: which work a cluster does, and how partial sums add up.

Clusters take whole tiles one after another. The last tiles may be shared: their units of k, in order, are cut into one
share for each cluster. The block that comes last to a tile adds up what the others left in memory, in the order of k,
so that the result is the same each time. No block waits for another one.
"""

from __future__ import annotations

from math import gcd

import tilus
from tilus import constexpr, float8_e8m0
from tilus.codegen.atoms.wgmma import warp_c_atom
from tilus.layout import Digit, RegisterLayout, local, spatial
from tilus.ops.prepack import UNIT_K, UNIT_N
from tilus.ops.quantized_parts import power_of_two

# A unit's bytes as rows of a tensor map's longest box, so that one box brings a tile's units along n.
ROW = 256


@tilus.inline
def place(tile, tiles_m, tiles_n, block_m: constexpr, block_n: constexpr, group_m: constexpr):
    """Return a tile's first row and column.

    Blocks that run together take tiles of `group_m` tile rows, so that what they read stays in the L2 cache.
    """
    above = tile // (group_m * tiles_n) * group_m
    inside = tile % (group_m * tiles_n)
    height = tilus.min(tiles_m - above, group_m)
    return (above + inside % height) * block_m, inside // height * block_n


@tilus.inline
def share_of(team, teams, shared_tiles, steps):
    """Return how many units of k a cluster's share of the shared tiles has."""
    total = shared_tiles * steps
    return (team + 1) * total // teams - team * total // teams


@tilus.inline
def sharers_of(number, teams, shared_tiles, steps):
    """Return the clusters with the first and with the last unit of a shared tile."""
    total = shared_tiles * steps
    return ((number * steps + 1) * teams - 1) // total, ((number + 1) * steps * teams - 1) // total


@tilus.inline
def slot_of(team, teams, number, shared_tiles, steps):
    """Return where a cluster leaves its sums for a shared tile: its share begins in one tile, and ends in one."""
    begins = team * (shared_tiles * steps) // teams // steps
    return 2 * team + (0 if begins == number else 1)


@tilus.inline
def arrive_last(
    partial, arrived, acc, team, teams, number, shared_tiles, steps, rank, *, size: constexpr, piece_m: constexpr
):  # fmt: skip
    """Leave a tile's sums for the block that finishes it, and tell whether this one does."""
    first, last = sharers_of(number, teams, shared_tiles, steps)
    at = number * size + rank
    # Whoever finds that all others are done keeps its own sums in registers.
    done = tilus.atomic_add(arrived, 0, at, order="acquire") == last - first
    if not done:
        slot = slot_of(team, teams, number, shared_tiles, steps) * size + rank
        for start in tilus.static_range(0, acc.shape[1], piece_m):
            tilus.store(partial, lines(acc[:, start : start + piece_m]), (slot, start // 4, 0, 0))
        tilus.sync()
        done = tilus.atomic_add(arrived, 1, at, order="acq_rel") == last - first
    if done:
        # For the next launch.
        tilus.store(arrived, 0, at)
    return done


@tilus.inline
def in_order(
    partial, sums, start: constexpr, team, teams, number, shared_tiles, steps, rank, *, size: constexpr
):
    """Return the sums of all clusters that share a tile, added in the order of k, for rows of a from `start` on."""
    first, last = sharers_of(number, teams, shared_tiles, steps)
    own = lines(sums)
    total = tilus.zeros(own.shape, own.dtype)
    for other in range(first, last + 1):
        if other == team:
            total = total + own
        else:
            slot = slot_of(other, teams, number, shared_tiles, steps) * size + rank
            total = total + tilus.load(partial, (slot, start // 4, 0, 0), own.shape)
    return tilus.view(total, sums.dtype, sums.shape, layout=sums_layout(*sums.shape))


@tilus.inline
def lines(sums):
    """Return a piece of a tile's sums as lines of 16 bytes from each thread, as they go to memory."""
    held = tilus.annotate_layout(sums, sums_layout(*sums.shape))
    threads, count = sums.shape
    layout = line_layout(threads, count)
    return tilus.view(held, sums.dtype, (count // 4, threads, 4), layout=layout)


@tilus.inline
def bring_rows(sa, a, row, unit, full, stage, rank, blocks: constexpr, mask):
    """Copy a unit's part of rows of activations that several blocks need: each brings a part of it to all of them.

    A block brings whole parts along k as far as there are any for it: these are found by their number, not by a branch.
    """
    parts, block_m, part_k = sa.shape
    share = gcd(parts, blocks)
    bands = blocks // share
    for chunk in tilus.static_range(parts // share):
        number = chunk * share + (rank % share if share > 1 else 0)
        at = unit * UNIT_K + number * part_k
        if blocks < 2:
            tilus.copy_bulk(sa[number], a, (row, at), full, index=stage)
        elif bands == 1:
            tilus.copy_bulk(sa[number], a, (row, at), full, index=stage, multicast=mask)
        for band in tilus.static_range(bands if bands > 1 else 0):
            low, high = band * block_m // bands, (band + 1) * block_m // bands
            if rank // share == band:
                tilus.copy_bulk(
                    sa[number][low:high, :], a, (row + low, at), full, index=stage, multicast=mask
                )


@tilus.inline
def bring_units(sb, b, unit, first, full, stage, rank, blocks: constexpr, mask):
    """Copy units of the weight that several blocks need, as rows of bytes: each brings a part of them to all."""
    if blocks < 2:
        tilus.copy_bulk(sb, b, (unit, first, 0), full, index=stage)
    else:
        tilus.copy_bulk(sb[rank], b, (unit, first + rank * sb.shape[1], 0), full, index=stage, multicast=mask)


@tilus.inline
def release(empty, stage, size):
    """Tell all blocks that copy into a stage that it has been read."""
    for other in tilus.static_range(size):
        tilus.arrive(empty, index=stage, rank=other)


@tilus.inline
def sent(c, sc, out, row, column, bulk_store: constexpr):
    """Store a piece of a tile through shared memory."""
    # What was stored before must have left it.
    if bulk_store:
        tilus.bulk_wait(0)
    tilus.sync()
    tilus.store(sc, out)
    if bulk_store:
        tilus.fence("async")
    tilus.sync()
    if bulk_store:
        tilus.store_bulk(c, sc, (0, row, column))
        tilus.bulk_commit()
    else:
        tilus.store(c, tilus.load(sc), (0, row, column))


@tilus.inline
def values_of(rows, dtype: constexpr, exponent: constexpr):
    """Return scales or zero points from shared memory times 2**exponent in a type."""
    codes = tilus.load(rows)
    if rows.dtype == float8_e8m0:
        return power_of_two(codes, dtype, exponent)
    return tilus.cast(codes, dtype) * 2.0**exponent


def row_layout(bits: int, warps: int, bands: int = 1) -> RegisterLayout:
    """Return the layout of a tile's units as rows of bytes: warp by warp, and in a unit 16 bytes for each thread.

    The rows lie in `bands` of equal height.
    """
    outer = RegisterLayout((1, warps, 1), (Digit(warps, 1, 1),), ())
    whole = outer * local(1, bits, 1) * spatial(1, 2, 16) * local(1, 1, 16)
    return whole.reshape((bands, 2 * bits * warps // bands, ROW))


def held_layout(bits: int, parts: int, warps: int) -> RegisterLayout:
    """Return the layout of the same bytes by the thread that holds them and the part along k that they belong to."""
    return spatial(32 * warps, 1, 1) * local(1, parts, 16 * bits // parts)


def sums_layout(columns: int, rows: int) -> RegisterLayout:
    """Return which thread has which sums of a piece of a tile: each warp those of its unit's 32 columns."""
    warps = columns // UNIT_N
    halves = RegisterLayout((2 * warps, 1), (Digit(warps, 0, 2),), (Digit(2, 0, 1),))
    return halves * warp_c_atom(rows)


def line_layout(threads: int, count: int) -> RegisterLayout:
    """Return the layout of as many values of each of so many threads, four of each side by side."""
    return local(count // 4, 1, 1) * spatial(1, threads, 1) * local(1, 1, 4)
