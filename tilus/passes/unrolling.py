"""Unrolls loops by the factor that the user asked for.

LLVM does not where the number of turns is unknown and threads meet in the body (a product, a reduction, a barrier).
"""

from __future__ import annotations

from tilus.dtypes import int32
from tilus.errors import Location, SyntaxNotSupported
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import ScalarType
from tilus.passes.canonicalise import handed_on
from tilus.passes.turns import index_of_turn, turn_count


def unroll_loops(kernel: Kernel) -> Kernel:
    """Replace each loop with a factor by one of so many bodies a turn, and one for the turns that are left."""
    return _Unroll().run(kernel)


class _Unroll(Rewriter):
    """Knows the constants before an operation, besides what values became."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: set[Value] = set()

    def visit(self, operation: Operation) -> None:
        if isinstance(operation, ops.Constant):
            self.constants.add(operation.result)
        if isinstance(operation, ops.For) and operation.unroll < 0:
            if not {operation.start, operation.stop, operation.step} <= self.constants:
                raise SyntaxNotSupported(
                    "the bounds of a loop that is unrolled in full are known at compile time",
                    operation.loc,
                    hint="tilus.unroll(range(...), 4), which copies the body as often",
                )
        elif isinstance(operation, ops.For) and operation.unroll > 1 and not leaves_early(operation.body):
            self.unroll(operation)
            return
        self.copy(operation)

    def unroll(self, operation: ops.For) -> None:
        loc, factor = operation.loc, operation.unroll
        none, one, step = (self.emit(ops.Constant(n, int32, loc=loc)).result for n in (0, 1, factor))
        turns = self.binary("max", turn_count(self, operation), none, loc)
        whole = self.binary("sub", turns, self.binary("mod", turns, step, loc), loc)
        inits = tuple(map(self.value, operation.inits))
        inits = self.loop(operation, (none, whole, step), inits, factor)
        self.replace(operation, self.loop(operation, (whole, turns, one), inits, 1))

    def loop(
        self, operation: ops.For, bounds: tuple[Value, Value, Value], inits: tuple[Value, ...], copies: int
    ) -> tuple[Value, ...]:
        """Emit a loop over turns with so many copies of the body; return its results."""
        number = Value(ScalarType(int32), "turn")
        carried = tuple(Value(a.type, a.name) for a in operation.body.args[1:])
        self.blocks.append([])
        values = carried
        for place in range(copies):
            turn = number
            if place:
                ahead = self.emit(ops.Constant(place, int32, loc=operation.loc)).result
                turn = self.binary("add", number, ahead, operation.loc)
            self.mapping[operation.body.args[0]] = index_of_turn(self, operation, turn)
            self.mapping.update(zip(operation.body.args[1:], values, strict=True))
            for inner in operation.body.ops[:-1]:
                self.visit(inner)
            values = tuple(map(self.value, operation.body.terminator.inputs()))
        self.emit(ops.Yield(values, loc=operation.loc))
        body = Region((number, *carried), tuple(self.blocks.pop()))
        return self.emit(ops.For(*bounds, inits, 0, 1, body, loc=operation.loc)).results

    def binary(self, kind: str, a: Value, b: Value, loc: Location | None) -> Value:
        """Emit scalar arithmetic."""
        return self.emit(ops.Binary(kind, a, b, loc=loc)).result


def leaves_early(body: Region) -> bool:
    """Tell whether the body of a loop ends otherwise than at its end."""
    return len(handed_on(body)) != 1 or not isinstance(body.terminator, ops.Yield)
