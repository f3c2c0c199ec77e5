"""One kernel of everything compiles for every target, runs on the simulator, and is taken by the assembler."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen import compile_kernel
from tilus.codegen.assemble import available
from tilus.codegen.target import TARGETS
from tilus.dtypes import boolean, float16, float32, int32, uint8
from tilus.lang import Tensor


def everything(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], codes: Tensor[uint8, "m k"], c: Tensor[float32, "m n"],
    counts: Tensor[int32, "n"], odd: Tensor[float16, "m p"], flags: Tensor[boolean, "m"], seed: int32,
):  # fmt: skip
    m, k = a.shape
    tilus.grid(tilus.cdiv(m, 32), warps=4)
    i = tilus.block_id(0) * 32
    acc = tilus.zeros((32, 64))
    for at in tilus.pipeline(range(0, k, 32), stages=3):
        s, t = tilus.shared(float16, (32, 32)), tilus.shared(float16, (32, 64))
        tilus.copy_async(s, a, (i, at))
        tilus.copy_async(t, b, (at, 0))
        weights = tilus.load(codes, (i, at), (32, 32)).to(float16) * 0.25
        acc = tilus.dot(tilus.load(s) + weights, tilus.load(t), acc)
    y = tilus.exp(acc - tilus.max(acc, axis=1, keepdims=True))
    y = y / tilus.sum(y, 1, keepdims=True)
    y += tilus.cumsum(y, 0) * 0.125
    tilus.store(c, y, (i, 0))
    best = tilus.argmax(y, 1)
    tilus.atomic_add(counts, 1, indices=best, mask=i + tilus.arange(32) < m)
    tilus.store(flags, tilus.any(y > 0.5, 1), i)
    noise = tilus.rand(seed, tilus.iota((32, 6), 0) * 6 + tilus.iota((32, 6), 1))
    ragged = tilus.load(odd, (i, -1), (32, 6), mask=noise < 0.5, other=1.5)
    tilus.store(odd, tilus.minimum(ragged, ragged * ragged), (i, -1))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_runs_and_assembles(target):
    a, b = d.random(float16, 48, 72), d.random(float16, 72, 64, seed=1)
    codes = d.random(uint8, 48, 72, low=0, high=7)
    args = [
        a, b, codes, np.zeros((48, 64), np.float32), np.zeros(64, np.int32), d.random(float16, 48, 5), np.zeros(48, bool), 5,
    ]  # fmt: skip
    made = d.run(everything, *args, target=target, rtol=2e-2, atol=2e-3)
    assert made.arrays[4].sum() == 48
    assert made.count(".local") == 0
    if available() is None:
        compiled = compile_kernel(d.trace(everything, *args), target)
        assert compiled.cubin
        assert compiled.resources is not None
        assert compiled.resources.spill_stores == 0
        assert compiled.resources.spill_loads == 0


def test_the_number_of_threads_is_known_to_the_assembler():
    a = d.random(float16, 48, 72)
    compiled = compile_kernel(
        d.trace(
            everything, a, d.random(float16, 72, 64), d.random(uint8, 48, 72), np.zeros((48, 64), np.float32),
            np.zeros(64, np.int32), d.random(float16, 48, 5), np.zeros(48, bool), 5,
        ), "sm_80", assemble=False,
    )  # fmt: skip
    assert ".maxntid 128" in compiled.ptx.replace("\t", " ") or ".reqntid 128" in compiled.ptx
