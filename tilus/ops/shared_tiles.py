"""Tiles of a product that several blocks share: each sums up a part of k, and the last one to arrive adds up the parts.

It adds them in the order of k, so that the result is the same each time, whichever block is the last one.
"""

from __future__ import annotations

import tilus
from tilus import float32
from tilus.ops.prepack import store_layout

TOGETHER, MOST_TOGETHER = 2048, 8
"""Elements of parts that a warp has under way at a time, and parts."""


@tilus.inline
def share_of(block, work, blocks):
    """Return where a block's equal part of so many steps of work begins and ends."""
    share, more = work // blocks, work % blocks
    begin = block * share + tilus.min(block, more)
    return begin, begin + share + (1 if block < more else 0)


@tilus.inline
def begin_of(step, work, blocks):
    """Return the block that has a step of work, and where its work begins."""
    share, more = work // blocks, work % blocks
    large = more * (share + 1)
    block = step // (share + 1) if step < large else more + (step - large) // tilus.max(share, 1)
    return block, block * share + tilus.min(block, more)


@tilus.inline
def kept_last(total, parts, slot, arrivals, tile, count, deep, warps):
    """Keep a part of a tile's sum in a slot, and tell whether it is the last of so many to be there."""
    if deep > 1:
        # Such tiles are small, and some threads hold copies.
        total = tilus.annotate_layout(total, store_layout(total.shape[0], total.shape[1], 32, warps))
    tilus.store(parts, total, (slot, 0, 0))
    # The stores of all threads come before the block's arrival.
    tilus.sync()
    return tilus.atomic_add(arrivals, 1, tile, order="acq_rel") == count - 1


@tilus.inline
def in_order(parts, height, width, leading, first, stride, count, arrivals, tile, warps):
    """Return the sum of so many parts in their order, and leave the tile's counter as it was.

    The first part is in the slot `leading`, the others are in slots that are `stride` apart, as if that was `first`.
    """
    slots = parts.shape[0]
    total = tilus.zeros((height, width), float32, layout=store_layout(height, width, 32, warps))
    together = max(1, min(MOST_TOGETHER, TOGETHER * warps // (height * width)))
    for begin in range(0, count, together):
        for ahead in tilus.static_range(together):
            part = begin + ahead
            slot = first + stride * part if part > 0 else leading
            # Nothing lies beyond the last slot, so that what is read together needs no branches.
            total = total + tilus.load(parts, (slot if part < count else slots, 0, 0), (height, width))
    tilus.store(arrivals, 0, tile)
    return total
