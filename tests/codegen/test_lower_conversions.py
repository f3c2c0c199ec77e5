"""Layout conversions by registers, shuffles and shared memory, between any two layouts and for elements of any width."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.codegen import differential as d
from tests.codegen.random_layouts import layouts, shapes
from tilus.dtypes import DType, boolean, int64
from tilus.dtypes import dtype as find_dtype
from tilus.ir import Builder, GlobalType, Kernel, Value, make_region, ops, walk
from tilus.layout import RegisterLayout, parse
from tilus.passes.shared_memory import conversion_plan

DTYPES = (
    "boolean", "uint1", "int2", "uint3", "int4", "uint5", "int6", "uint7", "int8", "uint8", "int16", "uint16", "float16",
    "bfloat16", "int32", "float32", "int64", "float64",
)  # fmt: skip


def converting(steps: list[tuple[RegisterLayout, ...]], dtypes: list[DType], warps: int) -> Kernel:
    """Return a kernel that sends a tile of each dtype through a list of layouts."""
    b = Builder()
    shape = steps[0].shape
    size = prod(shape)
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    source = Value(GlobalType(int64, shape, strides, 16), "a")
    targets = [Value(GlobalType(int64, shape, strides, 16), f"out{i}") for i in range(len(dtypes))]
    with b.region() as grid:
        one = b.constant(1)
        b.emit(ops.Yield, (one, one, one))
    with b.region() as body:
        zeros = (b.constant(0),) * len(shape)
        for dtype, target in zip(dtypes, targets, strict=True):
            tile = b.emit(
                ops.LoadGlobal, source, zeros, shape=shape, checked=(True,) * len(shape), layout=steps[0]
            ).result
            if dtype is boolean:
                one_tile = b.emit(ops.Splat, b.constant(1, int64), shape).result
                tile = b.emit(
                    ops.Compare, "eq", b.emit(ops.Binary, "and", tile, one_tile).result, one_tile
                ).result
            else:
                tile = b.emit(ops.Cast, tile, dtype).result
            for layout in steps[1:]:
                tile = b.emit(ops.ConvertLayout, tile, layout).result
            b.emit(
                ops.StoreGlobal,
                target,
                b.emit(ops.Cast, tile, int64).result,
                zeros,
                checked=(True,) * len(shape),
            )
        b.emit(ops.Return)
    assert size
    return Kernel("converting", (source, *targets), make_region((), grid), make_region((), body), warps)


def convert(steps: list[RegisterLayout], names: list[str], warps: int) -> d.Outcome:
    """Send random codes through layouts, which must come back as they were."""
    dtypes = [find_dtype(name) for name in names]
    a = np.random.default_rng(0).integers(0, 128, steps[0].shape)
    kernel = converting(steps, dtypes, warps)
    return d.run_kernel(kernel, a, *(np.full_like(a, -1) for _ in dtypes))


def plans(made: d.Outcome) -> list[str]:
    """Return how the conversions of a kernel are made."""
    return [
        conversion_plan(op).kind
        for op in walk(made.compiled.kernel.body)
        if isinstance(op, ops.ConvertLayout)
    ]


@st.composite
def routes(draw: st.DrawFn) -> tuple[list[RegisterLayout], list[str], int]:
    warps = draw(st.sampled_from((1, 1, 2, 3, 4, 8)))
    shape = draw(shapes(most=2048))
    steps = [draw(layouts(shape, 32 * warps)) for _ in range(3)]
    return steps, draw(st.lists(st.sampled_from(DTYPES), min_size=2, max_size=2)), warps


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(routes())
def test_any_layout_becomes_any_other(route):
    convert(*route)


@pytest.mark.parametrize(
    ("source", "target", "warps", "kind"),
    [
        ("spatial(8, 4).local(1, 4)", "spatial(4, 8).local(2, 2)", 1, "shuffle"),
        ("spatial(8, 4).local(2, 2)", "column_spatial(8, 4).local(2, 2)", 1, "shuffle"),
        ("spatial(8, 4).local(2, 8)", "column_spatial(8, 4).local(2, 8)", 1, "shuffle"),
        ("spatial(8, 8).local(2, 2)", "column_spatial(8, 8).local(2, 2)", 2, "shared"),
        ("spatial(8, 4).local(3, 5)", "spatial(8, 4).column_local(3, 5)", 1, "registers"),
    ],
)
def test_the_cheapest_way_is_taken_for_every_width(source, target, warps, kind):
    made = convert([parse(source), parse(target)], list(DTYPES), warps)
    assert plans(made).count(kind) == len(DTYPES)
    barriers = made.count("barrier") + made.count("bar.sync")
    assert (barriers > 0) == (kind == "shared")


def test_neighbours_share_a_shuffle():
    source, target = parse("spatial(8, 4).local(1, 8)"), parse("column_spatial(8, 4).local(1, 8)")
    # Eight elements of each thread: the words in which they lie.
    for name, shuffles in (("uint4", 1), ("uint8", 2), ("float16", 4), ("float32", 8), ("float64", 16)):
        made = convert([source, target], [name], 1)
        assert made.count("shfl.sync") == shuffles, name
