"""Which integers and addresses are multiples of what: the largest divisor known of each scalar and pointer.

It decides how wide an access may be. Signed arithmetic is taken not to overflow; where it may wrap (unsigned
arithmetic, casts to fewer bits) only the power of two in a divisor survives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from tilus.dtypes import DType
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.types import Extent, GlobalType, PointerType, ScalarType, Symbol
from tilus.passes.folding import wrap


@dataclass(frozen=True)
class Facts:
    """What is known of a kernel's values.

    Attributes
    ----------
    divisors : dict of Value to int
        For each integer scalar the largest integer that is known to divide it, for each pointer the bytes that it
        is aligned to: 0 for the constant zero, which everything divides; 1 where nothing is known.
    views : dict of Value to GlobalType
        The types of tensors made of pointers, with the extents, strides, divisors and alignment that are known.
    """

    divisors: dict[Value, int]
    views: dict[Value, GlobalType]

    def tensor(self, value: Value) -> GlobalType:
        """Return the type of a global tensor with all that is known of it."""
        type = self.views.get(value, value.type)
        assert isinstance(type, GlobalType)
        return type


def facts(kernel: Kernel) -> Facts:
    """Return what is known to divide a kernel's integers, addresses, extents and strides."""
    analysis = _Divisibility()
    for param in kernel.params:
        analysis.set(param, param.type.align if isinstance(param.type, PointerType) else 1)
    analysis.region(kernel.grid)
    analysis.region(kernel.body)
    views = {value: analysis.view(view) for value, view in analysis.views.items()}
    return Facts(analysis.known, views)


def is_integer(value: Value) -> bool:
    """Tell whether a value is an integer scalar."""
    return isinstance(value.type, ScalarType) and value.type.dtype.is_integer


def is_tracked(value: Value) -> bool:
    """Tell whether a value's divisor is followed: an integer's or a pointer's."""
    return is_integer(value) or isinstance(value.type, PointerType)


def power_of_two(divisor: int) -> int:
    """Return the largest power of two that divides; 0 stays 0."""
    return divisor & -divisor


def fits(divisor: int, dtype: DType) -> int:
    """Return what is left of a divisor where the value may have wrapped."""
    if dtype.is_signed:
        return divisor
    # A multiple of 2**bits wraps to zero.
    return power_of_two(divisor) if power_of_two(divisor) <= dtype.code_mask else 0


class _Divisibility:
    """Walks a region in order; loops are repeated until what they carry stays the same."""

    def __init__(self) -> None:
        self.known: dict[Value, int] = {}
        self.constants: dict[Value, int] = {}
        self.views: dict[Value, ops.GlobalView] = {}
        # What breaks and continues hand to the loops around.
        self.loops: list[tuple[list[tuple[Value, ...]], list[tuple[Value, ...]]]] = []

    def set(self, value: Value, divisor: int) -> None:
        if is_tracked(value):
            self.known[value] = divisor

    def get(self, value: Value) -> int:
        return self.known.get(value, 1)

    def region(self, region: Region) -> None:
        for operation in region.ops:
            self.operation(operation)

    def operation(self, operation: Operation) -> None:
        if isinstance(operation, (ops.For, ops.Loop)):
            self.loop(operation)
        elif isinstance(operation, ops.If):
            self.branch(operation)
        elif isinstance(operation, ops.WarpGroup):
            self.region(operation.body)
        elif isinstance(operation, ops.Break):
            self.loops[-1][0].append(operation.values)
        elif isinstance(operation, ops.Continue):
            self.loops[-1][1].append(operation.values)
        else:
            if isinstance(operation, ops.GlobalView):
                self.views[operation.result] = operation
            for value in operation.results:
                if is_tracked(value):
                    self.known[value] = self.result(operation, value)

    def branch(self, operation: ops.If) -> None:
        yields = []
        for region in (operation.then, operation.orelse):
            self.region(region)
            if isinstance(region.terminator, ops.Yield):
                yields.append(region.terminator.values)
        for place, value in enumerate(operation.results):
            self.set(value, gcd(*(self.get(values[place]) for values in yields)))

    def loop(self, operation: ops.For | ops.Loop) -> None:
        carried = operation.body.args
        if isinstance(operation, ops.For):
            index, *rest = carried
            carried = tuple(rest)
            self.set(index, gcd(self.get(operation.start), self.get(operation.step)))
        # Optimistic: what a loop carries has the divisor that it starts with until its body says otherwise. Each
        # round only shrinks divisors, so that it ends.
        state = [self.get(v) for v in operation.inits]
        while True:
            for value, divisor in zip(carried, state, strict=True):
                self.set(value, divisor)
            breaks: list[tuple[Value, ...]] = []
            continues: list[tuple[Value, ...]] = []
            self.loops.append((breaks, continues))
            self.region(operation.body)
            self.loops.pop()
            last = operation.body.terminator
            if isinstance(last, ops.Yield):
                continues.append(last.values)
            after = [gcd(old, *(self.get(values[i]) for values in continues)) for i, old in enumerate(state)]
            if after == state:
                break
            state = after
        ends = state if isinstance(operation, ops.For) else [0] * len(state)
        for place, value in enumerate(operation.results):
            self.set(value, gcd(ends[place], *(self.get(values[place]) for values in breaks)))

    def result(self, operation: Operation, value: Value) -> int:
        """Return the divisor of a result of an operation without regions."""
        assert isinstance(value.type, (ScalarType, PointerType))
        rule = _RULES.get(type(operation))
        return 1 if rule is None else rule(self, operation, value.type.dtype)

    def view(self, view: ops.GlobalView) -> GlobalType:
        """Return the type of a tensor made of a pointer, with all that is known of it."""
        type = view.result.type
        assert isinstance(type, GlobalType)

        def known(extents: tuple[Extent, ...], values: tuple[Value, ...]) -> tuple[Extent, ...]:
            return tuple(
                extent
                if isinstance(extent, int)
                else self.constants.get(value, Symbol("?", self.get(value) or 1))
                for extent, value in zip(extents, values, strict=True)
            )

        return dataclasses.replace(
            type,
            dims=known(type.dims, view.shape),
            strides=known(type.strides, view.strides),
            align=_both(type.align, self.get(view.pointer)) or type.align,
        )


