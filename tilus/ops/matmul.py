"""`matmul`: matrix products with epilogues, as a function and as a torch op."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from tilus import dtypes
from tilus.codegen import Target
from tilus.dtypes import DType
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked
from tilus.ops.device import device_name, processors, target_of
from tilus.ops.gradients import operator
from tilus.ops.hopper_matmul_kernel import hopper_matmul_kernel
from tilus.ops.library import LIBRARY
from tilus.ops.matmul_kernel import matmul_kernel
from tilus.ops.schedules import (
    FEWER_ACCUMULATORS,
    MOST_ACCUMULATORS,
    ROW_SPAN,
    WIDE_SPAN,
    HopperSchedule,
    accumulators,
    estimated_cycles,
    fits_bulk_copies,
    hopper_schedule,
    shared_bytes,
    suits,
    with_residual,
    work_of,
)
from tilus.ops.stream_k_kernel import stream_k_kernel
from tilus.ops.tuned import lookup, made_of

DTYPES = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16}
OPERANDS = {
    **DTYPES,
    torch.float32: dtypes.tfloat32,
    torch.int8: dtypes.int8,
    torch.float8_e4m3fn: dtypes.float8_e4m3,
    torch.float8_e5m2: dtypes.float8_e5m2,
}
OUTPUTS = {**DTYPES, torch.float32: dtypes.float32, torch.int32: dtypes.int32}
ACTIVATIONS = ("", "relu", "gelu", "silu")


@checked
def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    activation: str = "",
    alpha: float = 1.0,
    beta: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return ``activation(alpha * a @ b * a_scale[:, None] * b_scale + bias) + beta * residual``.

    Parameters
    ----------
    a : Tensor, shape (..., m, k)
        float16, bfloat16, float32 (multiplied as tf32), int8 or float8; on the GPU or, for the simulator, on the CPU.
    b : Tensor, shape (k, n), or (..., k, n) with a's batch dimensions
        Of a's dtype (both float8 types go together), row-major or the transpose of a row-major matrix. 8-bit types
        want a row-major a and the transpose of a row-major b, and are copied where they are not.
    bias : Tensor, shape (n,), optional
        Of the output's dtype.
    residual : Tensor, shape (..., m, n), optional
        Of the output's dtype.
    a_scale, b_scale : Tensor of float32, optional
        Factors of a's rows and b's columns, of shape (m,) and (n,), for a without batch dimensions; or of all of a and
        of b, of shape ().
    activation : str
        "", "relu", "gelu" (with erf) or "silu".
    alpha, beta : float
        Factors of the product and of the residual.
    out_dtype : torch.dtype, optional
        float16, bfloat16 or float32, or int32 for the plain product of int8; a's own dtype unless given, bfloat16
        for 8-bit types.

    Returns
    -------
    Tensor, shape (..., m, n)
        Accumulated in float32 (int8 in int32). It has gradients with respect to all but scales, for operands that are
        not of 8 bits and without scales; what the activation takes is then computed again.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    _check(a, b, bias, residual, a_scale, b_scale, activation, alpha, out_dtype)
    op = operator("matmul", a, b, bias, residual, a_scale, b_scale)
    made: torch.Tensor = op(a, b, bias, residual, a_scale, b_scale, activation, alpha, beta, out_dtype)
    return made


def _check(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
    a_scale: torch.Tensor | None, b_scale: torch.Tensor | None, activation: str, alpha: float,
    out_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    fp8 = (torch.float8_e4m3fn, torch.float8_e5m2)
    if a.dtype not in OPERANDS or (a.dtype != b.dtype and not (a.dtype in fp8 and b.dtype in fp8)):
        raise TypeMismatch(
            f"matmul takes two tensors of float16, bfloat16, float32, int8 or float8, not {a.dtype} and {b.dtype}"
        )
    if a.ndim < 1 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        turned = a.ndim > 0 and b.ndim >= 2 and a.shape[-1] == b.shape[-1]
        raise ShapeMismatch(
            f"matmul of shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (..., m, k) and (k, n)",
            hint="matmul(a, b.mT)" if turned else None,
        )
    if b.ndim > 2 and (a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]):
        raise ShapeMismatch(
            f"matmul of batches {tuple(a.shape[:-2])} and {tuple(b.shape[:-2])}",
            hint="b without batch dimensions, or a's",
        )
    if activation not in ACTIVATIONS:
        raise TypeMismatch(
            f"no activation named {activation!r}", hint="one of " + ", ".join(map(repr, ACTIVATIONS))
        )
    out = out_dtype or result_dtype(a)
    if out not in OUTPUTS:
        raise TypeMismatch(f"matmul gives float16, bfloat16, float32 or (of int8) int32, not {out}")
    plain = bias is residual is a_scale is b_scale is None and not activation and alpha == 1
    if out == torch.int32 and (a.dtype != torch.int8 or not plain):
        raise TypeMismatch(
            "matmul gives int32 only for int8 operands, and as the plain product",
            hint="out_dtype=torch.float32 for a product with alpha, scales, bias, activation or residual",
        )
    n = b.shape[-1]
    if bias is not None and (bias.dtype != out or tuple(bias.shape) != (n,)):
        raise ShapeMismatch(
            f"bias is {bias.dtype} of shape {tuple(bias.shape)}, expected {out} of shape {(n,)}"
        )
    expected = (*a.shape[:-1], n)
    if residual is not None and (residual.dtype != out or tuple(residual.shape) != expected):
        raise ShapeMismatch(
            f"residual is {residual.dtype} of shape {tuple(residual.shape)}, expected {out} of shape {expected}"
        )
    if (a_scale is None) != (b_scale is None):
        raise TypeMismatch(
            "matmul takes a_scale and b_scale together", hint="ones for the one that is not needed"
        )
    for name, scale in (("a_scale", a_scale), ("b_scale", b_scale)):
        if scale is not None and scale.dtype != torch.float32:
            raise TypeMismatch(f"{name} is {scale.dtype}, expected torch.float32", hint=f"{name}.float()")
    if a_scale is not None and b_scale is not None and (a_scale.ndim or b_scale.ndim):
        rows = a.shape[-2] if a.ndim > 1 else 1
        if a.ndim > 2 or tuple(a_scale.shape) != (rows,) or tuple(b_scale.shape) != (n,):
            raise ShapeMismatch(
                f"scales of shapes {tuple(a_scale.shape)} and {tuple(b_scale.shape)}, expected {(rows,)} and {(n,)}, "
                "or () and ()"
            )


def result_dtype(a: torch.Tensor) -> torch.dtype:
    """Return the output's dtype where none is asked for."""
    return torch.bfloat16 if OPERANDS[a.dtype].bits == 8 else a.dtype


