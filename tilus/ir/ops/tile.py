"""Operations that make, reshape, combine and reduce tiles in registers."""

from __future__ import annotations

from dataclasses import replace

from tilus.dtypes import DType, float32, float64, int32
from tilus.errors import LayoutConflict, ShapeMismatch, TypeMismatch
from tilus.ir.core import Operation, Value, attribute, op, operand, operands
from tilus.ir.types import RegisterType, ScalarType, Type
from tilus.layout import RegisterLayout

REDUCTIONS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin", "and", "or", "xor")
SCANS = ("sum", "prod", "max", "min", "and", "or", "xor")


def tile_type(opcode: str, value: Value) -> RegisterType:
    """Return the type of a tile operand, or say what it is instead."""
    if not isinstance(value.type, RegisterType):
        raise TypeMismatch(f"{opcode} takes a register tile, not {value.type}")
    return value.type


def check_axis(opcode: str, axis: int, rank: int) -> None:
    """Check that `axis` names a dimension."""
    if not 0 <= axis < rank:
        raise ShapeMismatch(f"{opcode} along axis {axis} of a tile of rank {rank}")


@op("splat", pure=True)
class Splat(Operation):
    """A tile all of whose elements are one scalar."""

    scalar: Value = operand()
    shape: tuple[int, ...] = attribute()
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.scalar.type, ScalarType):
            raise TypeMismatch(f"splat takes a scalar, not {self.scalar.type}")
        return (RegisterType(self.scalar.type.dtype, self.shape, self.layout),)


@op("iota", pure=True)
class Iota(Operation):
    """A tile whose elements are their own index along `axis`."""

    shape: tuple[int, ...] = attribute()
    axis: int = attribute(default=0)
    dtype: DType = attribute(default=int32)
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        check_axis("iota", self.axis, len(self.shape))
        return (RegisterType(self.dtype, self.shape, self.layout),)


@op("table", pure=True)
class Table(Operation):
    """A small constant table looked up by an integer tile or scalar."""

    values: tuple[int | float, ...] = attribute()
    dtype: DType = attribute()
    index: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        if (
            not isinstance(self.index.type, (RegisterType, ScalarType))
            or not self.index.type.dtype.is_integer
        ):
            raise TypeMismatch(f"table takes an integer index, not {self.index.type}")
        return (replace(self.index.type, dtype=self.dtype),)


@op("convert_layout", pure=True)
class ConvertLayout(Operation):
    """The same tile in another layout; planning sets `scratch`, a byte offset, where shared memory is needed."""

    x: Value = operand()
    layout: RegisterLayout = attribute()
    scratch: int | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("convert_layout", self.x)
        if self.layout.shape != type.shape:
            raise ShapeMismatch(f"a layout of shape {self.layout.shape} for a tile of shape {type.shape}")
        return (replace(type, layout=self.layout),)


@op("annotate_layout", pure=True)
class AnnotateLayout(Operation):
    """The same tile; the user says its layout here. Layout inference removes it."""

    x: Value = operand()
    layout: RegisterLayout = attribute()

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("layout annotation", self.x)
        if self.layout.shape != type.shape:
            raise ShapeMismatch(f"a layout of shape {self.layout.shape} for a tile of shape {type.shape}")
        return (replace(type, layout=self.layout),)


@op("expand_dims", pure=True)
class ExpandDims(Operation):
    """The tile with a dimension of size 1 inserted before `axis`."""

    x: Value = operand()
    axis: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("expand_dims", self.x)
        if not 0 <= self.axis <= len(type.shape):
            raise ShapeMismatch(f"expand_dims at axis {self.axis} of a tile of rank {len(type.shape)}")
        shape = (*type.shape[: self.axis], 1, *type.shape[self.axis :])
        layout = type.layout.unsqueeze(self.axis) if type.layout is not None else None
        return (RegisterType(type.dtype, shape, layout),)


@op("squeeze", pure=True)
class Squeeze(Operation):
    """The tile without its dimension `axis` of size 1."""

    x: Value = operand()
    axis: int = attribute()

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("squeeze", self.x)
        check_axis("squeeze", self.axis, len(type.shape))
        if type.shape[self.axis] != 1:
            raise ShapeMismatch(f"squeeze of axis {self.axis}, whose size is {type.shape[self.axis]}, not 1")
        shape = type.shape[: self.axis] + type.shape[self.axis + 1 :]
        layout = type.layout.squeeze(self.axis) if type.layout is not None else None
        return (RegisterType(type.dtype, shape, layout),)


