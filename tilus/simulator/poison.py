"""Uninitialised registers: a register that was never written may be copied and computed with, not used.

Compilers load under a predicate and let all lanes compute on, as long as only lanes with a value store it. So a lane's
missing value is followed through registers, and reported where it decides something: an address, a stored or
exchanged-and-stored value, a branch, a guard. Only registers that the data flow reaches are followed.

What is followed are bits: each register has a *mask*, a word of its own type in which a one stands for a bit without a
value. Instructions that move bits (packing and unpacking above all) move those of the masks, bitwise ones lose what
does not reach their result, those on packed elements keep elements apart; all others lack their whole result.

Shared memory has a mask as well, since tiles that are not full are exchanged through it: a store of bits without a
value leaves the memory as if nobody had written it, and a load of memory that nobody wrote gives registers without a
value. Few launches have such a load. With the first one, the registers that loads reach are followed as well.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .control import Branch
from .hazards import place_of
from .matrix import MatrixAccess, MatrixMultiply
from .memory import Access, Load, Store
from .operands import Register
from .operations import Control, Map, Operation, registers_of
from .selection import LANES, Selection
from .spaces import LOCAL_WINDOW, SHARED_WINDOW, WINDOW_SIZE
from .warp import Synchronised

Key = tuple[int, int]


def _key(register: Register) -> Key:
    return register.bank, register.row


def _ones(dtype: Any) -> Any:
    """All bits."""
    return np.bool_(True) if dtype == np.bool_ else np.iinfo(dtype).max


def _unsigned(mask: Any) -> Any:
    """A mask of any type as unsigned integers or booleans."""
    return mask if mask.dtype == np.bool_ else np.ascontiguousarray(mask).view(f"u{mask.dtype.itemsize}")


class Unwritten(Exception):
    """A load is about to read shared memory that nobody has written; from here on loads must be followed."""

    def __init__(self, operation: Load | MatrixAccess) -> None:
        super().__init__(operation)
        self.operation = operation


def loaded_registers(kernel: Any) -> set[Key]:
    """The registers that are loaded from shared memory."""
    operations = [i.operation for i in kernel.instructions]
    loads = [o for o in operations if isinstance(o, MatrixAccess) or _loads_shared(o)]
    return {_key(register) for load in loads for register in registers_of(load.writes)}


def _loads_shared(operation: Operation) -> bool:
    return isinstance(operation, Load) and operation.space in ("shared", None)


def affected(kernel: Any, missing: set[Key]) -> tuple[set[Key], set[int]]:
    """The registers that may hold a value derived from a missing one, and the instructions that touch them."""
    tainted = set(missing)
    if not tainted:
        return set(), set()
    flows = [
        (
            [_key(r) for r in registers_of(i.operation.reads) + i.operation.guard_registers],
            [_key(r) for r in registers_of(i.operation.writes)],
        )
        for i in kernel.instructions
        if isinstance(i.operation, (Map, Synchronised)) or _by_element(i.operation)
    ]
    branches = [i.operation for i in kernel.instructions if isinstance(i.operation, Branch)]
    flows += [([_key(r) for r in b.guard_registers], list(skipped(kernel, b) or ())) for b in branches]
    changed = True
    while changed:
        changed = False
        for reads, writes in flows:
            if any(r in tainted for r in reads) and not all(w in tainted for w in writes):
                tainted.update(writes)
                changed = True
    touching = set()
    for instruction in kernel.instructions:
        operation = instruction.operation
        registers = registers_of((*operation.reads, *operation.writes)) + operation.guard_registers
        if any(_key(r) in tainted for r in registers):
            touching.add(instruction.index)
    return tainted, touching


def skipped(kernel: Any, branch: Branch) -> set[Key] | None:
    """The registers that are written where a branch skips a few instructions which write registers alone."""
    between = kernel.instructions[branch.instruction.index + 1 : branch.target]
    if branch.target <= branch.instruction.index or len(between) > _FEW:
        return None
    if not all(isinstance(i.operation, Map) for i in between):
        return None
    return {_key(r) for i in between for r in registers_of(i.operation.writes)}


# How many instructions a branch may skip to count as a choice between values.
_FEW = 64

# The number one in the types of elements whose products are followed by element.
_ONES = {
    "f16": 0x3C00,
    "bf16": 0x3F80,
    "tf32": 0x3F800000,
    "f64": 0x3FF0000000000000,
    "e4m3": 0x38,
    "e5m2": 0x3C,
    "s8": 1,
    "u8": 1,
}


def _complete(sel: Selection) -> bool:
    """Whether all lanes of the warps are active."""
    return sel.n == LANES * len(sel.warps)


def _by_element(operation: Operation) -> bool:
    """Whether this is a dense product, of which it is followed which elements lack a value."""
    if not isinstance(operation, MatrixMultiply) or operation.guard is not None:
        return False
    op = operation.op
    followed = op.a_type in _ONES and op.b_type in _ONES and op.c_type == op.d_type
    return followed and not (op.sparse or op.scale_vec or op.quad_pairs)


_DTYPES: dict[int, Any] = {
    1: np.bool_,
    8: np.uint8,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
    128: np.uint64,
}


def _within(operation: Any, space: str, window: int, state: Any, sel: Selection) -> Any:
    """Lanes whose access lies in a state space."""
    if operation.space is not None:
        return np.full(sel.n, operation.space == space)
    address = operation.address.get(state, sel)
    return (address >= window) & (address < window + WINDOW_SIZE)


class _Rows:
    """The masks of one width of registers, by row."""

    def __init__(self, poison: Poison, bank: int) -> None:
        self.poison, self.bank = poison, bank

    def __getitem__(self, row: int) -> Any:
        return self.poison.table((self.bank, row))


class Poison:
    """Which bits of which registers hold no value, for one batch.

    ``banks`` stands in for the state's, so that operands read and write masks as they read and write values.
    """

    def __init__(self, state: Any) -> None:
        self.state = state
        self.kernel = state.kernel
        self.tainted: set[Key] = state.engine.tainted
        self.missing: dict[Key, Any] = {}
        self.defined: dict[int, Any] = {}
        self.shared: Any = None
        # Registers that may lack something now, and for each instruction those that matter to it.
        self.lacking: set[Key] = set(state.kernel.watched)
        self.keys: dict[int, frozenset[Key]] = {}
        # Where registers got what they lack: a load, and which byte of shared memory each of its lanes read.
        self.origins: dict[Key, tuple[Operation, dict[int, int]]] = {}
        self.origin: tuple[Operation, dict[int, int]] | None = None
        # Ends of branches that chose between values by what had none: by place, registers, lanes and the origin.
        self.chosen: dict[int, list[Any]] = {}
        self.banks = {bank: _Rows(self, bank) for bank in _DTYPES}

    def table(self, key: Key) -> Any:
        """The mask of a register, for all lanes."""
        found = self.missing.get(key)
        if found is None:
            bank = key[0]
            if key not in self.tainted:
                found = self.defined.get(bank)
                if found is None:
                    found = self.defined[bank] = self._filled(bank, False)
                return found
            found = self.missing[key] = self._filled(bank, key in self.kernel.watched)
        return found

    def _filled(self, bank: int, missing: bool) -> Any:
        shape = (self.state.lane_count, 2) if bank == 128 else self.state.lane_count
        dtype = np.dtype(_DTYPES[bank])
        return np.full(shape, _ones(dtype) if missing else dtype.type(0), dtype)

    def _mask(self, register: Register, sel: Selection) -> Any:
        """The mask of what an operand reads, per active lane, as unsigned integers or booleans."""
        return _unsigned(register.get(self, sel))

    def _any(self, operands: Any, sel: Selection) -> Any:
        """Per active lane: whether bits that the operands read have no value; None where none can lack one."""
        result = None
        for register in registers_of(operands):
            if _key(register) in self.tainted:
                part = self._mask(register, sel) != 0
                part = part.any(axis=1) if part.ndim > 1 else part
                result = part if result is None else result | part
        return result

    def step(self, operation: Operation, sel: Selection) -> None:
        """Check and follow one operation; called before it executes."""
        loads = self.state.engine.following and isinstance(operation, (Load, MatrixAccess))
        if not loads and self.lacking.isdisjoint(self._keys(operation)):
            return
        sources = (_key(r) for r in registers_of(operation.reads)) if self.origins else ()
        self.origin = next(
            (self.origins[k] for k in sources if k in self.origins and k in self.lacking), None
        )
        guard = None
        if operation.guard is not None:
            poisoned_guard = self._any([operation.guard], sel)
            if not isinstance(operation, Map) and poisoned_guard is not None and poisoned_guard.any():
                if isinstance(operation, Branch) and self._choose(operation, sel, poisoned_guard):
                    return
                self._report(operation, sel, poisoned_guard, [operation.guard])
            guard = operation.guard.get(self.state, sel)
        if isinstance(operation, Map):
            self._map(operation, sel, guard)
        elif isinstance(operation, Synchronised):
            self._exchange(operation, sel, guard)
        elif isinstance(operation, MatrixMultiply) and _by_element(operation) and _complete(sel):
            self._multiply(operation, sel)
        else:
            if isinstance(operation, (Access, Control, MatrixAccess, MatrixMultiply)):
                bad = self._any(operation.reads, sel)
                if bad is not None and bad.any() and isinstance(operation, Store):
                    bad &= ~self._keeps(operation, sel)
                if bad is not None:
                    bad = bad if guard is None else bad & guard
                    if bad.any():
                        self._report(operation, sel, bad, operation.reads)
            self._write(operation, sel, guard, None)
            if loads and isinstance(operation, Load):
                self._loaded(operation, sel, guard)
            elif loads and isinstance(operation, MatrixAccess) and not operation.store and _complete(sel):
                self._matrix_loaded(operation, sel)

    def _choose(self, branch: Branch, sel: Selection, unknown: Any) -> bool:
        """Where a branch only chooses between values of registers, these have none, instead of a report here."""
        keys = skipped(self.kernel, branch)
        if keys is None:
            return False
        lanes = np.zeros(self.state.lane_count, bool)
        lanes[sel.index[unknown]] = True
        sources = [self.origins.get(_key(r)) for r in branch.guard_registers]
        self.chosen.setdefault(branch.target, []).append((keys, lanes, sources[0] if sources else None))
        return True

    def arrive(self, place: int, sel: Selection) -> None:
        """Lanes come to where such a branch leads."""
        left = []
        for keys, lanes, origin in self.chosen.pop(place, ()):
            here = lanes[sel.lanes]
            for key in keys if here.any() else ():
                table = self.table(key)
                dtype = np.dtype(_DTYPES[key[0]])
                masks = np.where(here[:, None] if table.ndim > 1 else here, _ones(dtype), table[sel.lanes])
                table[sel.lanes] = masks
                self.lacking.add(key)
                if origin is not None:
                    self.origins[key] = origin
            lanes[sel.lanes] = False
            if lanes.any():
                left.append((keys, lanes, origin))
        if left:
            self.chosen[place] = left

    def _keys(self, operation: Operation) -> frozenset[Key]:
        """The registers of an operation that may lack something at some time."""
        index = operation.instruction.index
        found = self.keys.get(index)
        if found is None:
            registers = registers_of((*operation.reads, *operation.writes)) + operation.guard_registers
            found = self.keys[index] = frozenset(map(_key, registers)) & self.tainted
        return found

    def _keeps(self, operation: Store, sel: Selection) -> Any:
        """Lanes that store to memory that has a mask, or to their own, where padding of structures is copied."""
        poisoned = self._any([operation.address], sel)
        known = np.ones(sel.n, bool) if poisoned is None else ~poisoned
        own = _within(operation, "local", LOCAL_WINDOW, self.state, sel)
        return known & (own | self._masked(operation, sel))

    def _masked(self, operation: Any, sel: Selection) -> Any:
        """Lanes that access memory that has a mask, which the check of shared memory keeps up to date."""
        return _within(operation, "shared", SHARED_WINDOW, self.state, sel) & (self.state.races is not None)

    def _index(self, operation: Any, sel: Selection) -> Any:
        """The bytes of shared memory at which the lanes' accesses begin."""
        address = operation.address.get(self.state, sel)
        if operation.space is None:
            address = address - SHARED_WINDOW
        return self.state.memory.shared_index(operation, sel, address, operation.width)

    def stored(self, operation: Store, sel: Selection) -> None:
        """What was stored without a value is memory without a value; called after the store."""
        if self.lacking.isdisjoint(self._keys(operation)):
            return
        element = f"u{min(operation.type.bytes, 8)}"
        parts = [_unsigned(np.asarray(self._moved(v, sel))).astype(element) for v in operation.values]
        parts = [np.broadcast_to(part, (sel.n, *part.shape[1:])) for part in parts]
        masks = np.stack(parts, axis=1).reshape(sel.n, -1).view(np.uint8)
        there = self._masked(operation, sel)
        if operation.guard is not None:
            there = there & operation.guard.get(self.state, sel)
        if not masks[there].any():
            return
        if self.shared is None:
            self.shared = np.zeros_like(self.state.memory.shared)
        index = self._index(operation, sel.subset(there))
        self.shared.reshape(-1, operation.width)[index // operation.width] = masks[there]
        self.state.races.forget(index, masks[there])

    def _loaded(self, operation: Load, sel: Selection, guard: Any) -> None:
        """Registers get the mask of the memory that they are loaded from."""
        there = self._masked(operation, sel)
        if guard is not None:
            there = there & guard
        if not there.any():
            return
        some = sel.subset(there)
        index = self._index(operation, some)
        found = self._memory(operation, some, index, operation.width)
        if found is None:
            return
        masks = np.zeros((sel.n, operation.width), np.uint8)
        masks[there] = found
        if operation.type.bits == 128:
            results = [masks.view(np.uint64)]
        else:
            results = list(masks.view(operation.type.dtype).T)
        self._put_all(operation, sel, guard, results if operation.count > 1 else results[0])

    def _memory(self, operation: Operation, sel: Selection, index: Any, width: int) -> Any:
        """The masks ``[n, width]`` of bytes of shared memory, or None where all of it has a value."""
        missing = self.state.races.unwritten(index, width)
        if not missing.any():
            return None
        shape = (*missing.shape, width // missing.shape[1])
        stored = np.zeros(shape, np.uint8)
        if self.shared is not None:
            stored = self.shared.reshape(-1, width)[index // width].reshape(shape)
        never = missing & ~stored.any(axis=2)
        if never.any():
            bad = never.any(axis=1)
            offsets = index[bad] + never[bad].argmax(axis=1) * shape[2]
            self.origin = operation, dict(zip(sel.index[bad].tolist(), offsets.tolist()))
        found = np.where(missing[:, :, None], np.where(never[:, :, None], np.uint8(255), stored), np.uint8(0))
        return found.reshape(len(index), width)

    def _matrix_loaded(self, operation: MatrixAccess, sel: Selection) -> None:
        """``ldmatrix`` moves the masks of memory as it moves its words."""
        givers, rows = operation.rows(self.state, sel)
        found = self._memory(operation, givers, rows.reshape(-1), 16)
        if found is None:
            return
        words = found.view(np.uint32).reshape(len(rows), operation.op.words, LANES)
        values = operation.op.arrange(words)
        for position, register in enumerate(operation.writes):
            if isinstance(register, Register):
                self._put(register, sel, None, values[:, position].reshape(-1))

    def _multiply(self, operation: MatrixMultiply, sel: Selection) -> None:
        """An element of a product lacks a value if one of its row, its column or its addend does.

        Which these are says the instruction itself, multiplying ones that stand for missing elements by ones.
        """
        op, dtype = operation.op, np.dtype(operation.dtype)
        element = np.dtype(f"u{op.element_bits // 8}")
        one = element.type(_ONES[op.a_type]), element.type(_ONES[op.b_type])
        masks = []
        for part in (operation.a, operation.b, operation.c):
            masks.append(np.zeros((sel.n // LANES, len(part), LANES), dtype))
            for position, register in enumerate(part):
                if isinstance(register, Register):
                    masks[-1][:, position] = register.warp(self, sel)
        a, b = (
            np.where(m.view(element) != 0, number, element.type(0)).view(dtype)
            for m, number in zip(masks, one)
        )
        ones_a, ones_b = (np.full_like(m.view(element), number).view(dtype) for m, number in zip(masks, one))
        nothing = np.zeros_like(masks[2])
        result = np.dtype({"f16": np.uint16, "f64": np.uint64}.get(op.d_type, np.uint32))
        parts = [op(a, ones_b, nothing), op(ones_a, b, nothing), masks[2]]
        lacking = np.logical_or.reduce([np.ascontiguousarray(p).view(result) != 0 for p in parts])
        values = np.where(lacking, _ones(result), result.type(0)).view(dtype)
        for position, register in enumerate(operation.writes):
            if isinstance(register, Register):
                self._put(register, sel, None, values[:, position].reshape(-1))

    def _write(self, operation: Operation, sel: Selection, guard: Any, lacking: Any) -> None:
        """Results that lack all their bits in some lanes, and none in the others."""
        for register in registers_of(operation.writes):
            if _key(register) in self.tainted:
                flags = np.zeros(sel.n, bool) if lacking is None else lacking
                dtype = np.dtype(_DTYPES[register.bank])
                mask = np.where(flags, _ones(dtype), dtype.type(0))
                self._put(register, sel, guard, mask[:, None] if register.bank == 128 else mask)

    def _put(self, register: Register, sel: Selection, guard: Any, mask: Any) -> None:
        """Set the whole mask of a register."""
        table = self.table(_key(register))
        if guard is not None:
            mask = np.where(guard[:, None] if table.ndim > 1 else guard, mask, table[sel.lanes])
        table[sel.lanes] = mask
        if mask.any():
            self.lacking.add(_key(register))
            if self.origin is not None:
                self.origins[_key(register)] = self.origin
            else:
                self.origins.pop(_key(register), None)
        elif guard is None and sel.n == self.state.lane_count:
            self.lacking.discard(_key(register))

    def _put_all(self, operation: Operation, sel: Selection, guard: Any, results: Any) -> None:
        """Set the masks of the results from values of their types, extended as values are."""
        for target, result in zip(operation.writes, results if len(operation.writes) > 1 else (results,)):
            if isinstance(target, Register) and _key(target) in self.tainted:
                if result.dtype.itemsize != target.store.itemsize:
                    result = result.astype(target.store)
                self._put(target, sel, guard, _unsigned(result))

    def _map(self, operation: Map, sel: Selection, guard: Any) -> None:
        unguarded = self._any(operation.guard_registers, sel)
        lacking = self._any([*operation.reads, *operation.guard_registers], sel)
        if lacking is None or not lacking.any() or (unguarded is not None and unguarded.any()):
            self._write(operation, sel, guard, lacking)
        elif operation.moves:
            moved = [self._moved(source, sel) for source in operation.reads[: operation.moves]]
            rest = [source.get(self.state, sel) for source in operation.reads[operation.moves :]]
            self._put_all(operation, sel, guard, operation.function(*moved, *rest))
        elif operation.bitwise:
            self._put_all(operation, sel, guard, self._reached(operation, sel))
        elif operation.converts:
            self._put_all(operation, sel, guard, self._converted(operation, sel))
        elif operation.packed:
            masks = [self._mask(register, sel) for register in registers_of(operation.reads)]
            total = np.bitwise_or.reduce(masks)
            parts = total.view(f"u{operation.packed // 8}")
            parts[...] = np.where(parts != 0, _ones(parts.dtype), 0)
            self._put_all(operation, sel, guard, total)
        elif operation.selects:
            first, second, chooser = operation.reads
            masks = [_unsigned(np.asarray(self._moved(item, sel))) for item in (first, second)]
            chosen = np.where(chooser.get(self.state, sel), *masks)
            unknown = self._any([chooser], sel)
            if unknown is not None:
                chosen = np.where(unknown, _ones(chosen.dtype), chosen)
            self._put_all(operation, sel, guard, chosen)
        else:
            self._write(operation, sel, guard, lacking)

    def _moved(self, source: Any, sel: Selection) -> Any:
        """The mask of an operand in its own type, that of what it negates for a negation; constants lack nothing."""
        source = getattr(source, "item", source)
        if isinstance(source, Register):
            return source.get(self, sel)
        value = source.get(self.state, sel)
        return np.zeros_like(value)[()]

    def _reached(self, operation: Map, sel: Selection) -> Any:
        """The bits of a bitwise result that depend on bits without a value."""
        values = [source.get(self.state, sel) for source in operation.reads]
        masks = [self._moved(source, sel) for source in operation.reads]
        outcomes = [
            operation.function(*[(v | m) if bit else (v & ~m) for v, m, bit in zip(values, masks, choice)])
            for choice in itertools.product((False, True), repeat=len(values))
        ]
        return np.bitwise_or.reduce([outcome ^ outcomes[0] for outcome in outcomes[1:]])

    def _converted(self, operation: Map, sel: Selection) -> Any:
        """Elements of a result lack all their bits where those that they are converted from lack any."""
        count, result = operation.converts, operation.writes[0].dtype
        masks = [_unsigned(np.asarray(self._moved(source, sel))) for source in operation.reads]
        if len(masks) < count:
            (mask,) = masks
            width = mask.dtype.itemsize * 8 // count
            masks = [(mask >> width * (count - 1 - i)) & ((1 << width) - 1) for i in range(count)]
        width = result.itemsize * 8 // count
        total = np.zeros(sel.n, f"u{result.itemsize}")
        for mask in masks:
            total = total << width if count > 1 else total
            total |= np.where(mask != 0, total.dtype.type((1 << width) - 1), total.dtype.type(0))
        return total

    def _exchange(self, operation: Synchronised, sel: Selection, guard: Any) -> None:
        """A shuffle moves the mask with the value; a vote or reduction lacks one if a member does."""
        poisoned = self._any(operation.inputs[:1], sel)
        if poisoned is None:
            self._write(operation, sel, guard, None)
            return
        if not operation.lenient:
            members = sel.spread(poisoned, False) & sel.mask
            moved = np.broadcast_to(members.any(axis=1)[:, None], members.shape)
            self._write(operation, sel, guard, sel.gather(moved))
            return
        rest = [source.warp(self.state, sel) for source in operation.inputs[1:]]
        masks = sel.spread(self._mask(operation.inputs[0], sel), 0)
        self._write(operation, sel, guard, None)
        target = operation.writes[0]
        if isinstance(target, Register) and _key(target) in self.tainted:
            self._put(target, sel, guard, sel.gather(operation.function(sel.mask, masks, *rest)[0]))

    def _report(self, operation: Operation, sel: Selection, bad: Any, operands: Any) -> None:
        position = int(np.flatnonzero(bad)[0])
        lane = int(sel.index[position])
        names, origin = [], None
        for register in registers_of(operands):
            key = _key(register)
            if key in self.tainted and np.any(self._mask(register, sel)[position]):
                names.append(self.kernel.register_names[key])
                origin = origin or self.origins.get(key)
                self.table(key)[sel.lanes] = 0
        if origin is not None:
            load, offsets = origin
            lane = lane if lane in offsets else next(iter(offsets))
            self.state.races.report_unwritten(load, lane, offsets[lane], place_of(operation.instruction))
            return
        self.state.hazard(
            "uninitialized-register",
            f"{operation.instruction.opcode.split('.')[0]} uses register {' and '.join(names)}, which holds no value "
            "or one computed from a register that nothing wrote",
            operation.instruction,
            lane,
        )
