"""Tensors whose fastest dimension is not the last, such as a transposed weight: copied and loaded along it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import DType, float8_e4m3, float16, float32
from tilus.lang import Tensor, constexpr
from tilus.layout import column_major
from tilus.runtime.kernel import kernel as kernel_of

COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\d+)")


def product(
    a: Tensor["dtype", "m k"], b: Tensor["dtype", "k n"], c: Tensor[float32, "m n"], *, dtype: constexpr,
):  # fmt: skip
    m, n = c.shape
    tilus.grid(tilus.cdiv(m, 64), tilus.cdiv(n, 64), warps=4)
    i, j = tilus.block_id(0) * 64, tilus.block_id(1) * 64
    acc = tilus.zeros((64, 64))
    for k0 in tilus.pipeline(range(0, a.shape[1], 64), stages=3):
        sa, sb = tilus.shared(dtype, (64, 64)), tilus.shared(dtype, (64, 64))
        tilus.copy_async(sa, a, (i, k0))
        tilus.copy_async(sb, b, (k0, j))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb), acc)
    tilus.store(c, acc, (i, j))


def operands(dtype: DType, turned_a: bool, turned_b: bool) -> list[Any]:
    """Return ragged operands, the turned ones as the transpose of a row-major array."""
    m, n, k = 80, 112, 144
    a = d.random(dtype, k, m).T if turned_a else d.random(dtype, m, k)
    b = d.random(dtype, n, k, seed=1).T if turned_b else d.random(dtype, k, n, seed=1)
    return [a, b, np.zeros((m, n), np.float32)]


@pytest.mark.parametrize("turned", [(False, True), (True, False), (True, True)])
def test_copies_of_transposed_tensors_move_16_bytes(turned):
    made = d.run(product, *operands(float16, *turned), dtype=float16, rtol=1e-3, atol=1e-3)
    assert {int(size) for size in COPY.findall(made.ptx)} == {16}
    assert "st.shared" not in made.ptx
    # What lies along k in shared memory needs no transposition on the way to registers, and the rest does.
    assert (".trans.shared" in made.ptx) == (turned != (False, True))


@pytest.mark.parametrize("turned", [(False, True), (True, False), (True, True)])
def test_on_hopper_they_are_copied_by_tma_and_multiplied_where_they_lie(turned, monkeypatch):
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_90a")
    a, b, c = map(torch.from_numpy, operands(float16, *turned))
    kernel = kernel_of(product)
    compiled = kernel.compile(a, b, c, target="sm_90a", dtype=float16)
    flags = re.findall(r"wgmma\.mma_async[^;]*more, 1, 1, (\d), (\d);", compiled.ptx)
    assert set(flags) == {(str(int(turned[0])), str(int(not turned[1])))}
    assert "cp.async.cg" not in compiled.ptx
    # The rows of a box are the contiguous dimension.
    axes = [made.axes for made in compiled.tensor_maps]
    assert axes == [(0, 1) if turned[0] else (1, 0), (0, 1) if turned[1] else (1, 0)]
    kernel(a, b, c, dtype=float16)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-3, atol=1e-3)


def test_float8_is_multiplied_by_wgmma_if_it_lies_along_k():
    kernel = d.trace(product, *operands(float8_e4m3, False, True), dtype=float8_e4m3)
    assert (
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3"
        in d.compile_kernel(kernel, "sm_90a", assemble=False).ptx
    )
    kernel = d.trace(product, *operands(float8_e4m3, False, False), dtype=float8_e4m3)
    assert "wgmma" not in d.compile_kernel(kernel, "sm_90a", assemble=False).ptx


def columns(a: Tensor[float16, "m n"], out: Tensor[float16, "m n"], *, height: constexpr, width: constexpr):
    tilus.grid(1, warps=1)
    s = tilus.shared(float16, (height, width), layout=column_major(height, width))
    tilus.copy_async(s, a, (0, 0))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    tilus.store(out, tilus.load(s), (0, 0))


@pytest.mark.parametrize("shape", [(8, 256), (2, 64), (32, 32)])
def test_rows_are_copied_right_into_columns_of_shared_memory(shape):
    """A thread's rows may be neighbours in shared memory while its columns are neighbours in the tensor."""
    a = d.random(float16, *shape)
    made = d.run(columns, a, np.zeros_like(a), height=shape[0], width=shape[1])
    assert not COPY.findall(made.ptx)


def test_columns_are_copied_whole_into_columns_of_shared_memory():
    a = d.random(float16, 32, 64).T
    made = d.run(columns, a, np.zeros((64, 32), np.float16), height=64, width=32)
    assert {int(size) for size in COPY.findall(made.ptx)} == {16}
