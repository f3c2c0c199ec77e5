"""Copies a kernel while replacing operations: the base of all passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.ops import Break, Continue, For, If, Loop, Yield


class Rewriter:
    """Rebuild a kernel operation by operation.

    `visit` gets each operation with its operands still old; the default copies it with mapped operands and
    regions. A pass overrides `visit` (calling `self.emit` for new operations and `self.replace` for results)
    and falls back to `self.copy`.
    """

    def __init__(self) -> None:
        self.mapping: dict[Value, Value] = {}
        self.blocks: list[list[Operation]] = []

    def run(self, kernel: Kernel) -> Kernel:
        """Return the rewritten kernel."""
        for param in kernel.params:
            self.mapping[param] = param
        grid = self.region(kernel.grid)
        body = self.region(kernel.body)
        return dataclasses.replace(kernel, grid=grid, body=body)

    def value(self, old: Value) -> Value:
        """Return what an old value became."""
        return self.mapping[old]

    def emit(self, operation: Operation) -> Operation:
        """Append a new operation."""
        self.blocks[-1].append(operation)
        return operation

    def replace(self, old: Operation, new: Sequence[Value]) -> None:
        """Say that the results of `old` became `new`; names carry over."""
        for before, after in zip(old.results, new, strict=True):
            self.mapping[before] = after
            if not after.name:
                after.name = before.name

    def argument(self, old: Value) -> Value:
        """Return the new value of a region's argument."""
        new = Value(old.type, old.name)
        self.mapping[old] = new
        return new

    def region(self, region: Region) -> Region:
        """Rewrite a region."""
        args = tuple(self.argument(a) for a in region.args)
        self.blocks.append([])
        for operation in region.ops:
            self.visit(operation)
        return Region(args, tuple(self.blocks.pop()))

    def visit(self, operation: Operation) -> None:
        """Rewrite one operation."""
        self.copy(operation)

    def copy(self, operation: Operation) -> Operation:
        """Append a copy with mapped operands and rewritten regions."""
        new = operation.with_operands(self.value, self.region)
        self.emit(new)
        self.replace(operation, new.results)
        return new


def is_structured(operation: Operation) -> bool:
    """Tell whether results of the operation are carried by terminators inside it."""
    return isinstance(operation, (For, Loop, If))


def carries(operation: Operation) -> bool:
    """Tell whether a terminator hands values to the operation around it."""
    return isinstance(operation, (Yield, Break, Continue))
