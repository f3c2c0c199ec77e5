"""The kernels behind `quantized_matmul`: one source for every weight type, for activations of 16 and of 8 bits."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32, uint8
from tilus.ops.prepack import UNIT_K, UNIT_N, sum_layout, unit_bytes
from tilus.ops.quantized_parts import (
    across,
    by_column,
    by_row,
    collected,
    decoded,
    finished,
    halved,
    own_rows,
    product,
    row_sums,
    scaled,
    stored,
)


@tilus.kernel
def quantized_matmul_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units n_units unit_bytes"],
    scale: Tensor["a_dtype", "groups n_padded"],
    zero: Tensor["a_dtype", "groups n_padded"],
    bias: Tensor["a_dtype", "bias_n"],
    c: Tensor["c_dtype", "splits m n_out"],
    alpha: float32,
    n: tilus.int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    c_dtype: constexpr,
    group: constexpr,
    has_zero: constexpr,
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
):
    """c = activation(alpha * a @ ((b - zero) * scale) + bias), the weight's codes b decoded in registers.

    Each index of c's first dimension is the sum over a part of k of its own. With `swap` the weights are the first
    operand of the tensor core, whose rows are more than the second one's columns: that is for few rows of a.
    """
    m, k = a.shape
    splits = c.shape[0]
    block_k = deep * UNIT_K
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), splits, warps=warps)
    bi, bj, part = tilus.block_id()
    # Parts are whole steps of block_k.
    length = tilus.cdiv(tilus.cdiv(k, block_k), splits) * block_k
    first = part * length
    row, column = bi * block_m, bj * block_n
    groups = tilus.max(block_k // group, 1)
    shape = (deep * block_n, block_m) if swap else (block_m, deep * block_n)
    acc = tilus.zeros(shape, float32)
    for k0 in tilus.pipeline(range(first, tilus.min(first + length, k), block_k), stages=stages):
        sa = tilus.shared(a_dtype, (block_m, block_k))
        sb = tilus.shared(uint8, (deep, block_n // UNIT_N, unit_bytes(b_dtype.bits)))
        ss = tilus.shared(a_dtype, (groups, block_n))
        tilus.copy_async(sa, a, (row, k0))
        tilus.copy_async(sb, b, (k0 // UNIT_K, column // UNIT_N, 0), cache="streaming")
        tilus.copy_async(ss, scale, (k0 // group, column))
        weight = decoded(sb, b_dtype, a_dtype, exponent, block_n, warps, deep)
        scales = by_column(tilus.load(ss), deep)
        if has_zero:
            sz = tilus.shared(a_dtype, (groups, block_n))
            tilus.copy_async(sz, zero, (k0 // group, column))
            weight = scaled(weight, scales, by_column(tilus.load(sz), deep), True, exponent)
        else:
            weight = scaled(weight, scales, scales, False, exponent)
        acc = product(own_rows(sa, block_m, warps, deep, swap), weight, acc, swap)
    total = collected(acc, deep, swap) * alpha
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
    b: Tensor[uint8, "k_units n_units unit_bytes"],
    scale: Tensor["s_dtype", "groups n_padded"],
    zero: Tensor["s_dtype", "groups n_padded"],
    row_scale: Tensor[float32, "scale_rows m_padded"],
    bias: Tensor["s_dtype", "bias_n"],
    c: Tensor["c_dtype", "splits m n_out"],
    alpha: float32,
    n: tilus.int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    w_dtype: constexpr,
    s_dtype: constexpr,
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
):
    """`quantized_matmul_kernel` with scales that multiply sums of products instead of weights.

    That is the only way with activations of 8 bits, which weights become too, and with few rows the cheaper one: there
    are fewer sums than weights. Sums over `span` elements of k have a scale of their own; a span of 0 is all of k.
    `row_scale` has a row for each 128 elements of k with `by_block`, else one. Zero points are taken off with
    ``sum(a * (b - zero)) = sum(a * b) - zero * sum(a)``.
    """
    m, k = a.shape
    splits = c.shape[0]
    block_k = deep * UNIT_K
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), splits, warps=warps)
    bi, bj, part = tilus.block_id()
    length = tilus.cdiv(tilus.cdiv(k, block_k), splits) * block_k
    first = part * length
    row, column = bi * block_m, bj * block_n
    groups = tilus.max(block_k // group, 1)
    sum_dtype = int32 if a_dtype.is_integer else float32
    shape = (deep * block_n, block_m) if swap else (block_m, deep * block_n)
    sum_shape = (1, block_m) if swap else (block_m, 1)
    acc = tilus.zeros(shape, float32 if span else sum_dtype)
    total_sums = tilus.zeros(sum_shape, float32, layout=sum_layout(block_m, warps, swap))
    for k0 in tilus.pipeline(range(first, tilus.min(first + length, k), block_k), stages=stages):
        sa = tilus.shared(a_dtype, (block_m, block_k))
        sb = tilus.shared(uint8, (deep, block_n // UNIT_N, unit_bytes(b_dtype.bits)))
        tilus.copy_async(sa, a, (row, k0))
        tilus.copy_async(sb, b, (k0 // UNIT_K, column // UNIT_N, 0), cache="streaming")
        weight = decoded(sb, b_dtype, w_dtype, exponent, block_n, warps, deep)
        rows = own_rows(sa, block_m, warps, deep, swap, halves)
        if halves:
            rows, weight = halved(rows, weight, swap, warps)
        if span:
            ss = tilus.shared(s_dtype, (groups, block_n))
            tilus.copy_async(ss, scale, (k0 // group, column))
            scales = tilus.cast(by_column(tilus.load(ss), deep), float32)
            if has_zero:
                sz = tilus.shared(s_dtype, (groups, block_n))
                tilus.copy_async(sz, zero, (k0 // group, column))
                zeros = tilus.cast(by_column(tilus.load(sz), deep), float32) * 2.0**-exponent
            if by_block:
                sr = tilus.shared(float32, (deep, block_m))
                tilus.copy_async(sr, row_scale, (k0 // UNIT_K, row))
                factors = by_row(tilus.load(sr), deep, block_n, swap)
            for p in tilus.static_range(UNIT_K // span):
                own = rows[p * span : (p + 1) * span, :] if swap else rows[:, p * span : (p + 1) * span]
                codes = weight[p * span : (p + 1) * span, :]
                value = tilus.cast(product(own, codes, tilus.zeros(shape, sum_dtype), swap), float32)
                of_group = p if group < UNIT_K else 0
                if has_zero:
                    value = value - across(zeros, of_group, swap) * row_sums(own, sum_dtype, swap, warps)
                if by_block:
                    value = value * factors
                acc = acc + value * across(scales, of_group, swap)
        else:
            acc = product(rows, weight, acc, swap)
            if has_zero:
                total_sums = total_sums + row_sums(rows, sum_dtype, swap, warps)
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
