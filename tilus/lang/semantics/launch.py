"""Translations of the grid, of places in it, of synchronisation, and of what a `for` loop runs over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from tilus.dtypes import int32
from tilus.errors import Location, ShapeMismatch, SyntaxNotSupported, TypeMismatch
from tilus.ir import Operation, ScalarType, Value, make_region, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe, shape_text
from tilus.lang.semantics.arithmetic import convert
from tilus.lang.semantics.memory import integers
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import as_sequence, static_choice, static_int

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

MAX_WARPS = 32
# CUDA programming guide: 8 blocks on every device with clusters, 16 where a kernel asks for it.
MAX_CLUSTER = 16
HOST_BINARY = ("add", "sub", "mul", "floordiv", "mod", "min", "max")


@implements(functions.grid)
def grid(t: Tracer, extents: tuple[Any, ...], warps: Any, cluster: Any) -> None:
    if t.grid is not None:
        raise SyntaxNotSupported("a kernel says its grid once", hint="one call of tilus.grid")
    # The arguments were evaluated in a region of their own, besides that of the kernel.
    if len(t.frames) > 1 or t.open_regions > 2:
        raise SyntaxNotSupported(
            "grid is said at the top level of the kernel, not in a loop, an inline function or a run-time if",
            hint="tilus.grid(...) before the first if, for or while",
        )
    if not 1 <= len(extents) <= 3:
        raise ShapeMismatch(
            f"grid takes one to three extents, not {len(extents)}", hint="tilus.grid(tilus.cdiv(n, 128))"
        )
    t.warps = static_int("warps of grid", warps, 1)
    if t.warps > MAX_WARPS:
        raise TypeMismatch(
            f"a thread block has at most {MAX_WARPS} warps, not {t.warps}", hint="warps=4, and more blocks"
        )
    t.cluster = None if cluster is None else cluster_extents(cluster, len(extents))
    t.grid_rank = len(extents)
    values = [*integers(t, "grid", extents), *(t.constant(1) for _ in range(3 - len(extents)))]
    values = [convert(t, value, int32) for value in values]
    host = HostProgram(t.defined, set(t.params), t.loc)
    results = tuple(host.copy(value) for value in values)
    host.block.append(ops.Yield(results, loc=t.loc))
    t.grid = make_region((), host.block)


def cluster_extents(cluster: object, rank: int) -> tuple[int, int, int]:
    """Check the blocks of a cluster along the axes of a grid of a rank."""
    blocks = tuple(static_int("each extent of cluster", c, 1) for c in as_sequence(cluster))
    if not 1 <= len(blocks) <= 3:
        raise ShapeMismatch(
            f"cluster takes one to three extents, not {len(blocks)}", hint="cluster=(2, 1, 1)"
        )
    if any(extent > 1 for extent in blocks[rank:]):
        raise ShapeMismatch(
            f"a cluster of {shape_text(blocks)} blocks in a grid of {rank} extent{'s' if rank > 1 else ''}",
            hint="clusters along the extents that grid is given",
        )
    if prod(blocks) > MAX_CLUSTER:
        raise TypeMismatch(
            f"a cluster has at most {MAX_CLUSTER} blocks, not {prod(blocks)}",
            hint="cluster=8, which every device with clusters takes",
        )
    x, y, z = (*blocks, 1, 1)[:3]
    return x, y, z


class HostProgram:
    """Copies what a value is computed from into a program for the host."""

    def __init__(self, defined: dict[Value, Operation], params: set[Value], loc: Location | None) -> None:
        self.defined = defined
        self.copied: dict[Value, Value] = {param: param for param in params}
        self.block: list[Operation] = []
        self.loc = loc

    def copy(self, value: Value) -> Value:
        """Return the host's copy of a value."""
        if value not in self.copied:
            made = self.defined.get(value)
            if made is None or not self.computable(made):
                where = f" in line {made.loc.line}" if made is not None and made.loc is not None else ""
                raise SyntaxNotSupported(
                    f"the grid is computed on the host, which does not know {describe(value)} that is computed{where}",
                    self.loc,
                    "shapes, scalar parameters and compile-time values, by + - * // %, cdiv, min, max",
                )
            copy = made.with_operands(self.copy)
            copy.result.name = value.name
            self.block.append(copy)
            self.copied[value] = copy.result
        return self.copied[value]

    @staticmethod
    def computable(made: Operation) -> bool:
        """Tell whether the host can execute an operation."""
        if isinstance(made, ops.Binary):
            type = made.result.type
            return made.kind in HOST_BINARY and isinstance(type, ScalarType) and type.dtype.is_integer
        if isinstance(made, ops.Cast):
            types = (made.x.type, made.result.type)
            return all(isinstance(type, ScalarType) and type.dtype.is_integer for type in types)
        return isinstance(made, (ops.Constant, ops.Dim, ops.Stride, ops.Assume))


