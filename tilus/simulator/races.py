"""Shared memory's shadow: who touched each cell last, and whether anything orders the next access after it.

A cell is the kernel's smallest shared access. For each: time and thread of the last write, time of the last read
by anyone and by each warp. Most accesses are cleared by one comparison with the threshold of their warps.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .hazards import place_of
from .matrix import MatrixAccess
from .memory import Load
from .memory_unit import gather, scatter
from .order import SHARED
from .poison import Unwritten
from .selection import Selection
from .types import TYPES

PENDING = 0xFFFFFFFF
_STRONG = 1 << 30
_ASYNC = 1 << 29
_THREAD = _ASYNC - 1
_MOST_RECENT = 128


class OpenRead:
    """Cells ``[n, k]`` that the asynchronous proxy reads for ``n`` lanes, until it is done for each."""

    __slots__ = ("cells", "lanes", "still")

    def __init__(self, lanes: Any, cells: Any) -> None:
        self.lanes, self.cells = lanes, cells
        self.still = np.ones(len(lanes), bool)


class SharedRaces:
    """The shadow of a batch's shared memory."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.engine = state.engine
        self.order = state.order
        self.grain = state.kernel.shared_grain
        self.shift = self.grain.bit_length() - 1
        self.cells_per_block = state.memory.stride // self.grain
        cells = self.cells_per_block * state.block_count
        self.agents = state.order.agents
        self.written = np.zeros(cells, np.uint32)
        self.writer = np.zeros(cells, np.uint32)
        self.last_read = np.zeros(cells, np.uint32)
        self.reader = np.zeros(cells, np.uint16)
        self.read_by = np.zeros((state.order.readers, cells), np.uint32)
        self.total = cells
        self.read_flat = self.read_by.reshape(-1)
        self.open_reads: list[OpenRead] = []
        # Reads of which the tables above do not know yet, oldest first: time, selection, byte indices and width.
        self.recent_reads: list[tuple[int, Selection, Any, int]] = []
        self.everyone = Selection(0, state.warp_count)
        self.newest_read = 0
        self.generic_writes = False
        # A compare-and-swap loop begins with a plain read, which the swap then confirms.
        self.has_cas = state.kernel.has_cas
        rank = state.block_of_lane % state.engine.cluster_size
        self.thread = (rank * state.warps * 32 + state.thread_of_lane).astype(np.uint32)
        self.agent = self.thread >> 5
        self.agent_base = self.agent.astype(np.int64) * cells
        self.row_of_lane = np.arange(state.lane_count) >> 5

    def cells(self, index: Any, width: int) -> Any:
        """Cells of each access: ``[n]`` or ``[n, k]``."""
        first = index >> self.shift
        if width <= self.grain:
            return first
        # NumPy is fastest along the axis that is contiguous, and the accesses are many.
        return (first + np.arange(width >> self.shift)[:, None]).T

    def _by_lane(self, values: Any, cells: Any) -> Any:
        return values[:, None] if cells.ndim > 1 else values

    def _rows(self, table: Any, width: int) -> Any:
        """A table with a row for each piece of memory as wide as an access; accesses are aligned."""
        return table if width <= self.grain else table.reshape(-1, width >> self.shift)

    def _row(self, index: Any, width: int) -> Any:
        return index >> max(self.shift, width.bit_length() - 1)

    def _mark(self, table: Any, width: int, row: Any, values: Any) -> None:
        """Set the cells of each access to a number, or to that of its lane."""
        rows = self._rows(table, width)
        if rows.ndim > 1:
            values = np.broadcast_to(np.reshape(values, (-1, 1)), (len(row), rows.shape[1]))
        scatter(rows, row, values)

    # -- ordinary accesses -------------------------------------------------------------------------------------

    def read(self, access: Any, sel: Selection, index: Any, width: int) -> None:
        """Lanes read."""
        written = gather(self._rows(self.written, width), self._row(index, width))
        now = self.engine.tick(access.instruction)
        if int(written.max()) > self.order.threshold(sel):
            self._check_against_write(access, sel, self.cells(index, width), written, "reads", None)
        if int(written.min()) == 0:
            self._uninitialized(access, sel, index, self.cells(index, width), written)
        if access.strong:
            self._strong(access, sel, index, True, False)
            return
        self.order.touched(sel, now, False)
        self.recent_reads.append((now, sel, index, width))
        if len(self.recent_reads) > _MOST_RECENT:
            self._settle_reads()

    def _settle_reads(self) -> None:
        """Bring the tables of reads up to date; reads that happen before whatever any warp does next are left out."""
        recent = self.recent_reads
        if not recent:
            return
        self.recent_reads = []
        floor = self.order.threshold(self.everyone, reads=True)
        if recent[-1][0] <= floor:
            return
        for now, sel, index, width in recent:
            if now > floor:
                cells = self.cells(index, width)
                self.last_read[cells] = now
                self.reader[cells] = self._by_lane(self.thread[sel.lanes], cells)
                self.read_flat[cells + self._by_lane(self.agent_base[sel.lanes], cells)] = now
        self.newest_read = max(self.newest_read, recent[-1][0])
        for entry in self.open_reads:
            self.last_read[entry.cells[entry.still]] = PENDING

    def _reads_matter(self, sel: Any) -> bool:
        """Whether there are reads that do not happen before the next step of all these warps."""
        self._settle_reads()
        return bool(self.newest_read > self.order.threshold(sel, reads=True))

    def _check_reads(self, access: Any, sel: Any, cells: Any, verb: str) -> None:
        """Earlier reads of cells must be ordered before their next change."""
        read = self.last_read[cells]
        if int(read.max()) > self.order.threshold(sel, reads=True):
            self._check_against_reads(access, sel, cells, read, verb)

    def write(
        self, access: Any, sel: Selection, index: Any, width: int, view: Any, place: Any, values: Any
    ) -> None:
        """Lanes are about to write ``values`` to ``view[place]``."""
        row = self._row(index, width)
        threshold = self.order.threshold(sel)
        written = gather(self._rows(self.written, width), row)
        now = self.engine.tick(access.instruction)
        if int(written.max()) > threshold:
            old = view[place]
            same = old == values
            if same.ndim > 1:
                same = same.all(axis=1)
            near = _same_but_rounding(old, np.broadcast_to(np.asarray(values, old.dtype), old.shape))
            self._check_against_write(access, sel, self.cells(index, width), written, "writes", same, near)
        if self._reads_matter(sel):
            self._check_reads(access, sel, self.cells(index, width), "writes")
        self._record_write(access, sel, row, width, now)
        writer = gather(self._rows(self.writer, width), row)
        clash = (writer & _THREAD) != self._by_lane(self.thread[sel.lanes], writer)
        if clash.any() and not access.strong:
            self._same_instruction(access, sel, self.cells(index, width), clash, place, values)
        if access.strong:
            self._strong(access, sel, index, False, True)

    def _record_write(self, access: Any, sel: Selection, row: Any, width: int, now: int) -> None:
        self.generic_writes = True
        self.order.touched(sel, now, True)
        self._mark(self.written, width, row, now)
        mark = self.thread[sel.lanes]
        if access.strong:
            mark = mark | np.uint32(_STRONG)
        self._mark(self.writer, width, row, mark)

    def forget(self, index: Any, missing: Any) -> None:
        """Some bytes ``[n, width]`` of what was written have no value: their cells count as never written."""
        cells = self.cells(index, missing.shape[1]).reshape(len(index), -1)
        self.written[cells[missing.reshape(*cells.shape, -1).any(axis=2)]] = 0

    def unwritten(self, index: Any, width: int) -> Any:
        """Whether cells of accesses count as never written: ``[n, k]``."""
        cells = self.cells(index, width)
        return (self._own(cells) & (self.written[cells] == 0)).reshape(len(index), -1)

    def _own(self, cells: Any) -> Any:
        """Whether cells are the kernel's; the system has initialised what is its own."""
        if not self.engine.reserved_bytes:
            return True
        first = (self.engine.shared_bytes - self.engine.reserved_bytes) // self.grain
        return cells % self.cells_per_block < first

    def atomic(self, access: Any, sel: Selection, index: Any, width: int) -> None:
        """Lanes do an atomic operation."""
        cells = self.cells(index, width)
        threshold = self.order.threshold(sel)
        written = self.written[cells]
        now = self.engine.tick(access.instruction)
        if int(written.max()) > threshold:
            self._check_against_write(access, sel, cells, written, "updates", None)
        if not written.all():
            self._uninitialized(access, sel, index, cells, written)
        if not self.has_cas and self._reads_matter(sel):
            self._check_reads(access, sel, cells, "updates")
        self._record_write(access, sel, self._row(index, width), width, now)
        self._strong(access, sel, index, True, True)

    def _strong(self, access: Any, sel: Selection, index: Any, reads: bool, writes: bool) -> None:
        if self._needs_keys(access, writes):
            self.order.strong(sel, ("shared", id(self.state)), index, access, reads, writes)

    def _needs_keys(self, access: Any, writes: bool) -> bool:
        return bool(
            self.engine.locations or self.order.fenced or (writes and access.order in ("release", "acq_rel"))
        )

    # -- asynchronous copies -----------------------------------------------------------------------------------

    def issue(self, copy: Any, sel: Selection, index: Any, width: int) -> None:
        """``cp.async`` begins to write: from now on the cells belong to it until it has arrived."""
        row = self._row(index, width)
        threshold = self.order.threshold(sel)
        written = gather(self._rows(self.written, width), row)
        self.engine.tick(copy.instruction)
        self.generic_writes = True
        if int(written.max()) > threshold:
            self._check_against_write(copy, sel, self.cells(index, width), written, "copies to", None)
        if self._reads_matter(sel):
            self._check_reads(copy, sel, self.cells(index, width), "copies to")
        self._mark(self.written, width, row, PENDING)
        self._mark(self.writer, width, row, self.thread[sel.lanes])

    def arrived(self, copy: Any, sel: Selection, index: Any, width: int) -> None:
        """The data is there; it counts as a write of the thread that waited."""
        now = self.engine.tick(copy.instruction)
        self.order.touched(sel, now, True)
        self._mark(self.written, width, self._row(index, width), now)

    def async_write(self, operation: Any, lanes: Any, index: Any, slots: Any) -> None:
        """The asynchronous proxy begins to write cells ``index`` ``[G, n]`` for lanes ``[G]``."""
        cells = self._chunk_cells(index)
        sel = _Copies(lanes)
        self._check_async(operation, sel, cells, "overwrites")
        self.engine.tick(operation.instruction)
        if self._reads_matter(sel):
            self._check_reads(operation, sel, cells, "overwrites")
        self.written[cells] = PENDING
        channels = np.array([self.order.channel_of(int(s)) for s in slots], np.uint32)
        self.writer[cells] = (channels * np.uint32(32))[:, None]

    def async_words(self, operation: Any, lanes: Any, index: Any, slots: Any, width: int) -> None:
        """``st.async``: generic-proxy writes of a few bytes that complete at an mbarrier."""
        cells = self.cells(index, width)
        cells = cells[:, None] if cells.ndim == 1 else cells
        sel = _Copies(lanes)
        threshold = int(self.order.threshold(sel))
        written = self.written[cells]
        self.engine.tick(operation.instruction)
        if operation.reduction is None and int(written.max()) > threshold:
            self._check_against_write(operation, sel, cells, written, "overwrites", None)
        if self._reads_matter(sel):
            self._check_reads(operation, sel, cells, "overwrites")
        self.written[cells] = PENDING
        channels = np.array([self.order.channel_of(int(s)) for s in slots], np.uint32)
        self.writer[cells] = (channels * np.uint32(32))[:, None]

    def async_arrived(self, operation: Any, index: Any) -> None:
        """The data of asynchronous writes is there."""
        cells = self._chunk_cells(index) if index.ndim > 1 else self.cells(index, operation.width)
        self.written[cells] = self.engine.tick(operation.instruction)

    def async_read(
        self, operation: Any, lanes: Any, index: Any, holds: bool, parts: Any = None
    ) -> OpenRead | None:
        """The asynchronous proxy reads cells; with ``holds`` until `async_read_done`.

        ``parts`` are lanes and indices again, by those whose knowledge counts, where these differ from ``lanes``.
        """
        cells = self._chunk_cells(index)
        sel = _Copies(lanes)
        now = self.engine.tick(operation.instruction)
        written = self.written[cells]
        if not written.all():
            self._uninitialized(operation, sel, index, cells, written)
        for some, places in parts or [(lanes, index)]:
            self._check_async(operation, _Copies(some), self._chunk_cells(places), "reads")
        if not holds:
            self._record_read(lanes, cells, now, self.agent_base[lanes])
            return None
        self._settle_reads()
        self.newest_read = PENDING
        self.last_read[cells] = PENDING
        self.reader[cells] = self.thread[lanes][:, None]
        opened = OpenRead(lanes, cells)
        self.open_reads.append(opened)
        return opened

    def async_read_done(self, operation: Any, opened: OpenRead, ready: Any, group: bool = False) -> None:
        """The asynchronous proxy has read what some lanes (or their warpgroups) asked it to."""
        opened.still &= ~ready
        self.open_reads = [entry for entry in self.open_reads if entry.still.any()]
        lanes, now = opened.lanes[ready], self.engine.tick(operation.instruction)
        base = self.agent_base[lanes]
        if group:
            agents, now = self.order.group_read(self.row_of_lane[lanes])
            base = agents * self.total
        self._record_read(lanes, opened.cells[ready], now, base)
        for entry in self.open_reads:
            self.last_read[entry.cells[entry.still]] = PENDING

    def _by_cp_async(self, time: int) -> bool:
        instruction = self.engine.instruction_at(time)
        return instruction is not None and instruction.opcode.startswith("cp.async.c")

    def _record_read(self, lanes: Any, cells: Any, now: int, base: Any) -> None:
        self.order.touched(_Copies(lanes), now, False)
        self._settle_reads()
        self.newest_read = max(self.newest_read, now)
        self.last_read[cells] = now
        self.reader[cells] = self.thread[lanes][:, None]
        self.read_flat[cells + base[:, None]] = now

    def _chunk_cells(self, index: Any) -> Any:
        cells = self.cells(index.reshape(-1), 16)
        return cells.reshape(len(index), -1)

    def _check_async(self, operation: Any, sel: Any, cells: Any, verb: str) -> None:
        """Earlier writes must be ordered before, and those of threads made visible to the asynchronous proxy."""
        written = self.written[cells]
        if int(written.max()) > self.order.threshold(sel):
            self._check_against_write(operation, sel, cells, written, verb, None)
        # Overwriting needs no proxy fence here: order among threads is what keeps the two writes apart.
        if verb != "reads" or not self.generic_writes:
            return
        thread = self.writer[cells] & np.uint32(_THREAD)
        agent = (thread >> np.uint32(5)).astype(np.int64)
        generic = (agent < self.agents) & (written > 0) & (written != PENDING)
        if not generic.any():
            return
        rows = self._by_lane(self.row_of_lane[sel.lanes], cells)
        agent = np.where(generic, agent, 0)
        bad = generic & (written.astype(np.int64) > self.order.proxied(rows, agent, SHARED))
        if bad.any() and operation.instruction.opcode.startswith("wgmma"):
            # Shipped compilers and libraries let wgmma read what cp.async has copied, once it was waited for.
            times = [time for time in np.unique(written[bad]).tolist() if not self._by_cp_async(time)]
            bad &= np.isin(written, times)
        if bad.any():
            position, cell = self._lane_of(sel, cells, bad)
            other = int(self.writer[cell]) & _THREAD
            earlier = self.engine.instruction_at(int(self.written[cell]))
            self._report(
                "missing-proxy-fence",
                operation,
                sel,
                position,
                cell,
                f"the asynchronous proxy {verb} shared memory that "
                f"{self._thread_name(cell, other)} wrote{place_of(earlier)} with no fence.proxy.async after the write",
            )

    # -- the slow path -----------------------------------------------------------------------------------------

    def _lane_of(self, sel: Any, cells: Any, bad: Any) -> tuple[int, int]:
        """The first bad access: its position among the active lanes, and its cell."""
        at = np.argwhere(bad)[0]
        return int(at[0]), int(cells[tuple(at)])

    def _check_against_write(
        self, access: Any, sel: Any, cells: Any, written: Any, verb: str, same: Any, near: Any = None
    ) -> None:
        pending = written == PENDING
        if pending.any():
            reading = verb == "reads"
            position, cell = self._lane_of(sel, cells, pending)
            owner = int(self.writer[cell]) & _THREAD
            kind = "async-read" if reading else "async-overwrite"
            self._report(
                kind,
                access,
                sel,
                position,
                cell,
                f"{verb} shared memory that an asynchronous copy{self._of_thread(cell, owner)} is still filling; "
                "wait for the copy first",
            )
        suspects = np.nonzero(~pending & (written > self.order.threshold(sel)))
        if len(suspects[0]) == 0:
            return
        lanes = sel.index[suspects[0]]
        writer = self.writer[cells[suspects]]
        thread = writer & np.uint32(_THREAD)
        times = written[suspects].astype(np.int64)
        bad = thread != self.thread[lanes]
        if access.collective:
            # The lanes of the warp begin it together, each after what it did before.
            bad = thread >> np.uint32(5) != self.agent[lanes]
        bad &= times > self.order.knows(self.row_of_lane[lanes], (thread >> np.uint32(5)).astype(np.int64))
        if access.strong or (self.has_cas and verb == "reads"):
            bad &= (writer & np.uint32(_STRONG)) == 0
        if same is not None:
            bad &= ~same[suspects[0]]
        if near is not None and bad.any():
            again = [self.engine.instruction_at(int(time)) is access.instruction for time in times]
            bad &= ~(near[suspects[0]] & np.array(again))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            cell = int(cells[suspects][at])
            earlier = self.engine.instruction_at(int(times[at]))
            self._report(
                "shared-race",
                access,
                sel,
                int(suspects[0][at]),
                cell,
                f"{verb} shared memory that {self._thread_name(cell, int(thread[at]))} "
                f"wrote{place_of(earlier)} with nothing "
                "ordering the two",
            )

    def _check_against_reads(self, access: Any, sel: Any, cells: Any, read: Any, verb: str) -> None:
        pending = read == PENDING
        if pending.any():
            position, cell = self._lane_of(sel, cells, pending)
            owner = int(self.reader[cell])
            self._report(
                "async-overwrite",
                access,
                sel,
                position,
                cell,
                f"{verb} shared memory that an asynchronous operation of {self._thread_name(cell, owner)} may still be "
                "reading; wait for it first",
            )
            read = np.where(pending, 0, read)
        suspects = np.nonzero(read > self.order.threshold(sel, reads=True))
        if len(suspects[0]) == 0:
            return
        lanes = sel.index[suspects[0]]
        rows, cell_numbers, times = self.row_of_lane[lanes], cells[suspects], read[suspects].astype(np.int64)
        agents = self.order.unknown_readers(sel.warp_slice)
        by_agent = self.read_by[agents[:, None], cell_numbers]
        known = self.order.known[0][rows[:, None], agents].T
        own_agent = self.agent[lanes].astype(np.int64)
        bad_agents = (by_agent > known) & (agents[:, None] != own_agent)
        # Within the warp: another lane read since the lanes last met.
        reader = self.reader[cell_numbers].astype(np.int64)
        inside = (reader != self.thread[lanes]) & (reader >> 5 == own_agent) & (times > self.order.own[rows])
        bad = bad_agents.any(axis=0) | inside
        if not bad.any():
            return
        at = int(np.flatnonzero(bad)[0])
        if bad_agents[:, at].any():
            found = int(np.flatnonzero(bad_agents[:, at])[0])
            agent, time = int(agents[found]), int(by_agent[found, at])
            other = int(reader[at]) if agent >= self.agents or int(reader[at]) >> 5 == agent else agent * 32
        else:
            time, other = int(times[at]), int(reader[at])
        earlier = self.engine.instruction_at(time)
        cell = int(cell_numbers[at])
        self._report(
            "shared-race",
            access,
            sel,
            int(suspects[0][at]),
            cell,
            f"{verb} shared memory that {self._thread_name(cell, other)} read{place_of(earlier)} with nothing ordering "
            "the two",
        )

    def _same_instruction(
        self, access: Any, sel: Selection, cells: Any, clash: Any, place: Any, values: Any
    ) -> None:
        if np.ndim(values) == 0:
            return
        order = np.argsort(place, kind="stable")
        sorted_places, sorted_values = place[order], values[order]
        equal_place = sorted_places[1:] == sorted_places[:-1]
        differ = sorted_values[1:] != sorted_values[:-1]
        if differ.ndim > 1:
            differ = differ.any(axis=1)
        replicated = _same_but_rounding(sorted_values[1:], sorted_values[:-1])
        bad = np.flatnonzero(equal_place & differ & ~replicated)
        if len(bad):
            position = int(order[bad[0] + 1])
            other = int(self.thread[sel.index[order[bad[0]]]])
            cell = int(np.ravel(cells[position])[0])
            self._report(
                "shared-race",
                access,
                sel,
                position,
                cell,
                f"writes shared memory that {self._thread_name(cell, other)} writes with another value by the same "
                "instruction",
            )

    def _uninitialized(self, access: Any, sel: Any, index: Any, cells: Any, written: Any) -> None:
        missing = self._own(cells) & (written == 0)
        if not missing.any():
            return
        if isinstance(access, (Load, MatrixAccess)) and self.engine.check_registers:
            if not self.engine.following:
                raise Unwritten(access)
            return
        text = "reads shared memory that nobody has written"
        masks = self.state.poison.shared
        if masks is not None:
            stored = missing & masks.reshape(-1, self.grain)[cells].any(axis=-1)
            if stored.any():
                missing, text = stored, "reads shared memory to which a register without a value was stored"
        position, cell = self._lane_of(sel, cells, missing)
        self._report("uninitialized-shared", access, sel, position, cell, text)
        del index

    def report_unwritten(self, load: Any, lane: int, index: int, use: str) -> None:
        """A value that was loaded from memory that nobody has written decides something."""
        text = f"reads shared memory that nobody has written, and the value is used{use}"
        one = Selection.of(np.array([lane]))
        self._report("uninitialized-shared", load, one, 0, index >> self.shift, text)

    def _of_thread(self, cell: int, thread: int) -> str:
        return "" if thread >= self.agents * 32 else f" of {self._thread_name(cell, thread)}"

    def _thread_name(self, cell: int, thread: int) -> str:
        state = self.state
        if thread >= self.agents * 32:
            return "an asynchronous copy"
        per_block = state.warps * 32
        coordinates = state.thread_coordinates(thread % per_block)
        if state.engine.cluster_size == 1:
            return f"thread {coordinates}"
        return f"thread {coordinates} of cluster block {thread // per_block}"

    def _report(self, kind: str, access: Any, sel: Selection, position: int, cell: int, text: str) -> None:
        offset = (cell % self.cells_per_block) * self.grain
        near = self.state.nearest_shared(offset)
        self.state.hazard(
            kind,
            f"{text} (shared offset {offset:#x}, {near})",
            access.instruction,
            int(sel.index[position]),
            offset,
        )


