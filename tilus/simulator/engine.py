"""Runs a launch: makes batches of blocks, picks groups of lanes, executes basic blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .counters import Counters
from .hazards import Hazard, Stop
from .memory import Store
from .multiply import MultiplyRun, scheduled
from .poison import Unwritten, affected, loaded_registers
from .selection import LANES, Selection
from .spaces import Allocation, GlobalMemory
from .spinning import Patience
from .state import Group, State

_MAX_LANES = 1 << 14
_MEMORY_BUDGET = 400 << 20
_YIELDS_BEFORE_MORE_BLOCKS = 200
_YIELDS_BEFORE_DEADLOCK = 2000


class Segment:
    """The instructions from one place to the next branch, barrier or label."""

    __slots__ = ("control", "end", "merged", "operations", "schedule", "start")

    def __init__(self, operations: list[Any], control: Any, start: int, end: int) -> None:
        self.operations = operations
        self.control = control
        self.start = start
        self.end = end
        self.schedule = scheduled(operations)
        self.merged = {o for run in self.schedule if isinstance(run, MultiplyRun) for o in run.operations}


class Engine:
    """One launch."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        cluster: tuple[int, int, int],
        parameters: bytes,
        shared_bytes: int,
        memory: GlobalMemory,
        checks: frozenset[str],
        dynamic_bytes: int,
        explicit_cluster: bool,
        reserved_bytes: int = 0,
    ) -> None:
        self.kernel = kernel
        self.grid, self.block, self.cluster = grid, block, cluster
        self.cluster_size = cluster[0] * cluster[1] * cluster[2]
        self.explicit_cluster = explicit_cluster
        self.threads = block[0] * block[1] * block[2]
        self.parameters = parameters
        self.reserved_bytes = reserved_bytes
        # What is the system's lies behind what is the kernel's.
        self.shared_bytes = shared_bytes + (-shared_bytes % 128 + reserved_bytes if reserved_bytes else 0)
        self.dynamic_bytes = dynamic_bytes
        self.globals = memory
        self.checks = checks
        self.check_shared = "shared" in checks or "async" in checks
        self.check_global = "global" in checks
        self.check_registers = "registers" in checks
        self.check_async = "async" in checks
        # Which registers may lack a value and which instructions touch them; whether loads are followed as well.
        self.tainted, self.touching = kernel.tainted, kernel.touching
        self.following = False
        self.track_order = self.check_shared or self.check_global or self.check_async
        self.hazards: list[Hazard] = []
        self.seen: set[tuple[str, int | None]] = set()
        self.printed: list[str] = []
        self.counters = Counters(kernel, memory)
        self.races: Any = None
        self.now = 0
        self.history: list[Any] = [None]
        self.locations: dict[Any, Any] = {}
        # When tensor maps in global memory were changed, and when a block last acquired one.
        self.changed_maps: dict[int, int] = {}
        self.acquired_maps: dict[tuple[int, int], int] = {}
        self._prepare_clusters()
        if self.check_global:
            from .global_races import GlobalRaces

            self.races = GlobalRaces(self)
        self.progress = 0
        self.total_yields = 0
        self.round = 0
        self.yields = 0
        self.yield_progress = 0
        self.patience = Patience()
        self.steps = 0
        self.sm_count = 132
        self.addresses: Any = None
        self._workspace: Allocation | None = None
        self.segments: dict[int, Segment] = kernel.segments
        self.states: list[State] = []

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self, instruction: Any = None) -> int:
        """A new point in time, at which ``instruction`` accesses memory."""
        self.now += 1
        self.history.append(instruction)
        return self.now

    def instruction_at(self, time: int) -> Any:
        """The instruction of a point in time."""
        return self.history[time] if 0 <= time < len(self.history) else None

    def _prepare_clusters(self) -> None:
        if self.cluster_size == 1:
            return
        order = self.block_order().reshape(-1, self.cluster_size)
        self.cluster_blocks = {int(row[0]): [int(b) for b in row] for row in order}
        self.rank_of_block = np.zeros(order.size, np.int64)
        self.cluster_of_block = np.zeros(order.size, np.int64)
        self.rank_of_block[order] = np.arange(self.cluster_size)
        self.cluster_of_block[order] = np.arange(len(order))[:, None]

    # -- blocks ------------------------------------------------------------------------------------------------

    def block_order(self) -> Any:
        """Linear block numbers, the blocks of a cluster next to each other in the order of their rank."""
        gx, gy, gz = self.grid
        linear = np.arange(gx * gy * gz)
        if self.cluster_size == 1:
            return linear
        x, y, z = linear % gx, linear // gx % gy, linear // (gx * gy)
        cx, cy, cz = self.cluster
        cluster = x // cx + (gx // cx) * (y // cy + (gy // cy) * (z // cz))
        rank = x % cx + cx * (y % cy + cy * (z % cz))
        return np.argsort(cluster * self.cluster_size + rank, kind="stable")

    def batch_size(self) -> int:
        """How many blocks run at a time."""
        warps = (self.threads + LANES - 1) // LANES
        rows = self.kernel.bank_rows
        lane_bytes = sum(max(rows[b], 1) * max(b // 8, 1) for b in rows) + self.kernel.local_bytes + 64
        per_block = warps * LANES * lane_bytes + self.shared_bytes * (
            1 + (14 + 4 * warps * self.cluster_size) // self.kernel.shared_grain * self.check_shared
        )
        count = max(1, min(_MAX_LANES // (warps * LANES), _MEMORY_BUDGET // max(per_block, 1)))
        return max(count // self.cluster_size, 1) * self.cluster_size

    def run(self) -> None:
        """Execute all blocks, or until a hazard that nothing can follow."""
        order = self.block_order()
        size = self.batch_size()
        pending = [order[i : i + size] for i in range(0, len(order), size)][::-1]
        with np.errstate(all="ignore"):
            try:
                while pending or self.states:
                    if not self.states:
                        self.start(pending.pop())
                    if self._run_some(bool(pending)):
                        self.start(pending.pop())
            except Stop:
                return

    def start(self, blocks: Any) -> None:
        """Put a batch in flight."""
        self.states.append(State(self, blocks))

    def _run_some(self, more: bool) -> bool:
        """Run until everything in flight ended (False) or waits for blocks that are not in flight (True)."""
        while self.states:
            best, state = None, None
            for candidate in self.states:
                round_ = candidate.best_round()
                if round_ is not None and (best is None or round_ < best):
                    best, state = round_, candidate
            if state is None or best is None:
                if self._unblock():
                    continue
                if more:
                    return True
                self._deadlock()
            assert state is not None and best is not None
            self.round = max(self.round, best)
            if self.yields > _YIELDS_BEFORE_MORE_BLOCKS and more:
                self.yields = 0
                return True
            if self.yields > _YIELDS_BEFORE_DEADLOCK + 20 * sum(len(s.groups) for s in self.states):
                if not self._unblock() and self.patience.exhausted():
                    self._livelock(state)
                self.yields = 0
            group = state.pick()
            if group is not None:
                self._run_group(state, group)
            if not state.queue and not state.parked and not state.waiting and not state.live.any():
                self.states.remove(state)
                self.ended(state)
        return False

    def _unblock(self) -> bool:
        woken = False
        for state in list(self.states):
            if state.wake_waiting() or state.barriers.wake():
                woken = True
            elif not state.live.any():
                self.states.remove(state)
                self.ended(state)
                woken = True
        return woken

    def ended(self, state: State) -> None:
        """All lanes of a batch have ended."""
        state.barriers.check_end()

    # -- execution ---------------------------------------------------------------------------------------------

    def segment(self, pc: int) -> Segment:
        """The straight-line code from ``pc`` on."""
        found = self.segments.get(pc)
        if found is None:
            instructions, leaders = self.kernel.instructions, self.kernel.leaders
            operations, control, at = [], None, pc
            while True:
                operation = instructions[at].operation
                if operation.control:
                    control = operation
                    break
                operations.append(operation)
                at += 1
                if at in leaders:
                    break
            found = self.segments[pc] = Segment(operations, control, pc, at)
        return found

    def _follow_loads(self) -> None:
        """From now on loads of shared memory may give registers without a value."""
        self.following = True
        self.tainted, self.touching = affected(
            self.kernel, self.kernel.watched | loaded_registers(self.kernel)
        )
        for state in self.states:
            state.segments.clear()
            state.poison.tainted = self.tainted
            state.poison.keys.clear()

    def _bind(self, state: State, segment: Segment, sel: Selection, start: int = 0) -> list[Any]:
        thunks = []
        for operation in segment.schedule[start:]:
            if isinstance(operation, MultiplyRun):
                thunks.append(operation.bind(state, sel.lo, sel.hi))
                continue
            if self.check_async and operation.instruction.index in self.kernel.tracked:
                thunks.append(partial(state.wgmma.used, operation, Selection(sel.lo, sel.hi)))
            followed = self.check_registers and operation.instruction.index in self.touching
            if followed:
                thunks.append(partial(state.poison.step, operation, Selection(sel.lo, sel.hi)))
            if operation not in segment.merged:
                thunks.append(operation.bind(state, sel.lo, sel.hi))
            if followed and isinstance(operation, Store):
                thunks.append(partial(state.poison.stored, operation, Selection(sel.lo, sel.hi)))
        return thunks

    def _run_group(self, state: State, group: Group) -> None:
        segments = state.segments
        while True:
            sel = group.sel
            pc = group.pc
            segment = self.segment(pc)
            self.steps += 1
            if state.poison.chosen:
                state.poison.arrive(pc, sel)
            if sel.whole:
                key = (pc, sel.lo, sel.hi)
                thunks = segments.get(key)
                if thunks is None:
                    thunks = segments[key] = self._bind(state, segment, sel)
                try:
                    for thunk in thunks:
                        thunk()
                except Unwritten as load:
                    self._follow_loads()
                    for thunk in self._bind(state, segment, sel, segment.schedule.index(load.operation)):
                        thunk()
                self.counters.executed(pc, segment.end, sel, segment.control is not None, state.block_count)
            else:
                following = self._run_partial(state, group, segment)
                if following is None:
                    return
                group = following
                sel = group.sel
            control = segment.control
            if control is None:
                group.pc = segment.end
            else:
                if self.check_registers and control.instruction.index in self.touching:
                    state.poison.step(control, sel)
                moved = control.step(self, group)
                if moved is None:
                    return
                group = moved
            if state.queue or len(self.states) > 1 or self.yields > _YIELDS_BEFORE_MORE_BLOCKS:
                state.add(group)
                return

    def _run_partial(self, state: State, group: Group, segment: Segment) -> Group | None:
        """Execute a segment for lanes that are no whole warps, waiting at warp-wide operations."""
        pc = segment.start
        sel = group.sel
        for operation in segment.operations:
            if operation.sync:
                ready = state.converge(group, operation, pc)
                if ready is None:
                    self.counters.executed(segment.start, pc, sel, False, state.block_count)
                    return None
                if ready is not sel:
                    self.counters.executed(segment.start, pc, sel, False, state.block_count)
                    state.add(group.fork(ready, pc, False))
                    return None
            if self.check_async and pc in self.kernel.tracked:
                state.wgmma.used(operation, sel)
            followed = self.check_registers and pc in self.touching
            if followed:
                state.poison.step(operation, sel)
            try:
                operation.run(state, sel)
            except Unwritten:
                self._follow_loads()
                state.poison.step(operation, sel)
                operation.run(state, sel)
            if followed and isinstance(operation, Store):
                state.poison.stored(operation, sel)
            pc += 1
        self.counters.executed(segment.start, pc, sel, segment.control is not None, state.block_count)
        group.sel = sel
        return group

    # -- waiting -----------------------------------------------------------------------------------------------

    def yielded(self, group: Group) -> None:
        """A group went round a loop that polls memory."""
        if self.progress != self.yield_progress:
            self.yield_progress = self.progress
            self.yields = 0
            self.patience.reset()
        self.yields += 1
        self.total_yields += 1
        self.patience.watch(group, self.yields)

    def grid_workspace(self) -> int:
        """The address of the memory that cooperative groups synchronise a grid through."""
        if self._workspace is None:
            base = self.addresses.reserve(256)
            self._workspace = Allocation(base, np.zeros(256, np.uint8), "cooperative launch workspace")
            self.globals.add(self._workspace)
        return self._workspace.base

    def clock(self) -> int:
        """A cycle counter that always grows."""
        self.steps += 1
        return self.steps * 32

    def count_divergence(self, group: Group, instruction: Any, taken: Any) -> None:
        """A branch split warps."""
        warps = group.sel.spread(taken.astype(np.int8), -1)
        split = int(((warps == 1).any(axis=1) & (warps == 0).any(axis=1)).sum())
        if split:
            self.counters.divergent(instruction, split)

    def _livelock(self, state: State) -> None:
        group = min((g for g in state.groups.values()), key=lambda g: g.round)
        instruction = self.kernel.instructions[group.pc]
        what = "poll memory that nobody changes any more"
        if instruction.opcode.startswith("setmaxnreg"):
            what = "wait for registers that no warp of the block releases"
        elif instruction.opcode.startswith("wgmma.fence"):
            what = "wait for the other warps of their warpgroup, which never come"
        state.hazard(
            "deadlock",
            f"{len(group.sel.warps)} warps {what}" + self._waiting_text(),
            instruction,
            int(group.sel.index[0]),
        )
        raise Stop

    def _waiting_text(self) -> str:
        parts = []
        for state in self.states:
            parts.extend(state.barriers.describe())
        return "; " + "; ".join(parts) if parts else ""

    def _deadlock(self) -> None:
        for state in self.states:
            for pc, group in state.waiting.items():
                instruction = self.kernel.instructions[pc]
                lane = int(group.sel.index[0])
                state.hazard(
                    "barrier-divergence",
                    "lanes wait at a warp-wide instruction for lanes of their warp that never come"
                    + self._waiting_text(),
                    instruction,
                    lane,
                )
            if not state.waiting:
                state.barriers.report_deadlock()
        if not any(h.kind in ("deadlock", "barrier-divergence", "barrier-count") for h in self.hazards):
            self.report("deadlock", "no warp can go on", None, None, None, None)
        raise Stop

    def report(
        self, kind: str, message: str, instruction: Any, block: Any, thread: Any, address: int | None
    ) -> None:
        """Add a hazard, once for each kind and line."""
        line = None if instruction is None else instruction.line
        if (kind, line) in self.seen:
            return
        self.seen.add((kind, line))
        self.hazards.append(
            Hazard(
                kind,
                message,
                self.kernel.name,
                block,
                thread,
                address,
                line,
                None if instruction is None else instruction.source,
                "" if instruction is None else instruction.text,
            )
        )
