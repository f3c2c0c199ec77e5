"""Special registers: thread and block coordinates, clocks, lane masks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .selection import LANES


def special_register(state: Any, name: str) -> Any:
    """The value of a special register for every lane of a batch."""
    engine = state.engine
    stem, _, component = name.partition(".")
    axis = "xyz".find(component) if component else 0
    threads = state.thread_of_lane
    lane = threads % LANES
    block = state.blocks[state.block_of_lane]
    count = state.lane_count
    cluster = engine.cluster
    if stem == "%tid":
        return _coordinate(threads, engine.block, axis)
    if stem == "%ntid":
        return np.full(count, engine.block[axis], np.uint32)
    if stem == "%ctaid":
        return _coordinate(block, engine.grid, axis)
    if stem == "%nctaid":
        return np.full(count, engine.grid[axis], np.uint32)
    if stem == "%clusterid":
        return _coordinate(block, engine.grid, axis) // cluster[axis]
    if stem == "%nclusterid":
        return np.full(count, engine.grid[axis] // cluster[axis], np.uint32)
    if stem == "%cluster_ctaid":
        return _coordinate(block, engine.grid, axis) % cluster[axis]
    if stem == "%cluster_nctaid":
        return np.full(count, cluster[axis], np.uint32)
    if stem == "%cluster_ctarank":
        x, y, z = (_coordinate(block, engine.grid, a) % cluster[a] for a in range(3))
        return x + cluster[0] * (y + cluster[1] * z)
    if stem == "%cluster_nctarank":
        return np.full(count, engine.cluster_size, np.uint32)
    if stem == "%laneid":
        return lane
    if stem == "%warpid":
        return threads // LANES
    if stem == "%nwarpid":
        return np.full(count, 64, np.uint32)
    if stem == "%smid":
        return block % engine.sm_count
    if stem == "%nsmid":
        return np.full(count, engine.sm_count, np.uint32)
    if stem == "%gridid":
        return np.full(count, 1, np.uint64)
    if stem in ("%envreg1", "%envreg2"):
        # The cooperative launch's workspace, whose address the two registers hold.
        address = engine.grid_workspace()
        return np.full(
            count, address >> 32 if stem == "%envreg1" else address & 0xFFFFFFFF, np.uint64
        ).astype(np.uint32)
    if stem.startswith("%lanemask_"):
        return _lane_mask(lane.astype(np.uint64), stem[-2:])
    if stem == "%dynamic_smem_size":
        return np.full(count, engine.dynamic_bytes, np.uint32)
    if stem in ("%total_smem_size", "%aggr_smem_size"):
        return np.full(count, engine.shared_bytes - engine.reserved_bytes, np.uint32)
    if stem.startswith("%reserved_smem_offset"):
        # Cooperative groups keep barriers of groups of several warps there; where in it is theirs to say.
        begin = engine.shared_bytes - engine.reserved_bytes
        where = {"end": engine.shared_bytes, "cap": engine.reserved_bytes}
        return np.full(count, where.get(stem.rpartition("_")[2], begin), np.uint32)
    if stem == "%is_explicit_cluster":
        return np.full(count, int(engine.explicit_cluster), np.uint32)
    if stem == "%clock64":
        return np.full(count, engine.clock(), np.uint64)
    if stem == "%clock":
        return np.full(count, engine.clock() & 0xFFFFFFFF, np.uint32)
    if stem == "%clock_hi":
        return np.full(count, engine.clock() >> 32, np.uint64).astype(np.uint32)
    if stem.startswith("%globaltimer"):
        now = np.uint64(time.time_ns())
        if stem == "%globaltimer":
            return np.full(count, now)
        part = now >> np.uint64(32) if stem.endswith("hi") else now & np.uint64(0xFFFFFFFF)
        return np.full(count, part).astype(np.uint32)
    return np.zeros(count, np.uint32)


def _coordinate(linear: Any, extent: tuple[int, int, int], axis: int) -> Any:
    x, y, _ = extent
    if axis == 0:
        return linear % x
    if axis == 1:
        return linear // x % y
    return linear // (x * y)


def _lane_mask(lane: Any, relation: str) -> Any:
    one = np.uint64(1)
    bit = one << lane
    below = bit - one
    masks = {
        "eq": bit,
        "lt": below,
        "le": below | bit,
        "gt": ~(below | bit),
        "ge": ~below,
    }
    return (masks[relation] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
