"""Layouts are inferred from what is said, products, memory and shapes; differing wishes become conversions."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen import compile_kernel
from tilus.codegen.compiler import prepare
from tilus.codegen.target import target
from tilus.dtypes import float16, float32, int32, uint8
from tilus.errors import LayoutConflict
from tilus.ir import Kernel, Operation, RegisterType, ops, walk
from tilus.lang import Tensor, constexpr
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
