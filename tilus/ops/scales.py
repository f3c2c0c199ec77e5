"""Scales of quantised weights: their types, how values are kept in them, and what kernels can multiply with exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tilus import dtypes
from tilus.dtypes import DType, decode, encode
from tilus.errors import TypeMismatch

SCALES = (torch.float16, torch.bfloat16)
BYTES = {torch.int8: dtypes.int8, torch.float8_e4m3fn: dtypes.float8_e4m3}
"""Activations of 8 bits."""
STORED = (dtypes.float8_e4m3, dtypes.float8_e8m0)
"""Scales of 8 bits: the block scales of NVFP4, and those of MXFP4, MXFP6 and MXFP8."""


def stored_type(scale_dtype: torch.dtype | DType | str) -> DType | None:
    """Return the type of scales that are kept as codes of 8 bits, None for float16 and bfloat16."""
    try:
        found = dtypes.dtype(scale_dtype)
    except (TypeError, ValueError):
        found = None
    if found in STORED:
        return found
    if found in (dtypes.float16, dtypes.bfloat16):
        return None
    raise TypeMismatch(f"scales are float16, bfloat16, float8_e8m0 or float8_e4m3, not {scale_dtype}")


def result_type(
    scale_dtype: torch.dtype | DType | str, activations: torch.dtype | None, out_dtype: torch.dtype | None
) -> torch.dtype:
    """Return the type of results: that of scales of 16 bits; else what is asked for, the activations', or bfloat16."""
    if stored_type(scale_dtype) is None:
        made = torch.float16 if dtypes.dtype(scale_dtype) == dtypes.float16 else torch.bfloat16
        said, hint = f"scales of {made}", f"scales of {activations}, or activations of 8 bits"
        if out_dtype not in (None, made):
            raise TypeMismatch(
                f"results of {out_dtype} do not go with {said}",
                hint="leave out_dtype out: it is for scales of 8 bits",
            )
    else:
        made = out_dtype or (activations if activations in SCALES else None) or torch.bfloat16
        said, hint = f"results of {made}", f"out_dtype={activations}, or activations of 8 bits"
        if made not in SCALES:
            raise TypeMismatch(f"results are float16 or bfloat16, not {made}")
    if activations in SCALES and activations != made:
        raise TypeMismatch(f"activations of {activations} do not go with {said}", hint=hint)
    return made


def scale_values(scale: torch.Tensor, scale_type: DType | None) -> np.ndarray[Any, Any]:
    """Return scales, or the values of their codes, in float64."""
    if scale_type is None:
        return scale.detach().cpu().to(torch.float64).numpy()
    return decode(scale.detach().cpu().numpy(), scale_type).astype(np.float64)


def kernel_scale(scale: torch.Tensor, scale_type: DType | None) -> torch.Tensor:
    """Return scales as kernels take them: codes of float8_e4m3 as a tensor of that type."""
    return scale.view(torch.float8_e4m3fn) if scale_type == dtypes.float8_e4m3 else scale


def scale_exponent(scale_type: DType | None, dtype: DType, activations: torch.dtype) -> int:
    """Return the power of two by which kernels divide scales as they read them, to multiply sums with it instead.

    Then no value times its scale leaves the type of activations of 16 bits: 448 is the largest float8_e4m3. Other
    scales are below `highest_scale` as they are stored.
    """
    if scale_type != dtypes.float8_e4m3 or activations not in SCALES:
        return 0
    return 9 - int(np.log2(highest_scale(dtype, activations)))


def reach(code_type: DType, activations: torch.dtype) -> tuple[float, float]:
    """Return how far up and down a type's values go that the activations' type has too.

    Kernels decode weights to the activations' type; beyond its largest value there is only infinity.
    """
    values = decode(np.arange(1 << code_type.bits), code_type).astype(np.float64)
    limit = torch.finfo(activations).max if activations.is_floating_point else np.inf
    values = values[np.abs(values) <= limit]
    return float(values.max()), -float(values.min())


def highest_scale(code_type: DType, dtype: torch.dtype, activations: torch.dtype | None = None) -> float:
    """Return the power of two that scales are to stay below, 2 unless values times scales leave their type's range."""
    if activations in BYTES:
        return 2.0
    room = torch.finfo(dtype).max / max(*reach(code_type, dtype), 1.0)
    return min(2.0, 2.0 ** float(np.floor(np.log2(room))))


