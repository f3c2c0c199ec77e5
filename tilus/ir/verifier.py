"""Checks that a kernel is well-formed: scopes, terminators, types, layouts and thread groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilus.dtypes import int32
from tilus.errors import Location, TilusError
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.ops.control import strip
from tilus.ir.types import (
    GlobalType,
    PointerType,
    RegisterType,
    ScalarType,
    SharedType,
    Type,
)
from tilus.layout import LayoutError


class InvalidIR(TilusError):
    """A kernel that breaks a rule of the IR: a defect of whatever made it, not of the user's program."""


# Operations whose register tiles, operands and results, are all in one layout.
ONE_LAYOUT = (
    ops.Unary, ops.Binary, ops.Compare, ops.Select, ops.Cast, ops.CastRandom, ops.InlinePtx,
    ops.LoadGlobal, ops.StoreGlobal, ops.Gather, ops.Scatter, ops.Atomic, ops.Scan, ops.Random, ops.Table,
    ops.Exchange,
)  # fmt: skip

# The host computes the grid, so only arithmetic on scalars and the launch's sizes stands there.
HOST = (
    ops.Constant, ops.Dim, ops.Stride, ops.Unary, ops.Binary, ops.Compare, ops.Select, ops.Cast, ops.If,
    ops.Assume, ops.Yield,
)  # fmt: skip


def verify(kernel: Kernel, layouts: bool = False, *, wishes: bool = False) -> None:
    """Raise an InvalidIR, with the location of the operation at fault, if the kernel is not well-formed.

    Parameters
    ----------
    kernel : Kernel
        What to check.
    layouts : bool
        Require a layout of each register tile, as after layout inference.
    wishes : bool
        Layouts in registers are what the user wants, as before layout inference: they need not agree with one another.
    """
    _Verifier(kernel, layouts, wishes).run()


def agree(a: Type, b: Type) -> bool:
    """Tell whether two types are equal, where a missing layout agrees with any."""
    if a == b:
        return True
    if isinstance(a, RegisterType) and isinstance(b, RegisterType):
        return (a.layout is None or b.layout is None) and strip(a) == strip(b)
    if isinstance(a, SharedType) and isinstance(b, SharedType):
        open_ = a.layout is None or b.layout is None
        return open_ and (a.dtype, a.shape, a.remote) == (b.dtype, b.shape, b.remote)
    return False


def flows(source: Type, target: Type) -> bool:
    """Tell whether a value of type `source` may become one of type `target`, which may promise less."""
    if isinstance(source, PointerType) and isinstance(target, PointerType):
        return source.dtype == target.dtype and source.align % target.align == 0
    if isinstance(source, GlobalType) and isinstance(target, GlobalType):
        same = (source.dtype, source.dims, source.strides) == (target.dtype, target.dims, target.strides)
        return same and source.align % target.align == 0
    return agree(source, target)


@dataclass(frozen=True)
class _Context:
    """What is around a region."""

    # Where Yield, and where Break and Continue, hand their values; None where they may not stand.
    yields: tuple[Type, ...] | None = None
    loop: tuple[Type, ...] | None = None
    # The warps that run the region.
    first: int = 0
    count: int = 1
    grouped: bool = False
    returns: bool = True


