"""Shared-memory planning: a layout for every shared tile, and a place for it among those that live with it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

from tilus.dtypes import DType, boolean
from tilus.errors import LayoutConflict
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import GlobalType, RegisterType, SharedType
from tilus.layout import (
    LayoutError,
    RegisterLayout,
    SharedConversion,
    SharedLayout,
    Swizzle,
    plan_conversion,
    row_major,
    swizzled_row_major,
)
from tilus.layout.conversion import Plan
from tilus.layout.hopper import canonical, describe_matrix, tma_boxes
from tilus.passes.layouts import memory_order
from tilus.passes.select import Selector

ALIGNMENT = 1024
WARP = 32
FOREVER = 1 << 60


@dataclass(frozen=True)
class Use:
    """An access to a shared tile, or to what a chain of views shows of it.

    `kind` is load or store (by registers of a layout), copy (asynchronous, by threads), bulk (by TMA), or matrix
    (by wgmma, which sees the tile as rows of M or N and columns of K, `turned` for its second operand). `order` are the
    dimensions from the fastest in global memory, None for the usual order.
    """

    kind: str
    views: tuple[Operation, ...]
    threads: int
    registers: RegisterLayout | None = None
    order: tuple[int, ...] | None = None
    turned: bool = False

    def axes(self, rank: int) -> tuple[int, ...] | None:
        """Return the dimensions of the allocated tile that the use sees; None where a view mixes them."""
        seen = tuple(range(rank))
        for view in self.views:
            if isinstance(view, ops.SharedIndex):
                seen = seen[1:]
            elif isinstance(view, ops.SharedPermute):
                seen = tuple(seen[p] for p in view.perm)
            elif isinstance(view, ops.SharedReshape):
                return None
        return seen[::-1] if self.turned else seen


def plan_shared_memory(kernel: Kernel, selector: Selector) -> Kernel:
    """Give shared tiles layouts and offsets, and exchanges their scratch memory."""
    planned = Layouts(kernel, selector).run(kernel)
    return Offsets(planned).run(planned)


class Layouts(Rewriter):
    """Chooses layouts of shared tiles by counting the bank conflicts of their uses."""

    def __init__(self, kernel: Kernel, selector: Selector) -> None:
        super().__init__()
        self.selector = selector
        self.uses: dict[Value, list[Use]] = {}
        # What a tensor was allocated as, and the operations that make another view of it, in order.
        self.views: dict[Value, tuple[Value, tuple[Operation, ...]]] = {}
        self.reshapes: dict[Value, list[tuple[Operation, ...]]] = {}
        self._collect(kernel.body, kernel.threads)

    def _collect(self, region: Region, threads: int) -> None:
        for op in region.ops:
            self._follow(op)
            if isinstance(op, ops.LoadShared):
                assert isinstance(op.result.type, RegisterType)
                self._use(op.tensor, "load", threads, registers=op.result.type.layout)
            elif isinstance(op, ops.StoreShared):
                assert isinstance(op.value.type, RegisterType)
                self._use(op.tensor, "store", threads, registers=op.value.type.layout)
            elif isinstance(op, ops.CopyAsync):
                self._use(op.shared, "copy", threads, order=order_of(op))
            elif isinstance(op, (ops.CopyBulk, ops.StoreBulk)):
                self._use(op.shared, "bulk", threads, order=order_of(op))
            elif isinstance(op, ops.DotAsync):
                if isinstance(op.a.type, SharedType):
                    self._use(op.a, "matrix", threads)
                self._use(op.b, "matrix", threads, turned=True)
            inner = WARP * op.count if isinstance(op, ops.WarpGroup) else threads
            for nested in op.regions():
                self._collect(nested, inner)

    def _follow(self, op: Operation) -> None:
        """Remember which views are reshaped: their layouts must allow it."""
        if isinstance(op, ops.AllocShared):
            self.views[op.result] = (op.result, ())
        views = (ops.SharedIndex, ops.SharedSlice, ops.SharedPermute, ops.SharedReshape, ops.Remote)
        if not isinstance(op, views) or op.tensor not in self.views:
            return
        base, chain = self.views[op.tensor]
        self.views[op.result] = (base, (*chain, op))
        if isinstance(op, ops.SharedReshape):
            self.reshapes.setdefault(base, []).append((*chain, op))

    def _use(self, tensor: Value, kind: str, threads: int, **how: Any) -> None:
        if tensor in self.views:
            base, views = self.views[tensor]
            self.uses.setdefault(base, []).append(Use(kind, views, threads, **how))

    def visit(self, op: Operation) -> None:
        if isinstance(op, ops.AllocShared) and op.layout is None:
            layout = self.choose(op)
            made = ops.AllocShared(op.dtype, op.shape, layout, streamed=op.streamed, loc=op.loc)
            self.emit(made)
            self.replace(op, made.results)
        elif isinstance(op, ops.SharedSlice):
            tensor = self.value(op.tensor)
            assert isinstance(tensor.type, SharedType) and tensor.type.layout is not None
            layout = restrict(tensor.type.layout, op)
            slice_op = ops.SharedSlice(tensor, op.offsets, op.shape, layout, loc=op.loc)
            self.emit(slice_op)
            self.replace(op, slice_op.results)
        else:
            # Results with layouts in registers keep them; shared results follow their operands.
            keep = None
            if any(isinstance(r.type, RegisterType) for r in op.results):
                keep = tuple(Value(r.type, r.name) for r in op.results)
            new = op.with_operands(self.value, self.region, keep)
            self.emit(new)
            self.replace(op, new.results)

    def argument(self, old: Value) -> Value:
        new = Value(old.type, old.name)
        self.mapping[old] = new
        return new

    def choose(self, op: ops.AllocShared) -> SharedLayout:
        """Return the layout with the fewest wavefronts over all uses; the plain one among equals."""
        uses = self.uses.get(op.result, [])
        tile = op.shape[-2:] if len(op.shape) > 2 else op.shape
        staged = op.shape[: len(op.shape) - len(tile)]
        bits = 8 if op.dtype is boolean else op.dtype.bits
        best: tuple[float, int] | None = None
        chosen = row_major(*tile)
        lead = len(staged)
        inner = tuple(range(lead, len(op.shape)))
        matrices = [
            axes
            for use in uses
            if use.kind == "matrix" and (axes := use.axes(len(op.shape))) and sorted(axes) == list(inner)
        ]
        # Copies of columns want them contiguous.
        columns = any(use.order == (0, 1) and use.axes(len(op.shape)) == inner for use in uses)
        if matrices:
            perm = tuple(axis - lead for axis in matrices[0])
            found = matrix_candidates(tile, bits, perm, 0 if columns else 1, op)
        else:
            found = candidates(tile, bits)
            found += [layout.transpose() for layout in candidates(tile[::-1], bits)] if columns else []
        for number, layout in enumerate(found):
            whole = with_stages(layout, staged, bits)
            if not all(can_be_seen(whole, chain) for chain in self.reshapes.get(op.result, [])):
                continue
            cost = sum(self._cost(use, whole, bits) for use in uses)
            if best is None or cost < best[0]:
                best, chosen = (cost, number), whole
        return chosen if best is not None else row_major(*op.shape)

    def _cost(self, use: Use, layout: SharedLayout, bits: int) -> float:
        try:
            seen = see(layout, use.views)
            if use.kind == "matrix":
                describe_matrix(seen.transpose((1, 0)) if use.turned else seen, bits)
                return 0.0
            if use.kind == "bulk":
                tma_boxes(seen, bits, use.order)
                return 0.0
            if use.registers is None:
                return self.selector.copy_cost(seen, use.threads, bits, use.order[0] if use.order else None)
            return self.selector.shared_cost(use.registers, seen, bits, use.kind == "load")
        except LayoutError:
            return float("inf")


def order_of(op: ops.CopyAsync | ops.CopyBulk | ops.StoreBulk) -> tuple[int, ...] | None:
    """Return the dimensions of a copy's tile from the fastest in global memory, or None for the usual order."""
    assert isinstance(op.tensor.type, GlobalType) and isinstance(op.shared.type, SharedType)
    return memory_order(op.tensor.type, len(op.shared.type.shape))


