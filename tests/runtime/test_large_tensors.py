"""Tensors of more than 2**32 elements: no address is computed in 32 bits, whichever way a tile takes.

Only the pages that are touched take memory.
"""

from __future__ import annotations

import pytest
import torch

import tilus
from tilus import Tensor, constexpr, int32, uint8

ROWS, COLUMNS = 75_008, 57_344
HEIGHT, WIDTH = 16, 64


@tilus.kernel
def copy_tile(
    x: Tensor[uint8, "m n"], out: Tensor[uint8, "m n"], row: int32, column: int32, *, how: constexpr
):
    tilus.grid(1, warps=4)
    at = (row, column)
    if how == "load":
        tilus.store(out, tilus.load(x, at, (HEIGHT, WIDTH)), at)
    elif how == "copy_async":
        tile = tilus.shared(uint8, (HEIGHT, WIDTH))
        tilus.copy_async(tile, x, at)
        tilus.copy_async_commit()
        tilus.copy_async_wait(0)
        tilus.sync()
        tilus.store(out, tilus.load(tile), at)
    elif how == "gather":
        rows, columns = row + tilus.arange(HEIGHT), column + tilus.arange(WIDTH)
        gathered = tilus.load(x, indices=(rows[:, None], columns[None, :]))
        tilus.store(out, gathered, indices=(rows[:, None], columns[None, :]))
    else:
        tile, full = tilus.shared(uint8, (HEIGHT, WIDTH)), tilus.barrier()
        with tilus.warps(0, 1):
            tilus.copy_bulk(tile, x, at, barrier=full)
            full.arrive(bytes=HEIGHT * WIDTH)
        full.wait(0)
        tilus.store_bulk(out, tile, at)
        tilus.bulk_commit()
        tilus.bulk_wait(0, read=False)


@pytest.fixture(scope="module")
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        made = torch.empty(2, ROWS, COLUMNS, dtype=torch.uint8)
    except RuntimeError as error:
        pytest.skip(f"this machine does not reserve 9 GB of addresses: {error}")
    return made[0], made[1]


# Asynchronous and bulk copies want the tensor's rows along the tile's.
WAYS = [
    ("load", False),
    ("load", True),
    ("gather", False),
    ("gather", True),
    ("copy_async", False),
    ("copy_bulk", False),
]


@pytest.mark.parametrize(("how", "transposed"), WAYS)
def test_tiles_beyond_32_bits(how: str, transposed: bool, tensors: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, out = (tensor.T if transposed else tensor for tensor in tensors)
    m, n = x.shape
    for row, column in ((m - HEIGHT, n - WIDTH), (m // 2, n // 2), (m - HEIGHT, 0)):
        part = slice(row, row + HEIGHT), slice(column, column + WIDTH)
        x[part] = torch.randint(1, 256, (HEIGHT, WIDTH), dtype=torch.uint8)
        out[part] = 0
        copy_tile(x, out, row, column, how=how)
        assert torch.equal(out[part], x[part])
