"""Parts of the kernels with quantised weights on warpgroups: their work, their pipeline, and sums that they share.

Clusters take whole tiles one after another. The last tiles may be shared: their units of k, in order, are cut into one
share for each cluster. The block that comes last to a tile adds up what the others left in memory, in the order of k,
so that the result is the same each time. No block waits for another one.

Tuples go from one part to the next. `share` is a cluster's share of the work, from `divided`; `sources` and `buffers`
are what is copied from where to where, with None for what a kernel has not; `ahead`, from `prefetch`, is what is copied
next: the number of the piece of work, its next unit of k, how many of these are left, and the tile's row and column.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

import tilus
from tilus import constexpr, float8_e8m0, uint8
from tilus.codegen.atoms.wgmma import warp_c_atom
from tilus.layout import Digit, RegisterLayout, local, spatial
from tilus.ops.hopper_matmul_kernel import masks, pieces_of, work_of
from tilus.ops.prepack import ATOMS, UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_parts import power_of_two

# A unit's bytes as rows of a tensor map's longest box, so that one box brings a tile's units along n.
ROW = 256


@dataclass(frozen=True)
class Tiles:
    """What the tiles of a kernel are like, and how clusters take them.

    Attributes
    ----------
    block_m, block_n, stages, pieces, cluster_m, cluster_n : int
        As in `tilus.ops.quantized_wgmma.WgmmaSchedule`.
    group_m : int
        Rows of tiles that are worked on together.
    stream : bool
        Whether there are tiles that clusters share.
    bits, group : int
        Bits of a weight, and elements of k that have a scale.
    """

    block_m: int
    block_n: int
    stages: int
    pieces: int
    cluster_m: int
    cluster_n: int
    group_m: int
    stream: bool
    bits: int
    group: int

    @property
    def warps(self) -> int:
        """Warps of a block, which have a unit of columns each."""
        return self.block_n // UNIT_N

    @property
    def size(self) -> int:
        """Blocks of a cluster."""
        return self.cluster_m * self.cluster_n

    @property
    def rows(self) -> int:
        """Rows of ROW bytes of a tile's units."""
        return self.warps * unit_bytes(self.bits) // ROW

    @property
    def piece_m(self) -> int:
        """Rows of a piece of a tile."""
        return self.block_m // self.pieces


