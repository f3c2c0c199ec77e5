"""Pipelined copies into parts of a shared tile, each from a place of its own."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import float16, float32, int32
from tilus.errors import SyntaxNotSupported
from tilus.lang import Tensor, constexpr


def two_pages(
    a: Tensor[float16, "m k"], b: Tensor[float16, "pages 16 32"], table: Tensor[int32, "p"],
    c: Tensor[float32, "m 32"], *, filled: constexpr = 2,
):  # fmt: skip
    m, k = a.shape
    tilus.grid(1, warps=1)
    acc = tilus.zeros((16, 32))
    for at in tilus.pipeline(range(0, k, 32), stages=3):
        keys, values = tilus.shared(float16, (16, 32)), tilus.shared(float16, (32, 32))
        tilus.copy_async(keys, a, (0, at))
        pages = values.reshape((2, 16, 32))
        tilus.copy_async(pages[0], b, (tilus.load(table, at // 16), 0, 0))
        if filled == 2:
            tilus.copy_async(values[16:32], b, (tilus.load(table, at // 16 + 1), 0, 0))
        else:
            tilus.store(values[16:32], tilus.zeros((16, 32), float16))
        acc = tilus.dot(tilus.load(keys), tilus.load(values), acc)
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_a_tile_is_filled_by_a_copy_for_each_part(target):
    a, b = d.random(float16, 16, 128), d.random(float16, 20, 16, 32)
    table = np.array([7, 3, 19, 0, 4, 4, 1, 12], np.int32)
    out = np.zeros((16, 32), np.float32)
    made = d.run(two_pages, a, b, table, out, target=target, rtol=1e-3, atol=1e-3)
    expected = a.astype(np.float64) @ b[table].reshape(128, 32).astype(np.float64)
    np.testing.assert_allclose(made.arrays[3], expected, rtol=1e-3, atol=1e-3)
    assert made.count("cp.async.commit_group") == 3


def test_a_part_of_a_pipelined_tile_is_not_stored_to():
    a, b = d.random(float16, 16, 64), d.random(float16, 4, 16, 32)
    with pytest.raises(SyntaxNotSupported, match="shared tiles are filled by copy_async only"):
        d.run(two_pages, a, b, np.zeros(4, np.int32), np.zeros((16, 32), np.float32), filled=1)
