"""`grouped_matmul_block_scaled`: float8 products of experts with a scale for each block, as a torch op."""

from __future__ import annotations

from functools import lru_cache

import torch

from tilus.codegen import Target
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.block_scaled_kernel import BLOCK
from tilus.ops.checks import checked
from tilus.ops.device import processors, target_of
from tilus.ops.gradients import operator
from tilus.ops.grouped import FLOAT8, OUTPUTS, owners_of, tile_rows, with_groups
from tilus.ops.grouped_block_scaled_kernel import (
    grouped_block_scaled_kernel,
    hopper_grouped_block_scaled_kernel,
)
from tilus.ops.library import LIBRARY
from tilus.ops.routing import Routing
from tilus.ops.schedules import (
    MOST_SWAPPED,
    SCALE_BYTES,
    STEP_BYTES,
    GroupedSchedule,
    block_scaled_candidates,
    estimated_cycles,
    fits_bulk_copies,
    grouped_blocks,
    grouped_schedule,
    most_promoted,
    suits,
)

SCALES_PER_BULK = 4
"""Float32 numbers in the 16 bytes that the tensor memory accelerator counts in."""


@checked
def grouped_matmul_block_scaled(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    rows: Routing | torch.Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Multiply float8 rows with the matrices of their experts, with a scale for each block, as DeepSeek-V3 does.

    Parameters
    ----------
    a : Tensor of float8
        Of shape (capacity, k), in the order of a `Routing` (`gather_rows`); or of shape (experts, capacity, k), of
        which each expert uses as many rows as `rows` says.
    b : Tensor of float8, shape (experts, n, k)
        Weights as linear layers keep them.
    a_scale : Tensor of float32, shape (..., ceil(k / 128))
        What each 128 elements of a row are to be multiplied with; `quantize_blocks` gives it in the order in memory
        that needs no copy.
    b_scale : Tensor of float32, shape (experts, ceil(n / 128), ceil(k / 128))
        The same for blocks of 128 x 128.
    rows : Routing, or Tensor of int32 of shape (experts,)
        Whose rows these are, on the device.
    out_dtype : torch.dtype
        bfloat16, float16 or float32.

    Returns
    -------
    Tensor, shape (..., n)
        The product of the scaled matrices, summed in float32 across blocks of k. Rows of blocks that no expert uses are
        left as they are in memory.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    if a.dtype not in FLOAT8 or b.dtype not in FLOAT8:
        raise TypeMismatch(
            f"grouped_matmul_block_scaled takes two float8 tensors, not {a.dtype} and {b.dtype}"
        )
    if b.ndim != 3:
        raise ShapeMismatch(f"b has shape {tuple(b.shape)}, expected (experts, n, k)")
    if out_dtype not in OUTPUTS:
        raise TypeMismatch(f"grouped_matmul_block_scaled gives bfloat16, float16 or float32, not {out_dtype}")
    count, n, k = b.shape
    owners, block = owners_of(a, rows, count, k)
    blocks_of_k = -(-k // BLOCK)
    expected = ((*a.shape[:-1], blocks_of_k), (count, -(-n // BLOCK), blocks_of_k))
    for name, scale, shape in zip("ab", (a_scale, b_scale), expected):
        if scale.dtype != torch.float32 or tuple(scale.shape) != shape:
            raise ShapeMismatch(
                f"{name}_scale is {scale.dtype} of shape {tuple(scale.shape)}, expected {torch.float32} of shape "
                f"{shape}"
            )
    out: torch.Tensor = operator("grouped_matmul_block_scaled", a, b, a_scale, b_scale)(
        a, b, a_scale, b_scale, owners, block, out_dtype
    )
    return out


LIBRARY.define(
    "grouped_matmul_block_scaled(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, Tensor owners, int block, "
    "ScalarType out_dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@lru_cache(maxsize=4096)
def grouped_block_scaled_schedule(
    block_m: int, rows: int, n: int, k: int, out_bits: int, target: Target, processors: int, most: int
) -> GroupedSchedule:
    """Return the tile with the least estimated time for `block_m` rows at a time, if all of `rows` are used.

    A block of rows has one expert, so that the tiles are those of a plain product with as many rows. Those below one
    another may have different experts, so that clusters lie along the columns. Few rows are swapped with columns.
    """
    if block_m <= MOST_SWAPPED:
        return grouped_schedule(block_m, rows, n, 8, out_bits, target, processors, BLOCK, SCALE_BYTES)
    chosen = min(
        (
            chosen
            for chosen in block_scaled_candidates(out_bits, target, most)
            if chosen.block_m == block_m
            and chosen.cluster_m == 1
            and not chosen.stream
            and suits(chosen, block_m, n)
        ),
        key=lambda chosen: estimated_cycles(chosen, rows, n, k, 1, 8, processors, promoted=True),
    )
    return GroupedSchedule(
        block_m, chosen.block_n, STEP_BYTES, chosen.stages, chosen.consumers, False, chosen.cluster_n
    )


def _run(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    owners: torch.Tensor,
    block: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    out = _fake(a, b, a_scale, b_scale, owners, block, out_dtype)
    if not out.numel():
        return out
    n, k = b.shape[1:]
    if not k:
        return out.zero_()
    rows = with_groups(a)
    matrices = b if b.stride(2) == 1 else b.contiguous()
    scales = scale_columns(a_scale if a.ndim == 3 else a_scale.unsqueeze(0))
    result = out.view(*rows.shape[:2], n)
    target = target_of(a)
    types = {
        "dtype": FLOAT8[a.dtype],
        "b_dtype": FLOAT8[b.dtype],
        "out_dtype": OUTPUTS[out_dtype],
        "masked": block == 0,
    }
    bulk = target.has("wgmma") and fits_bulk_copies(rows) and fits_bulk_copies(matrices)
    if bulk:
        (groups, height), count = rows.shape[:2], processors(a)
        block_m = tile_rows(block, height, BLOCK)
        chosen = grouped_block_scaled_schedule(
            block_m, groups * height, n, k, OUTPUTS[out_dtype].bits, target, count, most_promoted()
        )
        hopper_grouped_block_scaled_kernel(
            rows,
            matrices,
            result,
            scales,
            b_scale,
            owners,
            grouped_blocks(chosen, groups, height, n, count),
            **types,
            block=block or block_m,
            swap=chosen.swap,
            block_m=block_m,
            block_n=chosen.block_n,
            stages=chosen.stages,
            consumers=chosen.consumers,
            cluster_n=chosen.cluster_n,
            bulk_store=fits_bulk_copies(result),
        )
        return out
    block_m = tile_rows(block, rows.shape[1], 64)
    grouped_block_scaled_kernel(
        rows,
        matrices,
        result,
        scales,
        b_scale,
        owners,
        **types,
        native=target.has("mma_fp8"),
        block=block or block_m,
        block_m=block_m,
        stages=4 if block_m <= 32 else 3,
    )
    return out


def scale_columns(scale: torch.Tensor) -> torch.Tensor:
    """Return scales as (groups, blocks of k, rows) as bulk copies can read them; no copy of what fits already."""
    turned = scale.transpose(1, 2)
    groups, blocks, rows = turned.shape
    # Of a single row or group the distance to the next one counts as its length.
    if fits_bulk_copies(turned) and (min(groups, blocks) > 1 or rows % SCALES_PER_BULK == 0):
        return turned
    padded_rows = -(-rows // SCALES_PER_BULK) * SCALES_PER_BULK
    padded = torch.empty((groups, blocks, padded_rows), dtype=torch.float32, device=scale.device)
    padded[:, :, :rows] = turned
    return padded


def _fake(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    owners: torch.Tensor,
    block: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[1]), dtype=out_dtype)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("grouped_matmul_block_scaled", _run, _device)
torch.library.register_fake("tilus::grouped_matmul_block_scaled", _fake, lib=LIBRARY)
