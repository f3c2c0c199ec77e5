"""``wgmma``: warpgroup matrix multiplication by the asynchronous proxy, and ``setmaxnreg``.

The product is computed when it is issued, so that register copies which compilers put between instructions carry
the value on; *tracking* remembers which registers are still in flight or were written without ``wgmma.fence``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tensorcore, tensorcore_native
from .decoder import Decoder
from .matrix import raise_incomplete, stack
from .memory_unit import gather
from .operands import Constant, Register
from .operations import Control, Operation, Warp, registers_of
from .selection import Selection
from .syntax import Vector
from .types import TYPES

B32, B64 = TYPES["b32"], TYPES["b64"]
Key = tuple[int, int]
_CHANGED, _CONSTANT = 1, 2


class Outstanding:
    """A wgmma that runs: its number, its warps by warpgroup, the group of each, and what it reads."""

    __slots__ = ("group", "number", "read", "waiting", "warps")

    def __init__(self, number: int, warps: Any, group: Any, read: Any) -> None:
        self.number, self.warps, self.group, self.read = number, warps, group.reshape(-1, 4), read
        self.waiting = np.ones(warps.shape, bool)


class Tracking:
    """The registers that wgmma uses: in flight until when, and written since the last fence."""

    def __init__(self, state: Any) -> None:
        self.state = state
        warps = state.warp_count
        # Per register and warp: the last wgmma that writes it, the last that reads it, and what has been done to it.
        self.place = {key: place for place, key in enumerate(sorted(state.kernel.wgmma_registers))}
        shape = len(self.place), warps
        self.flying, self.reading = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.dirty = np.zeros(shape, np.int8)
        self._places: dict[Any, tuple[Any, Any]] = {}
        self.retired = np.zeros(warps, np.int64)
        # Whether a fence stands between the last wait, or the beginning, and what comes next.
        self.fenced = np.zeros(warps, bool)
        self.ever_fenced = np.zeros(warps, bool)
        self.number = 0
        # Committed groups of each warp.
        self.committed = np.zeros(warps, np.int64)
        self.outstanding: list[Outstanding] = []

    def places(self, operation: Any) -> tuple[Any, Any]:
        """The tracked registers that an operation writes, and those that it reads (a wgmma: as multiplicands)."""
        found = self._places.get(operation)
        if found is None:
            reads = operation.a if isinstance(operation, WarpgroupMultiply) else operation.reads
            written, read = (
                np.array([self.place[key] for key in _keys(items) if key in self.place], np.intp)
                for items in (operation.writes, reads)
            )
            found = self._places[operation] = written, read
        return found

    def used(self, operation: Any, sel: Selection) -> None:
        """An ordinary instruction touches tracked registers."""
        rows = sel.warp_slice
        written, read = self.places(operation)
        if operation.copies and len(written) and len(read) == 1:
            for table in (self.flying, self.dirty):
                for place in written:
                    table[place, rows] = table[read[0], rows]
            return
        for place in read:
            if (self.flying[place, rows] > self.retired[rows]).any():
                self._report(operation, sel, place, "read", self.flying[place])
        for place in written:
            for table in (self.flying, self.reading):
                if (table[place, rows] > self.retired[rows]).any():
                    self._report(operation, sel, place, "written", table[place])
            # Compilers write copies of constants behind the fence, and assemblers merge them into the wgmma.
            constant = operation.instruction.opcode.startswith("mov.") and not registers_of(operation.reads)
            self.dirty[place, rows] = _CONSTANT if constant else _CHANGED

    def _name(self, place: int) -> str:
        key = next(key for key, found in self.place.items() if found == place)
        return str(self.state.kernel.register_names[key])

    def _report(self, operation: Any, sel: Selection, place: int, verb: str, numbers: Any) -> None:
        name = self._name(place)
        warps = sel.warps
        row = int(warps[np.flatnonzero(numbers[warps] > self.retired[warps])[0]])
        self.state.hazard(
            "missing-wgmma-fence",
            f"register {name} is {verb} while a wgmma that uses it may still run; use wgmma.wait_group first",
            operation.instruction,
            row * 32,
        )

    def fence(self, sel: Selection) -> None:
        """``wgmma.fence``: earlier register accesses are ordered before later wgmma."""
        rows = sel.warp_slice
        self.dirty[:, rows] = 0
        self.fenced[rows] = self.ever_fenced[rows] = True

    def issue(self, operation: Any, sel: Selection, grouped: Any, read: Any, accumulates: Any) -> None:
        """A wgmma of the warps ``grouped`` by warpgroup starts to read shared memory.

        ``accumulates`` says for each warp whether it reads what it adds to.
        """
        rows = sel.warp_slice
        if not self.ever_fenced[rows].all():
            self.state.hazard(
                "missing-wgmma-fence",
                "no wgmma.fence stands before the first wgmma",
                operation.instruction,
                int(sel.warps[np.flatnonzero(~self.ever_fenced[rows])[0]]) * 32,
            )
            self.ever_fenced[rows] = True
        targets, multiplicands = self.places(operation)
        for places, counts in ((targets, accumulates), (multiplicands, True)):
            marks = self.dirty[places][:, rows]
            wrong = (marks == _CHANGED) | ((marks == _CONSTANT) & ~self.fenced[rows])
            wrong &= counts
            for place, warps in zip(places, wrong) if wrong.any() else ():
                if warps.any():
                    row = int(sel.warps[np.flatnonzero(warps)[0]])
                    self.state.hazard(
                        "missing-wgmma-fence",
                        f"register {self._name(place)} was written and no wgmma.fence stands between the write and "
                        "this wgmma",
                        operation.instruction,
                        row * 32,
                    )
            self._set(self.dirty, places, rows, 0)
        self.number += 1
        self._set(self.flying, targets, rows, self.number)
        self._set(self.reading, multiplicands, rows, self.number)
        self.outstanding.append(
            Outstanding(self.number, grouped.reshape(-1, 4), self.committed[grouped], read)
        )

    @staticmethod
    def _set(table: Any, places: Any, rows: Any, value: int) -> None:
        """Set entries of some registers and some warps."""
        table[(places, rows) if isinstance(rows, slice) else np.ix_(places, rows)] = value

    def wait(self, sel: Selection, keep: int, instruction: Any) -> None:
        """``wgmma.wait_group``: all groups but the newest ``keep`` are complete."""
        rows = sel.warp_slice
        self.fenced[rows] = False
        limit = np.full(self.state.warp_count, -1, np.int64)
        limit[rows] = self.committed[rows] - keep
        for entry in self.outstanding:
            done = entry.waiting & (entry.group < limit[entry.warps])
            if not done.any():
                continue
            rows = entry.warps[done]
            self.retired[rows] = np.maximum(self.retired[rows], entry.number)
            entry.waiting &= ~done
            # All four warps multiply together: what one has waited for is done for all of them.
            first = done.any(axis=1) & entry.read.still
            if first.any():
                self.state.races.async_read_done(instruction.operation, entry.read, first, True)
            self.state.order.group_waited(rows)
        self.outstanding = [entry for entry in self.outstanding if entry.waiting.any()]

    def check_end(self, sel: Selection, instruction: Any) -> None:
        """Threads end: no wgmma may be outstanding."""
        ended = np.isin(np.arange(self.state.warp_count), sel.warps)
        for entry in self.outstanding:
            late = entry.warps[entry.waiting & ended[entry.warps]]
            if len(late):
                self.state.hazard(
                    "async-pending",
                    "the thread ends while a wgmma is outstanding",
                    instruction,
                    int(late[0]) * 32,
                )
                self.outstanding = [o for o in self.outstanding if not ended[o.warps].any()]
                return


def _keys(items: Any) -> list[Key]:
    return [(r.bank, r.row) for r in registers_of(items)]


class WarpgroupMultiply(Warp):
    """``wgmma.mma_async``."""

    collective = True
    width = 16
    memory = True
    order, scope, strong = "weak", "cta", False
    touches = ("shared",)

    def __init__(
        self, op: Any, name: str, d: list[Any], a: list[Any], a_descriptor: Any, b_descriptor: Any, scale: Any
    ) -> None:
        super().__init__(lambda *v: v, d, [])
        self.op, self.name = op, name
        self.a, self.a_descriptor, self.b_descriptor, self.scale = a, a_descriptor, b_descriptor, scale
        self.metadata: Any = None
        self.selector = 0
        self.reads = tuple(s for s in (*a, a_descriptor, b_descriptor, scale, *d) if s is not None)
        # The registers of D, where machine code adds to them.
        self.rows: Any = None
        registers = {r.row for r in d if isinstance(r, Register) and r.bank == 32}
        if len(registers) == len(d) and tensorcore_native.accumulates(op):
            self.rows = np.array([r.row for r in d], np.int64)

    def execute(self, state: Any, sel: Selection) -> None:
        sel = warpgroups(self, state, sel)
        warps = sel.warps
        # The semantics want the four warps of a warpgroup next to each other.
        order = np.argsort(_group_order(state, warps), kind="stable")
        inverse = np.argsort(order, kind="stable")
        try:
            descriptor = self._descriptor(state, sel, self.b_descriptor, order)
            b_index = self._index(state, sel, self.op.b_chunks(descriptor), order)
            a_index = None
            if self.a_descriptor is not None:
                a_index = self._index(
                    state,
                    sel,
                    self.op.a_chunks(self._descriptor(state, sel, self.a_descriptor, order)),
                    order,
                )
        except ValueError as error:
            state.hazard("illegal-descriptor", str(error), self.instruction, int(sel.index[0]))
            state.stop()
        view = state.memory.shared_view(np.dtype(np.uint8), 16)
        b = gather(view, b_index >> 4)
        a = gather(view, a_index >> 4) if a_index is not None else stack(state, sel, self.a, np.uint32)[order]
        scale: Any = True
        if self.scale is not None:
            flags = np.broadcast_to(self.scale.warp(state, sel), (len(warps), 32))[order]
            scale = flags.reshape(-1, 4 * 32)[:, 0]
        extra: dict[str, Any] = {}
        if self.metadata is not None:
            extra = {
                "metadata": self.metadata.warp(state, sel).astype(np.uint32)[order],
                "selector": self.selector,
            }
        state.engine.counters.tensor_core(self.instruction, self.name, len(warps) // 4, self.op)
        index = b_index if a_index is None else np.concatenate([a_index, b_index], axis=1)
        if state.races is not None:
            leaders = warps[order].reshape(-1, 4)[:, 0] * 32
            parts = [(leaders, b_index)]
            if a_index is not None:
                parts.append((warps[order] * 32, self._rows_of_warps(a_index)))
            read = state.races.async_read(self, leaders, index, True, parts)
            accumulates = scale if scale is True else np.repeat(scale, 4)[inverse]
            state.wgmma.issue(self, sel, warps[order], read, accumulates)
        if self.rows is not None:
            self._accumulate(state, warps[order], self.op.product(a, b, **extra), scale)
            return
        c = stack(state, sel, list(self.writes), np.uint32)[order]
        result = self.op(a, b, c, scale, **extra)[inverse]
        for position, target in enumerate(self.writes):
            target.put_warp(state, sel, result[:, position])

    def _rows_of_warps(self, index: Any) -> Any:
        """The chunks of A for each warp, ``[warps, n]``: 16 of the 64 rows, which the warp may have written itself."""
        if self.op.trans_a:
            chunks = index.reshape(len(index), self.op.stored_k, 4, -1).swapaxes(1, 2)
        else:
            chunks = index.reshape(len(index), 4, -1)
        return chunks.reshape(len(index) * 4, -1)

    def _accumulate(self, state: Any, warps: Any, product: Any, scale: Any) -> None:
        """Add the product to the registers, the warps in the order of its rows."""
        bank = state.banks[32]
        product = np.ascontiguousarray(product, np.float64)
        keep = np.repeat(np.broadcast_to(scale, len(warps) // 4), 4).astype(np.int64)
        numbers = np.ascontiguousarray(warps, np.int64)
        tensorcore_native.accumulate(self.op)(
            product.ctypes.data, numbers.ctypes.data, len(numbers), bank.ctypes.data, bank.strides[0],
            self.rows.ctypes.data, keep.ctypes.data,
        )  # fmt: skip

    def _descriptor(self, state: Any, sel: Selection, source: Any, order: Any) -> Any:
        values = np.asarray(source.warp(state, sel)).astype(np.uint64)[order]
        groups = values.reshape(-1, 128)
        if not (groups == groups[:, :1]).all():
            state.hazard(
                "illegal-descriptor",
                "the threads of a warpgroup give different matrix descriptors",
                self.instruction,
                int(sel.index[0]),
            )
            state.stop()
        return groups[:, 0]

    def _index(self, state: Any, sel: Selection, chunks: Any, order: Any) -> Any:
        if int(chunks.max()) + 16 > state.memory.shared_bytes or int(chunks.min()) < 0:
            state.hazard(
                "out-of-bounds",
                f"wgmma reads shared memory up to {int(chunks.max()) + 16:#x}, the block has "
                f"{state.memory.shared_bytes:#x} bytes",
                self.instruction,
                int(sel.index[0]),
                int(chunks.max()),
            )
            state.stop()
        blocks = state.block_of_warp[sel.warps[order]].reshape(-1, 4)[:, 0]
        return chunks + (blocks * state.memory.stride)[:, None]


def _group_order(state: Any, warps: Any) -> Any:
    """A key that puts the four warps of a warpgroup next to each other, block by block."""
    in_block = state.warp_in_block[warps]
    return (state.block_of_warp[warps] * 64 + in_block // 4) * 4 + in_block % 4


def warpgroups(operation: Any, state: Any, sel: Selection) -> Selection:
    """The selection, after a check that it consists of whole warpgroups."""
    if not sel.whole:
        raise_incomplete(operation, state, sel)
    groups = state.block_of_warp[sel.warps] * 64 + state.warp_in_block[sel.warps] // 4
    counts = np.unique(groups, return_counts=True)[1]
    if not (counts == 4).all():
        state.hazard(
            "barrier-divergence",
            f"not all warps of a warpgroup execute {operation.instruction.opcode} together",
            operation.instruction,
            int(sel.index[0]),
        )
        state.stop()
    return sel


class _Group(Warp):
    def __init__(self, kind: str, keep: int) -> None:
        super().__init__(lambda *v: v, [], [])
        self.kind, self.keep = kind, keep
        self.strong, self.width = False, 16

    def execute(self, state: Any, sel: Selection) -> None:
        tracking = state.wgmma
        if self.kind == "commit_group":
            tracking.committed[sel.warp_slice] += 1
        else:
            tracking.wait(sel, self.keep, self.instruction)


def _decode_wgmma(d: Decoder) -> Operation:
    if d.mods[:1] in (["fence"], ["commit_group"], ["wait_group"]):
        kind = d.mods.pop(0)
        d.flag("sync")
        d.flag("aligned")
        d.count(1 if kind == "wait_group" else 0)
        if kind == "fence":
            return Fence()
        return _Group(kind, d.immediate(d.operands[0]) if d.operands else 0)
    operands = list(d.operands)
    sparse = "sp" in d.mods
    in_registers = isinstance(operands[1], Vector)
    rest = operands[3:]
    metadata = selector = None
    if sparse:
        metadata, selector = d.source(rest[0], B32), d.immediate(rest[1])
        rest = rest[2:]
    scale = d.predicate(rest[0]) if rest else None
    numbers = [d.immediate(o) for o in rest[1:]]
    immediate = {"scale_a": 1, "scale_b": 1, "trans_a": 0, "trans_b": 0}
    names = (
        ("scale_a", "scale_b", "trans_b") if in_registers else ("scale_a", "scale_b", "trans_a", "trans_b")
    )
    immediate.update(zip(names, numbers))
    op = tensorcore.wgmma_instruction(d.statement.opcode, a_in_registers=in_registers, **immediate)
    name = d.statement.opcode
    d.mods.clear()
    targets = d.targets(operands[0], B32)
    if len(targets) != op.d_registers:
        raise d.fail(f"{len(targets)} registers of D where {op.d_registers} are expected")
    a: list[Any] = []
    a_descriptor = None
    if in_registers:
        a = d.sources(operands[1], B32)
        if len(a) != op.a_registers:
            raise d.fail(f"{len(a)} registers of A where {op.a_registers} are expected")
    else:
        a_descriptor = d.source(operands[1], B64)
    operation = WarpgroupMultiply(op, name, targets, a, a_descriptor, d.source(operands[2], B64), scale)
    if isinstance(scale, Constant) and not scale.value:
        # Without the old D its registers need no value.
        operation.reads = tuple(r for r in operation.reads if r not in targets)
    elif scale is not None:
        operation.reads = tuple(r for r in operation.reads if r not in targets)
    if metadata is not None:
        operation.metadata, operation.selector = metadata, selector or 0
        operation.reads = (*operation.reads, metadata)
    return operation


class Fence(Control):
    """``wgmma.fence``, where the four warps of a warpgroup come together before they multiply."""

    def step(self, engine: Any, group: Any) -> Any:
        state, here = group.state, self.instruction.index
        ready = state.converge(group, self, here)
        if ready is None:
            return None
        sel = group.sel = ready
        numbers = state.block_of_warp[sel.warps] * 64 + state.warp_in_block[sel.warps] // 4
        _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        together = counts[place] == 4
        if not together.all():
            # Warps of one warpgroup arrive at different times; the early ones wait.
            here_now = together[sel.row]
            late = type(group)(state, Selection.of(sel.index[~here_now]), here, group.round + 1)
            engine.yielded(late)
            state.add(late)
            if not together.any():
                return None
            sel = group.sel = Selection.of(sel.index[here_now])
        engine.progress += 1
        state.wgmma.fence(sel)
        group.pc = here + 1
        return group


class SetMaxRegisters(Control):
    """``setmaxnreg``: counts and pairing are checked; an increase waits until the block has the registers."""

    def __init__(self, increase: bool, count: int) -> None:
        super().__init__()
        self.increase, self.number = increase, count

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        here = self.instruction.index
        ready = state.converge(group, self, here)
        if ready is None:
            return None
        sel = group.sel = ready
        limits = state.register_limits
        rows = sel.warp_slice
        groups = state.block_of_warp[sel.warps] * 64 + state.warp_in_block[sel.warps] // 4
        if not (np.unique(groups, return_counts=True)[1] == 4).all():
            state.hazard(
                "setmaxnreg",
                "not all warps of the warpgroup execute setmaxnreg together",
                self.instruction,
                int(sel.index[0]),
            )
        known = limits[rows] > 0
        wrong = known & ((limits[rows] > self.number) if self.increase else (limits[rows] < self.number))
        if wrong.any():
            now = int(limits[rows][wrong][0])
            verb = "increases" if self.increase else "decreases"
            state.hazard(
                "setmaxnreg",
                f"setmaxnreg {verb} the register count to {self.number} from {now}",
                self.instruction,
                int(sel.index[0]),
            )
        if self.increase and self._must_wait(state, sel):
            group.pc = here
            group.round += 1
            engine.yielded(group)
            state.add(group)
            return None
        limits[rows] = self.number
        engine.progress += 1
        group.pc = here + 1
        return group

    def _must_wait(self, state: Any, sel: Selection) -> bool:
        """A block has 64 K registers: what its warps hold together must fit, those that ended aside."""
        limits = state.register_limits.copy()
        limits[sel.warp_slice] = self.number
        limits[~state.live_warps.any(axis=1)] = 0
        total = np.bincount(state.block_of_warp, weights=limits, minlength=state.block_count)
        return bool((total[np.unique(state.block_of_warp[sel.warps])] * 32 > 65536).any())


def _decode_setmaxnreg(d: Decoder) -> Operation:
    increase = d.take("inc", "dec") == "inc"
    d.flag("sync")
    d.flag("aligned")
    d.flag("u32")
    d.count(1)
    count = d.immediate(d.operands[0])
    if count % 8 or not 24 <= count <= 256:
        raise d.fail(f"register count {count} is no multiple of 8 from 24 to 256")
    return SetMaxRegisters(increase, count)


def wgmma_registers(instructions: list[Any]) -> set[Key]:
    """The registers that wgmma uses, those that register copies connect with them, and the parts these are split into.

    Compilers split accumulators of halves before the wait, for use after it.
    """
    found: set[Key] = set()
    edges: dict[Key, set[Key]] = {}
    for instruction in instructions:
        operation = instruction.operation
        if isinstance(operation, WarpgroupMultiply):
            found.update(_keys(operation.writes))
            found.update(_keys(operation.a))
        elif operation.copies:
            written, read = _keys(operation.writes), _keys(operation.reads)
            if len(written) == 1 and len(read) == 1:
                edges.setdefault(written[0], set()).add(read[0])
                edges.setdefault(read[0], set()).add(written[0])
            elif len(read) == 1:
                edges.setdefault(read[0], set()).update(written)
    pending = list(found)
    while pending:
        for other in edges.get(pending.pop(), ()):
            if other not in found:
                found.add(other)
                pending.append(other)
    return found


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "wgmma": _decode_wgmma,
    "setmaxnreg": _decode_setmaxnreg,
}
