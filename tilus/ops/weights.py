"""Quantised weights: codes, scales and zero points, prepacked for the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tilus import dtypes
from tilus.codegen.casts import integer_exponent
from tilus.dtypes import DType, decode, encode
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked_values
from tilus.ops.packing import WEIGHTS, quantize_codes
from tilus.ops.prepack import UNIT_K, pack_weight, padded, unpack_weight
from tilus.ops.scales import (
    BYTES,
    SCALES,
    STORED,
    coded_scales,
    common_scales,
    fewest_scale,
    highest_scale,
    kernel_scale,
    moved_scales,
    reach,
    result_type,
    scale_values,
    split_scales,
    stored_type,
)

GROUP_STEP = 16
HELD = {
    dtypes.int8: "an integer, ternary, or a float of which all values times a power of two are integers of 8 bits: "
    "float4_e2m1, float4_e3m0, float5_e2m2, float6_e2m3, float7_e2m4, or any with an exponent of 1 bit",
    dtypes.float8_e4m3: "an integer of up to 4 bits, or a float of up to 4 exponent and 3 mantissa bits",
}
"""Weights for activations of 8 bits."""
PAIR = 8
"""Columns of a gate that lie together in a gated pair."""


def operand_type(code_type: DType, activations: torch.dtype) -> DType:
    """Return the type that kernels cast a weight's codes to, to multiply them with activations of a type.

    Raises
    ------
    TypeMismatch
        Where it does not hold every value of the code type.
    """
    if activations in SCALES:
        return dtypes.dtype(activations)
    if activations not in BYTES:
        raise TypeMismatch(
            f"weights are not multiplied with activations of {activations}",
            hint="float16, bfloat16, int8 or float8_e4m3fn",
        )
    operand_bytes = operand = BYTES[activations]
    if operand == dtypes.int8 and code_type.kind == "uint":
        operand = dtypes.uint8
    values = decode(np.arange(1 << code_type.bits), code_type).astype(np.float64)
    values = values[np.isfinite(values)]
    if operand == dtypes.int8 and not code_type.is_integer:
        exact = integer_exponent(code_type) is not None
    else:
        exact = np.array_equal(decode(encode(values, operand), operand).astype(np.float64), values)
    if not exact:
        raise TypeMismatch(
            f"{operand} does not hold all values of {code_type}, as activations of {activations} ask for",
            hint=HELD[operand_bytes],
        )
    return operand


@dataclass(frozen=True, eq=False, repr=False)
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
    scale : Tensor of float16, bfloat16 or uint8, shape (groups, n rounded up)
        The value of a code c is ``(decode(c) - zero) * scale * alpha``. No scale is 2 or more, but those of
        float8_e4m3 may be.
    zero : Tensor or None
        Zero points, of the scale's shape and of the results' dtype.
    alpha : float
        A factor of all values, applied in float32 (a second-level scale).
    order : Tensor of int64, shape (k,), or None
        Which element along k each row holds, where rows were sorted by group ("act-order").
    activations : torch.dtype or None
        The type of the activations for which the codes are laid out; the results' if None.
    gated : bool
        Whether the columns are those of a gate and of what it multiplies, in turns of eight; see `gated_pair`.
    scale_type : DType or None
        float8_e4m3 or float8_e8m0, of which `scale` holds the codes where it is of uint8; else None.
    out_dtype : torch.dtype or None
        The type of results where scales are of 8 bits; None where it is theirs.
    """

    dtype: DType
    shape: tuple[int, int]
    group_size: int
    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    alpha: float = 1.0
    order: torch.Tensor | None = None
    activations: torch.dtype | None = None
    gated: bool = False
    scale_type: DType | None = None
    out_dtype: torch.dtype | None = None

    @property
    def result(self) -> torch.dtype:
        """The type of results, float16 or bfloat16."""
        return self.out_dtype or self.scale.dtype

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
        return self.packed.device

    @property
    def scale_name(self) -> str:
        """The name of `scale_type` as ops take it."""
        return "" if self.scale_type is None else self.scale_type.name

    @property
    def kernel_scale(self) -> torch.Tensor:
        """The scales as kernels take them."""
        return kernel_scale(self.scale, self.scale_type)

    @property
    def operand(self) -> DType:
        """The type that kernels cast the codes to."""
        return operand_type(self.dtype, self.activations or self.result)

    @property
    def columns(self) -> np.ndarray[Any, Any] | None:
        """Which packed column each column is, the gate's before the others; None where they lie in order."""
        if not self.gated:
            return None
        pairs = np.arange(self.shape[1]).reshape(-1, 2, PAIR)
        return pairs.transpose(1, 0, 2).reshape(-1)

    @property
    def bits_per_weight(self) -> float:
        """Bits that one element takes in memory, scales and zero points counted, padding not."""
        k, n = self.shape
        groups = -(-k // self.group_size)
        side = self.scale.element_size() + (0 if self.zero is None else self.zero.element_size())
        return self.dtype.bits + groups * n * side * 8 / (k * n)

    @property
    def scales(self) -> np.ndarray[Any, Any]:
        """The scales' values in float64, without `alpha`, shape (groups, n)."""
        k, n = self.shape
        return scale_values(self.scale[: -(-k // self.group_size), :n], self.scale_type)

    def __repr__(self) -> str:
        k, n = self.shape
        scale = self.scale_type or str(self.scale.dtype).removeprefix("torch.")
        return (
            f"QuantizedWeight({self.dtype}, {k} x {n}, group_size={self.group_size}, scale={scale}, "
            f"zero_point={self.zero is not None}, device={str(self.device)!r})"
        )

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Refuse to stand for a tensor in a function of torch."""
        raise TypeMismatch(
            f"torch's {getattr(func, '__name__', func)} does not take a quantised weight",
            hint="tilus.ops.quantized_matmul(x, weight), or weight.dequantize()",
        )

    def codes(self) -> np.ndarray[Any, Any]:
        """Return the codes as uint8, shape (k, n)."""
        found = unpack_weight(self.packed.cpu().numpy(), self.dtype, *self.shape, self.operand)
        if self.order is None:
            return found
        sorted_back = np.empty_like(found)
        sorted_back[self.order.cpu().numpy()] = found
        return sorted_back

    def dequantize(self) -> torch.Tensor:
        """Return the float64 values, shape (k, n); of a gated pair the gate's columns come first."""
        k, n = self.shape
        values = decode(self.codes(), self.dtype).astype(np.float64)
        rows = np.arange(k) // self.group_size
        if self.order is not None:
            rows = rows[np.argsort(self.order.cpu().numpy())]
        scale = self.scales[rows]
        zero = 0.0 if self.zero is None else self.zero.to(torch.float64).cpu().numpy()[rows, :n]
        found = (values - zero) * scale * self.alpha
        return torch.from_numpy(found if self.columns is None else found[:, self.columns])

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """Return the weight on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        order = None if self.order is None else self.order.to(device)
        return replace(
            self, packed=self.packed.to(device), scale=self.scale.to(device), zero=zero, order=order
        )

    def astype(self, dtype: torch.dtype) -> QuantizedWeight:
        """Return the weight for activations of the other type of 16 bits, and with results of it.

        Codes are laid out anew, for each type of activations has a layout of its own. Scales of 16 bits and zero points
        are rounded to the type.

        Raises
        ------
        TypeMismatch
            Where the type does not hold all values, or leaves no room for block scales.
        """
        if dtype not in SCALES:
            raise TypeMismatch(f"a weight is for activations of float16 or bfloat16, not {dtype}")
        if dtype == self.result:
            return self
        k, n = self.shape
        groups = -(-k // self.group_size)
        codes = unpack_weight(self.packed.cpu().numpy(), self.dtype, k, n, self.operand)
        zero = None if self.zero is None else self.zero[:groups, :n].cpu().to(dtype)
        activations = self.activations if self.activations in BYTES else None
        if self.scale_type is None:
            highest = highest_scale(self.dtype, dtype, activations)
            scale, alpha = split_scales(self.scales * self.alpha, dtype, highest)
        else:
            scale, alpha = self.scale[:groups, :n].cpu(), self.alpha
        made = from_codes(
            codes, self.dtype, scale, zero, self.group_size, alpha=alpha, order=self.order, activations=activations,
            scale_type=self.scale_type, out_dtype=None if self.scale_type is None else dtype,
        )  # fmt: skip
        return replace(made, gated=self.gated).to(self.device)


@checked_values
def quantize(
    weight: torch.Tensor,
    dtype: DType | str,
    group_size: int = 128,
    *,
    zero_point: bool = False,
    scale_dtype: torch.dtype | DType | str = torch.float16,
    activations: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    seed: int | None = None,
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
    scale_dtype : torch.dtype, DType or str
        float16 or bfloat16: also the type of the result of `quantized_matmul`, and of the activations unless they are
        said. Or of 8 bits, as in MXFP4 (float8_e8m0, powers of two) and NVFP4 (float8_e4m3).
    activations : torch.dtype, optional
        int8 or float8_e4m3fn: activations are quantised too, and the tensor core multiplies numbers of 8 bits. The
        group is then 32, 64, 128, a multiple of 128, or -1. With scales of 8 bits also float16 or bfloat16.
    out_dtype : torch.dtype, optional
        float16 or bfloat16: the type of the result where scales are of 8 bits; unless given the activations', or
        bfloat16.
    seed : int, optional
        Rounds at random, right on average, to integers and floats. The same seed gives the same codes.

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
    scale_type = stored_type(scale_dtype)
    made = result_type(scale_dtype, activations, out_dtype)
    if not 1 <= code_type.bits <= 8 or code_type.kind in ("bool", "scale"):
        raise TypeMismatch(f"weights are quantised to a number type of 1 to 8 bits, not {code_type}")
    if zero_point and code_type.kind != "uint":
        raise TypeMismatch(
            f"zero points go with unsigned integers, not {code_type}", hint="use uint1 to uint8"
        )
    if not weight.numel() or weight.is_complex():
        raise ShapeMismatch(
            f"quantize takes a matrix of real numbers, not {weight.dtype} of shape {tuple(weight.shape)}"
        )
    k, n = weight.shape
    group = check_group(k, group_size, activations)
    operand = operand_type(code_type, activations or made)
    if seed is not None and code_type.kind == "table":
        raise TypeMismatch(f"{code_type} is not rounded to at random", hint="leave out the seed")
    # On the GPU, and to round at random, codes are made by a kernel; else here, in float64.
    by_kernel = weight.device.type == "cuda" or seed is not None
    given = weight.detach()
    grouped = (given if by_kernel else given.to("cpu", torch.float64)).reshape(k // group, group, n)
    low, high = (x.to("cpu", torch.float64).numpy() for x in (grouped.amin(1), grouped.amax(1)))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise TypeMismatch("quantize takes finite weights, but some are infinite or NaN")
    top = (1 << code_type.bits) - 1
    zero: np.ndarray[Any, Any] | None = None
    if code_type.kind == "uint" and zero_point:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        scale = (high - low) / top
    elif code_type.kind == "uint":
        # A symmetric grid around the middle of the range, which is the zero of all groups.
        scale = np.maximum(-low, high) / (top / 2)
        zero = np.full(low.shape, top / 2)
    else:
        positive, negative = reach(code_type, activations or made)
        if code_type.is_float:
            scale = np.maximum(-low, high) / positive
        else:
            # Two's complement reaches one step further down than up.
            up = high / positive if positive > 0 else np.zeros_like(high)
            down = -low / negative if negative > 0 else np.zeros_like(low)
            scale = np.maximum(up, down)
    positive_scale = np.where(scale > 0, scale, scale.max() or 1.0)
    highest = highest_scale(code_type, made, activations)
    if scale_type is None:
        stored, alpha = split_scales(positive_scale, made, highest)
        stored = stored.clamp_min(torch.finfo(made).smallest_normal * torch.finfo(made).eps)
    else:
        stored, alpha = coded_scales(
            positive_scale, scale_type, highest, fewest_scale(code_type, made, activations)
        )
    # Codes are chosen for the scales that will multiply them.
    scale = scale_values(stored, scale_type) * alpha
    if code_type.kind == "uint" and zero_point:
        zero = np.clip(np.rint(-low / scale), 0, top)
    zeros = None if zero is None else torch.from_numpy(zero).to(made)
    if by_kernel:
        wide = given if given.dtype in WEIGHTS else given.to(torch.float32)
        factors, shifts = (
            None if x is None else torch.from_numpy(x).to(given.device, torch.float32) for x in (scale, zero)
        )
        assert factors is not None
        packed = quantize_codes(wide, factors, shifts, code_type, group, operand, seed)
    else:
        shifted = grouped.numpy() / scale[:, None, :] + (0.0 if zero is None else zero[:, None, :])
        packed = torch.from_numpy(pack_weight(encode(shifted.reshape(k, n), code_type), code_type, operand))
    weight = QuantizedWeight(
        code_type, (k, n), group, packed, stored, zeros, alpha, None, activations, False, scale_type,
        None if scale_type is None else made,
    )  # fmt: skip
    return _filled(weight)


def check_group(k: int, group_size: int, activations: torch.dtype | None = None) -> int:
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
    if activations in BYTES and group % (2 * GROUP_STEP) and group != k:
        raise ShapeMismatch(
            f"a group of {group} elements is not supported with activations of {activations}",
            hint="use 32, 64, 128, a multiple of 128, or -1",
        )
    return group


@checked_values
def from_codes(
    codes: np.ndarray[Any, Any],
    dtype: DType | str,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    group_size: int,
    *,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
    activations: torch.dtype | None = None,
    scale_type: DType | str | None = None,
    out_dtype: torch.dtype | None = None,
) -> QuantizedWeight:
    """Make a weight of codes that exist already.

    Parameters
    ----------
    codes : ndarray of uint8, shape (k, n)
        Codes of `dtype`, none of them infinite or NaN.
    dtype : DType or str
        Of 1 to 8 bits, such as ``uint4``.
    scale : Tensor of float16, bfloat16, float8_e4m3fn, float8_e8m0fnu or uint8, shape (groups, n)
        One row for each group of `group_size` elements along k. Scales of 2 and more, or by which the largest value
        would leave the results' type, are stored divided by a power of two, by which `alpha` grows; those of
        float8_e4m3fn stay as they are.
    zero : Tensor or None
        Of the scale's shape and the results' dtype.
    group_size : int
        Elements along k that share a scale.
    alpha : float
        A factor of all values.
    order : Tensor of int64, shape (k,), optional
        Which element along k each row of codes holds.
    activations : torch.dtype, optional
        As for `quantize`.
    scale_type : DType or str, optional
        float8_e4m3 or float8_e8m0, if the scales are their codes in uint8.
    out_dtype : torch.dtype, optional
        As for `quantize`.
    """
    dtype = dtypes.dtype(dtype)
    if codes.ndim != 2:
        raise ShapeMismatch(f"codes have shape {tuple(codes.shape)}, expected (k, n)")
    if not 1 <= dtype.bits <= 8 or dtype.kind in ("bool", "scale"):
        raise TypeMismatch(f"codes are of a number type of 1 to 8 bits, not {dtype}")
    k, n = codes.shape
    group = check_group(k, group_size, activations)
    if not np.isfinite(decode(np.unique(codes), dtype).astype(np.float64)).all():
        raise TypeMismatch(f"a code of {dtype} is infinite or NaN", hint="finite weights")
    groups = k // group
    for name, tensor in (("scale", scale), ("zero", zero)):
        if tensor is not None and tuple(tensor.shape) != (groups, n):
            raise ShapeMismatch(
                f"{name} has shape {tuple(tensor.shape)}, expected {(groups, n)} for groups of {group}"
            )
    stored = None if scale_type is None else dtypes.dtype(scale_type)
    if scale.dtype != torch.uint8:
        stored = stored_type(scale.dtype)
    elif stored not in STORED:
        raise TypeMismatch(
            f"scales are bytes with the scale_type {scale_type}, expected float8_e8m0 or float8_e4m3",
            hint="scale_type=tilus.float8_e8m0 or tilus.float8_e4m3, or scales of float16 or bfloat16",
        )
    made = result_type(scale.dtype if stored is None else stored, activations, out_dtype)
    if stored is not None:
        scale = scale.detach().view(torch.uint8)
    operand = operand_type(dtype, activations or made)
    held = decode(np.unique(codes), dtype).astype(np.float64)
    if operand == dtypes.dtype(made) and np.abs(held).max(initial=0.0) > torch.finfo(made).max:
        raise TypeMismatch(
            f"a code of {dtype} stands for {np.abs(held).max():g}, which {made} does not hold",
            hint="scales and activations of torch.bfloat16",
        )
    if zero is not None and zero.dtype != made:
        owner = "scale's" if stored is None else "results'"
        raise TypeMismatch(f"zero points are {zero.dtype}, expected the {owner} {made}")
    if not (np.isfinite(scale_values(scale, stored)).all() and np.isfinite(alpha)):
        raise TypeMismatch("a scale is infinite or NaN", hint="finite scales")
    if zero is not None and not zero.isfinite().all():
        raise TypeMismatch("a zero point is infinite or NaN", hint="finite zero points")
    if order is not None:
        order = order.detach().to("cpu", torch.int64)
        if not torch.equal(order.sort().values, torch.arange(k)):
            raise ShapeMismatch(f"the order is no permutation of the {k} rows of codes")
    highest = highest_scale(dtype, made, activations)
    if stored == dtypes.float8_e8m0:
        scale, factor = moved_scales(scale.cpu(), dtype, highest, fewest_scale(dtype, made, activations))
        alpha *= factor
    elif stored is None and (scale.abs() >= highest).any():
        scale, factor = split_scales(scale.detach().to("cpu", torch.float64).numpy(), scale.dtype, highest)
        alpha *= factor
    packed = torch.from_numpy(pack_weight(codes, dtype, operand))
    weight = QuantizedWeight(
        dtype, (k, n), group, packed, scale, zero, alpha, order, activations, False, stored,
        None if stored is None else made,
    )  # fmt: skip
    return _filled(weight)


def _filled(weight: QuantizedWeight) -> QuantizedWeight:
    """Return a weight with scales and zero points filled up to whole units, on the device of the codes."""
    kp, np_ = padded(*weight.shape)
    # Rows that fill up the last unit multiply zeros of the activations; their scales only have to be finite.
    rows, device = -(-kp // weight.group_size), weight.packed.device
    zero = None if weight.zero is None else _fill(weight.zero, rows, np_).to(device)
    return replace(weight, scale=_fill(weight.scale, rows, np_).to(device), zero=zero)


@checked_values
def gated_pair(gate: QuantizedWeight, up: QuantizedWeight) -> QuantizedWeight:
    """Join the weights of a gate and of what it multiplies, for ``activation(a @ gate) * (a @ up)`` in one product.

    Parameters
    ----------
    gate, up : QuantizedWeight
        Of one shape, type and group size, both with zero points or none.

    Returns
    -------
    QuantizedWeight
        Of both weights' columns. `quantized_matmul` with it returns half as many.
    """
    if gate.gated or up.gated:
        raise TypeMismatch("a gate, or what it multiplies, is a gated pair itself", hint="the two weights")
    forms = [
        (w.dtype, w.shape, w.group_size, w.scale.dtype, w.scale_type, w.result, w.activations, w.zero is None)
        for w in (gate, up)
    ]
    if forms[0] != forms[1]:
        raise TypeMismatch(
            "a gate and what it multiplies have the same shape, types, group size and zero points"
        )
    if (gate.order is None) != (up.order is None) or (
        gate.order is not None and up.order is not None and not torch.equal(gate.order, up.order)
    ):
        raise TypeMismatch("a gate and what it multiplies have the same order of rows")
    k, n = gate.shape
    groups = k // gate.group_size
    if n % PAIR:
        raise ShapeMismatch(
            f"a gate of {n} columns does not fit a gated pair", hint=f"a multiple of {PAIR} columns"
        )

    def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return interleave(first[..., :n], second[..., :n])

    codes = [
        torch.from_numpy(unpack_weight(w.packed.cpu().numpy(), w.dtype, *w.shape, w.operand))
        for w in (gate, up)
    ]
    values = joined(*(torch.from_numpy(w.scales * w.alpha) for w in (gate, up)))
    scale, alpha = common_scales(values.numpy(), gate.scale.dtype, gate.scale_type, max(gate.alpha, up.alpha))
    if not np.array_equal(scale_values(scale, gate.scale_type) * alpha, values.numpy()):
        raise TypeMismatch(
            "scales of the gate and of what it multiplies do not fit one tensor of "
            f"{gate.scale_type or gate.scale.dtype} and one factor",
            hint="quantize both at once, or multiply with one after the other",
        )
    zero = None
    if gate.zero is not None and up.zero is not None:
        zero = joined(gate.zero[:groups].cpu(), up.zero[:groups].cpu())
    made = from_codes(
        joined(*codes).numpy(), gate.dtype, scale, zero, gate.group_size, alpha=alpha, order=gate.order,
        activations=gate.activations, scale_type=gate.scale_type, out_dtype=gate.out_dtype,
    )  # fmt: skip
    return replace(made, gated=True).to(gate.packed.device)


def interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return two tensors' last dimensions in turns of eight, as a gated pair has them."""
    pairs = torch.stack([x.reshape(*x.shape[:-1], -1, PAIR) for x in (gate, up)], dim=-2)
    return pairs.reshape(*gate.shape[:-1], -1)


def _fill(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    out = torch.zeros((rows, columns), dtype=tensor.dtype)
    out[: tensor.shape[0], : tensor.shape[1]] = tensor.cpu()
    return out
