"""Lowering of shared memory: allocation, views, loads and stores (ldmatrix, stmatrix where they fit), and copies."""

from __future__ import annotations

from dataclasses import replace
from math import gcd, prod

from tilus.codegen.atoms.matrix import MatrixMove, plan_matrices
from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.context import Context, GlobalTensor, SharedTensor, lowers
from tilus.codegen.lower.global_memory import (
    CACHE,
    NOTHING,
    Addresses,
    both,
    fastest,
    gather_global,
    group_elements,
    plan_access,
    scatter_global,
    within,
)
from tilus.codegen.lower.words import (
    load_words,
    load_words_from,
    memory_dtype,
    predicated_load,
    predicated_store,
    store_words,
    tile_from_words,
    words_from_tile,
)
from tilus.codegen.registers import Tile, elements_of
from tilus.errors import LayoutConflict, TypeMismatch
from tilus.ir import ops
from tilus.ir.types import SharedType
from tilus.layout import RegisterLayout, SharedLayout, affine_offsets, coalesced, contiguity

# Matrix descriptors count in this many bytes.
UNIT = 16


def byte_offset(elements: int, bits: int) -> int:
    """Return the byte offset of an element offset."""
    total = elements * bits
    if total % 8:
        raise TypeMismatch(
            f"an element of {bits} bits at offset {elements} of shared memory is not at a whole byte"
        )
    return total // 8


@lowers(ops.AllocShared)
def lower_alloc_shared(ctx: Context, op: ops.AllocShared) -> None:
    assert isinstance(op.result.type, SharedType)
    if op.offset is None or op.result.type.layout is None:
        raise LayoutConflict(f"shared memory of shape {op.shape} was not planned")
    align = gcd(op.offset, 1024) or 1024
    unit: V | None = None
    with ctx.w.at_entry():
        base = ctx.shared_pointer(op.offset)
        if align % UNIT == 0:
            unit = ctx.w.binary("lshr", ctx.w.convert("ptrtoint", base, "i32"), integer(4))
    ctx.values[op.result] = SharedTensor(op.dtype, op.result.type.layout, base, align, unit=unit)


