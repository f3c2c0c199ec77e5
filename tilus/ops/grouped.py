"""Grouped products: rows that belong to different experts, each expert with a matrix of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tilus import dtypes
from tilus.codegen import Target
from tilus.codegen.casts import stored_exponent
from tilus.dtypes import DType
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked, checked_values
from tilus.ops.device import processors, target_of
from tilus.ops.gradients import operator
from tilus.ops.grouped_hopper_kernel import grouped_hopper_kernel
from tilus.ops.grouped_kernel import grouped_matmul_kernel, grouped_quantized_kernel
from tilus.ops.library import LIBRARY
from tilus.ops.quantized_matmul import EPILOGUES
from tilus.ops.quantized_schedule import Schedule, WeightForm, fitting
from tilus.ops.routing import Routing
from tilus.ops.scales import kernel_scale, scale_exponent
from tilus.ops.schedules import fits_bulk_copies, grouped_blocks
from tilus.ops.schedules import grouped_schedule as hopper_grouped_schedule
from tilus.ops.weights import QuantizedWeight, interleave

FLOATS = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16}
FLOAT8 = {torch.float8_e4m3fn: dtypes.float8_e4m3, torch.float8_e5m2: dtypes.float8_e5m2}
OPERANDS = {**FLOATS, **FLOAT8, torch.int8: dtypes.int8}
OUTPUTS = {**FLOATS, torch.float32: dtypes.float32}
FEWEST_ROWS = 16
"""The tensor core's first operand has at least so many rows."""


@dataclass(frozen=True, eq=False)
class QuantizedExperts:
    """Quantised weights of the same shape and type, one for each expert.

    Attributes
    ----------
    dtype : DType
        Of the codes.
    shape : tuple of int
        experts, k, n.
    group_size : int
        Elements along k that share a scale.
    packed : Tensor of uint8, shape (experts, k / 128, n / 32, 512 * bits), rounded up
    scale : Tensor of float16, bfloat16 or uint8, shape (experts, groups, n rounded up)
    zero : Tensor or None
        Of the scale's shape and the results' dtype.
    alpha : Tensor of float32, shape (experts,)
        A factor of all values of an expert.
    gated : bool
        Whether columns are pairs of a gate and what it multiplies (`gated_pair`).
    scale_type : DType or None
        float8_e4m3 or float8_e8m0, of which `scale` holds the codes where it is of uint8; else None.
    out_dtype : torch.dtype or None
        The type of results where scales are of 8 bits; None where it is theirs.
    """

    dtype: DType
    shape: tuple[int, int, int]
    group_size: int
    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    alpha: torch.Tensor
    gated: bool = False
    scale_type: DType | None = None
    out_dtype: torch.dtype | None = None

    @property
    def result(self) -> torch.dtype:
        """The type of activations and results, float16 or bfloat16."""
        return self.out_dtype or self.scale.dtype

    def to(self, device: torch.device | str) -> QuantizedExperts:
        """Return the weights on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        packed, scale, alpha = (x.to(device) for x in (self.packed, self.scale, self.alpha))
        return replace(self, packed=packed, scale=scale, zero=zero, alpha=alpha)


@checked_values
def stack_experts(weights: Sequence[QuantizedWeight]) -> QuantizedExperts:
    """Put the weights of experts into one tensor each for codes, scales and zero points.

    Parameters
    ----------
    weights : sequence of QuantizedWeight
        Of equal shape, type and group size, for activations of 16 bits.

    Returns
    -------
    QuantizedExperts

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where they differ, or have an order of rows of their own.
    """
    if not weights:
        raise ShapeMismatch("stack_experts needs at least one weight")
    first = weights[0]
    forms = {
        (w.dtype, w.shape, w.group_size, w.scale_type, w.result, w.zero is None, w.gated) for w in weights
    }
    if len(forms) > 1:
        raise ShapeMismatch("experts differ in shape, types, group size, zero points or gate")
    if any(w.order is not None for w in weights):
        raise TypeMismatch("experts whose rows were sorted by group (act-order) are not supported")
    if any(w.activations not in (None, *FLOATS) for w in weights):
        raise TypeMismatch(
            "experts were quantised for activations of 8 bits", hint="quantize(...) without activations="
        )
    return QuantizedExperts(
        first.dtype,
        (len(weights), *first.shape),
        first.group_size,
        torch.stack([w.packed for w in weights]),
        torch.stack([w.scale for w in weights]),
        None if first.zero is None else torch.stack([w.zero for w in weights if w.zero is not None]),
        torch.tensor([w.alpha for w in weights], dtype=torch.float32, device=first.packed.device),
        first.gated,
        first.scale_type,
        first.out_dtype,
    )


@checked
def grouped_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    rows: Routing | torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    activation: str = "",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Multiply rows with the matrices of the experts that they belong to.

    Parameters
    ----------
    a : Tensor of float16, bfloat16, float8 or int8
        Of shape (capacity, k), in the order of a `Routing` (`gather_rows`); or of shape (experts, capacity, k), of
        which each expert uses as many rows as `rows` says.
    b : Tensor of a's dtype, shape (experts, k, n)
        Each row-major, or the transpose of a row-major matrix; of 8 bits the latter, or it is copied. Both float8
        types go together.
    rows : Routing, or Tensor of int32 of shape (experts,)
        Whose rows these are, on the device.
    bias : Tensor of the output's dtype, shape (experts, n), optional
    a_scale : Tensor of float32, optional
        Factors of a's rows, of a's shape without the last dimension; or one of all rows, of shape ().
    b_scale : Tensor of float32, optional
        A factor of each expert, of shape (experts,); or of each of its columns, of shape (experts, n).
    activation : str
        relu, gelu or silu, or nothing.
    out_dtype : torch.dtype, optional
        float16, bfloat16 or float32; a's own dtype unless given, bfloat16 for 8-bit types.

    Returns
    -------
    Tensor of the output's dtype, shape (..., n)
        ``activation(a @ b[expert] * a_scale * b_scale[expert] + bias[expert])``, accumulated in float32 (int8 in
        int32). Rows of blocks that no expert uses are left as they are in memory; others that fill up a block hold what
        comes of their zeros.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    if a.dtype not in OPERANDS:
        raise TypeMismatch(
            f"grouped_matmul takes activations of float16, bfloat16, float8 or int8, not {a.dtype}"
        )
    if b.ndim != 3 or (b.dtype != a.dtype and not (a.dtype in FLOAT8 and b.dtype in FLOAT8)):
        raise ShapeMismatch(
            f"b is {b.dtype} of shape {tuple(b.shape)}, expected {a.dtype} of shape (experts, k, n)"
        )
    count, k, n = b.shape
    owners, block = owners_of(a, rows, count, k)
    result = out_dtype or result_dtype(a)
    if result not in OUTPUTS:
        raise TypeMismatch(f"grouped_matmul gives float16, bfloat16 or float32, not {result}")
    _check_epilogue(bias, activation, (count, n), result)
    _check_scale("a_scale", a_scale, ((), tuple(a.shape[:-1])))
    _check_scale("b_scale", b_scale, ((count,), (count, n)))
    out: torch.Tensor = operator("grouped_matmul", a, b, bias, a_scale, b_scale)(
        a, b, owners, block, bias, activation, a_scale, b_scale, out_dtype
    )
    return out


def result_dtype(a: torch.Tensor) -> torch.dtype:
    """Return the output's dtype where none is asked for."""
    return torch.bfloat16 if a.itemsize == 1 else a.dtype


