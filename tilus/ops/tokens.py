"""`quantize_tokens`: activations of 8 bits with a scale for each row, made on the device in one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from tilus import dtypes
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked
from tilus.ops.gradients import operator
from tilus.ops.library import LIBRARY
from tilus.ops.token_kernel import quantize_tokens_kernel

ACTIVATIONS = {
    torch.float16: dtypes.float16,
    torch.bfloat16: dtypes.bfloat16,
    torch.float32: dtypes.float32,
}
CODES = {torch.int8: dtypes.int8, torch.float8_e4m3fn: dtypes.float8_e4m3}
BLOCK = 128
ALIGN = 16
"""Rows of scales are filled up to a multiple of this, so that copies of them move 16 bytes at a time."""


@dataclass(frozen=True, eq=False)
class QuantizedTokens:
    """Activations of 8 bits.

    Attributes
    ----------
    values : Tensor of int8 or float8_e4m3fn, shape (m, k)
    scale : Tensor of float32, shape (1 or k / 128 rounded up, m rounded up to a multiple of 16)
        What values are multiplied with: of each row, or of each 128 elements of it. Contiguous.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where they are of other types or shapes.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def __post_init__(self) -> None:
        values, scale = self.values, self.scale
        if values.dtype not in CODES or scale.dtype != torch.float32:
            raise TypeMismatch(
                f"tokens have values of {values.dtype} and scales of {scale.dtype}",
                hint="values of int8 or float8_e4m3fn, and scales of float32",
            )
        if values.ndim != 2:
            raise ShapeMismatch(
                f"tokens have values of shape {tuple(values.shape)}, expected (m, k)",
                hint="values.reshape(-1, k)",
            )
        m, k = values.shape
        shapes = [(blocks, -(-m // ALIGN) * ALIGN) for blocks in (1, -(-k // BLOCK))]
        if tuple(scale.shape) not in shapes or not scale.is_contiguous():
            raise ShapeMismatch(
                f"scales are of shape {tuple(scale.shape)} and strides {scale.stride()}, expected {shapes[0]} or "
                f"{shapes[1]}, contiguous, for {m} x {k} values",
                hint="torch.nn.functional.pad(scale, (0, -m % 16))",
            )

    def dequantize(self) -> torch.Tensor:
        """Return the float64 values, shape (m, k)."""
        m, k = self.values.shape
        if self.scale.shape[0] == 1:
            factors = self.scale[0, :m, None]
        else:
            factors = self.scale[:, :m].t().repeat_interleave(BLOCK, dim=1)[:, :k]
        return self.values.to(torch.float64) * factors.to(torch.float64)


LIBRARY.define(
    "quantize_tokens(Tensor x, ScalarType dtype, bool by_block) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@checked
def quantize_tokens(
    x: torch.Tensor, dtype: torch.dtype = torch.int8, *, by_block: bool = False
) -> QuantizedTokens:
    """Round activations to 8 bits, the largest of each row (or block) to the type's largest value.

    Parameters
    ----------
    x : Tensor of float16, bfloat16 or float32, shape (..., k)
        Leading dimensions become one.
    dtype : torch.dtype
        int8 or float8_e4m3fn.
    by_block : bool
        Whether each 128 elements of a row have a scale, or each row.

    Returns
    -------
    QuantizedTokens
        Of elements among which is a NaN the scale is NaN.
    """
    if x.dtype not in ACTIVATIONS or dtype not in CODES:
        raise TypeMismatch(
            f"quantize_tokens of {x.dtype} to {dtype}",
            hint="float16, bfloat16 or float32 to int8 or float8_e4m3fn",
        )
    if x.ndim == 0:
        raise ShapeMismatch("quantize_tokens of a tensor without dimensions", hint="shape (..., k)")
    values, scale = operator("quantize_tokens", x)(x, dtype, by_block)
    return QuantizedTokens(values, scale)


def _shapes(x: torch.Tensor, by_block: bool) -> tuple[int, int, tuple[int, int]]:
    k = x.shape[-1]
    m = prod(x.shape[:-1])
    return m, k, (-(-k // BLOCK) if by_block else 1, -(-m // ALIGN) * ALIGN)


def _run(x: torch.Tensor, dtype: torch.dtype, by_block: bool) -> tuple[torch.Tensor, torch.Tensor]:
    m, k, scales = _shapes(x, by_block)
    rows = x.reshape(m, k)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    values = torch.empty((m, k), dtype=dtype, device=x.device)
    scale = torch.zeros(scales, dtype=torch.float32, device=x.device)
    if m and k:
        quantize_tokens_kernel(
            rows, values, scale, dtype=ACTIVATIONS[x.dtype], q_dtype=CODES[dtype], by_block=by_block
        )
    return values, scale


def _fake(x: torch.Tensor, dtype: torch.dtype, by_block: bool) -> tuple[torch.Tensor, torch.Tensor]:
    m, k, scales = _shapes(x, by_block)
    return x.new_empty((m, k), dtype=dtype), x.new_empty(scales, dtype=torch.float32)


LIBRARY.impl("quantize_tokens", _run, "CPU")
LIBRARY.impl("quantize_tokens", _run, "CUDA")
torch.library.register_fake("tilus::quantize_tokens", _fake, lib=LIBRARY)
