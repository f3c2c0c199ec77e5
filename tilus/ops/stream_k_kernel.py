"""The second half of a product that is cut along k: parts of a tile's sum are added up, in their order."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32
from tilus.ops.hopper_matmul_kernel import place
from tilus.ops.matmul_kernel import finish


@tilus.kernel
def stream_k_kernel(
    partial: Tensor["acc_dtype", "slots slot_m slot_n"],
    c: Tensor["out_dtype", "batch m n"],
    bias: Tensor["out_dtype", "bias_n"],
    residual: Tensor["out_dtype", "residual_batch residual_m residual_n"],
    a_scale: Tensor[float32, "scale_m"],
    b_scale: Tensor[float32, "scale_n"],
    alpha: float32,
    beta: float32,
    teams: int32,
    shared_tiles: int32,
    steps: int32,
    *,
    out_dtype: constexpr,
    acc_dtype: constexpr = float32,
    has_bias: constexpr = False,
    has_residual: constexpr = False,
    scales: constexpr = "",
    activation: constexpr = "",
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    cluster_m: constexpr = 1,
    cluster_n: constexpr = 1,
    group: constexpr = 8,
    height: constexpr = 16,
):
    """Finish the shared tiles of a launch of `hopper_matmul_kernel` with so many clusters, and steps for each tile.

    The sum of a tile's parts is taken in the order of k, so that it is the same each time.
    """
    m, n = c.shape[1], c.shape[2]
    tilus.grid(shared_tiles, block_m // height, cluster_m * cluster_n, warps=4)
    number, band, rank = tilus.block_id()
    tilus.wait_for_previous()
    total = shared_tiles * steps
    # The clusters with the tile's first and last step.
    first = ((number * steps + 1) * teams - 1) // total
    last = ((number + 1) * steps * teams - 1) // total
    if first < last:
        rows, columns = tilus.cdiv(m, block_m * cluster_m), tilus.cdiv(n, block_n * cluster_n)
        tile = c.shape[0] * rows * columns - shared_tiles + number
        batch, i, j = place(tile, rows, columns, group)
        acc = tilus.zeros((height, block_n), acc_dtype)
        for team in range(first, last + 1):
            # A cluster's first piece is in its first slots.
            slot = 2 * team + (0 if team * total // teams // steps == number else 1)
            acc += tilus.load(
                partial, (slot * cluster_m * cluster_n + rank, band * height, 0), (height, block_n)
            )
        row = (i * cluster_m + rank // cluster_n) * block_m + band * height
        column = (j * cluster_n + rank % cluster_n) * block_n
        out = finish(
            acc, bias, residual, a_scale, b_scale, alpha, beta, batch, row, column,
            out_dtype, has_bias, has_residual, scales, activation,
        )  # fmt: skip
        tilus.store(c, out, (batch, row, column))
