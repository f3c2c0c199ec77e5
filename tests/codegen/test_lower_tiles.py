"""Operations that make tiles and change their shapes, in any layout."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilus.lang as tilus
from tests.codegen import differential as d
from tests.codegen.random_layouts import layouts, prime_factors, shapes
from tilus.dtypes import (
    DType,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint4,
    uint8,
    uint16,
    uint64,
)
from tilus.ir import Builder, GlobalType, Kernel, Value, make_region, ops
from tilus.lang import Tensor, constexpr
from tilus.layout import parse

DTYPES = (uint4, int8, int16, int32, int64, float16)


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@st.composite
def chains(draw: st.DrawFn) -> tuple[Kernel, tuple[int, ...], tuple[int, ...]]:
    """A kernel that sends a tile through changes of its shape, with layouts said here and there."""
    warps = draw(st.sampled_from((1, 2, 3, 4)))
    dtype: DType = draw(st.sampled_from(DTYPES))
    shape = draw(shapes(ranks=(1, 3), most=512))
    start = shape
    b = Builder()
    source = Value(GlobalType(int64, shape, strides_of(shape), 16), "a")
    with b.region() as grid:
        one = b.constant(1)
        b.emit(ops.Yield, (one, one, one))
    with b.region() as body:
        zeros = (b.constant(0),) * len(shape)
        layout = draw(layouts(shape, 32 * warps)) if draw(st.booleans()) else None
        tile = b.emit(
            ops.LoadGlobal, source, zeros, shape=shape, checked=(True,) * len(shape), layout=layout
        ).result
        tile = b.emit(ops.Cast, tile, dtype).result
        older = [tile]
        for _ in range(draw(st.integers(1, 5))):
            rank = len(shape)
            kinds = ["transpose", "reshape", "concat", "slice", "layout", "unary"]
            if rank < 4:
                kinds.append("expand")
            if rank > 1 and 1 in shape:
                kinds += ["squeeze", "broadcast"]
            if any(t.type.shape == shape for t in older):
                kinds.append("binary")
            kind = draw(st.sampled_from(kinds))
            if kind == "transpose":
                tile = b.emit(ops.Transpose, tile, tuple(draw(st.permutations(range(rank))))).result
            elif kind == "reshape":
                extents = [1] * draw(st.integers(1, 3))
                for factor in draw(st.permutations(prime_factors(prod(shape)))):
                    extents[draw(st.integers(0, len(extents) - 1))] *= factor
                tile = b.emit(ops.Reshape, tile, tuple(extents)).result
            elif kind == "concat" and prod(shape) <= 512:
                other = draw(st.sampled_from([t for t in older if t.type.shape == shape] or [tile]))
                tile = b.emit(
                    ops.Concat, (tile, other, tile)[: draw(st.integers(2, 3))], draw(st.integers(0, rank - 1))
                ).result
            elif kind == "slice":
                sizes = tuple(
                    draw(st.sampled_from([n for n in range(1, e + 1) if e % n == 0])) for e in shape
                )
                offsets = tuple(
                    n * draw(st.integers(0, e // n - 1)) for e, n in zip(shape, sizes, strict=True)
                )
                tile = b.emit(ops.SliceTile, tile, offsets, sizes).result
            elif kind == "layout":
                tile = b.emit(ops.AnnotateLayout, tile, draw(layouts(shape, 32 * warps))).result
            elif kind == "expand":
                tile = b.emit(ops.ExpandDims, tile, draw(st.integers(0, rank))).result
            elif kind == "squeeze":
                tile = b.emit(
                    ops.Squeeze, tile, draw(st.sampled_from([i for i, n in enumerate(shape) if n == 1]))
                ).result
            elif kind == "broadcast":
                wide = tuple(draw(st.sampled_from((1, 2, 3, 8))) if n == 1 else n for n in shape)
                if prod(wide) <= 1024:
                    tile = b.emit(ops.Broadcast, tile, wide).result
            elif kind == "binary":
                other = draw(st.sampled_from([t for t in older if t.type.shape == shape]))
                tile = b.emit(ops.Binary, "add", tile, other).result
            elif kind == "unary":
                tile = b.emit(ops.Binary, "add", tile, tile).result
            shape = tile.type.shape
            older.append(tile)
        target = Value(GlobalType(int64, shape, strides_of(shape), 16), "out")
        zeros = (b.constant(0),) * len(shape)
        b.emit(
            ops.StoreGlobal, target, b.emit(ops.Cast, tile, int64).result, zeros, checked=(True,) * len(shape)
        )
        b.emit(ops.Return)
    kernel = Kernel("chain", (source, target), make_region((), grid), make_region((), body), warps)
    return kernel, start, shape


@settings(max_examples=70, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(chains())
def test_any_chain_of_shapes_in_any_layout(chain):
    kernel, start, end = chain
    a = np.random.default_rng(2).integers(0, 8, start)
    d.run_kernel(kernel, a, np.full(end, -1, np.int64))


def made(
    out: Tensor["dtype", "k m n"], ramp: Tensor["dtype", "w"], fill: int32, *, dtype: constexpr, warps: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    one = tilus.cast(fill, dtype)
    tilus.store(out, tilus.full((6, 10), one), (0, 0, 0))
    tilus.store(out, tilus.registers(dtype, (6, 10), fill=3), (1, 0, 0))
    tilus.store(out, tilus.zeros((6, 10), dtype), (2, 0, 0))
    tilus.store(out, tilus.iota((6, 10), 0).to(dtype), (3, 0, 0))
    tilus.store(out, tilus.iota((6, 10), 1).to(dtype), (4, 0, 0))
    tilus.store(ramp, tilus.arange(3, 43).to(dtype), 0)


@pytest.mark.parametrize("dtype", [int8, int16, uint16, int64, uint64, float16, float64], ids=str)
def test_tiles_made_of_numbers(dtype):
    arrays = [np.full((5, 6, 10), 99, dtype.numpy), np.full(40, 99, dtype.numpy)]
    got = d.run(made, *arrays, 7, dtype=dtype, warps=3)
    np.testing.assert_array_equal(got.arrays[1], np.arange(3, 43))
    np.testing.assert_array_equal(got.arrays[0][4], np.broadcast_to(np.arange(10), (6, 10)))


def outer(
    a: Tensor[float32, "m"],
    b: Tensor[float32, "n"],
    out: Tensor[float32, "m n"],
    turned: Tensor[float32, "n m"],
):
    tilus.grid(1, warps=2)
    x, y = tilus.load(a, 0, 24), tilus.load(b, 0, 40)
    z = x[:, None] * y[None, :] + x[:, None] - y
    tilus.store(out, z, (0, 0))
    tilus.store(turned, z.T, (0, 0))


def test_broadcasting_and_transposition_as_numpy_has_them():
    a, b = d.random(float32, 24), d.random(float32, 40, seed=1)
    got = d.run(
        outer, a, b, np.zeros((24, 40), np.float32), np.zeros((40, 24), np.float32), rtol=1e-6, atol=1e-6
    )
    expected = np.multiply.outer(a.astype(float), b) + a[:, None] - b
    np.testing.assert_allclose(got.arrays[2], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.arrays[3], got.arrays[2].T)


def looked_up(a: Tensor[uint8, "n"], out: Tensor[float32, "n"], *, table: constexpr):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.lookup(table, tilus.load(a, 0, 96), float32), 0)


@pytest.mark.parametrize("size", [2, 5, 16, 37])
def test_a_table_of_any_size(size):
    table = tuple(float(x) for x in np.random.default_rng(size).standard_normal(size).astype(np.float32))
    a = np.random.default_rng(0).integers(0, size, 96).astype(np.uint8)
    got = d.run(looked_up, a, np.zeros(96, np.float32), table=table)
    np.testing.assert_array_equal(got.arrays[1], np.array(table, np.float32)[a])


def differing(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    x = tilus.load(a, (0, 0), (16, 16), layout=parse("spatial(8, 4).replicated(2).local(2, 4)"))
    y = tilus.load(a, (0, 0), (16, 16), layout=parse("spatial(4, 16).local(4, 1)"))
    tilus.store(out, x + 2 * y, (0, 0))


def test_tiles_in_layouts_that_differ_meet_through_a_conversion():
    a = d.random(float32, 16, 16)
    d.run(differing, a, np.zeros_like(a), rtol=1e-6)


def reshaped(a: Tensor[float32, "m n"], out: Tensor[float32, "p q"]):
    tilus.grid(1, warps=4)
    tilus.store(out, tilus.reshape(tilus.load(a, (0, 0), (48, 80)), (80, 48)) * 2.0, (0, 0))


def test_a_reshape_between_extents_with_few_common_factors():
    a = d.random(float32, 48, 80)
    got = d.run(reshaped, a, np.zeros((80, 48), np.float32))
    np.testing.assert_array_equal(got.arrays[1], a.reshape(80, 48) * 2)
