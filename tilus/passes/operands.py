"""Loads that a product has for itself, where other uses would have its layout or give it theirs."""

from __future__ import annotations

from tilus.ir import ops
from tilus.ir.core import Operation, Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter


def load_operands_apart(kernel: Kernel) -> Kernel:
    """Load a tile of shared memory once more where it is the second operand of a dot and something else besides.

    All warps hold a second operand. Elementwise operations on it would be done by each of them, and another product
    would have it exchanged through shared memory, where it is already.
    """
    uses: dict[Value, set[str]] = {}
    for op in walk(kernel.body):
        for value in op.inputs():
            second = isinstance(op, ops.Dot) and value is op.b and value is not op.a
            uses.setdefault(value, set()).add("second operand" if second else "other")
    return _LoadApart({value for value, kinds in uses.items() if len(kinds) > 1}).run(kernel)


class _LoadApart(Rewriter):
    """Rewrites a kernel, given the values that are used in both ways."""

    def __init__(self, shared: set[Value]) -> None:
        super().__init__()
        self.shared = shared
        self.own: dict[Value, Value] = {}

    def visit(self, operation: Operation) -> None:
        if isinstance(operation, ops.Dot) and operation.b in self.own:
            made = operation.with_operands(self.value).replace(b=self.own[operation.b])
            self.emit(made)
            self.replace(operation, made.results)
            return
        self.copy(operation)
        if (
            isinstance(operation, ops.LoadShared)
            and operation.layout is None
            and operation.result in self.shared
        ):
            again = operation.with_operands(self.value)
            self.emit(again)
            self.own[operation.result] = again.result
