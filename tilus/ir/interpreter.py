"""Runs a kernel in NumPy, on whole tiles: the reference semantics of every operation.

Clusters of thread blocks run one after the other; the groups of warps of a cluster's blocks take turns at barriers.
Layouts count in `view` alone. Asynchronous copies happen at the wait that guarantees them, never earlier. Float
results are those of `tilus.ir.numerics`: each operation is computed in float64 and rounded once, sums and products of
matrices too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np

from tilus.dtypes import DType
from tilus.dtypes import dtype as find_dtype
from tilus.errors import HazardFound, LaunchError, TilusError
from tilus.ir import ops
from tilus.ir.cluster_model import Cluster
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.memory_model import (
    GlobalTensor,
    LateTile,
    Packed,
    Pointer,
    flat,
)
from tilus.ir.numerics import Array, from_values, storage, to_values
from tilus.ir.semantics import SEMANTICS, Block, Group, InterpreterError, barrier_of, integer
from tilus.ir.types import GlobalType, PointerType, ScalarType, Symbol

# A loop that turns more often is taken for endless.
MOST_TURNS = 1_000_000


@dataclass(frozen=True)
class PackedRows:
    """Elements of fewer than 8 bits as they lie in memory: bit-compact along the last dimension.

    Parameters
    ----------
    memory : ndarray of uint8
        Rows of bytes, contiguous along the last dimension.
    count : int
        Elements in a row.
    """

    memory: Array
    count: int

    def tensor(self, dtype: DType) -> GlobalTensor:
        """Return the tensor of elements; strides count elements."""
        *steps, _ = self.memory.strides
        if any(step * 8 % dtype.bits for step in steps):
            raise LaunchError(f"rows {steps} bytes apart do not start at whole elements of {dtype}")
        buffer = Packed(flat(self.memory), dtype)
        return GlobalTensor(
            Pointer(buffer), (*self.memory.shape[:-1], self.count), (*(s * 8 // dtype.bits for s in steps), 1)
        )


def run(
    kernel: Kernel,
    args: Sequence[Any],
    grid: tuple[int, ...] | None = None,
    output: Callable[[str], None] = print,
) -> None:
    """Run a kernel; what it stores is in the arrays afterwards.

    Parameters
    ----------
    kernel : Kernel
        A kernel that `verify` accepts, before or after any pass.
    args : sequence
        One for each parameter: a number for a scalar, an array for a tensor or a pointer. An array has NumPy's type
        for the dtype, or, where NumPy has none, ml_dtypes' type, the codes, one element each, or PackedRows.
    grid : tuple of int, optional
        Extents of the grid; by default the kernel's own.
    output : callable
        What gets each line that the kernel prints.

    Raises
    ------
    LaunchError
        If the arguments do not fit the parameters.
    HazardFound
        On an access out of bounds, a tile used before its wait, a failed `device_assert`, a deadlock, or misuse of
        a barrier.
    InterpreterError
        On what NumPy cannot do: inline PTX, or a `view` between tiles without layouts.
    """
    with np.errstate(all="ignore"):
        values = bind(kernel, args)
        extents = grid if grid is not None else launch_grid(kernel, values)
        extents = tuple(extents) + (1,) * (3 - len(extents))
        size = kernel.cluster
        if any(extent % blocks for extent, blocks in zip(extents, size, strict=True)):
            raise LaunchError(f"{kernel.name} has the grid {extents}, no multiple of its cluster {size}")
        for z, y, x in product(*(range(0, n, c) for n, c in zip(reversed(extents), reversed(size)))):
            cluster = Cluster()
            for dz, dy, dx in product(*(range(c) for c in reversed(size))):
                place = (x + dx, y + dy, z + dz)
                Block(kernel, dict(values), place, extents, output, cluster)
            Schedule(cluster.blocks[0]).finish(kernel.body)


def bind(kernel: Kernel, args: Sequence[Any]) -> dict[Value, Any]:
    """Return the parameters' values, checked against their types."""
    if len(args) != len(kernel.params):
        raise LaunchError(f"{kernel.name} has {len(kernel.params)} parameters, not {len(args)}")
    sizes: dict[str, int] = {}
    return {p: _argument(p, a, sizes) for p, a in zip(kernel.params, args, strict=True)}


def launch_grid(kernel: Kernel, values: dict[Value, Any]) -> tuple[int, ...]:
    """Return the grid that the kernel computes from its parameters."""
    flow = Schedule(Block(kernel, dict(values), (0, 0, 0), (1, 1, 1), print)).finish(kernel.grid)
    return tuple(int(value) for value in flow.values)


