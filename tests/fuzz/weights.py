"""Draws calls of `quantized_matmul`: weights of all types and forms, activations of 16 and 8 bits, all schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tests.fuzz.bounds import UNIT, Near, product
from tests.fuzz.operands import Draw
from tests.fuzz.operators import Case, Outputs, compared
from tests.fuzz.products import HALVES, described, machine, pick
from tilus import dtypes
from tilus.codegen import Target
from tilus.dtypes import DType, decode
from tilus.errors import TilusError
from tilus.ops import (
    QuantizedTokens,
    QuantizedWeight,
    few_rows,
    from_codes,
    gated_pair,
    quantize_tokens,
    quantized_matmul,
)
from tilus.ops import quantized_schedule as plain
from tilus.ops import quantized_wgmma as wgmma
from tilus.ops.scales import fewest_scale, highest_scale, scale_exponent
from tilus.ops.weights import operand_type

TYPES = [t for t in dtypes.NAMED if t.bits <= 8 and t.kind not in ("bool", "scale")]
BYTES = (torch.int8, torch.float8_e4m3fn)
MODULE = "tilus.ops.quantized_matmul"
SPREAD = 3
"""Powers of two between scales of type float8_e8m0."""


def weight_type(draw: Draw, activations: torch.dtype) -> DType:
    """Return a type of weights that goes with activations of a type."""
    while True:
        found = draw.one(TYPES)
        try:
            operand_type(found, activations)
        except TilusError:
            continue
        return found


def finite_codes(dtype: DType, most: float) -> np.ndarray[Any, Any]:
    """Return the codes whose values are finite and no larger than `most`."""
    codes = np.arange(1 << dtype.bits, dtype=np.uint8)
    values = decode(codes, dtype).astype(np.float64)
    return codes[np.isfinite(values) & (np.abs(values) <= most)]


def of_weight(
    draw: Draw, k: int, n: int, half: torch.dtype, activations: torch.dtype | None
) -> dict[str, Any]:
    """Draw what a weight is made of: the arguments of `from_codes` but for the codes and scales themselves."""
    dtype = weight_type(draw, activations or half)
    groups = [g for g in (16, 32, 64, 128, 256) if k % g == 0 and not (g == 16 and activations in BYTES)]
    group = draw.one([*groups, -1])
    stored = None
    if activations not in BYTES and dtype.kind == "float" and draw.chance(0.4):
        # Where values leave no room beside them for scales that lie apart, these are refused.
        room = highest_scale(dtype, half) / 2 >= fewest_scale(dtype, half, None) * 2.0**SPREAD
        stored = draw.one((dtypes.float8_e4m3, dtypes.float8_e8m0)) if room else dtypes.float8_e4m3
    zero = dtype.kind == "uint" and draw.chance(0.5)
    return {
        "dtype": dtype, "group": group, "stored": stored, "zero": zero, "k": k, "n": n, "half": half,
        "activations": activations, "alpha": draw.one((1.0, 1.0, 0.37)),
        "order": activations not in BYTES and draw.chance(0.15),
    }  # fmt: skip


def made_of(draw: Draw, form: dict[str, Any], order: torch.Tensor | None) -> QuantizedWeight:
    """Return a weight of random codes and scales of a form."""
    dtype, k, n, half, stored = (form[name] for name in ("dtype", "k", "n", "half", "stored"))
    rng = draw.numbers
    codes = finite_codes(dtype, torch.finfo(half).max)
    largest = float(np.abs(decode(codes, dtype).astype(np.float64)).max())
    shape = (1 if form["group"] == -1 else k // form["group"], n)
    top, alpha = min(1.5, 2000.0 / max(largest, 1.0)), form["alpha"]
    if stored == dtypes.float8_e8m0:
        exponent = 127 + int(np.floor(np.log2(top)))
        scale = torch.from_numpy(rng.integers(exponent - SPREAD, exponent + 1, shape).astype(np.uint8))
    elif stored is not None:
        # As NVFP4 has them: up to the largest number of the type, and a factor that brings all values down.
        top, alpha = 448.0, alpha * top / 448.0
        scale = torch.from_numpy(rng.uniform(top / 8, top, shape)).to(torch.float8_e4m3fn)
    else:
        scale = torch.from_numpy(rng.uniform(top / 8, top, shape)).to(half)
    zero = None
    if form["zero"]:
        zero = torch.from_numpy(rng.integers(0, 1 << dtype.bits, shape)).to(half)
    return from_codes(
        rng.choice(codes, (k, n)), dtype, scale, zero, form["group"], alpha=alpha, order=order,
        activations=form["activations"], scale_type=stored if scale.dtype == torch.uint8 else None,
        out_dtype=half if stored is not None else None,
    )  # fmt: skip


def product_of(a: torch.Tensor, weight: QuantizedWeight, columns: np.ndarray[Any, Any] | None = None) -> Near:
    """Return what a product with a weight may be, in the order of `dequantize`.

    With activations of 16 bits weights are rounded to their type three times at most: less the zero point, times the
    scale, and the zero point times the scale. Tiny ones are off by a step of the type's subnormal numbers.
    """
    half = torch.finfo(weight.result)
    k, n = weight.shape
    rows = np.arange(k) // weight.group_size
    values = decode(weight.codes(), weight.dtype).astype(np.float64)
    if weight.order is not None:
        rows = rows[np.argsort(weight.order.numpy())]
    zero = np.zeros((k, n)) if weight.zero is None else weight.zero.double().numpy()[rows, :n]
    scale = np.abs(weight.scales[rows]) * abs(weight.alpha)
    sizes = torch.from_numpy((np.abs(values) + np.abs(zero)) * scale)
    off = torch.zeros_like(sizes)
    if weight.activations not in BYTES:
        unit = half.eps / 2
        step = half.tiny * unit * 2.0 ** scale_exponent(weight.scale_type, weight.dtype, weight.result)
        apart = torch.from_numpy((2 * np.abs(values - zero) + np.abs(zero)) * scale)
        off = unit * (1 + unit) * apart + step * abs(weight.alpha)
    if weight.columns is not None:
        sizes, off = sizes[:, weight.columns], off[:, weight.columns]
    found, bound = product(a, weight.dequantize()), product(a.abs(), sizes)
    size = a.double().nan_to_num(0.0, 0.0, 0.0).abs()
    # Of a zero point there is a term of its own.
    error = size @ off + 2 * (k + 16) * UNIT * (size @ (sizes + off))
    # An offset that a cast leaves is taken off sums: of infinity there is no number left.
    value = torch.where(found.value.isfinite(), found.value, float("nan"))
    return Near(value, torch.maximum(torch.where(bound.error.isinf(), bound.error, 0.0), error))


def not_finite(near: Near, rows: torch.Tensor | None = None) -> Callable[[Outputs], str]:
    """Return a check of results that takes infinity for NaN where there is no number."""
    check = compared(near, rows=rows)

    def wrong(found: Outputs) -> str:
        return check((torch.where(near.value.isnan() & ~found[0].isfinite(), float("nan"), found[0]),))

    return wrong


def choices(draw: Draw) -> tuple[tuple[str, str, Callable[..., Any]], ...]:
    """Return what chooses schedules of `quantized_matmul` at random, from all that fit."""
    take, on_wgmma, number = pick(draw), draw.chance(0.6), draw.random.randrange(1 << 20)

    def chosen(
        m: int, n: int, k: int, form: plain.WeightForm, where: Target, processors: int
    ) -> plain.Choice:
        if m <= few_rows.MOST_ROWS and number % 3:
            return plain.Choice("mma", take(list(few_rows.candidates(m, n, k, form, where, processors))))
        tile = plain.by_rows(m, form)
        tile = replace(tile, block_m=(8, 16, 32, 64)[number // 3 % 4 if tile.block_m == 64 else number % 3])
        tile = replace(
            tile, swap=tile.block_m == 8, block_n=(32, 64, 128)[number // 12 % 3], stages=2 + number // 36 % 3
        )
        tile = replace(tile, warps=tile.block_n // 32)
        tile = plain.fitting(tile, form, where)
        tile = replace(tile, swap=tile.block_m == 8)
        tile = replace(tile, late=plain.scales_late(tile, k, form))
        steps = -(-k // 128)
        if number // 108 % 3 == 1 and steps > 1:
            tile = replace(tile, splits=-(-steps // -(-steps // min(steps, 2 + number // 324 % 4))))
        tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
        if number // 108 % 3 == 2:
            tile = replace(tile, blocks=max(1, min(processors + number // 324 % 4, tiles * steps)))
        return plain.Choice("mma", tile)

    def on_warpgroups(
        m: int, n: int, k: int, form: plain.WeightForm, where: Target, processors: int, gated: bool = False,
        by_block: bool = False,
    ) -> wgmma.WgmmaSchedule | None:  # fmt: skip
        if not on_wgmma or not where.has("wgmma"):
            return None
        found = list(wgmma.candidates(m, n, k, form, where, processors, gated, by_block))
        return take(found) if found else None

    return (MODULE, "choose", chosen), (MODULE, "wgmma_schedule", on_warpgroups)


def of_quantized(draw: Draw) -> Case:
    """Draw a call of `quantized_matmul`."""
    half = draw.one(HALVES)
    activations = draw.one((None, None, *BYTES))
    m = draw.one((draw.size(16), draw.size(200)))
    k = draw.size(520, draw.one((1, 8, 16, 32, 64, 128))) or 1
    n = draw.size(280, draw.one((1, 1, 8, 32))) or 1
    form = of_weight(draw, k, n, half, activations)
    order = torch.from_numpy(draw.numbers.permutation(k)) if form["order"] else None
    gated = draw.chance(0.15)
    if gated:
        n = form["n"] = -(-n // 8) * 8
    weight = made_of(draw, form, order)
    if gated:
        weight = gated_pair(weight, made_of(draw, form, order))
    leading = draw.one(((m,), (m,), (m,), (2, m // 2), ()))
    kind = draw.one(("normal", "normal", "whole", "special")) if activations is None else "normal"
    a: torch.Tensor | QuantizedTokens
    by_block = False
    inputs = [weight.packed, weight.scale]
    if activations is not None and draw.chance(0.6):
        a, by_block = tokens(draw, m, k, activations)
        leading, values = (m,), a.dequantize()
        inputs += [a.values, a.scale]
        shown = f"{described(a.values)} by {'block' if by_block else 'row'}"
    else:
        rows = a = draw.tensor((*leading, k), half, kind)
        inputs.append(rows)
        shown = described(rows)
        values = rows if activations is None else quantize_tokens(rows, activations).dequantize()
    bias = (
        draw.tensor((2 * n if gated else n,), draw.one((half, half, torch.float32)))
        if draw.chance(0.3)
        else None
    )
    inputs += [] if bias is None else [bias]
    activation = draw.one(("", "", "relu", "gelu", "silu"))
    where, processors = machine(draw)
    near = product_of(values.reshape(-1, k), weight)
    # What offsets lose is little beside the largest term of a row, but not beside weights that are zero.
    large = (values.reshape(-1, k).double().abs() > 1000).any(1, keepdim=True) & near.value.isfinite()
    near = Near(near.value, torch.where(large, float("inf"), near.error))
    if activation:
        # What it makes of one infinity is a number, of the other one none.
        near = Near(near.value, torch.where(near.value.isnan(), float("inf"), near.error))
    if bias is not None:
        near = near.plus(bias.to(half))
    if gated:
        gate, up = (Near(near.value[:, s], near.error[:, s]) for s in (slice(0, n), slice(n, None)))
        near = gate.through(activation).both(up)
    else:
        near = near.through(activation)
    near = Near(*(x.reshape(*leading, n) for x in (near.value, near.error)))
    return Case(
        f"quantized_matmul of {shown}, {kind}, with {form} {'gated ' if gated else ''}bias={bias is not None} "
        f"{activation}", lambda: (quantized_matmul(a, weight, bias, activation),), inputs, not_finite(near), where,
        processors, choices(draw) if draw.chance(0.6) else (),
    )  # fmt: skip


def tokens(draw: Draw, m: int, k: int, dtype: torch.dtype) -> tuple[QuantizedTokens, bool]:
    """Return activations of 8 bits with random scales, and whether each 128 elements have one."""
    by_block = draw.chance(0.5)
    blocks = -(-k // 128) if by_block else 1
    scale = torch.full((blocks, -(-m // 16) * 16), 1.0)
    scale[:, :m] = torch.from_numpy(draw.numbers.uniform(0.001, 0.02, (blocks, m)))
    values = draw.laid_out(draw.values((m, k), dtype, "normal"))
    if values.stride(-1) != 1:
        values = values.contiguous()
    return QuantizedTokens(values, scale), by_block