@checked
def grouped_quantized_matmul(
    a: torch.Tensor,
    experts: QuantizedExperts,
    rows: Routing | torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    activation: str = "",
) -> torch.Tensor:
    """Multiply rows with the quantised weights of the experts that they belong to.

    Parameters
    ----------
    a : Tensor of the type of the experts' results
        As for `grouped_matmul`.
    experts : QuantizedExperts
    rows : Routing, or Tensor of int32 of shape (experts,)
        As for `grouped_matmul`.
    bias : Tensor of a's dtype, shape (experts, n), optional
        Of gated pairs that of the gate comes first.
    activation : str
        relu, gelu or silu, or nothing; of gated pairs it is applied to the gate.

    Returns
    -------
    Tensor of a's dtype, shape (..., n), or (..., n / 2) of gated pairs
        As for `grouped_matmul`.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    count, k, n = experts.shape
    if a.dtype != experts.result:
        option = "scale_dtype" if experts.scale_type is None else "out_dtype"
        raise TypeMismatch(
            f"activations are {a.dtype}, but the experts were quantised for {experts.result}",
            hint=f"quantize(..., {option}={a.dtype})",
        )
    owners, block = owners_of(a, rows, count, k, fewest=1)
    _check_epilogue(bias, activation, (count, n), a.dtype)
    if bias is not None and experts.gated:
        bias = torch.stack([interleave(row[: n // 2], row[n // 2 :]) for row in bias])
    out: torch.Tensor = operator("grouped_quantized_matmul", a, bias)(
        a, experts.packed, experts.scale, experts.zero, experts.alpha, owners, experts.dtype.name, k, n,
        experts.group_size, block, bias, activation, experts.gated,
        "" if experts.scale_type is None else experts.scale_type.name,
    )  # fmt: skip
    return out


def owners_of(
    a: torch.Tensor, rows: Routing | torch.Tensor, count: int, k: int, fewest: int = FEWEST_ROWS
) -> tuple[torch.Tensor, int]:
    """Return what says whose rows these are, and how many rows a block has, 0 for counts of each expert."""
    if isinstance(rows, Routing):
        if a.ndim != 2 or tuple(a.shape) != (rows.rows.shape[0], k):
            raise ShapeMismatch(
                f"activations of shape {tuple(a.shape)}, expected {(rows.rows.shape[0], k)} for this routing"
            )
        if rows.counts.shape[0] != count:
            raise ShapeMismatch(f"the routing is for {rows.counts.shape[0]} experts, but there are {count}")
        if rows.block < fewest:
            raise ShapeMismatch(
                f"blocks of {rows.block} rows are fewer than the tensor core's {fewest}",
                hint=f"sort_by_expert(..., block={fewest})",
            )
        return rows.block_expert, rows.block
    if rows.dtype != torch.int32 or tuple(rows.shape) != (count,):
        raise ShapeMismatch(
            f"counts are {rows.dtype} of shape {tuple(rows.shape)}, expected torch.int32 of shape {(count,)}"
        )
    if a.ndim != 3 or (a.shape[0], a.shape[2]) != (count, k):
        raise ShapeMismatch(
            f"activations of shape {tuple(a.shape)}, expected (experts, capacity, k) with {count} experts and k = {k}"
        )
    return rows, 0


def _check_epilogue(
    bias: torch.Tensor | None, activation: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    if activation not in EPILOGUES:
        raise TypeMismatch(f"no activation named {activation!r}", hint="relu, gelu or silu, or leave it out")
    if bias is not None and (tuple(bias.shape) != shape or bias.dtype != dtype):
        raise ShapeMismatch(
            f"bias is {bias.dtype} of shape {tuple(bias.shape)}, expected {dtype} of shape {shape}"
        )


def _check_scale(name: str, scale: torch.Tensor | None, shapes: tuple[tuple[int, ...], ...]) -> None:
    if scale is not None and (scale.dtype != torch.float32 or tuple(scale.shape) not in shapes):
        raise ShapeMismatch(
            f"{name} is {scale.dtype} of shape {tuple(scale.shape)}, expected {torch.float32} of shape "
            + " or ".join(map(str, shapes))
        )


LIBRARY.define(
    "grouped_matmul(Tensor a, Tensor b, Tensor owners, int block, Tensor? bias=None, str activation='', "
    "Tensor? a_scale=None, Tensor? b_scale=None, ScalarType? out_dtype=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "grouped_quantized_matmul(Tensor a, Tensor packed, Tensor scale, Tensor? zero, Tensor alpha, Tensor owners, "
    "str dtype, int k, int n, int group, int block, Tensor? bias=None, str activation='', bool gated=False, "
    "str scale_type='') -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def tile_rows(block: int, rows: int, most: int) -> int:
    """Return the rows of a tile: those of a block, or as many as are worth it for an expert's capacity."""
    if block:
        return min(block, most)
    return next((size for size in (16, 32, 64) if rows <= size), most)


