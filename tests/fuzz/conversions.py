"""Draws calls that make numbers of few bits: activations of 8 bits, blocks of float8, packed and quantised weights."""

from __future__ import annotations

import numpy as np
import torch

from tests.fuzz.bounds import Near
from tests.fuzz.operands import Draw
from tests.fuzz.operators import Case, Outputs, compared
from tests.fuzz.products import HALVES, described, machine
from tests.fuzz.weights import weight_type
from tilus.dtypes import decode
from tilus.ops import quantize, quantize_blocks, quantize_tokens
from tilus.ops.packing import pack_codes, unpack_codes
from tilus.ops.prepack import pack_weight
from tilus.ops.weights import operand_type

FLOATS = (*HALVES, torch.float32)
BLOCK = 128
STEPS = {torch.int8: 0.5, torch.float8_e4m3fn: 2.0**-4}
"""How far a code may be from what it stands for: of the scale, and of the number itself."""


def largest_of(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the largest size in each block of a matrix."""
    (m, k), size = x.shape, x.double().abs()
    padded = torch.nn.functional.pad(size, (0, -k % columns, 0, -m % rows))
    return padded.reshape(padded.shape[0] // rows, rows, -1, columns).amax((1, 3))


def spread(scale: torch.Tensor, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return for each number of a matrix the scale of its block."""
    return (
        scale.double().repeat_interleave(rows, 0)[: x.shape[0]].repeat_interleave(columns, 1)[:, : x.shape[1]]
    )


def near_codes(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> str:
    """Say where codes times scales are not as near to a matrix as rounding to nearest brings them."""
    off = (codes.double() * scale - x.double()).abs()
    allowed = STEPS[dtype] * (
        scale if dtype == torch.int8 else torch.maximum(x.double().abs(), scale * 2.0**-6)
    )
    bad = off > allowed * (1 + 2.0**-16)
    return (
        f"{int(bad.sum())} codes are not the nearest, such as at {bad.nonzero()[0].tolist()}"
        if bad.any()
        else ""
    )


def of_tokens(draw: Draw) -> Case:
    """Draw a call of `quantize_tokens`."""
    leading = draw.one(((draw.size(60),), (2, draw.size(20)), ()))
    k = draw.size(2500)
    x = draw.tensor((*leading, k), draw.one(FLOATS), draw.one(("normal", "wide", "whole")))
    dtype, by_block = draw.one(tuple(STEPS)), draw.chance(0.5)
    where, processors = machine(draw)

    def wrong(found: Outputs) -> str:
        codes, scale = found
        rows = x.reshape(codes.shape)
        columns = BLOCK if by_block else max(1, k)
        largest = largest_of(rows, 1, columns)
        wanted = torch.where(largest > 0, largest / (127.0 if dtype == torch.int8 else 448.0), 1.0)
        own = scale[:, : rows.shape[0]].t()
        if k == 0:
            return ""
        said = compared(Near(wanted, wanted * 2.0**-22 + 2.0**-126))((own.contiguous(),))
        if scale[:, rows.shape[0] :].any():
            said = said or "scales of rows that do not exist are no zeros"
        return said or near_codes(rows, codes, spread(own, rows, 1, columns), dtype)

    def run() -> Outputs:
        found = quantize_tokens(x, dtype, by_block=by_block)
        return found.values, found.scale

    return Case(
        f"quantize_tokens of {described(x)} to {dtype}, by_block={by_block}",
        run,
        (x,),
        wrong,
        where,
        processors,
    )


def of_blocks(draw: Draw) -> Case:
    """Draw a call of `quantize_blocks`."""
    rows = draw.one((1, BLOCK))
    x = draw.tensor((draw.size(300), draw.size(400)), draw.one(FLOATS), draw.one(("normal", "wide", "whole")))
    where, processors = machine(draw)

    def wrong(found: Outputs) -> str:
        codes, scale = found
        wanted = largest_of(x, rows, BLOCK).clamp_min(1e-4) / 448.0
        said = compared(Near(wanted, wanted * 2.0**-22))((scale,))
        return said or near_codes(x, codes, spread(scale, x, rows, BLOCK), torch.float8_e4m3fn)

    return Case(
        f"quantize_blocks of {described(x)} in {rows} rows", lambda: quantize_blocks(x, rows=rows), (x,), wrong, where,
        processors,
    )  # fmt: skip


def of_packing(draw: Draw) -> Case:
    """Draw codes that kernels pack and unpack, as the host does."""
    activations = draw.one((torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn))
    dtype = weight_type(draw, activations)
    operand = operand_type(dtype, activations)
    k, n = draw.size(300) or 1, draw.size(200) or 1
    codes = draw.laid_out(
        torch.from_numpy(draw.numbers.integers(0, 1 << dtype.bits, (k, n)).astype(np.uint8))
    )
    where, processors = machine(draw)

    def run() -> Outputs:
        packed = pack_codes(codes, dtype, operand)
        return packed, unpack_codes(packed, dtype, k, n, operand)

    def wrong(found: Outputs) -> str:
        if not torch.equal(found[1], codes):
            return "codes are others after a round trip"
        same = torch.equal(found[0], torch.from_numpy(pack_weight(codes.numpy(), dtype, operand)))
        return "" if same else "the kernel packs in another way than the host"

    return Case(f"packing of {dtype}{[k, n]} for {operand}", run, (codes,), wrong, where, processors)


def of_quantize(draw: Draw) -> Case:
    """Draw a call of `quantize`, whose codes are the nearest ones, or neighbours of what they stand for."""
    activations = draw.one((None, None, torch.int8, torch.float8_e4m3fn))
    half = draw.one(HALVES)
    dtype = weight_type(draw, activations or half)
    k, n = draw.size(300, draw.one((1, 16, 32, 64))) or 1, draw.size(100) or 1
    group = draw.one([g for g in (32, 64, 128, 256) if k % g == 0] + [-1])
    weight = draw.tensor((k, n), draw.one(FLOATS), draw.one(("normal", "wide", "whole")))
    zero = dtype.kind == "uint" and draw.chance(0.5)
    seed = draw.random.randrange(1 << 30) if draw.chance(0.4) and not dtype.is_table else None
    where, processors = machine(draw)

    def run() -> Outputs:
        made = quantize(
            weight, dtype, group, zero_point=zero, scale_dtype=half, activations=activations, seed=seed
        )
        return made.packed, made.scale, made.dequantize()

    def wrong(found: Outputs) -> str:
        rows = torch.arange(k) // (k if group == -1 else group)
        made = quantize(weight, dtype, group, zero_point=zero, scale_dtype=half, activations=activations)
        scale = torch.from_numpy(made.scales[rows]) * made.alpha
        values = np.unique(decode(np.arange(1 << dtype.bits), dtype).astype(np.float64))
        values = values[np.isfinite(values) & (np.abs(values) <= torch.finfo(half).max)]
        zeros = torch.zeros_like(scale) if made.zero is None else made.zero.double()[rows, :n]
        exact = (weight.double() / scale + zeros).clamp(float(values[0]), float(values[-1])).numpy()
        at = np.searchsorted(values, exact).clip(1, max(1, len(values) - 1))
        below, above = values[at - 1], values[np.minimum(at, len(values) - 1)]
        slack = 2.0**-18 * np.abs(exact) + 1e-9
        got = (found[2] / scale + zeros).numpy()
        if seed is None:
            best = np.minimum(np.abs(exact - below), np.abs(above - exact))
            bad = np.abs(got - exact) > best + slack
        else:
            bad = (got < below - slack) | (got > above + slack)
        bad &= (scale != 0).numpy()
        return (
            f"{int(bad.sum())} codes are not neighbours, such as at {np.argwhere(bad)[0]}"
            if bad.any()
            else ""
        )

    return Case(
        f"quantize of {described(weight)} to {dtype}, group {group}, zero={zero}, {half}, {activations}, seed={seed}", run,
        (weight,), wrong, where, processors,
    )  # fmt: skip