def with_stages(layout: SharedLayout, staged: tuple[int, ...], bits: int) -> SharedLayout:
    """Return the layout of several tiles, one after the other."""
    for extent in reversed(staged):
        layout = layout.prepend(extent, max(1, 128 * 8 // bits))
    return layout


def see(layout: SharedLayout, views: tuple[Operation, ...]) -> SharedLayout:
    """Return the layout of what a chain of views shows; raise LayoutError where the layout does not allow it."""
    for view in views:
        if isinstance(view, ops.SharedIndex):
            # Where index 1 may begin, so may all others.
            layout = layout.slice(0, min(1, layout.shape[0] - 1))[1]
        elif isinstance(view, ops.SharedSlice):
            layout = layout.window(view.offsets, view.shape)[1]
        elif isinstance(view, ops.SharedPermute):
            layout = layout.transpose(view.perm)
        elif isinstance(view, ops.SharedReshape):
            layout = layout.reshape(view.shape)
    return layout


def can_be_seen(layout: SharedLayout, views: tuple[Operation, ...]) -> bool:
    """Tell whether a layout allows a chain of views."""
    try:
        see(layout, views)
    except LayoutError:
        return False
    return True


def candidates(shape: tuple[int, ...], bits: int) -> list[SharedLayout]:
    """Return the layouts to choose from: plain, and swizzled in spans of 32, 64 and 128 bytes.

    Four threads that read 8 bytes each of a row, or 16, want pieces of 32 bytes to change places, or of 64; otherwise
    those are pieces of 16.
    """
    found = [row_major(*shape)]
    larger = []
    if len(shape) == 2 and bits in (8, 16, 32, 64):
        for span in (128, 64, 32):
            try:
                found.append(swizzled_row_major(shape, bits, span))
            except LayoutError:
                continue
            for piece in (32, 64):
                if piece < span:
                    by = Swizzle(log2(span // piece), log2(piece * 8 // bits), log2(128 // piece))
                    larger.append(dataclasses.replace(found[-1], swizzle=by))
    return found + larger


def log2(n: int) -> int:
    """Return the logarithm of a power of two."""
    return n.bit_length() - 1


def matrix_candidates(
    shape: tuple[int, ...], bits: int, perm: tuple[int, ...], fast: int, op: ops.AllocShared
) -> list[SharedLayout]:
    """Return the canonical layouts of a wgmma operand, one of its dimensions contiguous, the widest swizzle first."""
    seen = tuple(shape[p] for p in perm)
    major: Literal["k", "mn"] = "k" if perm[1] == fast else "mn"
    found = []
    reason = ""
    for span in (128, 64, 32, 0):
        try:
            layout = canonical(seen, major, span, bits)
            describe_matrix(layout, bits)
        except LayoutError as error:
            reason = reason or str(error)
            continue
        found.append(layout if perm == (0, 1) else layout.transpose((1, 0)))
    if not found:
        raise LayoutConflict(f"a shared tile of shape {shape} cannot feed dot_async: {reason}", op.loc)
    return found


def restrict(layout: SharedLayout, op: ops.SharedSlice) -> SharedLayout:
    """Return the layout of a slice, which must start where a swizzle's pattern does."""
    try:
        return layout.window(op.offsets, op.shape)[1]
    except LayoutError as error:
        raise LayoutConflict(
            f"a slice at {op.offsets} of shape {op.shape}: {error}",
            op.loc,
            hint="give the shared tensor layout=tilus.row_major(...), or slice at multiples of the slice's size",
        ) from None


def shared_bytes(type: SharedType) -> int:
    """Return the bytes of a shared tile."""
    assert type.layout is not None
    return -(-type.layout.size * storage_bits(type.dtype) // 8)


def storage_bits(dtype: DType) -> int:
    """Return the bits of an element in memory."""
    return 8 if dtype is boolean else dtype.bits


def conversion_plan(op: ops.ConvertLayout) -> Plan:
    """Return how a tile comes into its new layout; what is narrower than a byte goes through memory as bytes."""
    type = op.x.type
    assert isinstance(type, RegisterType) and type.layout is not None
    pack = max(1, 32 // type.dtype.bits) if type.dtype is not boolean else 1
    return plan_conversion(type.layout, op.layout, max(8, storage_bits(type.dtype)), max_pack=pack)


def scratch_bytes(op: Operation, threads: int) -> int:
    """Return the scratch memory that an exchange between threads needs."""
    if isinstance(op, ops.ConvertLayout):
        assert isinstance(op.x.type, RegisterType)
        plan = conversion_plan(op)
        if not isinstance(plan, SharedConversion):
            return 0
        return -(-plan.layout.size * max(8, storage_bits(op.x.type.dtype)) // 8)
    if isinstance(op, (ops.Reduce, ops.Scan)):
        type = op.x.type
        assert isinstance(type, RegisterType) and type.layout is not None
        if all(step.lanes for step in thread_steps(type.layout, op.axis)):
            return 0
        # Each thread leaves its part of each row: a word or two, and for argmax and argmin a place.
        rows = type.layout.reduce(op.axis, keepdim=True).elements
        return rows * threads * (max(4, type.dtype.bits // 8) + (4 if op.kind in ("argmax", "argmin") else 0))
    if isinstance(op, ops.Exchange):
        type = op.result.type
        assert isinstance(type, RegisterType) and type.layout is not None
        steps = thread_steps(type.layout, op.axis)
        if all(step.lanes or not op.mask // step.stride % step.size for step in steps):
            return 0
        return type.layout.elements * threads * max(4, type.dtype.bits // 8)
    if isinstance(op, ops.Atomic) and op.spread:
        type = op.result.type
        assert isinstance(type, RegisterType) and type.layout is not None
        return 0 if lanes_of_copies(type.layout) is not None else type.size * storage_bits(type.dtype) // 8
    return 0


def lanes_of_copies(layout: RegisterLayout) -> int | None:
    """Return the bits of the lane number that tell copies of an element apart; None if copies are in other warps."""
    mask, weight = 0, 1
    for d in reversed(layout.spatial_digits):
        if d.dim is None:
            if weight & (weight - 1) or d.size & (d.size - 1) or weight * d.size > WARP:
                return None
            mask |= (d.size - 1) * weight
        weight *= d.size
    return mask


@dataclass(frozen=True)
class ThreadStep:
    """Threads that differ in `thread // weight % size` alone hold parts of one row, `stride` apart along its axis.

    `lanes` says that they are lanes of one warp, which shuffles reach.
    """

    weight: int
    size: int
    stride: int
    lanes: bool


def thread_steps(layout: RegisterLayout, axis: int) -> list[ThreadStep]:
    """Return how the threads that share rows along an axis meet: those of a warp first, for each digit."""
    steps = []
    weight = 1
    for d in reversed(layout.spatial_digits):
        if d.dim == axis:
            inside = gcd(d.size, WARP // weight) if weight & (weight - 1) == 0 and weight < WARP else 1
            if inside > 1:
                steps.append(ThreadStep(weight, inside, d.stride, True))
            if d.size > inside:
                steps.append(ThreadStep(weight * inside, d.size // inside, d.stride * inside, False))
        weight *= d.size
    return steps


@dataclass
class Interval:
    """When a piece of shared memory lives, in operation numbers, and where it lies."""

    first: int
    last: int
    size: int
    offset: int = -1


class Offsets(Rewriter):
    """Places shared tiles and scratch memory: what lives at different times may share bytes."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.number = 0
        self._pending: dict[int, set[object]] = {}
        self.intervals: dict[object, Interval] = {}
        self.owner: dict[Value, list[object]] = {}
        self.streamed: set[object] = set()
        for _, key in self._scan(kernel.body, kernel.threads, [], False):
            self.intervals[key].last = FOREVER
        self.total = self._place()

    def _scan(
        self, region: Region, threads: int, loops: list[tuple[int, set[object]]], parallel: bool
    ) -> list[tuple[type[Operation], object]]:
        """Walk a region; return the tiles that asynchronous operations may still read at its end."""
        flying: list[tuple[type[Operation], object]] = []
        for op in region.ops:
            self.number += 1
            here = self.number
            size = 0
            if isinstance(op, ops.AllocShared):
                assert isinstance(op.result.type, SharedType)
                size = shared_bytes(op.result.type)
                if op.streamed:
                    self.streamed.add(op.result)
            elif isinstance(op, ops.BarrierAlloc):
                size = 8 * op.count
            if size:
                key: object = op.result
                self.intervals[key] = Interval(here, here, size)
                self.owner[op.result] = [key]
                for _, inside in loops:
                    inside.add(key)
                # Threads may still use what was there before when one of them initialises a barrier.
                if parallel or isinstance(op, ops.BarrierAlloc):
                    self.intervals[key] = Interval(0, FOREVER, size)
            scratch = scratch_bytes(op, threads)
            if scratch:
                # Other warp groups run at any time, unless all that they touch is streamed.
                always = parallel and not self.streamed
                self.intervals[id(op)] = (
                    Interval(0, FOREVER, scratch) if always else Interval(here, here, scratch)
                )
            for value in op.inputs():
                for key in self.owner.get(value, []):
                    self._use(key, here, loops, parallel, op)
            views = (ops.SharedIndex, ops.SharedSlice, ops.SharedPermute, ops.SharedReshape, ops.Remote)
            if isinstance(op, views):
                self.owner[op.result] = list(self.owner.get(op.tensor, []))
            for key in self._reached(op):
                self.intervals[key].first, self.intervals[key].last = 0, FOREVER
            if isinstance(op, ops.CopyBulk):
                # No barrier of threads orders the copy behind what other tiles had in these bytes.
                for key in self.owner.get(op.shared, []):
                    if key not in self.streamed:
                        self.intervals[key].first = 0
            if isinstance(op, (ops.DotAsync, ops.StoreBulk)):
                flying += [(type(op), key) for value in op.inputs() for key in self.owner.get(value, [])]
            if isinstance(op, (ops.DotWait, ops.BulkWait)) and op.pending == 0:
                kind = ops.DotAsync if isinstance(op, ops.DotWait) else ops.StoreBulk
                for _, key in (f for f in flying if f[0] is kind):
                    self.intervals[key].last = max(self.intervals[key].last, here)
                flying = [f for f in flying if f[0] is not kind]
            looping = isinstance(op, (ops.For, ops.Loop))
            for nested in op.regions():
                flying += self._scan(
                    nested,
                    WARP * op.count if isinstance(op, ops.WarpGroup) else threads,
                    [*loops, (here, set())] if looping else loops,
                    parallel or isinstance(op, ops.WarpGroup),
                )
            if looping:
                for key in self._pending.pop(here, set()):
                    self.intervals[key].last = max(self.intervals[key].last, self.number)
        return flying

    def _use(
        self, key: object, here: int, loops: list[tuple[int, set[object]]], parallel: bool, op: Operation
    ) -> None:
        """Note that an operation uses a tile."""
        interval = self.intervals[key]
        if key in self.streamed:
            if isinstance(op, (ops.CopyBulk, ops.SharedIndex)):
                return
        elif parallel:
            interval.last = FOREVER
            return
        interval.last = max(interval.last, here)
        for start, inside in loops:
            if key not in inside:
                # Used in a loop and made before it: it lives until the loop ends.
                self._pending.setdefault(start, set()).add(key)

    def _reached(self, op: Operation) -> list[object]:
        """Return the tiles that blocks of the cluster use which may be elsewhere in the program."""
        if isinstance(op, ops.Remote):
            return self.owner.get(op.tensor, [])
        if isinstance(op, ops.CopyBulk) and op.multicast is not None:
            return self.owner.get(op.shared, [])
        return []

    def _place(self) -> int:
        placed: list[Interval] = []
        for interval in sorted(self.intervals.values(), key=lambda i: (-i.size, i.first)):
            busy = sorted(
                (p.offset, p.offset + p.size)
                for p in placed
                if p.first <= interval.last and interval.first <= p.last
            )
            at = 0
            for low, high in busy:
                if at + interval.size <= low:
                    break
                at = max(
                    at,
                    -(-high // ALIGNMENT) * ALIGNMENT
                    if interval.size >= ALIGNMENT
                    else -(-high // 128) * 128,
                )
            interval.offset = at
            placed.append(interval)
        return max((i.offset + i.size for i in placed), default=0)

    def run(self, kernel: Kernel) -> Kernel:
        made = super().run(kernel)
        return dataclasses.replace(made, shared_bytes=-(-self.total // 128) * 128)

    def visit(self, op: Operation) -> None:
        keep = tuple(Value(r.type, r.name) for r in op.results)
        new = op.with_operands(self.value, self.region, keep)
        if isinstance(op, (ops.AllocShared, ops.BarrierAlloc)):
            new = dataclasses.replace(new, offset=self.intervals[op.result].offset)  # type: ignore[call-arg]
        elif id(op) in self.intervals:
            new = dataclasses.replace(new, scratch=self.intervals[id(op)].offset)  # type: ignore[call-arg]
        self.emit(new)
        self.replace(op, new.results)
