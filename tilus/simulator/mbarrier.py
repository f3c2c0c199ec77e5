"""``mbarrier`` objects: phases, arrivals, transaction counts, and waiting.

The 64 bits in shared memory are opaque to PTX; their state is kept beside, in one table per batch with a row for
each block and a column for each shared offset at which some block has an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import AddressSource, Decoder
from .hazards import place_of
from .operands import Sink
from .operations import Control, Lane, Map, Operation
from .order import latest
from .selection import Selection
from .types import BITS_OF_WIDTH, TYPES

_MAX_COUNT = (1 << 20) - 1
_PATIENCE = 3
_COLUMNS = ("expected", "pending", "transactions", "phase", "valid", "owner", "since", "ordered")
B64 = TYPES["b64"]


class BarrierTable:
    """All mbarrier objects of a batch."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.column: dict[int, int] = {}
        blocks = state.block_count
        self.expected = np.zeros((blocks, 0), np.int64)
        self.pending = np.zeros((blocks, 0), np.int64)
        self.transactions = np.zeros((blocks, 0), np.int64)
        self.phase = np.zeros((blocks, 0), np.int64)
        self.valid = np.zeros((blocks, 0), bool)
        # Which lane initialised an object and when, and which warps of the cluster this happened before for certain.
        self.owner = np.zeros((blocks, 0), np.int64)
        self.since = np.zeros((blocks, 0), np.int64)
        self.ordered = np.zeros((blocks, 0, state.engine.cluster_size * state.warps), bool)
        self.all_ordered = True
        # What completed phases hand to those who wait, and what the running phase has collected so far.
        self.clock: dict[int, Any] = {}
        self.collecting: dict[int, Any] = {}
        self.copies: list[Any] = []

    def slot(self, index: Any, create: bool = False) -> Any:
        """Flat slot numbers of objects at byte indices of the batch's shared memory; -1 where there is none."""
        stride = self.state.memory.stride
        blocks, offsets = index // stride, index % stride
        columns = np.empty(len(index), np.int64)
        for offset in np.unique(offsets):
            found = self.column.get(int(offset))
            if found is None and create:
                found = self.column[int(offset)] = len(self.column)
                for name in _COLUMNS:
                    old = getattr(self, name)
                    new = np.zeros((len(old), 1, *old.shape[2:]), old.dtype)
                    setattr(self, name, np.concatenate([old, new], axis=1))
            columns[offsets == offset] = -1 if found is None else found
        del blocks
        return np.where(columns < 0, -1, columns + (index // stride) * (1 << 16))

    @staticmethod
    def at(slots: Any) -> tuple[Any, Any]:
        """Slots as an index into the tables."""
        return slots >> 16, slots & 0xFFFF

    def find(self, operation: Any, lanes: Any, index: Any) -> Any:
        """Slots of the objects that lanes use, which must be initialised, at byte indices of shared memory."""
        state = self.state
        slots = self.slot(index)
        missing = slots < 0
        if not missing.any():
            missing = ~self.valid[self.at(slots)]
        if missing.any():
            position = int(np.flatnonzero(missing)[0])
            offset = int(index[position] % state.memory.stride)
            state.hazard(
                "mbarrier-misuse",
                f"no mbarrier has been initialised at shared offset {offset:#x}",
                operation.instruction,
                int(lanes[position]),
                offset,
            )
            state.stop()
        if not self.all_ordered:
            self._check_order(operation, lanes, index, self.at(slots))
        return slots

    def _check_order(self, operation: Any, lanes: Any, index: Any, at: Any) -> None:
        """Report uses by threads that nothing orders after the initialisation, once for each object and warp."""
        state = self.state
        agents = state.order.agent[lanes >> 5]
        if self.ordered[(*at, agents)].all():
            return
        self._refresh_order()
        bad = ~self.ordered[(*at, agents)] & (lanes != self.owner[at])
        if not bad.any():
            return
        position = int(np.flatnonzero(bad)[0])
        offset = int(index[position] % state.memory.stride)
        where = at[0][position], at[1][position]
        owner = int(self.owner[where])
        name = f"thread {state.thread_coordinates(int(state.thread_of_lane[owner]))}"
        if state.engine.cluster_size > 1:
            name += f" of cluster block {int(where[0]) % state.engine.cluster_size}"
        state.hazard(
            "mbarrier-misuse",
            f"uses the mbarrier at shared offset {offset:#x} that {name} initialised"
            f"{place_of(state.engine.instruction_at(int(self.since[where])))} with nothing ordering the two; a barrier "
            "belongs between (for other blocks barrier.cluster, after fence.mbarrier_init where it is relaxed)",
            operation.instruction,
            int(lanes[position]),
            offset,
        )
        self.ordered[at[0][bad], at[1][bad], agents[bad]] = True

    def _refresh_order(self) -> None:
        """Find the warps that know of each initialisation by now; what they have learnt they keep."""
        state, order = self.state, self.state.order
        blocks, columns = np.nonzero(self.valid & ~self.ordered.all(axis=2))
        rank, warp = np.divmod(np.arange(self.ordered.shape[2]), state.warps)
        size = state.engine.cluster_size
        rows = warp * state.block_count + (blocks // size * size)[:, None] + rank
        owner = order.agent[self.owner[blocks, columns] >> 5][:, None]
        self.ordered[blocks, columns] |= (
            order.knows_initialised(rows, owner) >= self.since[blocks, columns][:, None]
        )
        self.all_ordered = bool(self.ordered[self.valid].all())

    def initialise(self, slots: Any, counts: Any, lanes: Any, instruction: Any) -> None:
        """``mbarrier.init``."""
        at = self.at(slots)
        if self.state.races is not None:
            self.owner[at] = lanes
            self.since[at] = self.state.engine.tick(instruction)
            self.ordered[at] = self.all_ordered = False
        self.expected[at] = counts
        self.pending[at] = counts
        self.transactions[at] = 0
        self.phase[at] = 0
        self.valid[at] = True
        for slot in slots:
            self.clock.pop(int(slot), None)
            self.collecting.pop(int(slot), None)

    def complete(self, slots: Any) -> None:
        """Phases whose arrivals and transactions are all in end."""
        slots = np.unique(slots)
        at = self.at(slots)
        done = (self.pending[at] == 0) & (self.transactions[at] == 0) & self.valid[at]
        if not done.any():
            return
        self.state.engine.progress += 1
        ended = slots[done]
        where = self.at(ended)
        self.phase[where] += 1
        self.pending[where] = self.expected[where]
        if self.state.order is not None:
            for slot in ended:
                self.clock[int(slot)] = self.collecting.pop(int(slot), None)

    def collect(self, slot: int, knowledge: Any) -> None:
        """An arrival (or completed copy) hands its knowledge to the running phase."""
        old = self.collecting.get(slot)
        if old is None:
            old = self.clock.get(slot)
        self.collecting[slot] = knowledge if old is None else latest(old, knowledge)

    def deliver(self, slots: Any) -> None:
        """Asynchronous copies that report to these barriers arrive now."""
        if not self.copies:
            return
        wanted = np.zeros_like(self.valid)
        wanted[self.at(slots)] = True
        kept = []
        for copy in self.copies:
            ready = wanted[self.at(copy.slots)]
            ready &= copy.left
            if ready.any():
                copy.deliver(ready)
            if copy.left.any():
                kept.append(copy)
        self.copies = kept


class _MbarrierOperation(Lane):
    """What all operations on objects share: finding them."""

    width = 8
    memory = True
    order = "weak"
    strong = True
    scope = "cta"
    type = BITS_OF_WIDTH[64]
    count = 1
    touches = ("shared",)

    def __init__(self, address: AddressSource, generic: bool) -> None:
        super().__init__()
        self.address = address
        self.generic = generic
        self.reads = (address,)

    def index(self, state: Any, sel: Selection) -> Any:
        """Byte indices of the objects."""
        return shared_operand(self, state, sel, self.address.get(state, sel), self.generic, 8)

    def slots(self, state: Any, sel: Selection) -> Any:
        """Slots of initialised objects."""
        return state.mbarriers.find(self, sel.index, self.index(state, sel))


def shared_operand(access: Any, state: Any, sel: Selection, address: Any, generic: bool, width: int) -> Any:
    """Byte indices of shared memory for an operand that may be a generic address."""
    if generic:
        parts = state.memory.split_generic(address)
        if parts[0][1] is not None or parts[0][0] != "shared":
            state.memory._fail(
                access, sel, address, np.ones(sel.n, bool), "out-of-bounds", "address outside shared memory"
            )
        address = parts[0][2]
    return state.memory.shared_index(access, sel, address, width)


class Initialise(_MbarrierOperation):
    """``mbarrier.init``."""

    def __init__(self, address: AddressSource, generic: bool, count: Any) -> None:
        super().__init__(address, generic)
        self.number = count
        self.reads = (address, count)

    def execute(self, state: Any, sel: Selection) -> None:
        index = self.index(state, sel)
        counts = np.broadcast_to(self.number.get(state, sel), (sel.n,)).astype(np.int64)
        if (counts < 1).any() or (counts > _MAX_COUNT).any():
            state.hazard(
                "mbarrier-misuse",
                f"count {int(counts.min())} is outside 1 to {_MAX_COUNT}",
                self.instruction,
                int(sel.index[0]),
            )
            state.stop()
        table = state.mbarriers
        slots = table.slot(index, create=True)
        at = table.at(slots)
        # The ISA asks for mbarrier.inval first; compilers leave it out between uses, so only a busy object is reported.
        busy = table.valid[at] & ((table.pending[at] != table.expected[at]) | (table.transactions[at] != 0))
        if busy.any():
            state.hazard(
                "mbarrier-misuse",
                "mbarrier.init of an mbarrier whose phase is under way; use mbarrier.inval first",
                self.instruction,
                int(sel.index[np.flatnonzero(busy)[0]]),
            )
        if state.races is not None:
            self.strong = False
            view = state.memory.shared_view(np.dtype(np.uint64), 1)
            state.races.write(self, sel, index, 8, view, index >> 3, counts.astype(np.uint64))
            self.strong = True
        state.memory.shared_view(np.dtype(np.uint64), 1)[index >> 3] = _opaque(counts)
        table.initialise(slots, counts, sel.index, self.instruction)


def _opaque(counts: Any) -> Any:
    return (counts.astype(np.uint64) << np.uint64(32)) | np.uint64(0x6D626172)


class Invalidate(_MbarrierOperation):
    """``mbarrier.inval``."""

    def execute(self, state: Any, sel: Selection) -> None:
        slots = self.slots(state, sel)
        table = state.mbarriers
        table.valid[table.at(slots)] = False


class Arrive(_MbarrierOperation):
    """``mbarrier.arrive`` and ``.arrive_drop``, with or without ``.expect_tx`` and ``.noComplete``; ``expect_tx``."""

    def __init__(
        self,
        address: AddressSource,
        generic: bool,
        arrives: bool,
        drop: bool,
        expects: bool,
        complete: bool,
        number: Any,
        target: Any,
        semantics: str,
    ) -> None:
        super().__init__(address, generic)
        self.arrives, self.drop, self.expects, self.may_complete = arrives, drop, expects, complete
        self.number = number
        self.semantics = semantics
        self.reads = (address,) if number is None else (address, number)
        self.writes = () if target is None else (target,)

    def execute(self, state: Any, sel: Selection) -> None:
        table = state.mbarriers
        slots = self.slots(state, sel)
        at = table.at(slots)
        number = np.ones(sel.n, np.int64)
        if self.number is not None:
            number = np.broadcast_to(self.number.get(state, sel), (sel.n,)).astype(np.int64)
        state.engine.progress += 1
        if self.writes:
            token = (table.phase[at] << 20) | table.pending[at]
            self.writes[0].put(state, sel, token.astype(np.uint64))
        if self.expects:
            self._expect(state, sel, table, at, number)
            number = np.ones(sel.n, np.int64)
        if not self.arrives:
            return
        if state.order is not None:
            self._release(state, sel, table, slots)
        if self.drop:
            np.subtract.at(table.expected, at, number)
        self._arrive(state, sel, table, slots, number)

    def _expect(self, state: Any, sel: Selection, table: Any, at: Any, number: Any) -> None:
        np.add.at(table.transactions, at, number)
        if (table.transactions[at] > _MAX_COUNT).any():
            state.hazard(
                "mbarrier-misuse",
                f"transaction count beyond {_MAX_COUNT}",
                self.instruction,
                int(sel.index[0]),
            )
            state.stop()

    def _release(self, state: Any, sel: Selection, table: Any, slots: Any) -> None:
        rows, order = sel.index >> 5, state.order
        for slot in np.unique(slots):
            mine = np.unique(rows[slots == slot])
            if self.semantics == "release":
                table.collect(int(slot), order.snapshot(mine))
                continue
            for row in mine.tolist():
                own = int(slot) >> 16 == state.block_of_warp[row]
                for payload, wide in order.gifts(row, "cluster"):
                    if wide or own:
                        table.collect(int(slot), payload.local)

    def _arrive(self, state: Any, sel: Selection, table: Any, slots: Any, number: Any) -> None:
        unique, inverse = np.unique(slots, return_inverse=True)
        total = np.bincount(inverse, weights=number).astype(np.int64)
        where = table.at(unique)
        over = total > table.pending[where]
        if over.any():
            slot = unique[np.flatnonzero(over)[0]]
            position = int(np.flatnonzero(slots == slot)[0])
            left = int(table.pending[table.at(slot)])
            state.hazard(
                "mbarrier-misuse",
                f"{int(total[over][0])} arrivals where the phase expects {left} more",
                self.instruction,
                int(sel.index[position]),
            )
            state.stop()
        table.pending[where] -= total
        if not self.may_complete and (table.pending[where] == 0).any():
            state.hazard(
                "mbarrier-misuse",
                "an arrival with .noComplete completes the phase",
                self.instruction,
                int(sel.index[0]),
            )
        table.complete(unique)


class CompleteTransactions(_MbarrierOperation):
    """``mbarrier.complete_tx``."""

    def __init__(self, address: AddressSource, generic: bool, number: Any) -> None:
        super().__init__(address, generic)
        self.number = number
        self.reads = (address, number)

    def execute(self, state: Any, sel: Selection) -> None:
        slots = self.slots(state, sel)
        table = state.mbarriers
        number = np.broadcast_to(self.number.get(state, sel), (sel.n,)).astype(np.int64)
        np.subtract.at(table.transactions, table.at(slots), number)
        state.engine.progress += 1
        table.complete(slots)


class Wait(Control):
    """``mbarrier.test_wait`` and ``.try_wait``, by token or by parity."""

    width = 8
    memory = True
    strong = True
    order = "weak"
    scope = "cta"
    type = BITS_OF_WIDTH[64]
    count = 1
    touches = ("shared",)
    index: Any = _MbarrierOperation.index
    slots: Any = _MbarrierOperation.slots

    def __init__(
        self,
        address: AddressSource,
        generic: bool,
        parity: bool,
        value: Any,
        target: Any,
        acquire: bool,
        patient: bool,
    ) -> None:
        super().__init__()
        self.address, self.generic = address, generic
        self.parity, self.value, self.acquire, self.patient = parity, value, acquire, patient
        self.reads = (address, value)
        self.writes = (target,)

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
        table = state.mbarriers
        slots = self.slots(state, sel)
        table.deliver(slots)
        done = self._done(state, sel, table, slots)
        if not done.all() and self._retry(engine, group):
            return None
        if done.any():
            engine.counters.barrier(self.instruction, len(np.unique(sel.index[done] >> 5)))
        if done.any() and state.order is not None:
            self._acquire(state, sel, table, slots, done)
        self.writes[0].put(state, sel, done)
        if not done.all():
            state.poll(sel)
        group.pc = here + 1
        group.resumed = False
        group.patience = 0
        return group

    def _done(self, state: Any, sel: Selection, table: Any, slots: Any) -> Any:
        phase = table.phase[table.at(slots)]
        value = np.broadcast_to(self.value.get(state, sel), (sel.n,)).astype(np.int64)
        if self.parity:
            return (phase & 1) != (value & 1)
        return phase > (value >> 20)

    def _retry(self, engine: Any, group: Any) -> bool:
        """Let others run before an unfinished wait says so; keeps the blocks of a batch together."""
        if not self.patient:
            return False
        if group.patience_progress != engine.progress:
            group.patience_progress = engine.progress
            group.patience = 0
        group.patience += 1
        if group.patience > _PATIENCE:
            return False
        group.pc = self.instruction.index
        group.round += 1
        engine.yielded(group)
        group.state.add(group)
        return True

    def _acquire(self, state: Any, sel: Selection, table: Any, slots: Any, done: Any) -> None:
        rows = sel.index >> 5
        for slot in np.unique(slots[done]):
            clock = table.clock.get(int(slot))
            if clock is not None:
                mine = np.unique(rows[done & (slots == slot)])
                fresh = mine[state.order.cluster[mine] == int(slot >> 16) // state.engine.cluster_size]
                if not self.acquire:
                    state.order.hear(fresh, clock)
                    continue
                state.order.learn(fresh, clock)
                state.order.own[fresh] = state.engine.tick()


def _space(d: Decoder) -> bool:
    """Consume the state space; whether the address is generic."""
    return d.take("shared", "shared::cta", "shared::cluster") is None


def _decode_mbarrier(d: Decoder) -> Operation:
    generic = _space(d)
    name = d.take(
        "init",
        "inval",
        "arrive",
        "arrive_drop",
        "expect_tx",
        "complete_tx",
        "test_wait",
        "try_wait",
        "pending_count",
    )
    d.flag("b64")
    u32 = TYPES["u32"]
    if name == "init":
        d.count(2)
        return Initialise(d.address(d.operands[0]), generic, d.source(d.operands[1], u32))
    if name == "inval":
        d.count(1)
        return Invalidate(d.address(d.operands[0]), generic)
    if name == "pending_count":
        d.count(2)
        token = d.source(d.operands[1], B64)
        return Map(
            lambda t: (t & np.uint64(_MAX_COUNT)).astype(np.uint32), [d.target(d.operands[0], u32)], [token]
        )
    semantics = d.take("release", "relaxed", "acquire")
    d.take("cta", "cluster")
    if name in ("test_wait", "try_wait"):
        parity = d.flag("parity")
        value = d.source(d.operands[2], u32 if parity else B64)
        target = d.target(d.operands[0], TYPES["pred"])
        return Wait(
            d.address(d.operands[1]),
            generic,
            parity,
            value,
            target,
            semantics != "relaxed",
            name == "try_wait",
        )
    if name == "complete_tx":
        d.count(2)
        return CompleteTransactions(d.address(d.operands[0]), generic, d.source(d.operands[1], u32))
    if name in ("arrive", "arrive_drop", "expect_tx"):
        return _decode_arrival(d, name, generic, semantics)
    raise d.fail("unsupported mbarrier operation")


def _decode_arrival(d: Decoder, name: str, generic: bool, semantics: str | None) -> Operation:
    u32 = TYPES["u32"]
    arrives = name != "expect_tx"
    expects = d.flag("expect_tx") or not arrives
    complete = not d.flag("noComplete")
    operands = list(d.operands)
    target = None
    if arrives and type(operands[0]).__name__ != "Address":
        target = d.target(operands.pop(0), B64)
        if isinstance(target, Sink):
            target = None
    number = d.source(operands[1], u32) if len(operands) > 1 else None
    if expects and number is None:
        raise d.fail("expect_tx needs a transaction count")
    return Arrive(
        d.address(operands[0]),
        generic,
        arrives,
        name == "arrive_drop",
        expects,
        complete,
        number,
        target,
        semantics or "release",
    )


class CopyArrival(_MbarrierOperation):
    """``cp.async.mbarrier.arrive``: arrives when the lane's earlier ``cp.async`` have completed."""

    def __init__(self, address: AddressSource, generic: bool, increment: bool) -> None:
        super().__init__(address, generic)
        self.increment = increment

    def execute(self, state: Any, sel: Selection) -> None:
        slots = self.slots(state, sel)
        table = state.mbarriers
        unique = np.unique(slots)
        counts = np.array([int((slots == s).sum()) for s in unique])
        where = table.at(unique)
        if self.increment:
            table.pending[where] += counts
        table.copies.append(_PendingArrival(self, state, sel, slots))


class _PendingArrival:
    """Delivers a lane's ``cp.async`` and then its arrival, when somebody waits for the barrier."""

    def __init__(self, operation: CopyArrival, state: Any, sel: Selection, slots: Any) -> None:
        self.operation, self.state, self.sel, self.slots = operation, state, sel, slots
        self.entries = list(state.copies.pending)
        self.left = np.ones(sel.n, bool)

    def deliver(self, ready: Any) -> None:
        """Some lanes' copies have arrived."""
        state, table = self.state, self.state.mbarriers
        sel = self.sel.subset(ready)
        state.copies.arrive_now(sel, self.entries)
        self.left &= ~ready
        slots = self.slots[ready]
        for slot in np.unique(slots):
            mine = slots == slot
            at = table.at(slot)
            if table.pending[at] < mine.sum():
                state.hazard(
                    "mbarrier-misuse",
                    f"{int(mine.sum())} arrivals of cp.async where the phase expects "
                    f"{int(table.pending[at])} more",
                    self.operation.instruction,
                    int(sel.index[mine][0]),
                )
                state.stop()
            table.pending[at] -= int(mine.sum())
            if state.order is not None:
                table.collect(int(slot), state.order.snapshot(np.unique(sel.index[mine] >> 5)))
        table.complete(slots)


def decode_copy_arrival(d: Decoder) -> Operation:
    """``cp.async.mbarrier.arrive{.noinc}{.shared}.b64 [addr]``."""
    d.flag("arrive")
    increment = not d.flag("noinc")
    generic = _space(d)
    d.flag("b64")
    d.count(1)
    return CopyArrival(d.address(d.operands[0]), generic, increment)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"mbarrier": _decode_mbarrier}
