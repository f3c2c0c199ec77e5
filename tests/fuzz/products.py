"""Draws calls of `matmul` and `matmul_block_scaled`, with epilogues and schedules of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.fuzz.bounds import TF32, Near, exactly, product
from tests.fuzz.operands import Draw
from tests.fuzz.operators import Case, compared
from tilus.codegen import Target
from tilus.ops import matmul, matmul_block_scaled, schedules
from tilus.ops.matmul import ACTIVATIONS, Schedule, result_dtype

TARGETS = ("sm_80", "sm_89", "sm_90a", "sm_90a")
PROCESSORS = (1, 2, 3, 7, 132)
HALVES = (torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
OUTPUTS = (*HALVES, torch.float32)
MATMUL, SCALED = "tilus.ops.matmul", "tilus.ops.block_scaled"
Choices = tuple[tuple[str, str, Callable[..., Any]], ...]


def machine(draw: Draw) -> tuple[str, int]:
    """Return a target, and a number of multiprocessors."""
    return draw.one(TARGETS), draw.one(PROCESSORS)


def pick(draw: Draw) -> Callable[[Any], Any]:
    """Return a function that takes one of several things, of the same ones the same."""
    number = draw.random.randrange(1 << 30)
    return lambda found: found[number % len(found)]


def plain_schedules(bits: int, where: Target) -> list[Schedule]:
    """Return schedules of the kernel for all targets."""
    depth = 1024 // bits
    found = [
        Schedule(block_m, block_n, block_k, stages, warps)
        for block_m in (16, 32, 64, 128)
        for block_n in (32, 64, 128, 256)
        for block_k in (depth // 2, depth)
        for stages in (2, 3, 4)
        for warps in (4, 8)
        if block_m * block_n <= 128 * 128 * warps // 4 and block_m * block_n >= 512 * warps
    ]
    return [
        s
        for s in found
        if s.stages * (s.block_m + s.block_n) * s.block_k * bits // 8 <= where.shared_bytes
        # The compiler takes wgmma for tiles of whole warpgroups.
        and (not where.has("wgmma") or (s.block_m == 16 * s.warps and s.block_k == depth))
    ]


def matmul_choices(draw: Draw) -> Choices:
    """Return what chooses schedules of `matmul` at random, from all that fit."""
    take, most_stages, stream, rows = pick(draw), draw.one((2, 3, 24)), draw.chance(0.5), draw.one((1, 4, 8))

    def plain(m: int, n: int, bits: int, where: Target) -> Schedule:
        return take(plain_schedules(bits, where))

    def hopper(
        m: int, n: int, k: int, batches: int, bits: int, out_bits: int, where: Target, processors: int,
        most: int = schedules.MOST_ACCUMULATORS, span: int = schedules.WIDE_SPAN,
    ) -> schedules.HopperSchedule:  # fmt: skip
        found = schedules.hopper_candidates(bits, out_bits, where, most, span)
        # Pieces of a tile are as long as the pipeline at least.
        chosen = take([s for s in found if s.stream or not stream])
        return replace(chosen, stages=min(chosen.stages, most_stages), group=rows)

    return (MATMUL, "schedule", plain), (MATMUL, "hopper_schedule", hopper)


def of_matmul(draw: Draw) -> Case:
    """Draw a call of `matmul`."""
    dtype = draw.one((*HALVES, *HALVES, torch.float32, torch.int8, *FLOAT8))
    b_dtype = draw.one(FLOAT8) if dtype in FLOAT8 else dtype
    batches = draw.one(((), (), (), (2,), (3,), (2, 2), (0,)))
    m, n, k = (draw.size(most) for most in (200, 280, 400))
    # Tensor maps, which most users have, want whole rows of 16 bytes.
    if draw.chance(0.6):
        step = 16 // dtype.itemsize
        n, k = -(-n // step) * step, -(-k // step) * step
    vector = not batches and draw.chance(0.1)
    a_shape = (k,) if vector else (*batches, m, k)
    kind = draw.one(("normal", "normal", "whole", "wide", "special"))
    a = draw.tensor(a_shape, dtype, kind)
    together = bool(batches) and draw.chance(0.5)
    b = draw.tensor((*batches, k, n) if together else (k, n), b_dtype, kind)
    if draw.chance(0.5):
        # The transpose of a row-major matrix, as linear layers have it.
        b = draw.laid_out(b.mT.contiguous()).mT
    plain_integers = dtype == torch.int8 and draw.chance(0.4)
    out_dtype = torch.int32 if plain_integers else draw.one((None, None, *OUTPUTS))
    out = out_dtype or result_dtype(a)
    options: dict[str, Any] = {"out_dtype": out_dtype}
    if not plain_integers:
        rows = 1 if vector else m
        if draw.chance(0.4):
            options["bias"] = draw.tensor((n,), out)
        if draw.chance(0.3):
            options["residual"] = draw.tensor((*a_shape[:-1], n), out)
            options["beta"] = draw.one((1.0, 0.5, -2.0, 0.0))
        if draw.chance(0.3):
            by_row = not batches and draw.chance(0.6)
            sizes = ((rows,), (n,)) if by_row else ((), ())
            options["a_scale"], options["b_scale"] = (draw.tensor(s, torch.float32, "normal") for s in sizes)
        options["activation"] = draw.one(("", "", *ACTIVATIONS))
        options["alpha"] = draw.one((1.0, 1.0, 0.5, -3.0, 0.0))
    where, processors = machine(draw)
    tensors = [a, b, *(x for x in options.values() if isinstance(x, torch.Tensor))]
    return Case(
        f"matmul of {described(a)} and {described(b)}, {kind}, {in_words(options)}",
        lambda: (matmul(a, b, **options),), tensors, compared(expected(a, b, out, **options)), where, processors,
        matmul_choices(draw) if draw.chance(0.6) else (),
    )  # fmt: skip


def expected(
    a: torch.Tensor, b: torch.Tensor, out: torch.dtype, *, bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None, a_scale: torch.Tensor | None = None, b_scale: torch.Tensor | None = None,
    activation: str = "", alpha: float = 1.0, beta: float = 1.0, out_dtype: torch.dtype | None = None,
) -> Near:  # fmt: skip
    """Return what `matmul` may give."""
    found = product(a, b, 2 * TF32 if a.dtype == torch.float32 else 0.0)
    if a.dtype == torch.int8:
        found = exactly(found.value)
        if out == torch.int32:
            return found
    found = found.times(alpha)
    if a_scale is not None and b_scale is not None:
        if a_scale.ndim:
            rows = a_scale[:, None] if a.ndim > 1 else a_scale
            found = found.times(rows.double()).times(b_scale.double())
        else:
            found = found.times(a_scale.double()).times(b_scale.double())
    if bias is not None:
        found = found.plus(bias)
    found = found.through(activation)
    if residual is not None:
        more = exactly(residual).times(beta)
        found = Near(found.value, found.error + more.error).plus(more.value)
    return found


def described(x: torch.Tensor) -> str:
    """Return a tensor in words."""
    name = str(x.dtype).removeprefix("torch.")
    return f"{name}{list(x.shape)} of strides {list(x.stride())} at {x.storage_offset()}"


def in_words(options: dict[str, Any]) -> str:
    """Return options in words."""
    return " ".join(
        f"{name}={described(x) if isinstance(x, torch.Tensor) else x}"
        for name, x in options.items()
        if x is not None
    )


def block_scaled_choices(draw: Draw) -> Choices:
    """Return what chooses schedules of `matmul_block_scaled` at random, from all that fit."""
    take, most_stages, stream = pick(draw), draw.one((2, 3, 24)), draw.chance(0.5)

    def chosen(
        m: int, n: int, k: int, out_bits: int, where: Target, processors: int
    ) -> schedules.HopperSchedule:
        found = schedules.block_scaled_candidates(out_bits, where, schedules.most_promoted())
        made = take([s for s in found if s.stream or not stream])
        return replace(made, stages=min(made.stages, most_stages))

    return ((SCALED, "block_scaled_schedule", chosen),)


def of_block_scaled(draw: Draw) -> Case:
    """Draw a call of `matmul_block_scaled`."""
    m, n, k = (draw.size(most) for most in (200, 280, 520))
    if draw.chance(0.15):
        # Wide tiles begin anywhere in a block of columns, if there are many.
        m, n, k = min(m, 64), 16 * draw.random.randint(20, 80), min(k, 260)
    if draw.chance(0.7):
        k = -(-k // 16) * 16
    blocks = -(-k // 128)
    a, b = (
        draw.tensor(shape, draw.one(FLOAT8), draw.one(("normal", "wide", "special")))
        for shape in ((m, k), (n, k))
    )
    a_scale = draw.laid_out(draw.values((m, blocks), torch.float32, "normal").abs() + 0.1)
    if draw.chance(0.5):
        a_scale = draw.laid_out(a_scale.mT.contiguous()).mT
    b_scale = draw.laid_out(draw.values((-(-n // 128), blocks), torch.float32, "normal").abs() + 0.1)
    out = draw.one(OUTPUTS)
    where, processors = machine(draw)
    return Case(
        f"matmul_block_scaled of {described(a)} and {described(b)} with {described(a_scale)} and {described(b_scale)}, "
        f"to {out}", lambda: (matmul_block_scaled(a, b, a_scale, b_scale, out_dtype=out),), (a, b, a_scale, b_scale),
        compared(expected_of_blocks(a, b, a_scale, b_scale)), where, processors,
        block_scaled_choices(draw) if draw.chance(0.6) else (),
    )  # fmt: skip


def expected_of_blocks(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, columns: int = 128
) -> Near:
    """Return what the product of float8 matrices with scales of blocks may be."""
    (m, k), n = a.shape, b.shape[0]
    left = a_scale.double().repeat_interleave(128, 1)[:, :k]
    right = b_scale.double().repeat_interleave(columns, 0)[:n].repeat_interleave(128, 1)[:, :k]
    return product(a.double() * left, (b.double() * right).mT, 4 * 2.0**-23)