@op("broadcast", pure=True)
class Broadcast(Operation):
    """The tile with its dimensions of size 1 repeated to `shape`."""

    x: Value = operand()
    shape: tuple[int, ...] = attribute()
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("broadcast", self.x)
        ok = len(type.shape) == len(self.shape) and all(
            old in (1, new) for old, new in zip(type.shape, self.shape, strict=True)
        )
        if not ok:
            raise ShapeMismatch(f"a tile of shape {type.shape} does not broadcast to {self.shape}")
        return (RegisterType(type.dtype, self.shape, self.layout),)


@op("transpose", pure=True)
class Transpose(Operation):
    """The tile with its dimensions permuted: dimension i of the result is `perm[i]` of the operand."""

    x: Value = operand()
    perm: tuple[int, ...] = attribute()

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("transpose", self.x)
        if sorted(self.perm) != list(range(len(type.shape))):
            raise ShapeMismatch(f"transpose by {self.perm} of a tile of rank {len(type.shape)}")
        shape = tuple(type.shape[p] for p in self.perm)
        layout = type.layout.transpose(self.perm) if type.layout is not None else None
        return (RegisterType(type.dtype, shape, layout),)


@op("reshape", pure=True)
class Reshape(Operation):
    """The tile's elements in row-major order under another shape."""

    x: Value = operand()
    shape: tuple[int, ...] = attribute()
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("reshape", self.x)
        made = RegisterType(type.dtype, self.shape, self.layout)
        if made.size != type.size:
            raise ShapeMismatch(f"reshape from {type.shape} to {self.shape} changes the number of elements")
        return (made,)


@op("slice_tile", pure=True)
class SliceTile(Operation):
    """The part of a tile from `offsets`, of shape `shape`; the offsets are known at compile time."""

    x: Value = operand()
    offsets: tuple[int, ...] = attribute()
    shape: tuple[int, ...] = attribute()
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("slice", self.x)
        ok = len(self.offsets) == len(self.shape) == len(type.shape) and all(
            0 <= o and o + n <= d for o, n, d in zip(self.offsets, self.shape, type.shape, strict=True)
        )
        if not ok:
            raise ShapeMismatch(
                f"slice at {self.offsets} of shape {self.shape} from a tile of shape {type.shape}"
            )
        return (RegisterType(type.dtype, self.shape, self.layout),)


@op("concat", pure=True)
class Concat(Operation):
    """Tiles of one shape, one after the other along `axis`."""

    parts: tuple[Value, ...] = operands()
    axis: int = attribute(default=0)
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        types = [tile_type("concat", p) for p in self.parts]
        if not types:
            raise ShapeMismatch("concat takes one tile at least")
        if len({(t.dtype, t.shape) for t in types}) != 1:
            raise ShapeMismatch(
                "concat takes tiles of one dtype and shape, not " + ", ".join(map(str, types))
            )
        check_axis("concat", self.axis, len(types[0].shape))
        shape = list(types[0].shape)
        shape[self.axis] *= len(types)
        return (RegisterType(types[0].dtype, tuple(shape), self.layout),)


@op("reduce", pure=True)
class Reduce(Operation):
    """A reduction along `axis`, whose size becomes 1; all threads that held a part hold the result.

    argmax and argmin give the int32 index of the first extreme element. Planning sets `scratch`, a byte offset,
    where several warps must exchange partial results in shared memory.
    """

    x: Value = operand()
    axis: int = attribute()
    kind: str = attribute()
    scratch: int | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type(f"{self.kind} reduction", self.x)
        check_axis(self.kind, self.axis, len(type.shape))
        if self.kind not in REDUCTIONS:
            raise TypeMismatch(f"no reduction named {self.kind}; there are {', '.join(REDUCTIONS)}")
        if self.kind in ("any", "all") and type.dtype.kind != "bool":
            raise TypeMismatch(f"{self.kind} takes a boolean tile, not {type.dtype}")
        if self.kind in ("and", "or", "xor") and not type.dtype.is_integer:
            raise TypeMismatch(f"a reduction by {self.kind} takes an integer tile, not {type.dtype}")
        shape = tuple(1 if i == self.axis else n for i, n in enumerate(type.shape))
        layout = type.layout.reduce(self.axis, keepdim=True) if type.layout is not None else None
        dtype = int32 if self.kind in ("argmax", "argmin") else type.dtype
        return (RegisterType(dtype, shape, layout),)


