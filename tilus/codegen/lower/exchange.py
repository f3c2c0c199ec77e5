"""What moves data between threads: layout conversions and reductions."""

from __future__ import annotations

from collections.abc import Callable

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.codegen.lower.context import Context, SharedTensor, lowers, scalar_type_of
from tilus.codegen.lower.elementwise import binary, float_extreme
from tilus.codegen.lower.shared_memory import SharedAddresses, shared_access, store_tile
from tilus.codegen.lower.words import load_words, tile_from_words
from tilus.codegen.registers import (
    Tile,
    codes_of,
    elements_of,
    extract_bits,
    join_bits,
    llvm_type,
    permute,
    tile_of,
    tile_of_codes,
)
from tilus.dtypes import DType
from tilus.errors import LayoutConflict
from tilus.ir import ops
from tilus.layout import RegisterLayout, row_major
from tilus.layout.conversion import (
    Affine,
    NoConversion,
    RegisterConversion,
    SharedConversion,
    ShuffleConversion,
)
from tilus.passes.shared_memory import conversion_plan, lanes_of_copies, thread_steps

WARP = 32


@lowers(ops.ConvertLayout)
def lower_convert_layout(ctx: Context, op: ops.ConvertLayout) -> None:
    tile = ctx.tile(op.x)
    w = ctx.w
    plan = conversion_plan(op)
    if isinstance(plan, NoConversion):
        ctx.values[op.result] = Tile(tile.dtype, op.layout, tile.regs)
    elif isinstance(plan, RegisterConversion):
        ctx.values[op.result] = permute(w, tile, op.layout, list(plan.sources))
    elif isinstance(plan, ShuffleConversion):
        ctx.values[op.result] = _by_shuffles(ctx, tile, op, plan)
    else:
        ctx.values[op.result] = _through_shared(ctx, tile, op, plan)


def scratch_pointer(ctx: Context, offset: int | None) -> V:
    """Return the scratch memory that planning gave an operation."""
    if offset is None:
        raise LayoutConflict("an exchange between threads was given no scratch memory")
    return ctx.shared_pointer(offset)


def affine(ctx: Context, function: Affine) -> V:
    """Return the value of an affine function of the thread number."""
    w = ctx.w
    ctx.thread()
    with w.at_entry():
        total = integer(function.constant)
        for term in function.terms:
            total = w.add(total, w.mul(ctx.digit(term.weight, term.size), integer(term.stride)))
    return total


def shuffle(w: Writer, mode: str, value: V, lane: V) -> V:
    """Return another lane's value: `mode` is idx or bfly."""
    if value.type in ("double", "i64"):
        pair = w.convert("bitcast", value, "<2 x i32>")
        halves = [shuffle(w, mode, w.extract(pair, i, "i32"), lane) for i in range(2)]
        return w.convert("bitcast", w.vector(halves), value.type)
    if value.type == "i1":
        moved = shuffle(w, mode, w.convert("zext", value, "i32"), lane)
        return w.icmp("ne", moved, integer(0))
    if value.type in ("half", "bfloat"):
        wide = w.convert("zext", w.convert("bitcast", value, "i16"), "i32")
        return w.convert("bitcast", w.convert("trunc", shuffle(w, mode, wide, lane), "i16"), value.type)
    bits = w.convert("bitcast", value, "i32")
    moved = w.call("i32", f"llvm.nvvm.shfl.sync.{mode}.i32", integer(-1), bits, lane, integer(31))
    return w.convert("bitcast", moved, value.type)


