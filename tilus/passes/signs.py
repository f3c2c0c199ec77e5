"""Which integer scalars are never negative, so that comparisons may leave their sign out of account."""

from __future__ import annotations

from tilus.ir import ops
from tilus.ir.core import Operation, Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.types import ScalarType

_COUNTS = (ops.BlockId, ops.GridDim, ops.ClusterRank, ops.Dim)


def natural_numbers(kernel: Kernel) -> set[Value]:
    """Return the signed integer scalars that are known to be 0 or more, if arithmetic does not overflow."""
    found: set[Value] = set()
    for op in walk(kernel.body):
        if isinstance(op, ops.For):
            # An index that only rises, from one of them.
            if {op.start, op.step} <= found:
                found.add(op.body.args[0])
        elif len(op.results) == 1 and _natural(op, found):
            found.add(op.result)
    return found


def _natural(op: Operation, found: set[Value]) -> bool:
    type = op.result.type
    if not (isinstance(type, ScalarType) and type.dtype.is_integer and type.dtype.is_signed):
        return False
    if isinstance(op, ops.Constant):
        return op.value >= 0
    if isinstance(op, ops.Binary):
        if op.kind in ("max", "and"):
            return op.a in found or op.b in found
        return op.kind in ("add", "mul", "floordiv", "mod", "min", "shr") and {op.a, op.b} <= found
    if isinstance(op, ops.Cast):
        assert isinstance(op.x.type, ScalarType)
        return op.x in found and op.x.type.dtype.bits <= type.dtype.bits
    return isinstance(op, _COUNTS)
