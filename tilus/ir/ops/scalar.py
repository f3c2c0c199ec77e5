"""Constants, indices and sizes: operations that give scalars."""

from __future__ import annotations

from tilus.dtypes import DType, int32, int64
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir.core import Operation, Value, attribute, op, operand
from tilus.ir.types import GlobalType, PointerType, RegisterType, ScalarType, Type


def check_axis(opcode: str, axis: int, tensor: GlobalType) -> None:
    """Check that `axis` names a dimension of a global tensor."""
    if not 0 <= axis < tensor.rank:
        raise ShapeMismatch(f"{opcode} {axis} of a tensor of rank {tensor.rank}")


@op("constant", pure=True)
class Constant(Operation):
    """A scalar known at compile time."""

    value: int | float | bool = attribute()
    dtype: DType = attribute()

    def infer(self) -> tuple[Type, ...]:
        return (ScalarType(self.dtype),)


@op("block_id", pure=True)
class BlockId(Operation):
    """Index of the thread block along a grid axis (0 is x)."""

    axis: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        if not 0 <= self.axis < 3:
            raise ShapeMismatch(f"a grid has axes 0, 1 and 2, not {self.axis}")
        return (ScalarType(int32),)


@op("grid_dim", pure=True)
class GridDim(Operation):
    """Number of thread blocks along a grid axis."""

    axis: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        if not 0 <= self.axis < 3:
            raise ShapeMismatch(f"a grid has axes 0, 1 and 2, not {self.axis}")
        return (ScalarType(int32),)


@op("cluster_rank", pure=True)
class ClusterRank(Operation):
    """Rank of the thread block in its cluster."""

    def infer(self) -> tuple[Type, ...]:
        return (ScalarType(int32),)


@op("dim", pure=True)
class Dim(Operation):
    """Extent of a global tensor along an axis."""

    tensor: Value = operand()
    axis: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.tensor.type, GlobalType):
            raise TypeMismatch(f"dim takes a global tensor, not {self.tensor.type}")
        check_axis("dim", self.axis, self.tensor.type)
        return (ScalarType(int32),)


@op("stride", pure=True)
class Stride(Operation):
    """Stride of a global tensor along an axis, in elements."""

    tensor: Value = operand()
    axis: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.tensor.type, GlobalType):
            raise TypeMismatch(f"stride takes a global tensor, not {self.tensor.type}")
        check_axis("stride", self.axis, self.tensor.type)
        return (ScalarType(int64),)


@op("pointer_add", pure=True)
class PointerAdd(Operation):
    """A pointer moved by a number of elements."""

    pointer: Value = operand()
    offset: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.pointer.type, PointerType):
            raise TypeMismatch(f"pointer arithmetic takes a pointer, not {self.pointer.type}")
        if not (isinstance(self.offset.type, ScalarType) and self.offset.type.dtype.is_integer):
            raise TypeMismatch(f"pointer arithmetic takes an integer offset, not {self.offset.type}")
        return (PointerType(self.pointer.type.dtype),)


@op("pointer_cast", pure=True)
class PointerCast(Operation):
    """The same address as a pointer to another dtype."""

    pointer: Value = operand()
    dtype: DType = attribute()

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.pointer.type, PointerType):
            raise TypeMismatch(f"a pointer cast takes a pointer, not {self.pointer.type}")
        return (PointerType(self.dtype, self.pointer.type.align),)


@op("assume", pure=False)
class Assume(Operation):
    """A promise that an integer is a multiple of `divisor`, or a pointer of so many bytes; the result carries it."""

    value: Value = operand()
    divisor: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        pointer = isinstance(self.value.type, PointerType)
        if not pointer and not (isinstance(self.value.type, ScalarType) and self.value.type.dtype.is_integer):
            raise TypeMismatch(f"assume takes an integer or a pointer, not {self.value.type}")
        if self.divisor < 1:
            raise TypeMismatch(f"assume takes a positive divisor, not {self.divisor}")
        return (self.value.type,)


@op("extract", pure=True)
class Extract(Operation):
    """The value of a tile that has one element, as a scalar."""

    tile: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        if not (isinstance(self.tile.type, RegisterType) and self.tile.type.size == 1):
            raise TypeMismatch(f"only a tile of one element becomes a scalar, not {self.tile.type}")
        return (ScalarType(self.tile.type.dtype),)
