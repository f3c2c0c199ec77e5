"""What the kernels of the quantised matmul on warpgroups are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from tilus.codegen import Target
from tilus.codegen.casts import stored_exponent
from tilus.dtypes import DType
from tilus.dtypes import dtype as dtype_of
from tilus.ops.arrivals import arrivals
from tilus.ops.call import Call
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_tiles import WeightForm, operand_of
from tilus.ops.quantized_wgmma import WgmmaSchedule, span_of
from tilus.ops.quantized_wgmma_kernel import quantized_wgmma_kernel
from tilus.ops.quantized_wgmma_parts import ROW
from tilus.ops.quantized_wgmma_sums_kernel import quantized_wgmma_sums_kernel, row_sums_kernel
from tilus.ops.scales import scale_exponent
from tilus.ops.schedules import BULK_BYTES
from tilus.ops.weights import QuantizedWeight


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
    (m, k), n, zero = rows.shape, weight.shape[1], weight.zero
    by_block = row_scale is not None and row_scale.shape[0] > 1
    form = _form(weight.dtype, rows.dtype, weight.group_size, zero is not None, weight.scale_type)
    plan = _plan(schedule, form, target, m, n, k, processors, by_block, weight.result)
    # A part's rows of bytes are those of its units along n: a bulk copy takes a tile's in one box.
    units = weight.packed.view(weight.packed.shape[0], -1, ROW)
    # A kernel does not read this.
    unread = weight.scale.view(weight.result)
    operands = rows, units, weight.kernel_scale, unread if zero is None else zero
    options = {
        **plan.options, "bulk_store": out.shape[2] * out.element_size() % BULK_BYTES == 0,
        "has_bias": bias is not None, "activation": activation, "gated": weight.gated,
    }  # fmt: skip
    partial, arrived = _nothing(rows.device, plan.sums)
    if plan.shared_tiles:
        slots = 2 * plan.clusters * schedule.cluster
        partial = rows.new_empty((slots, schedule.block_m // 4, schedule.block_n, 4), dtype=plan.sums)
        arrived = arrivals(rows.device, plan.shared_tiles * schedule.cluster)
    ending = (
        unread[0] if bias is None else bias, out, partial, arrived, weight.alpha, n, plan.shared_tiles, plan.clusters,
    )  # fmt: skip
    if form.activations.bits == 16:
        return Call(quantized_wgmma_kernel, (*operands, *ending), options)
    options["has_row_scale"] = row_scale is not None
    factors = unread.view(torch.float32) if row_scale is None else row_scale
    sums, adding = factors, None
    if zero is not None:
        span = options["span"] if options["by_group"] else 0
        spans = units.shape[0] * (UNIT_K // span) if span else 1
        # Rows of it follow each other at multiples of 16 bytes.
        sums = rows.new_empty((spans, -(-m // 4) * 4), dtype=torch.float32)
        adding = Call(row_sums_kernel, (rows, sums), {"a_dtype": form.activations, "span": span})
    return Call(quantized_wgmma_sums_kernel, (*operands, factors, sums, *ending), options, adding)


@dataclass(frozen=True)
class Plan:
    """What follows from shapes and types: each call of an op asks for it.

    Attributes
    ----------
    options : mapping
        Of the kernel.
    shared_tiles, clusters : int
        As in `Division`.
    sums : torch.dtype
        Of sums that clusters share.
    """

    options: Mapping[str, Any]
    shared_tiles: int
    clusters: int
    sums: torch.dtype


@lru_cache(maxsize=64)
def _nothing(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a kernel takes for sums that clusters share where there are none."""
    partial = torch.empty((1, 1, 1, 4), dtype=dtype, device=device)
    return partial, torch.empty(4, dtype=torch.int32, device=device)


@lru_cache(maxsize=4096)
def _form(dtype: DType, rows: torch.dtype, group: int, has_zero: bool, scale: DType | None) -> WeightForm:
    return WeightForm(dtype, dtype_of(rows), group, has_zero, scale)


@lru_cache(maxsize=4096)
def _plan(
    schedule: WgmmaSchedule,
    form: WeightForm,
    target: Target,
    m: int,
    n: int,
    k: int,
    processors: int,
    by_block: bool,
    result: torch.dtype,
) -> Plan:
    made, own, operand = dtype_of(result), form.activations, operand_of(form)
    division = schedule.division(m, n, k, processors)
    options: dict[str, Any] = {
        "a_dtype": own, "b_dtype": form.dtype, "s_dtype": form.scale or made, "c_dtype": made,
        "group": form.rows_of_scale(k), "has_zero": form.has_zero,
        "exponent": stored_exponent(form.dtype, operand, target), "block_m": schedule.block_m,
        "block_n": schedule.block_n, "stages": schedule.stages, "pieces": schedule.pieces,
        "cluster_m": schedule.cluster_m, "cluster_n": schedule.cluster_n, "stream": division.shared_tiles > 0,
    }  # fmt: skip
    sums = torch.float32
    if own.bits == 16:
        options["s_exponent"] = scale_exponent(form.scale, form.dtype, result)
    else:
        span = span_of(form, k, by_block)
        sums = torch.int32 if own.is_integer and not span else torch.float32
        options |= {
            "w_dtype": operand, "out_dtype": made, "p_dtype": dtype_of(sums), "span": span,
            "by_group": form.group < k or by_block, "by_block": by_block,
        }  # fmt: skip
    return Plan(MappingProxyType(options), division.shared_tiles, division.clusters, sums)