def with_groups(a: torch.Tensor) -> torch.Tensor:
    """Return activations as (groups, rows, k), with rows that are contiguous."""
    whole = a if a.ndim == 3 else a.unsqueeze(0)
    return whole if whole.stride(-1) == 1 else whole.contiguous()


def _matrices(b: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the experts' matrices with rows that are contiguous, and whether they are given as their transposes."""
    turned = b.transpose(1, 2)
    if b.itemsize == 1:
        return (turned if turned.stride(2) == 1 else turned.contiguous()), True
    if b.stride(2) != 1 and b.stride(1) == 1:
        return turned, True
    return (b if b.stride(2) == 1 else b.contiguous()), False


def _run(
    a: torch.Tensor,
    b: torch.Tensor,
    owners: torch.Tensor,
    block: int,
    bias: torch.Tensor | None = None,
    activation: str = "",
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    out = _fake(a, b, owners, block, bias, activation, a_scale, b_scale, out_dtype)
    if not out.numel():
        return out
    matrices, turned = _matrices(b)
    rows, dtype = with_groups(a), OPERANDS[a.dtype]
    target = target_of(a)
    block_m = tile_rows(block, rows.shape[1], 128)
    none = torch.empty((1, 1), dtype=torch.float32, device=a.device)
    result = out.view(*rows.shape[:2], -1)
    arguments = (
        rows,
        matrices,
        bias if bias is not None else out.view(-1, out.shape[-1]),
        none if a_scale is None else a_scale.reshape(rows.shape[:2] if a_scale.ndim else (1, 1)),
        none if b_scale is None else b_scale.reshape(b_scale.shape[0], -1),
        owners,
        result,
    )
    options = {
        "dtype": dtype,
        "b_dtype": OPERANDS[b.dtype],
        "out_dtype": OUTPUTS[out.dtype],
        "acc_dtype": dtypes.int32 if dtype.is_integer else dtypes.float32,
        "b_turned": turned,
        "masked": block == 0,
        "has_bias": bias is not None,
        "a_scales": "" if a_scale is None else "rows" if a_scale.ndim else "tensor",
        "b_scales": "" if b_scale is None else "columns" if b_scale.ndim == 2 else "experts",
        "activation": activation,
        "block": block or block_m,
    }
    if target.has("wgmma") and a.shape[-1] and fits_bulk_copies(rows) and fits_bulk_copies(matrices):
        (groups, height), n, count = rows.shape[:2], b.shape[2], processors(a)
        chosen = hopper_grouped_schedule(
            block_m, groups * height, n, dtype.bits, OUTPUTS[out.dtype].bits, target, count
        )
        blocks = grouped_blocks(chosen, groups, height, n, count)
        grouped_hopper_kernel(
            *arguments, blocks, **options, **vars(chosen), bulk_store=fits_bulk_copies(result)
        )
        return out
    grouped_matmul_kernel(
        *arguments,
        **options,
        native=a.dtype not in FLOAT8 or target.has("mma_fp8"),
        block_m=block_m,
        block_n=128 if b.shape[2] > 64 else 64,
        # Rows of 128 bytes, the widest that a swizzle has.
        block_k=1024 // dtype.bits,
        stages=4 if target.shared_bytes >= 160_000 else 3 if block_m < 128 else 2,
        warps=8 if block_m == 128 and target.has("wgmma") else 4,
    )
    return out


def _fake(
    a: torch.Tensor,
    b: torch.Tensor,
    owners: torch.Tensor,
    block: int,
    bias: torch.Tensor | None = None,
    activation: str = "",
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[2]), dtype=out_dtype or result_dtype(a))


def grouped_schedule(block: int, rows: int, form: WeightForm, target: Target) -> Schedule:
    """Return the tiles for quantised experts: those of a plain product with as many rows as a block has."""
    block_m = tile_rows(block, rows, 64)
    if block_m == 8:
        return fitting(Schedule(block_m=8, swap=True), form, target)
    chosen = fitting(Schedule(block_m=block_m, stages=4 if block_m == 16 else 3), form, target)
    return chosen


def _run_quantized(
    a: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    alpha: torch.Tensor,
    owners: torch.Tensor,
    dtype: str,
    k: int,
    n: int,
    group: int,
    block: int,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    scale_type: str = "",
) -> torch.Tensor:
    out = a.new_empty((*a.shape[:-1], n // 2 if gated else n))
    if not out.numel():
        return out
    rows = with_groups(a)
    target, code_type, own = target_of(a), dtypes.dtype(dtype), FLOATS[a.dtype]
    stored = dtypes.dtype(scale_type) if scale_type else None
    form = WeightForm(code_type, own, group, zero is not None, stored)
    # A kernel does not read these.
    unread = scale.view(a.dtype)
    chosen = grouped_schedule(block, rows.shape[1], form, target)
    grouped_quantized_kernel(
        rows,
        packed,
        kernel_scale(scale, stored),
        zero if zero is not None else unread,
        alpha,
        bias if bias is not None else unread[0],
        owners,
        out.view(*rows.shape[:2], -1),
        n,
        a_dtype=own,
        b_dtype=code_type,
        s_dtype=stored or own,
        group=form.rows_of_scale(k),
        has_zero=zero is not None,
        exponent=stored_exponent(code_type, own, target),
        s_exponent=scale_exponent(stored, code_type, a.dtype),
        masked=block == 0,
        has_bias=bias is not None,
        activation=activation,
        gated=gated,
        block=block or chosen.block_m,
        swap=chosen.swap,
        block_m=chosen.block_m,
        block_n=chosen.block_n,
        stages=chosen.stages,
        warps=chosen.warps,
    )
    return out


def _fake_quantized(
    a: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    alpha: torch.Tensor,
    owners: torch.Tensor,
    dtype: str,
    k: int,
    n: int,
    group: int,
    block: int,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    scale_type: str = "",
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], n // 2 if gated else n))


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("grouped_matmul", _run, _device)
    LIBRARY.impl("grouped_quantized_matmul", _run_quantized, _device)
torch.library.register_fake("tilus::grouped_matmul", _fake, lib=LIBRARY)
torch.library.register_fake("tilus::grouped_quantized_matmul", _fake_quantized, lib=LIBRARY)
