"""Which threads can make anything of what a load gives them.

Compilers let threads beyond the size of a tile load what others load too, compute with it and store nothing. Such a
load may give what it likes, so it cannot race. A thread counts as one of these if everything that the loaded value
reaches is done under predicates which are false for it by its number in the block alone. A value that no thread uses
is no such thing, but a mistake.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .control import Branch
from .memory import Load, Store
from .operands import Constant, Not, Register, Special
from .operations import Map, registers_of
from .specials import special_register
from .warp import Synchronised

Key = tuple[int, int]
_ALL = (None, False)
_OF_THREAD = ("%tid", "%ntid", "%laneid", "%warpid")


def _key(register: Register) -> Key:
    return register.bank, register.row


def _join(known: set[Any], more: set[Any]) -> bool:
    """Add guards; whether that changes anything."""
    if _ALL in known or more <= known:
        return False
    if _ALL in more:
        known.clear()
    known |= more
    return True


class ReadUses:
    """What the loads of a kernel's threads are used for, found when it is asked for."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.threads = np.arange(-(-int(np.prod(engine.block)) // 32) * 32)
        self.loads: dict[int, Any] = {}
        self.values: dict[Key, Any] = {}
        self.flows: tuple[dict[Key, Any], dict[Key, Any]] | None = None

    def used(self, instruction: Any) -> Any:
        """For each thread of a block: whether it may use what the load gives; None stands for all."""
        if not isinstance(getattr(instruction, "operation", None), Load):
            return None
        if instruction.index not in self.loads:
            self.loads[instruction.index] = self._used(instruction.operation)
        return self.loads[instruction.index]

    def _used(self, load: Any) -> Any:
        reached, definitions = self.flows = self.flows or self._flows()
        guards: set[Any] = set()
        for register in registers_of(load.writes):
            guards |= reached.get(_key(register), set())
        used = np.zeros(len(self.threads), bool)
        if _ALL in guards or not guards:
            return None
        for guard, shuffled in guards:
            may = np.broadcast_to(self._may_hold(guard, definitions), used.shape)
            used |= np.repeat(may.reshape(-1, 32).any(axis=1), 32) if shuffled else may
        return used

    def _flows(self) -> tuple[dict[Key, Any], dict[Key, Any]]:
        """For each register the guards of what its value reaches, and its only definition.

        A guard comes with whether the value may go through other lanes of the warp on its way; `_ALL` is all of them.
        """
        reached: dict[Key, set[Any]] = {}
        same: dict[Any, Any] = {}
        definitions: dict[Key, Any] = {}
        moves = []
        for instruction in self.engine.kernel.instructions:
            operation = instruction.operation
            for register in registers_of(operation.writes):
                definitions[_key(register)] = None if _key(register) in definitions else operation
            reads = [_key(r) for r in registers_of(operation.reads)]
            if isinstance(operation, (Map, Synchronised)):
                reads += [_key(r) for r in operation.guard_registers]
                shuffled = isinstance(operation, Synchronised)
                moves.append((reads, [_key(r) for r in registers_of(operation.writes)], shuffled))
                continue
            if isinstance(operation, Branch) and operation.guard is not None:
                decided, effects = self._decided(instruction.index, operation.target)
                moves.append(([_key(r) for r in operation.guard_registers], decided, False))
                for register in operation.guard_registers:
                    _join(reached.setdefault(_key(register), set()), effects)
                continue
            guard = operation.guard
            if guard is not None:
                guard = same.setdefault((type(guard), *map(_key, operation.guard_registers)), guard)
            for key in reads:
                _join(reached.setdefault(key, set()), {_ALL if guard is None else (guard, False)})
            for register in operation.guard_registers:
                _join(reached.setdefault(_key(register), set()), {_ALL})
        changed = True
        while changed:
            changed = False
            for reads, writes, shuffled in reversed(moves):
                beyond = set().union(*[reached.get(key, set()) for key in writes])
                if shuffled and _ALL not in beyond:
                    beyond = {(guard, True) for guard, _ in beyond}
                for key in reads:
                    changed |= _join(reached.setdefault(key, set()), beyond)
        return reached, definitions

    def _decided(self, index: int, end: int) -> tuple[list[Key], set[Any]]:
        """Registers written, and guards of what else is done, on some ways from a forward branch only."""
        instructions = self.engine.kernel.instructions
        decided: list[Key] = []
        effects: set[Any] = set()
        at = index + 1
        while at < end:
            operation = instructions[at].operation
            if isinstance(operation, Map):
                decided += [_key(r) for r in registers_of(operation.writes)]
            elif isinstance(operation, Branch) and operation.target > at:
                end = max(end, operation.target)
            elif isinstance(operation, Store) and operation.guard is not None:
                effects.add((operation.guard, False))
            else:
                return [], {_ALL}
            at += 1
        return (decided, effects) if end > index else ([], {_ALL})

    def _may_hold(self, guard: Any, definitions: dict[Key, Any]) -> Any:
        """For each thread: whether a guard may be true."""
        operation = definitions.get(_key(guard)) if isinstance(guard, Register) else None
        if isinstance(operation, Map) and operation.guard is None and operation.function is np.bitwise_and:
            first, second = (self._may_hold(item, definitions) for item in operation.reads)
            return first & second
        value = self._value(guard, definitions)
        return True if value is None else value

    def _value(self, operand: Any, definitions: dict[Key, Any]) -> Any:
        """An operand for each thread, as far as its number in the block decides it; None where it does not."""
        if isinstance(operand, Constant):
            return operand.value
        if isinstance(operand, Not):
            value = self._value(operand.item, definitions)
            return None if value is None else ~value
        if isinstance(operand, Special):
            return self._special(operand)
        if not isinstance(operand, Register) or operand.bank == 128:
            return None
        key = _key(operand)
        if key not in self.values:
            self.values[key] = None
            self.values[key] = self._defined(key, definitions)
        raw = self.values[key]
        return None if raw is None else raw.view(operand.dtype)[:: operand.step]

    def _special(self, operand: Special) -> Any:
        if operand.name.partition(".")[0] not in _OF_THREAD:
            return None
        return special_register(_Threads(self), operand.name).astype(operand.dtype)

    def _defined(self, key: Key, definitions: dict[Key, Any]) -> Any:
        operation = definitions.get(key)
        if not isinstance(operation, Map) or operation.guard is not None:
            return None
        values = [self._value(source, definitions) for source in operation.reads]
        if any(value is None for value in values):
            return None
        with np.errstate(all="ignore"):
            results = operation.function(*values)
        for target, result in zip(operation.writes, results if len(operation.writes) > 1 else (results,)):
            if isinstance(target, Register) and _key(target) == key:
                raw = np.empty(len(self.threads), target.store)
                raw[...] = result
                return raw
        return None


class _Threads:
    """One block, as special registers see it."""

    def __init__(self, uses: ReadUses) -> None:
        self.engine = uses.engine
        self.thread_of_lane = uses.threads
        self.lane_count = len(uses.threads)
        self.block_of_lane = np.zeros(self.lane_count, np.int64)
        self.blocks = np.zeros(1, np.int64)