def grid_axis(t: Tracer, what: str, axis: object, cls: type[Operation]) -> Any:
    """Emit an index or extent of the grid, along one axis or along all."""
    if axis is not None:
        if static_int(f"the axis of {what}", axis) not in (0, 1, 2):
            raise ShapeMismatch(f"{what} along axis {axis}", hint="0, 1 or 2 for x, y or z")
        return t.value(cls, axis)
    if t.grid is None:
        raise SyntaxNotSupported(
            f"{what}() needs to know how many dimensions the grid has",
            hint=f"tilus.grid(...) further up, or {what}(axis)",
        )
    values = tuple(t.value(cls, a) for a in range(t.grid_rank))
    return values[0] if t.grid_rank == 1 else values


@implements(functions.block_id)
def block_id(t: Tracer, axis: Any) -> Any:
    return grid_axis(t, "block_id", axis, ops.BlockId)


@implements(functions.grid_dim)
def grid_dim(t: Tracer, axis: Any) -> Any:
    return grid_axis(t, "grid_dim", axis, ops.GridDim)


@implements(functions.sync)
def sync(t: Tracer) -> None:
    t.emit(ops.Sync)


@implements(functions.fence)
def fence(t: Tracer, kind: Any) -> None:
    t.emit(ops.Fence, static_choice("the kind of fence", kind, ("block", "device", "system", "async")))


# What a loop runs over.


@dataclass(frozen=True)
class LoopRange:
    """`range(...)` in a kernel: a run-time loop if a `for` runs over it."""

    start: object
    stop: object
    step: object
    stages: int = 0
    unroll: int = 0

    def static(self) -> range | None:
        """Return the range if it is known at compile time."""
        start, stop, step = self.start, self.stop, self.step
        if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
            return range(start, stop, step)
        return None


@dataclass(frozen=True)
class WarpsContext:
    """`tilus.warps(...)`, for a `with` statement."""

    first: int
    count: int
    registers: int


@implements(range)
def range_(t: Tracer, arguments: tuple[Any, ...]) -> LoopRange:
    if not 1 <= len(arguments) <= 3:
        raise TypeMismatch(
            f"range takes one to three integers, not {len(arguments)}", hint="range(start, stop, step)"
        )
    for part in arguments:
        is_int = isinstance(part, int) or (
            isinstance(part, Value) and isinstance(part.type, ScalarType) and part.type.dtype.is_integer
        )
        if not is_int:
            raise TypeMismatch(f"range takes integers, not {describe(part)}", hint="x.to(tilus.int32)")
    start, stop, step = (0, arguments[0], 1) if len(arguments) == 1 else (*arguments, 1)[:3]
    if isinstance(step, int) and step == 0:
        raise TypeMismatch("range takes a step that is not zero", hint="1, or -1 to go down")
    return LoopRange(start, stop, step)


@implements(functions.static_range)
def static_range(t: Tracer, start: Any, stop: Any, step: Any) -> range:
    parts = [start, step] if stop is None else [start, stop, step]
    for part in parts:
        if isinstance(part, Value):
            raise TypeMismatch(
                f"static_range takes ints known at compile time, not {describe(part)}",
                hint="range(...) for a run-time loop",
            )
        static_int("each argument of static_range", part)
    if step == 0:
        raise TypeMismatch("static_range takes a step that is not zero", hint="1, or -1 to go down")
    return functions.static_range(start, stop, step)


def loop_range(what: str, loop: object) -> LoopRange:
    """Check the argument of `pipeline` and `unroll`."""
    if not isinstance(loop, LoopRange):
        raise TypeMismatch(f"{what} takes a range, not {describe(loop)}", hint=f"tilus.{what}(range(n), ...)")
    return loop


@implements(functions.pipeline)
def pipeline(t: Tracer, loop: Any, stages: Any) -> LoopRange:
    return replace(loop_range("pipeline", loop), stages=static_int("stages of pipeline", stages, 1))


@implements(functions.unroll)
def unroll(t: Tracer, loop: Any, factor: Any) -> LoopRange:
    times = -1 if factor is None else static_int("the factor of unroll", factor, 1)
    return replace(loop_range("unroll", loop), unroll=times)


@implements(functions.warps)
def warps(t: Tracer, first: Any, count: Any, registers: Any) -> WarpsContext:
    return WarpsContext(
        static_int("the first warp", first, 0),
        static_int("the number of warps", count, 1),
        static_int("registers of warps", registers, 0),
    )