@op("scan", pure=True)
class Scan(Operation):
    """An inclusive (or exclusive) scan along `axis`."""

    x: Value = operand()
    axis: int = attribute()
    kind: str = attribute()
    exclusive: bool = attribute(default=False)
    scratch: int | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type(f"{self.kind} scan", self.x)
        check_axis("scan", self.axis, len(type.shape))
        if self.kind not in SCANS:
            raise TypeMismatch(f"no scan named {self.kind}; there are {', '.join(SCANS)}")
        return (type,)


@op("exchange", pure=True)
class Exchange(Operation):
    """Element `i` along `axis`, whose extent is a power of two, is element `i ^ mask` of the tile.

    Planning sets `scratch`, a byte offset, where warps exchange elements through shared memory.
    """

    x: Value = operand()
    axis: int = attribute()
    mask: int = attribute()
    scratch: int | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = tile_type("exchange", self.x)
        check_axis("exchange", self.axis, len(type.shape))
        extent = type.shape[self.axis]
        if extent & (extent - 1):
            raise ShapeMismatch(f"exchange along an axis of {extent} elements, which is no power of two")
        if not 0 <= self.mask < extent:
            raise ShapeMismatch(f"exchange by {self.mask} along an axis of {extent} elements")
        return (type,)


@op("dot", pure=True)
class Dot(Operation):
    """a @ b + c on tensor cores: a is [m, k], b is [k, n], c is [m, n] of the accumulator's dtype.

    `atom` names the instruction; instruction selection sets it.
    """

    a: Value = operand()
    b: Value = operand()
    c: Value = operand()
    atom: str | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        a, b, c = (tile_type("dot", v) for v in (self.a, self.b, self.c))
        if not len(a.shape) == len(b.shape) == len(c.shape) == 2:
            raise ShapeMismatch(f"dot takes matrices, not tiles of shape {a.shape}, {b.shape} and {c.shape}")
        if a.shape[1] != b.shape[0] or c.shape != (a.shape[0], b.shape[1]):
            raise ShapeMismatch(
                f"dot of [m, k] and [k, n] into [m, n]: found {list(a.shape)}, {list(b.shape)}, {list(c.shape)}"
            )
        if c.dtype not in (float32, float64, int32) and c.dtype.name != "float16":
            raise TypeMismatch(f"dot accumulates in float32, float16, float64 or int32, not {c.dtype}")
        return (c,)


@op("random", pure=True)
class Random(Operation):
    """Four tiles of uniform 32-bit integers by Philox 4x32-10 from a seed and a tile of counters.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """

    seed: Value = operand()
    counter: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        from tilus.dtypes import uint32

        type = tile_type("random", self.counter)
        if not (isinstance(self.seed.type, ScalarType) and self.seed.type.dtype.is_integer):
            raise TypeMismatch(f"random takes a scalar integer as seed, not {self.seed.type}")
        if not type.dtype.is_integer:
            raise TypeMismatch(f"random takes integer counters, not {type.dtype}")
        return (replace(type, dtype=uint32),) * 4


@op("print", pure=False)
class Print(Operation):
    """Print a format string with scalars, or one tile, from the device."""

    format: str = attribute()
    args: tuple[Value, ...] = operands()

    def effects(self) -> tuple:  # type: ignore[type-arg]
        from tilus.ir.core import Effect

        return (Effect("write", "host"),)


@op("assert", pure=False)
class Assert(Operation):
    """Stop the launch with a message where a scalar or any element of a tile is false."""

    condition: Value = operand()
    message: str = attribute()

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.condition.type, (ScalarType, RegisterType)) or (
            self.condition.type.dtype.kind != "bool"
        ):
            raise TypeMismatch(f"device_assert takes a boolean, not {self.condition.type}")
        return ()


__all__ = [
    "AnnotateLayout", "Assert", "Broadcast", "Concat", "ConvertLayout", "Dot", "Exchange", "ExpandDims",
    "Iota",
    "LayoutConflict", "Print", "Random", "Reduce", "Reshape", "Scan", "SliceTile", "Splat", "Squeeze", "Table",
    "Transpose",
]  # fmt: skip
