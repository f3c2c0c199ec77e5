"""Packing, unpacking and quantising of weights on their own device, by kernels."""

from __future__ import annotations

import torch

from tilus import dtypes
from tilus.dtypes import DType
from tilus.ops.packing_kernel import pack_kernel, quantize_kernel, unpack_kernel
from tilus.ops.prepack import UNIT_K, UNIT_N, padded, unit_bytes

WEIGHTS = {
    torch.float16: dtypes.float16,
    torch.bfloat16: dtypes.bfloat16,
    torch.float32: dtypes.float32,
}


def _units(k: int, n: int, dtype: DType, device: torch.device) -> torch.Tensor:
    kp, np_ = padded(k, n)
    return torch.empty(
        (kp // UNIT_K, np_ // UNIT_N, unit_bytes(dtype.bits)), dtype=torch.uint8, device=device
    )


def pack_codes(codes: torch.Tensor, dtype: DType, operand: DType) -> torch.Tensor:
    """Lay out codes as the kernels read them: `tilus.ops.prepack.pack_weight` as a kernel.

    Parameters
    ----------
    codes : Tensor of uint8, shape (k, n)
        Codes of `dtype`.
    dtype : DType
        Of 1 to 8 bits.
    operand : DType
        What kernels cast codes to; see `tilus.ops.weights.operand_type`.

    Returns
    -------
    Tensor of uint8, shape (k / 128, n / 32, 512 * bits), rounded up
    """
    k, n = codes.shape
    packed = _units(k, n, dtype, codes.device)
    if codes.numel():
        pack_kernel(codes.contiguous(), packed, b_dtype=dtype, operand=operand)
    return packed


def unpack_codes(packed: torch.Tensor, dtype: DType, k: int, n: int, operand: DType) -> torch.Tensor:
    """Return the codes of a packed weight, as uint8 of shape (k, n): the inverse of `pack_codes`."""
    codes = torch.empty((k, n), dtype=torch.uint8, device=packed.device)
    if codes.numel():
        unpack_kernel(packed, codes, b_dtype=dtype, operand=operand)
    return codes


def quantize_codes(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: DType,
    group: int,
    operand: DType,
    seed: int | None = None,
) -> torch.Tensor:
    """Return the packed codes nearest to ``weight / scale + zero``.

    Parameters
    ----------
    weight : Tensor of float16, bfloat16 or float32, shape (k, n)
    scale : Tensor of float32, shape (groups, n)
        Positive.
    zero : Tensor of float32 or None
        Of the scale's shape.
    dtype, operand : DType
        As for `pack_codes`.
    group : int
        Elements along k that share a scale.
    seed : int, optional
        To round at random instead, right on average.
    """
    k, n = weight.shape
    packed = _units(k, n, dtype, weight.device)
    if weight.numel():
        shift = torch.zeros_like(scale) if zero is None else zero
        quantize_kernel(
            weight.contiguous(), scale.contiguous(), shift.contiguous(), packed, 0 if seed is None else seed,
            dtype_of_weight=WEIGHTS[weight.dtype], b_dtype=dtype, operand=operand,
            group=UNIT_K if k <= group < UNIT_K else group, stochastic=seed is not None,
        )  # fmt: skip
    return packed
