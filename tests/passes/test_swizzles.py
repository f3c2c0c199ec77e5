"""Loads of four threads side by side in a row are free of conflicts, whatever piece of it each of them takes."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import float16, float32, uint8
from tilus.lang import Tensor, constexpr
from tilus.layout import local, spatial


def fragments(
    x: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], *, dtype: constexpr, n: constexpr, v: constexpr
):
    tilus.grid(1, warps=2)
    s = tilus.shared(dtype, (32, n))
    tilus.copy_async(s, x, (0, 0))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    part = spatial(2, 1) * local(2, n // (4 * v)) * spatial(8, 4) * local(1, v)
    tilus.store(out, tilus.load(s, layout=part), (0, 0))


@pytest.mark.parametrize(
    ("dtype", "n", "v"),
    [(uint8, 64, 8), (uint8, 128, 8), (uint8, 128, 16), (uint8, 192, 8), (float16, 64, 4), (float16, 64, 8), (float32, 32, 2)],
)  # fmt: skip
def test_pieces_of_eight_and_of_sixteen_bytes(dtype, n, v):
    x = d.random(dtype, 32, n)
    counters = d.run(fragments, x, np.zeros_like(x), dtype=dtype, n=n, v=v).report.counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0
