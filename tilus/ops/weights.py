"""Quantised weights: codes, scales and zero points, prepacked for the kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tilus import dtypes
from tilus.dtypes import DType, decode, encode
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.prepack import UNIT_K, pack_weight, padded, unpack_weight

GROUP_STEP = 16


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight of k x n elements in a type of 1 to 8 bits.

    Attributes
    ----------
    dtype : DType
        Of the codes.
    shape : tuple of int
        k, n.
    group_size : int
        Elements along k that share a scale.
    packed : Tensor of uint8, shape (k / 128, n / 32, 512 * bits), rounded up
        The codes, as `tilus.ops.prepack` lays them out.
    scale : Tensor of float16 or bfloat16, shape (groups, n rounded up)
        The value of a code c is ``(decode(c) - zero) * scale``.
    zero : Tensor or None
        Zero points, of the scale's shape and dtype.
    alpha : float
        A factor of all values, applied in float32 (a second-level scale).
    order : Tensor of int64, shape (k,), or None
        Which element along k each row holds, where rows were sorted by group ("act-order").
    """

    dtype: DType
    shape: tuple[int, int]
    group_size: int
    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    alpha: float = 1.0
    order: torch.Tensor | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits that one element takes in memory, scales and zero points counted, padding not."""
        k, n = self.shape
        groups = -(-k // self.group_size)
        side = groups * n * self.scale.element_size() * 8 * (1 if self.zero is None else 2)
        return self.dtype.bits + side / (k * n)

    def codes(self) -> np.ndarray[Any, Any]:
        """Return the codes as uint8, shape (k, n)."""
        found = unpack_weight(
            self.packed.cpu().numpy(), self.dtype, *self.shape, dtypes.dtype(self.scale.dtype)
        )
        if self.order is None:
            return found
        sorted_back = np.empty_like(found)
        sorted_back[self.order.cpu().numpy()] = found
        return sorted_back

    def dequantize(self) -> torch.Tensor:
        """Return the float64 values, shape (k, n)."""
        k, n = self.shape
        values = decode(self.codes(), self.dtype).astype(np.float64)
        rows = np.arange(k) // self.group_size
        if self.order is not None:
            rows = rows[np.argsort(self.order.cpu().numpy())]
        scale = self.scale.to(torch.float64).cpu().numpy()[rows, :n]
        zero = 0.0 if self.zero is None else self.zero.to(torch.float64).cpu().numpy()[rows, :n]
        return torch.from_numpy((values - zero) * scale * self.alpha)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Return the weight on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        order = None if self.order is None else self.order.to(device)
        return replace(
            self, packed=self.packed.to(device), scale=self.scale.to(device), zero=zero, order=order
        )


def quantize(
    weight: torch.Tensor,
    dtype: DType | str,
    group_size: int = 128,
    *,
    zero_point: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> QuantizedWeight:
    """Quantise a weight by rounding to nearest in groups along k.

    Parameters
    ----------
    weight : Tensor, shape (k, n)
        Finite values; a linear layer's weight transposed.
    dtype : DType or str
        Of 1 to 8 bits, such as ``uint4``, ``int6``, ``float6_e3m2``.
    group_size : int
        Elements along k that share a scale: a multiple of 16 that divides 128, or a multiple of 128, or -1 for
        one scale a column. k is a multiple of it.
    zero_point : bool
        Whether each group has an integer zero point; for unsigned types without one, the middle of the range is
        the zero of all groups.
    scale_dtype : torch.dtype
        float16 or bfloat16: also the type of the activations that the weight is multiplied with.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the group does not divide k, or the types are not supported.
    """
    code_type = dtypes.dtype(dtype)
    if weight.ndim != 2:
        raise ShapeMismatch(f"quantize takes a matrix of shape (k, n), not shape {tuple(weight.shape)}")
    if scale_dtype not in (torch.float16, torch.bfloat16):
        raise TypeMismatch(f"scales are float16 or bfloat16, not {scale_dtype}")
    if not 1 <= code_type.bits <= 8 or code_type.kind in ("bool", "scale"):
        raise TypeMismatch(f"weights are quantised to a number type of 1 to 8 bits, not {code_type}")
    if zero_point and code_type.kind != "uint":
        raise TypeMismatch(
            f"zero points go with unsigned integers, not {code_type}", hint="use uint1 to uint8"
        )
    k, n = weight.shape
    group = check_group(k, group_size)
    values = weight.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all():
        raise TypeMismatch("quantize takes finite weights, but some are infinite or NaN")
    grouped = values.reshape(k // group, group, n)
    low, high = grouped.min(axis=1), grouped.max(axis=1)
    zero: np.ndarray[Any, Any] | None = None
    if code_type.kind == "uint":
        top = (1 << code_type.bits) - 1
        if zero_point:
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
            scale = _rounded(_positive((high - low) / top), scale_dtype)
            zero = np.clip(np.rint(-low / scale), 0, top)
        else:
            # A symmetric grid around the middle of the range, which is the zero of all groups.
            zero = np.full(low.shape, top / 2)
            scale = _rounded(_positive(np.maximum(-low, high) / (top / 2)), scale_dtype)
    else:
        positive, negative = reach(code_type, scale_dtype)
        if code_type.is_float:
            scale = np.maximum(-low, high) / positive
        else:
            # Two's complement reaches one step further down than up.
            up = high / positive if positive > 0 else np.zeros_like(high)
            down = -low / negative if negative > 0 else np.zeros_like(low)
            scale = np.maximum(up, down)
        scale = _rounded(_positive(scale), scale_dtype)
    shifted = grouped / scale[:, None, :] + (0.0 if zero is None else zero[:, None, :])
    codes = encode(shifted.reshape(k, n), code_type)
    return from_codes(
        codes,
        code_type,
        torch.from_numpy(scale).to(scale_dtype),
        None if zero is None else torch.from_numpy(zero).to(scale_dtype),
        group,
    )


def reach(code_type: DType, activations: torch.dtype) -> tuple[float, float]:
    """Return how far up and down a type's values go that the activations' type has too.

    Kernels decode weights to the activations' type; beyond its largest value there is only infinity.
    """
    values = decode(np.arange(1 << code_type.bits), code_type).astype(np.float64)
    values = values[np.abs(values) <= torch.finfo(activations).max]
    return float(values.max()), -float(values.min())


def check_group(k: int, group_size: int) -> int:
    """Return the group size, with -1 resolved, or say what is wrong with it."""
    group = k if group_size == -1 else group_size
    if group <= 0 or k % group:
        raise ShapeMismatch(
            f"a group of {group_size} elements does not divide k = {k}",
            hint="use a group size that divides k, or -1",
        )
    whole_units = group % UNIT_K == 0
    part_of_unit = UNIT_K % group == 0 and group % GROUP_STEP == 0
    if not (group == k or whole_units or part_of_unit):
        raise ShapeMismatch(
            f"a group of {group} elements is not supported",
            hint="use 16, 32, 64, 128, a multiple of 128, or -1",
        )
    return group


def _positive(scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A group of zeros has scale 1."""
    return np.where(scale > 0, scale, 1.0)


