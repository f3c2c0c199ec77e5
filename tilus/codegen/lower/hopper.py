"""Lowering for sm_90a: mbarriers, TMA copies, and wgmma."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tilus.codegen.atoms.wgmma import (
    M,
    WgmmaType,
    c_atom,
    columns,
    rows_of,
    warp_a_atom,
    warp_c_atom,
    wgmma_type,
)
from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.cluster import in_block
from tilus.codegen.lower.context import Barriers, Context, SharedTensor, lowers, require
from tilus.codegen.lower.dot import Fragments
from tilus.codegen.lower.words import memory_dtype
from tilus.codegen.registers import Tile, container_type
from tilus.dtypes import DType
from tilus.errors import LayoutConflict, TypeMismatch
from tilus.ir import ops
from tilus.ir.core import Value
from tilus.ir.types import BarrierType, GlobalType, RegisterType, SharedType, divisor_of
from tilus.layout import LayoutError, RegisterLayout
from tilus.layout.hopper import describe_matrix, tma_boxes
from tilus.layout.tiling import explain_tile_by

WARPGROUP = 128
TMA_ALIGN = 16
TMA_RANK = 5
SWIZZLE_MODES = {0: 0, 128: 1, 64: 2, 32: 3}


@dataclass(frozen=True)
class TensorMap:
    """A tensor map that the host encodes for a launch.

    Attributes
    ----------
    param : int
        Which of the kernel's parameters it describes.
    dtype : DType
        Of the elements.
    axes : tuple of int
        The tensor's axes from the fastest in memory to the slowest.
    box : tuple of int
        The box's size along each of these axes.
    swizzle_bytes : int
        0, 32, 64 or 128.
    """

    param: int
    dtype: DType
    axes: tuple[int, ...]
    box: tuple[int, ...]
    swizzle_bytes: int


@contextmanager
def elected(ctx: Context) -> Iterator[None]:
    """Emit code for one thread of the group, always the same.

    The thread that `elect.sync` finds, so that the assembler knows it to be one: copies then need no loop over lanes.
    """
    w = ctx.w
    inside, after = w.label(), w.label()
    if ctx.group.count > 1:
        first = w.label()
        w.branch(w.icmp("eq", ctx.warp(), integer(0)), first, after)
        w.begin(first)
    w.branch(w.asm("i1", "elect.sync _|$0, 0xffffffff;", "=b", effects=True, convergent=True), inside, after)
    w.begin(inside)
    yield
    w.begin(after)


def barrier_address(ctx: Context, value: Value, index: Value | None) -> V:
    """Return the shared address of an mbarrier as an i32."""
    found = ctx.values[value]
    assert isinstance(found, Barriers)
    w = ctx.w
    pointer = found.base
    if index is not None:
        pointer = w.gep(pointer, w.mul(w.convert("trunc", ctx.scalar(index), "i32"), integer(8)))
    return w.convert("ptrtoint", pointer, "i32")


@lowers(ops.BarrierAlloc)
def lower_barrier_alloc(ctx: Context, op: ops.BarrierAlloc) -> None:
    require(ctx, "mbarrier_wait", "mbarriers that can be waited for", "use copy_async and sync")
    if op.offset is None:
        raise LayoutConflict("a barrier was not planned")
    if ctx.group.count != ctx.kernel.warps:
        raise LayoutConflict(
            "barriers are made by the whole block", hint="move tilus.barrier before tilus.warps"
        )
    w = ctx.w
    base = ctx.shared_pointer(op.offset)
    with elected(ctx):
        for number in range(op.count):
            address = w.convert("ptrtoint", w.gep(base, integer(8 * number)), "i32")
            w.asm(
                "void",
                "mbarrier.init.shared::cta.b64 [$0], $1;",
                "r,r,~{memory}",
                address,
                integer(op.arrivals),
                effects=True,
            )
        w.asm("void", "fence.mbarrier_init.release.cluster;", "~{memory}", effects=True)
        # Barriers lie in shared memory alone: a fence of all memory would wait for the whole GPU.
        w.asm("void", "fence.proxy.async.shared::cta;", "~{memory}", effects=True)
    ctx.barrier()
    ctx.values[op.result] = Barriers(base, op.count)


@lowers(ops.BarrierArrive)
def lower_barrier_arrive(ctx: Context, op: ops.BarrierArrive) -> None:
    """One lane of each warp arrives, after the warp's other lanes are done; the first warp's announces bytes."""
    w = ctx.w
    address = barrier_address(ctx, op.barrier, op.index)
    where = "shared::cta"
    if op.rank is not None:
        require(ctx, "cluster", "barriers of other blocks", "leave out rank=")
        order = "release.cluster." if op.scope == "cluster" else ""
        address, where = in_block(ctx, address, op.rank), f"{order}shared::cluster"
    w.call("void", "llvm.nvvm.bar.warp.sync", integer(-1))
    if op.bytes:
        if ctx.group.count != 1:
            raise LayoutConflict(
                "an arrival that announces bytes comes from one warp",
                hint="put it under with tilus.warps(first, 1):",
            )
        with elected(ctx):
            w.asm(
                "void", f"mbarrier.arrive.expect_tx.{where}.b64 _, [$0], $1;", "r,r,~{memory}", address,
                integer(op.bytes), effects=True,
            )  # fmt: skip
        return
    inside, after = w.label(), w.label()
    w.branch(w.icmp("eq", ctx.lane(), integer(0)), inside, after)
    w.begin(inside)
    w.asm("void", f"mbarrier.arrive.{where}.b64 _, [$0];", "r,~{memory}", address, effects=True)
    w.begin(after)


@lowers(ops.BarrierWait)
def lower_barrier_wait(ctx: Context, op: ops.BarrierWait) -> None:
    w = ctx.w
    assert isinstance(op.barrier.type, BarrierType)
    address = barrier_address(ctx, op.barrier, op.index)
    phase = w.convert("trunc", ctx.scalar(op.phase), "i32")
    parity = w.binary("and", phase, integer(1))
    scope = ".acquire.cluster" if op.scope == "cluster" else ""
    text = (
        f"{{ .reg .pred done; waiting_${{:uid}}: mbarrier.try_wait.parity{scope}.shared::cta.b64 done, [$0], $1; "
        "@done bra arrived_${:uid}; bra waiting_${:uid}; arrived_${:uid}: }"
    )
    w.asm("void", text, "r,r,~{memory}", address, parity, effects=True)


# TMA.


def fast_axes(type: GlobalType, tile_rank: int) -> tuple[int, ...]:
    """Return a tensor's axes from the fastest to the slowest, which needs a stride known to be 1."""
    if 1 not in type.strides:
        raise TypeMismatch(
            "a bulk copy needs a tensor with one dimension of stride 1", hint="pass a contiguous tensor"
        )
    fastest = max(axis for axis, stride in enumerate(type.strides) if stride == 1)
    if fastest < type.rank - tile_rank:
        raise TypeMismatch(
            "a bulk copy's tile must hold the tensor's fastest dimension", hint="pass a contiguous tensor"
        )
    return (fastest, *(axis for axis in reversed(range(type.rank)) if axis != fastest))


