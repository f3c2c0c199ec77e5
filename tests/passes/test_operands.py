"""A second operand of a product that is also something else is loaded twice, as each use wants it."""

from __future__ import annotations

import numpy as np

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import float16, float32
from tilus.ir import ops, walk
from tilus.lang import Tensor


def scaled_and_multiplied(
    q: Tensor[float16, "64 64"], k: Tensor[float16, "64 64"], factor: Tensor[float32, "64"],
    scores: Tensor[float32, "64 64"], state: Tensor[float32, "64 64"],
):  # fmt: skip
    tilus.grid(1, warps=4)
    shared = tilus.shared(float16, (64, 64))
    tilus.store(shared, tilus.load(k, (0, 0), (64, 64)))
    queries, keys = tilus.load(q, (0, 0), (64, 64)), tilus.load(shared.T)
    tilus.store(scores, tilus.dot(queries, keys), (0, 0))
    weighted = (keys.to(float32) * tilus.load(factor, 0, 64)[None, :]).to(float16)
    tilus.store(state, tilus.dot(weighted, queries), (0, 0))


def test_neither_use_has_the_tile_exchanged():
    q, k, factor = d.random(float16, 64, 64), d.random(float16, 64, 64), d.random(float32, 64)
    zeros = np.zeros((64, 64), np.float32)
    made = d.run(scaled_and_multiplied, q, k, factor, zeros, zeros.copy(), rtol=1e-2, atol=1e-2)
    kernel = made.compiled.kernel
    assert sum(isinstance(op, ops.LoadShared) for op in walk(kernel.body)) == 2
    exchanged = [op.x.name for op in walk(kernel.body) if isinstance(op, ops.ConvertLayout)]
    assert not {"keys", "weighted"} & set(exchanged), exchanged


def both_operands(k: Tensor[float16, "32 32"], out: Tensor[float32, "32 32"]):
    tilus.grid(1, warps=2)
    shared = tilus.shared(float16, (32, 32))
    tilus.store(shared, tilus.load(k, (0, 0), (32, 32)))
    x = tilus.load(shared)
    total = tilus.zeros((32, 32))
    for i in range(2):
        total = tilus.dot(tilus.dot(x, x).to(float16), x, total)
    tilus.store(shared, tilus.zeros((32, 32), float16))
    tilus.store(out, total + x.to(float32), (0, 0))


def test_a_tile_that_is_loaded_twice_is_what_it_was_at_its_place():
    made = d.run(
        both_operands, d.random(float16, 32, 32), np.zeros((32, 32), np.float32), rtol=1e-2, atol=1e-2
    )
    assert np.abs(made.arrays[1]).sum() > 0
