"""What each operation without regions does, one function each, on NumPy arrays of whole tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tilus.dtypes import DType, pack, unpack
from tilus.errors import HazardFound, Location, TilusError
from tilus.ir import numerics, ops
from tilus.ir.cluster_model import Cluster, same_barriers, same_tile
from tilus.ir.core import Operation, Value
from tilus.ir.kernel import Kernel
from tilus.ir.memory_model import (
    Barrier,
    CopyQueue,
    GlobalTensor,
    LateTile,
    Pointer,
    tile_bytes,
    tile_indices,
    undefined,
)
from tilus.ir.numerics import Array, from_values, storage, to_values
from tilus.ir.types import GlobalType, PointerType, RegisterType, ScalarType, SharedType


class InterpreterError(TilusError):
    """A program that the interpreter cannot run."""


@dataclass
class Block:
    """The state of a thread block: its values, its place in the grid, and what it allocated."""

    kernel: Kernel
    values: dict[Value, Any]
    index: tuple[int, int, int]
    grid: tuple[int, ...]
    output: Callable[[str], None]
    cluster: Cluster = field(default_factory=Cluster)
    # By the operation: a loop gets the same memory each time.
    allocated: dict[Operation, Any] = field(default_factory=dict)
    # Warps that have not ended.
    alive: int = 0

    def __post_init__(self) -> None:
        self.alive = self.kernel.warps
        self.cluster.blocks.append(self)

    @property
    def events(self) -> int:
        """Counts what may let a waiting group of the cluster go on."""
        return self.cluster.events

    @events.setter
    def events(self, count: int) -> None:
        self.cluster.events = count

    def allocate(self, op: Operation) -> Any:
        """Return the memory or the barriers of an operation, which other blocks may use before it runs."""
        if op not in self.allocated:
            if isinstance(op, ops.BarrierAlloc):
                self.allocated[op] = [Barrier(op.arrivals) for _ in range(op.count)]
            else:
                assert isinstance(op, ops.AllocShared)
                self.allocated[op] = undefined(op.dtype, op.shape)
        return self.allocated[op]


@dataclass(eq=False)
class Group:
    """A group of threads on its way through the program."""

    block: Block
    warps: int
    copies: CopyQueue = field(default_factory=CopyQueue)
    stores: CopyQueue = field(default_factory=CopyQueue)
    dots: deque[LateTile] = field(default_factory=deque)
    waits: Location | None = None
    parent: Group | None = None
    # The phase of the cluster's barrier at which the group last arrived.
    ticket: int = -1
    # Loops around that ask for pipelining, whose copies need no wait.
    pipelined: int = 0


_F = TypeVar("_F", bound=Callable[..., Any])

SEMANTICS: dict[type[Operation], Callable[..., tuple[Any, ...]]] = {}


def means(cls: type[Operation]) -> Callable[[_F], _F]:
    """Declare what an operation does; the function returns its results."""

    def declare(function: _F) -> _F:
        SEMANTICS[cls] = function
        return function

    return declare


# Scalars.


def integer(group: Group, value: Value) -> int:
    type = value.type
    assert isinstance(type, ScalarType)
    return int(to_values(group.block.values[value], type.dtype))


def _dtype(value: Value) -> DType:
    assert isinstance(value.type, (ScalarType, RegisterType, SharedType, GlobalType, PointerType))
    return value.type.dtype


def _shape(value: Value) -> tuple[int, ...]:
    assert isinstance(value.type, (RegisterType, SharedType))
    return value.type.shape


@means(ops.Constant)
def _constant(group: Group, op: ops.Constant) -> tuple[Any, ...]:
    return (from_values(np.asarray(op.value), op.dtype),)


@means(ops.BlockId)
def _block_id(group: Group, op: ops.BlockId) -> tuple[Any, ...]:
    return (np.int32(group.block.index[op.axis]),)


@means(ops.GridDim)
def _grid_dim(group: Group, op: ops.GridDim) -> tuple[Any, ...]:
    return (np.int32(group.block.grid[op.axis]),)


@means(ops.ClusterRank)
def _cluster_rank(group: Group, op: ops.ClusterRank) -> tuple[Any, ...]:
    cx, cy, cz = group.block.kernel.cluster
    x, y, z = group.block.index
    return (np.int32(x % cx + cx * (y % cy + cy * (z % cz))),)


@means(ops.Dim)
def _dim(group: Group, op: ops.Dim) -> tuple[Any, ...]:
    return (np.int32(group.block.values[op.tensor].dims[op.axis]),)


@means(ops.Stride)
def _stride(group: Group, op: ops.Stride) -> tuple[Any, ...]:
    return (np.int64(group.block.values[op.tensor].strides[op.axis]),)


@means(ops.PointerOf)
def _pointer_of(group: Group, op: ops.PointerOf) -> tuple[Any, ...]:
    return (group.block.values[op.tensor].pointer,)


@means(ops.PointerAdd)
def _pointer_add(group: Group, op: ops.PointerAdd) -> tuple[Any, ...]:
    pointer = group.block.values[op.pointer]
    return (Pointer(pointer.buffer, pointer.offset + integer(group, op.offset)),)


@means(ops.PointerCast)
def _pointer_cast(group: Group, op: ops.PointerCast) -> tuple[Any, ...]:
    return (group.block.values[op.pointer].cast(_dtype(op.pointer), op.dtype),)


@means(ops.Assume)
def _assume(group: Group, op: ops.Assume) -> tuple[Any, ...]:
    value = group.block.values[op.value]
    if isinstance(op.value.type, PointerType):
        # Buffers are taken to start at a multiple of any alignment.
        bits = value.offset * op.value.type.dtype.bits
        if bits % (8 * op.divisor):
            raise HazardFound(
                f"a pointer at bit {bits} of a buffer was said to be aligned to {op.divisor} bytes"
            )
        return (value,)
    found = integer(group, op.value)
    if found % op.divisor:
        raise HazardFound(f"{found} was said to be a multiple of {op.divisor}")
    return (value,)


@means(ops.Extract)
def _extract(group: Group, op: ops.Extract) -> tuple[Any, ...]:
    return (group.block.values[op.tile].reshape(()),)


# Elementwise.


@means(ops.Unary)
def _unary(group: Group, op: ops.Unary) -> tuple[Any, ...]:
    return (numerics.unary(op.kind, group.block.values[op.x], _dtype(op.x)),)


@means(ops.Binary)
def _binary(group: Group, op: ops.Binary) -> tuple[Any, ...]:
    values = group.block.values
    return (numerics.binary(op.kind, values[op.a], values[op.b], _dtype(op.a)),)


@means(ops.Compare)
def _compare(group: Group, op: ops.Compare) -> tuple[Any, ...]:
    values = group.block.values
    return (numerics.compare(op.kind, values[op.a], values[op.b], _dtype(op.a)),)


@means(ops.Select)
def _select(group: Group, op: ops.Select) -> tuple[Any, ...]:
    values = group.block.values
    return (np.where(values[op.cond], values[op.a], values[op.b]),)


@means(ops.Cast)
def _cast(group: Group, op: ops.Cast) -> tuple[Any, ...]:
    if op.arranged:
        raise TilusError(
            "the interpreter does not know how a target arranges prepacked codes",
            op.loc,
            hint="run the kernel on the simulator",
        )
    return (numerics.cast(group.block.values[op.x], _dtype(op.x), op.dtype),)


@means(ops.CastRandom)
def _cast_random(group: Group, op: ops.CastRandom) -> tuple[Any, ...]:
    values = group.block.values
    return (numerics.cast_at_random(values[op.x], _dtype(op.x), op.dtype, values[op.random]),)


@means(ops.View)
def _view(group: Group, op: ops.View) -> tuple[Any, ...]:
    old, new = op.x.type, op.result.type
    assert isinstance(old, RegisterType)
    assert isinstance(new, RegisterType)
    x = group.block.values[op.x]
    if old.layout is None or new.layout is None:
        # Without layouts, bits stay in their row.
        if old.shape[:-1] == new.shape[:-1]:
            codes = numerics.to_codes(x, old.dtype)
            if old.dtype.bits != new.dtype.bits:
                codes = unpack(pack(codes, old.dtype), new.dtype, new.shape[-1])
            return (numerics.from_codes(codes, new.dtype),)
        raise InterpreterError(f"view from {old} to {new} needs the layouts of both: infer layouts first")
    if old.layout.threads != new.layout.threads or (
        old.layout.elements * old.dtype.bits != new.layout.elements * new.dtype.bits
    ):
        raise InterpreterError(f"view from {old} to {new} changes the bits of a thread")
    made = numerics.reinterpret(x, old.dtype, old.layout, new.dtype, new.layout)
    if made is None:
        raise HazardFound("view to a layout whose copies of an element differ")
    return (made,)


@means(ops.InlinePtx)
def _inline_ptx(group: Group, op: ops.InlinePtx) -> tuple[Any, ...]:
    raise InterpreterError("the interpreter runs no inline PTX: run the kernel on the simulator")


# Tiles.


@means(ops.Splat)
def _splat(group: Group, op: ops.Splat) -> tuple[Any, ...]:
    return (np.full(op.shape, group.block.values[op.scalar]),)


@means(ops.Iota)
def _iota(group: Group, op: ops.Iota) -> tuple[Any, ...]:
    along = [1] * len(op.shape)
    along[op.axis] = op.shape[op.axis]
    index = np.arange(op.shape[op.axis]).reshape(along)
    return (from_values(np.broadcast_to(index, op.shape), op.dtype),)


@means(ops.Table)
def _table(group: Group, op: ops.Table) -> tuple[Any, ...]:
    index = to_values(group.block.values[op.index], _dtype(op.index))
    if ((index < 0) | (index >= len(op.values))).any():
        raise HazardFound(f"index {index.min()} or {index.max()} of a table of {len(op.values)}")
    return (from_values(np.asarray(op.values), op.dtype)[index.astype(np.int64)],)


@means(ops.ConvertLayout)
@means(ops.AnnotateLayout)
def _same(group: Group, op: ops.ConvertLayout | ops.AnnotateLayout) -> tuple[Any, ...]:
    return (group.block.values[op.x],)


@means(ops.ExpandDims)
@means(ops.Squeeze)
@means(ops.Reshape)
def _reshape(group: Group, op: ops.ExpandDims | ops.Squeeze | ops.Reshape) -> tuple[Any, ...]:
    return (group.block.values[op.x].reshape(_shape(op.result)),)


@means(ops.Broadcast)
def _broadcast(group: Group, op: ops.Broadcast) -> tuple[Any, ...]:
    return (np.broadcast_to(group.block.values[op.x], op.shape),)


@means(ops.Transpose)
def _transpose(group: Group, op: ops.Transpose) -> tuple[Any, ...]:
    return (group.block.values[op.x].transpose(op.perm),)


@means(ops.SliceTile)
def _slice_tile(group: Group, op: ops.SliceTile) -> tuple[Any, ...]:
    part = tuple(slice(o, o + n) for o, n in zip(op.offsets, op.shape, strict=True))
    return (group.block.values[op.x][part],)


@means(ops.Concat)
def _concat(group: Group, op: ops.Concat) -> tuple[Any, ...]:
    return (np.concatenate([group.block.values[p] for p in op.parts], axis=op.axis),)


@means(ops.Reduce)
def _reduce(group: Group, op: ops.Reduce) -> tuple[Any, ...]:
    return (numerics.reduce(op.kind, group.block.values[op.x], op.axis, _dtype(op.x)),)


@means(ops.Scan)
def _scan(group: Group, op: ops.Scan) -> tuple[Any, ...]:
    return (numerics.scan(op.kind, group.block.values[op.x], op.axis, op.exclusive, _dtype(op.x)),)


@means(ops.Exchange)
def _exchange(group: Group, op: ops.Exchange) -> tuple[Any, ...]:
    x = group.block.values[op.x]
    return (np.take(x, np.arange(x.shape[op.axis]) ^ op.mask, axis=op.axis),)


@means(ops.Dot)
def _dot(group: Group, op: ops.Dot) -> tuple[Any, ...]:
    a, b, c = (group.block.values[v] for v in (op.a, op.b, op.c))
    return (numerics.dot(a, b, c, (_dtype(op.a), _dtype(op.b), _dtype(op.c))),)


@means(ops.Random)
def _random(group: Group, op: ops.Random) -> tuple[Any, ...]:
    counter = numerics.to_codes(group.block.values[op.counter], _dtype(op.counter))
    return numerics.philox(integer(group, op.seed), counter)


# Debugging.


@means(ops.Print)
def _print(group: Group, op: ops.Print) -> tuple[Any, ...]:
    shown = [to_values(group.block.values[v], _dtype(v)) for v in op.args]
    group.block.output(op.format.format(*(v.item() if v.ndim == 0 else v for v in shown)))
    return ()


@means(ops.Assert)
def _assert(group: Group, op: ops.Assert) -> tuple[Any, ...]:
    if not np.all(group.block.values[op.condition]):
        raise HazardFound(f"device_assert failed in block {group.block.index}: {op.message}")
    return ()


# Global memory.


@means(ops.GlobalView)
def _global_view(group: Group, op: ops.GlobalView) -> tuple[Any, ...]:
    dims = tuple(integer(group, v) for v in op.shape)
    strides = tuple(integer(group, v) for v in op.strides)
    for what, found, known in (("extent", dims, op.dims), ("stride", strides, op.steps)):
        for size, expected in zip(found, known or (None,) * len(found), strict=True):
            if expected is not None and size != expected:
                raise HazardFound(f"view was said to have {what} {expected}, but it is {size}")
    return (GlobalTensor(group.block.values[op.pointer], dims, strides),)


def _mask(group: Group, mask: Value | None) -> Array | None:
    return None if mask is None else group.block.values[mask]


def _zero(dtype: DType) -> Array:
    # float8_e8m0 has no zero; the device fills memory with zero bits.
    return np.zeros((), storage(dtype))


@means(ops.LoadGlobal)
def _load_global(group: Group, op: ops.LoadGlobal) -> tuple[Any, ...]:
    tensor = group.block.values[op.tensor]
    indices = tile_indices([integer(group, v) for v in op.offsets], op.shape)
    places, active = tensor.locate(indices, op.shape, op.checked, _mask(group, op.mask))
    other = _zero(_dtype(op.tensor)) if op.other is None else group.block.values[op.other]
    return (tensor.load(places, active, other),)


@means(ops.StoreGlobal)
def _store_global(group: Group, op: ops.StoreGlobal) -> tuple[Any, ...]:
    tensor, value = group.block.values[op.tensor], group.block.values[op.value]
    indices = tile_indices([integer(group, v) for v in op.offsets], value.shape)
    places, active = tensor.locate(indices, value.shape, op.checked, _mask(group, op.mask))
    tensor.store(places, active, value)
    return ()


@dataclass(frozen=True)
class _Accessed:
    """The elements that gather, scatter and atomics mean."""

    tensor: GlobalTensor
    places: Array
    active: Array
    # Brings what was written back to shared memory.
    finish: Callable[[], None]


def _at_indices(group: Group, op: ops.Gather | ops.Scatter | ops.Atomic) -> _Accessed:
    found = group.block.values[op.tensor]
    indices = [to_values(group.block.values[v], _dtype(v)).astype(np.int64) for v in op.indices]
    checked = (op.checked,) * len(indices)
    mask = _mask(group, op.mask)
    if isinstance(found, GlobalTensor):
        places, active = found.locate(indices, indices[0].shape, checked, mask)
        return _Accessed(found, places, active, lambda: None)
    copy = np.array(found, order="C")
    tensor = GlobalTensor(
        Pointer(copy.reshape(-1)), copy.shape, tuple(s // copy.itemsize for s in copy.strides)
    )

    def finish() -> None:
        found[...] = copy

    places, active = tensor.locate(indices, indices[0].shape, checked, mask)
    return _Accessed(tensor, places, active, finish)


@means(ops.Gather)
def _gather(group: Group, op: ops.Gather) -> tuple[Any, ...]:
    at = _at_indices(group, op)
    return (at.tensor.load(at.places, at.active, _zero(_dtype(op.tensor))),)


@means(ops.Scatter)
def _scatter(group: Group, op: ops.Scatter) -> tuple[Any, ...]:
    at = _at_indices(group, op)
    at.tensor.store(at.places, at.active, group.block.values[op.value])
    at.finish()
    return ()


@means(ops.Atomic)
def _atomic(group: Group, op: ops.Atomic) -> tuple[Any, ...]:
    """Update element by element, in row-major order; elements that are not active give 0."""
    at = _at_indices(group, op)
    dtype = _dtype(op.tensor)
    values = group.block.values[op.value]
    compare = None if op.compare is None else numerics.to_codes(group.block.values[op.compare], dtype)
    buffer = at.tensor.pointer.buffer
    old = np.zeros(values.shape, buffer.dtype)
    for index in zip(*np.nonzero(at.active)):
        place = at.places[index]
        found = old[index] = buffer[place]
        if op.kind == "exch":
            buffer[place] = values[index]
        elif compare is None:
            buffer[place] = numerics.binary(op.kind, found, values[index], dtype)
        elif numerics.to_codes(np.asarray(found), dtype) == compare[index]:
            buffer[place] = values[index]
    at.finish()
    return (old,)


@means(ops.Fence)
@means(ops.Sync)
@means(ops.WaitForPrevious)
@means(ops.LaunchNext)
def _nothing(group: Group, op: Operation) -> tuple[Any, ...]:
    # A group runs as one, so that its threads are always together; a launch runs alone.
    return ()


# Clusters.


@means(ops.ClusterArrive)
def _cluster_arrive(group: Group, op: ops.ClusterArrive) -> tuple[Any, ...]:
    cluster = group.block.cluster
    if group.ticket == cluster.phase:
        raise HazardFound(
            "a group of warps arrives twice at the cluster's barrier without waiting in between"
        )
    group.ticket = cluster.phase
    cluster.arrive(group.warps)
    return ()


@means(ops.Remote)
def _remote(group: Group, op: ops.Remote) -> tuple[Any, ...]:
    block = group.block
    other = block.cluster.block(integer(group, op.rank))
    return (same_tile(block, block.values[op.tensor], other),)


# Shared memory.


@means(ops.AllocShared)
def _alloc_shared(group: Group, op: ops.AllocShared) -> tuple[Any, ...]:
    return (group.block.allocate(op),)


@means(ops.SharedIndex)
def _shared_index(group: Group, op: ops.SharedIndex) -> tuple[Any, ...]:
    tensor, index = group.block.values[op.tensor], integer(group, op.index)
    if not 0 <= index < len(tensor):
        raise HazardFound(f"index {index} of a shared tensor with {len(tensor)} parts")
    return (tensor[index],)


@means(ops.SharedSlice)
def _shared_slice(group: Group, op: ops.SharedSlice) -> tuple[Any, ...]:
    part = tuple(slice(o, o + n) for o, n in zip(op.offsets, op.shape, strict=True))
    return (group.block.values[op.tensor][part],)


@means(ops.SharedPermute)
def _shared_permute(group: Group, op: ops.SharedPermute) -> tuple[Any, ...]:
    return (group.block.values[op.tensor].transpose(op.perm),)


@means(ops.SharedReshape)
def _shared_reshape(group: Group, op: ops.SharedReshape) -> tuple[Any, ...]:
    x = group.block.values[op.tensor]
    seen = x.reshape(op.shape)
    if not np.shares_memory(x, seen):
        raise HazardFound(f"a shared tensor of shape {x.shape} cannot be seen as {op.shape} where it lies")
    return (seen,)


@means(ops.LoadShared)
def _load_shared(group: Group, op: ops.LoadShared) -> tuple[Any, ...]:
    return (group.block.values[op.tensor].copy(),)


@means(ops.StoreShared)
def _store_shared(group: Group, op: ops.StoreShared) -> tuple[Any, ...]:
    group.block.values[op.tensor][...] = group.block.values[op.value]
    return ()


def _late_copy(
    group: Group, op: ops.CopyAsync | ops.CopyBulk, checked: tuple[bool, ...], target: Array | None = None
) -> Callable[[], None]:
    """Return the copy, to be done at its wait; its bounds are checked now."""
    tensor = group.block.values[op.tensor]
    shared = group.block.values[op.shared] if target is None else target
    indices = tile_indices([integer(group, v) for v in op.offsets], shared.shape)
    places, active = tensor.locate(indices, shared.shape, checked, None)
    zero = _zero(_dtype(op.tensor))

    def copy() -> None:
        shared[...] = tensor.load(places, active, zero)

    return copy


@means(ops.CopyAsync)
def _copy_async(group: Group, op: ops.CopyAsync) -> tuple[Any, ...]:
    copy = _late_copy(group, op, op.checked)
    if group.pipelined:
        copy()
    else:
        group.copies.started.append(copy)
    return ()


@means(ops.CopyAsyncCommit)
def _copy_async_commit(group: Group, op: ops.CopyAsyncCommit) -> tuple[Any, ...]:
    group.copies.commit()
    return ()


@means(ops.CopyAsyncWait)
def _copy_async_wait(group: Group, op: ops.CopyAsyncWait) -> tuple[Any, ...]:
    group.copies.wait(op.pending)
    return ()


# Barriers.


@means(ops.BarrierAlloc)
def _barrier_alloc(group: Group, op: ops.BarrierAlloc) -> tuple[Any, ...]:
    return (group.block.allocate(op),)


def barrier_of(group: Group, barrier: Value, index: Value | None, rank: int | None = None) -> Barrier:
    barriers: list[Barrier] = group.block.values[barrier]
    if rank is not None:
        barriers = same_barriers(group.block, barriers, group.block.cluster.block(rank))
    number = 0 if index is None else integer(group, index)
    if not 0 <= number < len(barriers):
        raise HazardFound(f"index {number} of an array of {len(barriers)} barriers")
    return barriers[number]


@means(ops.BarrierArrive)
def _barrier_arrive(group: Group, op: ops.BarrierArrive) -> tuple[Any, ...]:
    rank = None if op.rank is None else integer(group, op.rank)
    barrier = barrier_of(group, op.barrier, op.index, rank)
    for warp in range(group.warps):
        barrier.arrive(op.bytes if warp == 0 else 0)
    group.block.events += 1
    return ()


@means(ops.CopyBulk)
def _copy_bulk(group: Group, op: ops.CopyBulk) -> tuple[Any, ...]:
    # TMA fills what lies outside of the tensor with zeros and counts it like the rest.
    checked = (True,) * len(op.offsets)
    size = tile_bytes(_dtype(op.shared), _shape(op.shared))
    block = group.block
    if op.multicast is None:
        barrier_of(group, op.barrier, op.index).copies.append((size, _late_copy(group, op, checked)))
    else:
        for rank in block.cluster.ranks(integer(group, op.multicast)):
            target = same_tile(block, block.values[op.shared], block.cluster.block(rank))
            copy = _late_copy(group, op, checked, target)
            barrier_of(group, op.barrier, op.index, rank).copies.append((size, copy))
    group.block.events += 1
    return ()


@means(ops.StoreBulk)
def _store_bulk(group: Group, op: ops.StoreBulk) -> tuple[Any, ...]:
    tensor, shared = group.block.values[op.tensor], group.block.values[op.shared]
    indices = tile_indices([integer(group, v) for v in op.offsets], shared.shape)
    places, active = tensor.locate(indices, shared.shape, (True,) * len(indices), None)
    dtype = _dtype(op.shared)

    def store() -> None:
        values = shared
        if op.reduction:
            values = numerics.binary(op.reduction, tensor.load(places, active, _zero(dtype)), shared, dtype)
        tensor.store(places, active, values)

    group.stores.started.append(store)
    return ()


@means(ops.BulkCommit)
def _bulk_commit(group: Group, op: ops.BulkCommit) -> tuple[Any, ...]:
    group.stores.commit()
    return ()


@means(ops.BulkWait)
def _bulk_wait(group: Group, op: ops.BulkWait) -> tuple[Any, ...]:
    group.stores.wait(op.pending)
    return ()


# Asynchronous products of matrices.


@means(ops.DotAsync)
def _dot_async(group: Group, op: ops.DotAsync) -> tuple[Any, ...]:
    a, b, c = (group.block.values[v] for v in (op.a, op.b, op.c))
    if isinstance(a, LateTile):
        a = a.value
        if a is None:
            raise HazardFound("dot_async reads a tile before the dot_wait that finishes it")
    dtypes = _dtype(op.a), _dtype(op.b), _dtype(op.c)

    def compute() -> Array:
        start = np.zeros_like(late_value(c)) if op.fresh else late_value(c)
        return numerics.dot(a, b, start, dtypes)

    made = LateTile(compute)
    group.dots.append(made)
    return (made,)


def late_value(tile: Array | LateTile) -> Array:
    """Return a tile that a product adds to; products run in the order in which they were started."""
    return tile.finish() if isinstance(tile, LateTile) else tile


@means(ops.DotWait)
def _dot_wait(group: Group, op: ops.DotWait) -> tuple[Any, ...]:
    while len(group.dots) > op.pending:
        group.dots.popleft().finish()
    tiles = [group.block.values[v] for v in op.tiles]
    # An accumulator that the wait does not cover stays unfinished.
    return tuple(t.value if isinstance(t, LateTile) and t.value is not None else t for t in tiles)