LIBRARY.define(
    "matmul(Tensor a, Tensor b, Tensor? bias=None, Tensor? residual=None, Tensor? a_scale=None, "
    "Tensor? b_scale=None, str activation='', float alpha=1.0, float beta=1.0, ScalarType? out_dtype=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True)
class Schedule:
    """Tile sizes of one launch of the kernel for all targets."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int


def schedule(m: int, n: int, bits: int, target: Target) -> Schedule:
    """Return the tile sizes for a problem on a target; tiles are 128 bytes deep where wgmma reads them."""
    depth = 1024 // bits
    if target.has("wgmma") and m > 16:
        if m <= 64 or n <= 64:
            return Schedule(64, 64 if n <= 64 else 128, depth, 4, 4)
        return Schedule(128, 64 if n <= 64 else 128, depth, 4, 8)
    if m <= 16:
        return Schedule(16, 64, depth, 4, 4)
    if m <= 64 or n <= 64:
        return Schedule(64, 64, depth, 3, 4)
    stages = 3 if target.shared_bytes < 160_000 else 4
    return Schedule(128, 128, depth // 2, stages, 4)


def _run(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
    a_scale: torch.Tensor | None = None, b_scale: torch.Tensor | None = None, activation: str = "",
    alpha: float = 1.0, beta: float = 1.0, out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    target = target_of(a)
    if OPERANDS[a.dtype].bits == 8 and a.dtype != torch.int8 and not target.has("mma_fp8"):
        # Float16 holds all numbers of float8, and tensor cores that lack float8 multiply it.
        return _run(
            a.half(), b.half(), bias, residual, a_scale, b_scale, activation, alpha, beta, out_dtype or result_dtype(a)
        )  # fmt: skip
    out = out_dtype or result_dtype(a)
    k, n = b.shape[-2:]
    c = torch.empty((*a.shape[:-1], n), dtype=out, device=a.device)
    if not c.numel():
        return c
    flat = b.ndim == 2
    # Sizes are said: where k is 0 torch cannot tell what -1 stands for.
    batches = prod(b.shape[:-2])
    left = a.reshape(batches, prod(a.shape[:-1]) // batches, k)
    right = b.reshape(batches, k, n)
    result = c.view(1, -1, n) if flat else c.view(-1, *c.shape[-2:])
    dtype = OPERANDS[a.dtype]
    left, a_turned = _oriented(left, allow_turned=dtype.bits == 16, wanted=False)
    right, b_turned = _oriented(right, allow_turned=True, wanted=dtype.bits != 16)
    none = torch.empty((1,), dtype=torch.float32, device=a.device)
    epilogue = (
        bias if bias is not None else result[0, 0],
        residual.reshape(result.shape) if residual is not None else result,
        a_scale.reshape(-1) if a_scale is not None else none,
        b_scale.reshape(-1) if b_scale is not None else none,
    )
    finishing = {
        "out_dtype": OUTPUTS[out],
        "acc_dtype": _accumulator(dtype),
        "has_bias": bias is not None,
        "has_residual": residual is not None,
        "scales": "" if a_scale is None else "rows" if a_scale.ndim else "tensor",
        "activation": activation,
    }
    types = {
        "dtype": dtype,
        "b_dtype": OPERANDS[b.dtype],
        "a_turned": a_turned,
        "b_turned": b_turned,
        "batched_b": not flat,
    }
    if target.has("wgmma") and k and fits_bulk_copies(left) and fits_bulk_copies(right):
        many = residual is not None or (a_scale is not None and bias is not None)
        chosen = chosen_schedule(
            a, result.shape[1], n, k, result.shape[0], OUTPUTS[out].bits, target,
            FEWER_ACCUMULATORS if many else MOST_ACCUMULATORS, ROW_SPAN if b_turned and not a_turned else WIDE_SPAN,
        )  # fmt: skip
        run_hopper(left, right, result, epilogue, (alpha, beta), chosen, types, finishing)
    else:
        plain = None
        if result.shape[0] == 1 and a.device.type == "cuda":
            plain = known_plain_schedule(result.shape[1], n, k, dtype.bits, target, device_name(a))
        plain = plain or schedule(result.shape[1], n, dtype.bits, target)
        matmul_kernel(left, right, result, *epilogue, alpha, beta, **types, **finishing, **vars(plain))
    return c


SLOWER = 1.1
"""What is known of a class of sizes is not used for a problem of which the estimate is so much longer: waves of tiles
that fill up at one size do not at another one of its class."""


def chosen_schedule(
    a: torch.Tensor, m: int, n: int, k: int, batches: int, out_bits: int, target: Target, most: int, span: int
) -> HopperSchedule:
    """Return the schedule that was tuned or ships for a product, or else that of the heuristic."""
    bits = OPERANDS[a.dtype].bits
    own = hopper_schedule(m, n, k, batches, bits, out_bits, target, processors(a), most, span)
    # What is known is known of whole devices; the simulator counts as one multiprocessor.
    if batches > 1 or a.device.type != "cuda":
        return own
    return known_schedule(own, m, n, k, bits, out_bits, target, processors(a), most, device_name(a)) or own


def known_schedule(
    own: HopperSchedule, m: int, n: int, k: int, bits: int, out_bits: int, target: Target, processors: int,
    most: int, device: str,
) -> HopperSchedule | None:  # fmt: skip
    """Return what is known of products like this one, unless it does not fit, or suits worse than the heuristic's."""
    found = lookup("matmul", target, {"bits": bits, "m": m, "n": n, "k": k}, device)
    if found is None:
        return None
    known = made_of(found, HopperSchedule)
    if known is None:
        return None
    fits = shared_bytes(known, out_bits) <= target.shared_bytes and accumulators(known) <= most
    if not fits or not suits(known, m, n):
        return None
    lengths = [estimated_cycles(x, m, n, k, 1, bits, processors) for x in (known, own)]
    return known if lengths[0] <= SLOWER * lengths[1] else None


def known_plain_schedule(m: int, n: int, k: int, bits: int, target: Target, device: str) -> Schedule | None:
    """Return what is known of products like this one on targets without wgmma."""
    if target.has("wgmma"):
        return None
    found = lookup("matmul", target, {"bits": bits, "m": m, "n": n, "k": k}, device)
    return None if found is None else made_of(found, Schedule)


def run_hopper(
    left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, epilogue: tuple[torch.Tensor, ...],
    factors: tuple[float, float], chosen: HopperSchedule, types: dict[str, Any], finishing: dict[str, Any],
) -> None:  # fmt: skip
    """Multiply with `hopper_matmul_kernel`, and add up what it leaves in parts."""
    batches, m, n = result.shape
    k = left.shape[1] if types["a_turned"] else left.shape[2]
    bulk_store = fits_bulk_copies(result)
    early = None
    if finishing["has_residual"] and bulk_store and fits_bulk_copies(epilogue[1]):
        early = with_residual(chosen, finishing["out_dtype"].bits, target_of(left))
    chosen = early or chosen
    work = work_of(chosen, m, n, k, batches, processors(left))
    cut = work.shared_tiles > 0
    sums = torch.int32 if finishing["acc_dtype"] is dtypes.int32 else torch.float32
    slots = (2 * work.blocks, min(chosen.block_m, m), chosen.block_n) if cut else (1, 1, 1)
    partial = torch.empty(slots, dtype=sums, device=left.device)
    hopper_matmul_kernel(
        left,
        right,
        result,
        *epilogue,
        partial,
        *factors,
        work.blocks,
        work.shared_tiles,
        **types,
        **finishing,
        **{**vars(chosen), "stream": cut},
        bulk_store=bulk_store,
        bulk_residual=early is not None,
    )
    if cut:
        stream_k_kernel(
            partial,
            result,
            *epilogue,
            *factors,
            work.blocks // chosen.cluster,
            work.shared_tiles,
            -(-k // chosen.block_k),
            **finishing,
            block_m=chosen.block_m,
            block_n=chosen.block_n,
            cluster_m=chosen.cluster_m,
            cluster_n=chosen.cluster_n,
            group=chosen.group,
        )


def _accumulator(dtype: DType) -> DType:
    return dtypes.int32 if dtype.is_integer else dtypes.float32


def _oriented(x: torch.Tensor, allow_turned: bool, wanted: bool) -> tuple[torch.Tensor, bool]:
    """Return a batch of matrices with rows that are contiguous, and whether it is given as its transpose.

    `wanted` is the orientation that 8-bit and 32-bit instructions need; others take either.
    """
    plain, turned = x.stride(2) == 1, x.stride(1) == 1
    if wanted:
        return (x.transpose(1, 2), True) if turned else (x.transpose(1, 2).contiguous(), True)
    if plain:
        return x, False
    if turned and allow_turned:
        return x.transpose(1, 2), True
    return x.contiguous(), False


def _fake(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
    a_scale: torch.Tensor | None = None, b_scale: torch.Tensor | None = None, activation: str = "",
    alpha: float = 1.0, beta: float = 1.0, out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=out_dtype or result_dtype(a))


LIBRARY.impl("matmul", _run, "CPU")
LIBRARY.impl("matmul", _run, "CUDA")
torch.library.register_fake("tilus::matmul", _fake, lib=LIBRARY)
