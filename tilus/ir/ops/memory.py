"""Operations on global and shared memory, synchronous and asynchronous."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tilus.dtypes import DType, boolean
from tilus.errors import LayoutConflict, ShapeMismatch, TypeMismatch
from tilus.ir.core import Effect, Operation, Value, attribute, op, operand, operands, optional
from tilus.ir.types import (
    BarrierType,
    Extent,
    GlobalType,
    PointerType,
    RegisterType,
    ScalarType,
    SharedType,
    Symbol,
    Type,
)
from tilus.layout import LayoutError, RegisterLayout, SharedLayout

ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "cas")


def global_type(opcode: str, value: Value) -> GlobalType:
    """Return the type of a global tensor operand, or say what it is instead."""
    if not isinstance(value.type, GlobalType):
        raise TypeMismatch(f"{opcode} takes a global tensor, not {value.type}")
    return value.type


def shared_type(opcode: str, value: Value) -> SharedType:
    """Return the type of a shared tensor operand, or say what it is instead."""
    if not isinstance(value.type, SharedType):
        raise TypeMismatch(f"{opcode} takes a shared tensor, not {value.type}")
    return value.type


def own_shared_type(opcode: str, value: Value) -> SharedType:
    """Return the type of an operand in the block's own shared memory, or say what it is instead."""
    type = shared_type(opcode, value)
    if type.remote:
        raise TypeMismatch(f"{opcode} takes a tensor in the block's own shared memory, not {type}")
    return type


def check_integer(opcode: str, what: str, value: Value) -> None:
    """Check that a value is an integer scalar."""
    if not (isinstance(value.type, ScalarType) and value.type.dtype.is_integer):
        raise TypeMismatch(f"{opcode} takes an integer {what}, not {value.type}")


def check_barrier(opcode: str, barrier: Value, index: Value | None) -> None:
    """Check a barrier and the index into it."""
    if not isinstance(barrier.type, BarrierType):
        raise TypeMismatch(f"{opcode} takes a barrier, not {barrier.type}")
    if index is not None:
        check_integer(opcode, "index", index)


def check_scope(opcode: str, scope: str) -> None:
    """Check which threads a barrier orders."""
    if scope not in ("", "block", "cluster"):
        raise TypeMismatch(f"{opcode} has a scope of block or cluster, not {scope!r}")


def check_checked(opcode: str, tensor: GlobalType, checked: tuple[bool, ...]) -> None:
    """Check that bounds are said to be tested, or not, for each dimension."""
    if len(checked) != tensor.rank:
        raise ShapeMismatch(
            f"{opcode} says for {len(checked)} of {tensor.rank} dimensions whether bounds are tested"
        )


def check_offsets(opcode: str, tensor: GlobalType, offsets: tuple[Value, ...], rank: int) -> None:
    """Check one integer scalar offset for each dimension, and a tile of the tensor's rank or less."""
    if len(offsets) != tensor.rank:
        raise ShapeMismatch(
            f"{opcode} takes {tensor.rank} offsets for a tensor of rank {tensor.rank}, not {len(offsets)}"
        )
    for value in offsets:
        if not (isinstance(value.type, ScalarType) and value.type.dtype.is_integer):
            raise TypeMismatch(f"{opcode} takes integer offsets, not {value.type}")
    if rank > tensor.rank:
        raise ShapeMismatch(f"{opcode} of a tile of rank {rank} in a tensor of rank {tensor.rank}")


@op("global_view", pure=True)
class GlobalView(Operation):
    """A global tensor made of a pointer, extents and strides (int32 or int64 scalars, strides in elements).

    `static` gives the extents and strides known at compile time, None where the operand counts.
    """

    pointer: Value = operand()
    shape: tuple[Value, ...] = operands()
    strides: tuple[Value, ...] = operands()
    dims: tuple[int | None, ...] = attribute(default=())
    steps: tuple[int | None, ...] = attribute(default=())

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.pointer.type, PointerType):
            raise TypeMismatch(f"view takes a pointer, not {self.pointer.type}")
        if len(self.shape) != len(self.strides):
            raise ShapeMismatch(
                f"view takes as many strides as extents, not {len(self.strides)} and {len(self.shape)}"
            )
        for value in (*self.shape, *self.strides):
            if not (isinstance(value.type, ScalarType) and value.type.dtype.is_integer):
                raise TypeMismatch(f"view takes integer extents and strides, not {value.type}")

        for static in (self.dims, self.steps):
            if static and len(static) != len(self.shape):
                raise ShapeMismatch(f"view of rank {len(self.shape)} with {len(static)} extents known")

        def extents(static: tuple[int | None, ...]) -> tuple[Extent, ...]:
            known = static or (None,) * len(self.shape)
            return tuple(Symbol("?") if n is None else n for n in known)

        pointer = self.pointer.type
        return (GlobalType(pointer.dtype, extents(self.dims), extents(self.steps), pointer.align),)