def _argument(param: Value, given: Any, sizes: dict[str, int]) -> Any:
    type = param.type
    name = param.name or "a parameter"
    if isinstance(type, ScalarType):
        made = from_values(np.asarray(given), type.dtype)
        if type.dtype.is_integer and int(to_values(made, type.dtype)) != int(given):
            raise LaunchError(f"{name} is {given}, which {type.dtype} does not hold")
        return made
    assert isinstance(type, (PointerType, GlobalType))
    if isinstance(given, PackedRows):
        tensor = given.tensor(type.dtype)
    else:
        array = _as_array(name, given, type.dtype)
        tensor = GlobalTensor(
            Pointer(flat(array)), array.shape, tuple(step // array.dtype.itemsize for step in array.strides)
        )
    if isinstance(type, PointerType):
        return tensor.pointer
    if len(tensor.dims) != type.rank:
        raise LaunchError(f"{name} has rank {len(tensor.dims)}, but expected {type.rank}")
    for what, found, expected in (
        ("extent", tensor.dims, type.dims),
        ("stride", tensor.strides, type.strides),
    ):
        for axis, (size, extent) in enumerate(zip(found, expected, strict=True)):
            # The stride of a dimension of size 1 leads nowhere, so that any will do.
            if what == "stride" and tensor.dims[axis] <= 1:
                continue
            if isinstance(extent, Symbol):
                known = size if extent.name == "?" else sizes.setdefault(extent.name, size)
                if size != known:
                    raise LaunchError(f"{extent.name} is {known} and, as {what} {axis} of {name}, {size}")
                if size % extent.divisor:
                    raise LaunchError(f"{what} {axis} of {name} is {size}, no multiple of {extent.divisor}")
            elif size != extent:
                raise LaunchError(f"{what} {axis} of {name} is {size}, but expected {extent}")
    return tensor


def _as_array(name: str, given: Any, dtype: DType) -> Array:
    array = np.asarray(given)
    if array.dtype == storage(dtype):
        return array
    try:
        same = find_dtype(array.dtype) == dtype and array.dtype.itemsize == storage(dtype).itemsize
    except ValueError:
        same = False
    if not same:
        raise LaunchError(f"{name} holds {array.dtype}, but expected {storage(dtype)} for {dtype}")
    return array.view(storage(dtype))


@dataclass(frozen=True)
class Flow:
    """How a region ended: the terminator and what it hands on."""

    end: type[Operation]
    values: tuple[Any, ...] = ()


Steps = Generator[None, None, Flow]


class Schedule:
    """The groups of warps of a cluster's thread blocks, which take turns where they wait.

    Parameters
    ----------
    block : Block
        One of the blocks.
    """

    def __init__(self, block: Block) -> None:
        self.cluster = block.cluster
        self.running: dict[Group, Steps] = {}

    def finish(self, region: Region) -> Flow:
        """Run a region to its end in all blocks, with all groups of warps that it starts; how the first ended."""
        cluster = self.cluster
        groups = [self.start(block, region, block.kernel.warps) for block in cluster.blocks]
        result: Flow | None = None
        while self.running:
            before = cluster.events
            for group, steps in list(self.running.items()):
                try:
                    next(steps)
                except StopIteration as stop:
                    del self.running[group]
                    self.end(group, stop.value)
                    if group is groups[0]:
                        result = stop.value
            if self.running and cluster.events == before:
                waits = [group.waits for group in self.running if group.waits is not None]
                where = f"; they wait at {', '.join(map(str, waits))}" if waits else ""
                stuck = next(iter(self.running)).block.index
                raise HazardFound(
                    f"deadlock: no group of warps of block {stuck} can go on{where}",
                    waits[0] if waits else None,
                )
        assert result is not None
        return result

    def start(self, block: Block, region: Region, warps: int, parent: Group | None = None) -> Group:
        """Start a group of threads of a block on a region."""
        group = Group(block, warps, parent=parent, ticket=-1 if parent is None else parent.ticket)
        self.running[group] = self.region(group, region)
        block.events += 1
        return group

    def end(self, group: Group, flow: Flow) -> None:
        """Note that a group is done: its warps have ended, or go on with those around."""
        block, parent = group.block, group.parent
        if parent is None:
            block.alive = 0
        elif flow.end is ops.Return:
            block.alive -= group.warps
        else:
            parent.ticket = max(parent.ticket, group.ticket)
        self.cluster.advance()

    def region(self, group: Group, region: Region) -> Steps:
        """Run a region; yields where the group waits for others."""
        values = group.block.values
        children: list[tuple[ops.WarpGroup, Group]] = []
        for operation in region.ops:
            if children and not operation.pure:
                while any(other in self.running and needs(operation, started) for started, other in children):
                    yield
                children = [pair for pair in children if pair[1] in self.running]
            if operation.terminator:
                return Flow(type(operation), tuple(values[v] for v in operation.inputs()))
            try:
                if isinstance(operation, ops.WarpGroup):
                    child = self.start(group.block, operation.body, operation.count, group)
                    children.append((operation, child))
                elif type(operation) in CONTROL:
                    flow = yield from CONTROL[type(operation)](self, group, operation)
                    if flow is not None:
                        return flow
                else:
                    if not isinstance(operation, (ops.DotAsync, ops.DotWait)):
                        for value in operation.inputs():
                            if isinstance(values[value], LateTile):
                                raise HazardFound(f"{operation.opcode} uses a tile that no dot_wait finished")
                    made = SEMANTICS[type(operation)](group, operation)
                    for value, result in zip(operation.results, made, strict=True):
                        values[value] = result
            except TilusError as error:
                error.at(operation.loc)
                raise
        raise InterpreterError("a region ends in no terminator")


def needs(operation: Operation, started: ops.WarpGroup) -> bool:
    """Tell whether an operation takes part of the warps that a group was given."""
    if not isinstance(operation, ops.WarpGroup):
        return True
    return (
        started.first < operation.first + operation.count and operation.first < started.first + started.count
    )


_F = TypeVar("_F", bound=Callable[..., Any])

CONTROL: dict[type[Operation], Callable[..., Generator[None, None, Flow | None]]] = {}


def controls(cls: type[Operation]) -> Callable[[_F], _F]:
    """Declare what a structured or waiting operation does.

    The function yields where the group waits and returns how the region around ends, or None where it goes on.
    """

    def declare(function: _F) -> _F:
        CONTROL[cls] = function
        return function

    return declare


# Control flow.


def _loop(
    schedule: Schedule,
    group: Group,
    operation: ops.For | ops.Loop,
    carried: Sequence[Value],
    turns: Iterator[int],
) -> Generator[None, None, Flow | None]:
    values = group.block.values
    state = tuple(values[v] for v in operation.inits)
    for count, index in enumerate(turns):
        if count == MOST_TURNS:
            raise HazardFound(f"a loop turned {MOST_TURNS} times", operation.loc)
        values.update(zip(carried, state, strict=True))
        if isinstance(operation, ops.For):
            start = operation.start.type
            assert isinstance(start, ScalarType)
            values[operation.body.args[0]] = from_values(index, start.dtype)
        staged = isinstance(operation, ops.For) and operation.stages > 0
        group.pipelined += staged
        flow = yield from schedule.region(group, operation.body)
        group.pipelined -= staged
        if flow.end is ops.Return:
            return flow
        state = flow.values
        if flow.end is ops.Break:
            break
    values.update(zip(operation.results, state, strict=True))
    return None


@controls(ops.For)
def _for(schedule: Schedule, group: Group, op: ops.For) -> Generator[None, None, Flow | None]:
    start, stop, step = (integer(group, v) for v in (op.start, op.stop, op.step))
    if step == 0:
        raise HazardFound("a loop whose step is 0", op.loc)
    return _loop(schedule, group, op, op.body.args[1:], iter(range(start, stop, step)))


@controls(ops.Loop)
def _endless(schedule: Schedule, group: Group, op: ops.Loop) -> Generator[None, None, Flow | None]:
    return _loop(schedule, group, op, op.body.args, iter(range(MOST_TURNS + 1)))


@controls(ops.If)
def _if(schedule: Schedule, group: Group, op: ops.If) -> Generator[None, None, Flow | None]:
    region = op.then if bool(group.block.values[op.cond]) else op.orelse
    flow = yield from schedule.region(group, region)
    if flow.end is not ops.Yield:
        return flow
    group.block.values.update(zip(op.results, flow.values, strict=True))
    return None


@controls(ops.BarrierWait)
def _barrier_wait(
    schedule: Schedule, group: Group, op: ops.BarrierWait
) -> Generator[None, None, Flow | None]:
    barrier = barrier_of(group, op.barrier, op.index)
    parity = integer(group, op.phase) & 1
    while not barrier.is_complete(parity):
        group.waits = op.loc
        yield
    group.waits = None
    group.block.events += 1
    return None


@controls(ops.ClusterWait)
def _cluster_wait(
    schedule: Schedule, group: Group, op: ops.ClusterWait
) -> Generator[None, None, Flow | None]:
    if group.ticket < 0:
        raise HazardFound("cluster_wait without a cluster_arrive before it", op.loc)
    while group.block.cluster.phase == group.ticket:
        group.waits = op.loc
        yield
    group.waits = None
    group.block.events += 1
    return None
