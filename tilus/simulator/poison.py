"""Uninitialised registers: a register that was never written may be copied and computed with, not used.

Compilers load under a predicate and let all lanes compute on, as long as only lanes with a value store it. So a lane's
missing value is followed through registers, and reported where it decides something: an address, a stored or
exchanged-and-stored value, a branch, a guard. Only registers that the data flow reaches are followed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .matrix import MatrixAccess, MatrixMultiply
from .memory import Access
from .operands import Register
from .operations import Control, Map, Operation, registers_of
from .selection import Selection
from .warp import Synchronised

Key = tuple[int, int]


def _key(register: Register) -> Key:
    return register.bank, register.row


def affected(kernel: Any) -> tuple[set[Key], set[int]]:
    """The registers that may hold a value derived from a missing one, and the instructions that touch them."""
    tainted: set[Key] = set(kernel.watched)
    if not tainted:
        return set(), set()
    flows = [
        (
            [_key(r) for r in registers_of(i.operation.reads) + i.operation.guard_registers],
            [_key(r) for r in registers_of(i.operation.writes)],
        )
        for i in kernel.instructions
        if isinstance(i.operation, (Map, Synchronised))
    ]
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


class Poison:
    """Which lanes of which registers hold no value, for one batch."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.kernel = state.kernel
        self.tainted, self.touching = state.kernel.tainted, state.kernel.touching
        self.missing: dict[Key, Any] = {}

    def table(self, key: Key) -> Any:
        """One flag per lane of a register."""
        found = self.missing.get(key)
        if found is None:
            found = np.full(self.state.lane_count, key in self.kernel.watched)
            self.missing[key] = found
        return found

    def _any(self, operands: Any, sel: Selection) -> Any:
        """Per active lane: whether a register among the operands has no value; None where none can lack one."""
        result = None
        for register in registers_of(operands):
            if _key(register) in self.tainted:
                part = self.table(_key(register))[sel.lanes]
                result = part.copy() if result is None else result | part
        return result

    def step(self, operation: Operation, sel: Selection) -> None:
        """Check and follow one operation; called before it executes."""
        guard = None
        if operation.guard is not None:
            poisoned_guard = self._any([operation.guard], sel)
            if not isinstance(operation, Map) and poisoned_guard is not None and poisoned_guard.any():
                self._report(operation, sel, poisoned_guard, [operation.guard])
            guard = operation.guard.get(self.state, sel)
        if isinstance(operation, Map):
            self._map(operation, sel, guard)
        elif isinstance(operation, Synchronised):
            self._exchange(operation, sel, guard)
        else:
            if isinstance(operation, (Access, Control, MatrixAccess)):
                bad = self._any(operation.reads, sel)
                if bad is not None:
                    bad = bad if guard is None else bad & guard
                    if bad.any():
                        self._report(operation, sel, bad, operation.reads)
            elif isinstance(operation, MatrixMultiply):
                self._multiply(operation, sel)
                return
            self._write(operation, sel, guard, None)

    def _write(self, operation: Operation, sel: Selection, guard: Any, values: Any) -> None:
        for register in registers_of(operation.writes):
            if _key(register) not in self.tainted:
                continue
            table = self.table(_key(register))
            new = np.zeros(sel.n, bool) if values is None else values
            table[sel.lanes] = new if guard is None else np.where(guard, new, table[sel.lanes])

    def _map(self, operation: Map, sel: Selection, guard: Any) -> None:
        if operation.selects:
            first, second, chooser = operation.reads
            parts = [self._any([item], sel) for item in (first, second, chooser)]
            a, b, c = (np.zeros(sel.n, bool) if part is None else part for part in parts)
            self._write(operation, sel, guard, np.where(chooser.get(self.state, sel), a, b) | c)
            return
        self._write(operation, sel, guard, self._any([*operation.reads, *operation.guard_registers], sel))

    def _exchange(self, operation: Synchronised, sel: Selection, guard: Any) -> None:
        """A shuffle moves the flag with the value; a vote or reduction lacks one if a member does."""
        poisoned = self._any(operation.inputs[:1], sel)
        if poisoned is None:
            self._write(operation, sel, guard, None)
            return
        flags = sel.spread(poisoned, False)
        if operation.lenient:
            rest = [source.warp(self.state, sel) for source in operation.inputs[1:]]
            moved = operation.function(sel.mask, flags, *rest)[0]
        else:
            moved = np.broadcast_to((flags & sel.mask).any(axis=1)[:, None], flags.shape)
        self._write(operation, sel, guard, sel.gather(np.asarray(moved, bool)))

    def _multiply(self, operation: MatrixMultiply, sel: Selection) -> None:
        bad = self._any(operation.reads, sel)
        if bad is not None and bad.any():
            self._report(operation, sel, bad, operation.reads)
        self._write(operation, sel, None, None)

    def _report(self, operation: Operation, sel: Selection, bad: Any, operands: Any) -> None:
        lane = int(sel.index[np.flatnonzero(bad)[0]])
        names = []
        for register in registers_of(operands):
            key = _key(register)
            if key in self.tainted and self.table(key)[lane]:
                names.append(self.kernel.register_names[key])
                self.table(key)[sel.lanes] = False
        self.state.hazard(
            "uninitialized-register",
            f"{operation.instruction.opcode.split('.')[0]} uses register {' and '.join(names)}, which holds no value "
            "or one computed from a register that nothing wrote",
            operation.instruction,
            lane,
        )
