"""What lowering knows while it walks a kernel: values, threads, loops and the writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from tilus import dtypes
from tilus.codegen.llvm_text import SHARED, V, Writer, integer
from tilus.codegen.registers import Tile
from tilus.codegen.target import Target
from tilus.dtypes import DType
from tilus.errors import LayoutConflict, ResourceExceeded, TargetNotSupported, TilusError
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.types import GlobalType, RegisterType, ScalarType
from tilus.layout import Digit, RegisterLayout, SharedLayout
from tilus.passes.constancy import Runs, constancy
from tilus.passes.divisibility import Facts
from tilus.passes.signs import natural_numbers

# PTX ISA, bar: barriers 0 to 15.
HARDWARE_BARRIERS = 16


@dataclass(frozen=True)
class GlobalTensor:
    """A global tensor at run time: pointer, extents (i32, or i64 in a view), strides (i64, in elements)."""

    type: GlobalType
    pointer: V
    dims: tuple[V, ...]
    strides: tuple[V, ...]


@dataclass(frozen=True)
class SharedTensor:
    """A shared tensor at run time: `base` is its first byte, as a pointer; `layout` counts elements.

    That of another block, `remote`, has an address in the cluster's shared memory. `unit` is the first byte's address
    in units of 16 bytes, an i32, as matrix descriptors state it; None where it is not a multiple.
    """

    dtype: DType
    layout: SharedLayout
    base: V
    align: int
    remote: bool = False
    unit: V | None = None

    @property
    def space(self) -> str:
        """The state space of accesses in PTX."""
        return "shared::cluster" if self.remote else "shared"


@dataclass(frozen=True)
class Barriers:
    """An array of mbarriers at run time."""

    base: V
    count: int


@dataclass(frozen=True)
class Group:
    """The warps that run the current code: the first, how many, and the hardware barrier that they use."""

    first: int
    count: int
    barrier: int

    @property
    def threads(self) -> int:
        """Number of threads."""
        return 32 * self.count


@dataclass
class LoopFrame:
    """Where terminators inside a loop go, and the values with which they go there."""

    latch: str
    exit: str
    latch_incoming: list[tuple[list[V], str]] = field(default_factory=list)
    exit_incoming: list[tuple[list[V], str]] = field(default_factory=list)


@dataclass
class IfFrame:
    """Where a yield inside an `if` goes."""

    join: str
    incoming: list[tuple[list[V], str]] = field(default_factory=list)


Lowered = V | Tile | GlobalTensor | SharedTensor | Barriers


class Context:
    """The state of lowering one kernel for one target."""

    def __init__(self, kernel: Kernel, target: Target, writer: Writer, facts: Facts) -> None:
        self.kernel = kernel
        self.target = target
        self.w = writer
        self.facts = facts
        self.values: dict[Value, Lowered] = {}
        self.group = Group(0, kernel.warps, 0)
        self.barriers = {(0, kernel.warps): 0}
        self.loops: list[LoopFrame] = []
        self.ifs: list[IfFrame | LoopFrame] = []
        self.exit = "exit"
        self.tensor_maps: list[Any] = []
        self.scope: int | None = None
        self._threads: dict[int, V] = {}
        self._warp: V | None = None
        self._coordinates: dict[tuple[int, RegisterLayout], tuple[V, ...]] = {}

    # Values.

    def scalar(self, value: Value) -> V:
        """Return a lowered scalar or pointer."""
        found = self.values[value]
        assert isinstance(found, V)
        return found

    def tile(self, value: Value) -> Tile:
        """Return a lowered register tile."""
        found = self.values[value]
        assert isinstance(found, Tile)
        return found

    def shared(self, value: Value) -> SharedTensor:
        """Return a lowered shared tensor."""
        found = self.values[value]
        assert isinstance(found, SharedTensor)
        return found

    def tensor(self, value: Value) -> GlobalTensor:
        """Return a lowered global tensor."""
        found = self.values[value]
        assert isinstance(found, GlobalTensor)
        return found

    def divisor(self, value: Value) -> int:
        """Return an integer that divides a scalar for certain; 0 means that it is zero."""
        return self.facts.divisors.get(value, 1)

    @cached_property
    def runs(self) -> dict[Value, Runs]:
        """For each tile, how its elements vary along each dimension."""
        return constancy(self.kernel, self.facts.divisors)

    @cached_property
    def natural(self) -> set[Value]:
        """The integer scalars that are never negative."""
        return natural_numbers(self.kernel)

    def layout(self, value: Value) -> RegisterLayout:
        """Return the layout of a register tile."""
        assert isinstance(value.type, RegisterType)
        if value.type.layout is None:
            raise LayoutConflict(f"a tile of shape {value.type.shape} has no layout after inference")
        return value.type.layout

    # Threads.

    def thread(self) -> V:
        """Return the thread's index in its group."""
        first = 32 * self.group.first
        if first not in self._threads:
            with self.w.at_entry():
                tid = self.w.call("i32", "llvm.nvvm.read.ptx.sreg.tid.x")
                self._threads[first] = self.w.binary("sub", tid, integer(first))
        return self._threads[first]

    def warp(self) -> V:
        """Return the thread's warp in its group, which the assembler can tell to be the same in all lanes.

        A branch on it is uniform, so that what follows may use the registers that a warp shares.
        """
        with self.w.at_entry():
            if self._warp is None:
                tid = self.w.call("i32", "llvm.nvvm.read.ptx.sreg.tid.x")
                own = self.w.binary("lshr", tid, integer(5))
                arguments = (integer(-1), own, integer(0), integer(31))
                self._warp = self.w.call("i32", "llvm.nvvm.shfl.sync.idx.i32", *arguments)
            return self.w.binary("sub", self._warp, integer(self.group.first))

    def lane(self) -> V:
        """Return the thread's index in its warp."""
        with self.w.at_entry():
            return self.w.binary("and", self.w.call("i32", "llvm.nvvm.read.ptx.sreg.tid.x"), integer(31))

    def digit(self, weight: int, size: int) -> V:
        """Return `(thread // weight) % size`."""
        thread = self.thread()
        return digit(self.w, thread, weight, size, self.group.threads)

    def spatial_digits(self, layout: RegisterLayout) -> list[tuple[Digit, int]]:
        """Return a layout's thread digits with the weight of each in the thread number."""
        out = []
        weight = 1
        for d in reversed(layout.spatial_digits):
            out.append((d, weight))
            weight *= d.size
        return out[::-1]

    def coordinates(self, layout: RegisterLayout) -> tuple[V, ...]:
        """Return the thread's part of the index along each dimension."""
        key = (self.group.first, layout)
        if key not in self._coordinates:
            self.thread()
            with self.w.at_entry():
                parts = [integer(0)] * layout.rank
                for d, weight in self.spatial_digits(layout):
                    if d.dim is not None:
                        value = self.w.mul(self.digit(weight, d.size), integer(d.stride))
                        parts[d.dim] = self.w.add(parts[d.dim], value)
            self._coordinates[key] = tuple(parts)
        return self._coordinates[key]

    def is_first_replica(self, layout: RegisterLayout) -> V | None:
        """Return whether this thread holds the first copy of its elements; None if there are no copies."""
        self.thread()
        condition: V | None = None
        with self.w.at_entry():
            for d, weight in self.spatial_digits(layout):
                if d.dim is None:
                    here = self.w.icmp("eq", self.digit(weight, d.size), integer(0))
                    condition = here if condition is None else self.w.binary("and", condition, here)
        return condition

    def barrier_of(self, first: int, count: int) -> int:
        """Return the hardware barrier of a group of warps, which those that name the same warps share."""
        number = self.barriers.setdefault((first, count), len(self.barriers))
        if number >= HARDWARE_BARRIERS and count > 1:
            raise ResourceExceeded(
                f"warps {first} to {first + count - 1} are group number {number} of a kernel, but a block has "
                f"{HARDWARE_BARRIERS} barriers",
                hint="use the same groups of warps again",
            )
        return number

    def barrier(self) -> None:
        """Emit a barrier of the current group."""
        if self.group.count == self.kernel.warps:
            self.w.declare(
                "llvm.nvvm.barrier.cta.sync.aligned.all",
                "declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)",
            )
            self.w.run("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")
        elif self.group.count == 1:
            self.w.call("void", "llvm.nvvm.bar.warp.sync", integer(-1))
        else:
            self.w.asm(
                "void",
                f"bar.sync {self.group.barrier}, {self.group.threads};",
                "~{memory}",
                effects=True,
                convergent=True,
            )

    def tensor_map(self, made: Any) -> V:
        """Return the address of a tensor map, which becomes a parameter after all others."""
        known = made in self.tensor_maps
        if not known:
            self.tensor_maps.append(made)
        number = len(self.kernel.params) + len(self.kernel.symbols()) + self.tensor_maps.index(made)
        with self.w.at_entry():
            text = f"mov.b64 $0, {self.kernel.name}_param_{number}; cvta.param.u64 $0, $0;"
            address = self.w.asm("i64", text, "=l")
            if not known:
                # The first copy need not wait for the map to come from memory; one thread asks for it.
                first = self.w.icmp("eq", self.w.call("i32", "llvm.nvvm.read.ptx.sreg.tid.x"), integer(0))
                self.w.asm("void", "@$1 prefetch.tensormap [$0];", "l,b", address, first, effects=True)
            return address

    def shared_pointer(self, offset: int) -> V:
        """Return a pointer to a byte of the block's shared memory."""
        return self.w.gep(V(SHARED, "@tilus_shared"), integer(offset))

    # Walking.

    def region(self, region: Region) -> None:
        """Lower the operations of a region; stop at a terminator."""
        for operation in region.ops:
            self.operation(operation)
            if self.w.terminated:
                return

    def operation(self, operation: Operation) -> None:
        """Lower one operation."""
        self.w.locate(operation.loc, self.scope)
        handler = LOWERINGS.get(type(operation))
        if handler is None:
            raise TilusError(f"code generation does not know the operation {operation.opcode}", operation.loc)
        try:
            handler(self, operation)
        except TilusError as error:
            raise error.at(operation.loc) from None

    @contextmanager
    def in_group(self, group: Group) -> Iterator[None]:
        """Lower for some warps only."""
        before, self.group = self.group, group
        try:
            yield
        finally:
            self.group = before


