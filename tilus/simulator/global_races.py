"""Global memory's shadow: races between blocks, and between warps of a block, through global memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .selection import Selection

_STRONG = 1 << 31
_BUDGET = 256 << 20


class Shadow:
    """Last write and last reads of each cell of an allocation."""

    __slots__ = ("grain", "read", "reader", "shift", "writer", "written")

    def __init__(self, size: int, grain: int) -> None:
        self.grain = grain
        self.shift = grain.bit_length() - 1
        cells = (size + grain - 1) // grain
        self.written = np.zeros(cells, np.uint32)
        self.writer = np.zeros(cells, np.uint32)
        self.read = np.zeros(cells, np.uint32)
        self.reader = np.zeros(cells, np.uint32)


class GlobalRaces:
    """The shadows of a launch."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.grain = engine.kernel.global_grain
        # A compare-and-swap loop begins with a plain read, which the swap then confirms.
        self.has_cas = engine.kernel.has_cas
        self.shadows: dict[int, Shadow | None] = {}
        self.spent = 0
        self.unchecked: list[str] = []

    def shadow(self, allocation: Any) -> Shadow | None:
        """The shadow of an allocation; None where it would take too much memory."""
        found: Any = self.shadows.get(allocation.base, self)
        if found is self:
            cost = allocation.size // self.grain * 16
            if self.spent + cost > _BUDGET:
                self.unchecked.append(allocation.name)
                found = None
            else:
                self.spent += cost
                found = Shadow(allocation.size, self.grain)
            self.shadows[allocation.base] = found
        return found

    def _cells(self, shadow: Shadow, offset: Any, width: int) -> Any:
        first = offset >> shadow.shift
        if width <= shadow.grain:
            return first
        # NumPy is fastest along the axis that is contiguous, and the accesses are many.
        return (first + np.arange(width >> shadow.shift)[:, None]).T

    def _identity(self, state: Any, sel: Selection) -> Any:
        """A number for each active lane that is unique in the launch: block and thread."""
        return state.global_thread[sel.lanes]

    def read(self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any) -> None:
        """Lanes read."""
        if allocation.readonly:
            return
        shadow = self.shadow(allocation)
        if shadow is None:
            return
        cells = self._cells(shadow, offset, access.width)
        who = self._identity(state, sel)
        if cells.ndim > 1:
            who = who[:, None]
        if access.strong:
            if state.order.acquired:
                # A strong read after one that saw a release is taken to be ordered as if a fence stood between.
                state.order.take_pending(sel)
            self._strong(state, access, sel, allocation, offset, True, False)
        now = self.engine.tick(access.instruction)
        written = shadow.written[cells]
        if int(written.max()) > 0:
            self._against_write(state, access, sel, allocation, shadow, cells, written, who, "reads", None)
        if access.strong:
            return
        shadow.read[cells] = now
        shadow.reader[cells] = who

    def write(
        self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any, values: Any
    ) -> None:
        """Lanes are about to write."""
        shadow = self.shadow(allocation)
        if shadow is None:
            return
        cells = self._cells(shadow, offset, access.width)
        who = self._identity(state, sel)
        if cells.ndim > 1:
            who = who[:, None]
        if access.strong:
            self._strong(state, access, sel, allocation, offset, False, True)
        now = self.engine.tick(access.instruction)
        written = shadow.written[cells]
        if int(written.max()) > 0:
            view = allocation.view(
                np.dtype(np.uint64) if access.type.bits == 128 else access.type.dtype,
                2 if access.type.bits == 128 else access.count,
            )
            same = view[offset // access.width] == values
            if np.ndim(same) > 1:
                same = same.all(axis=1)
            self._against_write(state, access, sel, allocation, shadow, cells, written, who, "writes", same)
        read = shadow.read[cells]
        if int(read.max()) > 0:
            self._against_read(state, access, sel, allocation, shadow, cells, read, who, "writes")
        shadow.written[cells] = now
        shadow.writer[cells] = who | np.uint32(_STRONG) if access.strong else who
        if not access.strong and np.ndim(values):
            clash = (shadow.writer[cells] & np.uint32(_STRONG - 1)) != who
            if clash.any():
                self._same_instruction(state, access, sel, allocation, offset, values)

    def atomic(self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any) -> None:
        """Lanes do an atomic operation."""
        shadow = self.shadow(allocation)
        if shadow is None:
            return
        cells = self._cells(shadow, offset, access.width)
        who = self._identity(state, sel)
        if cells.ndim > 1:
            who = who[:, None]
        now = self.engine.tick(access.instruction)
        written = shadow.written[cells]
        if int(written.max()) > 0:
            self._against_write(state, access, sel, allocation, shadow, cells, written, who, "updates", None)
        read = shadow.read[cells]
        if int(read.max()) > 0 and not self.has_cas:
            self._against_read(state, access, sel, allocation, shadow, cells, read, who, "updates")
        shadow.written[cells] = now
        shadow.writer[cells] = who | np.uint32(_STRONG)
        self._strong(state, access, sel, allocation, offset, True, True)

    def _strong(
        self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any, reads: bool, writes: bool
    ) -> None:
        engine = self.engine
        if engine.locations or state.order.released or access.order in ("release", "acq_rel"):
            state.order.strong(sel, ("global", allocation.base), offset, access, reads, writes)

    # -- slow path ---------------------------------------------------------------------------------------------

    def _unordered(self, state: Any, sel: Selection, cells: Any, times: Any, other: Any, who: Any) -> Any:
        """Where an earlier access of thread ``other`` at ``times`` is not ordered before this one."""
        engine = self.engine
        order = state.order
        bad = (times > 0) & (other != who)
        if not bad.any():
            return bad
        per_block = state.warps * 32
        position = np.nonzero(bad)
        rows = (sel.index >> 5)[position[0]]
        others = other[position].astype(np.int64)
        when = times[position].astype(np.int64)
        blocks, warps = others // per_block, others % per_block >> 5
        mine = state.blocks[state.block_of_warp[rows]]
        result = np.ones(len(rows), bool)
        local = blocks == mine
        if state.engine.cluster_size > 1:
            rank = engine.rank_of_block
            same_cluster = engine.cluster_of_block[blocks] == engine.cluster_of_block[mine]
            agents = rank[blocks] * state.warps + warps
            local = same_cluster
        else:
            agents = warps
        if local.any():
            result[local] = when[local] > order.knows(rows[local], agents[local])
        far = ~local
        if far.any() and order.remote:
            for i in np.flatnonzero(far):
                if order.ordered_remote(int(rows[i]), int(blocks[i]), int(warps[i]), int(when[i])):
                    result[i] = False
        bad[position] = result
        return bad

    def _against_write(
        self,
        state: Any,
        access: Any,
        sel: Selection,
        allocation: Any,
        shadow: Shadow,
        cells: Any,
        written: Any,
        who: Any,
        verb: str,
        same: Any,
    ) -> None:
        writer = shadow.writer[cells]
        other = writer & np.uint32(_STRONG - 1)
        bad = self._unordered(state, sel, cells, written, other, who)
        if access.strong or (self.has_cas and verb == "reads"):
            bad &= (writer & np.uint32(_STRONG)) == 0
        if same is not None:
            bad &= ~(same[:, None] if cells.ndim > 1 else same)
        if bad.any():
            self._report(state, access, sel, allocation, shadow, cells, bad, other, written, verb, "wrote")

    def _against_read(
        self,
        state: Any,
        access: Any,
        sel: Selection,
        allocation: Any,
        shadow: Shadow,
        cells: Any,
        read: Any,
        who: Any,
        verb: str,
    ) -> None:
        other = shadow.reader[cells]
        bad = self._unordered(state, sel, cells, read, other, who)
        if bad.any():
            self._report(state, access, sel, allocation, shadow, cells, bad, other, read, verb, "read")

    def _report(
        self,
        state: Any,
        access: Any,
        sel: Selection,
        allocation: Any,
        shadow: Shadow,
        cells: Any,
        bad: Any,
        other: Any,
        times: Any,
        verb: str,
        did: str,
    ) -> None:
        from .races import _where

        at = tuple(np.argwhere(bad)[0])
        thread = int(other[at])
        per_block = state.warps * 32
        gx, gy, _ = self.engine.grid
        block = thread // per_block
        coordinates = (block % gx, block // gx % gy, block // (gx * gy))
        inside = state.thread_coordinates(thread % per_block)
        earlier = self.engine.instruction_at(int(times[at]))
        offset = int(cells[at]) * shadow.grain
        state.hazard(
            "global-race",
            f"{verb} global memory that block {coordinates} thread {inside} "
            f"{did}{_where(earlier)} with nothing ordering the "
            f"two (byte {offset} of {allocation.name})",
            access.instruction,
            int(sel.index[int(at[0])]),
            allocation.base + offset,
        )

    def _same_instruction(
        self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any, values: Any
    ) -> None:
        order = np.argsort(offset, kind="stable")
        places, ordered = offset[order], values[order]
        differ = ordered[1:] != ordered[:-1]
        if differ.ndim > 1:
            differ = differ.any(axis=1)
        bad = np.flatnonzero((places[1:] == places[:-1]) & differ)
        if len(bad):
            lane = int(sel.index[order[bad[0] + 1]])
            first = int(sel.index[order[bad[0]]])
            who = state.thread_coordinates(int(state.thread_of_lane[first]))
            where = state.block_coordinates(int(state.block_of_lane[first]))
            at = int(places[bad[0]])
            state.hazard(
                "global-race",
                f"writes global memory that block {where} thread {who} writes with another value "
                f"by the same instruction "
                f"(byte {at} of {allocation.name})",
                access.instruction,
                lane,
                allocation.base + at,
            )
