"""Matrix descriptors as other compilers make them: the constants are of Triton 3.9's PTX for the same operands."""

from __future__ import annotations

import re

import pytest
import torch

import tilus
from tilus import Tensor, constexpr, float8_e4m3, float16, float32, int8, int32


@tilus.kernel
def product(
    a: Tensor["dtype", "a0 a1"],
    b: Tensor["dtype", "b0 b1"],
    c: Tensor["acc", "m n"],
    *,
    dtype: constexpr,
    acc: constexpr,
    block: constexpr,
    a_major: constexpr,
    b_major: constexpr,
):
    """The product of operands that lie along k or along m and n."""
    m, n = c.shape
    bm, bn, bk = block
    tilus.grid(tilus.cdiv(m, bm), tilus.cdiv(n, bn), warps=4)
    i, j = tilus.block_id(0) * bm, tilus.block_id(1) * bn
    total = tilus.zeros((bm, bn), acc)
    for at in tilus.pipeline(range(0, a.shape[1] if a_major == "k" else a.shape[0], bk), stages=3):
        sa = tilus.shared(dtype, (bm, bk) if a_major == "k" else (bk, bm))
        sb = tilus.shared(dtype, (bn, bk) if b_major == "k" else (bk, bn))
        tilus.copy_async(sa, a, (i, at) if a_major == "k" else (at, i))
        tilus.copy_async(sb, b, (j, at) if b_major == "k" else (at, j))
        left = sa if a_major == "k" else sa.transpose()
        right = sb.transpose() if b_major == "k" else sb
        total = tilus.dot(tilus.load(left), tilus.load(right), total)
    tilus.store(c, total, (i, j))


# Upper words: the swizzle's mode from bit 30 on, and the stride of groups of 8 rows in units of 16 bytes.
SPAN_128, SPAN_64, SPAN_32 = 0x40000040, 0x80000020, 0xC0000010


@pytest.mark.parametrize(
    ("dtype", "acc", "block", "a_major", "b_major", "upper"),
    [
        (float16, float32, (64, 64, 64), "k", "k", {SPAN_128}),
        (float16, float32, (64, 64, 64), "mn", "mn", {SPAN_128}),
        (float16, float32, (128, 128, 32), "k", "mn", {SPAN_64, SPAN_128}),
        (float16, float32, (64, 32, 64), "k", "mn", {SPAN_128, SPAN_64}),
        (float16, float32, (64, 16, 64), "k", "mn", {SPAN_128, SPAN_32}),
        (float16, float32, (64, 64, 16), "mn", "k", {SPAN_128, SPAN_32}),
        (float8_e4m3, float32, (64, 64, 64), "k", "k", {SPAN_64}),
        (int8, int32, (64, 64, 128), "k", "k", {SPAN_128}),
    ],
    ids=str,
)
def test_swizzle_stride_and_transposition_are_those_of_another_compiler(
    dtype, acc, block, a_major, b_major, upper
) -> None:
    ptx = compiled(dtype, acc, block, a_major, b_major)
    found = {int(x) >> 32 & 0xFFFFFFFF for x in re.findall(r"or\.b64\s+%rd\d+, %rd\d+, (-?\d+);", ptx)}
    assert found == upper
    flags = set(re.findall(r"wgmma\.mma_async[^;]*more((?:, \d)*);", ptx))
    if dtype is float16:
        assert flags == {f", 1, 1, {int(a_major == 'mn')}, {int(b_major == 'mn')}"}
    else:
        assert flags == {", 1, 1" if dtype is float8_e4m3 else ""}


@pytest.mark.parametrize(("columns", "rows"), [(128, 64), (256, 64), (192, 64)])
def test_the_leading_offset_is_that_of_another_compiler(columns: int, rows: int) -> None:
    """From one span of columns to the next lie all rows of k; a step along k goes over 16 of them."""
    ptx = compiled(float16, float32, (64, columns, rows), "k", "mn")
    leading = rows * 128 // 16 << 16
    starts = {int(x) for x in re.findall(r"add\.s32\s+%r\d+, %r\d+, (\d+);", ptx)}
    assert {leading + step * 16 * 128 // 16 for step in range(rows // 16)} <= starts


def compiled(dtype, acc, block, a_major: str, b_major: str) -> str:
    """Return the PTX for Hopper."""
    store = {float16: torch.float16, float8_e4m3: torch.float8_e4m3fn, int8: torch.int8}[dtype]
    a, b = torch.zeros(256, 256, dtype=store), torch.zeros(256, 256, dtype=store)
    c = torch.zeros(256, 256, dtype=torch.int32 if acc is int32 else torch.float32)
    made = product.compile(
        a, b, c, target="sm_90a", dtype=dtype, acc=acc, block=block, a_major=a_major, b_major=b_major
    )
    return made.ptx
