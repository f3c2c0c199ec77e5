"""`matmul_block_scaled` and `quantize_blocks`: float8 products with a scale for each block, as torch ops."""

from __future__ import annotations

import torch

from tilus import dtypes
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.block_scaled_kernel import (
    BLOCK,
    block_scaled_kernel,
    hopper_block_scaled_kernel,
    quantize_blocks_kernel,
)
from tilus.ops.checks import checked
from tilus.ops.device import processors, target_of
from tilus.ops.gradients import operator
from tilus.ops.library import LIBRARY
from tilus.ops.schedules import block_scaled_schedule, fits_bulk_copies, work_of
from tilus.ops.stream_k_kernel import stream_k_kernel

FLOAT8 = {torch.float8_e4m3fn: dtypes.float8_e4m3, torch.float8_e5m2: dtypes.float8_e5m2}
OUTPUTS = {torch.bfloat16: dtypes.bfloat16, torch.float16: dtypes.float16, torch.float32: dtypes.float32}
SCALES_PER_BULK = 4
"""Float32 numbers in the 16 bytes that the tensor memory accelerator counts in."""


@checked
def matmul_block_scaled(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Multiply float8 matrices that have a scale for each block, as DeepSeek-V3 does.

    Parameters
    ----------
    a : Tensor of float8, shape (m, k)
        Activations; on the GPU or, for the simulator, on the CPU.
    b : Tensor of float8, shape (n, k)
        A weight as a linear layer keeps it.
    a_scale : Tensor of float32, shape (m, ceil(k / 128))
        What each 128 elements of a row are to be multiplied with; `quantize_blocks` gives it in the order in memory
        that needs no copy.
    b_scale : Tensor of float32, shape (ceil(n / 128), ceil(k / 128))
        The same for blocks of 128 x 128.
    out_dtype : torch.dtype
        bfloat16, float16 or float32.

    Returns
    -------
    Tensor, shape (m, n)
        The product of the scaled matrices, summed in float32 across blocks of k.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    if a.dtype not in FLOAT8 or b.dtype not in FLOAT8:
        raise TypeMismatch(f"matmul_block_scaled takes two float8 matrices, not {a.dtype} and {b.dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeMismatch(
            f"matmul_block_scaled of shapes {tuple(a.shape)} and {tuple(b.shape)}",
            hint="a of shape (m, k) and b of shape (n, k)",
        )
    if out_dtype not in OUTPUTS:
        raise TypeMismatch(f"matmul_block_scaled gives bfloat16, float16 or float32, not {out_dtype}")
    blocks_of_k = -(-a.shape[1] // BLOCK)
    for name, scale, rows in (("a", a_scale, a.shape[0]), ("b", b_scale, -(-b.shape[0] // BLOCK))):
        if scale.dtype != torch.float32 or tuple(scale.shape) != (rows, blocks_of_k):
            raise ShapeMismatch(
                f"{name}_scale is {scale.dtype} of shape {tuple(scale.shape)}, expected {torch.float32} of shape "
                f"{(rows, blocks_of_k)}"
            )
    op = operator("matmul_block_scaled", a, b, a_scale, b_scale)
    made: torch.Tensor = op(a, b, a_scale, b_scale, out_dtype)
    return made


@checked
def quantize_blocks(x: torch.Tensor, *, rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to float8 with a scale for each block of 128 columns.

    Parameters
    ----------
    x : Tensor of float32, float16 or bfloat16, shape (m, k)
        On the GPU or, for the simulator, on the CPU.
    rows : int
        Rows of a block: 1 for activations, 128 for weights.

    Returns
    -------
    codes : Tensor of float8_e4m3fn, shape (m, k)
    scale : Tensor of float32, shape (ceil(m / rows), ceil(k / 128))
        x is about ``codes * scale``. A block whose largest value is below 1e-4 is scaled as if it were that.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    if x.dtype not in OUTPUTS:
        raise TypeMismatch(f"quantize_blocks takes float32, float16 or bfloat16, not {x.dtype}")
    if x.ndim != 2 or rows not in (1, BLOCK):
        raise ShapeMismatch(
            f"quantize_blocks of shape {tuple(x.shape)} in blocks of {rows} x {BLOCK}",
            hint=f"a matrix, and rows=1 or rows={BLOCK}",
        )
    codes, scale = operator("quantize_blocks", x)(x, rows)
    return codes, scale


LIBRARY.define(
    "matmul_block_scaled(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, ScalarType out_dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define("quantize_blocks(Tensor x, int rows) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))


def _run(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    (m, k), n = a.shape, b.shape[0]
    c = torch.empty((m, n), dtype=out_dtype, device=a.device)
    if not c.numel():
        return c
    if not k:
        return c.zero_()
    target = target_of(a)
    a, b = (x if x.stride(1) == 1 else x.contiguous() for x in (a, b))
    types = {"dtype": FLOAT8[a.dtype], "b_dtype": FLOAT8[b.dtype], "out_dtype": OUTPUTS[out_dtype]}
    columns = _scale_columns(a_scale)
    if not (target.has("wgmma") and fits_bulk_copies(a) and fits_bulk_copies(b)):
        block_scaled_kernel(a, b, c, columns, b_scale, native=target.has("mma_fp8"), **types)
        return c
    chosen = block_scaled_schedule(m, n, k, OUTPUTS[out_dtype].bits, target, processors(a))
    work = work_of(chosen, m, n, k, 1, processors(a))
    cut = work.shared_tiles > 0
    slots = (2 * work.blocks, min(chosen.block_m, m), chosen.block_n) if cut else (1, 1, 1)
    partial = torch.empty(slots, dtype=torch.float32, device=a.device)
    result = c.unsqueeze(0)
    hopper_block_scaled_kernel(
        a.unsqueeze(0),
        b.unsqueeze(0),
        result,
        columns,
        b_scale.unsqueeze(0),
        partial,
        work.blocks,
        work.shared_tiles,
        **types,
        block_m=chosen.block_m,
        block_n=chosen.block_n,
        stages=chosen.stages,
        consumers=chosen.consumers,
        stream=cut,
        bulk_store=fits_bulk_copies(c),
        cluster_m=chosen.cluster_m,
        cluster_n=chosen.cluster_n,
        group=chosen.group,
    )
    if cut:
        stream_k_kernel(
            partial,
            result,
            c[0],
            result,
            partial.view(-1)[:1],
            partial.view(-1)[:1],
            1.0,
            1.0,
            work.blocks // chosen.cluster,
            work.shared_tiles,
            -(-k // BLOCK),
            out_dtype=types["out_dtype"],
            block_m=chosen.block_m,
            block_n=chosen.block_n,
            cluster_m=chosen.cluster_m,
            cluster_n=chosen.cluster_n,
            group=chosen.group,
        )
    return c


def _scale_columns(scale: torch.Tensor) -> torch.Tensor:
    """Return the transpose of a matrix of scales as bulk copies can read it; no copy of what `quantize_blocks` made."""
    turned = scale.t()
    blocks, m = turned.shape
    padded_m = -(-m // SCALES_PER_BULK) * SCALES_PER_BULK
    # Of a single row the distance to the next one counts as its length.
    if fits_bulk_copies(turned) and (blocks > 1 or m == padded_m):
        return turned
    padded = torch.empty((blocks, padded_m), dtype=torch.float32, device=scale.device)
    padded[:, :m] = turned
    return padded


def _fake(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)


def _outputs(x: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    m, k = x.shape
    blocks = -(-k // BLOCK)
    codes = x.new_empty((m, k), dtype=torch.float8_e4m3fn)
    if rows > 1:
        return codes, x.new_empty((-(-m // rows), blocks), dtype=torch.float32)
    padded = -(-m // SCALES_PER_BULK) * SCALES_PER_BULK
    return codes, x.new_empty((blocks, padded), dtype=torch.float32).t()[:m]


def _quantize(x: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = _outputs(x, rows)
    if codes.numel():
        x = x if x.stride(1) == 1 else x.contiguous()
        quantize_blocks_kernel(
            x, codes, scale, dtype=OUTPUTS[x.dtype], height=rows, block_m=BLOCK if rows > 1 else 16
        )
    return codes, scale


LIBRARY.impl("matmul_block_scaled", _run, "CPU")
LIBRARY.impl("matmul_block_scaled", _run, "CUDA")
torch.library.register_fake("tilus::matmul_block_scaled", _fake, lib=LIBRARY)
LIBRARY.impl("quantize_blocks", _quantize, "CPU")
LIBRARY.impl("quantize_blocks", _quantize, "CUDA")
torch.library.register_fake("tilus::quantize_blocks", _outputs, lib=LIBRARY)
