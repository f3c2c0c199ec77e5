"""Global memory's shadow: races between blocks, and between warps of a block, through global memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from .hazards import place_of
from .order import GLOBAL
from .read_uses import ReadUses
from .selection import Selection

_STRONG = 1 << 31
_ASYNC = 1 << 30  # Written by the asynchronous proxy.
_THREAD = _ASYNC - 1
_BUDGET = 384 << 20


_MOST_RECENT = 1 << 20


class Shadow:
    """Last write and last reads of each cell of an allocation.

    Two readers are kept of each cell, so that a thread which writes what it has read itself still meets the other:
    the last one, and the last one of another warp, rather of another block. Most tensors are either read or written;
    so the tables are made up to date only when somebody writes.
    """

    __slots__ = ("cells", "grain", "read", "reader", "recent", "recent_size", "shift", "writer", "written")

    def __init__(self, size: int, grain: int) -> None:
        self.grain = grain
        self.shift = grain.bit_length() - 1
        self.cells = (size + grain - 1) // grain
        self.written: Any = None
        self.writer: Any = None
        self.read = np.zeros((2, self.cells), np.uint32)
        self.reader = np.zeros((2, self.cells), np.uint32)
        # Reads of which the tables do not know yet, oldest first: time, byte offsets, readers and width.
        self.recent: list[tuple[int, Any, Any, int]] = []
        self.recent_size = 0

    def cells_of(self, offset: Any, width: int) -> Any:
        """Cells of each access: ``[n]`` or ``[n, k]``."""
        first = offset >> self.shift
        if width <= self.grain:
            return first
        # NumPy is fastest along the axis that is contiguous, and the accesses are many.
        return (first + np.arange(width >> self.shift)[:, None]).T

    def note(self, now: int, offset: Any, who: Any, width: int, per_block: int, uses: ReadUses) -> None:
        """Threads read."""
        self.recent.append((now, offset, who, width))
        self.recent_size += len(offset)
        if self.recent_size > _MOST_RECENT:
            self.settle(per_block, uses)

    def settle(self, per_block: int, uses: ReadUses) -> None:
        """Bring the tables of reads up to date, with the reads that somebody uses."""
        recent, self.recent, self.recent_size = self.recent, [], 0
        for now, offset, who, width in recent:
            used = uses.used(uses.engine.instruction_at(now))
            if used is not None:
                kept = used[who % per_block]
                offset, who = offset[kept], who[kept]
                if not len(who):
                    continue
            cells = self.cells_of(offset, width)
            who = np.broadcast_to(who[:, None], cells.shape).reshape(-1) if cells.ndim > 1 else who
            self._settle(now, cells.reshape(-1), who, per_block)

    def _settle(self, now: int, cells: Any, who: Any, per_block: int) -> None:
        old, times = self.reader[0, cells], self.read[0, cells]
        other = (times > 0) & (old >> 5 != who >> 5)
        self.read[0, cells] = now
        self.reader[0, cells] = who
        if other.any():
            # The reader of another block stays rather than another warp of one's own.
            kept = (self.read[1, cells] > 0) & (self.reader[1, cells] // per_block != who // per_block)
            other &= ~(kept & (old // per_block == who // per_block))
            self.read[1, cells[other]] = times[other]
            self.reader[1, cells[other]] = old[other]
        # Threads that read the same cell by the same instruction.
        last = self.reader[0, cells]
        lost = np.flatnonzero(last >> 5 != who >> 5)
        if len(lost):
            far = who[lost] // per_block != last[lost] // per_block
            lost = np.concatenate([lost[~far], lost[far]])
            self.read[1, cells[lost]] = now
            self.reader[1, cells[lost]] = who[lost]

    def writes(self) -> tuple[Any, Any]:
        """Time and thread of the last write of each cell."""
        if self.written is None:
            self.written, self.writer = np.zeros(self.cells, np.uint32), np.zeros(self.cells, np.uint32)
        return self.written, self.writer


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
        self.uses = ReadUses(engine)

    def shadow(self, allocation: Any) -> Shadow | None:
        """The shadow of an allocation; None where it would take too much memory."""
        found: Any = self.shadows.get(allocation.base, self)
        if found is self:
            cost = len(allocation.data) // self.grain * 24
            if self.spent + cost > _BUDGET:
                self.unchecked.append(allocation.name)
                found = None
            else:
                self.spent += cost
                found = Shadow(len(allocation.data), self.grain)
            self.shadows[allocation.base] = found
        return found

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
        who = self._identity(state, sel)
        if access.strong:
            if state.order.acquired:
                # A strong read after one that saw a release is taken to be ordered as if a fence stood between.
                state.order.take_pending(sel)
            self._strong(state, access, sel, allocation, offset, True, False)
        now = self.engine.tick(access.instruction)
        if shadow.written is not None:
            cells = shadow.cells_of(offset, access.width)
            written = shadow.written[cells]
            if int(written.max()) > 0:
                wide = who[:, None] if cells.ndim > 1 else who
                self._against_write(
                    state, access, sel, allocation, shadow, cells, written, wide, "reads", None
                )
                if access.asynchronous and state.order.layers > 1:
                    self._against_proxy(state, access, sel, allocation, shadow, cells, written)
        if not access.strong:
            shadow.note(now, offset, who, access.width, state.warps * 32, self.uses)

    def write(
        self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any, values: Any
    ) -> None:
        """Lanes are about to write."""
        shadow = self.shadow(allocation)
        if shadow is None:
            return
        cells = shadow.cells_of(offset, access.width)
        who = self._identity(state, sel)
        if cells.ndim > 1:
            who = who[:, None]
        if access.strong:
            self._strong(state, access, sel, allocation, offset, False, True)
        now = self.engine.tick(access.instruction)
        last, writer = shadow.writes()
        written = last[cells]
        if int(written.max()) > 0:
            view = allocation.view(
                np.dtype(np.uint64) if access.type.bits == 128 else access.type.dtype,
                2 if access.type.bits == 128 else access.count,
            )
            same = view[offset // access.width] == values
            if np.ndim(same) > 1:
                same = same.all(axis=1)
            self._against_write(state, access, sel, allocation, shadow, cells, written, who, "writes", same)
        self._against_reads(state, access, sel, allocation, shadow, cells, who, "writes")
        last[cells] = now
        writer[cells] = who | np.uint32(_STRONG * access.strong | _ASYNC * access.asynchronous)
        if not access.strong and np.ndim(values):
            clash = (writer[cells] & np.uint32(_THREAD)) != who
            if clash.any():
                self._same_instruction(state, access, sel, allocation, offset, values)

    def atomic(self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any) -> None:
        """Lanes do an atomic operation."""
        shadow = self.shadow(allocation)
        if shadow is None:
            return
        cells = shadow.cells_of(offset, access.width)
        who = self._identity(state, sel)
        if cells.ndim > 1:
            who = who[:, None]
        now = self.engine.tick(access.instruction)
        last, writer = shadow.writes()
        written = last[cells]
        if int(written.max()) > 0:
            self._against_write(state, access, sel, allocation, shadow, cells, written, who, "updates", None)
        if not self.has_cas:
            self._against_reads(state, access, sel, allocation, shadow, cells, who, "updates")
        last[cells] = now
        writer[cells] = who | np.uint32(_STRONG | _ASYNC * access.asynchronous)
        self._strong(state, access, sel, allocation, offset, True, True)

    def _strong(
        self, state: Any, access: Any, sel: Selection, allocation: Any, offset: Any, reads: bool, writes: bool
    ) -> None:
        engine = self.engine
        if engine.locations or state.order.fenced or access.order in ("release", "acq_rel"):
            state.order.strong(sel, ("global", allocation.base), offset, access, reads, writes)

    # -- slow path ---------------------------------------------------------------------------------------------

    def _unordered(self, state: Any, sel: Selection, cells: Any, times: Any, other: Any, who: Any) -> Any:
        """Where an earlier access of thread ``other`` at ``times`` is not ordered before this one."""
        order = state.order
        bad = (times > 0) & (other != who)
        if not bad.any():
            return bad
        position = np.nonzero(bad)
        rows = (sel.index >> 5)[position[0]]
        when = times[position].astype(np.int64)
        blocks, warps, agents, local = self._places(state, rows, other[position])
        result = np.ones(len(rows), bool)
        if local.any():
            result[local] = when[local] > order.knows(rows[local], agents[local])
        far = ~local
        if far.any() and order.remote:
            for i in np.flatnonzero(far):
                if order.ordered_remote(int(rows[i]), int(blocks[i]), int(warps[i]), int(when[i])):
                    result[i] = False
        bad[position] = result
        return bad

    def _places(self, state: Any, rows: Any, threads: Any) -> tuple[Any, Any, Any, Any]:
        """Blocks and warps of threads, their agents, and whether they are in the clusters of the rows."""
        per_block = state.warps * 32
        blocks, warps = threads.astype(np.int64) // per_block, threads % per_block >> 5
        mine = state.blocks[state.block_of_warp[rows]]
        engine = self.engine
        if engine.cluster_size == 1:
            return blocks, warps, warps, blocks == mine
        agents = engine.rank_of_block[blocks] * state.warps + warps
        return blocks, warps, agents, engine.cluster_of_block[blocks] == engine.cluster_of_block[mine]

    def _against_proxy(
        self,
        state: Any,
        access: Any,
        sel: Selection,
        allocation: Any,
        shadow: Shadow,
        cells: Any,
        written: Any,
    ) -> None:
        """What threads of the cluster wrote must have been made visible to the asynchronous proxy that reads it."""
        writer = shadow.writer[cells]
        bad = (written > 0) & (writer & np.uint32(_ASYNC) == 0)
        position = np.nonzero(bad)
        rows = (sel.index >> 5)[position[0]]
        other = writer & np.uint32(_THREAD)
        _, _, agents, local = self._places(state, rows, other[position])
        # Knowledge of other clusters does not tell the proxies apart.
        late = np.zeros(len(rows), bool)
        late[local] = written[position][local] > state.order.proxied(rows[local], agents[local], GLOBAL)
        bad[position] = late
        if bad.any():
            self._report(
                state, access, sel, allocation, shadow, cells, bad, other, written, "reads by the asynchronous proxy",
                "wrote", "missing-proxy-fence",
            )  # fmt: skip

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
        other = writer & np.uint32(_THREAD)
        bad = self._unordered(state, sel, cells, written, other, who)
        if access.strong or (self.has_cas and verb == "reads"):
            bad &= (writer & np.uint32(_STRONG)) == 0
        if same is not None:
            bad &= ~(same[:, None] if cells.ndim > 1 else same)
        if state.order.observed and bad.any():
            self._leave_observed(state, sel, allocation, cells, written, writer, bad)
        if verb == "reads" and bad.any():
            used = self.uses.used(access.instruction)
            if used is not None:
                of_thread = used[state.thread_of_lane[sel.index]]
                bad &= of_thread[:, None] if cells.ndim > 1 else of_thread
        if bad.any():
            self._report(state, access, sel, allocation, shadow, cells, bad, other, written, verb, "wrote")

    def _leave_observed(
        self, state: Any, sel: Selection, allocation: Any, cells: Any, written: Any, writer: Any, bad: Any
    ) -> None:
        """Whoever has seen a flag or a count comes after its write, though that was itself not released."""
        for place in np.argwhere(bad & (writer & np.uint32(_STRONG) != 0)):
            lane = int(place[0])
            first = int(np.ravel(cells[lane])[0]) * self.grain
            seen = state.order.observed.get(
                (int(sel.index[lane]) >> 5, ("global", allocation.base, first)), 0
            )
            bad[tuple(place)] = seen < int(written[tuple(place)])

    def _against_reads(
        self,
        state: Any,
        access: Any,
        sel: Selection,
        allocation: Any,
        shadow: Shadow,
        cells: Any,
        who: Any,
        verb: str,
    ) -> None:
        if shadow.recent:
            shadow.settle(state.warps * 32, self.uses)
        for times, readers in zip(shadow.read, shadow.reader):
            read = times[cells]
            if int(read.max()) == 0:
                return
            other = readers[cells]
            bad = self._unordered(state, sel, cells, read, other, who)
            if bad.any():
                self._report(state, access, sel, allocation, shadow, cells, bad, other, read, verb, "read")
                return

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
        kind: str = "global-race",
    ) -> None:
        at = tuple(np.argwhere(bad)[0])
        thread = int(other[at])
        per_block = state.warps * 32
        gx, gy, _ = self.engine.grid
        block = thread // per_block
        coordinates = (block % gx, block // gx % gy, block // (gx * gy))
        inside = state.thread_coordinates(thread % per_block)
        earlier = self.engine.instruction_at(int(times[at]))
        offset = int(cells[at]) * shadow.grain
        missing = (
            "nothing ordering the two" if kind == "global-race" else "no fence.proxy.async after the write"
        )
        state.hazard(
            kind,
            f"{verb} global memory that block {coordinates} thread {inside} {did}{place_of(earlier)} with {missing} "
            f"(byte {offset} of {allocation.name})",
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