def _same_but_rounding(a: Any, b: Any) -> Any:
    """Whether words are floats, or several narrower ones, that differ by rounding only.

    Compilers let lanes, and warps that hold the same elements, store a replicated result of a reduction, which each
    lane summed in another order; whichever lane wins, the result is right.
    """
    size = a.dtype.itemsize
    result = np.zeros(len(a), bool)
    for type, width in (("bf16", 2), ("f16", 2), ("f32", 4), ("f64", 8)):
        if width <= size and size > 1:
            result |= _close(a, b, type, width < size).reshape(len(a), -1).all(axis=1)
    return result


# What a few roundings may change, of the value and, where sums cancel, of the largest one that is stored beside it;
# and sizes that small integers do not have.
_ROUNDING = {
    "bf16": (2**-5, 2**-6, 1e-20),
    "f16": (2**-8, 2**-9, 2**-10),
    "f32": (1e-3, 2**-20, 1e-20),
    "f64": (1e-3, 2**-48, 1e-20),
}


def _close(a: Any, b: Any, type: str, packed: bool) -> Any:
    bound, beside, least = _ROUNDING[type]
    x, y = (_floats(np.ascontiguousarray(v), type) for v in (a, b))
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.maximum(np.abs(x), np.abs(y))
        difference = np.abs(x - y)
        close = (difference <= bound * size) & (size > least) & (size < 1e20)
        if packed and type in ("bf16", "f16"):
            return close
        largest = np.max(size, where=size < 1e20, initial=0)
        if largest > least:
            close |= difference <= beside * largest
    return close | (x == y)


def _floats(words: Any, type: str) -> Any:
    if type == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if type == "f16":
        return words.view(np.float16).astype(np.float32)
    return words.view(TYPES[type].dtype)


class _Copies:
    """Lanes that issued asynchronous operations, one entry per operation."""

    whole = False

    def __init__(self, lanes: Any) -> None:
        self.lanes = self.index = lanes
        self.n = len(lanes)

    @cached_property
    def warp_slice(self) -> Any:
        """Rows of the per-warp tables."""
        return np.unique(self.index >> 5)
