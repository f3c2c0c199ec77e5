"""Barriers: ``bar`` and ``barrier.cta`` with ids, counts and reductions, ``barrier.cluster``, ``bar.warp``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import Decoder
from .operands import Constant
from .operations import Control, Lane, Operation
from .selection import LANES, Selection
from .types import TYPES

_BARRIERS = 16
_CLUSTER_PARK = 100


class BarrierUnit:
    """The barriers of a batch: who arrived, who waits."""

    def __init__(self, state: Any) -> None:
        self.state = state
        blocks = state.block_count
        self.count = np.zeros((blocks, _BARRIERS), np.int64)
        self.expected = np.zeros((blocks, _BARRIERS), np.int64)
        self.pending = 0
        # Per lane: which barrier it waits at (-1: none), and where it goes on.
        self.at = np.full(state.lane_count, -1, np.int16)
        self.next = np.zeros(state.lane_count, np.int64)
        self.members: dict[tuple[int, int], list[Any]] = {}
        self.reduction: dict[tuple[int, int], tuple[Any, list[Any]]] = {}
        self.cluster_arrived = np.zeros(state.lane_count, bool)
        self.cluster_phase = np.zeros(max(blocks // state.engine.cluster_size, 1), np.int64)
        self.lane_phase = np.zeros(state.lane_count, np.int64)
        self.arrivals = np.zeros(state.lane_count, np.int64)
        self.conditions: list[Any] = []

    # -- block barriers ----------------------------------------------------------------------------------------

    def all_threads(self, block: Any) -> Any:
        """Threads that a barrier without a count waits for: those of warps that have not ended."""
        alive = self.state.live_warps.any(axis=1)
        return np.bincount(self.state.block_of_warp[alive], minlength=self.state.block_count)[block] * LANES

    def arrive(
        self,
        sel: Selection,
        barrier: int,
        count: int | None,
        instruction: Any,
        wait: bool,
        after: int,
        value: Any = None,
        combine: Any = None,
    ) -> Any:
        """Lanes arrive; returns their selection where all of them may go on at once."""
        state = self.state
        if not 0 <= barrier < _BARRIERS:
            state.hazard(
                "barrier-count",
                f"barrier {barrier} does not exist (0 to 15 do)",
                instruction,
                int(sel.index[0]),
            )
            state.stop()
        if count is not None and (count % LANES or count <= 0):
            state.hazard(
                "barrier-count",
                f"thread count {count} is no positive multiple of 32",
                instruction,
                int(sel.index[0]),
            )
            state.stop()
        everyone = sel.whole and sel.lo == 0 and sel.hi == state.warp_count
        if (
            everyone
            and self.pending == 0
            and value is None
            and (count is None or count == state.warps * LANES)
            and wait
        ):
            if state.order is not None:
                state.order.all_blocks()
            return sel
        warps = sel.warps
        blocks = state.block_of_warp[warps]
        arrived = np.bincount(blocks, self._threads(sel, barrier), state.block_count).astype(np.int64)
        touched = np.flatnonzero(arrived)
        if count is None and not state.live[state.exists].all():
            self._exited(touched, instruction, sel)
        expected = np.full(len(touched), state.warps * LANES if count is None else count)
        old = self.expected[touched, barrier]
        clash = (self.count[touched, barrier] > 0) & (old != expected)
        if clash.any():
            state.hazard(
                "barrier-count",
                f"barrier {barrier} is used with {int(expected[clash][0])} threads while {int(old[clash][0])} were "
                "expected by those who arrived before",
                instruction,
                int(sel.index[0]),
            )
        self.expected[touched, barrier] = expected
        self.count[touched, barrier] += arrived[touched]
        self.pending += int(arrived.sum())
        if wait:
            self.at[sel.lanes] = barrier
            self.next[sel.lanes] = after
            state.parked += sel.n
        for each in touched:
            block = int(each)
            mine = warps[blocks == block]
            seen = state.order.snapshot(mine) if state.order is not None else None
            self.members.setdefault((int(block), barrier), []).append((mine, wait, seen))
        if value is not None:
            lane_block = state.block_of_lane[sel.lanes]
            for each in touched:
                values = self.reduction.setdefault((int(each), barrier), (combine, []))[1]
                values.append(value[lane_block == each])
        over = self.count[touched, barrier] > self.expected[touched, barrier]
        if over.any():
            block = int(touched[over][0])
            state.hazard(
                "barrier-count",
                f"{int(self.count[block, barrier])} threads arrived at barrier {barrier}, which expects "
                f"{int(self.expected[block, barrier])}",
                instruction,
                int(sel.index[0]),
            )
        needed = self.all_threads(touched) if count is None else expected
        done = touched[self.count[touched, barrier] >= needed]
        if len(done):
            self.release(done, barrier)
        return None

    def _threads(self, sel: Selection, barrier: int) -> Any:
        """Threads that each warp's arrival counts for: with its last lane also those that do not exist or ended."""
        if sel.whole:
            return np.full(sel.hi - sel.lo, LANES)
        here = sel.mask.sum(axis=1)
        before = (self.at.reshape(-1, LANES)[sel.warps] == barrier).sum(axis=1)
        live = self.state.live_warps[sel.warps].sum(axis=1)
        return np.where(here + before == live, here + LANES - live, here)

    def _exited(self, touched: Any, instruction: Any, sel: Selection) -> None:
        """Report threads that ended while others wait for all: the ISA lets those go on, but few mean it."""
        state = self.state
        gone = np.flatnonzero(state.exists & ~state.live)
        bad = np.intersect1d(np.unique(state.block_of_lane[gone]), touched)
        if len(bad):
            lane = int(gone[state.block_of_lane[gone] == bad[0]][0])
            state.hazard(
                "barrier-divergence",
                f"thread {state.thread_coordinates(int(state.thread_of_lane[lane]))} ended before a barrier that waits "
                "for all threads of the block",
                instruction,
                int(sel.index[state.block_of_lane[sel.index] == bad[0]][0]),
            )

    def release(self, blocks: Any, barrier: int) -> None:
        """All arrived: those who wait go on."""
        state = self.state
        waiting = self.at == barrier
        chosen = np.zeros(state.block_count, bool)
        chosen[blocks] = True
        index = np.flatnonzero(waiting & chosen[state.block_of_lane])
        for block in blocks:
            key = (int(block), barrier)
            members = self.members.pop(key, [])
            if state.order is not None:
                state.order.barrier(members)
            if key in self.reduction:
                combine, values = self.reduction.pop(key)
                lanes = index[state.block_of_lane[index] == block]
                combine(lanes, np.concatenate(values))
        self.pending -= int(self.count[blocks, barrier].sum())
        self.count[blocks, barrier] = 0
        self.at[index] = -1
        state.parked -= len(index)
        if len(index):
            state.resume(index, self.next[index])

    def lanes_exited(self, sel: Selection) -> None:
        """Barriers without a count stop waiting for warps that ended."""
        state = self.state
        if self.cluster_arrived.any():
            self._complete_clusters(np.unique(state.block_of_lane[sel.lanes] // state.engine.cluster_size))
        if not self.pending and not state.waiting:
            return
        ended = {int(b) for b in np.unique(state.block_of_lane[sel.lanes])}
        for block, barrier in list(self.members):
            if block not in ended:
                continue
            if self.count[block, barrier] >= self.all_threads(np.array([block]))[0] > 0:
                gone = state.exists & ~state.live & (state.block_of_lane == block)
                if gone.any() and self.expected[block, barrier] == state.warps * LANES:
                    waiting = np.flatnonzero((self.at == barrier) & (state.block_of_lane == block))
                    if len(waiting):
                        instruction = state.kernel.instructions[int(self.next[waiting[0]]) - 1]
                        self._exited(np.array([block]), instruction, Selection.of(waiting))
                        self.release(np.array([block]), barrier)

    # -- cluster barrier ---------------------------------------------------------------------------------------

    def cluster_arrive(self, sel: Selection, instruction: Any, relaxed: bool) -> None:
        """Lanes arrive at the cluster's barrier without waiting."""
        state = self.state
        again = self.arrivals[sel.lanes] > self.lane_phase[sel.lanes]
        if again.any():
            state.hazard(
                "barrier-count",
                "a thread arrives twice at barrier.cluster without waiting in between",
                instruction,
                int(sel.index[np.flatnonzero(again)[0]]),
            )
            state.stop()
        self.cluster_arrived[sel.lanes] = True
        self.arrivals[sel.lanes] += 1
        if state.order is not None:
            state.order.cluster_arrive(sel.warps, relaxed)
        self._complete_clusters(np.unique(state.block_of_lane[sel.lanes] // state.engine.cluster_size))

    def _complete_clusters(self, touched: Any) -> None:
        """End the barrier's phase in clusters of which all threads that have not ended have arrived, and some have."""
        state = self.state
        cluster = state.block_of_lane // state.engine.cluster_size
        phases = len(self.cluster_phase)
        missing = np.bincount(cluster[state.live & ~self.cluster_arrived], minlength=phases)
        arrived = np.bincount(cluster[self.cluster_arrived], minlength=phases)
        done = touched[(missing[touched] == 0) & (arrived[touched] > 0)]
        if len(done) == 0:
            return
        chosen = np.zeros(len(self.cluster_phase), bool)
        chosen[done] = True
        self.cluster_phase[done] += 1
        self.cluster_arrived[chosen[cluster]] = False
        if state.order is not None:
            for each in done:
                state.order.cluster_complete(int(each))
        waiting = np.flatnonzero((self.at == _CLUSTER_PARK) & chosen[cluster])
        if len(waiting):
            self.at[waiting] = -1
            self.lane_phase[waiting] += 1
            state.parked -= len(waiting)
            if state.order is not None:
                state.order.cluster_wait(np.unique(waiting // LANES))
            state.resume(waiting, self.next[waiting])

    def cluster_wait(self, sel: Selection, instruction: Any, after: int) -> Any:
        """Lanes wait for the cluster's barrier; returns those whose phase has completed."""
        state = self.state
        cluster = state.block_of_lane[sel.lanes] // state.engine.cluster_size
        complete = self.cluster_phase[cluster] > self.lane_phase[sel.lanes]
        stray = ~complete & ~self.cluster_arrived[sel.lanes]
        if stray.any():
            state.hazard(
                "barrier-count",
                "barrier.cluster.wait without an arrival before it",
                instruction,
                int(sel.index[np.flatnonzero(stray)[0]]),
            )
            state.stop()
        ready = sel if complete.all() else sel.subset(complete) if complete.any() else None
        if ready is not None:
            self.lane_phase[ready.lanes] += 1
            if state.order is not None:
                state.order.cluster_wait(ready.warps)
        if ready is not sel:
            late = sel.subset(~complete)
            self.at[late.lanes] = _CLUSTER_PARK
            self.next[late.lanes] = after
            state.parked += late.n
        return ready

    # -- other waits -------------------------------------------------------------------------------------------

    def park_until(self, group: Any, condition: Any) -> None:
        """Hold lanes until ``condition`` (an object with ``ready(state)``, ``resume(state)``, ``text``) is ready."""
        self.conditions.append((condition, group))
        self.state.parked += group.sel.n

    def wake(self) -> bool:
        """Let lanes go on whose condition holds now."""
        woken = False
        for entry in list(self.conditions):
            condition, group = entry
            if condition.ready():
                self.conditions.remove(entry)
                self.state.parked -= group.sel.n
                self.state.add(group)
                woken = True
        return woken

    def check_end(self) -> None:
        """Nothing may be left when all lanes of the batch have ended."""

    def describe(self) -> list[str]:
        """Who waits for what."""
        state = self.state
        parts = []
        for (block, barrier), _ in self.members.items():
            where = state.block_coordinates(block)
            parts.append(
                f"block {where}: barrier {barrier} has {int(self.count[block, barrier])} of "
                f"{int(self.expected[block, barrier])} threads"
            )
        for condition, group in self.conditions:
            where = state.block_coordinates(int(state.block_of_lane[group.sel.index[0]]))
            parts.append(f"block {where}: {len(group.sel.warps)} warps wait for {condition.text()}")
        if (self.at == _CLUSTER_PARK).any():
            parts.append(f"{int((self.at == _CLUSTER_PARK).sum())} threads wait at barrier.cluster")
        return parts[:8]

    def report_deadlock(self) -> None:
        """One hazard that says who waits for what."""
        state = self.state
        waiting = np.flatnonzero(self.at >= 0)
        instruction, lane = None, None
        if len(waiting):
            lane = int(waiting[0])
            instruction = state.kernel.instructions[int(self.next[lane]) - 1]
        elif self.conditions:
            condition, group = self.conditions[0]
            lane = int(group.sel.index[0])
            instruction = condition.instruction
        if lane is None:
            return
        text = "; ".join(self.describe())
        state.hazard("deadlock", f"no warp can go on: {text}", instruction, lane)


class Barrier(Control):
    """``bar.sync``, ``bar.arrive``, ``bar.red`` and the ``barrier.cta`` forms."""

    def __init__(
        self,
        mode: str,
        aligned: bool,
        barrier: Any,
        count: Any,
        reduction: str | None,
        target: Any,
        value: Any,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.aligned = aligned
        self.barrier, self.threads = barrier, count
        self.reduction = reduction
        self.reads = tuple(s for s in (barrier, count, value) if s is not None)
        self.writes = () if target is None else (target,)
        self.value = value

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        here = self.instruction.index
        if self.guard is not None:
            taken = self.guard.get(state, sel)
            if not taken.all():
                state.add(group.fork(sel.subset(~taken), here + 1, False))
                if not taken.any():
                    return None
                group = group.fork(sel.subset(taken), here, False)
                sel = group.sel
        if self.aligned and not sel.whole:
            ready = state.converge(group, self, here)
            if ready is None:
                return None
            sel = ready
        engine.counters.barrier(self.instruction, len(sel.warps))
        if isinstance(self.barrier, Constant) and (
            self.threads is None or isinstance(self.threads, Constant)
        ):
            count = None if self.threads is None else int(self.threads.value)
            return self._arrive(group, sel, int(self.barrier.value), count)
        ids = np.broadcast_to(self.barrier.get(state, sel), (sel.n,)).astype(np.int64)
        counts = np.zeros(sel.n, np.int64)
        if self.threads is not None:
            counts = np.broadcast_to(self.threads.get(state, sel), (sel.n,)).astype(np.int64)
        moved = None
        for key in np.unique(ids * (1 << 20) + counts):
            part = sel.subset(ids * (1 << 20) + counts == key)
            count = int(key) & ((1 << 20) - 1)
            result = self._arrive(group, part, int(key) >> 20, count if self.threads is not None else None)
            if result is not None:
                if part.n == sel.n:
                    moved = result
                else:
                    state.add(group.fork(part, here + 1, False))
        return moved

    def _arrive(self, group: Any, sel: Selection, barrier: int, count: int | None) -> Any:
        state = group.state
        after = self.instruction.index + 1
        value = None if self.value is None else np.broadcast_to(self.value.get(state, sel), (sel.n,))
        combine = None if self.value is None else lambda lanes, values: self._combine(state, lanes, values)
        wait = self.mode != "arrive"
        state.loops[sel.warp_slice] = group.loops
        ready = state.barriers.arrive(sel, barrier, count, self.instruction, wait, after, value, combine)
        if not wait:
            ready = sel
        if ready is None:
            return None
        group.sel = ready
        group.pc = after
        return group

    def _combine(self, state: Any, lanes: Any, values: Any) -> None:
        if self.reduction == "popc":
            result: Any = np.uint32(np.count_nonzero(values))
        else:
            result = np.bool_(values.all() if self.reduction == "and" else values.any())
        self.writes[0].put(state, Selection.of(lanes), result)


class ClusterBarrier(Control):
    """``barrier.cluster.arrive`` and ``.wait``."""

    def __init__(self, wait: bool, relaxed: bool) -> None:
        super().__init__()
        self.wait, self.relaxed = wait, relaxed

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        here = self.instruction.index
        if not sel.whole:
            ready = state.converge(group, self, here)
            if ready is None:
                return None
            sel = ready
        group.sel = sel
        if not self.wait:
            state.barriers.cluster_arrive(sel, self.instruction, self.relaxed)
            group.pc = here + 1
            return group
        ready = state.barriers.cluster_wait(sel, self.instruction, here + 1)
        if ready is None:
            return None
        group.sel = ready
        group.pc = here + 1
        return group


class WarpBarrier(Lane):
    """``bar.warp.sync``: also orders memory among the lanes."""

    sync = True

    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.mask = mask
        self.reads = (mask,)

    def required(self, state: Any, sel: Selection) -> Any:
        return lanes_of_mask(self.mask, state, sel)

    def execute(self, state: Any, sel: Selection) -> None:
        if state.order is not None:
            state.order.warp_sync(sel)


def lanes_of_mask(source: Any, state: Any, sel: Selection) -> Any:
    """``[warps, 32]``: for each warp the lanes that its active lanes' masks name."""
    masks = source.warp(state, sel).astype(np.uint32)
    masks = np.where(sel.mask, masks, np.uint32(0))
    union = np.bitwise_or.reduce(masks, axis=1)
    return (union[:, None] >> np.arange(LANES, dtype=np.uint32)) & np.uint32(1) != 0


def _decode_barrier(d: Decoder) -> Operation:
    aligned = d.name == "bar" or d.flag("aligned")
    d.flag("aligned")
    d.flag("cta")
    if d.flag("cluster"):
        mode = d.take("arrive", "wait")
        relaxed = d.take("release", "relaxed", "acquire") == "relaxed"
        d.flag("aligned")
        return ClusterBarrier(mode == "wait", relaxed)
    if d.flag("warp"):
        d.flag("sync")
        return WarpBarrier(d.source(d.operands[0], TYPES["b32"]))
    mode = d.take("sync", "arrive", "red")
    u32 = TYPES["u32"]
    if mode == "red":
        reduction = d.take("popc", "and", "or")
        type = d.type("u32", "pred")
        operands = d.operands[1:]
        value = d.predicate(operands[-1])
        count = d.source(operands[1], u32) if len(operands) == 3 else None
        target = d.target(d.operands[0], type)
        return Barrier("red", aligned, d.source(operands[0], u32), count, reduction, target, value)
    if mode is None:
        raise d.fail("a barrier needs .sync, .arrive or .red")
    count = d.source(d.operands[1], u32) if len(d.operands) > 1 else None
    if mode == "arrive" and count is None:
        raise d.fail("an arrival needs a thread count")
    return Barrier(mode, aligned, d.source(d.operands[0], u32), count, None, None, None)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"bar": _decode_barrier, "barrier": _decode_barrier}
