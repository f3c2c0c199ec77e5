"""`quantized_matmul`: activations times a quantised weight, as a function and as a torch op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from tilus import dtypes
from tilus.codegen import Target
from tilus.codegen.casts import stored_exponent
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.arrivals import arrivals
from tilus.ops.call import Call
from tilus.ops.checks import checked
from tilus.ops.device import device_name, processors, target_of
from tilus.ops.gradients import operator
from tilus.ops.library import LIBRARY
from tilus.ops.prepack import ROW, UNIT_K
from tilus.ops.quantized_kernel import quantized_matmul_kernel
from tilus.ops.quantized_schedule import Schedule, WeightForm, choose, fits_deep, scales_late, stage_bytes
from tilus.ops.quantized_tiles import looks_up
from tilus.ops.quantized_wgmma import WgmmaSchedule, wgmma_schedule
from tilus.ops.quantized_wgmma_call import wgmma_call
from tilus.ops.scales import BYTES, scale_exponent
from tilus.ops.schedules import fits_bulk_copies
from tilus.ops.tokens import QuantizedTokens, quantize_tokens
from tilus.ops.tuned import lookup, made_of
from tilus.ops.weights import QuantizedWeight, interleave, operand_type

ACTIVATIONS = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16}
OPERANDS = {**ACTIVATIONS, **BYTES}
EPILOGUES = ("", "relu", "gelu", "silu")


@checked
def quantized_matmul(
    a: torch.Tensor | QuantizedTokens,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    activation: str = "",
) -> torch.Tensor:
    """Multiply activations with a quantised weight.

    Parameters
    ----------
    a : Tensor of float16 or bfloat16, shape (..., k), or QuantizedTokens
        Of the dtype of the weight's scales; on the GPU or, for the simulator, on the CPU. For a weight that was
        quantised for activations of 8 bits, `quantize_tokens` is applied to it.
    weight : QuantizedWeight, k x n
        On the same device.
    bias : Tensor, shape (n,), optional
        Added to each row. Of a gated pair that of the gate comes first.
    activation : str
        Applied last: relu, gelu or silu, or nothing. Of a gated pair to the gate, before it multiplies the rest.

    Returns
    -------
    Tensor of the dtype of the weight's scales, shape (..., n)
        ``activation(a @ weight.dequantize() + bias)``, accumulated in float32 (int32 for int8); of a gated pair with
        n / 2 columns. Without activation and gate, and with activations of 16 bits, it has gradients with respect to a
        and to the bias.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where a, the weight and the bias do not fit.
    """
    k, n = weight.shape
    wanted = weight.activations or weight.result
    if activation not in EPILOGUES:
        raise TypeMismatch(f"no activation named {activation!r}", hint="relu, gelu or silu, or leave it out")
    if bias is not None:
        if tuple(bias.shape) != (n,):
            raise ShapeMismatch(f"a bias of shape {tuple(bias.shape)} does not fit a weight of {k} x {n}")
        bias = bias.to(weight.result)
        if weight.gated:
            bias = interleave(bias[: n // 2], bias[n // 2 :])
    if isinstance(a, QuantizedTokens):
        if a.values.dtype != wanted:
            raise TypeMismatch(
                f"activations are {a.values.dtype}, but the weight was quantised for {wanted}",
                hint=f"quantize(..., activations={a.values.dtype})",
            )
        if a.values.shape[-1] != k:
            raise ShapeMismatch(
                f"activations of shape {tuple(a.values.shape)} do not fit a weight of {k} x {n}"
            )
        if weight.order is not None:
            raise TypeMismatch(
                "the weight's rows are in an order of their own, which activations must be brought to before they are "
                "quantised",
                hint="pass activations of 16 bits",
            )
        tokens, leading = a, a.values.shape[:-1]
    else:
        if a.dtype not in ACTIVATIONS:
            raise TypeMismatch(
                f"quantized_matmul takes float16 or bfloat16 activations, not {a.dtype}",
                hint=f"a.to({weight.result})",
            )
        if a.dtype != weight.result:
            option = "scale_dtype" if weight.scale_type is None else "out_dtype"
            raise TypeMismatch(
                f"activations are {a.dtype}, but the weight was quantised for {weight.result}",
                hint=f"quantize(..., {option}={a.dtype})",
            )
        if a.ndim == 0 or a.shape[-1] != k:
            raise ShapeMismatch(f"activations of shape {tuple(a.shape)} do not fit a weight of {k} x {n}")
        if wanted in ACTIVATIONS:
            out: torch.Tensor = operator("quantized_matmul", a, bias)(
                a, weight.packed, weight.scale, weight.zero, weight.dtype.name, k, n, weight.group_size, weight.alpha,
                weight.order, bias, activation, weight.gated, weight.scale_name,
            )  # fmt: skip
            return out
        leading = a.shape[:-1]
        if weight.order is not None:
            a = a.index_select(-1, weight.order)
        tokens = quantize_tokens(a, wanted)
    found = operator("quantized_matmul_bytes", tokens.scale, bias)(
        tokens.values, tokens.scale, weight.packed, weight.scale, weight.zero, weight.dtype.name, k, n,
        weight.group_size, weight.alpha, bias, activation, weight.gated, weight.scale_name, weight.out_dtype,
    )  # fmt: skip
    made: torch.Tensor = found.reshape(*leading, found.shape[-1])
    return made


LIBRARY.define(
    "quantized_matmul(Tensor a, Tensor packed, Tensor scale, Tensor? zero, str dtype, SymInt k, SymInt n, int group, "
    "float alpha=1.0, Tensor? order=None, Tensor? bias=None, str activation='', bool gated=False, "
    "str scale_type='') -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "quantized_matmul_bytes(Tensor a, Tensor row_scale, Tensor packed, Tensor scale, Tensor? zero, str dtype, "
    "SymInt k, SymInt n, int group, float alpha=1.0, Tensor? bias=None, str activation='', bool gated=False, "
    "str scale_type='', ScalarType? out_dtype=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def call_of(
    rows: torch.Tensor,
    weight: QuantizedWeight,
    schedule: Schedule | WgmmaSchedule,
    target: Target,
    *,
    out: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "",
) -> Call:
    """Return the call of the kernel that `quantized_matmul` would make with a schedule, to compile or to measure it.

    Parameters
    ----------
    rows : Tensor, shape (m, k)
        Activations as the kernel reads them, of 16 or 8 bits.
    weight : QuantizedWeight
    schedule : Schedule or WgmmaSchedule
    target : Target
    out : Tensor, shape (1, m, columns), optional
        Of the type of results; a new one unless given.
    row_scale : Tensor of float32, optional
        As in `QuantizedTokens`.
    bias : Tensor, shape (n,), optional
        In the order of packed columns.
    activation : str
        relu, gelu, silu or none.
    """
    k, n = weight.shape
    form = form_of(weight, rows)
    if out is None:
        shape = (1, rows.shape[0], n // 2 if weight.gated else n)
        out = torch.empty(shape, dtype=weight.result, device=rows.device)
    if isinstance(schedule, WgmmaSchedule):
        return wgmma_call(
            rows, weight, schedule, target, processors(rows), out=out, row_scale=row_scale, bias=bias,
            activation=activation,
        )  # fmt: skip
    # A kernel does not read these.
    unread = weight.scale.view(weight.result)
    floats, counters = weight.scale.view(torch.float32), weight.scale.view(torch.int32)[0]
    parts, blocks = floats.unsqueeze(0), 1
    if schedule.blocks or schedule.splits > 1:
        tiles = -(-rows.shape[0] // schedule.block_m) * -(-n // schedule.block_n)
        blocks = schedule.blocks or schedule.splits
        slots = 2 * blocks if schedule.blocks else tiles * blocks
        parts = torch.empty((slots, schedule.block_m, schedule.block_n), device=rows.device)
        counters = arrivals(rows.device, tiles)
    arguments = (
        rows, weight.packed.view(weight.packed.shape[0], -1, ROW), weight.kernel_scale,
        unread if weight.zero is None else weight.zero, floats if row_scale is None else row_scale,
        unread[0] if bias is None else bias, out, parts, counters, weight.alpha, n, blocks,
    )  # fmt: skip
    options = {
        **_fixed_options(schedule, form, target, k, rows.dtype, weight.result),
        "bulk": target.has("tma") and fits_bulk_copies(rows), "has_bias": bias is not None, "activation": activation,
        "gated": weight.gated,
    }  # fmt: skip
    if row_scale is not None:
        options["has_row_scale"] = True
        if row_scale.shape[0] > 1:
            options |= {"by_block": True, "span": min(form.group, UNIT_K)}
    return Call(quantized_matmul_kernel, arguments, options)


@lru_cache(maxsize=4096)
def _fixed_options(
    schedule: Schedule, form: WeightForm, target: Target, k: int, rows: torch.dtype, result: torch.dtype
) -> Mapping[str, Any]:
    """Return the options that follow from a schedule and types: each call of an op asks for them."""
    operand, made = operand_type(form.dtype, rows), OPERANDS[result]
    span = UNIT_K
    if schedule.late:
        span = 0 if form.group >= k else min(form.group, UNIT_K)
    return MappingProxyType(
        {
            "a_dtype": form.activations, "b_dtype": form.dtype, "w_dtype": operand, "s_dtype": form.scale or made,
            "out_dtype": made, "group": form.rows_of_scale(k), "span": span, "has_zero": form.has_zero,
            "late": schedule.late, "halves": rows == torch.float8_e4m3fn and not target.has("mma_fp8"),
            "exponent": stored_exponent(form.dtype, operand, target), "lookup": looks_up(schedule, form, target),
            "s_exponent": 0 if schedule.late else scale_exponent(form.scale, form.dtype, rows), "swap": schedule.swap,
            "deep": schedule.deep, "block_m": schedule.block_m, "block_n": schedule.block_n, "stages": schedule.stages,
            "warps": schedule.warps, "split": not schedule.blocks and schedule.splits > 1,
            "stream": schedule.blocks > 0,
        }
    )  # fmt: skip


def form_of(weight: QuantizedWeight, rows: torch.Tensor) -> WeightForm:
    """Return what matters of a weight to the choice of a schedule."""
    has_zero, (k, _) = weight.zero is not None, weight.shape
    # One group of few rows takes no more memory than that of a whole unit.
    group = weight.group_size if weight.group_size < k else max(k, UNIT_K)
    return WeightForm(weight.dtype, OPERANDS[rows.dtype], group, has_zero, weight.scale_type)


def known_schedule(
    m: int, n: int, k: int, form: WeightForm, target: Target, device: str, bulk: bool
) -> Schedule | WgmmaSchedule | None:
    """Return the schedule that was tuned or ships for products like this one, None where there is none that fits.

    Parameters
    ----------
    m, n, k : int
    form : WeightForm
    target : Target
    device : str
        The device's name.
    bulk : bool
        Whether TMA can read the activations.
    """
    # Integers with a sign and without are decoded alike; what other types take differs.
    code = f"int{form.dtype.bits}" if form.dtype.kind in ("uint", "int") else form.dtype.name
    key = {
        "code": code, "activations": 16 if form.activations.bits == 16 else form.activations.name,
        "group": -1 if form.group >= k else form.group, "zero": form.has_zero, "m": m, "n": n, "k": k,
    }  # fmt: skip
    found = lookup("quantized_matmul", target, key, device)
    if found is None:
        return None
    if "resident" in found:
        return made_of(found, WgmmaSchedule) if bulk and target.has("wgmma") else None
    known = made_of(found, Schedule)
    if known is None:
        return None
    steps = -(-k // (UNIT_K * known.deep))
    if (
        stage_bytes(known, form) * known.stages > target.shared_bytes
        or steps < known.splits
        or (known.deep > 1 and not fits_deep(form.group, k, known.deep))
    ):
        return None
    return replace(known, late=scales_late(known, k, form))


def _multiply(
    rows: torch.Tensor,
    row_scale: torch.Tensor | None,
    weight: QuantizedWeight,
    bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """Multiply rows of activations by the kernel and schedule chosen for the shape."""
    m, (k, n) = rows.shape[0], weight.shape
    out = torch.empty((m, n // 2 if weight.gated else n), dtype=weight.result, device=rows.device)
    if not m or not n:
        return out
    target = target_of(rows)
    form = form_of(weight, rows)
    schedule: Schedule | WgmmaSchedule | None = None
    bulk = fits_bulk_copies(rows)
    by_block = row_scale is not None and row_scale.shape[0] > 1
    # What is known is known of whole devices; the simulator counts as one multiprocessor.
    if rows.device.type == "cuda" and not (weight.gated or by_block):
        schedule = known_schedule(m, n, k, form, target, device_name(rows), bulk)
    if schedule is None and bulk:
        schedule = wgmma_schedule(m, n, k, form, target, processors(rows), weight.gated, by_block)
    schedule = schedule or choose(m, n, k, form, target, processors(rows)).schedule
    call = call_of(
        rows,
        weight,
        schedule,
        target,
        out=out.unsqueeze(0),
        row_scale=row_scale,
        bias=bias,
        activation=activation,
    )
    call()
    return out


def _run(
    a: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    scale_type: str = "",
) -> torch.Tensor:
    rows = a.reshape(-1, k)
    if order is not None:
        rows = rows.index_select(1, order)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    weight = QuantizedWeight(
        dtypes.dtype(dtype), (k, n), group, packed, scale, zero, alpha, None, None, gated,
        *((dtypes.dtype(scale_type), a.dtype) if scale_type else (None, None)),
    )  # fmt: skip
    out = _multiply(rows, None, weight, bias, activation)
    return out.reshape(*a.shape[:-1], out.shape[1])


def _fake(
    a: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    scale_type: str = "",
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], n // 2 if gated else n))


def _run_bytes(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    scale_type: str = "",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    weight = QuantizedWeight(
        dtypes.dtype(dtype), (k, n), group, packed, scale, zero, alpha, None, a.dtype, gated,
        dtypes.dtype(scale_type) if scale_type else None, out_dtype,
    )  # fmt: skip
    return _multiply(a, row_scale, weight, bias, activation)


def _fake_bytes(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    scale_type: str = "",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return a.new_empty((a.shape[0], n // 2 if gated else n), dtype=out_dtype or scale.dtype)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("quantized_matmul", _run, _device)
    LIBRARY.impl("quantized_matmul_bytes", _run_bytes, _device)
torch.library.register_fake("tilus::quantized_matmul", _fake, lib=LIBRARY)
torch.library.register_fake("tilus::quantized_matmul_bytes", _fake_bytes, lib=LIBRARY)
