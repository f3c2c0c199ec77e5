"""Quantised weights: codes, scales and zero points, prepacked for the kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tilus import dtypes
from tilus.dtypes import DType, decode, encode
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.packing import WEIGHTS, quantize_codes
from tilus.ops.prepack import UNIT_K, pack_weight, padded, unpack_weight

GROUP_STEP = 16
SCALES = (torch.float16, torch.bfloat16)
BYTES = {torch.int8: dtypes.int8, torch.float8_e4m3fn: dtypes.float8_e4m3}
"""Activations of 8 bits."""
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
    operand = BYTES[activations]
    if operand == dtypes.int8 and code_type.kind == "uint":
        operand = dtypes.uint8
    values = decode(np.arange(1 << code_type.bits), code_type).astype(np.float64)
    values = values[np.isfinite(values)]
    held = decode(encode(values, operand), operand).astype(np.float64)
    if not np.array_equal(held, values):
        raise TypeMismatch(
            f"{operand} does not hold all values of {code_type}, as activations of {activations} ask for",
            hint="integers with int8; integers of up to 4 bits and floats of up to 4 exponent and 3 mantissa bits with "
            "float8_e4m3fn",
        )
    return operand


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
        The value of a code c is ``(decode(c) - zero) * scale * alpha``. No scale is 2 or more.
    zero : Tensor or None
        Zero points, of the scale's shape and dtype.
    alpha : float
        A factor of all values, applied in float32 (a second-level scale).
    order : Tensor of int64, shape (k,), or None
        Which element along k each row holds, where rows were sorted by group ("act-order").
    activations : torch.dtype or None
        The type of the activations for which the codes are laid out; the scale's if None.
    gated : bool
        Whether the columns are those of a gate and of what it multiplies, in turns of eight; see `gated_pair`.
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

    @property
    def operand(self) -> DType:
        """The type that kernels cast the codes to."""
        return operand_type(self.dtype, self.activations or self.scale.dtype)

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
        side = groups * n * self.scale.element_size() * 8 * (1 if self.zero is None else 2)
        return self.dtype.bits + side / (k * n)

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
        scale = self.scale.to(torch.float64).cpu().numpy()[rows, :n]
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


def quantize(
    weight: torch.Tensor,
    dtype: DType | str,
    group_size: int = 128,
    *,
    zero_point: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    activations: torch.dtype | None = None,
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
    scale_dtype : torch.dtype
        float16 or bfloat16: also the type of the result of `quantized_matmul`, and of the activations unless they are
        said.
    activations : torch.dtype, optional
        int8 or float8_e4m3fn: activations are quantised too, and the tensor core multiplies numbers of 8 bits. The
        group is then 32, 64, 128, a multiple of 128, or -1.
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
    if scale_dtype not in SCALES:
        raise TypeMismatch(f"scales are float16 or bfloat16, not {scale_dtype}")
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
    operand = operand_type(code_type, _activations_of(scale_dtype, activations))
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
        positive, negative = reach(code_type, scale_dtype if activations is None else activations)
        if code_type.is_float:
            scale = np.maximum(-low, high) / positive
        else:
            # Two's complement reaches one step further down than up.
            up = high / positive if positive > 0 else np.zeros_like(high)
            down = -low / negative if negative > 0 else np.zeros_like(low)
            scale = np.maximum(up, down)
    positive_scale = np.where(scale > 0, scale, scale.max() or 1.0)
    stored, alpha = split_scales(
        positive_scale, scale_dtype, highest_scale(code_type, scale_dtype, activations)
    )
    stored = stored.clamp_min(torch.finfo(scale_dtype).smallest_normal * torch.finfo(scale_dtype).eps)
    # Codes are chosen for the scales that will multiply them.
    scale = stored.to(torch.float64).numpy() * alpha
    if code_type.kind == "uint" and zero_point:
        zero = np.clip(np.rint(-low / scale), 0, top)
    zeros = None if zero is None else torch.from_numpy(zero).to(scale_dtype)
    if by_kernel:
        wide = given if given.dtype in WEIGHTS else given.to(torch.float32)
        factors, shifts = (
            None if x is None else torch.from_numpy(x).to(given.device, torch.float32) for x in (scale, zero)
        )
        assert factors is not None
        packed = quantize_codes(wide, factors, shifts, code_type, group, operand, seed)
        return _assembled(packed, code_type, (k, n), stored, zeros, group, alpha, None, activations)
    shifted = grouped.numpy() / scale[:, None, :] + (0.0 if zero is None else zero[:, None, :])
    codes = encode(shifted.reshape(k, n), code_type)
    return from_codes(codes, code_type, stored, zeros, group, alpha=alpha, activations=activations)


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


def _activations_of(scale_dtype: torch.dtype, activations: torch.dtype | None) -> torch.dtype:
    """Return the type of the activations; those of 16 bits have that of the scales."""
    if activations in SCALES and activations != scale_dtype:
        raise TypeMismatch(
            f"activations of {activations} do not go with scales of {scale_dtype}",
            hint=f"scales of {activations}, or activations of 8 bits",
        )
    return activations or scale_dtype


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


def from_codes(
    codes: np.ndarray[Any, Any],
    dtype: DType,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    group_size: int,
    *,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Make a weight of codes that exist already.

    Parameters
    ----------
    codes : ndarray of uint8, shape (k, n)
        Codes of `dtype`, none of them infinite or NaN.
    dtype : DType
        Of 1 to 8 bits.
    scale : Tensor of float16 or bfloat16, shape (groups, n)
        One row for each group of `group_size` elements along k. Scales of 2 and more, or by which the largest value
        would leave the scale's type, are stored divided by a power of two, by which `alpha` grows.
    zero : Tensor or None
        Of the scale's shape and dtype.
    group_size : int
        Elements along k that share a scale.
    alpha : float
        A factor of all values.
    order : Tensor of int64, shape (k,), optional
        Which element along k each row of codes holds.
    activations : torch.dtype, optional
        As for `quantize`.
    """
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
    operand = operand_type(dtype, _activations_of(scale.dtype, activations))
    if zero is not None and zero.dtype != scale.dtype:
        raise TypeMismatch(f"zero points are {zero.dtype}, expected the scale's {scale.dtype}")
    if not (torch.isfinite(scale).all() and np.isfinite(alpha)):
        raise TypeMismatch("a scale is infinite or NaN", hint="finite scales")
    if order is not None and not torch.equal(order.detach().cpu().sort().values, torch.arange(k)):
        raise ShapeMismatch(f"the order is no permutation of the {k} rows of codes")
    highest = highest_scale(dtype, scale.dtype, activations)
    if (scale.abs() >= highest).any():
        scale, factor = split_scales(scale.detach().to("cpu", torch.float64).numpy(), scale.dtype, highest)
        alpha *= factor
    packed = torch.from_numpy(pack_weight(codes, dtype, operand))
    return _assembled(packed, dtype, (k, n), scale, zero, group, alpha, order, activations)