@op("load_global", pure=False)
class LoadGlobal(Operation):
    """The tile of `shape` at `offsets` of a global tensor.

    The tile's dimensions are the last ones of the tensor. Elements outside the tensor, or where `mask` is
    false, are `other` (0 unless given). `checked` says for each tensor dimension whether bounds are tested.
    `cache` is "", "streaming" (evict first) or "persistent" (evict last).
    """

    tensor: Value = operand()
    offsets: tuple[Value, ...] = operands()
    mask: Value | None = optional()
    other: Value | None = optional()
    shape: tuple[int, ...] = attribute()
    checked: tuple[bool, ...] = attribute()
    cache: str = attribute(default="")
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        tensor = global_type("load", self.tensor)
        check_offsets("load", tensor, self.offsets, len(self.shape))
        check_checked("load", tensor, self.checked)
        if self.mask is not None:
            check_mask("load", self.mask, self.shape)
        if self.other is not None and (
            not isinstance(self.other.type, ScalarType) or self.other.type.dtype != tensor.dtype
        ):
            raise TypeMismatch(
                f"load takes a scalar {tensor.dtype} for elements outside, not {self.other.type}"
            )
        return (RegisterType(tensor.dtype, self.shape, self.layout),)

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("read", "global", self.tensor),)


def check_mask(opcode: str, mask: Value, shape: tuple[int, ...]) -> None:
    """Check that a mask is a boolean tile of the given shape."""
    if not (isinstance(mask.type, RegisterType) and mask.type.dtype is boolean):
        raise TypeMismatch(f"{opcode} takes a boolean tile as mask, not {mask.type}")
    if mask.type.shape != shape:
        raise ShapeMismatch(f"{opcode} of a tile of shape {shape} with a mask of shape {mask.type.shape}")


@op("store_global", pure=False)
class StoreGlobal(Operation):
    """Store a tile at `offsets` of a global tensor; elements outside the tensor or masked are left alone."""

    tensor: Value = operand()
    value: Value = operand()
    offsets: tuple[Value, ...] = operands()
    mask: Value | None = optional()
    checked: tuple[bool, ...] = attribute()
    cache: str = attribute(default="")

    def infer(self) -> tuple[Type, ...]:
        tensor = global_type("store", self.tensor)
        if not isinstance(self.value.type, RegisterType):
            raise TypeMismatch(f"store takes a register tile, not {self.value.type}")
        if self.value.type.dtype != tensor.dtype:
            raise TypeMismatch(f"store of {self.value.type.dtype} into a tensor of {tensor.dtype}")
        check_offsets("store", tensor, self.offsets, len(self.value.type.shape))
        check_checked("store", tensor, self.checked)
        if self.mask is not None:
            check_mask("store", self.mask, self.value.type.shape)
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("write", "global", self.tensor),)


def check_indices(
    opcode: str, tensor: GlobalType | SharedType, indices: tuple[Value, ...]
) -> tuple[int, ...]:
    """Check integer index tiles of one shape, one for each dimension; return the shape."""
    rank = len(tensor.dims) if isinstance(tensor, GlobalType) else len(tensor.shape)
    if len(indices) != rank:
        raise ShapeMismatch(
            f"{opcode} takes {rank} index tiles for a tensor of rank {rank}, not {len(indices)}"
        )
    shapes = set()
    for value in indices:
        if not (isinstance(value.type, RegisterType) and value.type.dtype.is_integer):
            raise TypeMismatch(f"{opcode} takes integer index tiles, not {value.type}")
        shapes.add(value.type.shape)
    if len(shapes) != 1:
        raise ShapeMismatch(
            f"{opcode} takes index tiles of one shape, not {', '.join(map(str, sorted(shapes)))}"
        )
    shape: tuple[int, ...] = shapes.pop()
    return shape


