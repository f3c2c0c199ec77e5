"""``cp.async``: copies that arrive in shared memory only at the wait which guarantees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import AddressSource, Decoder
from .memory import Access, take_hints
from .memory_unit import gather, scatter
from .operands import Constant
from .operations import Lane, Operation
from .selection import Selection
from .types import BITS_OF_WIDTH, TYPES, ScalarType

_ROWS: dict[int, tuple[Any, int]] = {
    4: (np.dtype(np.uint32), 1),
    8: (np.dtype(np.uint64), 1),
    16: (np.dtype(np.uint64), 2),
}


class PendingCopy:
    """One executed ``cp.async`` whose data has not arrived for some lanes."""

    __slots__ = ("copy", "group", "index", "left", "sel", "values")

    def __init__(self, copy: Any, sel: Selection, index: Any, values: Any, group: Any) -> None:
        self.copy = copy
        self.sel = sel
        self.index = index
        self.values = values
        self.group = group
        self.left = np.ones(sel.n, bool)


class CopyQueue:
    """The outstanding ``cp.async`` of a batch, in order of issue, and each lane's count of committed groups."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.pending: list[PendingCopy] = []
        self.committed = np.zeros(state.lane_count, np.int64)

    def issue(self, copy: Any, sel: Selection, index: Any, values: Any) -> None:
        """Lanes start a copy; it belongs to the group that they commit next."""
        self.pending.append(PendingCopy(copy, sel, index, values, self.committed[sel.lanes].copy()))

    def commit(self, sel: Selection) -> None:
        """Lanes close their group."""
        self.committed[sel.lanes] += 1

    def wait(self, sel: Selection, keep: int | None) -> None:
        """Let copies arrive: all groups but the newest ``keep``; None also what is not committed yet."""
        if not self.pending:
            return
        if keep is None:
            limit = np.full(self.state.lane_count, -1, np.int64)
            limit[sel.lanes] = np.iinfo(np.int64).max
        else:
            limit = np.full(self.state.lane_count, -1, np.int64)
            limit[sel.lanes] = self.committed[sel.lanes] - keep
        kept = []
        for entry in self.pending:
            ready = entry.left & (entry.group < limit[entry.sel.lanes])
            if ready.any():
                self.arrive(entry, ready)
                entry.left &= ~ready
                if not entry.left.any():
                    continue
            kept.append(entry)
        self.pending = kept

    def arrive_now(self, sel: Selection, entries: list[PendingCopy]) -> None:
        """Let given copies arrive for some lanes (``cp.async.mbarrier.arrive``)."""
        chosen = np.zeros(self.state.lane_count, bool)
        chosen[sel.lanes] = True
        for entry in entries:
            ready = entry.left & chosen[entry.sel.lanes]
            if ready.any():
                self.arrive(entry, ready)
                entry.left &= ~ready
        self.pending = [entry for entry in self.pending if entry.left.any()]

    def arrive(self, entry: PendingCopy, ready: Any) -> None:
        """Write the data of some lanes."""
        state = self.state
        width = entry.copy.width
        view = state.memory.shared_view(*_ROWS[width])
        if ready.all():
            index, values, sel = entry.index, entry.values, entry.sel
        else:
            index, values, sel = entry.index[ready], entry.values[ready], entry.sel.subset(ready)
        scatter(view, index // width, values)
        state.engine.progress += 1
        if state.races is not None:
            state.races.arrived(entry.copy, sel, index, width)


class CopyAsync(Access):
    """``cp.async.ca`` and ``.cg``."""

    def __init__(
        self,
        type: ScalarType,
        width: int,
        target: AddressSource,
        source: AddressSource,
        size: Any,
        ignore: Any,
    ) -> None:
        super().__init__("global", type, 1, source)
        self.width = width
        self.target = target
        self.size = size
        self.ignore = ignore
        self.reads = tuple(s for s in (target, source, size, ignore) if s is not None)
        self.row = _ROWS[width]

    @property
    def touches(self) -> tuple[str, ...]:
        """It reads global and writes shared memory."""
        return ("shared", "global")

    def execute(self, state: Any, sel: Selection) -> None:
        memory = state.memory
        dtype, count = self.row
        address = self.address.get(state, sel)
        width = self.width
        sizes: Any = None
        if self.size is not None:
            sizes = np.broadcast_to(self.size.get(state, sel), (sel.n,)).astype(np.int64)
            if (sizes > width).any():
                where = int(np.flatnonzero(sizes > width)[0])
                state.hazard(
                    "illegal-instruction",
                    f"src-size {int(sizes[where])} is larger than cp-size {width}",
                    self.instruction,
                    int(sel.index[where]),
                )
                state.stop()
        elif self.ignore is not None:
            sizes = np.where(self.ignore.get(state, sel), 0, width)
        if sizes is None or (sizes == width).all():
            values = self._fetch(state, sel, address)
        else:
            values = np.zeros((sel.n, count) if count > 1 else sel.n, dtype)
            reading = sizes > 0
            if reading.any():
                values = self._fetch_partial(state, sel, address, sizes, values)
        target = self.target.get(state, sel)
        index = memory.shared_index(self, sel, target, width)
        state.engine.counters.shared_access(self, sel, target, width)
        if state.races is not None:
            state.races.issue(self, sel, index, width)
        state.copies.issue(self, sel, index, values)

    def _fetch(self, state: Any, sel: Selection, address: Any) -> Any:
        dtype, count = self.row
        parts = state.memory.locate(self, sel, address, self.width, False)
        engine = state.engine
        engine.counters.global_access(self, sel, address, self.width, False)
        if parts[0][1] is None:
            allocation, _, offset = parts[0]
            if engine.races is not None:
                engine.races.read(state, self, sel, allocation, offset)
            return gather(allocation.view(dtype, count), offset // self.width)
        values = np.zeros((sel.n, count) if count > 1 else sel.n, dtype)
        for allocation, mask, offset in parts:
            if engine.races is not None:
                engine.races.read(state, self, sel.subset(mask), allocation, offset)
            values[mask] = gather(allocation.view(dtype, count), offset // self.width)
        return values

    def _fetch_partial(self, state: Any, sel: Selection, address: Any, sizes: Any, values: Any) -> Any:
        """Only ``src-size`` bytes are read; the rest is zero."""
        raw = values.view(np.uint8).reshape(sel.n, self.width)
        whole = sizes == self.width
        if whole.any():
            raw[whole] = (
                np.ascontiguousarray(self._fetch(state, sel.subset(whole), address[whole]))
                .view(np.uint8)
                .reshape(-1, self.width)
            )
        for lane in np.flatnonzero((sizes > 0) & ~whole):
            size = int(sizes[lane])
            allocation = state.engine.globals.find(int(address[lane]))
            if allocation is None or int(address[lane]) + size > allocation.end:
                state.memory._fail(
                    self,
                    sel,
                    address,
                    np.arange(sel.n) == lane,
                    "out-of-bounds",
                    f"{size}-byte read of global memory, {state.engine.globals.nearest(int(address[lane]))}",
                )
            start = int(address[lane]) - allocation.base
            raw[lane, :size] = allocation.data[start : start + size]
        return values


class _Group(Lane):
    def __init__(self, kind: str, keep: int | None) -> None:
        super().__init__()
        self.kind, self.keep = kind, keep

    def execute(self, state: Any, sel: Selection) -> None:
        if self.kind == "commit":
            state.copies.commit(sel)
        else:
            state.copies.wait(sel, self.keep)


def _decode_cp(d: Decoder) -> Operation:
    if d.flag("reduce"):
        from .bulk_copy import decode_reduce

        return decode_reduce(d)
    if not d.flag("async"):
        raise d.fail("unsupported copy instruction")
    if d.mods[:1] == ["bulk"]:
        from .bulk_copy import decode_bulk

        return decode_bulk(d)
    if d.flag("commit_group"):
        return _Group("commit", None)
    if d.flag("wait_all"):
        return _Group("wait", None)
    if d.flag("wait_group"):
        d.count(1)
        return _Group("wait", d.immediate(d.operands[0]))
    if d.flag("mbarrier"):
        from .mbarrier import decode_copy_arrival

        return decode_copy_arrival(d)
    cache = d.take("ca", "cg")
    hinted = "L2::cache_hint" in d.mods
    take_hints(d)
    if d.take("shared", "shared::cta") is None or d.take("global") is None or cache is None:
        raise d.fail("cp.async copies .ca or .cg from .global to .shared")
    operands = list(d.operands)
    if hinted:
        operands.pop()
    width = d.immediate(operands[2])
    if width not in (4, 8, 16) or (cache == "cg" and width != 16):
        raise d.fail(f"cp-size {width} is not allowed")
    size = ignore = None
    if len(operands) > 3:
        extra = operands[3]
        register = d.scope.register(getattr(extra, "text", ""))
        if register is not None and register[0] == 1:
            ignore = d.predicate(extra)
        elif type(extra).__name__ == "Negated":
            ignore = d.predicate(extra)
        else:
            size = d.source(extra, TYPES["u32"])
            if isinstance(size, Constant) and int(size.value) == width:
                size = None
    if len(operands) > 4:
        raise d.fail("too many operands")
    element = BITS_OF_WIDTH[min(width, 8) * 8]
    return CopyAsync(element, width, d.address(operands[0]), d.address(operands[1]), size, ignore)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"cp": _decode_cp}