def _assembled(
    packed: torch.Tensor,
    dtype: DType,
    shape: tuple[int, int],
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    group: int,
    alpha: float,
    order: torch.Tensor | None,
    activations: torch.dtype | None,
) -> QuantizedWeight:
    """Make a weight of packed codes; scales and zero points are filled up to whole units."""
    kp, np_ = padded(*shape)
    # Rows that fill up the last unit multiply zeros of the activations; their scales only have to be finite.
    rows = -(-kp // group)
    filled = [None if x is None else _fill(x, rows, np_).to(packed.device) for x in (scale, zero)]
    assert filled[0] is not None
    return QuantizedWeight(dtype, shape, group, packed, filled[0], filled[1], alpha, order, activations)


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
    same = (gate.dtype, gate.shape, gate.group_size, gate.scale.dtype, gate.activations, gate.zero is None)
    if same != (up.dtype, up.shape, up.group_size, up.scale.dtype, up.activations, up.zero is None):
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
    scales = [w.scale[:groups].cpu().to(torch.float64) * w.alpha for w in (gate, up)]
    values = joined(*scales)
    scale, alpha = split_scales(values.numpy(), gate.scale.dtype)
    if not torch.equal(scale.to(torch.float64) * alpha, values):
        raise TypeMismatch(
            f"scales of the gate and of what it multiplies are too far apart for one tensor of {gate.scale.dtype}",
            hint="quantize both at once, or use bfloat16 scales",
        )
    zero = None
    if gate.zero is not None and up.zero is not None:
        zero = joined(gate.zero[:groups].cpu(), up.zero[:groups].cpu())
    made = from_codes(
        joined(*codes).numpy(), gate.dtype, scale, zero, gate.group_size, alpha=alpha, order=gate.order,
        activations=gate.activations,
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