def _constant(facts: _Divisibility, op: ops.Constant, dtype: DType) -> int:
    value = wrap(int(op.value), dtype)
    facts.constants[op.result] = value
    return abs(value)


def _size(facts: _Divisibility, op: ops.Dim | ops.Stride, dtype: DType) -> int:
    type = op.tensor.type
    assert isinstance(type, GlobalType)
    extent = (type.dims if isinstance(op, ops.Dim) else type.strides)[op.axis]
    if isinstance(extent, int):
        facts.constants[op.result] = extent
        return abs(extent)
    view = facts.views.get(op.tensor)
    if view is None:
        return extent.divisor
    operand = (view.shape if isinstance(op, ops.Dim) else view.strides)[op.axis]
    return _both(extent.divisor, facts.get(operand))


def _pointer_of(facts: _Divisibility, op: ops.PointerOf, dtype: DType) -> int:
    type = op.tensor.type
    assert isinstance(type, GlobalType)
    view = facts.views.get(op.tensor)
    return type.align if view is None else _both(type.align, facts.get(view.pointer))


def _pointer_add(facts: _Divisibility, op: ops.PointerAdd, dtype: DType) -> int:
    return max(1, power_of_two(gcd(facts.get(op.pointer) * 8, facts.get(op.offset) * dtype.bits)) // 8)


def _pointer_cast(facts: _Divisibility, op: ops.PointerCast, dtype: DType) -> int:
    return facts.get(op.pointer)


def _both(a: int, b: int) -> int:
    """Return the divisor of a value that both integers divide."""
    return a * b // gcd(a, b) if a and b else 0


def _assume(facts: _Divisibility, op: ops.Assume, dtype: DType) -> int:
    return _both(facts.get(op.value), op.divisor)


def _cast(facts: _Divisibility, op: ops.Cast, dtype: DType) -> int:
    source = op.x.type
    assert isinstance(source, ScalarType)
    if not source.dtype.is_integer:
        return 1
    value = facts.constants.get(op.x)
    if value is not None:
        facts.constants[op.result] = value = wrap(value, dtype)
        return abs(value)
    divisor = facts.get(op.x)
    # A negative number becomes a large one in an unsigned type.
    holds = dtype.bits >= source.dtype.bits and (
        source.dtype.is_signed == dtype.is_signed or not source.dtype.is_signed
    )
    if holds and (dtype.bits > source.dtype.bits or dtype.is_signed == source.dtype.is_signed):
        return divisor
    low = power_of_two(divisor)
    return low if low <= dtype.code_mask else 0


def _select(facts: _Divisibility, op: ops.Select, dtype: DType) -> int:
    return gcd(facts.get(op.a), facts.get(op.b))


def _unary(facts: _Divisibility, op: ops.Unary, dtype: DType) -> int:
    return fits(facts.get(op.x), dtype) if op.kind in ("neg", "abs") else 1


def _binary(facts: _Divisibility, op: ops.Binary, dtype: DType) -> int:
    a, b = facts.get(op.a), facts.get(op.b)
    known = facts.constants.get(op.b)
    kind = op.kind
    if kind in ("add", "sub"):
        return fits(gcd(a, b), dtype)
    if kind in ("min", "max"):
        return gcd(a, b)
    if kind == "mul":
        return fits(a * b, dtype)
    if kind == "mod":
        # a - b * (a // b)
        return gcd(a, b)
    if kind == "floordiv":
        return a // abs(known) if known and a % known == 0 else 1
    if kind == "shl":
        return fits(a << known, dtype) if known is not None and 0 <= known < dtype.bits else power_of_two(a)
    if kind == "shr":
        exact = known is not None and 0 <= known < dtype.bits and a % (1 << known) == 0
        return a >> known if exact and known is not None else 1
    if kind == "and":
        low_a, low_b = power_of_two(a), power_of_two(b)
        return max(low_a, low_b) if low_a and low_b else 0
    if kind in ("or", "xor"):
        return gcd(power_of_two(a), power_of_two(b))
    return 1


_RULES: dict[type[Operation], Callable[..., int]] = {
    ops.Assume: _assume,
    ops.Binary: _binary,
    ops.Cast: _cast,
    ops.Constant: _constant,
    ops.Dim: _size,
    ops.PointerAdd: _pointer_add,
    ops.PointerCast: _pointer_cast,
    ops.PointerOf: _pointer_of,
    ops.Select: _select,
    ops.Stride: _size,
    ops.Unary: _unary,
}
