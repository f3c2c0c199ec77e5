"""`matmul`: float16 and bfloat16 matrix products, as a function and as a torch op."""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, dtypes, float32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.library import LIBRARY

DTYPES = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16}


@tilus.kernel
def matmul_kernel(
    a: Tensor["dtype", "m k"],
    b: Tensor["dtype", "k n"],
    c: Tensor["dtype", "m n"],
    *,
    dtype: constexpr,
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 32,
    stages: constexpr = 3,
    warps: constexpr = 4,
    group: constexpr = 8,
):
    """c = a @ b, tile by tile, the operands pipelined through shared memory."""
    m, k = a.shape
    n = b.shape[1]
    tilus.grid(tilus.cdiv(m, block_m) * tilus.cdiv(n, block_n), warps=warps)
    # Blocks that run together work on `group` rows of tiles, so that they share operands in the cache.
    rows, columns = tilus.cdiv(m, block_m), tilus.cdiv(n, block_n)
    number = tilus.block_id(0)
    first = number // (group * columns) * group
    height = tilus.min(rows - first, group)
    within = number % (group * columns)
    row = (first + within % height) * block_m
    column = within // height * block_n
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, k, block_k), stages=stages):
        sa = tilus.shared(dtype, (block_m, block_k))
        sb = tilus.shared(dtype, (block_k, block_n))
        tilus.copy_async(sa, a, (row, k0))
        tilus.copy_async(sb, b, (k0, column))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb), acc)
    tilus.store(c, tilus.cast(acc, dtype), (row, column))


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply two matrices of float16 or bfloat16, accumulating in float32.

    Parameters
    ----------
    a : Tensor, shape (..., k)
        On the GPU or, for the simulator, on the CPU.
    b : Tensor, shape (k, n)
        Of a's dtype, on the same device; row-major, or the transpose of a row-major matrix.

    Returns
    -------
    Tensor of a's dtype, shape (..., n)

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where a and b do not fit.
    """
    if a.dtype not in DTYPES or a.dtype != b.dtype:
        raise TypeMismatch(f"matmul takes two tensors of float16 or of bfloat16, not {a.dtype} and {b.dtype}")
    if a.ndim == 0 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise ShapeMismatch(f"matmul of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return torch.ops.tilus.matmul(a, b)


LIBRARY.define("matmul(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def schedule(m: int, n: int) -> dict[str, int]:
    """Return the tile sizes for a problem."""
    if m <= 16:
        return {"block_m": 16, "block_n": 64, "block_k": 64, "stages": 4}
    if m <= 64 or n <= 64:
        return {"block_m": 64, "block_n": 64, "block_k": 64, "stages": 3}
    return {"block_m": 128, "block_n": 128, "block_k": 32, "stages": 4}


def _run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    k, n = b.shape
    rows = a.reshape(-1, k)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if 1 not in b.stride():
        b = b.contiguous()
    m = rows.shape[0]
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    if m and n:
        matmul_kernel(rows, b, out, dtype=DTYPES[a.dtype], **schedule(m, n))
    return out.reshape(*a.shape[:-1], n)


def _fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[1]))


LIBRARY.impl("matmul", _run, "CPU")
LIBRARY.impl("matmul", _run, "CUDA")
torch.library.register_fake("tilus::matmul", _fake, lib=LIBRARY)
