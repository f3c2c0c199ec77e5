"""The kernel behind `quantized_matmul`: one source for every weight type."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, uint8
from tilus.ops.prepack import UNIT_K, UNIT_N, byte_layout, code_layout, unit_bytes


@tilus.kernel
def quantized_matmul_kernel(
    a: Tensor["a_dtype", "m k"],
    b: Tensor[uint8, "k_units n_units unit_bytes"],
    scale: Tensor["a_dtype", "groups n_padded"],
    zero: Tensor["a_dtype", "groups n_padded"],
    c: Tensor["c_dtype", "splits m n"],
    alpha: float32,
    *,
    a_dtype: constexpr,
    b_dtype: constexpr,
    c_dtype: constexpr,
    group: constexpr,
    has_zero: constexpr,
    block_m: constexpr = 16,
    block_n: constexpr = 128,
    block_k: constexpr = 128,
    stages: constexpr = 3,
    warps: constexpr = 4,
):
    """c = alpha * a @ ((b - zero) * scale), the weight's codes b decoded in registers.

    Each index of c's first dimension is the sum over a part of k of its own.
    """
    m, k = a.shape
    splits, n = c.shape[0], c.shape[2]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), splits, warps=warps)
    bi, bj, part = tilus.block_id()
    # Parts are whole steps of block_k.
    length = tilus.cdiv(tilus.cdiv(k, block_k), splits) * block_k
    first = part * length
    row, column = bi * block_m, bj * block_n
    bits = b_dtype.bits
    groups = tilus.max(block_k // group, 1)
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(first, tilus.min(first + length, k), block_k), stages=stages):
        sa = tilus.shared(a_dtype, (block_m, block_k))
        sb = tilus.shared(uint8, (block_k // UNIT_K, block_n // UNIT_N, unit_bytes(bits)))
        ss = tilus.shared(a_dtype, (groups, block_n))
        tilus.copy_async(sa, a, (row, k0))
        tilus.copy_async(sb, b, (k0 // UNIT_K, column // UNIT_N, 0), cache="streaming")
        tilus.copy_async(ss, scale, (k0 // group, column))
        codes = tilus.load(sb, layout=byte_layout(block_k, block_n, bits, warps))
        low = tilus.view(codes, b_dtype, (block_k, block_n), layout=code_layout(block_k, block_n, warps))
        weight = tilus.cast(low, a_dtype, arranged=True)
        if has_zero:
            sz = tilus.shared(a_dtype, (groups, block_n))
            tilus.copy_async(sz, zero, (k0 // group, column))
            weight = weight - spread(tilus.load(sz), block_k, block_n)
        weight = weight * spread(tilus.load(ss), block_k, block_n)
        acc = tilus.dot(tilus.load(sa), weight, acc)
    tilus.store(c, tilus.cast(acc * alpha, c_dtype), (part, row, column))


@tilus.inline
def spread(rows, block_k, block_n):
    """Repeat each row of a tile of per-group values so that there is one for each k."""
    groups = rows.shape[0]
    if groups == 1:
        return rows
    wide = tilus.broadcast_to(rows[:, None, :], (groups, block_k // groups, block_n))
    return tilus.reshape(wide, (block_k, block_n))


@tilus.kernel
def sum_parts_kernel(
    parts: Tensor[float32, "splits size"],
    out: Tensor["dtype", "size"],
    *,
    dtype: constexpr,
    block: constexpr = 1024,
):
    """Add the parts in their order, so that the result is the same each time."""
    splits, size = parts.shape
    tilus.grid(tilus.cdiv(size, block), warps=4)
    at = tilus.block_id(0) * block
    total = tilus.zeros((block,), float32)
    for part in range(splits):
        total = total + tilus.load(parts, (part, at), (block,))
    tilus.store(out, tilus.cast(total, dtype), at)