def check_tensor(ctx: Context, value: Value, bits: int) -> int:
    """Check what TMA asks of a tensor; return the number of its parameter."""
    type = value.type
    assert isinstance(type, GlobalType)
    if value not in ctx.kernel.params:
        raise TypeMismatch(
            "a bulk copy takes a tensor that is a parameter of the kernel", hint="use copy_async for a view"
        )
    if type.rank > TMA_RANK:
        raise TypeMismatch(
            f"a bulk copy takes a tensor of at most {TMA_RANK} dimensions, and {value.name or 'this one'} has "
            f"{type.rank}",
            hint="flatten some of them before the launch, or use copy_async",
        )
    if type.align % TMA_ALIGN:
        raise TypeMismatch(
            f"a bulk copy needs a tensor aligned to 16 bytes, and {value.name or 'this one'} is to {type.align}",
            hint="pass a tensor that begins at a multiple of 16 bytes",
        )
    for axis, stride in enumerate(type.strides):
        step = divisor_of(stride)
        if stride != 1 and step * bits // 8 % TMA_ALIGN:
            raise TypeMismatch(
                f"a bulk copy needs strides of whole 16 bytes, and stride {axis} of "
                f"{value.name or 'the tensor'} is only known to be a multiple of {step} elements of {bits} bits",
                hint="pad the tensor's rows to a multiple of 16 bytes",
            )
    return ctx.kernel.params.index(value)


