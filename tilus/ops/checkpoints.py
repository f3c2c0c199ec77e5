"""Quantised weights as checkpoints hold them, made into the prepacked form that the kernels read.

Each function takes the tensors of one layer as they stand in a safetensors file. Sources of the formats: AutoGPTQ and
GPTQModel (GPTQ), AutoAWQ (AWQ), compressed-tensors, the OCP microscaling specification (MXFP4, MXFP8), NVIDIA ModelOpt
(NVFP4), bitsandbytes (NF4, and integers of 8 bits), HQQ, and the BitNet b1.58 models of Hugging Face transformers.

With `activations` of torch.int8 or torch.float8_e4m3fn codes are laid out for activations of 8 bits; see `quantize`.
Scales of 8 bits stay as they are stored, unless a wider `scale_dtype` is asked for; then `activations` and `out_dtype`
say the type of activations and results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tilus import dtypes
from tilus.dtypes import DType, decode, table_type, unpack
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked_values, only_number
from tilus.ops.scales import split_scales, stored_type
from tilus.ops.weights import QuantizedWeight, from_codes

Array = np.ndarray[Any, Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GPTQ_BITS = {2: dtypes.uint2, 3: dtypes.uint3, 4: dtypes.uint4, 8: dtypes.uint8}
UNSIGNED = {bits: dtypes.dtype(f"uint{bits}") for bits in range(1, 9)}
SCALES = (torch.float16, torch.bfloat16)
FP8 = {torch.float8_e4m3fn: dtypes.float8_e4m3, torch.float8_e5m2: dtypes.float8_e5m2}


def _bits(words: torch.Tensor, dtype: DType, count: int, axis: int) -> Array:
    """Return codes that lie as one little-endian bit string along an axis of int32 words (or of bytes)."""
    moved = np.ascontiguousarray(np.moveaxis(words.detach().cpu().numpy(), axis, -1))
    found = unpack(moved.view(np.uint8)[..., : dtype.packed_nbytes(count)], dtype, count)
    return np.moveaxis(found, -1, axis)


def _expect(name: str, tensor: torch.Tensor, types: tuple[torch.dtype, ...], ndim: int) -> None:
    """Refuse a tensor of other types, or with other dimensions, than a format has: its bits would be misread."""
    if tensor.dtype not in types or tensor.ndim != ndim:
        expected = " or ".join(str(t) for t in types)
        raise TypeMismatch(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {expected} with {ndim} dimensions"
        )


@checked_values
def from_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    *,
    bits: int = 4,
    version: int = 1,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import a GPTQ layer.

    Parameters
    ----------
    qweight : Tensor of int32, shape (k * bits / 32, n)
        Codes packed along k.
    qzeros : Tensor of int32, shape (groups, n * bits / 32)
        Zero points packed along n; version 1 stores one less than the zero point. In words: where a zero point is 0,
        GPTQModel, which writes and reads them so, borrows from the next one.
    scales : Tensor of float16 or bfloat16, shape (groups, n)
    g_idx : Tensor of int32, shape (k,), optional
        The group of each row; with "act-order" rows of a group are not neighbours.
    bits : int
        2, 3, 4 or 8.
    version : int
        1 ("gptq") or 2 ("gptq_v2").

    Returns
    -------
    QuantizedWeight
        With `order` set where rows had to be sorted.
    """
    if bits not in GPTQ_BITS or version not in (1, 2):
        raise TypeMismatch(
            f"GPTQ of {bits} bits, version {version}", hint="bits 2, 3, 4 or 8, and version 1 or 2"
        )
    for name, tensor in (("qweight", qweight), ("qzeros", qzeros)):
        _expect(name, tensor, (torch.int32,), 2)
    _expect("scales", scales, SCALES, 2)
    dtype = GPTQ_BITS[bits]
    groups, n = scales.shape
    k = qweight.shape[0] * 32 // bits
    fits = qweight.shape[1] == n and qzeros.shape == (groups, n * bits // 32) and n * bits % 32 == 0
    if not (fits and groups and k % groups == 0):
        raise ShapeMismatch(
            f"GPTQ tensors of shapes {tuple(qweight.shape)}, {tuple(qzeros.shape)} and {tuple(scales.shape)} do not "
            f"fit {bits} bits"
        )
    codes = _bits(qweight, dtype, k, 0)
    if version == 1 and bits != 3:
        one_each = sum(1 << place for place in range(0, 32, bits))
        qzeros = torch.from_numpy(
            (qzeros.detach().cpu().numpy().view(np.uint32) + np.uint32(one_each)).view(np.int32)
        )
    zeros = _bits(qzeros, dtype, n, 1)
    if version == 1 and bits == 3:
        # Three bits cross words.
        zeros = (zeros + 1) & dtype.code_mask
    order = None if g_idx is None else _order("g_idx", g_idx, k, groups)
    if order is not None:
        codes = codes[order.numpy()]
    zero = torch.from_numpy(zeros.astype(np.float64)).to(scales.dtype)
    return from_codes(
        np.ascontiguousarray(codes), dtype, scales, zero, k // groups, order=order, activations=activations
    )


def _order(name: str, groups_of: torch.Tensor, k: int, groups: int) -> torch.Tensor | None:
    """Return the order that brings rows of one group together, None if they are, from the group of each row."""
    index = groups_of.detach().cpu().numpy().astype(np.int64)
    together = np.arange(k) // (k // groups)
    if index.shape != (k,) or not np.array_equal(np.sort(index), together):
        raise ShapeMismatch(
            f"{name} does not put {k // groups} of {k} rows into each of {groups} groups",
            hint=f"leave {name} out if rows of a group are neighbours",
        )
    return None if np.array_equal(index, together) else torch.from_numpy(np.argsort(index, kind="stable"))


@checked_values
def from_awq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import an AWQ layer of the "GEMM" version, 4 bits.

    Parameters
    ----------
    qweight : Tensor of int32, shape (k, n / 8)
        Nibble p of a word is column ``(0, 2, 4, 6, 1, 3, 5, 7)[p]`` of its eight.
    qzeros : Tensor of int32, shape (groups, n / 8)
        Zero points in the same order.
    scales : Tensor of float16 or bfloat16, shape (groups, n)
    """
    for name, tensor in (("qweight", qweight), ("qzeros", qzeros)):
        _expect(name, tensor, (torch.int32,), 2)
    _expect("scales", scales, SCALES, 2)
    k, n = qweight.shape[0], qweight.shape[1] * 8
    groups = scales.shape[0]
    fits = scales.shape == (groups, n) and qzeros.shape == (groups, n // 8)
    if not (fits and groups and k % groups == 0):
        raise ShapeMismatch(
            f"AWQ tensors of shapes {tuple(qweight.shape)}, {tuple(qzeros.shape)} and {tuple(scales.shape)} do not fit"
        )

    def columns(words: torch.Tensor) -> Array:
        stored = _bits(words, dtypes.uint4, n, 1).reshape(words.shape[0], n // 8, 8)
        out = np.empty_like(stored)
        out[..., list(AWQ_ORDER)] = stored
        return out.reshape(words.shape[0], n)

    zero = torch.from_numpy(columns(qzeros).astype(np.float64)).to(scales.dtype)
    return from_codes(columns(qweight), dtypes.uint4, scales, zero, k // groups, activations=activations)


@checked_values
def from_compressed_tensors(
    weight_packed: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_zero_point: torch.Tensor | None = None,
    weight_g_idx: torch.Tensor | None = None,
    *,
    bits: int = 4,
    shape: tuple[int, int] | torch.Tensor | None = None,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import a layer of the compressed-tensors format "pack-quantized".

    Parameters
    ----------
    weight_packed : Tensor of int32, shape (n, k * bits / 32)
        Values plus ``2 ** (bits - 1)``, packed along k.
    weight_scale : Tensor of float16 or bfloat16, shape (n, groups)
    weight_zero_point : Tensor of int32, shape (n * bits / 32, groups), optional
        Zero points plus ``2 ** (bits - 1)``, packed along n.
    weight_g_idx : Tensor of int32, shape (k,), optional
        The group of each column ("actorder"); all -1 where there is none.
    bits : int
        1 to 8.
    shape : tuple of int, or Tensor of 2 elements, optional
        (n, k), the layer's ``weight_shape``, where k does not fill the last word.
    """
    if bits not in UNSIGNED:
        raise TypeMismatch(f"compressed-tensors packs 1 to 8 bits, not {bits}")
    _expect("weight_packed", weight_packed, (torch.int32,), 2)
    _expect("weight_scale", weight_scale, SCALES, 2)
    dtype = UNSIGNED[bits]
    rows, words = weight_packed.shape
    n, k = (rows, words * 32 // bits) if shape is None else _pair("shape", shape)
    if n != rows or -(-k * bits // 32) != words:
        raise ShapeMismatch(f"packed codes of shape {(rows, words)} do not fit a weight of {n} x {k}")
    groups = weight_scale.shape[1]
    if weight_scale.shape[0] != n or not groups or k % groups:
        raise ShapeMismatch(f"scales of shape {tuple(weight_scale.shape)} do not fit a weight of {n} x {k}")
    codes = _bits(weight_packed, dtype, k, 1)
    middle = float(1 << (bits - 1))
    if weight_zero_point is None:
        zeros = np.full((groups, n), middle)
    else:
        _expect("weight_zero_point", weight_zero_point, (torch.int32,), 2)
        wanted = (-(-n * bits // 32), groups)
        if tuple(weight_zero_point.shape) != wanted:
            raise ShapeMismatch(f"zero points have shape {tuple(weight_zero_point.shape)}, expected {wanted}")
        zeros = _bits(weight_zero_point, dtype, n, 0).T.astype(np.float64)
    scale = weight_scale.t().contiguous()
    turned, order = codes.T, None
    if weight_g_idx is not None and not (weight_g_idx < 0).all():
        order = _order("weight_g_idx", weight_g_idx, k, groups)
    if order is not None:
        turned = turned[order.numpy()]
    return from_codes(
        np.ascontiguousarray(turned),
        dtype,
        scale,
        torch.from_numpy(zeros).to(scale.dtype),
        k // groups,
        order=order,
        activations=activations,
    )


def _pair(name: str, sizes: tuple[int, int] | torch.Tensor) -> tuple[int, int]:
    """Return two sizes that may be given as a tensor, as files hold them."""
    values = sizes.tolist() if isinstance(sizes, torch.Tensor) else list(sizes)
    if not isinstance(values, list) or len(values) != 2:
        raise ShapeMismatch(f"{name} is {values}, expected (n, k)")
    return int(values[0]), int(values[1])


@checked_values
def from_fp8(
    weight: torch.Tensor,
    scale: torch.Tensor,
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import an FP8 layer with scales for the tensor, each output channel, or blocks.

    Parameters
    ----------
    weight : Tensor of float8_e4m3fn or float8_e5m2, shape (n, k)
    scale : Tensor of float32, shape (), (1,), (n,), (n, 1) or (n / block, k / block) rounded up
        What values are multiplied with ("weight_scale", or DeepSeek's "weight_scale_inv").
    scale_dtype : torch.dtype
        float16 or bfloat16, of the activations; scales that differ are rounded to it.
    activations : torch.dtype, optional
        float8_e4m3fn for activations of 8 bits too; see `quantize`.
    """
    if weight.dtype not in FP8:
        raise TypeMismatch(
            f"from_fp8 takes float8_e4m3fn or float8_e5m2, not {weight.dtype}",
            hint=_importer_of(weight.dtype),
        )
    return _scaled_bytes(weight, FP8[weight.dtype], scale, scale_dtype, activations)


@checked_values
def from_int8(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import a layer of integers of 8 bits, as in the compressed-tensors format "int-quantized".

    Parameters
    ----------
    weight : Tensor of int8, shape (n, k)
    scale : Tensor, shape (), (1,), (n,), (n, 1), (n, groups) or blocks as for `from_fp8`
        What values are multiplied with ("weight_scale"; of bitsandbytes "SCB" / 127).
    zero_point : Tensor of int8, of the scale's shape, optional
        What is taken off before ("weight_zero_point" of an asymmetric scheme).
    scale_dtype : torch.dtype
        float16 or bfloat16, of the activations; scales that differ are rounded to it.
    activations : torch.dtype, optional
        int8 for activations of 8 bits too; see `quantize`.
    """
    if weight.dtype != torch.int8:
        raise TypeMismatch(f"from_int8 takes int8, not {weight.dtype}", hint=_importer_of(weight.dtype))
    if zero_point is None or not bool((zero_point != 0).any()):
        return _scaled_bytes(weight, dtypes.int8, scale, scale_dtype, activations)
    if zero_point.dtype != torch.int8 or zero_point.shape != scale.shape:
        raise ShapeMismatch(
            f"zero_point is {zero_point.dtype} of shape {tuple(zero_point.shape)}, expected torch.int8 of the scale's "
            f"shape {tuple(scale.shape)}"
        )
    # With zero points codes are unsigned: 128 is added to both.
    points = zero_point.detach().cpu().numpy().astype(np.float64) + 128
    codes = weight.view(torch.uint8) ^ 0x80
    return _scaled_bytes(codes, dtypes.uint8, scale, scale_dtype, activations, points)


def _importer_of(dtype: torch.dtype) -> str:
    """Return what takes a weight of a type that another function was given."""
    if dtype in FP8:
        return "from_fp8(weight, scale)"
    if dtype == torch.int8:
        return "from_int8(weight, scale)"
    if dtype.is_floating_point:
        return "tilus.ops.quantize(weight.t(), ...), which finds scales itself"
    if dtype == torch.uint8:
        return (
            "weight.view(torch.float8_e4m3fn) if it holds their bytes, or from_mxfp4, from_nvfp4 or from_nf4"
        )
    return "from_gptq, from_awq or from_compressed_tensors, for words of packed codes"


def _scaled_bytes(
    weight: torch.Tensor,
    dtype: DType,
    scale: torch.Tensor,
    scale_dtype: torch.dtype,
    activations: torch.dtype | None,
    points: Array | None = None,
) -> QuantizedWeight:
    """Import bytes of shape (n, k) with scales, and zero points, for the tensor, each row, or blocks."""
    if weight.ndim != 2:
        raise TypeMismatch(f"weight has shape {tuple(weight.shape)}, expected (n, k)")
    n, k = weight.shape
    codes = np.ascontiguousarray(weight.detach().cpu().view(torch.uint8).numpy().T)
    values = scale.detach().to(torch.float64).cpu().numpy()

    def zeros(shaped: Array) -> torch.Tensor | None:
        return None if points is None else torch.from_numpy(np.ascontiguousarray(shaped)).to(scale_dtype)

    taken = np.zeros_like(values) if points is None else points
    if values.size == 1:
        ones, alpha = torch.ones((1, n), dtype=scale_dtype), float(values.reshape(()))
        zero = zeros(np.full((1, n), taken.reshape(())))
        return from_codes(codes, dtype, ones, zero, k, alpha=alpha, activations=activations)
    if values.size == n and values.ndim in (1, 2) and values.shape[0] == n:
        tensor, alpha = split_scales(values.reshape(1, n), scale_dtype)
        zero = zeros(taken.reshape(1, n))
        return from_codes(codes, dtype, tensor, zero, k, alpha=alpha, activations=activations)
    if values.ndim == 2 and values.size:
        rows, columns = values.shape
        block_n, block_k = -(-n // rows), -(-k // columns)
        step_n = 1 << (block_n - 1).bit_length()
        step_k = 1 << (block_k - 1).bit_length()
        if -(-n // step_n) == rows and -(-k // step_k) == columns and k % step_k == 0:
            tensor, alpha = split_scales(np.repeat(values.T, step_n, axis=1)[:, :n], scale_dtype)
            zero = zeros(np.repeat(taken.T, step_n, axis=1)[:, :n])
            return from_codes(codes, dtype, tensor, zero, step_k, alpha=alpha, activations=activations)
    raise ShapeMismatch(f"scales of shape {tuple(scale.shape)} do not fit a weight of {n} x {k}")


@checked_values
def from_mxfp4(
    blocks: torch.Tensor,
    scales: torch.Tensor,
    *,
    scale_dtype: torch.dtype | None = None,
    activations: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import an MXFP4 layer.

    Parameters
    ----------
    blocks : Tensor of uint8, shape (n, k / 2) or (n, k / 32, 16)
        float4_e2m1, even k in the low nibble.
    scales : Tensor of uint8, shape (n, k / 32)
        float8_e8m0.
    scale_dtype : torch.dtype, optional
        Keeps scales as bfloat16, which holds them all, or as float16, which must hold their range.
    activations, out_dtype : torch.dtype, optional
        As for `quantize`; bfloat16 unless given. Activations of float16 take scales of some 20 powers of two.
    """
    side = _Side(scales, dtypes.float8_e8m0, 32, scale_dtype, activations, out_dtype)
    return _in_blocks(_fp4(blocks), dtypes.float4_e2m1, side)


@checked_values
def from_nvfp4(
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    global_scale: float | torch.Tensor,
    *,
    scale_dtype: torch.dtype | None = None,
    activations: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import an NVFP4 layer.

    Parameters
    ----------
    weight : Tensor of uint8, shape (n, k / 2)
        float4_e2m1, even k in the low nibble.
    weight_scale : Tensor of float8_e4m3fn, shape (n, k / 16)
    global_scale : float or Tensor
        What all values are multiplied with (ModelOpt's "weight_scale_2"; compressed-tensors stores its inverse).
    scale_dtype : torch.dtype, optional
        Keeps scales as float16 or bfloat16; both hold the block scales exactly.
    activations, out_dtype : torch.dtype, optional
        As for `quantize`; float16 unless given.
    """
    if scale_dtype is None and out_dtype is None:
        out_dtype = activations if activations in SCALES else torch.float16
    side = _Side(weight_scale, dtypes.float8_e4m3, 16, scale_dtype, activations, out_dtype)
    return _in_blocks(_fp4(weight), dtypes.float4_e2m1, side, only_number("global_scale", global_scale))


@checked_values
def from_mxfp8(
    weight: torch.Tensor,
    scales: torch.Tensor,
    *,
    scale_dtype: torch.dtype | None = None,
    activations: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import an MXFP8 layer.

    Parameters
    ----------
    weight : Tensor of float8_e4m3fn or float8_e5m2, shape (n, k)
    scales : Tensor of uint8, shape (n, k / 32)
        float8_e8m0.
    scale_dtype : torch.dtype, optional
        Keeps scales as bfloat16, which holds them all, or as float16, which must hold their range.
    activations, out_dtype : torch.dtype, optional
        As for `quantize`; bfloat16 unless given.
    """
    if weight.dtype not in FP8:
        raise TypeMismatch(f"from_mxfp8 takes float8_e4m3fn or float8_e5m2, not {weight.dtype}")
    _expect("weight", weight, tuple(FP8), 2)
    codes = weight.detach().cpu().view(torch.uint8).numpy()
    side = _Side(scales, dtypes.float8_e8m0, 32, scale_dtype, activations, out_dtype)
    return _in_blocks(codes, FP8[weight.dtype], side)


@dataclass(frozen=True)
class _Side:
    """The block scales of a checkpoint, shape (n, k / group), and what they and the activations are to become."""

    scales: torch.Tensor
    scale_type: DType
    group: int
    scale_dtype: torch.dtype | None
    activations: torch.dtype | None
    out_dtype: torch.dtype | None


def _fp4(blocks: torch.Tensor) -> Array:
    """Return the codes of rows of nibbles, the first in the low one."""
    if blocks.ndim == 4:
        raise ShapeMismatch(
            f"blocks of shape {tuple(blocks.shape)} are those of {blocks.shape[0]} experts, expected one",
            hint="tilus.ops.stack_experts([from_mxfp4(b, s) for b, s in zip(blocks, scales)])",
        )
    _expect("the packed weight", blocks, (torch.uint8,), 3 if blocks.ndim == 3 else 2)
    stored = blocks.detach().cpu().numpy().reshape(blocks.shape[0], -1)
    return unpack(stored, dtypes.float4_e2m1, stored.shape[1] * 2)


def _in_blocks(codes: Array, dtype: DType, side: _Side, factor: float = 1.0) -> QuantizedWeight:
    """Import codes (n, k) with a scale for each block of a row, which a wider type must hold exactly."""
    n, k = codes.shape
    if side.scales.element_size() != 1:
        raise TypeMismatch(
            f"block scales are {side.scales.dtype}, expected codes of {side.scale_type} in bytes"
        )
    if tuple(side.scales.shape) != (n, k // side.group) or k % side.group:
        raise ShapeMismatch(
            f"scales of shape {tuple(side.scales.shape)} do not fit a weight of {n} x {k} in blocks of {side.group}"
        )
    stored = side.scales.detach().cpu().view(torch.uint8).t().contiguous()
    exact = decode(stored.numpy(), side.scale_type).astype(np.float64)
    if not np.isfinite(exact).all():
        raise TypeMismatch("a block scale is NaN")
    turned = np.ascontiguousarray(codes.T)
    if side.scale_dtype is None or stored_type(side.scale_dtype) == side.scale_type:
        return from_codes(
            turned, dtype, stored, None, side.group, alpha=factor, activations=side.activations,
            scale_type=side.scale_type, out_dtype=side.out_dtype,
        )  # fmt: skip
    tensor, alpha = split_scales(exact, side.scale_dtype)
    if not torch.equal(tensor.to(torch.float64) * alpha, torch.from_numpy(exact)):
        raise TypeMismatch(
            f"the block scales do not fit {side.scale_dtype}", hint="scale_dtype=torch.bfloat16"
        )
    return from_codes(
        turned, dtype, tensor, None, side.group, alpha=alpha * factor, activations=side.activations,
        out_dtype=side.out_dtype,
    )  # fmt: skip


@checked_values
def from_nf4(
    weight: torch.Tensor,
    absmax: torch.Tensor,
    shape: tuple[int, int],
    *,
    block_size: int = 64,
    table: torch.Tensor | None = None,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> QuantizedWeight:
    """Import a bitsandbytes layer of 4 bits.

    Parameters
    ----------
    weight : Tensor of uint8, n * k / 2 elements
        The first of two elements in the high nibble, rows of (n, k) one after the other.
    absmax : Tensor of float32, n * k / block_size elements
        Scales (of nested quantisation, after decoding them).
    shape : tuple of int
        (n, k).
    block_size : int
        Elements that share a scale; it divides k.
    table : Tensor of 16 values, optional
        The code's values ("quant_map"); NF4 unless given.
    scale_dtype : torch.dtype
        float16 or bfloat16, to which scales are rounded.
    """
    n, k = shape
    if weight.dtype != torch.uint8:
        raise TypeMismatch(f"from_nf4 takes bytes, not {weight.dtype}", hint="weight.view(torch.uint8)")
    if (
        block_size < 1
        or k % block_size
        or weight.numel() != n * k // 2
        or absmax.numel() != n * k // block_size
    ):
        raise ShapeMismatch(
            f"{weight.numel()} bytes and {absmax.numel()} scales do not fit {n} x {k} in blocks of {block_size}",
            hint="a block size that divides k",
        )
    dtype = dtypes.nf4 if table is None else table_type(table.flatten().tolist())
    if dtype.bits != 4:
        raise ShapeMismatch(f"table has {2**dtype.bits} values, expected 16")
    stored = weight.detach().cpu().reshape(-1).numpy()
    codes = np.stack([stored >> 4, stored & 15], axis=-1).reshape(n, k)
    scale, alpha = split_scales(
        absmax.detach().cpu().double().numpy().reshape(n, k // block_size).T, scale_dtype
    )
    return from_codes(np.ascontiguousarray(codes.T), dtype, scale, None, block_size, alpha=alpha)


@checked_values
def from_bitnet(
    weight: torch.Tensor,
    scale: float | torch.Tensor,
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import a ternary BitNet layer as transformers stores it.

    Parameters
    ----------
    weight : Tensor of uint8, shape (n / 4, k)
        Bits 2i and 2i + 1 of row r hold value + 1 of output channel ``i * n / 4 + r``.
    scale : float or Tensor
        What values are multiplied with. A layer of the class "autobitlinear" stores it as "weight_scale"; one of the
        class "bitlinear" stores its inverse there.
    scale_dtype : torch.dtype
        float16 or bfloat16, of the activations.
    """
    _expect("weight", weight, (torch.uint8,), 2)
    stored = weight.detach().cpu().numpy()
    codes = np.concatenate([(stored >> (2 * i)) & 3 for i in range(4)], axis=0)
    if (codes == 3).any():
        raise TypeMismatch("a ternary weight holds a code that stands for no value")
    n, k = codes.shape
    ones = torch.ones((1, n), dtype=scale_dtype)
    return from_codes(
        np.ascontiguousarray(codes.T),
        dtypes.ternary,
        ones,
        None,
        k,
        alpha=only_number("scale", scale),
        activations=activations,
    )


@checked_values
def from_hqq(
    w_q: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    shape: tuple[int, int] | torch.Tensor,
    *,
    bits: int = 4,
    group_size: int = 64,
    scale_dtype: torch.dtype = torch.float16,
) -> QuantizedWeight:
    """Import an HQQ layer with groups along its inputs ("axis" 1).

    Parameters
    ----------
    w_q : Tensor of uint8 (of int32 for 3 bits)
        Rows of `group_size` codes each, one group below the other. All rows lie in as many parts as codes fit in an
        element (10 for 3 bits), the first part in the highest bits.
    scale, zero : Tensor, n * k / group_size elements
        A value is ``(code - zero) * scale``.
    shape : tuple of int, or Tensor of 2 elements
        (n, k).
    bits : int
        1, 2, 3, 4 or 8.
    group_size : int
        Elements that share a scale; it divides k.
    scale_dtype : torch.dtype
        float16 or bfloat16, of the activations; scales and zero points are rounded to it.
    """
    n, k = _pair("shape", shape)
    if bits not in (1, 2, 3, 4, 8):
        raise TypeMismatch(f"HQQ packs 1, 2, 3, 4 and 8 bits, not {bits}")
    stored_as = torch.int32 if bits == 3 else torch.uint8
    _expect("w_q", w_q, (stored_as,), 2)
    parts = 10 if bits == 3 else 8 // bits
    groups = n * k // group_size if group_size > 0 else 0
    if groups == 0 or k % group_size or tuple(w_q.shape) != (-(-groups // parts), group_size):
        raise ShapeMismatch(
            f"codes of shape {tuple(w_q.shape)} do not fit {bits} bits of {n} x {k} in groups of {group_size} along k",
            hint="a group size that divides k, and a layer whose axis is 1",
        )
    if scale.numel() != groups or zero.numel() != groups:
        raise ShapeMismatch(
            f"{scale.numel()} scales and {zero.numel()} zero points do not fit {n} x {k} in groups of {group_size}"
        )
    words = w_q.detach().cpu().numpy()
    top = bits * (parts - 1)
    codes = np.concatenate([(words >> (top - bits * part)) & ((1 << bits) - 1) for part in range(parts)])
    tensor, alpha = split_scales(
        scale.detach().cpu().double().numpy().reshape(n, k // group_size).T, scale_dtype
    )
    shift = zero.detach().cpu().double().reshape(n, k // group_size).t().to(scale_dtype).contiguous()
    rows = codes[:groups].astype(np.uint8).reshape(n, k)
    return from_codes(np.ascontiguousarray(rows.T), UNSIGNED[bits], tensor, shift, group_size, alpha=alpha)