@op("gather", pure=False)
class Gather(Operation):
    """Elements of a global or shared tensor at index tiles, one for each dimension; 0 outside and where masked."""

    tensor: Value = operand()
    indices: tuple[Value, ...] = operands()
    mask: Value | None = optional()
    checked: bool = attribute(default=True)

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.tensor.type, (GlobalType, SharedType)):
            raise TypeMismatch(f"load takes a global or shared tensor, not {self.tensor.type}")
        shape = check_indices("load", self.tensor.type, self.indices)
        if self.mask is not None:
            check_mask("load", self.mask, shape)
        layout = self.indices[0].type.layout  # type: ignore[attr-defined]
        return (RegisterType(self.tensor.type.dtype, shape, layout),)

    def effects(self) -> tuple[Effect, ...]:
        space = "global" if isinstance(self.tensor.type, GlobalType) else "shared"
        return (Effect("read", space, self.tensor),)


@op("scatter", pure=False)
class Scatter(Operation):
    """Store a tile's elements at index tiles of a global or shared tensor; nothing outside or where masked."""

    tensor: Value = operand()
    value: Value = operand()
    indices: tuple[Value, ...] = operands()
    mask: Value | None = optional()
    checked: bool = attribute(default=True)

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.tensor.type, (GlobalType, SharedType)):
            raise TypeMismatch(f"store takes a global or shared tensor, not {self.tensor.type}")
        shape = check_indices("store", self.tensor.type, self.indices)
        if not isinstance(self.value.type, RegisterType) or self.value.type.shape != shape:
            raise ShapeMismatch(f"store of {self.value.type} at index tiles of shape {shape}")
        if self.value.type.dtype != self.tensor.type.dtype:
            raise TypeMismatch(f"store of {self.value.type.dtype} into a tensor of {self.tensor.type.dtype}")
        if self.mask is not None:
            check_mask("store", self.mask, shape)
        return ()

    def effects(self) -> tuple[Effect, ...]:
        space = "global" if isinstance(self.tensor.type, GlobalType) else "shared"
        return (Effect("write", space, self.tensor),)


@op("atomic", pure=False)
class Atomic(Operation):
    """An atomic update of a global or shared tensor at index tiles; gives the old values.

    `order` is relaxed, acquire, release or acq_rel; `scope` is block, cluster, device or system.
    `compare` is the expected value of cas. One thread updates an element that several hold; `spread` hands the old
    value to the others, and is set by layout inference where the result is used, `scratch` by planning.
    """

    kind: str = attribute()
    tensor: Value = operand()
    value: Value = operand()
    indices: tuple[Value, ...] = operands()
    compare: Value | None = optional()
    mask: Value | None = optional()
    order: str = attribute(default="relaxed")
    scope: str = attribute(default="device")
    checked: bool = attribute(default=True)
    spread: bool = attribute(default=False)
    scratch: int | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        if self.kind not in ATOMICS:
            raise TypeMismatch(f"no atomic named {self.kind}; there are {', '.join(ATOMICS)}")
        if not isinstance(self.tensor.type, (GlobalType, SharedType)):
            raise TypeMismatch(f"atomics take a global or shared tensor, not {self.tensor.type}")
        shape = check_indices("atomic", self.tensor.type, self.indices)
        for value in (self.value, self.compare):
            if value is None:
                continue
            if not isinstance(value.type, RegisterType) or value.type.shape != shape:
                raise ShapeMismatch(f"atomic {self.kind} of {value.type} at index tiles of shape {shape}")
            if value.type.dtype != self.tensor.type.dtype:
                raise TypeMismatch(f"atomic {self.kind} of {value.type.dtype} on {self.tensor.type.dtype}")
        if (self.kind == "cas") != (self.compare is not None):
            raise TypeMismatch("atomic cas, and only cas, takes a value to compare with")
        if self.mask is not None:
            check_mask("atomic", self.mask, shape)
        layout = self.value.type.layout  # type: ignore[attr-defined]
        return (RegisterType(self.tensor.type.dtype, shape, layout),)

    def effects(self) -> tuple[Effect, ...]:
        space = "global" if isinstance(self.tensor.type, GlobalType) else "shared"
        return (Effect("read", space, self.tensor), Effect("write", space, self.tensor))


@op("fence", pure=False)
class Fence(Operation):
    """A memory fence: `kind` is block, device, system, or async (generic to async proxy)."""

    kind: str = attribute(default="device")

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread"),)


@op("alloc_shared", pure=False)
class AllocShared(Operation):
    """A tile in shared memory; planning sets `offset` (bytes). Undefined content.

    `streamed` promises that every copy into the tile is read by the warp group that reads it last, so that
    nothing arrives there after that group's last read, whatever other groups do.
    """

    dtype: DType = attribute()
    shape: tuple[int, ...] = attribute()
    layout: SharedLayout | None = attribute(default=None)
    offset: int | None = attribute(default=None)
    streamed: bool = attribute(default=False)

    def infer(self) -> tuple[Type, ...]:
        return (SharedType(self.dtype, self.shape, self.layout),)


