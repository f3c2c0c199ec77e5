"""Softmax of the rows of a matrix, in two ways: a row that fits into a block's registers, and a row of any length.

Softmax is bound by memory: what counts is how often a row is read. With the row in registers it is read once.
A long row is read twice by the *online* form, which carries the maximum and the sum of what it has seen, and
rescales the sum whenever the maximum grows (Milakov and Gimelshein, 2018).

Run it with ``python examples/softmax.py``. Without a GPU the same PTX runs on the simulator.
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float32

LOG2_E = 1.4426950408889634


@tilus.kernel
def softmax(
    x: Tensor["dtype", "rows columns"],
    out: Tensor["dtype", "rows columns"],
    *,
    dtype: constexpr,
    block_rows: constexpr = 4,
    width: constexpr = 1024,
):
    """One tile holds `block_rows` whole rows, so a row has at most `width` columns."""
    rows = x.shape[0]
    tilus.grid(tilus.cdiv(rows, block_rows), warps=4)
    row = tilus.block_id() * block_rows
    # What lies outside of the tensor is `other`: minus infinity adds nothing to a maximum, and its
    # exponential is 0. So a ragged last column needs no mask, and the last rows, which are outside
    # altogether, are never stored.
    tile = tilus.cast(tilus.load(x, (row, 0), (block_rows, width), other=float("-inf")), float32)
    # Reductions run within a thread first, then by shuffles in a warp, and across warps through shared
    # memory; which of these are needed follows from the tile's layout.
    largest = tilus.max(tile, axis=1, keepdims=True)
    # exp(x - max) is at most 1, so nothing overflows. The hardware has powers of two only.
    numerator = tilus.exp2((tile - largest) * LOG2_E)
    total = tilus.sum(numerator, axis=1, keepdims=True)
    tilus.store(out, tilus.cast(numerator / total, dtype), (row, 0))


@tilus.kernel
def online_softmax(
    x: Tensor["dtype", "rows columns"],
    out: Tensor["dtype", "rows columns"],
    *,
    dtype: constexpr,
    block_rows: constexpr = 1,
    width: constexpr = 1024,
):
    """Rows of any length, `width` columns at a time."""
    rows, columns = x.shape
    tilus.grid(tilus.cdiv(rows, block_rows), warps=4)
    row = tilus.block_id() * block_rows
    # A large finite number instead of minus infinity: where a whole tile lies outside of the tensor,
    # infinity minus infinity would be NaN.
    largest = tilus.full((block_rows, 1), -3.0e38)
    total = tilus.zeros((block_rows, 1))
    # Values that change in a loop are carried by it: they keep their dtype, shape and layout.
    for column in range(0, columns, width):
        tile = tilus.cast(tilus.load(x, (row, column), (block_rows, width), other=float("-inf")), float32)
        now = tilus.maximum(largest, tilus.max(tile, axis=1, keepdims=True))
        part = tilus.sum(tilus.exp2((tile - now) * LOG2_E), axis=1, keepdims=True)
        total = total * tilus.exp2((largest - now) * LOG2_E) + part
        largest = now
    scale = 1.0 / total
    for column in range(0, columns, width):
        tile = tilus.cast(tilus.load(x, (row, column), (block_rows, width)), float32)
        tilus.store(out, tilus.cast(tilus.exp2((tile - largest) * LOG2_E) * scale, dtype), (row, column))


def check(name: str, out: torch.Tensor, x: torch.Tensor) -> None:
    """Compare with float64; allow twice the error that torch makes in the same dtype."""
    expected = torch.softmax(x.double(), dim=1)
    error = (out.double() - expected).abs().max().item()
    allowed = 2 * (torch.softmax(x, dim=1).double() - expected).abs().max().item()
    assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
    print(f"{name}: {tuple(x.shape)} {x.dtype} on {x.device}, error {error:.1e} (allowed {allowed:.1e})")


def main(shapes: tuple[tuple[int, int], ...] = ((10, 1000), (7, 333), (3, 5001))) -> None:
    """Run both kernels on shapes that fit no tile, and on values whose exponential overflows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    for rows, columns in shapes:
        for dtype in (torch.float32, torch.float16):
            # Up to about 400: exp(400) is not a float32.
            x = (100 * torch.randn(rows, columns, device=device)).to(dtype)
            out = torch.empty_like(x)
            kernel = softmax if columns <= 1024 else online_softmax
            kernel(x, out)
            check(kernel.__name__, out, x)

    rows, columns = 8, 1024
    x, out = torch.randn(rows, columns), torch.empty(rows, columns)
    print(f"\n{rows} x {columns} float32, {rows * columns * 4} bytes:")
    for kernel in (softmax, online_softmax):
        counters = kernel.simulate(x, out).counters
        print(
            f"  {kernel.__name__}: {counters['global_bytes_read']} bytes read, "
            f"{counters['global_load_sectors']} sectors (fewest {counters['global_load_sectors_ideal']}), "
            f"{counters['instructions_by_kind'].get('shfl', 0)} shuffles, {counters['barrier_waits']} barrier waits"
        )


if __name__ == "__main__":
    main()
