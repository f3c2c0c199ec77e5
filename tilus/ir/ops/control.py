"""Structured control flow. Terminators may leave a loop or the kernel from any depth of `if`."""

from __future__ import annotations

from tilus.dtypes import boolean
from tilus.errors import TypeMismatch
from tilus.ir.core import Operation, Region, Value, attribute, op, operand, operands, region
from tilus.ir.types import RegisterType, ScalarType, Type


@op("yield", terminator=True)
class Yield(Operation):
    """End a region with the values of the operation that holds it (a loop's next iteration)."""

    values: tuple[Value, ...] = operands(default=())


@op("break", terminator=True)
class Break(Operation):
    """Leave the innermost loop; `values` become its results."""

    values: tuple[Value, ...] = operands(default=())


@op("continue", terminator=True)
class Continue(Operation):
    """Start the next iteration of the innermost loop with `values`."""

    values: tuple[Value, ...] = operands(default=())


@op("return", terminator=True)
class Return(Operation):
    """End the kernel for this group of threads."""


def carried(inits: tuple[Value, ...]) -> tuple[Type, ...]:
    """Types of loop-carried values: register tiles drop their layout until inference gives the loop one."""
    return tuple(v.type for v in inits)


@op("for")
class For(Operation):
    """Loop over `range(start, stop, step)`; the body's arguments are the index and the carried values.

    `stages` > 0 asks for software pipelining: what an iteration copies with `copy_async` is there for that iteration,
    without commits and waits. `unroll` is 0 (LLVM decides), a factor, or -1 (in full).
    """

    start: Value = operand()
    stop: Value = operand()
    step: Value = operand()
    inits: tuple[Value, ...] = operands(default=())
    stages: int = attribute(default=0)
    unroll: int = attribute(default=0)
    body: Region = region()

    def infer(self) -> tuple[Type, ...]:
        for value in (self.start, self.stop, self.step):
            if not (isinstance(value.type, ScalarType) and value.type.dtype.is_integer):
                raise TypeMismatch(f"range takes integers, not {value.type}")
        return tuple(v.type for v in self.body.args[1:])


@op("loop")
class Loop(Operation):
    """Repeat the body until it breaks; the body's arguments are the carried values."""

    inits: tuple[Value, ...] = operands(default=())
    body: Region = region()

    def infer(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.body.args)


@op("if")
class If(Operation):
    """Run one of two regions; its results are what the region that ran yields."""

    cond: Value = operand()
    then: Region = region()
    orelse: Region = region()

    def infer(self) -> tuple[Type, ...]:
        if not (isinstance(self.cond.type, ScalarType) and self.cond.type.dtype is boolean):
            raise TypeMismatch(f"if takes a scalar boolean, not {self.cond.type}")
        yields = [r.terminator for r in (self.then, self.orelse) if isinstance(r.terminator, Yield)]
        if not yields:
            return ()
        types = [tuple(v.type for v in y.values) for y in yields]
        if len(types) == 2:
            if len(types[0]) != len(types[1]):
                raise TypeMismatch(f"the branches of if yield {len(types[0])} and {len(types[1])} values")
            for first, second in zip(*types, strict=True):
                if strip(first) != strip(second):
                    raise TypeMismatch(f"the branches of if yield {first} and {second}")
        return types[0]


def strip(type: Type) -> Type:
    """Return a type without its register layout."""
    if isinstance(type, RegisterType):
        return RegisterType(type.dtype, type.shape)
    return type


@op("warps")
class WarpGroup(Operation):
    """Run the region on `count` warps from `first` on only; `registers` > 0 sets their register budget.

    A region yields nothing: values pass between groups through memory.
    """

    first: int = attribute()
    count: int = attribute()
    registers: int = attribute(default=0)
    body: Region = region()
