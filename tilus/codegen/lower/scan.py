"""Lowering of scans: each thread's own run, then lanes of a warp by shuffles, then warps through shared memory.

Layout inference gives a scanned tile a layout in which the elements of a thread along the axis are a run, the
lanes of a warp follow one another, and then the warps, so that the order of the axis is (warp, lane, element).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tilus import dtypes
from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.context import Context, lowers
from tilus.codegen.lower.elementwise import binary
from tilus.codegen.lower.exchange import scratch_pointer, shuffle
from tilus.codegen.lower.scalar import constant
from tilus.codegen.registers import elements_of, llvm_type, tile_of
from tilus.dtypes import DType
from tilus.errors import LayoutConflict
from tilus.ir import ops
from tilus.passes.shared_memory import ThreadStep, thread_steps

WARP = 32
NAMES = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "and": "and", "or": "or", "xor": "xor"}


def identity(kind: str, dtype: DType) -> float | int:
    """Return the value that changes nothing."""
    if kind in ("sum", "or", "xor"):
        return 0
    if kind == "prod":
        return 1
    if kind == "and":
        return 1 if dtype is dtypes.boolean else -1
    if dtype.is_float:
        return float("-inf") if kind == "max" else float("inf")
    return int(dtype.min) if kind == "max" else int(dtype.max)


@lowers(ops.Scan)
def lower_scan(ctx: Context, op: ops.Scan) -> None:
    w = ctx.w
    tile = ctx.tile(op.x)
    layout = tile.layout
    dtype = tile.dtype
    wide = dtypes.float32 if dtype in (dtypes.float16, dtypes.bfloat16) else dtype
    elements = elements_of(w, tile)
    if wide is not dtype:
        elements = [w.convert("fpext", e, "float") for e in elements]
    neutral = constant(identity(op.kind, wide), wide)

    def combine(a: V, b: V) -> V:
        return binary(ctx, NAMES[op.kind], wide, a, b)

    # Along the axis, threads that are nearest come first.
    steps = sorted(thread_steps(layout, op.axis), key=lambda step: step.stride)
    run = layout.shape[op.axis] // prod(step.size for step in steps)
    for step in steps:
        if step.stride < run:
            raise LayoutConflict(
                f"scan along axis {op.axis} of a tile in {layout}: each thread must hold a run of the axis",
                hint="leave the layout to inference",
            )
    rows: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number in range(tile.count):
        index = layout.element_index(number)
        rows.setdefault(tuple(i for d, i in enumerate(index) if d != op.axis), []).append(
            (index[op.axis], number)
        )
    out: list[V] = list(elements)
    totals = []
    for row in rows.values():
        total: V | None = None
        for _, number in sorted(row):
            before = total
            total = elements[number] if total is None else combine(total, elements[number])
            out[number] = (neutral if before is None else before) if op.exclusive else total
        assert total is not None
        totals.append(total)
    prefixes = _prefixes(ctx, op, steps, totals, combine, neutral)
    for row, prefix in zip(rows.values(), prefixes, strict=True):
        if prefix is not None:
            for _, number in row:
                out[number] = combine(prefix, out[number])
    if wide is not dtype:
        out = [w.convert("fptrunc", v, llvm_type(dtype)) for v in out]
    ctx.values[op.result] = tile_of(w, dtype, layout, out)


def _prefixes(
    ctx: Context,
    op: ops.Scan,
    steps: list[ThreadStep],
    totals: list[V],
    combine: Callable[[V, V], V],
    neutral: V,
) -> list[V | None]:
    """Return for each row the combination of all threads before this one along the axis."""
    w = ctx.w
    prefixes: list[V | None] = [None] * len(totals)
    sums = list(totals)
    for thread_step in steps:
        weight, size = thread_step.weight, thread_step.size
        if not thread_step.lanes:
            sums, prefixes = _across_warps(ctx, op, weight, size, sums, prefixes, combine, neutral)
            continue
        place = ctx.digit(weight, size)
        lane = ctx.lane()
        for number, total in enumerate(sums):
            running = total
            step = 1
            while step < size:
                source = w.binary("sub", lane, integer(step * weight))
                moved = shuffle(w, "idx", running, w.binary("and", source, integer(WARP - 1)))
                valid = w.icmp("uge", place, integer(step))
                running = w.select(valid, combine(moved, running), running)
                step *= 2
            source = w.binary("and", w.binary("sub", lane, integer(weight)), integer(WARP - 1))
            before = shuffle(w, "idx", running, source)
            exclusive = w.select(w.icmp("eq", place, integer(0)), neutral, before)
            earlier = prefixes[number]
            prefixes[number] = exclusive if earlier is None else combine(exclusive, earlier)
            last = w.add(w.binary("sub", lane, w.mul(place, integer(weight))), integer((size - 1) * weight))
            sums[number] = shuffle(w, "idx", running, last)
    return prefixes


def _across_warps(
    ctx: Context,
    op: ops.Scan,
    weight: int,
    size: int,
    sums: list[V],
    prefixes: list[V | None],
    combine: Callable[[V, V], V],
    neutral: V,
) -> tuple[list[V], list[V | None]]:
    w = ctx.w
    base = scratch_pointer(ctx, op.scratch)
    thread = ctx.thread()
    place = ctx.digit(weight, size)
    first = w.binary("sub", thread, w.mul(place, integer(weight)))
    stored_type = "i32" if sums[0].type == "i1" else sums[0].type
    bytes = {"i64": 8, "double": 8}.get(stored_type, 4)
    ctx.barrier()
    for number, part in enumerate(sums):
        stored = w.convert("zext", part, "i32") if part.type == "i1" else part
        at = integer(number * ctx.group.threads * bytes)
        w.run(f"store {stored}, {w.gep(w.gep(base, at), w.mul(thread, integer(bytes)))}, align {bytes}")
    ctx.barrier()
    new_sums: list[V] = []
    new_prefixes: list[V | None] = []
    for number in range(len(sums)):
        total: V | None = None
        before: V = neutral
        for other in range(size):
            at = integer(number * ctx.group.threads * bytes)
            offset = w.mul(w.add(first, integer(other * weight)), integer(bytes))
            value = w.value(
                stored_type, f"load {stored_type}, {w.gep(w.gep(base, at), offset)}, align {bytes}"
            )
            if sums[number].type == "i1":
                value = w.icmp("ne", value, integer(0))
            if total is not None:
                before = w.select(w.icmp("eq", place, integer(other)), total, before)
            total = value if total is None else combine(total, value)
        assert total is not None
        earlier = prefixes[number]
        new_sums.append(total)
        new_prefixes.append(before if earlier is None else combine(before, earlier))
    return new_sums, new_prefixes