def _rounded(scale: np.ndarray[Any, Any], dtype: torch.dtype) -> np.ndarray[Any, Any]:
    """Round scales to the type in which they are stored, so that codes are chosen for what will multiply them."""
    made: np.ndarray[Any, Any] = torch.from_numpy(scale).to(dtype).to(torch.float64).numpy()
    tiny = float(torch.finfo(dtype).smallest_normal)
    return np.maximum(made, tiny)


def from_codes(
    codes: np.ndarray[Any, Any],
    dtype: DType,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    group_size: int,
    *,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Make a weight of codes that exist already.

    Parameters
    ----------
    codes : ndarray of uint8, shape (k, n)
        Codes of `dtype`.
    dtype : DType
        Of 1 to 8 bits.
    scale : Tensor of float16 or bfloat16, shape (groups, n)
        One row for each group of `group_size` elements along k.
    zero : Tensor or None
        Of the scale's shape and dtype.
    group_size : int
        Elements along k that share a scale.
    alpha : float
        A factor of all values.
    order : Tensor of int64, shape (k,), optional
        Which element along k each row of codes holds.
    """
    k, n = codes.shape
    group = check_group(k, group_size)
    groups = k // group
    for name, tensor in (("scale", scale), ("zero", zero)):
        if tensor is not None and tuple(tensor.shape) != (groups, n):
            raise ShapeMismatch(
                f"{name} has shape {tuple(tensor.shape)}, expected {(groups, n)} for groups of {group}"
            )
    kp, np_ = padded(k, n)
    # Rows that fill up the last unit multiply zeros of the activations; their scales only have to be finite.
    rows = -(-kp // group)
    return QuantizedWeight(
        dtype,
        (k, n),
        group,
        torch.from_numpy(pack_weight(codes, dtype, dtypes.dtype(scale.dtype))),
        _fill(scale, rows, np_),
        None if zero is None else _fill(zero, rows, np_),
        alpha,
        order,
    )


def _fill(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    out = torch.zeros((rows, columns), dtype=tensor.dtype)
    out[: tensor.shape[0], : tensor.shape[1]] = tensor.cpu()
    return out