@op("shared_index", pure=True)
class SharedIndex(Operation):
    """The part of a shared tensor at a scalar index of its first dimension (a stage)."""

    tensor: Value = operand()
    index: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        type = shared_type("indexing", self.tensor)
        if len(type.shape) < 2:
            raise ShapeMismatch(f"indexing takes a shared tensor of rank 2 or more, not shape {type.shape}")
        if not (isinstance(self.index.type, ScalarType) and self.index.type.dtype.is_integer):
            raise TypeMismatch(f"a shared tensor is indexed with an integer, not {self.index.type}")
        layout = type.layout.slice(0, 0)[1] if type.layout is not None else None
        return (replace(type, shape=type.shape[1:], layout=layout),)


@op("shared_slice", pure=True)
class SharedSlice(Operation):
    """The part of a shared tensor from constant `offsets`, of shape `shape`."""

    tensor: Value = operand()
    offsets: tuple[int, ...] = attribute()
    shape: tuple[int, ...] = attribute()
    layout: SharedLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = shared_type("slice", self.tensor)
        ok = len(self.offsets) == len(self.shape) == len(type.shape) and all(
            0 <= o and o + n <= d for o, n, d in zip(self.offsets, self.shape, type.shape, strict=True)
        )
        if not ok:
            raise ShapeMismatch(
                f"slice at {self.offsets} of shape {self.shape} from shared shape {type.shape}"
            )
        return (replace(type, shape=self.shape, layout=self.layout),)


@op("shared_permute", pure=True)
class SharedPermute(Operation):
    """A shared tensor with its dimensions permuted; no data moves."""

    tensor: Value = operand()
    perm: tuple[int, ...] = attribute()

    def infer(self) -> tuple[Type, ...]:
        type = shared_type("transpose", self.tensor)
        if sorted(self.perm) != list(range(len(type.shape))):
            raise ShapeMismatch(f"transpose by {self.perm} of a shared tensor of rank {len(type.shape)}")
        layout = type.layout.transpose(self.perm) if type.layout is not None else None
        return (replace(type, shape=tuple(type.shape[p] for p in self.perm), layout=layout),)


@op("shared_reshape", pure=True)
class SharedReshape(Operation):
    """A shared tensor's elements in row-major order under another shape; no data moves."""

    tensor: Value = operand()
    shape: tuple[int, ...] = attribute()

    def infer(self) -> tuple[Type, ...]:
        type = shared_type("reshape", self.tensor)
        if prod(self.shape) != prod(type.shape) or min(self.shape, default=1) < 1:
            raise ShapeMismatch(
                f"reshape from shared shape {type.shape} to {self.shape} changes the number of elements"
            )
        layout = None
        if type.layout is not None:
            try:
                layout = type.layout.reshape(self.shape)
            except LayoutError as error:
                raise LayoutConflict(
                    f"a shared tensor of shape {type.shape} cannot be seen as {self.shape} where it lies: {error}",
                    hint="reshape the whole tensor, or give it layout=tilus.row_major(...)",
                ) from None
        return (replace(type, shape=self.shape, layout=layout),)


@op("load_shared", pure=False)
class LoadShared(Operation):
    """A whole shared tensor as a register tile."""

    tensor: Value = operand()
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        type = shared_type("load", self.tensor)
        return (RegisterType(type.dtype, type.shape, self.layout),)

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("read", "shared", self.tensor),)


@op("store_shared", pure=False)
class StoreShared(Operation):
    """Store a register tile over a whole shared tensor."""

    tensor: Value = operand()
    value: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        type = shared_type("store", self.tensor)
        if not isinstance(self.value.type, RegisterType):
            raise TypeMismatch(f"store takes a register tile, not {self.value.type}")
        if self.value.type.dtype != type.dtype:
            raise TypeMismatch(f"store of {self.value.type.dtype} into shared {type.dtype}")
        if self.value.type.shape != type.shape:
            raise ShapeMismatch(
                f"store of shape {self.value.type.shape} into a shared tensor of shape {type.shape}"
            )
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("write", "shared", self.tensor),)


