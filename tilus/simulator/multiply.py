"""Runs of ``mma.sync`` as one step: instructions of one kind whose order with what stands between does not matter.

A warp's instructions execute in their order. What stands between two of them is executed before both if it touches
none of their registers in a way that the order matters for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import tensorcore_native
from .matrix import MatrixMultiply
from .operands import Register
from .operations import Map, Operation, registers_of

# More fragments than these do not stay in the first-level cache.
_MOST = 64


class MultiplyRun:
    """Some ``mma.sync`` of one kind, planned for machine code.

    Attributes
    ----------
    operations : list of MatrixMultiply
        In the order of the program.
    """

    def __init__(self, operations: list[MatrixMultiply]) -> None:
        self.operations = operations
        op = self.op = operations[0].op
        fragments: tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]] = ({}, {})
        steps = []
        for operation in operations:
            slots = [
                known.setdefault(_rows(part), len(known))
                for known, part in zip(fragments, (operation.a, operation.b))
            ]
            steps.append([*slots, *_rows(operation.c), *_rows(operation.writes)])
        self.a_rows, self.b_rows = (np.array(list(known), np.int64) for known in fragments)
        self.steps = np.array(steps, np.int64)
        self.tables = tensorcore_native.tables(op)

    def bind(self, state: Any, lo: int, hi: int) -> Any:
        """A call that multiplies for whole warps ``lo`` to ``hi``."""
        function = tensorcore_native.multiply(self.op)
        bank = state.banks[32]
        scratch = np.empty(tensorcore_native.scratch_doubles(self.op, len(self.a_rows), len(self.b_rows)))
        a_index, b_index, a_table, b_table = self.tables
        arguments = (
            lo, hi, bank.ctypes.data, bank.strides[0], self.a_rows.ctypes.data, len(self.a_rows),
            self.b_rows.ctypes.data, len(self.b_rows), self.steps.ctypes.data, len(self.steps), a_index.ctypes.data,
            b_index.ctypes.data, a_table.ctypes.data, b_table.ctypes.data, scratch.ctypes.data,
        )  # fmt: skip
        counters, warps = state.engine.counters, hi - lo
        entries = [counters.tensor_entry(o.instruction, o.name, self.op) for o in self.operations]
        operations = warps * self.op.flops

        # The default keeps the memory alive whose address is among the arguments.
        def step(_: Any = scratch) -> None:
            function(*arguments)
            for entry in entries:
                entry[0] += warps
                entry[1] += operations

        return step


def _rows(registers: Sequence[Any]) -> tuple[int, ...]:
    return tuple(register.row for register in registers)


def compiles(operation: Operation) -> bool:
    """Whether an operation can be part of a run."""
    if type(operation) is not MatrixMultiply or operation.guard is not None:
        return False
    everything = (*operation.a, *operation.b, *operation.c, *operation.writes)
    if not all(isinstance(r, Register) and r.bank == 32 and r.step == 1 for r in everything):
        return False
    c, d = _rows(operation.c), _rows(operation.writes)
    # Rows of a result are written one after another.
    apart = len(set(d)) == len(d) and (c == d or not set(c) & set(d))
    return apart and tensorcore_native.supports(operation.op)


class Scheduler:
    """Puts operations in order, runs of multiplications in the place of their last one."""

    def __init__(self) -> None:
        self.schedule: list[Any] = []
        self.run: list[MatrixMultiply] = []
        self.inputs: set[int] = set()
        self.results: set[int] = set()
        self.read: set[int] = set()

    def add(self, operation: Operation) -> None:
        """The next operation of the program."""
        if isinstance(operation, MatrixMultiply) and compiles(operation):
            inputs = {*_rows(operation.a), *_rows(operation.b)}
            results = set(_rows(operation.writes))
            if self.run and (
                operation.op is not self.run[0].op
                or len(self.run) == _MOST
                or inputs & self.results
                or results & self.inputs
            ):
                self.flush()
            self.run.append(operation)
            self.inputs |= inputs
            self.results |= results
            self.read |= inputs | {r.row for r in operation.c}
            self.schedule.append(operation)
            return
        if self.run and not self._independent(operation):
            self.flush()
        self.schedule.append(operation)

    def _independent(self, operation: Operation) -> bool:
        """Whether an operation may execute before the multiplications of the run."""
        if not isinstance(operation, Map) and not getattr(operation, "memory", False):
            return False
        reads = {r.row for r in registers_of(operation.reads) + operation.guard_registers if r.bank == 32}
        writes = {r.row for r in registers_of(operation.writes) if r.bank == 32}
        return not (reads & self.results or writes & self.results or writes & self.read)

    def flush(self) -> None:
        """End the run."""
        if self.run:
            self.schedule.append(MultiplyRun(self.run))
        self.run = []
        self.inputs, self.results, self.read = set(), set(), set()


def scheduled(operations: Sequence[Operation]) -> list[Any]:
    """The operations in an order with the same results; an operation that `compiles` is done by a later run."""
    if not any(isinstance(operation, MatrixMultiply) for operation in operations):
        return list(operations)
    scheduler = Scheduler()
    for operation in operations:
        scheduler.add(operation)
    scheduler.flush()
    return scheduler.schedule