@tilus.inline
def divided(m, n, k, shared_tiles, how):
    """Return a cluster's share of the work, how many pieces it has, and how many units of k they have."""
    size = how.size
    tiles_m = tilus.cdiv(m, how.cluster_m * how.block_m)
    tiles_n = tilus.cdiv(n, how.cluster_n * how.block_n)
    tiles = tiles_m * tiles_n
    # What the last unit of k lacks is read as zeros.
    steps = tilus.cdiv(k, UNIT_K)
    team, teams = tilus.cluster_id(0), tilus.max(tilus.grid_dim(0) // size, 1)
    rank = tilus.cluster_rank() if size > 1 else 0
    above, before = rank // how.cluster_n * how.block_m, rank % how.cluster_n * how.block_n
    whole = tiles - shared_tiles if how.stream else tiles
    own = tilus.cdiv(tilus.max(whole - team, 0), teams)
    works, turns = own, own * steps
    if how.stream:
        works += pieces_of(team, teams, shared_tiles, steps)
        turns += share_of(team, teams, shared_tiles, steps)
    share = team, teams, rank, above, before, tiles_m, tiles_n, own, whole, shared_tiles, steps
    return share, works, turns


@tilus.inline
def work_at(number, share, how):
    """Return a piece of a cluster's work: its tile, that one's row and column, the first unit of k, and how many."""
    team, teams, _, _, _, tiles_m, tiles_n, own, whole, shared_tiles, steps = share
    tile, first, length = work_of(number, own, whole, team, teams, shared_tiles, steps, how.stream)
    row, column = place(
        tile, tiles_m, tiles_n, how.cluster_m * how.block_m, how.cluster_n * how.block_n, how.group_m
    )
    return tile, row, column, first, length


@tilus.inline
def own_place(row, column, share):
    """Return the row and column of a block's own part of its cluster's tile."""
    _, _, _, above, before, *_ = share
    return row + above, column + before


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
def finishes(partial, arrived, acc, tile, length, share, how):
    """Tell whether a block finishes a tile, alone or as the last of those who share it; else leave its sums."""
    team, teams, rank, *_, whole, shared_tiles, steps = share
    last = True
    if how.stream and length < steps:
        number = tile - whole
        first, end = sharers_of(number, teams, shared_tiles, steps)
        at = number * how.size + rank
        # Whoever finds that all others are done keeps its own sums in registers.
        last = tilus.atomic_add(arrived, 0, at, order="acquire") == end - first
        if not last:
            slot = slot_of(team, teams, number, shared_tiles, steps) * how.size + rank
            for start in tilus.static_range(0, acc.shape[1], how.piece_m):
                tilus.store(partial, lines(acc[:, start : start + how.piece_m]), (slot, start // 4, 0, 0))
            tilus.sync()
            last = tilus.atomic_add(arrived, 1, at, order="acq_rel") == end - first
        if last:
            # For the next launch.
            tilus.store(arrived, 0, at)
    return last


@tilus.inline
def summed(partial, acc, start: constexpr, tile, length, share, how):
    """Return a piece of a tile's sums, of all clusters that share it, from a row of a on."""
    sums = acc[:, start : start + how.piece_m]
    *_, whole, _, steps = share
    if how.stream and length < steps:
        sums = in_order(partial, sums, start, tile - whole, share, how)
    return sums


@tilus.inline
def in_order(partial, sums, start: constexpr, number, share, how):
    """Return the sums of all clusters that share a tile, added in the order of k."""
    team, teams, rank, *_, shared_tiles, steps = share
    first, last = sharers_of(number, teams, shared_tiles, steps)
    own = lines(sums)
    total = tilus.zeros(own.shape, own.dtype)
    for other in range(first, last + 1):
        if other == team:
            total = total + own
        else:
            slot = slot_of(other, teams, number, shared_tiles, steps) * how.size + rank
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
def prefetch(sources, buffers, full, turns, share, how):
    """Start the copies of the first units of k, and return what is copied next."""
    _, row, column, step, left = work_at(0, share, how)
    ahead = 0, step, left, row, column
    for stage in range(tilus.min(how.stages, turns)):
        with tilus.warps(0, 1):
            fetch(sources, buffers, full, stage, ahead, share, how)
        ahead = after(ahead, share, how)
    return ahead


@tilus.inline
def went_on(sources, buffers, full, empty, ahead, turn, stage, phase, turns, share, how):
    """Copy to the stage before, and return what is copied next, and the turn, stage and phase that follow.

    Copies run ahead, into the next tile too.
    """
    before = stage_before(stage, how)
    # By now the other warps, too, are done with the stage before.
    if turn > 0 and turn + how.stages - 1 < turns:
        with tilus.warps(0, 1):
            # That stage's last phase is the one of this stage, or the one before it.
            tilus.wait(empty, 1 - phase if stage == 0 else phase, index=before)
            fetch(sources, buffers, full, before, ahead, share, how)
        ahead = after(ahead, share, how)
    turn += 1
    phase = 1 - phase if stage == how.stages - 1 else phase
    stage = 0 if stage == how.stages - 1 else stage + 1
    return ahead, turn, stage, phase


@tilus.inline
def stage_before(stage, how):
    """Return the stage that comes before one."""
    return how.stages - 1 if stage == 0 else stage - 1


@tilus.inline
def after(ahead, share, how):
    """Return what is copied after a unit of k: the next one, or the first one of the next tile."""
    number, step, left, row, column = ahead
    step, left = step + 1, left - 1
    if left == 0:
        number += 1
        _, row, column, step, left = work_at(number, share, how)
    return number, step, left, row, column


@tilus.inline
def fetch(sources, buffers, full, stage, ahead, share, how):
    """Start to copy what a block's tile needs of one unit along k, of which other blocks bring parts."""
    a, b, scale, zero, row_scale, row_sum = sources
    sa, sb, ss, sz, sr, su = buffers
    _, unit, _, row, column = ahead
    row, column = own_place(row, column, share)
    rank = share[2]
    beside, below = masks(rank, how.cluster_m, how.cluster_n)
    tilus.arrive(full, index=stage, bytes=sum([stage_bytes(buffer) for buffer in buffers]))
    bring_rows(sa[stage], a, row, unit, full, stage, rank % how.cluster_n, how.cluster_n, beside)
    first = column * 2 * how.bits // UNIT_N
    bring_units(sb[stage], b, unit, first, full, stage, rank // how.cluster_n, how.cluster_m, below)
    at = unit * UNIT_K // how.group, column
    if ss is not None:
        tilus.copy_bulk(ss[stage], scale, at, full, index=stage)
    if sz is not None:
        tilus.copy_bulk(sz[stage], zero, at, full, index=stage)
    if su is not None:
        tilus.copy_bulk(su[stage], row_sum, (unit * su.shape[1], row), full, index=stage)
    if sr is not None:
        tilus.copy_bulk(sr[stage], row_scale, (unit, row), full, index=stage)


@tilus.inline
def stage_bytes(buffer):
    """Return the bytes of a stage of a buffer, none if there is none."""
    return 0 if buffer is None else prod(buffer.shape[1:]) * buffer.dtype.nbytes


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
def codes_of(sb, how):
    """Return a stage's codes, as rows of bytes."""
    return tilus.load(sb, layout=row_layout(how.bits, how.warps, how.cluster_m))


@tilus.inline
def part_of(codes, b_dtype: constexpr, number: constexpr, part_k: constexpr, layout: constexpr):
    """Return one of the parts along k of a unit's codes, in a layout."""
    parts = UNIT_K // part_k
    bits, columns = b_dtype.bits, layout.shape[1]
    warps = columns // UNIT_N
    held = tilus.view(
        codes, uint8, (32 * warps, parts, 16 * bits // parts), layout=held_layout(bits, parts, warps)
    )
    return tilus.view(held[:, number : number + 1, :], b_dtype, (part_k, columns), layout=layout)


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


def part_layout(part_k: int, warps: int, operand_bits: int) -> RegisterLayout:
    """Return the layout of a part of k of the tile's codes, for operands of 16 or 8 bits."""
    atom = ATOMS[operand_bits]
    outer = RegisterLayout((1, warps), (Digit(warps, 1, 1),), ())
    return outer * local(part_k // atom.shape[2], UNIT_N // 8) * atom.b


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
