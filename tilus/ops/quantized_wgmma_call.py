"""What the kernels of the quantised matmul on warpgroups are called with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from tilus.codegen import Target
from tilus.codegen.casts import stored_exponent
from tilus.dtypes import dtype as dtype_of
from tilus.ops.call import Call
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_schedule import WeightForm
from tilus.ops.quantized_wgmma import WgmmaSchedule, operand_of, span_of
from tilus.ops.quantized_wgmma_kernel import quantized_wgmma_kernel
from tilus.ops.quantized_wgmma_parts import ROW
from tilus.ops.quantized_wgmma_sums_kernel import quantized_wgmma_sums_kernel, row_sums_kernel
from tilus.ops.scales import scale_exponent
from tilus.ops.weights import QuantizedWeight
from tilus.ops.workspace import counters

BULK_ALIGN = 16


def bulk_readable(rows: torch.Tensor) -> bool:
    """Tell whether bulk copies can read activations: they begin, and their rows follow, at multiples of 16 bytes."""
    pitch = rows.stride(0) * rows.element_size()
    return rows.stride(1) == 1 and pitch % BULK_ALIGN == 0 and rows.data_ptr() % BULK_ALIGN == 0


def wgmma_call(
    rows: torch.Tensor,
    weight: QuantizedWeight,
    schedule: WgmmaSchedule,
    target: Target,
    processors: int,
    *,
    out: torch.Tensor,
    row_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "",
) -> Call:
    """Return the call of the kernel for a product.

    Parameters
    ----------
    rows : Tensor, shape (m, k)
        Activations of 16 or 8 bits, readable by bulk copies.
    weight : QuantizedWeight
    schedule : WgmmaSchedule
    target : Target
    processors : int
        Multiprocessors of the device.
    out : Tensor, shape (1, m, columns)
        Of the dtype of the results.
    row_scale : Tensor of float32, optional
        Of activations of 8 bits, as in `tilus.ops.QuantizedTokens`.
    bias : Tensor, shape (n,), optional
        In the order of packed columns.
    activation : str
        relu, gelu, silu or none.
    """
    k, n = weight.shape
    own, zero = dtype_of(rows.dtype), weight.zero
    form = WeightForm(weight.dtype, own, weight.group_size, zero is not None, weight.scale_type)
    # A part's rows of bytes are those of its units along n: a bulk copy takes a tile's in one box.
    units = weight.packed.view(weight.packed.shape[0], -1, ROW)
    # A kernel does not read this.
    unread = weight.scale.view(weight.result)
    operands = rows, units, weight.kernel_scale, unread if zero is None else zero
    options: dict[str, Any] = {
        "c_dtype": dtype_of(out.dtype), "bulk_store": out.shape[2] * out.element_size() % BULK_ALIGN == 0,
        "has_bias": bias is not None, "activation": activation, "gated": weight.gated,
    }  # fmt: skip
    division = schedule.division(rows.shape[0], n, k, processors)
    sum_dtype = torch.float32
    if own.is_integer and not span_of(form, k, row_scale is not None and row_scale.shape[0] > 1):
        sum_dtype = torch.int32
    if division.shared_tiles:
        slots = 2 * division.clusters * schedule.cluster
        shape = slots, schedule.block_n, schedule.block_m
        partial = torch.empty(shape, dtype=sum_dtype, device=rows.device)
        arrived = counters(rows, division.shared_tiles * schedule.cluster)
    else:
        partial, arrived = _nothing(rows.device, sum_dtype)
    ending = (
        unread[0] if bias is None else bias, out, partial, arrived, weight.alpha, n, division.shared_tiles,
        division.clusters,
    )  # fmt: skip
    options["stream"] = division.shared_tiles > 0
    if own.bits == 16:
        options |= _fixed_options(schedule, form, target, k)
        options["s_dtype"] = form.scale or own
        options["s_exponent"] = scale_exponent(form.scale, form.dtype, rows.dtype)
        return Call(quantized_wgmma_kernel, (*operands, *ending), options)
    by_block = row_scale is not None and row_scale.shape[0] > 1
    options |= _sums_options(schedule, form, target, k, by_block)
    options |= {"out_dtype": dtype_of(weight.result), "has_row_scale": row_scale is not None}
    options["s_dtype"] = form.scale or options["out_dtype"]
    options["p_dtype"] = dtype_of(sum_dtype)
    factors = unread.view(torch.float32) if row_scale is None else row_scale
    sums, adding = factors, None
    if zero is not None:
        span = options["span"] if options["by_group"] else 0
        spans = units.shape[0] * (UNIT_K // span) if span else 1
        # Rows of it follow each other at multiples of 16 bytes.
        sums = torch.empty((spans, -(-rows.shape[0] // 4) * 4), dtype=torch.float32, device=rows.device)
        adding = Call(row_sums_kernel, (rows, sums), {"a_dtype": own, "span": span})
    return Call(quantized_wgmma_sums_kernel, (*operands, factors, sums, *ending), options, adding)


@lru_cache(maxsize=64)
def _nothing(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a kernel takes for sums that clusters share where there are none."""
    return torch.empty((1, 1, 4), dtype=dtype, device=device), torch.empty(4, dtype=torch.int32, device=device)


@lru_cache(maxsize=4096)
def _fixed_options(
    schedule: WgmmaSchedule, form: WeightForm, target: Target, k: int
) -> Mapping[str, Any]:
    """Return the options that follow from a schedule: each call of an op asks for them."""
    return MappingProxyType(
        {
            "a_dtype": form.activations,
            "b_dtype": form.dtype,
            "group": form.rows_of_scale(k),
            "has_zero": form.has_zero,
            "exponent": stored_exponent(form.dtype, operand_of(form), target),
            "block_m": schedule.block_m,
            "block_n": schedule.block_n,
            "stages": schedule.stages,
            "pieces": schedule.pieces,
            "cluster": schedule.cluster,
        }
    )


@lru_cache(maxsize=4096)
def _sums_options(
    schedule: WgmmaSchedule, form: WeightForm, target: Target, k: int, by_block: bool
) -> Mapping[str, Any]:
    """Return what the kernel for activations of 8 bits is told besides."""
    return MappingProxyType(
        {
            **_fixed_options(schedule, form, target, k),
            "w_dtype": operand_of(form),
            "span": span_of(form, k, by_block),
            "by_group": form.group < k or by_block,
            "by_block": by_block,
        }
    )
