"""Lowering of exchanges, which sorting is made of: within a thread for free, by shuffles, or through shared memory."""

from __future__ import annotations

from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.context import Context, lowers
from tilus.codegen.lower.exchange import scratch_pointer, shuffle
from tilus.codegen.registers import elements_of, tile_of
from tilus.ir import ops
from tilus.layout import RegisterLayout
from tilus.passes.shared_memory import ThreadStep, thread_steps

BYTES = {"i64": 8, "double": 8}


@lowers(ops.Exchange)
def lower_exchange(ctx: Context, op: ops.Exchange) -> None:
    tile = ctx.tile(op.x)
    elements = elements_of(ctx.w, tile)
    steps = [
        (step, op.mask // step.stride % step.size)
        for step in thread_steps(tile.layout, op.axis)
        if op.mask // step.stride % step.size
    ]
    sources = _own_sources(tile.layout, op.axis, op.mask)
    if all(step.lanes for step, _ in steps):
        lanes = sum(step.weight * part for step, part in steps)
        made = [elements[source] for source in sources]
        if lanes:
            made = [shuffle(ctx.w, "bfly", value, integer(lanes)) for value in made]
    else:
        made = _through_shared(ctx, op, elements, sources, steps)
    ctx.values[op.result] = tile_of(ctx.w, tile.dtype, tile.layout, made)


def _own_sources(layout: RegisterLayout, axis: int, mask: int) -> list[int]:
    """Return for each element of a thread the one that is `mask` away along the axis, as far as threads hold it."""
    along = sum((digit.size - 1) * digit.stride for digit in layout.local_digits if digit.dim == axis)
    numbers = {layout.element_index(number): number for number in range(layout.elements)}
    sources = []
    for number in range(layout.elements):
        index = list(layout.element_index(number))
        index[axis] ^= mask & along
        sources.append(numbers[tuple(index)])
    return sources


def _through_shared(
    ctx: Context, op: ops.Exchange, elements: list[V], sources: list[int], steps: list[tuple[ThreadStep, int]]
) -> list[V]:
    w = ctx.w
    base = scratch_pointer(ctx, op.scratch)
    thread = other = ctx.thread()
    for step, part in steps:
        place = ctx.digit(step.weight, step.size)
        moved = w.binary("xor", place, integer(part))
        other = w.add(other, w.mul(w.binary("sub", moved, place), integer(step.weight)))
    own = elements[0].type
    stored_type = "i32" if own == "i1" else own
    size = BYTES.get(stored_type, 4)
    row = ctx.group.threads * size
    ctx.barrier()
    for number, value in enumerate(elements):
        stored = w.convert("zext", value, "i32") if own == "i1" else value
        pointer = w.gep(w.gep(base, integer(number * row)), w.mul(thread, integer(size)))
        w.run(f"store {stored}, {pointer}, align {size}")
    ctx.barrier()
    made = []
    for source in sources:
        pointer = w.gep(w.gep(base, integer(source * row)), w.mul(other, integer(size)))
        value = w.value(stored_type, f"load {stored_type}, {pointer}, align {size}")
        made.append(w.icmp("ne", value, integer(0)) if own == "i1" else value)
    return made
