"""How a tile's elements vary along each dimension: in runs of equal values, or rising by one.

A mask that is equal in all elements of a vector lets the vector move as one. The idea of following runs through
integer tiles is that of Triton's axis analysis.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tilus.dtypes import boolean
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.types import GlobalType, RegisterType, divisor_of


@dataclass(frozen=True)
class Along:
    """What is known along one dimension of a tile.

    Attributes
    ----------
    constant : int
        Each aligned run of so many elements holds one value.
    rising : int
        In each aligned run of so many elements values rise by one, from a multiple of this number.
    """

    constant: int = 1
    rising: int = 1


@dataclass(frozen=True)
class Runs:
    """What is known of a tile: along each dimension, and an integer that divides all elements."""

    along: tuple[Along, ...]
    divisor: int = 1


def constancy(kernel: Kernel, divisors: dict[Value, int]) -> dict[Value, Runs]:
    """Return what is known of each tile.

    Parameters
    ----------
    kernel : Kernel
    divisors : dict of Value to int
        What divides each integer scalar.
    """
    analysis = _Constancy(divisors)
    analysis.region(kernel.body)
    return analysis.found


def neighbours(
    op: ops.Gather | ops.Scatter | ops.Atomic, tensor: GlobalType, runs: dict[Value, Runs]
) -> tuple[int, int]:
    """Return the dimension of an index tile along which elements lie side by side in memory, and how many.

    So many elements of each aligned run along the dimension are in one place, aligned to as many, and are all inside
    of the tensor and the mask or none.
    """
    if 1 not in tensor.strides or not runs[op.indices[0]].along:
        return -1, 1
    fast = tensor.strides.index(1) if tensor.strides[-1] != 1 else tensor.rank - 1
    others = [index for axis, index in enumerate(op.indices) if axis != fast]
    found = [
        gcd(along.rising, *(runs[index].along[dim].constant for index in others))
        for dim, along in enumerate(runs[op.indices[fast]].along)
    ]
    dim = max(range(len(found)), key=lambda d: (found[d], d))
    bits = 8 if tensor.dtype is boolean else tensor.dtype.bits
    count = gcd(found[dim], max(1, tensor.align * 8 // bits))
    if op.mask is not None:
        count = gcd(count, runs[op.mask].along[dim].constant)
    if op.checked:
        count = gcd(count, divisor_of(tensor.dims[fast]))
    return dim, gcd(
        count, *(divisor_of(stride) for axis, stride in enumerate(tensor.strides) if axis != fast)
    )


class _Constancy:
    """Walks a region in order. Of what a loop or a branch hands on nothing is known."""

    def __init__(self, divisors: dict[Value, int]) -> None:
        self.divisors = divisors
        self.found: dict[Value, Runs] = {}

    def region(self, region: Region) -> None:
        for value in region.args:
            self.unknown(value)
        for op in region.ops:
            for value in op.results:
                self.unknown(value)
            if len(op.results) == 1 and isinstance(op.result.type, RegisterType):
                self.found[op.result] = Runs(*self.tile(op, op.result.type.shape))
            for nested in op.regions():
                self.region(nested)

    def unknown(self, value: Value) -> None:
        if isinstance(value.type, RegisterType):
            self.found[value] = Runs((Along(),) * len(value.type.shape))

    def get(self, value: Value) -> Runs:
        return self.found[value]

    def tile(self, op: Operation, shape: tuple[int, ...]) -> tuple[tuple[Along, ...], int]:
        """Return what is known of the result of an operation."""
        if isinstance(op, ops.Splat):
            return tuple(Along(constant=n) for n in shape), self.divisors.get(op.scalar, 1)
        if isinstance(op, ops.Iota):
            return tuple(
                Along(rising=n) if axis == op.axis else Along(constant=n) for axis, n in enumerate(shape)
            ), 1
        if isinstance(op, (ops.ExpandDims, ops.Squeeze, ops.Broadcast, ops.Transpose, ops.Cast)):
            return self.moved(op, shape)
        if isinstance(op, (ops.ConvertLayout, ops.AnnotateLayout)):
            return self.get(op.x).along, self.get(op.x).divisor
        if isinstance(op, ops.Binary):
            return self.binary(op)
        if isinstance(op, ops.Compare):
            return self.compare(op), 1
        if isinstance(op, (ops.Unary, ops.Select)):
            operands = [self.get(v) for v in op.inputs() if isinstance(v.type, RegisterType)]
            return equal(*operands), 1
        return (Along(),) * len(shape), 1

    def moved(
        self,
        op: ops.ExpandDims | ops.Squeeze | ops.Broadcast | ops.Transpose | ops.Cast,
        shape: tuple[int, ...],
    ) -> tuple[tuple[Along, ...], int]:
        runs = self.get(op.x)
        along = list(runs.along)
        if isinstance(op, ops.ExpandDims):
            along.insert(op.axis, Along())
        elif isinstance(op, ops.Squeeze):
            del along[op.axis]
        elif isinstance(op, ops.Transpose):
            along = [along[axis] for axis in op.perm]
        elif isinstance(op, ops.Cast):
            assert isinstance(op.x.type, RegisterType) and isinstance(op.result.type, RegisterType)
            source, target = op.x.type.dtype, op.result.type.dtype
            if not (
                source.is_integer and target.is_integer and target.is_signed and target.bits > source.bits
            ):
                return equal(runs), 1
        else:
            assert isinstance(op.x.type, RegisterType)
            along = [
                Along(constant=new) if new != old else known
                for old, new, known in zip(op.x.type.shape, shape, along, strict=True)
            ]
        return tuple(along), runs.divisor

    def binary(self, op: ops.Binary) -> tuple[tuple[Along, ...], int]:
        a, b = self.get(op.a), self.get(op.b)
        assert isinstance(op.result.type, RegisterType)
        dtype = op.result.type.dtype
        alike = equal(a, b)
        if not (dtype.is_integer and dtype.is_signed):
            return alike, 1
        # Signed arithmetic is taken not to overflow.
        if op.kind == "mul":
            return alike, a.divisor * b.divisor
        if op.kind not in ("add", "sub"):
            return alike, 1
        along = []
        for same, left, right in zip(alike, a.along, b.along, strict=True):
            rising = gcd(left.rising, right.constant, b.divisor)
            if op.kind == "add":
                rising = max(rising, gcd(right.rising, left.constant, a.divisor))
            along.append(Along(same.constant, rising))
        return tuple(along), gcd(a.divisor, b.divisor)

    def compare(self, op: ops.Compare) -> tuple[Along, ...]:
        a, b = self.get(op.a), self.get(op.b)
        alike = equal(a, b)
        # Whether i, i + 1, ... lie below a multiple of a number that divides i is one answer for so many of them.
        if op.kind in ("gt", "le"):
            a, b = b, a
        elif op.kind not in ("lt", "ge"):
            return alike
        return tuple(
            Along(max(same.constant, gcd(left.rising, right.constant, b.divisor)))
            for same, left, right in zip(alike, a.along, b.along, strict=True)
        )


def equal(*operands: Runs) -> tuple[Along, ...]:
    """Return what is known of a function of the operands' elements."""
    return tuple(
        Along(gcd(*(a.constant for a in dimension)))
        for dimension in zip(*(o.along for o in operands), strict=True)
    )