def fewest_scale(dtype: DType, made: torch.dtype, activations: torch.dtype | None) -> float:
    """Return the smallest power of two that a kernel can scale all values with and lose nothing."""
    if activations in BYTES:
        return 2.0**-126
    values = decode(np.arange(1 << dtype.bits), dtype).astype(np.float64)
    values = values[np.isfinite(values) & (values != 0) & (np.abs(values) <= torch.finfo(made).max)]
    rounded = torch.from_numpy(values).to(made).to(torch.float64)
    power = 0
    while power > -126 and torch.equal(
        (rounded * 2.0 ** (power - 1)).to(made).to(torch.float64), rounded * 2.0 ** (power - 1)
    ):
        power -= 1
    return 2.0**power


def coded_scales(
    scale: np.ndarray[Any, Any], scale_type: DType, highest: float, fewest: float
) -> tuple[torch.Tensor, float]:
    """Return codes of positive scales in a type of 8 bits, and a factor to multiply their values with.

    Powers of two are rounded up, so that no value is cut off; where they are too far apart for a kernel, the small ones
    become `fewest` of the largest. A float8_e4m3 is rounded to nearest, and the largest one becomes 448 (NVFP4).
    """
    if scale_type == dtypes.float8_e4m3:
        alpha = float(np.float32(scale.max() / 448.0))
        codes = encode(np.clip(scale / alpha, 2.0**-9, 448.0), scale_type)
        return torch.from_numpy(codes), alpha
    fraction, exponents = np.frexp(scale)
    exponents = exponents - (fraction == 0.5)
    top = int(np.log2(highest)) - 1
    shift = int(exponents.max()) - top
    lowest = max(int(np.log2(fewest)), -127)
    codes = np.maximum(exponents - shift, lowest) + 127
    return torch.from_numpy(codes.astype(np.uint8)), 2.0**shift


def moved_scales(
    scale: torch.Tensor, dtype: DType, highest: float, fewest: float
) -> tuple[torch.Tensor, float]:
    """Return codes of float8_e8m0 that kernels can multiply with exactly, and the power of two that they lack.

    They are left as they are if they can be.
    """
    codes = scale.to(torch.int64)
    most, least = 127 + int(np.log2(highest)) - 1, 127 + int(np.log2(fewest))
    shift = int(codes.max()) - most if codes.max() > most or codes.min() < least else 0
    if most < least:
        raise TypeMismatch(
            f"activations of this type leave no room for block scales beside values of {dtype}",
            hint="activations=torch.bfloat16",
        )
    if int(codes.min()) - shift < least:
        raise TypeMismatch(
            f"the block scales lie {int(codes.max() - codes.min())} powers of two apart, of which activations of this "
            f"type allow {most - least} with values of {dtype}",
            hint="activations=torch.bfloat16",
        )
    return (codes - shift).to(torch.uint8), 2.0**shift


def split_scales(
    scale: np.ndarray[Any, Any], dtype: torch.dtype, highest: float = 2.0
) -> tuple[torch.Tensor, float]:
    """Return positive scales in a 16-bit type, and a power of two to multiply them with.

    The power is 1 where they fit as they are. Else the largest is brought below `highest`, a power of two, by less than
    a factor of two, so that small scales are no subnormal numbers, which have few bits, and none is so large that a
    kernel may not multiply it with the power of two that a cast leaves out.
    """
    sizes = np.abs(scale[np.isfinite(scale) & (scale != 0)])
    alpha = 1.0
    if sizes.size and (sizes.max() >= highest or sizes.min() < float(torch.finfo(dtype).smallest_normal)):
        alpha = 2.0 ** float(np.floor(np.log2(sizes.max()))) * 2.0 / highest
    stored = torch.from_numpy(np.ascontiguousarray(scale / alpha)).to(dtype)
    if (stored.abs() >= highest).any():
        # The largest one was rounded up.
        alpha *= 2.0
        stored = torch.from_numpy(np.ascontiguousarray(scale / alpha)).to(dtype)
    return stored, alpha


def common_scales(
    values: np.ndarray[Any, Any], dtype: torch.dtype, scale_type: DType | None, alpha: float
) -> tuple[torch.Tensor, float]:
    """Return the scales of several weights in one tensor, and their factor, where the largest factor was `alpha`.

    They are rounded where they do not fit: the caller compares.
    """
    alpha = alpha or 1.0
    if scale_type is None:
        stored, power = split_scales(values / alpha, dtype)
        return stored, alpha * power
    # Another factor than one of the weights' own is an exact one for powers of two only.
    if scale_type == dtypes.float8_e8m0:
        alpha *= float(np.exp2(np.floor(np.log2(values.max() / alpha))))
    return torch.from_numpy(encode(values / alpha, scale_type)), alpha
