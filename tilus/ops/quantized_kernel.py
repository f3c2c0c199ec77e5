"""The kernels behind `quantized_matmul`: one source for every weight type, for activations of 16 and of 8 bits."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, uint8
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_parts import across, by_column, collected, finished, stored
from tilus.ops.quantized_sums import sums_over


@tilus.kernel
def quantized_matmul_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units rows row"],
    scale: Tensor["s_dtype", "groups n_padded"],
    zero: Tensor["a_dtype", "zero_groups zero_n"],
    bias: Tensor["a_dtype", "bias_n"],
    c: Tensor["c_dtype", "splits m n_out"],
    alpha: float32,
    n: tilus.int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    s_dtype: constexpr,
    c_dtype: constexpr,
    group: constexpr,
    has_zero: constexpr,
    exponent: constexpr = 0,
    s_exponent: constexpr = 0,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    swap: constexpr = False,
    deep: constexpr = 1,
    block_m: constexpr = 16,
    block_n: constexpr = 128,
    stages: constexpr = 3,
    warps: constexpr = 4,
    bulk: constexpr = False,
):
    """c = activation(alpha * a @ ((b - zero) * scale) + bias), the weight's codes b decoded in registers.

    Scales are read over 2**s_exponent, which multiplies sums instead (`tilus.ops.scales`). Each index of c's first
    dimension is the sum over a part of k of its own. With `swap` the weights are the first operand of the tensor core,
    whose rows are more than the second one's columns: that is for few rows of a.
    """
    m, k = a.shape
    splits = c.shape[0]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), splits, warps=warps)
    bi, bj, part = tilus.block_id()
    # Parts are whole steps of `deep` units of k.
    steps = tilus.cdiv(k, deep * UNIT_K)
    length = tilus.cdiv(steps, splits)
    row, column = bi * block_m, bj * block_n
    acc, _ = sums_over(
        a, b, scale, zero, None, row, column, part * length, tilus.min(part * length + length, steps),
        b_dtype=b_dtype, w_dtype=a_dtype, s_dtype=s_dtype, group=group, span=UNIT_K, has_zero=has_zero, late=False,
        by_block=False, halves=False, exponent=exponent, s_exponent=s_exponent, swap=swap, deep=deep, block_m=block_m,
        block_n=block_n, stages=stages, warps=warps, bulk=bulk,
    )  # fmt: skip
    total = collected(acc, deep, swap) * (alpha * 2.0**s_exponent)
    out = finished(total, bias, column, has_bias, activation, gated)
    stored(c, out, part, row, column // 2 if gated else column, warps, deep)


@tilus.kernel
def sum_parts_kernel(
    parts: Tensor[float32, "splits m n"],
    bias: Tensor["dtype", "bias_n"],
    out: Tensor["dtype", "m n_out"],
    *,
    dtype: constexpr,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    block: constexpr = 512,
):
    """Add the parts in their order, so that the result is the same each time, and finish it."""
    splits, m, n = parts.shape
    tilus.grid(tilus.cdiv(n, block), m, warps=4)
    column, row = tilus.block_id(0) * block, tilus.block_id(1)
    total = tilus.zeros((1, block), float32)
    for part in range(splits):
        total = total + tilus.load(parts, (part, row, column), (1, block))
    made = finished(total, bias, column, has_bias, activation, gated)
    tilus.store(out, tilus.cast(made, dtype), (row, column // 2 if gated else column))


@tilus.kernel
def quantized_sums_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units rows row"],
    scale: Tensor["s_dtype", "groups n_padded"],
    zero: Tensor["out_dtype", "zero_groups zero_n"],
    row_scale: Tensor[float32, "scale_rows m_padded"],
    bias: Tensor["out_dtype", "bias_n"],
    c: Tensor["c_dtype", "splits m n_out"],
    alpha: float32,
    n: tilus.int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    w_dtype: constexpr,
    s_dtype: constexpr,
    out_dtype: constexpr,
    c_dtype: constexpr,
    group: constexpr,
    span: constexpr,
    has_zero: constexpr,
    has_row_scale: constexpr = False,
    by_block: constexpr = False,
    halves: constexpr = False,
    exponent: constexpr = 0,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    swap: constexpr = False,
    deep: constexpr = 1,
    block_m: constexpr = 16,
    block_n: constexpr = 128,
    stages: constexpr = 3,
    warps: constexpr = 4,
    bulk: constexpr = False,
):
    """`quantized_matmul_kernel` with scales that multiply sums of products instead of weights.

    That is the only way with activations of 8 bits, which weights become too, and with few rows the cheaper one: there
    are fewer sums than weights. Sums over `span` elements of k have a scale of their own; a span of 0 is all of k.
    `row_scale` has a row for each 128 elements of k with `by_block`, else one. Zero points are taken off with
    ``sum(a * (b - zero)) = sum(a * b) - zero * sum(a)``.
    """
    m, k = a.shape
    splits = c.shape[0]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), splits, warps=warps)
    bi, bj, part = tilus.block_id()
    # Parts are whole steps of `deep` units of k.
    steps = tilus.cdiv(k, deep * UNIT_K)
    length = tilus.cdiv(steps, splits)
    row, column = bi * block_m, bj * block_n
    acc, total_sums = sums_over(
        a, b, scale, zero, row_scale, row, column, part * length, tilus.min(part * length + length, steps),
        b_dtype=b_dtype, w_dtype=w_dtype, s_dtype=s_dtype, group=group, span=span, has_zero=has_zero, late=True,
        by_block=by_block, halves=halves, exponent=exponent, s_exponent=0, swap=swap, deep=deep, block_m=block_m,
        block_n=block_n, stages=stages, warps=warps, bulk=bulk,
    )  # fmt: skip
    total = tilus.cast(acc, float32)
    if has_zero and not span:
        zeros = tilus.cast(by_column(tilus.load(zero, (0, column), (1, block_n)), deep), float32)
        total = total - across(zeros, 0, swap) * 2.0**-exponent * total_sums
    total = collected(total, deep, swap) * (alpha * 2.0**exponent)
    if not span:
        total = total * tilus.cast(tilus.load(scale, (0, column), (1, block_n)), float32)
    if has_row_scale and not by_block:
        total = total * tilus.transpose(tilus.load(row_scale, (0, row), (1, block_m)))
    out = finished(total, bias, column, has_bias, activation, gated)
    stored(c, out, part, row, column // 2 if gated else column, warps, deep)