def _by_shuffles(ctx: Context, tile: Tile, op: ops.ConvertLayout, plan: ShuffleConversion) -> Tile:
    w = ctx.w
    bits = plan.pack * tile.dtype.bits
    narrow = tile.dtype.bits < 32 and tile.dtype is not dtypes.boolean
    words: list[V] = list(tile.regs)
    if narrow:
        words = [extract_bits(w, tile.regs, i * bits, bits, False) for i in range(tile.count // plan.pack)]
    moved: dict[tuple[Affine, int], V] = {}
    out = []
    for step in plan.steps:
        number = affine(ctx, step.element) if len(step.candidates) > 1 else None
        chosen: V | None = None
        for candidate in step.candidates:
            value = words[candidate]
            if not step.is_local:
                if (step.thread, candidate) not in moved:
                    lane = w.binary("and", affine(ctx, step.thread), integer(WARP - 1))
                    moved[step.thread, candidate] = shuffle(w, "idx", value, lane)
                value = moved[step.thread, candidate]
            if chosen is None:
                chosen = value
            else:
                assert number is not None
                chosen = w.select(w.icmp("eq", number, integer(candidate)), value, chosen)
        assert chosen is not None
        out.append(chosen)
    if not narrow:
        return Tile(tile.dtype, op.layout, tuple(out))
    return Tile(tile.dtype, op.layout, join_bits(w, out, bits))


def _through_shared(ctx: Context, tile: Tile, op: ops.ConvertLayout, plan: SharedConversion) -> Tile:
    w = ctx.w
    base = scratch_pointer(ctx, op.scratch)
    source = tile
    if tile.dtype.bits < 8:
        # Codes of less than a byte travel as bytes.
        source = tile_of(w, dtypes.uint8, tile.layout, elements_of(w, tile))
    tensor = SharedTensor(source.dtype, plan.layout, base, 128)
    ctx.barrier()
    store_tile(ctx, tensor, source)
    ctx.barrier()
    made = load_tile(ctx, tensor, op.layout)
    if source.dtype is not tile.dtype:
        return tile_of(w, tile.dtype, op.layout, elements_of(w, made))
    return made


def from_first_copy(ctx: Context, tile: Tile, scratch: int | None) -> Tile:
    """Return the tile in which every thread has what the first of those that hold an element has."""
    w = ctx.w
    lanes = lanes_of_copies(tile.layout)
    if lanes is not None:
        first = w.binary("and", ctx.lane(), integer(WARP - 1 - lanes))
        codes = [shuffle(w, "idx", code, first) for code in codes_of(w, tile)]
        return tile_of_codes(w, tile.dtype, tile.layout, codes)
    tensor = SharedTensor(tile.dtype, row_major(*tile.layout.shape), scratch_pointer(ctx, scratch), 128)
    ctx.barrier()
    store_tile(ctx, tensor, tile)
    ctx.barrier()
    return load_tile(ctx, tensor, tile.layout)


def load_tile(ctx: Context, tensor: SharedTensor, layout: RegisterLayout) -> Tile:
    """Load a tile from shared memory with plain instructions."""
    groups, bits = shared_access(layout, tensor)
    addresses = SharedAddresses(ctx, layout, tensor, [g[0] for g in groups])
    words = [load_words(ctx.w, addresses.pointer(g[0]), bits, bits // 8) for g in groups]
    return tile_from_words(ctx.w, tensor.dtype, layout, groups, words)


State = list[V]


@lowers(ops.Reduce)
def lower_reduce(ctx: Context, op: ops.Reduce) -> None:
    """Each thread's own elements first, then lanes of a warp by shuffles, then warps through shared memory."""
    w = ctx.w
    tile = ctx.tile(op.x)
    layout = ctx.layout(op.result)
    dtype = tile.dtype
    indexed = op.kind in ("argmax", "argmin")
    # 16-bit floats are summed and multiplied in float32.
    narrow = op.kind in ("sum", "prod") and dtype in (dtypes.float16, dtypes.bfloat16)
    wide = dtypes.float32 if narrow else dtype
    elements = elements_of(w, tile)
    if wide is not dtype:
        elements = [w.convert("fpext", e, "float") for e in elements]
    combine = _combiner(ctx, op.kind, wide)
    groups: dict[tuple[int, ...], State] = {}
    thread = ctx.coordinates(tile.layout)[op.axis]
    for number in sorted(range(tile.count), key=tile.layout.element_index):
        index = tile.layout.element_index(number)
        key = tuple(0 if d == op.axis else i for d, i in enumerate(index))
        state = [elements[number]]
        if indexed:
            state.append(w.add(thread, integer(index[op.axis])))
        groups[key] = combine(groups[key], state) if key in groups else state
    states = list(groups.values())
    for step in thread_steps(tile.layout, op.axis):
        if step.lanes:
            distance = step.weight * step.size // 2
            while distance >= step.weight:
                states = [combine(s, [shuffle(w, "bfly", v, integer(distance)) for v in s]) for s in states]
                distance //= 2
        else:
            states = _across_warps(ctx, op, states, combine, step.weight, step.size)
    place = {key: i for i, key in enumerate(groups)}
    out = []
    for number in range(layout.elements):
        state = states[place[layout.element_index(number)]]
        out.append(state[1] if indexed else state[0])
    if wide is not dtype:
        out = [w.convert("fptrunc", v, llvm_type(dtype)) for v in out]
    ctx.values[op.result] = tile_of(w, scalar_type_of(op.result), layout, out)


def _combiner(ctx: Context, kind: str, dtype: DType) -> Callable[[State, State], State]:
    w = ctx.w

    def combine(a: State, b: State) -> State:
        if kind in ("any", "all"):
            return [w.binary("or" if kind == "any" else "and", a[0], b[0])]
        if kind in ("argmax", "argmin"):
            less = "lt" if kind == "argmin" else "gt"
            if dtype.is_float:
                # The first NaN wins, as in NumPy and torch.
                ordered = w.value("i1", f"fcmp ord {a[0]}, {a[0].name}")
                better = w.binary("and", ordered, w.value("i1", f"fcmp u{less} {b[0]}, {a[0].name}"))
                alike = w.binary("or", ordered, w.value("i1", f"fcmp uno {b[0]}, {b[0].name}"))
                same = w.binary("and", alike, w.value("i1", f"fcmp ueq {b[0]}, {a[0].name}"))
            else:
                better = w.icmp(("s" if dtype.is_signed else "u") + less, b[0], a[0])
                same = w.icmp("eq", b[0], a[0])
            first = w.binary("and", same, w.icmp("slt", b[1], a[1]))
            take = w.binary("or", better, first)
            return [w.select(take, b[0], a[0]), w.select(take, b[1], a[1])]
        if kind in ("max", "min") and dtype.is_float:
            return [float_extreme(ctx, kind, a[0], b[0])]
        names = {"sum": "add", "prod": "mul"}
        return [binary(ctx, names.get(kind, kind), dtype, a[0], b[0])]

    return combine


def _across_warps(
    ctx: Context,
    op: ops.Reduce,
    states: list[State],
    combine: Callable[[State, State], State],
    weight: int,
    size: int,
) -> list[State]:
    """Exchange partial results through shared memory: every thread reads those of its counterparts."""
    w = ctx.w
    base = scratch_pointer(ctx, op.scratch)
    threads = ctx.group.threads
    thread = ctx.thread()
    with w.at_entry():
        own = ctx.digit(weight, size)
        first = w.binary("sub", thread, w.mul(own, integer(weight)))
    ctx.barrier()
    offset = 0
    slots: list[list[tuple[int, int, str]]] = []
    for state in states:
        row = []
        for value in state:
            stored = w.convert("zext", value, "i32") if value.type == "i1" else value
            bytes = {"half": 2, "bfloat": 2, "i64": 8, "double": 8}.get(stored.type, 4)
            pointer = w.gep(w.gep(base, integer(offset)), w.mul(thread, integer(bytes)))
            w.run(f"store {stored}, {pointer}, align {bytes}")
            row.append((offset, bytes, value.type))
            offset += bytes * threads
        slots.append(row)
    ctx.barrier()
    out = []
    for row in slots:
        total: State | None = None
        for other in range(size):
            state = []
            for at, bytes, type in row:
                place = w.mul(w.add(first, integer(other * weight)), integer(bytes))
                pointer = w.gep(w.gep(base, integer(at)), place)
                stored_type = "i32" if type == "i1" else type
                value = w.value(stored_type, f"load {stored_type}, {pointer}, align {bytes}")
                state.append(w.icmp("ne", value, integer(0)) if type == "i1" else value)
            total = state if total is None else combine(total, state)
        assert total is not None
        out.append(total)
    return out