Handler = Callable[[Context, Operation], None]
LOWERINGS: dict[type[Operation], Handler] = {}
_F = TypeVar("_F", bound=Callable[..., None])


def lowers(*classes: type[Operation]) -> Callable[[_F], _F]:
    """Register a function as the lowering of operation classes."""

    def register(function: _F) -> _F:
        for cls in classes:
            LOWERINGS[cls] = function
        return function

    return register


def require(ctx: Context, feature: str, what: str, hint: str) -> None:
    """Refuse what the target does not have."""
    if not ctx.target.has(feature):
        raise TargetNotSupported(f"{ctx.target.name} has no {what}", hint=hint)


def digit(w: Writer, number: V, weight: int, size: int, bound: int) -> V:
    """Return `(number // weight) % size` for a number in [0, bound)."""
    if size == 1:
        return integer(0)
    if weight > 1:
        power = weight & (weight - 1) == 0
        number = (
            w.binary("lshr", number, integer(weight.bit_length() - 1))
            if power
            else w.binary("udiv", number, integer(weight))
        )
    if weight * size < bound:
        number = (
            w.binary("and", number, integer(size - 1))
            if size & (size - 1) == 0
            else w.binary("urem", number, integer(size))
        )
    return number


def scalar_type_of(value: Value) -> DType:
    """Return the dtype of a scalar or tile value."""
    assert isinstance(value.type, (ScalarType, RegisterType))
    return value.type.dtype


def is_bool(dtype: DType) -> bool:
    """Tell whether a dtype is boolean."""
    return dtype is dtypes.boolean
