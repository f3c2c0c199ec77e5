"""Layouts are inferred from what is said, products, memory and shapes; differing wishes become conversions."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus import dtypes, simulator
from tilus.codegen import compile_kernel
from tilus.codegen.compiler import prepare
from tilus.codegen.target import target
from tilus.dtypes import float16, float32, int32, uint3, uint4, uint8
from tilus.errors import LayoutConflict
from tilus.ir import Kernel, Operation, RegisterType, ops, walk
from tilus.lang import KernelSource, Tensor, constexpr
from tilus.layout import parse


def found(kernel: Kernel, kind: type[Operation]) -> list[Operation]:
    """Return the operations of a kind after layout inference."""
    return [op for op in walk(prepare(kernel, target("sm_80")).body) if isinstance(op, kind)]


def vectors(kernel: Kernel, kind: type[Operation]) -> set[int]:
    """Return the runs of elements along the last dimension that loads have in a thread."""
    out = set()
    for op in found(kernel, kind):
        type = (op.result if isinstance(op, ops.LoadGlobal) else op.value).type
        assert isinstance(type, RegisterType)
        out.add(type.layout.local_digits[-1].size if type.layout.local_digits else 1)
    return out


def scaled(a: Tensor[float16, "m n"], bias: Tensor[float16, "n"], out: Tensor[float16, "m n"]):
    tilus.grid(1, warps=4)
    x = tilus.load(a, (0, 0), (64, 64))
    tilus.store(out, x * 2.0 + tilus.load(bias, 0, 64)[None, :], (0, 0))


def test_elementwise_kernels_need_no_conversion_and_move_16_bytes():
    kernel = d.trace(scaled, d.random(float16, 64, 64), d.random(float16, 64), np.zeros((64, 64), np.float16))
    assert not found(kernel, ops.ConvertLayout)
    assert vectors(kernel, ops.StoreGlobal) == {8}


def said(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], *, first: constexpr, second: constexpr):
    tilus.grid(1, warps=1)
    x = tilus.load(a, (0, 0), (16, 16), layout=first)
    y = tilus.exp(x) * 2.0
    y = tilus.annotate_layout(y, second)
    tilus.store(out, y - 1.0, (0, 0))


def test_what_the_user_says_is_kept_and_met_by_one_conversion():
    first, second = parse("spatial(8, 4).local(2, 4)"), parse("spatial(4, 8).local(4, 2)")
    a = d.random(float32, 16, 16)
    kernel = d.trace(said, a, np.zeros_like(a), first=first, second=second)
    (load,) = found(kernel, ops.LoadGlobal)
    assert load.result.type.layout == first
    assert second in [op.layout for op in found(kernel, ops.ConvertLayout)]
    d.run(said, a, np.zeros_like(a), first=first, second=second, rtol=1e-5, atol=1e-5)
    same = d.trace(said, a, np.zeros_like(a), first=first, second=first)
    assert not found(same, ops.ConvertLayout)


def product(a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], out: Tensor[float16, "m n"]):
    tilus.grid(1, warps=4)
    s, t = tilus.shared(float16, (64, 64)), tilus.shared(float16, (64, 64))
    tilus.store(s, tilus.load(a, (0, 0), (64, 64)))
    tilus.store(t, tilus.load(b, (0, 0), (64, 64)))
    acc = tilus.zeros((64, 64))
    for _ in range(3):
        acc = tilus.dot(tilus.load(s) * 0.5, tilus.load(t), acc)
    tilus.store(out, tilus.where(acc > 0.0, acc, acc * 0.1).to(float16), (0, 0))


def test_operands_of_products_are_loaded_as_the_instruction_wants_them():
    args = d.random(float16, 64, 64), d.random(float16, 64, 64), np.zeros((64, 64), np.float16)
    kernel = d.trace(product, *args)
    dot = next(iter(found(kernel, ops.Dot)))
    shared = found(kernel, ops.LoadShared)
    assert {op.result.type.layout for op in shared} == {dot.a.type.layout, dot.b.type.layout}
    # None in the loop; one at most on the way out, for wide stores.
    loop = next(op for op in walk(prepare(kernel, target("sm_80")).body) if isinstance(op, ops.For))
    assert not [op for op in walk(loop.body) if isinstance(op, ops.ConvertLayout)]
    d.run(product, *args, rtol=2e-3, atol=2e-3)


def row_sums(a: Tensor[float32, "m n"], out: Tensor[float32, "m"]):
    tilus.grid(1, warps=4)
    tilus.store(out, tilus.sum(tilus.load(a, (0, 0), (32, 128)), 1), 0)


def test_a_reduction_leaves_the_wide_load_alone():
    kernel = d.trace(row_sums, d.random(float32, 32, 128), np.zeros(32, np.float32))
    assert vectors(kernel, ops.LoadGlobal) == {4}


def too_many(a: Tensor[float32, "m n"], *, layout: constexpr):
    tilus.grid(1, warps=1)
    with tilus.warps(0, 1):
        tilus.store(a, tilus.load(a, (0, 0), (16, 16), layout=layout), (0, 0))


def test_a_layout_of_other_threads_than_the_group_has_is_refused():
    with pytest.raises(LayoutConflict, match="layout of 64 threads in a group of 32"):
        prepare(
            d.trace(too_many, d.random(float32, 16, 16), layout=parse("spatial(8, 8).local(2, 2)")),
            target("sm_80"),
        )


def viewed(a: Tensor[uint8, "n"], out: Tensor[int32, "m"], *, layout: constexpr):
    tilus.grid(1, warps=1)
    x = tilus.load(a, 0, 128, layout=parse("spatial(32).local(4)"))
    tilus.store(out, tilus.view(x, tilus.uint4, layout=layout).to(int32), 0)


def test_a_view_must_keep_each_threads_bits():
    a = np.random.default_rng(0).integers(0, 256, 128).astype(np.uint8)
    made = d.run(viewed, a, np.zeros(256, np.int32), layout=parse("spatial(32).local(8)"))
    np.testing.assert_array_equal(made.arrays[1], np.stack([a & 15, a >> 4], 1).reshape(-1))
    wider = d.trace(viewed, a, np.zeros(512, np.int32), layout=parse("spatial(32).local(16)"))
    with pytest.raises(LayoutConflict, match="the bits of a thread must be as many"):
        compile_kernel(wider, "sm_80", assemble=False)


def held_twice(
    a: Tensor[uint8, "8 16"], met: Tensor[uint8, "8 16"], words: Tensor[int32, "32 1"], *,
    first: constexpr, second: constexpr, by_load: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=1)
    if by_load:
        x = tilus.load(a, (0, 0), (8, 16), layout=first)
        y = tilus.load(a, (0, 0), (8, 16), layout=second)
    else:
        whole = tilus.load(a, (0, 0), (8, 16))
        x, y = tilus.annotate_layout(whole, first), tilus.annotate_layout(whole, second)
    tilus.store(met, x ^ y, (0, 0))
    tilus.store(words, tilus.view(y, int32, layout=parse("spatial(32, 1)")), (0, 0))


@pytest.mark.parametrize("by_load", [False, True])
def test_a_view_sees_the_layout_that_was_said_where_another_use_wants_another(by_load):
    first, second = parse("spatial(8, 4).local(1, 4)"), parse("column_spatial(8, 4).local(1, 4)")
    a = np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.uint8)
    made = d.run(
        held_twice,
        a,
        np.zeros_like(a),
        np.zeros((32, 1), np.int32),
        first=first,
        second=second,
        by_load=by_load,
    )
    expected = np.array([[a[second.index(t, e)] for e in range(4)] for t in range(32)]).view(np.int32)
    np.testing.assert_array_equal(made.arrays[2], expected)


def rows_seen(
    a: Tensor["source", "24 24"], out: Tensor[int32, "m n"], *,
    source: constexpr, dest: constexpr, layout: constexpr, turned: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=4)
    x = tilus.load(a, (0, 0), (24, 24), layout=layout)
    tilus.store(out, tilus.view(x.T if turned else x, dest).to(int32), (0, 0))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", [None, "column_spatial(8, 8).local(3, 3)", "spatial(1, 8).local(24, 3)"])
@pytest.mark.parametrize(
    ("source", "dest"), [(int32, uint8), (uint8, int32), (uint8, uint4), (uint8, uint3)], ids=str
)
def test_without_a_layout_a_view_sees_the_bits_of_each_row(source, dest, layout, turned):
    a = np.random.default_rng(1).integers(-100, 100, (24, 24)).astype(source.numpy)
    codes = np.ascontiguousarray(a.T if turned else a).view(np.uint8)
    count = codes.shape[1] * 8 // dest.bits
    expected = dtypes.decode(dtypes.unpack(codes, dest, count), dest).astype(np.int32)
    said = parse(layout).with_replication(128 // parse(layout).threads) if layout else None
    out = np.zeros(expected.shape, np.int32)
    made = d.run(rows_seen, a, out, source=source, dest=dest, layout=said, turned=turned)
    np.testing.assert_array_equal(made.arrays[1], expected)


def other_shape(a: Tensor[uint8, "6 20"], out: Tensor[int32, "5 6"]):
    tilus.grid(1, warps=1)
    x = tilus.load(a, (0, 0), (6, 20))
    tilus.store(out, tilus.view(x, int32, (5, 6)), (0, 0))


def test_a_view_of_another_shape_keeps_the_order_of_bits():
    a = np.random.default_rng(1).integers(0, 256, (6, 20)).astype(np.uint8)
    made = d.run(other_shape, a, np.zeros((5, 6), np.int32))
    np.testing.assert_array_equal(made.arrays[1], a.view(np.int32).reshape(5, 6))


def masked(
    a: Tensor[float32, "32 32"], out: Tensor[float32, "32 32"], *, first: constexpr, second: constexpr
):
    tilus.grid(1, warps=1)
    x = tilus.load(a, (0, 0), (32, 32), layout=first)
    tilus.store(out, tilus.load(a, (0, 0), (32, 32), layout=second, mask=x > 0.0), (0, 0))


def test_a_mask_comes_to_the_layout_that_a_load_says():
    a = d.random(float32, 32, 32)
    made = d.run(
        masked, a, np.zeros_like(a), first=parse("spatial(8, 4).local(4, 8)"), second=parse("spatial(32, 1).local(1, 32)")
    )  # fmt: skip
    np.testing.assert_array_equal(made.arrays[1], np.maximum(a, 0))


def nibbles(
    a: Tensor[int32, "m n"], q: Tensor["narrow", "16 24"], out: Tensor[int32, "m n"], *, narrow: constexpr
):
    tilus.grid(1, warps=4)
    x = tilus.cumsum(tilus.load(a, (0, 0), (16, 24)), 0)
    s = tilus.shared(narrow, (16, 24))
    tilus.store(s, x.to(narrow))
    tilus.store(q, tilus.load(s), (0, 0))
    tilus.sync()
    tilus.store(out, x + tilus.load(q, (0, 0), (16, 24)).to(int32), (0, 0))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_elements_of_less_than_a_byte_move_in_whole_bytes_whatever_the_other_uses_want(bits):
    # Along a column each thread holds single elements.
    a = np.random.default_rng(1).integers(0, 100, (16, 24)).astype(np.int32)
    total = np.cumsum(a, 0, dtype=np.int32)
    codes = (total & (2**bits - 1)).astype(np.uint8)
    narrow = {"narrow": dtypes.dtype(f"uint{bits}")}
    source = KernelSource(nibbles)
    kernel = source.trace(narrow, source.default_types(narrow))
    q, out = np.zeros((16, 24 * bits // 8), np.uint8), np.zeros_like(a)
    compiled = compile_kernel(kernel, "sm_80", assemble=False)
    report = simulator.load(compiled.ptx)[compiled.name].launch(
        1, compiled.threads, [a, q, out, *d.symbols(kernel, [a, a, out])], shared_bytes=compiled.shared_bytes
    )
    report.raise_if_hazards()
    np.testing.assert_array_equal(dtypes.unpack(q, f"uint{bits}", 24), codes)
    np.testing.assert_array_equal(out, total + codes)


def turning(a: Tensor[int32, "7 7"], out: Tensor[int32, "7 7"], n: int32):
    tilus.grid(1, warps=8)
    x = tilus.load(a, (0, 0), (7, 7))
    for _ in range(n):
        x = tilus.reshape(x.T, (7, 7))
    tilus.store(out, x, (0, 0))


def test_a_transposed_tile_that_every_thread_holds_comes_back_in_its_own_order():
    a = d.random(int32, 7, 7)
    for n in (0, 1, 2):
        np.testing.assert_array_equal(d.run(turning, a, np.zeros_like(a), n).arrays[1], a.T if n % 2 else a)