def boxes_of(
    ctx: Context, tensor: Value, shared: SharedTensor
) -> tuple[TensorMap, list[tuple[tuple[int, ...], int]]]:
    """Return the tensor map of a copy, and for each box its index in the tile and its byte offset."""
    type = tensor.type
    assert isinstance(type, GlobalType)
    dtype = memory_dtype(shared.dtype)
    if dtype.bits % 8:
        raise TypeMismatch(f"a bulk copy moves whole bytes, not {dtype}", hint="keep the tensor as uint8")
    number = check_tensor(ctx, tensor, dtype.bits)
    rank = shared.layout.rank
    lead = type.rank - rank
    axes = fast_axes(type, rank)
    order = tuple(axis - lead for axis in axes if axis >= lead)
    try:
        split = tma_boxes(shared.layout, dtype.bits, order)
    except LayoutError as error:
        raise LayoutConflict(str(error)) from None
    box = tuple(split.shape[axis - lead] if axis >= lead else 1 for axis in axes)
    made = TensorMap(number, dtype, axes, box, split.swizzle_bytes)
    return made, [(index, offset * dtype.bits // 8) for index, offset in split.boxes]


def coordinates(ctx: Context, made: TensorMap, offsets: tuple[Value, ...], index: tuple[int, ...]) -> list[V]:
    """Return a box's coordinates, fastest first."""
    w = ctx.w
    lead = len(offsets) - len(index)
    out = []
    for axis in made.axes:
        at = ctx.scalar(offsets[axis])
        if at.type == "i64":
            # What is too far for 32 bits is outside every tensor.
            at = w.call("i64", "llvm.smax.i64", at, integer(-(1 << 31), 64))
            at = w.convert("trunc", w.call("i64", "llvm.smin.i64", at, integer((1 << 31) - 1, 64)), "i32")
        out.append(w.add(at, integer(index[axis - lead])) if axis >= lead else at)
    return out


@lowers(ops.CopyBulk)
def lower_copy_bulk(ctx: Context, op: ops.CopyBulk) -> None:
    require(ctx, "tma", "bulk tensor copies", "use copy_async")
    w = ctx.w
    shared = ctx.shared(op.shared)
    made, boxes = boxes_of(ctx, op.tensor, shared)
    descriptor = ctx.tensor_map(made)
    barrier = barrier_address(ctx, op.barrier, op.index)
    rank = len(made.axes)
    mode, mask, letters = "", "", ""
    extra: list[V] = []
    if op.multicast is not None:
        require(ctx, "cluster", "copies to several blocks", "leave out multicast=")
        mode, mask, letters = ".multicast::cluster", f", ${rank + 3}", ",h"
        extra = [w.convert("trunc", ctx.scalar(op.multicast), "i16")]
    with elected(ctx):
        for index, offset in boxes:
            at = coordinates(ctx, made, op.offsets, index)
            target = w.convert("ptrtoint", w.gep(shared.base, integer(offset)), "i32")
            names = ", ".join(f"${i + 3}" for i in range(rank))
            text = (
                f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes{mode} "
                f"[$0], [$1, {{{names}}}], [$2]{mask};"
            )
            constraints = "r,l,r" + ",r" * rank + letters + ",~{memory}"
            w.asm("void", text, constraints, target, descriptor, barrier, *at, *extra, effects=True)


@lowers(ops.StoreBulk)
def lower_store_bulk(ctx: Context, op: ops.StoreBulk) -> None:
    require(ctx, "tma", "bulk tensor copies", "load the shared tile and store it")
    w = ctx.w
    shared = ctx.shared(op.shared)
    made, boxes = boxes_of(ctx, op.tensor, shared)
    descriptor = ctx.tensor_map(made)
    rank = len(made.axes)
    verb = f"cp.reduce.async.bulk.tensor.{rank}d" if op.reduction else f"cp.async.bulk.tensor.{rank}d"
    reduction = f".{op.reduction}" if op.reduction else ""
    with elected(ctx):
        for index, offset in boxes:
            at = coordinates(ctx, made, op.offsets, index)
            source = w.convert("ptrtoint", w.gep(shared.base, integer(offset)), "i32")
            names = ", ".join(f"${i + 2}" for i in range(rank))
            tile = ".tile" if op.reduction else ""
            text = f"{verb}.global.shared::cta{reduction}{tile}.bulk_group [$0, {{{names}}}], [$1];"
            w.asm("void", text, "l,r" + ",r" * rank + ",~{memory}", descriptor, source, *at, effects=True)


@lowers(ops.BulkCommit)
def lower_bulk_commit(ctx: Context, op: ops.BulkCommit) -> None:
    with elected(ctx):
        ctx.w.asm("void", "cp.async.bulk.commit_group;", "~{memory}", effects=True)


@lowers(ops.BulkWait)
def lower_bulk_wait(ctx: Context, op: ops.BulkWait) -> None:
    with elected(ctx):
        read = ".read" if op.read else ""
        ctx.w.asm("void", f"cp.async.bulk.wait_group{read} {op.pending};", "~{memory}", effects=True)


# wgmma.


@dataclass(frozen=True)
class Descriptors:
    """Matrix descriptors of a shared operand: the low word of a base, and what to add for each instance and step.

    All of a descriptor that changes is the address, in units of 16 bytes, in its lowest bits; `high` is the upper word.
    """

    base: V
    high: int
    trans: bool
    starts: tuple[tuple[int, ...], ...]

    def at(self, ctx: Context, instance: int, step: int) -> V:
        """Return the descriptor of an instance at a step along k."""
        w = ctx.w
        low = w.convert("zext", w.add(self.base, integer(self.starts[instance][step] // 16)), "i64")
        return w.binary("or", low, integer(self.high << 32, 64))


def descriptors(
    ctx: Context, shared: SharedTensor, transposed: bool, rows: int, groups: int = 1
) -> Descriptors:
    """Describe a shared operand whose layout is (k, n) if `transposed`, else (m, k).

    Of several warpgroups, each begins with its own part of the rows.
    """
    w = ctx.w
    layout = shared.layout.transpose((1, 0)) if transposed else shared.layout
    bits = shared.dtype.bits
    try:
        matrix = describe_matrix(layout, bits, rows)
    except LayoutError as error:
        raise LayoutConflict(
            f"dot_async cannot read its {'second' if transposed else 'first'} operand: {error}"
        ) from None
    if shared.align % matrix.alignment_bytes:
        raise LayoutConflict(
            f"dot_async needs its operand at a multiple of {matrix.alignment_bytes} bytes, and it is at one of "
            f"{shared.align}"
        )
    assert shared.unit is not None
    high = matrix.stride_bytes >> 4 & 0x3FFF | SWIZZLE_MODES[matrix.swizzle_bytes] << 30
    # Shared memory ends before 256 KiB, so that addresses stay within their 14 bits. What is the same in all turns of a
    # loop is added up first.
    fixed = integer((matrix.leading_bytes >> 4 & 0x3FFF) << 16)
    size = bits // 8
    starts = tuple(
        tuple(layout.linear_offset((first, 0)) * size + step for step in matrix.step_bytes)
        for first in range(0, layout.shape[0], rows)
    )
    if groups > 1:
        stride = starts[len(starts) // groups][0] - starts[0][0]
        warp = ctx.warp()
        with w.at_entry():
            group = w.mul(w.binary("lshr", warp, integer(2)), integer(stride // 16))
            fixed = w.add(group, fixed)
    return Descriptors(w.add(shared.unit, fixed), high, matrix.major == "mn", starts)


@lowers(ops.DotAsync)
def lower_dot_async(ctx: Context, op: ops.DotAsync) -> None:
    require(ctx, "wgmma", "warpgroup matrix instructions", "use tilus.dot")
    w = ctx.w
    if ctx.group.count % 4 or ctx.group.first % 4:
        raise LayoutConflict(
            f"dot_async runs on whole warpgroups of 4 warps, and this group is {ctx.group.count} warps from "
            f"{ctx.group.first}"
        )
    a_type, b_type, c_type = op.a.type, op.b.type, op.c.type
    assert isinstance(a_type, (RegisterType, SharedType)) and isinstance(b_type, SharedType)
    assert isinstance(c_type, RegisterType)
    type = wgmma_type(a_type.dtype, b_type.dtype, c_type.dtype)
    assert type is not None
    n = c_type.shape[1]
    width = columns(n, type)
    groups = ctx.group.count // 4
    c = ctx.tile(op.c)
    right = descriptors(ctx, ctx.shared(op.b), True, width)
    left: Descriptors | None = None
    fragments: Fragments | None = None
    number_of: dict[tuple[int, ...], int] = {}
    if isinstance(a_type, SharedType):
        tiling = explain_tile_by(c.layout, c_atom(width))
        left = descriptors(ctx, ctx.shared(op.a), False, M, groups)
    else:
        a = ctx.tile(op.a)
        atom = warp_a_atom(type.k, type.a_dtype.bits)
        check_rows(a.layout, c.layout, atom, warp_c_atom(width))
        tiling = explain_tile_by(c.layout, warp_c_atom(width))
        fragments = Fragments(w, a, explain_tile_by(a.layout, atom))
        place = fragments.tiling.quotient
        number_of = {place.element_index(i): i for i in range(place.elements)}
    accumulators = Fragments(w, c, tiling)
    steps = a_type.shape[1] // type.k
    order = {tiling.quotient.element_index(q): q for q in range(tiling.quotient.elements)}
    for (row, column), q in order.items():
        sources = []
        for step in range(steps):
            if left is not None:
                sources.append([left.at(ctx, row, step)])
            else:
                assert fragments is not None
                sources.append(fragments.get(number_of[row, step]))
        rights = [right.at(ctx, column, step) for step in range(steps)]
        accumulators.set(
            q,
            wgmma_group(
                ctx,
                type,
                width,
                sources,
                rights,
                accumulators.get(q),
                op.fresh,
                left is not None and left.trans,
                right.trans,
            ),
        )
    w.asm("void", "wgmma.commit_group.sync.aligned;", "~{memory}", effects=True, convergent=True)
    ctx.values[op.result] = accumulators.tile()


def check_rows(a: RegisterLayout, c: RegisterLayout, a_atom: RegisterLayout, c_atom: RegisterLayout) -> None:
    """Check that each warp holds the same rows of a first operand in registers and of the accumulator."""
    try:
        rows_a, rows_c = rows_of(a, a_atom), rows_of(c, c_atom)
    except LayoutError as error:
        raise LayoutConflict(f"dot_async from registers: {error}") from None
    if rows_a.spatial_digits != rows_c.spatial_digits:
        raise LayoutConflict(
            f"dot_async: the rows of its first operand, {a}, are not with the warps that hold them in its accumulator, "
            f"{c}"
        )


def wgmma_group(
    ctx: Context,
    type: WgmmaType,
    n: int,
    a: list[list[V]],
    b: list[V],
    c: list[V],
    fresh: bool,
    trans_a: bool,
    trans_b: bool,
) -> list[V]:
    """Emit all steps along k of one 64 x n result as one piece of assembly; return the accumulators in flight."""
    w = ctx.w
    out = container_type(type.c_dtype)
    letter = {"float": "f", "i32": "r"}[out]
    count = len(c)
    destination = "{" + ", ".join(f"${i}" for i in range(count)) + "}"
    at = 2 * count
    args: list[V] = []
    # What is started from the registers of a tile that is no longer needed must not know that nothing is added: the
    # assembler would take other registers, and leave what still reads those for later. No descriptor has bit 31.
    over = fresh and any(value.name[0] == "%" for value in c)
    start = f"mov.b64 {{low, high}}, ${at + len(a[0])}; setp.lt.s32 more, low, 0;"
    lines = [
        f"{{ .reg .pred more; .reg .b32 low, high; {start}"
        if over
        else f"{{ .reg .pred more; setp.ne.b32 more, {int(not fresh)}, 0;",
        "wgmma.fence.sync.aligned;",
    ]
    letters: list[str] = []
    in_registers = len(a[0]) > 1
    for step, (left, right) in enumerate(zip(a, b, strict=True)):
        values = [w.convert("bitcast", v, "i32") if v.type == "float" else v for v in left]
        names = [f"${at + i}" for i in range(len(values))]
        source = "{" + ", ".join(names) + "}" if in_registers else names[0]
        at += len(values)
        letters += ["r" if in_registers else "l"] * len(values)
        args += values
        args.append(right)
        letters.append("l")
        modifiers = ""
        if type.scales:
            modifiers = ", 1, 1"
            if type.transposes:
                modifiers += f", {int(trans_b)}" if in_registers else f", {int(trans_a)}, {int(trans_b)}"
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{n}k{type.k}.{'.'.join(type.names)} "
            f"{destination}, {source}, ${at}, more{modifiers};"
        )
        at += 1
        if fresh and step == 0 and len(a) > 1:
            lines.append("setp.ne.b32 more, 1, 0;")
    constraints = [f"={letter}"] * count + [str(i) for i in range(count)] + letters + ["~{memory}"]
    result = out if count == 1 else "{ " + ", ".join([out] * count) + " }"
    made = w.asm(
        result, " ".join(lines) + " }", ",".join(constraints), *c, *args, effects=True, convergent=True
    )
    return [made] if count == 1 else [w.member(made, i, out) for i in range(count)]


@lowers(ops.DotWait)
def lower_dot_wait(ctx: Context, op: ops.DotWait) -> None:
    """The accumulators pass through the wait, so that nothing that uses them can move before it."""
    w = ctx.w
    tiles = [ctx.tile(t) for t in op.tiles]
    text = f"wgmma.wait_group.sync.aligned {op.pending};"
    regs = [r for t in tiles for r in t.regs]
    if not regs:
        w.asm("void", text, "~{memory}", effects=True, convergent=True)
        return
    letters = {"float": "f", "i32": "r", "double": "d", "i64": "l"}
    constraints = [f"={letters[r.type]}" for r in regs] + [str(i) for i in range(len(regs))] + ["~{memory}"]
    result = regs[0].type if len(regs) == 1 else "{ " + ", ".join(r.type for r in regs) + " }"
    made = w.asm(result, text, ",".join(constraints), *regs, effects=True, convergent=True)
    out = [made] if len(regs) == 1 else [w.member(made, i, r.type) for i, r in enumerate(regs)]
    position = 0
    for value, tile in zip(op.results, tiles, strict=True):
        ctx.values[value] = Tile(tile.dtype, tile.layout, tuple(out[position : position + len(tile.regs)]))
        position += len(tile.regs)
