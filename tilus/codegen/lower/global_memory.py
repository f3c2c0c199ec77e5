"""Lowering of loads and stores of tiles in global memory: vector width, addresses and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tilus.codegen.llvm_text import V, Writer, integer
from tilus.codegen.lower.context import Context, GlobalTensor, lowers
from tilus.codegen.lower.words import (
    load_words,
    memory_dtype,
    predicated_load,
    predicated_store,
    store_words,
    tile_from_words,
    width_of,
    words_from_tile,
)
from tilus.codegen.registers import Tile, elements_of
from tilus.dtypes import DType
from tilus.errors import TypeMismatch
from tilus.ir import ops
from tilus.ir.core import Value
from tilus.ir.types import divisor_of
from tilus.layout import RegisterLayout
from tilus.passes.constancy import neighbours
from tilus.passes.layouts import run_length

CACHE = {"": "", "streaming": ".cs", "persistent": ""}


@dataclass(frozen=True)
class Access:
    """How a tile's elements are moved: `groups` of elements, each by one instruction of `bits` bits."""

    groups: tuple[tuple[int, ...], ...]
    bits: int
    vector: int


def plan_access(
    ctx: Context,
    tensor: GlobalTensor,
    offsets: tuple[Value, ...],
    layout: RegisterLayout,
    checked: tuple[bool, ...],
    mask: Value | None,
    limit_bits: int = 128,
    along: int | None = None,
) -> Access:
    """Find the widest accesses, along a dimension of the tile, that layout, alignment, strides and bounds allow."""
    dtype = memory_dtype(tensor.type.dtype)
    lead = tensor.type.rank - layout.rank
    dim = layout.rank - 1 if along is None else along
    fast = lead + dim
    run = 1
    if layout.rank and tensor.type.strides[fast] == 1:
        run = run_length(layout, dim)
        if mask is not None:
            run = gcd(run, ctx.runs[mask].along[dim].constant)
        # Every row must start at a multiple of the vector, and the tensor must end at one.
        run = gcd(run, ctx.divisor(offsets[fast]))
        for d in layout.spatial_digits + layout.local_digits:
            if d.dim == dim and d.stride >= run:
                run = gcd(run, d.stride)
        for axis, stride in enumerate(tensor.type.strides):
            if axis != fast:
                run = gcd(run, divisor_of(stride))
        if checked[fast]:
            run = gcd(run, divisor_of(tensor.type.dims[fast]))
        bits = gcd(run * dtype.bits, tensor.type.align * 8, limit_bits)
        run = max(1, bits // dtype.bits) if bits % dtype.bits == 0 else 1
    bits = run * dtype.bits
    if bits % 8:
        raise TypeMismatch(
            f"a tile of {dtype} moves in whole bytes, but here {run} elements ({bits} bits) lie together",
            hint="keep weights as a tensor of uint8 and use tilus.view on the loaded tile",
        )
    width = width_of(bits)
    if width != bits:
        raise TypeMismatch(
            f"a tile of {dtype} would move in pieces of {bits} bits, which no instruction does",
            hint="keep weights as a tensor of uint8 and use tilus.view on the loaded tile",
        )
    return Access(group_elements(layout, dim, run), bits, run)


def fastest(tensor: GlobalTensor, rank: int) -> int | None:
    """Return the dimension of a tile that is contiguous in memory, where it is not the last; None for the last."""
    strides = tensor.type.strides[tensor.type.rank - rank :]
    return None if not strides or strides[-1] == 1 or 1 not in strides else strides.index(1)


def group_elements(layout: RegisterLayout, dim: int, vector: int) -> tuple[tuple[int, ...], ...]:
    """Group a thread's elements in runs of `vector` along a dimension."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for element in range(layout.elements):
        index = layout.element_index(element)
        if not index:
            groups[()] = [(0, element)]
            continue
        key = (*index[:dim], index[dim] // vector, *index[dim + 1 :])
        groups.setdefault(key, []).append((index[dim], element))
    return tuple(tuple(e for _, e in sorted(g)) for g in groups.values())


class Addresses:
    """Pointers and bounds predicates of a tile's elements."""

    def __init__(
        self,
        ctx: Context,
        tensor: GlobalTensor,
        offsets: tuple[Value, ...],
        layout: RegisterLayout,
        checked: tuple[bool, ...],
    ) -> None:
        self.ctx, self.tensor, self.layout, self.checked = ctx, tensor, layout, checked
        w = ctx.w
        self.bits = memory_dtype(tensor.type.dtype).bits
        lead = tensor.type.rank - layout.rank
        thread = ctx.coordinates(layout)
        self.coordinates: list[V] = []
        for axis, value in enumerate(offsets):
            at = ctx.scalar(value)
            if axis >= lead:
                at = w.add(at, w.convert("zext", thread[axis - lead], at.type))
            self.coordinates.append(at)
        linear = integer(0, 64)
        for at, stride in zip(self.coordinates, tensor.strides, strict=True):
            linear = w.add(linear, w.mul(w.convert("sext", at, "i64"), stride))
        self.base = w.gep(tensor.pointer, self.bytes(linear))
        self.lead = lead
        self._inside: dict[tuple[int, int], V] = {}
        self._rows: dict[tuple[int, ...], V] = {}

    def bytes(self, elements: V) -> V:
        """Return a byte offset from an element offset (i64)."""
        w = self.ctx.w
        if self.bits >= 8:
            return w.mul(elements, integer(self.bits // 8, 64))
        return w.binary("ashr", w.mul(elements, integer(self.bits, 64)), integer(3, 64))

    def pointer(self, element: int) -> V:
        """Return the pointer of an element."""
        w = self.ctx.w
        index = self.layout.element_index(element)
        known, variable = 0, integer(0, 64)
        for axis, position in enumerate(index):
            stride = self.tensor.strides[axis + self.lead]
            literal = stride.literal
            if literal is not None:
                known += position * literal
            elif position:
                variable = w.add(variable, w.mul(stride, integer(position, 64)))
        pointer = w.gep(self.base, self.bytes(variable))
        return w.gep(pointer, integer(known * self.bits // 8, 64))

    def inside(self, element: int) -> V | None:
        """Return whether an element lies in the tensor, or None if that is certain."""
        w = self.ctx.w
        index = self.layout.element_index(element)
        result: V | None = None
        for axis, at in enumerate(self.coordinates):
            if not self.checked[axis]:
                continue
            position = index[axis - self.lead] if axis >= self.lead else 0
            key = (axis, position)
            if key not in self._inside:
                here = w.add(at, integer(position, int(at.type[1:])))
                self._inside[key] = within(w, here, self.tensor.dims[axis])
            found = self._inside[key]
            result = found if result is None else w.binary("and", result, found)
        return result


def within(w: Writer, at: V, extent: V) -> V:
    """Return whether a coordinate lies in an extent; either may have 32 or 64 bits."""
    if at.type != extent.type:
        at, extent = w.convert("sext", at, "i64"), w.convert("zext", extent, "i64")
    # Unsigned, so that negative coordinates are outside too.
    return w.icmp("ult", at, extent)


def both(ctx: Context, a: V | None, b: V | None) -> V | None:
    """Return the conjunction of two predicates, where None is true."""
    if a is None or b is None:
        return a if b is None else b
    return ctx.w.binary("and", a, b)


NOTHING = (integer(0),)


def fill_words(ctx: Context, dtype: DType, other: V | None) -> tuple[V, ...]:
    """Return the i32 words that fill what lies outside, from a scalar: one, or two for 64 bits."""
    if other is None:
        return NOTHING
    w = ctx.w
    if dtype.bits >= 32:
        if dtype.bits == 32:
            return (w.convert("bitcast", other, "i32"),)
        pair = w.convert("bitcast", other, "<2 x i32>")
        return (w.extract(pair, 0, "i32"), w.extract(pair, 1, "i32"))
    if other.type in ("half", "bfloat"):
        other = w.convert("bitcast", other, "i16")
    bits = memory_dtype(dtype).bits
    if 32 % bits:
        raise TypeMismatch(
            f"load takes other= for types whose elements fill 32 bits, not {dtype}", hint="use tilus.where"
        )
    code = w.binary("and", w.convert("zext", other, "i32"), integer((1 << bits) - 1))
    return (w.mul(code, integer(0xFFFFFFFF // ((1 << bits) - 1))),)


@lowers(ops.LoadGlobal)
def lower_load_global(ctx: Context, op: ops.LoadGlobal) -> None:
    w = ctx.w
    tensor = ctx.tensor(op.tensor)
    layout = ctx.layout(op.result)
    dtype = tensor.type.dtype
    along = fastest(tensor, layout.rank)
    access = plan_access(ctx, tensor, op.offsets, layout, op.checked, op.mask, along=along)
    addresses = Addresses(ctx, tensor, op.offsets, layout, op.checked)
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    other = fill_words(ctx, dtype, ctx.scalar(op.other) if op.other is not None else None)
    words = []
    for group in access.groups:
        predicate = both(ctx, addresses.inside(group[0]), mask[group[0]] if mask else None)
        pointer = addresses.pointer(group[0])
        if predicate is None and not CACHE[op.cache]:
            words.append(load_words(w, pointer, access.bits, access.bits // 8))
        else:
            condition = predicate if predicate is not None else V("i1", "true")
            words.append(
                predicated_load(w, pointer, access.bits, condition, other, CACHE[op.cache], "global")
            )
    ctx.values[op.result] = tile_from_words(w, dtype, layout, access.groups, words)


@lowers(ops.StoreGlobal)
def lower_store_global(ctx: Context, op: ops.StoreGlobal) -> None:
    w = ctx.w
    tensor = ctx.tensor(op.tensor)
    tile = ctx.tile(op.value)
    along = fastest(tensor, tile.layout.rank)
    access = plan_access(ctx, tensor, op.offsets, tile.layout, op.checked, op.mask, along=along)
    addresses = Addresses(ctx, tensor, op.offsets, tile.layout, op.checked)
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    once = ctx.is_first_replica(tile.layout)
    for group, words in zip(access.groups, words_from_tile(w, tile, access.groups), strict=True):
        predicate = both(ctx, addresses.inside(group[0]), mask[group[0]] if mask else None)
        predicate = both(ctx, once, predicate)
        pointer = addresses.pointer(group[0])
        if predicate is None and not CACHE[op.cache]:
            store_words(w, pointer, words, access.bits, access.bits // 8)
        else:
            predicated_store(w, pointer, words, access.bits, predicate, CACHE[op.cache], "global")


def element_pointer(ctx: Context, tensor: GlobalTensor, index: list[V], count: int = 1) -> V:
    """Return the pointer of `count` elements from an index on, given as i32 or i64 values."""
    w = ctx.w
    linear = integer(0, 64)
    for at, stride in zip(index, tensor.strides, strict=True):
        linear = w.add(linear, w.mul(w.convert("sext", at, "i64"), stride))
    bits = memory_dtype(tensor.type.dtype).bits
    if bits * count % 8:
        raise TypeMismatch(
            f"single elements of {tensor.type.dtype} have no address", hint="use a tensor of uint8"
        )
    if bits < 8:
        return w.gep(tensor.pointer, w.binary("ashr", w.mul(linear, integer(bits, 64)), integer(3, 64)))
    return w.gep(tensor.pointer, w.mul(linear, integer(bits // 8, 64)))


def element_inside(ctx: Context, tensor: GlobalTensor, index: list[V]) -> V | None:
    """Return whether an index lies in the tensor."""
    w = ctx.w
    result: V | None = None
    for at, extent in zip(index, tensor.dims, strict=True):
        result = both(ctx, result, within(w, at, extent))
    return result


def plan_elements(ctx: Context, op: ops.Gather | ops.Scatter, layout: RegisterLayout) -> Access:
    """Find the widest accesses by index tiles: runs of a thread's elements that lie side by side in memory."""
    tensor = ctx.tensor(op.tensor).type
    bits = memory_dtype(tensor.dtype).bits
    dim, run = neighbours(op, tensor, ctx.runs)
    run = gcd(run, 128 // bits) if 128 % bits == 0 else 1
    if layout.rank:
        run = gcd(run, run_length(layout, dim))
        for d in layout.spatial_digits + layout.local_digits:
            if d.dim == dim and d.stride >= run:
                run = gcd(run, d.stride)
    return Access(group_elements(layout, dim, run), bits * run, run)


def gather_global(ctx: Context, op: ops.Gather) -> None:
    """Load elements of a global tensor by index tiles."""
    w = ctx.w
    tensor = ctx.tensor(op.tensor)
    layout = ctx.layout(op.result)
    access = plan_elements(ctx, op, layout)
    columns = [elements_of(w, ctx.tile(i)) for i in op.indices]
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    words = []
    for first, *_ in access.groups:
        index = [column[first] for column in columns]
        predicate = both(
            ctx, element_inside(ctx, tensor, index) if op.checked else None, mask[first] if mask else None
        )
        pointer = element_pointer(ctx, tensor, index, access.vector)
        if predicate is None:
            words.append(load_words(w, pointer, access.bits, access.bits // 8))
        else:
            words.append(predicated_load(w, pointer, access.bits, predicate, NOTHING, "", "global"))
    ctx.values[op.result] = tile_from_words(w, tensor.type.dtype, layout, access.groups, words)


def scatter_global(ctx: Context, op: ops.Scatter) -> None:
    """Store elements of a global tensor by index tiles."""
    w = ctx.w
    tensor = ctx.tensor(op.tensor)
    tile: Tile = ctx.tile(op.value)
    access = plan_elements(ctx, op, tile.layout)
    columns = [elements_of(w, ctx.tile(i)) for i in op.indices]
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    once = ctx.is_first_replica(tile.layout)
    for (first, *_), words in zip(access.groups, words_from_tile(w, tile, access.groups), strict=True):
        index = [column[first] for column in columns]
        predicate = both(
            ctx, element_inside(ctx, tensor, index) if op.checked else None, mask[first] if mask else None
        )
        predicate = both(ctx, once, predicate)
        pointer = element_pointer(ctx, tensor, index, access.vector)
        if predicate is None:
            store_words(w, pointer, words, access.bits, access.bits // 8)
        else:
            predicated_store(w, pointer, words, access.bits, predicate, "", "global")
