"""A batch of blocks in flight: registers, memory, and which lanes stand where.

Lanes are ordered warp-major: warp ``w`` of block ``b`` is row ``w * blocks + b``, so that one role of a
warp-specialised kernel is a contiguous run of rows over all blocks.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from .async_copy import CopyQueue
from .barriers import BarrierUnit
from .bulk_copy import BulkGroups
from .hazards import Stop
from .mbarrier import BarrierTable
from .memory_unit import Memory
from .poison import Poison
from .selection import LANES, Selection
from .spinning import turn_back
from .wgmma import Tracking

_BANK_DTYPES = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Group:
    """Lanes that stand at one instruction."""

    __slots__ = ("loops", "patience", "patience_progress", "pc", "resumed", "round", "sel", "state")

    def __init__(self, state: Any, sel: Selection, pc: int, round: int = 0) -> None:
        self.state = state
        self.sel = sel
        self.pc = pc
        self.round = round
        self.loops = 0
        self.resumed = False
        self.patience = 0
        self.patience_progress = -1

    def fork(self, sel: Selection, pc: int, backward: bool) -> Group:
        """Some of the lanes, elsewhere."""
        other = Group(self.state, sel, pc, self.round)
        other.loops = self.loops
        if backward:
            turn_back(other, pc)
        return other


class State:
    """One batch."""

    def __init__(self, engine: Any, blocks: Any) -> None:
        kernel = engine.kernel
        self.engine = engine
        self.kernel = kernel
        self.blocks = np.asarray(blocks, np.int64)
        self.block_count = len(self.blocks)
        self.threads = engine.threads
        self.warps = (self.threads + LANES - 1) // LANES
        self.warp_count = self.warps * self.block_count
        self.lane_count = self.warp_count * LANES
        self.banks: dict[int, Any] = {
            bank: np.zeros((max(kernel.bank_rows[bank], 1), self.lane_count), dtype)
            for bank, dtype in _BANK_DTYPES.items()
        }
        self.banks[128] = np.zeros((max(kernel.bank_rows[128], 1), self.lane_count, 2), np.uint64)
        warp = np.arange(self.warp_count)
        self.block_of_warp = warp % self.block_count
        self.warp_in_block = warp // self.block_count
        self.block_of_lane = np.repeat(self.block_of_warp, LANES)
        lane = np.arange(self.lane_count)
        self.thread_of_lane = np.repeat(self.warp_in_block, LANES) * LANES + lane % LANES
        self.exists = self.thread_of_lane < self.threads
        self.live = self.exists.copy()
        self.live_warps = self.live.reshape(-1, LANES)
        self.local_stride = max(kernel.local_bytes, 16)
        self.local = np.zeros((self.lane_count if kernel.local_bytes else 1, self.local_stride), np.uint8)
        self.global_thread = (
            self.blocks[self.block_of_lane] * (self.warps * LANES) + self.thread_of_lane
        ).astype(np.uint32)
        self.memory = Memory(self, engine.shared_bytes, kernel.local_bytes)
        self.shared_base = self.block_of_lane * self.memory.stride
        self.specials: dict[str, Any] = {}
        self.segments: dict[tuple[int, int, int], Any] = {}
        self.groups: dict[int, Group] = {}
        self.queue: list[tuple[int, int, int, Group]] = []
        self.ticket = 0
        self.waiting: dict[int, Any] = {}
        self.barriers = BarrierUnit(self)
        self.copies = CopyQueue(self)
        self.mbarriers = BarrierTable(self)
        self.bulk_groups = BulkGroups(self)
        self.wgmma = Tracking(self)
        self.poison = Poison(self)
        self.register_limits = np.full(self.warp_count, kernel.max_registers or 0, np.int64)
        self.parked = 0
        self.frames: dict[int, Any] = {}
        self.next_frame = 1
        self.frame_of_lane = np.zeros(self.lane_count, np.int64)
        self.polled = np.zeros(self.warp_count, bool)
        # Turns of loops that warps made since they gave way, kept while they wait at a barrier.
        self.loops = np.zeros(self.warp_count, np.int64)
        self.standing: dict[int, list[Any]] = {}
        self.races: Any = None
        self.order: Any = None
        if engine.track_order:
            from .order import Order

            self.order = Order(self)
        if engine.check_shared:
            from .races import SharedRaces

            self.races = SharedRaces(self)
        everyone = (
            Selection(0, self.warp_count) if self.exists.all() else Selection.of(np.flatnonzero(self.exists))
        )
        self.add(Group(self, everyone, 0, engine.round))

    def poll(self, sel: Selection) -> None:
        """Warps look at memory that others may change; going round a loop with it yields to others."""
        self.polled[sel.warp_slice] = True

    def take_polled(self, sel: Selection) -> bool:
        """Whether a warp polled since it last yielded."""
        part = sel.warp_slice
        if not self.polled[part].any():
            return False
        self.polled[part] = False
        return True

    # -- groups ------------------------------------------------------------------------------------------------

    def add(self, group: Group) -> None:
        """Make a group runnable; lanes that already stand there join it."""
        other = self.groups.get(group.pc)
        if other is not None:
            merged = np.concatenate([other.sel.index, group.sel.index])
            merged.sort()
            group.sel = Selection.of(merged)
            group.round = max(group.round, other.round)
            group.loops = max(group.loops, other.loops)
        self.groups[group.pc] = group
        self.ticket += 1
        heapq.heappush(self.queue, (group.round, group.pc, self.ticket, group))

    def pick(self) -> Group | None:
        """The runnable group that yielded least and stands first in the program."""
        while self.queue:
            group = self.queue[0][3]
            if self.groups.get(group.pc) is group:
                heapq.heappop(self.queue)
                del self.groups[group.pc]
                return group
            heapq.heappop(self.queue)
        return None

    def best_round(self) -> int | None:
        """The lowest round of the runnable groups."""
        while self.queue and self.groups.get(self.queue[0][3].pc) is not self.queue[0][3]:
            heapq.heappop(self.queue)
        return self.queue[0][0] if self.queue else None

    def resume(self, index: Any, pcs: Any) -> None:
        """Lanes that waited go on, each at its own place."""
        for pc in np.unique(pcs):
            group = Group(self, Selection.of(index[pcs == pc]), int(pc), self.engine.round)
            group.loops = int(self.loops[group.sel.warp_slice].max())
            self.add(group)

    # -- convergence -------------------------------------------------------------------------------------------

    def converge(self, group: Group, operation: Any, pc: int) -> Selection | None:
        """The lanes of warps whose required lanes all stand here; the others wait for theirs."""
        sel = group.sel
        if sel.whole or not self._missing(operation, sel).any():
            return sel
        pending = self.waiting.pop(pc, None)
        if pending is not None:
            merged = np.concatenate([pending.sel.index, sel.index])
            merged.sort()
            sel = Selection.of(merged)
        if sel.whole:
            return sel
        ready = ~self._missing(operation, sel).any(axis=1)
        if ready.all():
            return sel
        lanes_ready = ready[sel.row]
        late = Group(self, Selection.of(sel.index[~lanes_ready]), pc, group.round)
        late.loops = group.loops
        self.waiting[pc] = late
        if not lanes_ready.any():
            return None
        return Selection.of(sel.index[lanes_ready])

    def _missing(self, operation: Any, sel: Selection) -> Any:
        """``[warps, 32]``: live lanes that the operation needs and that stand elsewhere."""
        return operation.required(self, sel) & self.live_warps[sel.warps] & ~sel.mask

    def wake_waiting(self) -> bool:
        """Retry all groups that wait for lanes; exits may have made them complete."""
        woken = False
        for pc in list(self.waiting):
            group = self.waiting[pc]
            operation = self.kernel.instructions[pc].operation
            sel = group.sel
            if not self._missing(operation, sel).any(axis=1).all():
                del self.waiting[pc]
                self.add(group)
                woken = True
        return woken

    def exit_lanes(self, sel: Selection, instruction: Any) -> None:
        """Lanes end."""
        self.live[sel.lanes] = False
        if self.bulk_groups.pending:
            self.bulk_groups.flush(sel.index)
        if self.wgmma.outstanding:
            self.wgmma.check_end(sel, instruction)
        self.barriers.lanes_exited(sel)

    # -- facts -------------------------------------------------------------------------------------------------

    def special(self, name: str) -> Any:
        """A special register of all lanes."""
        found = self.specials.get(name)
        if found is None:
            found = self._make_special(name)
            if found.dtype != np.uint64:
                found = found.astype(np.uint32)
            if name not in (
                "%clock",
                "%clock64",
                "%clock_hi",
                "%globaltimer",
                "%globaltimer_lo",
                "%globaltimer_hi",
            ):
                self.specials[name] = found
        return found

    def _make_special(self, name: str) -> Any:
        from .specials import special_register

        return special_register(self, name)

    def symbol_address(self, name: str) -> int:
        """The address of a variable in its space."""
        return int(self.kernel.symbols[name].address)

    def block_coordinates(self, block: int) -> tuple[int, int, int]:
        """Grid coordinates of one of the batch's blocks."""
        gx, gy, _ = self.engine.grid
        linear = int(self.blocks[block])
        return linear % gx, linear // gx % gy, linear // (gx * gy)

    def thread_coordinates(self, thread: int) -> tuple[int, int, int]:
        """Block coordinates of a thread."""
        bx, by, _ = self.engine.block
        return thread % bx, thread // bx % by, thread // (bx * by)

    def cluster_index(self, access: Any, sel: Selection, address: Any, width: int, base: Any) -> Any:
        """Byte indices of shared::cluster addresses, which may name other blocks of the cluster."""
        from .spaces import CLUSTER_SHIFT, rank_named

        size = self.engine.cluster_size
        block = self.block_of_lane[sel.lanes]
        rank = rank_named(address, block % size)
        offset = address & ((1 << CLUSTER_SHIFT) - 1)
        remote = rank >= 0
        bad = (offset + width > self.memory.shared_bytes) | (address < 0) | (rank >= self.engine.cluster_size)
        if bad.any():
            where = int(np.flatnonzero(bad)[0])
            at = int(address[where])
            past = int(offset[where]) + width - self.memory.shared_bytes
            self.hazard(
                "out-of-bounds",
                f"{width}-byte shared access at {at:#x}, "
                f"{self.nearest_shared(int(offset[where]))}; it ends {past} bytes past "
                f"the {self.memory.shared_bytes} bytes of the block"
                if past > 0
                else f"shared address {at:#x} names no block of the cluster",
                access.instruction,
                int(sel.index[where]),
                at,
            )
            self.stop()
        target = np.where(remote, block // size * size + rank, block)
        if remote.any():
            self.check_running(access.instruction, sel.index, target)
        return target * self.memory.stride + offset

    def check_running(self, instruction: Any, lanes: Any, blocks: Any) -> None:
        """Report an access of lanes to shared memory of blocks that have ended."""
        if self.live[self.exists].all():
            return
        running = np.zeros(self.block_count, bool)
        running[self.block_of_warp[self.live_warps.any(axis=1)]] = True
        ended = ~running[blocks]
        if ended.any():
            where = int(np.flatnonzero(ended)[0])
            self.hazard(
                "out-of-bounds",
                f"shared memory of block {self.block_coordinates(int(blocks[where]))} of the "
                "cluster, which has ended",
                instruction,
                int(lanes[where]),
            )
            self.stop()

    def nearest_shared(self, offset: int) -> str:
        """Words for where a shared offset lies."""
        best: Any = None
        for place in self.kernel.symbols.values():
            if place.space == "shared":
                size = self.memory.shared_bytes - place.address if place.dynamic else place.size
                gap = max(place.address - offset, offset - (place.address + size) + 1, 0)
                if best is None or gap < best[0]:
                    best = (gap, place, size)
        if best is None:
            return "the block has no shared variable"
        return f"nearest variable {best[1].name} (offset {best[1].address}, {best[2]} bytes)"

    # -- reports -----------------------------------------------------------------------------------------------

    def hazard(
        self, kind: str, message: str, instruction: Any, lane: int | None, address: int | None = None
    ) -> None:
        """Report a hazard of a lane of this batch."""
        block = thread = None
        if lane is not None:
            block = self.block_coordinates(int(self.block_of_lane[lane]))
            thread = self.thread_coordinates(int(self.thread_of_lane[lane]))
        self.engine.report(kind, message, instruction, block, thread, address)

    def stop(self) -> None:
        """End the launch."""
        raise Stop
