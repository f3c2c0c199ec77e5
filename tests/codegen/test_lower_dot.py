"""Products of matrices by every tensor-core instruction, for tiles of any size over any number of warps."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen.atoms.mma import ATOMS
from tilus.codegen.target import TARGETS
from tilus.dtypes import DType, bfloat16, float16, float32, float64, int8, int32, tfloat32, uint8
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir.ops import Cast, Dot
from tilus.lang import Tensor, constexpr

# Relative to the sum of the products' sizes: what rounding sums to the accumulator's type may cost.
TOLERANCE = {"float32": 2e-6, "float16": 4e-3, "float64": 1e-14, "int32": 0.0}


def product(
    a: Tensor["store_a", "m k"], b: Tensor["store_b", "k n"], c: Tensor["acc", "m n"], *,
    a_dtype: constexpr, b_dtype: constexpr, acc: constexpr, store_a: constexpr, store_b: constexpr,
    m: constexpr, n: constexpr, k: constexpr, warps: constexpr, shared: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    x, y = tilus.load(a, (0, 0), (m, k)), tilus.load(b, (0, 0), (k, n))
    if shared:
        s, t = tilus.shared(store_a, (m, k)), tilus.shared(store_b, (k, n))
        tilus.store(s, x)
        tilus.store(t, y)
        x, y = tilus.load(s), tilus.load(t)
    if a_dtype != store_a:
        x, y = x.to(a_dtype), y.to(b_dtype)
    tilus.store(c, tilus.dot(x, y, tilus.load(c, (0, 0), (m, n))), (0, 0))


def multiply(
    dtypes: tuple[DType, DType, DType],
    shape: tuple[int, int, int],
    warps: int,
    target: str = "sm_80",
    shared: bool = False,
) -> d.Outcome:
    """Multiply random matrices, and compare with float64 and with the interpreter."""
    a_dtype, b_dtype, acc = dtypes
    m, n, k = shape
    store_a, store_b = (float32 if x is tfloat32 else x for x in (a_dtype, b_dtype))
    a, b = d.random(store_a, m, k, seed=1), d.random(store_b, k, n, seed=2)
    if a_dtype is tfloat32:
        # Values that tfloat32 holds.
        a, b = (x.view(np.uint32) & np.uint32(0xFFFFE000) for x in (a, b))
        a, b = a.view(np.float32), b.view(np.float32)
    c = d.random(acc, m, n, seed=3)
    x, y = (d.values(v, t).astype(np.float64) for v, t in ((a, store_a), (b, store_b)))
    bound = (np.abs(x) @ np.abs(y) + 1).max()
    made = d.run(
        product, a, b, c, a_dtype=a_dtype, b_dtype=b_dtype, acc=acc, store_a=store_a, store_b=store_b,
        m=m, n=n, k=k, warps=warps, shared=shared, target=target, atol=TOLERANCE[acc.name] * bound,
    )  # fmt: skip
    expected = x @ y + c
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(made.arrays[2], expected, atol=max(1e-30, TOLERANCE[acc.name] * bound), rtol=0)
    assert made.count(".local") == 0
    return made


def oldest(feature: str) -> str:
    """Return the first target that has an instruction."""
    return next(name for name, target in TARGETS.items() if target.has(feature))


@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: atom.name)
def test_every_instruction_multiplies(atom):
    m, n, k = atom.shape
    dtypes = (atom.a_dtype, atom.b_dtype, atom.c_dtype)
    # A target that has this instruction, on which it is the only one, or the only one that fits.
    made = multiply(dtypes, (2 * m, 3 * n, k), 1, oldest(atom.feature))
    assert f"{atom.text} " in made.ptx or f"{atom.text}\t" in made.ptx, sorted(
        line.split()[0] for line in made.ptx.splitlines() if "mma.sync" in line
    )
    multiply(dtypes, (2 * m, 2 * n, 3 * k), 2, oldest(atom.feature), shared=True)


FLOATS = (float16, float16, float32)


@pytest.mark.parametrize(
    ("shape", "warps"),
    [
        ((48, 80, 64), 1), ((48, 80, 64), 3), ((48, 80, 64), 5), ((64, 64, 16), 8), ((16, 8, 16), 4), ((16, 24, 80), 3),
        ((96, 48, 32), 6), ((128, 128, 32), 4), ((32, 8, 8), 2),
    ],
    ids=str,
)  # fmt: skip
def test_tiles_of_any_size_over_any_number_of_warps(shape, warps):
    multiply(FLOATS, shape, warps)
    made = multiply(FLOATS, shape, warps, shared=True)
    if shape[2] % 16 == 0 and shape[0] % 16 == 0:
        assert made.count("ldmatrix") > 0


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_multiplies_halves(target):
    multiply(FLOATS, (32, 32, 32), 2, target, shared=True)


def test_bytes_through_shared_memory_on_turing():
    multiply((int8, int8, int32), (32, 16, 32), 2, "sm_75", shared=True)
    multiply((uint8, int8, int32), (16, 16, 48), 1, "sm_75", shared=True)


def transposed(
    a: Tensor[float16, "k m"], b: Tensor[float16, "n k"], c: Tensor[float32, "m n"], *, shared: constexpr
):
    tilus.grid(1, warps=4)
    x, y = tilus.load(a, (0, 0), (48, 64)), tilus.load(b, (0, 0), (32, 48))
    if shared:
        s, t = tilus.shared(float16, (48, 64)), tilus.shared(float16, (32, 48))
        tilus.store(s, x)
        tilus.store(t, y)
        x, y = tilus.load(s.T), tilus.load(t.T)
    else:
        x, y = x.T, y.T
    tilus.store(c, tilus.dot(x, y), (0, 0))


@pytest.mark.parametrize("shared", [False, True])
def test_transposed_operands(shared):
    a, b = d.random(float16, 48, 64), d.random(float16, 32, 48, seed=1)
    made = d.run(transposed, a, b, np.zeros((64, 32), np.float32), shared=shared, atol=1e-4)
    np.testing.assert_allclose(made.arrays[2], a.T.astype(float) @ b.T, atol=1e-4)
    if shared:
        assert made.count("ldmatrix.sync.aligned.m8n8.x4.trans") > 0
        assert made.count("ldmatrix.sync.aligned.m8n8.x4.shared") > 0


def attention(
    q: Tensor[float16, "m d"],
    k: Tensor[float16, "n d"],
    v: Tensor[float16, "n d"],
    out: Tensor[float32, "m d"],
):
    tilus.grid(1, warps=4)
    n = k.shape[0]
    x = tilus.load(q, (0, 0), (64, 32))
    best = tilus.full((64,), -1e30, float32)
    total, acc = tilus.zeros((64,)), tilus.zeros((64, 32))
    for at in range(0, n, 48):
        keys, rows = tilus.load(k, (at, 0), (48, 32)), tilus.load(v, (at, 0), (48, 32))
        scores = tilus.dot(x, keys.T)
        scores = tilus.where((at + tilus.arange(48))[None, :] < n, scores, -1e30)
        higher = tilus.maximum(best, tilus.max(scores, axis=1))
        weights = tilus.exp(scores - higher[:, None])
        shrink = tilus.exp(best - higher)
        total = total * shrink + tilus.sum(weights, 1)
        acc = tilus.dot(weights.to(float16), rows, acc * shrink[:, None])
        best = higher
    tilus.store(out, acc / total[:, None], (0, 0))


def test_a_product_of_a_product():
    q, k, v = (d.random(float16, n, 32, seed=n) for n in (64, 100, 101))
    v = v[:100]
    made = d.run(attention, q, k, v, np.zeros((64, 32), np.float32), atol=5e-3)
    scores = np.exp(q.astype(float) @ k.T.astype(float))
    np.testing.assert_allclose(made.arrays[3], scores / scores.sum(1, keepdims=True) @ v, atol=5e-3)
    # The weights go from accumulator to operand in registers.
    assert made.count("shfl.sync.idx") == 0


def test_sizes_and_types_without_an_instruction_are_refused():
    with pytest.raises(ShapeMismatch, match="multiples of one of these"):
        multiply(FLOATS, (20, 16, 16), 1)
    with pytest.raises(TypeMismatch, match="sm_75 has no tensor-core instruction for bfloat16"):
        multiply((bfloat16, bfloat16, float32), (16, 16, 16), 1, "sm_75")
    with pytest.raises(TypeMismatch, match="sm_75 has no"):
        multiply((float64, float64, float64), (16, 16, 16), 1, "sm_75")


def chained(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float16, "n p"], out: Tensor[float32, "m p"],
    largest: Tensor[float32, "m"],
):  # fmt: skip
    tilus.grid(1, warps=4)
    s = tilus.dot(tilus.load(a, (0, 0), (64, 32)), tilus.load(b, (0, 0), (32, 48)), tilus.zeros((64, 48)))
    tilus.store(largest, tilus.max(s, axis=1), (0,))
    p = tilus.maximum(s * 0.25, 0.0).to(float16)
    tilus.store(out, tilus.dot(p, tilus.load(c, (0, 0), (48, 32)), tilus.zeros((64, 32))), (0, 0))


def test_the_result_of_a_product_goes_into_another_without_leaving_its_warp():
    """As in attention: all warps lie along the rows of both."""
    a, b, c = (d.random(float16, *shape, seed=sum(shape)) for shape in ((64, 32), (32, 48), (48, 32)))
    zeros = np.zeros((64, 32), np.float32), np.zeros(64, np.float32)
    made = d.run(chained, a, b, c, *zeros, rtol=1e-3, atol=2e-2)
    p = np.maximum(a.astype(np.float64) @ b.astype(np.float64) * 0.25, 0)
    np.testing.assert_allclose(made.arrays[3], p @ c.astype(np.float64), rtol=1e-2, atol=5e-2)
    made_by = {value: op for op in made.compiled.kernel.body.ops for value in op.results}
    *_, last = (op for op in made_by.values() if isinstance(op, Dot))
    # The accumulators of one product are the operand of the next: not even a shuffle but those of the reduction.
    assert isinstance(made_by[last.a], Cast)
    assert made.count("shfl.sync") == 4