@lowers(ops.SharedIndex)
def lower_shared_index(ctx: Context, op: ops.SharedIndex) -> None:
    source = ctx.shared(op.tensor)
    assert isinstance(op.result.type, SharedType) and op.result.type.layout is not None
    step, _ = source.layout.slice(0, min(1, source.layout.shape[0] - 1))
    bytes = byte_offset(step, memory_dtype(source.dtype).bits)
    index = ctx.w.convert("trunc", ctx.scalar(op.index), "i32")
    base = ctx.w.gep(source.base, ctx.w.mul(index, integer(bytes)))
    unit = moved_unit(ctx, source, ctx.w.mul(index, integer(bytes // UNIT)), bytes)
    ctx.values[op.result] = replace(
        source, layout=op.result.type.layout, base=base, align=gcd(source.align, bytes), unit=unit
    )


@lowers(ops.SharedSlice)
def lower_shared_slice(ctx: Context, op: ops.SharedSlice) -> None:
    source = ctx.shared(op.tensor)
    layout = op.layout
    assert layout is not None
    start = source.layout.linear_offset(op.offsets)
    bytes = byte_offset(start, memory_dtype(source.dtype).bits)
    base = ctx.w.gep(source.base, integer(bytes))
    unit = moved_unit(ctx, source, integer(bytes // UNIT), bytes)
    ctx.values[op.result] = replace(
        source, layout=layout, base=base, align=gcd(source.align, bytes), unit=unit
    )


def moved_unit(ctx: Context, source: SharedTensor, units: V, bytes: int) -> V | None:
    """Return where a part of a tensor begins, in units of 16 bytes, if it is a number of bytes that they divide."""
    return None if source.unit is None or bytes % UNIT else ctx.w.add(source.unit, units)


@lowers(ops.SharedPermute)
def lower_shared_permute(ctx: Context, op: ops.SharedPermute) -> None:
    source = ctx.shared(op.tensor)
    ctx.values[op.result] = replace(source, layout=source.layout.transpose(op.perm))


@lowers(ops.SharedReshape)
def lower_shared_reshape(ctx: Context, op: ops.SharedReshape) -> None:
    source = ctx.shared(op.tensor)
    ctx.values[op.result] = replace(source, layout=source.layout.reshape(op.shape))


class SharedAddresses:
    """Pointers of a tile's elements in shared memory."""

    def __init__(
        self, ctx: Context, layout: RegisterLayout, tensor: SharedTensor, elements: list[int]
    ) -> None:
        self.ctx, self.layout, self.tensor = ctx, layout, tensor
        self.bits = memory_dtype(tensor.dtype).bits
        self.affine = affine_offsets(layout, tensor.layout, elements)
        self.place = {element: i for i, element in enumerate(elements)}
        self._bases: dict[int, V] = {}
        if self.affine is not None:
            w = ctx.w
            ctx.thread()
            with w.at_entry():
                share = integer(0)
                for term in self.affine.terms:
                    share = w.add(share, w.mul(ctx.digit(term.weight, term.size), integer(term.stride)))
                swizzle = self.affine.swizzle
                if swizzle is not None:
                    moved = w.binary("lshr", share, integer(swizzle.shift))
                    share = w.binary("xor", share, w.binary("and", moved, integer(swizzle.mask)))
                self.share = share

    def _bytes(self, elements: V) -> V:
        w = self.ctx.w
        if self.bits >= 8:
            return w.mul(elements, integer(self.bits // 8))
        return w.binary("lshr", w.mul(elements, integer(self.bits)), integer(3))

    def pointer(self, element: int) -> V:
        """Return the pointer of an element that was announced."""
        w = self.ctx.w
        if self.affine is None:
            return self._general(element)
        at = self.place[element]
        flip = self.affine.xors[at]
        if flip not in self._bases:
            with w.at_entry():
                share = self._bytes(w.binary("xor", self.share, integer(flip)))
            self._bases[flip] = w.gep(self.tensor.base, share)
        return w.gep(self._bases[flip], integer(byte_offset(self.affine.adds[at], self.bits)))

    def _general(self, element: int) -> V:
        w = self.ctx.w
        index = [
            w.add(part, integer(own))
            for part, own in zip(
                self.ctx.coordinates(self.layout), self.layout.element_index(element), strict=True
            )
        ]
        return w.gep(self.tensor.base, self._bytes(linear_offset(self.ctx, self.tensor.layout, index)))


def linear_offset(ctx: Context, layout: SharedLayout, index: list[V]) -> V:
    """Return the offset, in elements, of an index given as i32 values."""
    w = ctx.w
    total = integer(0)
    for position, chain, extent in zip(index, layout.chains, layout.shape, strict=True):
        weight = 1
        for d in reversed(chain):
            part = position
            if weight > 1:
                part = w.binary("udiv", part, integer(weight))
            if weight * d.size < extent:
                part = w.binary("urem", part, integer(d.size))
            total = w.add(total, w.mul(part, integer(d.stride)))
            weight *= d.size
    if layout.swizzle is not None:
        moved = w.binary("lshr", total, integer(layout.swizzle.shift))
        total = w.binary("xor", total, w.binary("and", moved, integer(layout.swizzle.mask)))
    return total


def shared_access(layout: RegisterLayout, tensor: SharedTensor) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Return the groups of elements that move together, and the bits of each access."""
    bits = memory_dtype(tensor.dtype).bits
    limit = max(1, min(128, tensor.align * 8) // bits)
    found = contiguity(layout, tensor.layout, limit)
    vector = found.vector
    while vector * bits not in (8, 16, 32, 64, 128):
        if vector == 1:
            raise TypeMismatch(
                f"a shared tile of {tensor.dtype} is accessed in pieces of {bits} bits, which no instruction does",
                hint="keep it as uint8 and use tilus.view on the loaded tile",
            )
        vector //= 2
        found = contiguity(layout, tensor.layout, vector)
    return found.groups, vector * bits


@lowers(ops.LoadShared)
def lower_load_shared(ctx: Context, op: ops.LoadShared) -> None:
    w = ctx.w
    tensor = ctx.shared(op.tensor)
    layout = ctx.layout(op.result)
    if ctx.target.has("ldmatrix") and not tensor.remote:
        plan = plan_matrices(layout, tensor.layout, tensor.dtype.bits, tensor.align)
        if plan is not None:
            ctx.values[op.result] = load_matrices(ctx, tensor, layout, plan)
            return
    groups, bits = shared_access(layout, tensor)
    addresses = SharedAddresses(ctx, layout, tensor, [g[0] for g in groups])
    words = [load_from(ctx, tensor, addresses.pointer(g[0]), bits) for g in groups]
    ctx.values[op.result] = tile_from_words(w, tensor.dtype, layout, groups, words)


def load_from(ctx: Context, tensor: SharedTensor, pointer: V, bits: int) -> list[V]:
    """Load bits of a tensor as i32 words."""
    if tensor.remote:
        return load_words_from(ctx.w, pointer, bits, tensor.space)
    return load_words(ctx.w, pointer, bits, bits // 8)


def store_to(
    ctx: Context, tensor: SharedTensor, pointer: V, words: list[V], bits: int, predicate: V | None
) -> None:
    """Store i32 words to a tensor where a predicate, if there is one, is true."""
    if predicate is None and not tensor.remote:
        store_words(ctx.w, pointer, words, bits, bits // 8)
    else:
        predicated_store(ctx.w, pointer, words, bits, predicate, "", tensor.space)


def load_matrices(ctx: Context, tensor: SharedTensor, layout: RegisterLayout, plan: MatrixMove) -> Tile:
    """Load a tile with ldmatrix."""
    w = ctx.w
    addresses = SharedAddresses(ctx, plan.rows, tensor, list(plan.firsts))
    groups: list[tuple[int, ...]] = []
    words: list[list[V]] = []
    count = plan.matrices
    trans = ".trans" if plan.transposed else ""
    outs = ", ".join(f"${i}" for i in range(count))
    template = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{outs}}}, [${count}];"
    constraints = ",".join(["=r"] * count + ["r"]) + ",~{memory}"
    result = "i32" if count == 1 else "{ " + ", ".join(["i32"] * count) + " }"
    for first, parts in zip(plan.firsts, plan.elements, strict=True):
        pointer = w.convert("ptrtoint", addresses.pointer(first), "i32")
        made = w.asm(result, template, constraints, pointer, effects=True, convergent=True)
        regs = [made] if count == 1 else [w.member(made, i, "i32") for i in range(count)]
        groups += parts
        words += [[r] for r in regs]
    return tile_from_words(w, tensor.dtype, layout, groups, words)


@lowers(ops.StoreShared)
def lower_store_shared(ctx: Context, op: ops.StoreShared) -> None:
    store_tile(ctx, ctx.shared(op.tensor), ctx.tile(op.value))


def store_tile(ctx: Context, tensor: SharedTensor, tile: Tile) -> None:
    """Store a tile over a shared tensor; of copies among threads, one stores."""
    w = ctx.w
    if ctx.target.has("stmatrix") and not tensor.remote:
        plan = plan_matrices(tile.layout, tensor.layout, tensor.dtype.bits, tensor.align)
        if plan is not None:
            store_matrices(ctx, tensor, tile, plan)
            return
    groups, bits = shared_access(tile.layout, tensor)
    addresses = SharedAddresses(ctx, tile.layout, tensor, [g[0] for g in groups])
    once = ctx.is_first_replica(tile.layout)
    for group, words in zip(groups, words_from_tile(w, tile, groups), strict=True):
        store_to(ctx, tensor, addresses.pointer(group[0]), words, bits, once)


def store_matrices(ctx: Context, tensor: SharedTensor, tile: Tile, plan: MatrixMove) -> None:
    """Store a tile with stmatrix; copies are whole warps, of which one stores."""
    w = ctx.w
    addresses = SharedAddresses(ctx, plan.rows, tensor, list(plan.firsts))
    once = ctx.is_first_replica(tile.layout)
    count = plan.matrices
    trans = ".trans" if plan.transposed else ""
    sources = ", ".join(f"${i + 1}" for i in range(count))
    guard = "" if once is None else f"@${count + 1} "
    template = f"{guard}stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [$0], {{{sources}}};"
    constraints = ",".join(["r"] * (count + 1) + ([] if once is None else ["b"])) + ",~{memory}"
    predicate = [] if once is None else [once]
    for first, parts in zip(plan.firsts, plan.elements, strict=True):
        pointer = w.convert("ptrtoint", addresses.pointer(first), "i32")
        words = [word for (word,) in words_from_tile(w, tile, parts)]
        w.asm("void", template, constraints, pointer, *words, *predicate, effects=True, convergent=True)


@lowers(ops.Gather)
def lower_gather(ctx: Context, op: ops.Gather) -> None:
    if not isinstance(op.tensor.type, SharedType):
        gather_global(ctx, op)
        return
    w = ctx.w
    tensor = ctx.shared(op.tensor)
    layout = ctx.layout(op.result)
    bits = memory_dtype(tensor.dtype).bits
    columns = [elements_of(w, ctx.tile(i)) for i in op.indices]
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    words = []
    for element in range(layout.elements):
        pointer, predicate = shared_element(ctx, tensor, [c[element] for c in columns], op.checked)
        predicate = both(ctx, predicate, mask[element] if mask else None)
        if predicate is None:
            words.append(load_from(ctx, tensor, pointer, bits))
        else:
            words.append(predicated_load(w, pointer, bits, predicate, NOTHING, "", tensor.space))
    ctx.values[op.result] = tile_from_words(
        w, tensor.dtype, layout, [(e,) for e in range(layout.elements)], words
    )


def shared_element(ctx: Context, tensor: SharedTensor, index: list[V], checked: bool) -> tuple[V, V | None]:
    """Return the pointer of one element, and whether the index lies in the tensor."""
    w = ctx.w
    inside: V | None = None
    if checked:
        for at, extent in zip(index, tensor.layout.shape, strict=True):
            inside = both(ctx, inside, within(w, at, integer(extent)))
    index = [w.convert("trunc", i, "i32") for i in index]
    bits = memory_dtype(tensor.dtype).bits
    if bits % 8:
        raise TypeMismatch(
            f"single elements of {tensor.dtype} have no address", hint="use shared memory of uint8"
        )
    offset = w.mul(linear_offset(ctx, tensor.layout, index), integer(bits // 8))
    return w.gep(tensor.base, offset), inside


@lowers(ops.Scatter)
def lower_scatter(ctx: Context, op: ops.Scatter) -> None:
    if not isinstance(op.tensor.type, SharedType):
        scatter_global(ctx, op)
        return
    w = ctx.w
    tensor = ctx.shared(op.tensor)
    tile = ctx.tile(op.value)
    bits = memory_dtype(tensor.dtype).bits
    columns = [elements_of(w, ctx.tile(i)) for i in op.indices]
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    once = ctx.is_first_replica(tile.layout)
    for element, words in enumerate(words_from_tile(w, tile, [(e,) for e in range(tile.count)])):
        pointer, predicate = shared_element(ctx, tensor, [c[element] for c in columns], op.checked)
        predicate = both(ctx, once, both(ctx, predicate, mask[element] if mask else None))
        store_to(ctx, tensor, pointer, words, bits, predicate)


def copy_layout(shape: tuple[int, ...], threads: int, bits: int, along: int | None = None) -> RegisterLayout:
    """Return which thread copies which part of a tile: 16 bytes each, neighbours next to each other.

    The parts lie along a dimension, by default the last. A tile of fewer such parts than threads is copied by some.
    """
    vector = max(1, 128 // bits)
    busy = gcd(threads, max(1, prod(shape) // vector))
    order = None if along is None else (along, *(d for d in reversed(range(len(shape))) if d != along))
    layout = coalesced(shape, busy, vector, order)
    return layout if busy == threads else layout.with_replication(threads // busy)


def copy_run(layout: RegisterLayout, shared: SharedTensor, along: int | None) -> int:
    """Return how many elements that follow one another along a dimension may go to shared memory at once."""
    dim = layout.rank - 1 if along is None else along
    bits = memory_dtype(shared.dtype).bits
    run = max(1, min(128, shared.align * 8) // bits)
    while run > 1:
        found = contiguity(layout, shared.layout, run)
        moves = found.vector == run and run * bits in (8, 16, 32, 64, 128)
        if moves and set(found.groups) == set(group_elements(layout, dim, run)):
            return run
        run = min(run // 2, found.vector)
    return 1


@lowers(ops.CopyAsync)
def lower_copy_async(ctx: Context, op: ops.CopyAsync) -> None:
    w = ctx.w
    shared, tensor = ctx.shared(op.shared), ctx.tensor(op.tensor)
    bits = memory_dtype(shared.dtype).bits
    along = fastest(tensor, shared.layout.rank)
    layout = copy_layout(shared.layout.shape, ctx.group.threads, bits, along)
    width = bits * copy_run(layout, shared, along)
    access = plan_access(ctx, tensor, op.offsets, layout, op.checked, None, width, along)
    if access.bits < 32 or not ctx.target.has("cp_async"):
        copy_through_registers(ctx, op, tensor, shared, layout, along)
        return
    addresses = Addresses(ctx, tensor, op.offsets, layout, op.checked)
    targets = SharedAddresses(ctx, layout, shared, [g[0] for g in access.groups])
    once = ctx.is_first_replica(layout)
    size = access.bits // 8
    mode = "cg" if size == 16 else "ca"
    for group in access.groups:
        predicate = addresses.inside(group[0])
        source = addresses.pointer(group[0])
        target = w.convert("ptrtoint", targets.pointer(group[0]), "i32")
        guard, letters, args = "", "r,l", [target, source]
        text = f"cp.async.{mode}.shared.global [$0], [$1], {size}"
        if predicate is not None:
            args.append(w.select(predicate, integer(size), integer(0)))
            letters += ",r"
            text += ", $2"
        if once is not None:
            guard = f"@${len(args)} "
            args.append(once)
            letters += ",b"
        w.asm("void", f"{guard}{text};", letters + ",~{memory}", *args, effects=True)


def copy_through_registers(
    ctx: Context,
    op: ops.CopyAsync,
    tensor: GlobalTensor,
    shared: SharedTensor,
    layout: RegisterLayout,
    along: int | None,
) -> None:
    """Copy at once, where no asynchronous instruction moves so few bytes or the target has none."""
    w = ctx.w
    access = plan_access(ctx, tensor, op.offsets, layout, op.checked, None, along=along)
    addresses = Addresses(ctx, tensor, op.offsets, layout, op.checked)
    words = []
    for group in access.groups:
        predicate = addresses.inside(group[0])
        pointer = addresses.pointer(group[0])
        if predicate is None:
            words.append(load_words(w, pointer, access.bits, access.bits // 8))
        else:
            words.append(
                predicated_load(w, pointer, access.bits, predicate, NOTHING, CACHE[op.cache], "global")
            )
    store_tile(ctx, shared, tile_from_words(w, shared.dtype, layout, access.groups, words))


@lowers(ops.CopyAsyncCommit)
def lower_copy_async_commit(ctx: Context, op: ops.CopyAsyncCommit) -> None:
    if ctx.target.has("cp_async"):
        ctx.w.asm("void", "cp.async.commit_group;", "~{memory}", effects=True)


@lowers(ops.CopyAsyncWait)
def lower_copy_async_wait(ctx: Context, op: ops.CopyAsyncWait) -> None:
    if ctx.target.has("cp_async"):
        ctx.w.asm("void", f"cp.async.wait_group {op.pending};", "~{memory}", effects=True)


@lowers(ops.Sync)
def lower_sync(ctx: Context, op: ops.Sync) -> None:
    ctx.barrier()


@lowers(ops.Fence)
def lower_fence(ctx: Context, op: ops.Fence) -> None:
    texts = {
        "block": "membar.cta;",
        "device": "membar.gl;",
        "system": "membar.sys;",
        # Of shared memory alone: without a state space it would wait for the whole device.
        "async": "fence.proxy.async.shared::cta;",
    }
    ctx.w.asm("void", texts[op.kind], "~{memory}", effects=True)
