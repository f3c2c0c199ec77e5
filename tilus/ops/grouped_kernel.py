"""The kernels behind grouped products: each block of rows is multiplied with the matrix of its own expert.

Who owns a block, or how many rows an expert has, is read on the device: the grid covers what there may be at most, and
blocks of which nothing is used run no step and store nothing. Their order is that of `tilus.ops.grouped_tiles`.
"""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float16, float32, int32, uint8
from tilus.ops.grouped_tiles import GroupedTiles, tile_of
from tilus.ops.matmul_kernel import activate
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_parts import (
    by_column,
    collected,
    decoded,
    finished,
    own_rows,
    product,
    scaled,
    scales_of,
    stored,
)


@tilus.inline
def rescaled(out, a_scale, b_scale, batch, row, expert, column, a_scales, b_scales):
    """Multiply a tile that lies at a row and a column with the scales of its rows and of its expert."""
    height, width = out.shape
    if a_scales == "rows":
        out = out * tilus.load(a_scale, (batch, row), height)[:, None]
    elif a_scales == "tensor":
        out = out * tilus.load(a_scale, (0, 0))
    if b_scales == "columns":
        out = out * tilus.load(b_scale, (expert, column), width)[None, :]
    elif b_scales == "experts":
        out = out * tilus.load(b_scale, (expert, 0))
    return out


@tilus.kernel
def grouped_matmul_kernel(
    a: Tensor["dtype", "groups rows k"],
    b: Tensor["b_dtype", "experts b_rows b_columns"],
    bias: Tensor["out_dtype", "bias_experts bias_n"],
    a_scale: Tensor[float32, "scale_groups scale_rows"],
    b_scale: Tensor[float32, "scale_experts scale_n"],
    experts: Tensor[int32, "owners"],
    c: Tensor["out_dtype", "groups rows n"],
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    acc_dtype: constexpr = float32,
    native: constexpr = True,
    b_turned: constexpr = False,
    masked: constexpr = False,
    has_bias: constexpr = False,
    a_scales: constexpr = "",
    b_scales: constexpr = "",
    activation: constexpr = "",
    block: constexpr = 64,
    block_m: constexpr = 64,
    block_n: constexpr = 128,
    block_k: constexpr = 64,
    stages: constexpr = 3,
    warps: constexpr = 4,
):
    """c[g, r] = activation(a[g, r] @ b[expert of row r of group g] + bias of that expert).

    The product is multiplied with `a_scales` of the "tensor" or its "rows", and with `b_scales` of "experts" or of
    their "columns". Tensor cores that have no float8 (not `native`) get it as float16, which is exact.
    """
    groups, rows, k = a.shape
    n = c.shape[2]
    tilus.grid(tilus.cdiv(rows, block_m) * tilus.cdiv(n, block_n) * groups, warps=warps)
    how = GroupedTiles(block_m, block_n, block, masked)
    batch, row, column, expert, used = tile_of(experts, rows, n, how)
    end = k if used else 0
    acc = tilus.zeros((block_m, block_n), acc_dtype)
    for k0 in tilus.pipeline(range(0, end, block_k), stages=stages):
        sa = tilus.shared(dtype, (block_m, block_k))
        tilus.copy_async(sa, a, (batch, row, k0))
        left = tilus.load(sa)
        if b_turned:
            sb = tilus.shared(b_dtype, (block_n, block_k))
            tilus.copy_async(sb, b, (expert, column, k0))
            right = tilus.load(sb.transpose())
        else:
            sb = tilus.shared(b_dtype, (block_k, block_n))
            tilus.copy_async(sb, b, (expert, k0, column))
            right = tilus.load(sb)
        if not native:
            left, right = left.to(float16), right.to(float16)
        acc = tilus.dot(left, right, acc)
    if used:
        out = tilus.cast(acc, float32)
        out = rescaled(out, a_scale, b_scale, batch, row, expert, column, a_scales, b_scales)
        if has_bias:
            out = out + tilus.cast(tilus.load(bias, (expert, column), (1, block_n)), float32)
        tilus.store(c, tilus.cast(activate(out, activation), out_dtype), (batch, row, column))


@tilus.kernel
def grouped_quantized_kernel(
    a: Tensor["a_dtype", "groups rows k"],
    b: Tensor[uint8, "experts k_units n_units unit_bytes"],
    scale: Tensor["s_dtype", "experts scale_groups n_padded"],
    zero: Tensor["a_dtype", "zero_experts zero_groups zero_n"],
    alpha: Tensor[float32, "experts"],
    bias: Tensor["a_dtype", "bias_experts bias_n"],
    experts: Tensor[int32, "owners"],
    c: Tensor["a_dtype", "groups rows n_out"],
    n: int32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    s_dtype: constexpr,
    group: constexpr,
    has_zero: constexpr,
    exponent: constexpr = 0,
    s_exponent: constexpr = 0,
    masked: constexpr = False,
    has_bias: constexpr = False,
    activation: constexpr = "",
    gated: constexpr = False,
    block: constexpr = 16,
    swap: constexpr = False,
    block_m: constexpr = 16,
    block_n: constexpr = 128,
    stages: constexpr = 3,
    warps: constexpr = 4,
):
    """The same with quantised weights, (b - zero) * scale * alpha of each expert."""
    groups, rows, k = a.shape
    tilus.grid(tilus.cdiv(rows, block_m) * tilus.cdiv(n, block_n) * groups, warps=warps)
    how = GroupedTiles(block_m, block_n, block, masked)
    batch, row, column, expert, used = tile_of(experts, rows, n, how)
    end = k if used else 0
    scales_deep = tilus.max(UNIT_K // group, 1)
    acc = tilus.zeros((block_n, block_m) if swap else (block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, end, UNIT_K), stages=stages):
        sa = tilus.shared(a_dtype, (block_m, UNIT_K))
        sb = tilus.shared(uint8, (1, block_n // UNIT_N, unit_bytes(b_dtype.bits)))
        ss = tilus.shared(s_dtype, (scales_deep, block_n))
        tilus.copy_async(sa, a, (batch, row, k0))
        tilus.copy_async(sb, b, (expert, k0 // UNIT_K, column // UNIT_N, 0), cache="streaming")
        tilus.copy_async(ss, scale, (expert, k0 // group, column))
        weight = decoded(sb, b_dtype, a_dtype, exponent, block_n, warps, 1)
        scales = scales_of(ss, a_dtype, exponent - s_exponent, 1)
        if has_zero:
            sz = tilus.shared(a_dtype, (scales_deep, block_n))
            tilus.copy_async(sz, zero, (expert, k0 // group, column))
            weight = scaled(weight, scales, by_column(tilus.load(sz), 1), True, exponent)
        else:
            weight = scaled(weight, scales, scales, False, exponent)
        acc = product(own_rows(sa, block_m, warps, 1, swap), weight, acc, swap)
    if used:
        total = collected(acc, 1, swap) * (tilus.load(alpha, expert) * 2.0**s_exponent)
        if has_bias:
            total = total + tilus.cast(tilus.load(bias, (expert, column), (1, block_n)), float32)
        out = finished(total, c, column, False, activation, gated)
        stored(c, out, batch, row, column // 2 if gated else column, warps, 1)
