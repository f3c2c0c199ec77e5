"""The kernel behind `matmul`: one source for all dtypes, operand orders and epilogues, and for every target.

On sm_90a the compiler splits its pipelined loop into a TMA producer and wgmma consumers; elsewhere it becomes a
multi-stage pipeline of asynchronous copies with ldmatrix and mma.
"""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32


@tilus.kernel
def matmul_kernel(
    a: Tensor["dtype", "a_batch a_rows a_columns"],
    b: Tensor["b_dtype", "b_batch b_rows b_columns"],
    c: Tensor["out_dtype", "batch m n"],
    bias: Tensor["out_dtype", "bias_n"],
    residual: Tensor["out_dtype", "residual_batch residual_m residual_n"],
    a_scale: Tensor[float32, "scale_m"],
    b_scale: Tensor[float32, "scale_n"],
    alpha: float32,
    beta: float32,
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    acc_dtype: constexpr = float32,
    a_turned: constexpr = False,
    b_turned: constexpr = False,
    batched_b: constexpr = False,
    has_bias: constexpr = False,
    has_residual: constexpr = False,
    scales: constexpr = "",
    activation: constexpr = "",
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 32,
    stages: constexpr = 3,
    warps: constexpr = 4,
    group: constexpr = 8,
):
    """c = activation(alpha * a @ b + bias) + beta * residual; a turned operand is given as its transpose.

    The product has `scales` of its own for "rows" of a and columns of b, or for each "tensor", or none.
    """
    m, n = c.shape[1], c.shape[2]
    k = a.shape[1] if a_turned else a.shape[2]
    # A grid has many blocks along its first dimension only.
    tilus.grid(tilus.cdiv(m, block_m) * tilus.cdiv(n, block_n) * c.shape[0], warps=warps)
    # Blocks that run together work on `group` rows of tiles, so that they share operands in the cache.
    rows, columns = tilus.cdiv(m, block_m), tilus.cdiv(n, block_n)
    batch, number = tilus.block_id() // (rows * columns), tilus.block_id() % (rows * columns)
    first = number // (group * columns) * group
    height = tilus.min(rows - first, group)
    within = number % (group * columns)
    row = (first + within % height) * block_m
    column = within // height * block_n
    b_index = batch if batched_b else 0
    acc = tilus.zeros((block_m, block_n), acc_dtype)
    for k0 in tilus.pipeline(range(0, k, block_k), stages=stages):
        if a_turned:
            sa = tilus.shared(dtype, (block_k, block_m))
            tilus.copy_async(sa, a, (batch, k0, row))
            left = tilus.load(sa.transpose())
        else:
            sa = tilus.shared(dtype, (block_m, block_k))
            tilus.copy_async(sa, a, (batch, row, k0))
            left = tilus.load(sa)
        if b_turned:
            sb = tilus.shared(b_dtype, (block_n, block_k))
            tilus.copy_async(sb, b, (b_index, column, k0))
            right = tilus.load(sb.transpose())
        else:
            sb = tilus.shared(b_dtype, (block_k, block_n))
            tilus.copy_async(sb, b, (b_index, k0, column))
            right = tilus.load(sb)
        acc = tilus.dot(left, right, acc)
    out = finish(
        acc, bias, residual, a_scale, b_scale, alpha, beta, batch, row, column,
        out_dtype, has_bias, has_residual, scales, activation,
    )  # fmt: skip
    tilus.store(c, out, (batch, row, column))


@tilus.inline
def finish(
    acc, bias, residual, a_scale, b_scale, alpha, beta, batch, row, column,
    out_dtype, has_bias, has_residual, scales, activation, layout=None, more=None,
):  # fmt: skip
    """Return the results for a tile of sums of products, in a layout, that lies at a row and a column.

    `more` is the residual's tile where it has been loaded.
    """
    if out_dtype == int32:
        return acc
    height, width = acc.shape
    out = tilus.cast(acc, float32) * alpha
    if scales == "tensor":
        out = out * (tilus.load(a_scale, 0) * tilus.load(b_scale, 0))
    elif scales == "rows":
        out = out * tilus.load(a_scale, row, height)[:, None] * tilus.load(b_scale, column, width)[None, :]
    if has_bias:
        out = out + tilus.cast(tilus.load(bias, column, width), float32)[None, :]
    out = activate(out, activation)
    if has_residual:
        if more is None:
            more = tilus.load(residual, (batch, row, column), (height, width), layout=layout)
        out = out + tilus.cast(more, float32) * beta
    return tilus.cast(out, out_dtype)


@tilus.inline
def activate(x, activation):
    """Apply an activation by name."""
    if activation == "relu":
        return tilus.maximum(x, 0.0)
    if activation == "gelu":
        return 0.5 * x * (1.0 + tilus.erf(x * 0.7071067811865476))
    if activation == "silu":
        # A true division is a call of a function, which wgmma does not go with.
        return x * tilus.rcp(1.0 + tilus.exp(-x), fast=True)
    return x