class _Verifier:
    def __init__(self, kernel: Kernel, layouts: bool, wishes: bool = False) -> None:
        self.kernel = kernel
        self.layouts, self.wishes = layouts, wishes
        # Each value in scope, with the number of the warp group that defined it.
        self.scope: dict[Value, int] = {}
        self.defined: set[Value] = set()
        self.group = 0
        self.groups = 0
        self.host = False
        # Types are immutable and shared by many values, so each is looked at once.
        self.checked: dict[int, tuple[Type, int]] = {}

    def run(self) -> None:
        kernel = self.kernel
        if kernel.warps < 1 or kernel.warps > 32:
            raise InvalidIR(f"a thread block has 1 to 32 warps, not {kernel.warps}", kernel.loc)
        if len(kernel.cluster) != 3 or min(kernel.cluster) < 1:
            raise InvalidIR(f"a cluster has three positive extents, not {kernel.cluster}", kernel.loc)
        for param in kernel.params:
            if not isinstance(param.type, (ScalarType, PointerType, GlobalType)):
                raise InvalidIR(
                    f"a parameter is a scalar, a pointer or a global tensor, not {param.type}", kernel.loc
                )
        context = _Context(count=kernel.warps)
        self.define(kernel.params, kernel.loc, context)
        self.host = True
        grid = _Context(yields=(ScalarType(int32),) * 3, count=kernel.warps, returns=False)
        self.region(kernel.grid, "the grid", kernel.loc, grid, (), (ops.Yield,))
        self.host = False
        self.region(kernel.body, "a kernel", kernel.loc, context, (), (ops.Return,))

    def region(
        self,
        region: Region,
        what: str,
        loc: Location | None,
        context: _Context,
        args: Sequence[Type],
        ends: tuple[type[Operation], ...],
    ) -> None:
        """Check a region whose arguments take values of types `args` and which ends in one of `ends`."""
        if len(region.args) != len(args):
            raise InvalidIR(f"the body of {what} has {len(region.args)} arguments, not {len(args)}", loc)
        for argument, type in zip(region.args, args, strict=True):
            if not self.flows(type, argument.type):
                raise InvalidIR(f"an argument of {what} is {argument.type}, but takes {type}", loc)
        if not region.ops or not isinstance(region.terminator, ends):
            names = " or ".join(end.opcode for end in ends)
            found = region.ops[-1].opcode if region.ops else "nothing"
            raise InvalidIR(f"the body of {what} ends in {names}, not {found}", loc)
        self.define(region.args, loc, context)
        last = len(region.ops) - 1
        for number, operation in enumerate(region.ops):
            if operation.terminator and number != last:
                raise InvalidIR(f"{operation.opcode} stands before the end of a region", operation.loc)
            self.operation(operation, context)
        for value in region.args:
            del self.scope[value]
        for operation in region.ops:
            for value in operation.results:
                del self.scope[value]

    def define(self, values: tuple[Value, ...], loc: Location | None, context: _Context) -> None:
        for value in values:
            if value in self.defined:
                raise InvalidIR(f"{value} is defined twice", loc)
            self.defined.add(value)
            self.scope[value] = self.group
            self.type(value.type, loc, context)

    def type(self, type: Type, loc: Location | None, context: _Context) -> None:
        """Check that a layout fits its tile and the threads of the group."""
        if not isinstance(type, (RegisterType, SharedType)):
            return
        found = self.checked.get(id(type))
        if found is not None and found == (type, context.count):
            return
        if any(extent < 1 for extent in type.shape):
            raise InvalidIR(f"the extents of a tile are positive, not {list(type.shape)}", loc)
        layout = type.layout
        if layout is not None and layout.shape != type.shape:
            raise InvalidIR(f"the tile {type} has a layout of shape {list(layout.shape)}", loc)
        if isinstance(type, RegisterType):
            if self.layouts and type.layout is None:
                raise InvalidIR(f"no layout for the tile {type}", loc)
            if type.layout is not None and not self.wishes and type.layout.threads != 32 * context.count:
                raise InvalidIR(
                    f"the tile {type} is spread over {type.layout.threads} threads in a group of {32 * context.count}",
                    loc,
                )
        # The type is kept, so that its id stays its own.
        self.checked[id(type)] = (type, context.count)

    def operation(self, operation: Operation, context: _Context) -> None:
        loc = operation.loc
        for value in operation.inputs():
            self.use(value, operation)
        if self.host and not isinstance(operation, HOST):
            raise InvalidIR(f"the host cannot compute {operation.opcode} in the grid", loc)
        self.results(operation)
        if isinstance(operation, ONE_LAYOUT) and not self.wishes:
            self.one_layout(operation)
        if operation.terminator:
            self.terminator(operation, context)
        elif isinstance(operation, (ops.For, ops.Loop, ops.If, ops.WarpGroup)):
            self.structured(operation, context)
        self.define(operation.results, loc, context)

    def use(self, value: Value, operation: Operation) -> None:
        group = self.scope.get(value)
        if group is None:
            why = (
                "is used outside the region that defines it" if value in self.defined else "is used undefined"
            )
            raise InvalidIR(f"{value} {why}", operation.loc)
        if group != self.group and isinstance(value.type, RegisterType):
            raise InvalidIR(
                f"{value} belongs to other warps than those that use it; pass it through shared memory",
                operation.loc,
            )

    def results(self, operation: Operation) -> None:
        """Check that the results have the types that the operation says."""
        try:
            types = operation.infer()
        except TilusError as error:
            raise InvalidIR(f"{operation.opcode}: {error.message}", operation.loc, error.hint) from error
        except LayoutError as error:
            raise InvalidIR(f"{operation.opcode}: {error}", operation.loc) from error
        if len(types) != len(operation.results):
            raise InvalidIR(
                f"{operation.opcode} has {len(operation.results)} results, not {len(types)}", operation.loc
            )
        for value, type in zip(operation.results, types, strict=True):
            if value.type is not type and not self.flows(type, value.type):
                raise InvalidIR(
                    f"{operation.opcode} gives {type}, but its result is {value.type}", operation.loc
                )

    def flows(self, source: Type, target: Type) -> bool:
        """Tell whether a value of one type may become one of another."""
        return flows(strip(source), strip(target)) if self.wishes else flows(source, target)

    def one_layout(self, operation: Operation) -> None:
        seen: Value | None = None
        for value in (*operation.inputs(), *operation.results):
            if isinstance(value.type, RegisterType) and value.type.layout is not None:
                if seen is None:
                    seen = value
                elif value.type.layout != seen.type.layout:  # type: ignore[attr-defined]
                    raise InvalidIR(
                        f"{operation.opcode} takes tiles in one layout, not {seen.type} and {value.type}",
                        operation.loc,
                    )

    def terminator(self, operation: Operation, context: _Context) -> None:
        if isinstance(operation, ops.Return):
            if not context.returns:
                raise InvalidIR("return stands in the grid", operation.loc)
            return
        expected = context.yields if isinstance(operation, ops.Yield) else context.loop
        if expected is None:
            raise InvalidIR(f"{operation.opcode} stands outside a loop", operation.loc)
        values = tuple(operation.inputs())
        if len(values) != len(expected):
            raise InvalidIR(
                f"{operation.opcode} hands on {len(values)} values, not {len(expected)}", operation.loc
            )
        for value, type in zip(values, expected, strict=True):
            if not self.flows(value.type, type):
                raise InvalidIR(
                    f"{operation.opcode} hands on {value.type} where {type} is carried", operation.loc
                )

    def structured(self, operation: Operation, context: _Context) -> None:
        loc = operation.loc
        if isinstance(operation, ops.For):
            index = operation.start.type
            if operation.stop.type != index or operation.step.type != index:
                raise InvalidIR(
                    f"for runs over one integer type, not {index}, {operation.stop.type} and {operation.step.type}",
                    loc,
                )
            carried = self.loop_carried(operation, operation.body, 1)
            inner = _Context(carried, carried, context.first, context.count, context.grouped, context.returns)
            ends = (ops.Yield, ops.Break, ops.Continue, ops.Return)
            self.region(operation.body, "for", loc, inner, (index, *(v.type for v in operation.inits)), ends)
        elif isinstance(operation, ops.Loop):
            carried = self.loop_carried(operation, operation.body, 0)
            inner = _Context(carried, carried, context.first, context.count, context.grouped, context.returns)
            ends = (ops.Yield, ops.Break, ops.Continue, ops.Return)
            self.region(operation.body, "loop", loc, inner, tuple(v.type for v in operation.inits), ends)
        elif isinstance(operation, ops.If):
            yields = tuple(v.type for v in operation.results)
            inner = _Context(
                yields, context.loop, context.first, context.count, context.grouped, context.returns
            )
            ends = (ops.Yield, ops.Break, ops.Continue, ops.Return)
            self.region(operation.then, "if", loc, inner, (), ends)
            self.region(operation.orelse, "if", loc, inner, (), ends)
        elif isinstance(operation, ops.WarpGroup):
            first, count = operation.first, operation.count
            if count < 1 or first < context.first or first + count > context.first + context.count:
                raise InvalidIR(
                    f"warps {first} to {first + count - 1} are not among the warps "
                    f"{context.first} to {context.first + context.count - 1} around",
                    loc,
                )
            outer = self.group
            self.groups += 1
            self.group = self.groups
            # A loop around is run by other warps too, so that its iterations cannot be cut from in here.
            inner = _Context((), None, first, count, True, context.returns)
            self.region(operation.body, "warps", loc, inner, (), (ops.Yield, ops.Return))
            self.group = outer

    def loop_carried(self, operation: ops.For | ops.Loop, body: Region, skip: int) -> tuple[Type, ...]:
        """Return the types that a loop carries: those of its body's arguments."""
        if len(body.args) != len(operation.inits) + skip:
            raise InvalidIR(
                f"the body of {operation.opcode} has {len(body.args)} arguments, not {len(operation.inits) + skip}",
                operation.loc,
            )
        return tuple(v.type for v in body.args[skip:])
