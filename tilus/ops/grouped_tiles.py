"""Where the tiles of grouped products are, and whose: parts of their kernels.

Who owns a block of rows, or how many rows an expert has, is read on the device. Blocks that run together take `ORDER`
tiles below one another before the next columns (`place`). A routing puts the rows of an expert below one another, so
these tiles read the same part of its matrix, and all but the first find it in the L2 cache; the matrix need not fit
there as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import tilus
from tilus.ops.hopper_matmul_kernel import place

ORDER = 8
"""Rows of tiles that are worked on together."""


@dataclass(frozen=True)
class GroupedTiles:
    """What the tiles of a kernel are like.

    Attributes
    ----------
    block_m, block_n : int
    block : int
        Rows that have one expert.
    masked : bool
        Whether it is said how many rows each expert has; else who owns each block of rows, -1 for none.
    cluster_n : int
        Blocks that have tiles beside one another at a time.
    """

    block_m: int
    block_n: int
    block: int
    masked: bool
    cluster_n: int = 1


@tilus.inline
def tile_of(owners, rows, n, how):
    """Return the tile of a block that has one: its group, first row and column, its expert, and whether it is used."""
    down, across = tilus.cdiv(rows, how.block_m), tilus.cdiv(n, how.block_n)
    group, bi, bj = place(tilus.block_id(0), down, across, ORDER)
    row, column = bi * how.block_m, bj * how.block_n
    if how.masked:
        return group, row, column, group, row < tilus.load(owners, group)
    expert = tilus.load(owners, row // how.block)
    return group, row, column, tilus.maximum(expert, 0), expert >= 0


@tilus.inline
def tiles_of(owners, groups, rows, n, how):
    """Return the numbers of the tiles of a block that takes one after another, and what `located` finds them in."""
    team, teams = tilus.block_id(0) // how.cluster_n, tilus.max(tilus.grid_dim(0) // how.cluster_n, 1)
    rank = tilus.cluster_rank() if how.cluster_n > 1 else 0
    down, across = tilus.cdiv(rows, how.block_m), tilus.cdiv(n, how.block_n * how.cluster_n)
    return (team, groups * down * across, teams), (owners, groups, rows, down, across, rank)


@tilus.inline
def located(tile, found, space, how):
    """Return what the search has found so far, then a tile's group, row, column and expert, and whether all are done.

    The expert is -1 where nothing uses the tile; the last result tells whether no tile from here on is used. With
    `masked`, tiles are those of the rows in use, group by group, and the search goes on from `found`: the group of the
    tile before, and the tiles before that one. Else they are those of all rows, and blocks that nothing uses come last.
    """
    owners, groups, rows, down, across, rank = space
    group, before = found
    if how.masked:
        own = height_of(owners, group, rows, how) * across
        while group < groups and tile >= before + own:
            before += own
            group += 1
            own = height_of(owners, group, rows, how) * across
        _, bi, bj = place(tile - before, tilus.max(own // across, 1), across, ORDER)
        batch, expert, over = group, group, group >= groups
    else:
        _, bi, bj = place(tile, down, across, ORDER)
        batch, expert = 0, tilus.load(owners, bi * how.block_m // how.block)
        over = tilus.load(owners, bi // ORDER * ORDER * how.block_m // how.block) < 0
    column = (bj * how.cluster_n + rank) * how.block_n
    return (group, before), batch, bi * how.block_m, column, expert, over


@tilus.inline
def height_of(owners, group, rows, how):
    """Return how many tiles cover the rows of a group that are in use: there are `rows`, whatever their count says.

    Beyond the last group there are none.
    """
    count = tilus.max(tilus.min(tilus.load(owners, group), rows), 0)
    return tilus.cdiv(count, how.block_m)
