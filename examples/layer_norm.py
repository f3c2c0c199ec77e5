"""Layer normalisation of the rows of a matrix, with weight and bias.

Each block normalises a few rows that it holds in registers: the mean, then the variance of what is left after
the mean was taken away. (The mean of the squares minus the square of the mean needs one pass less over the
tile, which costs nothing in registers, and loses all digits where the mean is large.)

Run it with ``python examples/layer_norm.py``. Without a GPU the same PTX runs on the simulator.
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float32


@tilus.kernel
def layer_norm(
    x: Tensor["dtype", "rows columns"],
    weight: Tensor["dtype", "columns"],
    bias: Tensor["dtype", "columns"],
    out: Tensor["dtype", "rows columns"],
    *,
    dtype: constexpr,
    epsilon: constexpr = 1e-5,
    block_rows: constexpr = 4,
    width: constexpr = 1024,
):
    rows, columns = x.shape
    tilus.grid(tilus.cdiv(rows, block_rows), warps=4)
    row = tilus.block_id() * block_rows
    tile = tilus.cast(tilus.load(x, (row, 0), (block_rows, width)), float32)
    # Outside of the tensor the tile is 0, which is right for the sum, but not after the mean was subtracted.
    # `iota` is a tile of indices; a comparison makes a tile of booleans, and `where` selects by it.
    inside = tilus.iota((block_rows, width), axis=1) < columns
    mean = tilus.sum(tile, axis=1, keepdims=True) / columns
    centred = tilus.where(inside, tile - mean, 0.0)
    variance = tilus.sum(centred * centred, axis=1, keepdims=True) / columns
    normal = centred * tilus.rsqrt(variance + epsilon)
    # A tile of one dimension is broadcast over the rows, as in NumPy. Its layout follows from the large
    # tile's, so each thread loads just the weights of its own columns.
    w = tilus.cast(tilus.load(weight, 0, width), float32)
    b = tilus.cast(tilus.load(bias, 0, width), float32)
    tilus.store(out, tilus.cast(normal * w + b, dtype), (row, 0))


def main(shapes: tuple[tuple[int, int], ...] = ((9, 768), (5, 333))) -> None:
    """Run on shapes that fit no tile, and check against float64."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    for rows, columns in shapes:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = (3 + 2 * torch.randn(rows, columns, device=device)).to(dtype)
            weight, bias = (torch.randn(columns, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(x)
            layer_norm(x, weight, bias, out)

            exact = torch.nn.functional.layer_norm(x.double(), (columns,), weight.double(), bias.double())
            torch_error = torch.nn.functional.layer_norm(x, (columns,), weight, bias).double() - exact
            error, allowed = (out.double() - exact).abs().max().item(), 2 * torch_error.abs().max().item()
            assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
            print(
                f"layer_norm: {rows} x {columns} {dtype} on {device}, error {error:.1e} (allowed {allowed:.1e})"
            )

    x, weight, bias, out = torch.randn(8, 1024), torch.randn(1024), torch.randn(1024), torch.empty(8, 1024)
    counters = layer_norm.simulate(x, weight, bias, out).counters
    print(
        f"\n8 x 1024 float32: {counters['global_load_sectors']} sectors loaded "
        f"(fewest {counters['global_load_sectors_ideal']}), {counters['global_store_sectors']} stored "
        f"(fewest {counters['global_store_sectors_ideal']}), {counters['barrier_waits']} barrier waits"
    )


if __name__ == "__main__":
    main()