@op("copy_async", pure=False)
class CopyAsync(Operation):
    """Start copying the tile at `offsets` of a global tensor into a shared tensor; zero outside the tensor.

    The data is there for this thread after a `copy_async_wait` that covers its group, for others after a
    barrier more.
    """

    shared: Value = operand()
    tensor: Value = operand()
    offsets: tuple[Value, ...] = operands()
    checked: tuple[bool, ...] = attribute()
    cache: str = attribute(default="")

    def infer(self) -> tuple[Type, ...]:
        shared, tensor = own_shared_type("copy_async", self.shared), global_type("copy_async", self.tensor)
        if shared.dtype != tensor.dtype:
            raise TypeMismatch(f"copy_async from a tensor of {tensor.dtype} into shared {shared.dtype}")
        check_offsets("copy_async", tensor, self.offsets, len(shared.shape))
        check_checked("copy_async", tensor, self.checked)
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (
            Effect("read", "global", self.tensor, "copy_async"),
            Effect("write", "shared", self.shared, "copy_async"),
        )


@op("copy_async_commit", pure=False)
class CopyAsyncCommit(Operation):
    """Close the group of the copies started since the last commit."""

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread", None, "copy_async"),)


@op("copy_async_wait", pure=False)
class CopyAsyncWait(Operation):
    """Wait until at most `pending` of the newest groups are unfinished."""

    pending: int = attribute(default=0)

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread", None, "copy_async"),)


@op("sync", pure=False)
class Sync(Operation):
    """A barrier for all threads of the current warp group (the whole block outside of one).

    `reason` is empty where the user wrote it; barrier placement says why it added one.
    """

    reason: str = attribute(default="")

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "shared"),)


@op("barrier_alloc", pure=False)
class BarrierAlloc(Operation):
    """An array of mbarriers in shared memory, each completed by `arrivals` warps that arrive.

    Planning sets `offset`.
    """

    count: int = attribute(default=1)
    arrivals: int = attribute(default=1)
    offset: int | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        return (BarrierType(self.count),)


@op("barrier_arrive", pure=False)
class BarrierArrive(Operation):
    """Each warp of the current group arrives once at a barrier, the first announcing `bytes` of bulk copies.

    With `rank`, the barrier is the one that lies in the same place in the block of that rank of the cluster. `scope`
    is block or cluster: which threads see what was written before, once they have waited; empty until a pass chooses.
    """

    barrier: Value = operand()
    index: Value | None = optional()
    bytes: int = attribute(default=0)
    rank: Value | None = optional()
    scope: str = attribute(default="")

    def infer(self) -> tuple[Type, ...]:
        check_barrier("arrive", self.barrier, self.index)
        check_scope("arrive", self.scope)
        if self.rank is not None:
            check_integer("arrive", "rank", self.rank)
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "shared", self.barrier),)


@op("barrier_wait", pure=False)
class BarrierWait(Operation):
    """Wait until the phase of parity `phase` of a barrier is complete.

    `scope` is block or cluster: from which threads the writes before their arrivals are seen.
    """

    barrier: Value = operand()
    phase: Value = operand()
    index: Value | None = optional()
    scope: str = attribute(default="")

    def infer(self) -> tuple[Type, ...]:
        check_scope("wait", self.scope)
        check_barrier("wait", self.barrier, self.index)
        check_integer("wait", "phase", self.phase)
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "shared", self.barrier),)


@op("copy_bulk", pure=False)
class CopyBulk(Operation):
    """Start a TMA copy of the tile at `offsets` of a global tensor into a shared tensor; completes on `barrier`.

    With `multicast`, a mask of ranks, the tile lands in the same place in each of these blocks of the cluster, and
    completes on the barrier of each.
    """

    shared: Value = operand()
    tensor: Value = operand()
    offsets: tuple[Value, ...] = operands()
    barrier: Value = operand()
    index: Value | None = optional()
    multicast: Value | None = optional()

    def infer(self) -> tuple[Type, ...]:
        shared, tensor = own_shared_type("copy_bulk", self.shared), global_type("copy_bulk", self.tensor)
        if shared.dtype != tensor.dtype:
            raise TypeMismatch(f"copy_bulk from a tensor of {tensor.dtype} into shared {shared.dtype}")
        check_offsets("copy_bulk", tensor, self.offsets, len(shared.shape))
        check_barrier("copy_bulk", self.barrier, self.index)
        if self.multicast is not None:
            check_integer("copy_bulk", "mask", self.multicast)
        return ()

    def effects(self) -> tuple[Effect, ...]:
        return (
            Effect("read", "global", self.tensor, "async"),
            Effect("write", "shared", self.shared, "async"),
        )
