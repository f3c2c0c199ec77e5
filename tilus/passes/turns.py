"""Counts the turns of a range, and finds the index of each: for passes that count loops from zero."""

from __future__ import annotations

from tilus.dtypes import DType, int32, int64
from tilus.errors import Location
from tilus.ir import ops
from tilus.ir.core import Value
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import ScalarType


def as_dtype(rewriter: Rewriter, value: Value, dtype: DType, loc: Location | None) -> Value:
    """Convert an integer scalar unless it has the dtype."""
    assert isinstance(value.type, ScalarType)
    return value if value.type.dtype is dtype else rewriter.emit(ops.Cast(value, dtype, loc=loc)).result


def turn_count(rewriter: Rewriter, op: ops.For) -> Value:
    """Return how many turns a loop has, as int32; not positive for none."""
    assert isinstance(op.start.type, ScalarType)
    wide = int32 if op.start.type.dtype is int32 else int64
    start, stop, step = (
        as_dtype(rewriter, rewriter.value(v), wide, op.loc) for v in (op.start, op.stop, op.step)
    )
    # Rounded up, whatever the sign of the step: -((start - stop) // step).
    distance = rewriter.emit(ops.Binary("sub", start, stop, loc=op.loc)).result
    whole = rewriter.emit(ops.Binary("floordiv", distance, step, loc=op.loc)).result
    return as_dtype(rewriter, rewriter.emit(ops.Unary("neg", whole, loc=op.loc)).result, int32, op.loc)


def index_of_turn(rewriter: Rewriter, op: ops.For, number: Value) -> Value:
    """Return the loop's index in a turn, of which `number`, int32, counts from zero."""
    assert isinstance(op.start.type, ScalarType)
    start, step = rewriter.value(op.start), rewriter.value(op.step)
    turn = as_dtype(rewriter, number, op.start.type.dtype, op.loc)
    scaled = rewriter.emit(ops.Binary("mul", turn, step, loc=op.loc)).result
    return rewriter.emit(ops.Binary("add", start, scaled, loc=op.loc)).result
