"""What a kernel means when Python runs it: the language's functions on whole NumPy tiles, one block after the other.

It shares nothing with the front end, the IR and its interpreter but the types, their encodings and the layouts. A
generated program imports this module in the place of `tilus.lang`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz.values import *  # noqa: F403
from tests.fuzz.values import Array, Value, rounded, wide
from tilus import dtypes
from tilus.dtypes import *  # noqa: F403
from tilus.dtypes import DType, float32, int32
from tilus.lang import Tensor, constexpr  # noqa: F401
from tilus.layout import RegisterLayout

# Making tiles, and their shapes.


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)


def full(shape: Any, fill: Any, dtype: DType | None = None, *, layout: Any = None) -> Value:
    if dtype is None:
        dtype = fill.dtype if isinstance(fill, Value) else float32 if isinstance(fill, float) else int32
    return Value(np.full(_shape(shape), fill.data if isinstance(fill, Value) else fill), dtype)


def zeros(shape: Any, dtype: DType = float32, *, layout: Any = None) -> Value:
    return full(shape, 0, dtype)


def registers(dtype: DType, shape: Any, *, fill: Any = 0, layout: Any = None) -> Value:
    return full(shape, fill, dtype)


def arange(start: int, stop: int | None = None, *, dtype: DType = int32, layout: Any = None) -> Value:
    return Value(np.arange(*((0, start) if stop is None else (start, stop))), dtype)


def iota(shape: Any, axis: int = 0, *, dtype: DType = int32, layout: Any = None) -> Value:
    return Value(np.indices(_shape(shape))[axis], dtype)


def broadcast_to(x: Value, shape: Any) -> Value:
    return Value(np.broadcast_to(x.data, _shape(shape)), x.dtype)


def expand_dims(x: Value, axis: int) -> Value:
    return Value(np.expand_dims(x.data, axis), x.dtype)


def squeeze(x: Value, axis: int) -> Value:
    return Value(np.squeeze(x.data, axis), x.dtype)


def reshape(x: Any, shape: Any) -> Any:
    return x.reshape(_shape(shape))


def transpose(x: Value, perm: Any = None) -> Value:
    return Value(np.transpose(x.data, perm), x.dtype)


def concat(parts: Sequence[Value], axis: int = 0) -> Value:
    return Value(np.concatenate([p.data for p in parts], axis), parts[0].dtype)


def annotate_layout(x: Value, layout: RegisterLayout) -> Value:
    return Value(x.data, x.dtype, layout)


def flip(x: Value, axis: int = -1) -> Value:
    return Value(np.flip(x.data, axis), x.dtype)


def gather(x: Value, indices: Value, axis: int = -1) -> Value:
    places = indices.data.astype(np.int64)
    inside = (places >= 0) & (places < x.shape[axis])
    if indices.dtype.name == "uint64":
        inside &= indices.data < np.uint64(x.shape[axis])
    found = np.take_along_axis(x.data, np.where(inside, places, 0), axis)
    return Value(np.where(inside, found, np.zeros_like(found)), x.dtype)


def codes_of(x: Value) -> Array:
    """Return the bit patterns of a tile."""
    if x.dtype.is_boolean:
        return x.data.astype(np.uint8)
    return np.asarray(
        dtypes.encode(
            x.data, x.dtype, **({"saturate": False} if x.dtype.is_float and x.dtype.has_inf else {})
        )
    )


def view(x: Value, dtype: DType, shape: Any = None, *, layout: RegisterLayout | None = None) -> Value:
    """See a tile's bits as another type, one thread after the other where there are layouts."""
    codes, bits = codes_of(x), x.dtype.bits
    if layout is None:
        if bits != dtype.bits:
            words = dtypes.pack(codes.reshape(-1), x.dtype)
            codes = dtypes.unpack(words, dtype, codes.size * bits // dtype.bits)
        shape = (*x.shape[:-1], x.shape[-1] * bits // dtype.bits) if shape is None else shape
        return Value(wide(dtypes.decode(codes.reshape(shape), dtype), dtype), dtype)
    made = np.zeros(layout.shape, dtype.code_numpy)
    for thread in builtins.range(layout.threads):
        word = 0
        for element in builtins.range(x.layout.elements):
            word |= int(codes[x.layout.index(thread, element)]) << (bits * element)
        for element in builtins.range(layout.elements):
            made[layout.index(thread, element)] = (word >> (dtype.bits * element)) & dtype.code_mask
    return Value(wide(dtypes.decode(made, dtype), dtype), dtype)


def dot(a: Value, b: Value, acc: Value | None = None, *, out_dtype: DType | None = None) -> Value:
    dtype = acc.dtype if acc is not None else out_dtype
    if dtype is None:
        dtype = int32 if a.dtype.is_integer else dtypes.float64 if a.dtype.bits == 64 else float32
    x, y = (v.data.astype(np.int64) if v.dtype.is_integer else v.data for v in (a, b))
    made = x @ y
    return Value(made if acc is None else made + acc.data, dtype)


# Reductions, scans and order.


def _kept(x: Value, made: Array, axis: int | None, keepdims: bool, dtype: DType) -> Value:
    return Value(made, dtype)


def reduce(x: Any, axis: Any, kind: Any, keepdims: bool = False) -> Any:
    if callable(kind):
        return _combined(x, axis, kind, keepdims)
    axes = tuple(builtins.range(x.data.ndim)) if axis is None else axis
    if kind in ("argmax", "argmin"):
        made = getattr(np, kind)(x.data, axis=axis)
        return Value(np.expand_dims(made, axis) if keepdims else made, int32)
    function = {
        "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor, "any": np.logical_or, "all": np.logical_and,
    }[kind]  # fmt: skip
    return Value(function.reduce(x.data, axis=axes, keepdims=keepdims), x.dtype)


def _combined(x: Any, axis: int, function: Any, keepdims: bool) -> Any:
    parts = x if isinstance(x, tuple) else (x,)
    total = tuple(Value(p.data.take([0], axis), p.dtype) for p in parts)
    for place in builtins.range(1, parts[0].shape[axis]):
        others = tuple(Value(p.data.take([place], axis), p.dtype) for p in parts)
        total = function(total, others) if isinstance(x, tuple) else (function(total[0], others[0]),)
    if not keepdims:
        total = tuple(Value(np.squeeze(t.data, axis), t.dtype) for t in total)
    return total if isinstance(x, tuple) else total[0]


def _reduction(kind: str) -> Any:
    def apply(x: Value, axis: int | None = None, keepdims: bool = False) -> Any:
        return reduce(x, 0 if axis is None and kind.startswith("arg") else axis, kind, keepdims)

    return apply


sum, prod, max, min, any, all, argmax, argmin = map(
    _reduction, ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")
)


def scan(x: Any, axis: int, kind: Any, *, exclusive: bool = False) -> Any:
    if callable(kind):
        made = [Value(x.data.take([0], axis), x.dtype)]
        for place in builtins.range(1, x.shape[axis]):
            made.append(kind(made[-1], Value(x.data.take([place], axis), x.dtype)))
        return concat(made, axis)
    function, start = {
        "sum": (np.add, 0), "prod": (np.multiply, 1), "max": (np.maximum, x.dtype.min), "or": (np.bitwise_or, 0),
        "min": (np.minimum, x.dtype.max), "xor": (np.bitwise_xor, 0),
        "and": (np.bitwise_and, -1 if x.dtype.is_signed else x.dtype.max),
    }[kind]  # fmt: skip
    if x.dtype.is_float and kind in ("max", "min"):
        start = -np.inf if kind == "max" else np.inf
    made = function.accumulate(x.data, axis=axis)
    if exclusive:
        first = np.full_like(made.take([0], axis), start)
        made = np.concatenate([first, made.take(builtins.range(x.shape[axis] - 1), axis)], axis)
    return Value(made, x.dtype)


def cumsum(x: Value, axis: int) -> Value:
    return scan(x, axis, "sum")


def _order(x: Value, axis: int, descending: bool) -> Array:
    """Indices that sort, of equal elements the first first, NaN as the largest."""
    if not descending:
        return np.argsort(x.data, axis=axis, kind="stable")
    turned = np.argsort(np.flip(x.data, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - turned, axis)


def sort(x: Value, axis: int = -1, *, descending: bool = False) -> Value:
    return Value(np.take_along_axis(x.data, _order(x, axis, descending), axis), x.dtype)


def argsort(x: Value, axis: int = -1, *, descending: bool = False) -> Value:
    return Value(_order(x, axis, descending), int32)


def topk(x: Value, k: int, axis: int = -1, *, largest: bool = True) -> tuple[Value, Value]:
    order = _order(x, axis, largest).take(builtins.range(k), axis)
    return Value(np.take_along_axis(x.data, order, axis), x.dtype), Value(order, int32)


def histogram(x: Value, bins: int, mask: Value | None = None) -> Value:
    data = x.data if mask is None else x.data[mask.data]
    numbers = [int(v) for v in data.reshape(-1)]
    return Value(np.array([numbers.count(b) for b in builtins.range(bins)]), int32)


# Memory.


@dataclass
class Memory:
    """A tensor in shared or global memory: values, which parts of it share."""

    data: Array
    dtype: DType

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.data.shape

    @property
    def T(self) -> Memory:
        return Memory(self.data.T, self.dtype)

    def reshape(self, shape: Any) -> Memory:
        made = self.data.view()
        made.shape = shape
        return Memory(made, self.dtype)

    def permute(self, *perm: int) -> Memory:
        return Memory(self.data.transpose(perm), self.dtype)

    def __getitem__(self, index: Any) -> Memory:
        return Memory(self.data[int(index)] if isinstance(index, Value) else self.data[index], self.dtype)


def shared(dtype: DType, shape: Any, *, layout: Any = None) -> Memory:
    return Memory(Value(np.zeros(_shape(shape), np.int64), dtype).data.copy(), dtype)


def _located(memory: Memory, offsets: Any, shape: tuple[int, ...]) -> tuple[tuple[Array, ...], Array]:
    """Return the indices of a tile, and where they lie inside."""
    rank = memory.data.ndim
    extents = (1,) * (rank - len(shape)) + shape
    grid = np.indices(extents).reshape(rank, *shape)
    return _inside(memory, [int(o) + g for o, g in zip(_shape(offsets), grid, strict=True)], shape)


def _inside(memory: Memory, places: list[Array], shape: tuple[int, ...]) -> tuple[tuple[Array, ...], Array]:
    inside = np.ones(shape, bool)
    for place, extent in zip(places, memory.data.shape, strict=True):
        inside &= (place >= 0) & (place < extent)
    return tuple(np.where(inside, p, 0).astype(np.int64) for p in places), inside


def _indexed(memory: Memory, indices: Any, mask: Value | None) -> tuple[tuple[Array, ...], Array]:
    parts = [p.data if isinstance(p, Value) else np.asarray(p) for p in _shape(indices)]
    shape = np.broadcast_shapes(*(p.shape for p in parts)) or (1,)
    places, inside = _inside(memory, [np.broadcast_to(p, shape) for p in parts], shape)
    return places, inside if mask is None else inside & mask.data


def load(
    source: Memory, offsets: Any = None, shape: Any = None, *, indices: Any = None, mask: Any = None,
    other: Any = None, layout: Any = None, cache: str = "", checked: Any = True,
) -> Value:  # fmt: skip
    if offsets is None and indices is None:
        return Value(source.data.copy(), source.dtype)
    if indices is not None:
        places, active = _indexed(source, indices, mask)
    else:
        places, active = _located(source, offsets, (1,) if shape is None else _shape(shape))
        active = active if mask is None else active & mask.data
    fill = 0 if other is None else other.data if isinstance(other, Value) else other
    made = Value(np.where(active, source.data[places], Value(fill, source.dtype).data), source.dtype)
    return made.item() if shape is None and indices is None else made


def store(
    target: Memory, value: Any, offsets: Any = None, *, indices: Any = None, mask: Any = None, cache: str = "",
    checked: Any = True,
) -> None:  # fmt: skip
    data = value.data if isinstance(value, Value) else np.asarray(value)
    if offsets is None and indices is None:
        target.data[...] = data
        return
    if indices is not None:
        places, active = _indexed(target, indices, mask)
    else:
        data = data.reshape(data.shape or (1,))
        places, active = _located(target, offsets, data.shape)
        active = active if mask is None else active & mask.data
    data = np.broadcast_to(data, active.shape)
    target.data[tuple(p[active] for p in places)] = data[active]


def _atomic(function: Any) -> Any:
    def apply(
        target: Memory, value: Any, offsets: Any = None, *, indices: Any = None, mask: Any = None, **_: Any
    ) -> Value:
        data = value.data if isinstance(value, Value) else np.asarray(value)
        if indices is not None:
            places, active = _indexed(target, indices, mask)
        else:
            places, active = _located(target, offsets, data.shape or (1,))
            active = active if mask is None else active & mask.data
        data = np.broadcast_to(data, active.shape)
        old = np.zeros(active.shape, target.data.dtype)
        for place in np.argwhere(active):
            at = tuple(p[tuple(place)] for p in places)
            old[tuple(place)] = target.data[at]
            target.data[at] = rounded(function(target.data[at], data[tuple(place)]), target.dtype)
        return Value(old, target.dtype)

    return apply


atomic_add, atomic_min, atomic_max, atomic_and, atomic_or, atomic_xor, atomic_exch = map(
    _atomic, (np.add, np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor, lambda a, b: b)
)


def copy_async(target: Memory, source: Memory, offsets: Any, *, cache: str = "", checked: Any = True) -> None:
    target.data[...] = load(source, offsets, target.shape).data


def copy_async_commit() -> None:
    pass


def copy_async_wait(pending: int = 0) -> None:
    pass


# The grid, loops, and functions.


@dataclass
class Launch:
    """The grid of the running launch and the block that runs."""

    extents: tuple[int, ...] = (1,)
    block: tuple[int, ...] = (0,)


class Machine:
    """Runs a kernel for each block of its grid; the functions below ask it where they are."""

    launch = Launch()


def run(kernel: Callable[..., Any], args: Sequence[Any]) -> None:
    """Run a kernel for all blocks, in order; it stores into its arguments."""
    Machine.launch = Launch()
    done: list[tuple[int, ...]] = []
    while True:
        with np.errstate(all="ignore"):
            kernel(*args)
        done.append(Machine.launch.block)
        grid = Machine.launch.extents
        blocks = [tuple(reversed(b)) for b in np.ndindex(*reversed(grid))]
        if len(done) == len(blocks):
            return
        Machine.launch.block = blocks[len(done)]


def grid(*extents: Any, warps: int = 4) -> None:
    Machine.launch.extents = tuple(int(e) for e in extents)
    if len(Machine.launch.block) != len(extents):
        Machine.launch.block = (0,) * len(extents)


def block_id(axis: int = 0) -> Value:
    return Value(Machine.launch.block[axis], int32)


def grid_dim(axis: int = 0) -> Value:
    return Value(Machine.launch.extents[axis], int32)


def cdiv(a: Any, b: Any) -> Any:
    return -(-a // b)


def sync() -> None:
    pass


@contextmanager
def warps(first: int, count: int) -> Iterator[None]:
    yield


def static_range(*bounds: int) -> Any:
    return builtins.range(*bounds)


def range(*bounds: Any) -> Any:
    """Return the scalars that a run-time loop counts."""
    return [Value(i, int32) for i in builtins.range(*map(int, bounds))]


def pipeline(loop: Any, *, stages: int) -> Any:
    return loop


def unroll(loop: Any, factor: int | None = None) -> Any:
    return loop


def inline(function: Any) -> Any:
    return function
