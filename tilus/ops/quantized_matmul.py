"""`quantized_matmul`: activations times a quantised weight, as a function and as a torch op."""

from __future__ import annotations

import torch

from tilus import dtypes
from tilus.codegen import Target
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.device import processors, target_of
from tilus.ops.library import LIBRARY
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_kernel import quantized_matmul_kernel, sum_parts_kernel
from tilus.ops.weights import QuantizedWeight

ACTIVATIONS = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16}


def quantized_matmul(a: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """Multiply activations with a quantised weight.

    Parameters
    ----------
    a : Tensor of float16 or bfloat16, shape (..., k)
        Of the dtype of the weight's scales; on the GPU or, for the simulator, on the CPU.
    weight : QuantizedWeight, k x n
        On the same device.

    Returns
    -------
    Tensor of a's dtype, shape (..., n)
        ``a @ weight.dequantize()``, accumulated in float32.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where a and the weight do not fit.
    """
    k, n = weight.shape
    if a.dtype not in ACTIVATIONS:
        raise TypeMismatch(f"quantized_matmul takes float16 or bfloat16 activations, not {a.dtype}")
    if a.dtype != weight.scale.dtype:
        raise TypeMismatch(
            f"activations are {a.dtype}, but the weight was quantised for {weight.scale.dtype}",
            hint=f"quantize(..., scale_dtype={a.dtype})",
        )
    if a.ndim == 0 or a.shape[-1] != k:
        raise ShapeMismatch(f"activations of shape {tuple(a.shape)} do not fit a weight of {k} x {n}")
    return torch.ops.tilus.quantized_matmul(
        a, weight.packed, weight.scale, weight.zero, weight.dtype.name, k, n, weight.group_size, weight.alpha,
        weight.order,
    )  # fmt: skip


LIBRARY.define(
    "quantized_matmul(Tensor a, Tensor packed, Tensor scale, Tensor? zero, str dtype, SymInt k, SymInt n, int group, "
    "float alpha=1.0, Tensor? order=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def schedule(m: int) -> dict[str, int]:
    """Return the tile sizes for a number of rows."""
    if m <= 16:
        return {"block_m": 16, "block_n": 128, "warps": 4, "stages": 4}
    if m <= 32:
        return {"block_m": 32, "block_n": 128, "warps": 4, "stages": 3}
    return {"block_m": 64, "block_n": 128, "warps": 4, "stages": 3}


BLOCK_K = 128
FEWEST_STAGES = 2
MOST_SPLITS = 16


def fitting(chosen: dict[str, int], bits: int, group: int, has_zero: bool, target: Target) -> dict[str, int]:
    """Return the tile sizes with as few stages, and rows, as the target's shared memory asks for."""
    groups = max(1, BLOCK_K // group) * (2 if has_zero else 1)
    units = (BLOCK_K // UNIT_K) * (chosen["block_n"] // UNIT_N)
    buffers = (chosen["block_m"] * BLOCK_K * 2, unit_bytes(bits) * units, groups * chosen["block_n"] * 2)
    # Each buffer begins at a multiple of the longest swizzle's period.
    stage = sum(-(-size // 1024) * 1024 for size in buffers)
    stages = min(chosen["stages"], target.shared_bytes // stage)
    if stages < FEWEST_STAGES and chosen["block_m"] > 16:
        return fitting({**chosen, "block_m": chosen["block_m"] // 2}, bits, group, has_zero, target)
    return {**chosen, "stages": max(stages, FEWEST_STAGES)}


def split_count(m: int, n: int, k: int, chosen: dict[str, int], processors: int) -> int:
    """Return into how many parts k is cut, so that a small problem keeps all multiprocessors busy."""
    tiles = -(-m // chosen["block_m"]) * -(-n // chosen["block_n"])
    steps = -(-k // BLOCK_K)
    # Each part is long enough for its pipeline to fill.
    most = max(1, min(MOST_SPLITS, steps // chosen["stages"]))
    wanted = max(1, processors // tiles) if tiles < processors else 1
    splits = min(wanted, most)
    # Parts of equal length leave none empty.
    return -(-steps // -(-steps // splits))


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
) -> torch.Tensor:
    rows = a.reshape(-1, k)
    if order is not None:
        rows = rows.index_select(1, order)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    m = rows.shape[0]
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    if m and n:
        code_type = dtypes.dtype(dtype)
        if group < BLOCK_K and BLOCK_K % group:
            # The one group of a weight with fewer rows than a tile.
            group = BLOCK_K
        chosen = fitting(schedule(m), code_type.bits, group, zero is not None, target_of(a))
        splits = split_count(m, n, k, chosen, processors(a))
        # With one part the kernel writes the result; else parts are summed in float32, in a fixed order.
        parts = (
            out.unsqueeze(0)
            if splits == 1
            else torch.empty((splits, m, n), dtype=torch.float32, device=a.device)
        )
        quantized_matmul_kernel(
            rows,
            packed,
            scale,
            zero if zero is not None else scale,
            parts,
            alpha,
            a_dtype=ACTIVATIONS[a.dtype],
            b_dtype=code_type,
            c_dtype=ACTIVATIONS[a.dtype] if splits == 1 else dtypes.float32,
            group=group,
            has_zero=zero is not None,
            **chosen,
        )
        if splits > 1:
            sum_parts_kernel(parts.view(splits, m * n), out.view(m * n), dtype=ACTIVATIONS[a.dtype])
    return out.reshape(*a.shape[:-1], n)


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
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], n))


LIBRARY.impl("quantized_matmul", _run, "CPU")
LIBRARY.impl("quantized_matmul", _run, "CUDA")
torch.library.register_fake("tilus::quantized_matmul", _fake, lib=LIBRARY)
