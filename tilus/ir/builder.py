"""Builds operations one after the other, with the source location of the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilus.dtypes import DType, int32
from tilus.errors import Location, TilusError
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value


class Builder:
    """An insertion point: `emit` appends to the innermost open region."""

    def __init__(self) -> None:
        self.blocks: list[list[Operation]] = []
        self.loc: Location | None = None

    @contextmanager
    def region(self) -> Iterator[list[Operation]]:
        """Open a region; what is emitted inside goes to the list that this yields."""
        block: list[Operation] = []
        self.blocks.append(block)
        try:
            yield block
        finally:
            self.blocks.pop()

    def emit(self, cls: type[Operation], *args: object, **fields: object) -> Operation:
        """Build an operation at the current location and append it."""
        try:
            made = cls(*args, **fields, loc=self.loc)
        except TilusError as error:
            raise error.at(self.loc) from None
        return self.append(made)

    def append(self, operation: Operation) -> Operation:
        """Append an operation that exists already."""
        self.blocks[-1].append(operation)
        return operation

    def constant(self, value: int | float | bool, dtype: DType = int32) -> Value:
        """Emit a scalar constant."""
        return self.emit(ops.Constant, value, dtype).result


def make_region(args: tuple[Value, ...], block: list[Operation]) -> Region:
    """Close a region."""
    return Region(args, tuple(block))
