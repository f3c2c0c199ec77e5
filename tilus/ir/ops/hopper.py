"""Warpgroup matrix multiplication, and bulk copies from shared to global memory."""

from __future__ import annotations

from tilus.dtypes import float16, float32, int32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir.core import Effect, Operation, Value, attribute, op, operand, operands
from tilus.ir.ops.memory import check_offsets, global_type, own_shared_type
from tilus.ir.types import RegisterType, SharedType, Type

WARPGROUP = 4


@op("dot_async", pure=False)
class DotAsync(Operation):
    """Start a @ b + c on warpgroups' tensor cores; the result is there after a `dot_wait` that covers it.

    a is [m, k], a register tile or a shared tensor; b is [k, n], a shared tensor; c is [m, n] in registers. Each
    operation is one group for waits. With `fresh`, c's values are not read (they count as zero).
    """

    a: Value = operand()
    b: Value = operand()
    c: Value = operand()
    fresh: bool = attribute(default=False)
    atom: str | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.a.type, (RegisterType, SharedType)):
            raise TypeMismatch(f"dot_async takes a register tile or a shared tensor first, not {self.a.type}")
        b = own_shared_type("dot_async", self.b)
        if isinstance(self.a.type, SharedType):
            own_shared_type("dot_async", self.a)
        if not isinstance(self.c.type, RegisterType):
            raise TypeMismatch(f"dot_async accumulates in a register tile, not {self.c.type}")
        a, c = self.a.type, self.c.type
        if not len(a.shape) == len(b.shape) == len(c.shape) == 2:
            raise ShapeMismatch(f"dot_async takes matrices, not shapes {a.shape}, {b.shape} and {c.shape}")
        if a.shape[1] != b.shape[0] or c.shape != (a.shape[0], b.shape[1]):
            raise ShapeMismatch(
                f"dot_async of [m, k] and [k, n] into [m, n]: found {list(a.shape)}, {list(b.shape)}, {list(c.shape)}"
            )
        if c.dtype not in (float32, float16, int32):
            raise TypeMismatch(f"dot_async accumulates in float32, float16 or int32, not {c.dtype}")
        return (c,)

    def effects(self) -> tuple[Effect, ...]:
        read = [Effect("read", "shared", self.b, "async")]
        if isinstance(self.a.type, SharedType):
            read.append(Effect("read", "shared", self.a, "async"))
        return tuple(read)


@op("dot_wait", pure=False)
class DotWait(Operation):
    """Wait until at most `pending` of the newest `dot_async` are unfinished; the results are the tiles, ready.

    All accumulators that are read, changed or passed on after the wait go through it.
    """

    tiles: tuple[Value, ...] = operands()
    pending: int = attribute(default=0)

    def infer(self) -> tuple[Type, ...]:
        for value in self.tiles:
            if not isinstance(value.type, RegisterType):
                raise TypeMismatch(f"dot_wait takes register tiles, not {value.type}")
        return tuple(v.type for v in self.tiles)

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread", None, "async"),)


@op("store_bulk", pure=False)
class StoreBulk(Operation):
    """Start a TMA copy of a shared tensor to the tile at `offsets` of a global tensor; nothing is stored outside.

    `reduction` is "" or add, min, max, and, or, xor.
    """

    tensor: Value = operand()
    shared: Value = operand()
    offsets: tuple[Value, ...] = operands()
    reduction: str = attribute(default="")

    def infer(self) -> tuple[Type, ...]:
        shared, tensor = own_shared_type("store_bulk", self.shared), global_type("store_bulk", self.tensor)
        if shared.dtype != tensor.dtype:
            raise TypeMismatch(f"store_bulk of shared {shared.dtype} into a tensor of {tensor.dtype}")
        if self.reduction not in ("", "add", "min", "max", "and", "or", "xor"):
            raise TypeMismatch(f"store_bulk has no reduction {self.reduction!r}")
        check_offsets("store_bulk", tensor, self.offsets, len(shared.shape))
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (
            Effect("read", "shared", self.shared, "async"),
            Effect("write", "global", self.tensor, "async"),
        )


@op("bulk_commit", pure=False)
class BulkCommit(Operation):
    """Close the group of the bulk stores that this thread group started."""

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread", None, "async"),)


@op("bulk_wait", pure=False)
class BulkWait(Operation):
    """Wait until at most `pending` groups of bulk stores are unfinished; with `read`, only until they have read."""

    pending: int = attribute(default=0)
    read: bool = attribute(default=True)

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread", None, "async"),)
