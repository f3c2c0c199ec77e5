"""The kernel behind `quantize_tokens`: rows to 8 bits with a scale for each row, or for each 128 elements of it."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32


@tilus.kernel
def quantize_tokens_kernel(
    x: Tensor["dtype", "m k"],
    values: Tensor["q_dtype", "m k"],
    scale: Tensor[float32, "blocks m_padded"],
    *,
    dtype: constexpr,
    q_dtype: constexpr,
    by_block: constexpr,
    block: constexpr = 1024,
    warps: constexpr = 4,
):
    """values = x / scale, rounded to nearest."""
    m, k = x.shape
    row = tilus.block_id(0)
    tilus.grid(m, warps=warps)
    largest = 0.0
    if not by_block:
        top = tilus.zeros(block, float32)
        for start in range(0, k, block):
            top = tilus.maximum(top, tilus.abs(tilus.cast(tilus.load(x, (row, start), (block,)), float32)))
        largest = tilus.max(top)
    for start in range(0, k, block):
        part = tilus.cast(tilus.load(x, (row, start), (block,)), float32)
        if by_block:
            blocks = tilus.reshape(part, (block // 128, 128))
            factor = scale_of(tilus.max(tilus.abs(blocks), axis=1), q_dtype)
            tilus.store(scale, factor[:, None], (start // 128, row))
            wide = tilus.broadcast_to(factor[:, None], (block // 128, 128))
            part = part / tilus.reshape(wide, (block,))
        else:
            part = part / scale_of(largest, q_dtype)
        tilus.store(values, to_code(part, q_dtype), (row, start))
    if not by_block:
        tilus.store(scale, scale_of(largest, q_dtype), (0, row))


@tilus.inline
def scale_of(largest, q_dtype):
    """Return what values are divided by so that the largest one gets the type's largest value."""
    scale = largest * (1.0 / (127.0 if q_dtype.is_integer else 448.0))
    # That of denormals may be zero, as that of zeros is; that of a row with a NaN is NaN.
    return tilus.where(scale == 0.0, 1.0, scale)


@tilus.inline
def to_code(x, q_dtype):
    """Round to nearest, saturating."""
    if q_dtype.is_integer:
        return tilus.cast(tilus.maximum(tilus.round(x), -127.0), q_dtype)
    return tilus.cast(x, q_dtype)
