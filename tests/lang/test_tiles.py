"""Tiles by value: operators, broadcasting, slices, reductions and functions against NumPy, on the interpreter."""

import math

import numpy as np
import pytest

import tilus.lang as tilus
from tests.lang.support import operations, trace
from tilus.ir import ops
from tilus.lang import Tensor, constexpr, float16, float32, int32, int64, uint8, uint32

M, N = 8, 16


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((M, N)).astype(np.float32)


@pytest.fixture
def y() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((M, N)).astype(np.float32)


def two_tiles(
    a: Tensor[float32, "m n"], b: Tensor[float32, "m n"], out: Tensor[float32, "p q"], *, f: constexpr
):
    tilus.grid(1)
    result = f(tilus.load(a, (0, 0), (M, N)), tilus.load(b, (0, 0), (M, N)))
    if isinstance(result, tilus.Tile):
        if result.ndim == 1:
            result = result[None, :]
        tilus.store(out, result.to(float32), (0, 0))
    else:
        tilus.store(out, tilus.cast(result, float32), (0, 0))


@tilus.inline
def arithmetic(x, y):
    return (x + y) * 2.0 - x / (y * y + 1.0) - -y


@tilus.inline
def literals(x, y):
    return 3 - x * 2 + 0.5 / (y**2 + 1) + x**3 + (y * y + 1) ** -1 + (x * x) ** 0.5


@tilus.inline
def broadcasting(x, y):
    return x + y[0:1, :] + y[:, 3:4] + y[2] + y[:, 0][:, None] * x[1][None, :]


@tilus.inline
def slices(x, y):
    return x[2:6, 4:] - y[-4:, :-4]


@tilus.inline
def ellipsis(x, y):
    return x[..., 3] + y[..., -1]


@tilus.inline
def integer_index(x, y):
    return x[3, 5] * y[-1, -2]


@tilus.inline
def new_axes(x, y):
    return (x[None, 0, None, :] + y[1])[0]


@tilus.inline
def many_axes(x, y):
    cube = x[None, :, None, 1:15]
    return (cube[0, 2:5, 0, :] + y[None, None][0, 0, 3:6, 2:])[:, 4, None]


@tilus.inline
def two_names(x, y):
    first = second = x + 1.0
    second += y
    return first * second


@tilus.inline
def transposes(x, y):
    return x.T + y.transpose((1, 0))


@tilus.inline
def reshapes(x, y):
    return x.reshape((N, M)) + tilus.reshape(y, (-1, M))


@tilus.inline
def choices(x, y):
    return tilus.where((x > 0) & ~(y > 0.5) | (x == y), x, tilus.where(x < y, 1, y))


@tilus.inline
def sums(x, y):
    return x.sum(axis=1, keepdims=True) + tilus.sum(y, 0)


@tilus.inline
def total(x, y):
    return tilus.sum(x) + y.max() - tilus.min(y)


@tilus.inline
def row_extremes(x, y):
    return tilus.max(x, axis=-1) - y.min(axis=1)


@tilus.inline
def larger(x, y):
    return tilus.max(x, y, 0.25) + tilus.minimum(x, 1) + max(x, y) + abs(x) + tilus.abs(y)


@tilus.inline
def positions(x, y):
    return tilus.argmax(x, axis=1) * 100 + tilus.argmin(y, axis=1)


@tilus.inline
def questions(x, y):
    some = tilus.any(x > 1.5, axis=1)
    every = tilus.all(y > -2.5, axis=1)
    return tilus.where(some, 1.0, 0.0) + tilus.where(every, 10.0, 0.0)


@tilus.inline
def scans(x, y):
    return tilus.cumsum(x, 1) + tilus.scan(y, 0, "max") + tilus.scan(x, 1, "sum", exclusive=True)


@tilus.inline
def joined(x, y):
    return tilus.concat([x, y], axis=0) + tilus.concat((y, x))


@tilus.inline
def index_tiles(x, y):
    return x * tilus.iota((M, N), 0).to(float32) + tilus.arange(2, 2 + N).to(float32)


@tilus.inline
def made(x, y):
    return (
        tilus.zeros((M, N))
        + tilus.full((M, N), 2.5)
        + tilus.broadcast_to(3.0, (M, N))
        + tilus.full(1, x[0, 0])
    )


@tilus.inline
def functions_of_floats(x, y):
    u = y * y + 0.5
    return (
        tilus.exp(x) + tilus.exp2(x) + tilus.log(u) + tilus.log2(u) + tilus.sin(x) + tilus.cos(x) + tilus.tanh(x)
        + tilus.erf(x) + tilus.sqrt(u) + tilus.rsqrt(u) + tilus.rcp(u)
    )  # fmt: skip


@tilus.inline
def roundings(x, y):
    z = x * 3.0
    return (
        tilus.floor(z) + 10 * tilus.ceil(z) + 100 * tilus.round(z) + 1000 * tilus.trunc(z) + 2 * z.to(int32)
    )


@tilus.inline
def base_two(x, y):
    return 2**x + tilus.exp2(math.log2(3.0)) + tilus.sqrt(16.0)


@tilus.inline
def mixed_scalars(x, y):
    scale = x[0, 0]
    count = tilus.cast(3, int32)
    return x * scale + y * count + (count + 1) * scale


erf = np.vectorize(math.erf)


def reference(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    u, z = y * y + 0.5, x * 3.0
    rows, columns = np.indices((M, N))
    return {
        "arithmetic": lambda: (x + y) * 2 - x / (y * y + 1) + y,
        "literals": lambda: 3 - x * 2 + 0.5 / (y**2 + 1) + x**3 + 1 / (y * y + 1) + abs(x),
        "broadcasting": lambda: x + y[0:1, :] + y[:, 3:4] + y[2] + y[:, 0][:, None] * x[1][None, :],
        "slices": lambda: x[2:6, 4:] - y[-4:, :-4],
        "ellipsis": lambda: x[..., 3] + y[..., -1],
        "integer_index": lambda: x[3, 5] * y[-1, -2],
        "new_axes": lambda: (x[None, 0, None, :] + y[1])[0],
        "many_axes": lambda: (x[2:5, 1:15] + y[3:6, 2:])[:, 4, None],
        "two_names": lambda: (x + 1) * (x + 1 + y),
        "transposes": lambda: x.T + y.T,
        "reshapes": lambda: x.reshape(N, M) + y.reshape(-1, M),
        "choices": lambda: np.where((x > 0) & ~(y > 0.5) | (x == y), x, np.where(x < y, 1, y)),
        "sums": lambda: x.sum(1, keepdims=True) + y.sum(0),
        "total": lambda: x.sum() + y.max() - y.min(),
        "row_extremes": lambda: x.max(-1) - y.min(1),
        "larger": lambda: (
            np.maximum(np.maximum(x, y), 0.25) + np.minimum(x, 1) + np.maximum(x, y) + np.abs(x) + np.abs(y)
        ),
        "positions": lambda: x.argmax(1) * 100 + y.argmin(1),
        "questions": lambda: (x > 1.5).any(1) * 1.0 + (y > -2.5).all(1) * 10.0,
        "scans": lambda: x.cumsum(1) + np.maximum.accumulate(y, 0) + x.cumsum(1) - x,
        "joined": lambda: np.concatenate([x, y]) + np.concatenate([y, x]),
        "index_tiles": lambda: x * rows + columns + 2,
        "made": lambda: np.full((M, N), 5.5 + x[0, 0]),
        "functions_of_floats": lambda: (
            np.exp(x) + np.exp2(x) + np.log(u) + np.log2(u) + np.sin(x) + np.cos(x) + np.tanh(x) + erf(x)
            + np.sqrt(u) + 1 / np.sqrt(u) + 1 / u
        ),
        "roundings": lambda: np.floor(z) + 10 * np.ceil(z) + 100 * np.round(z) + 1000 * np.trunc(z) + 2 * np.trunc(z),
        "base_two": lambda: 2**x + 3.0 + 4.0,
        "mixed_scalars": lambda: x * x[0, 0] + y * 3 + 4 * x[0, 0],
    }[name]()  # fmt: skip


FUNCTIONS = [
    arithmetic, literals, broadcasting, slices, ellipsis, integer_index, new_axes, many_axes, two_names, transposes,
    reshapes, choices, sums,
    total, row_extremes, larger, positions, questions, scans, joined, index_tiles, made, functions_of_floats,
    roundings, base_two, mixed_scalars,
]  # fmt: skip


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_tiles_mean_what_numpy_means(execute, f, x, y):
    expected = np.atleast_2d(reference(f.__name__, x, y))
    out = np.full(expected.shape, np.nan, np.float32)
    execute(two_tiles, x, y, out, f=f)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-5)


def integers(a: Tensor[int32, "n"], b: Tensor[int32, "n"], out: Tensor[int32, "k n"]):
    tilus.grid(1)
    x, y = tilus.load(a, 0, 16), tilus.load(b, 0, 16)
    bits = x.to(uint32)
    results = (
        x // y, x % y, x & y, x | y, x ^ y, ~x, x << (y & 7), x >> (y & 7), -x, x // 4,
        tilus.popcount(x), tilus.clz(bits), tilus.ctz(x), tilus.brev(bits).to(int32), tilus.cdiv(tilus.abs(x), 7),
        tilus.lookup((5, 7, 11, 13), x & 3, int32), (x.to(int64) * y.to(int64) >> 3).to(int32),
        tilus.where(x > y, x, 3),
    )  # fmt: skip
    for row, result in enumerate(results):
        tilus.store(out, result[None, :], (row, 0))


def test_integer_operators_mean_what_python_means(execute):
    generator = np.random.default_rng(2)
    x = generator.integers(-1000, 1000, 16).astype(np.int32)
    y = generator.integers(1, 50, 16).astype(np.int32) * np.where(generator.random(16) < 0.5, -1, 1).astype(
        np.int32
    )
    out = np.zeros((18, 16), np.int32)
    execute(integers, x, y, out)
    pairs = [(int(a), int(b)) for a, b in zip(x, y)]
    word = 0xFFFFFFFF
    expected = [
        [a // b for a, b in pairs], [a % b for a, b in pairs], [a & b for a, b in pairs], [a | b for a, b in pairs],
        [a ^ b for a, b in pairs], [~a for a, b in pairs], [a << (b & 7) for a, b in pairs],
        [a >> (b & 7) for a, b in pairs], [-a for a, b in pairs], [a // 4 for a, b in pairs],
        [bin(a & word).count("1") for a, b in pairs], [32 - (a & word).bit_length() for a, b in pairs],
        [((a & -a).bit_length() - 1) % 33 if a else 32 for a, b in pairs],
        [np.int32(np.uint32(int(f"{a & word:032b}"[::-1], 2))) for a, b in pairs],
        [-(-abs(a) // 7) for a, b in pairs], [(5, 7, 11, 13)[a & 3] for a, b in pairs], [a * b >> 3 for a, b in pairs],
        [a if a > b else 3 for a, b in pairs],
    ]  # fmt: skip
    for row, values in enumerate(expected):
        assert out[row].tolist() == [int(v) for v in values], row


def half_precision(
    a: Tensor[float16, "n"], out: Tensor[float16, "n"], wide: Tensor[float32, "n"], scale: float32
):
    tilus.grid(1)
    x = tilus.load(a, 0, 16)
    tilus.store(out, x * 0.1 + 1, 0)
    tilus.store(wide, x * scale, 0)


def test_a_literal_takes_the_tiles_dtype_and_a_run_time_scalar_promotes():
    kernel = trace(half_precision)
    multiplications = [made for made in operations(kernel, ops.Binary) if made.kind == "mul"]
    assert [made.result.type.dtype for made in multiplications] == [float16, float32]


def promotions(i: int32, j: int64, u: uint32, f: float32, h: float16, b: tilus.bfloat16, s: tilus.int16):
    tilus.grid(1)
    tilus.static_assert((i + j).dtype == int64)
    tilus.static_assert((i + s).dtype == int32)
    tilus.static_assert((j + u).dtype == int64)
    tilus.static_assert((i * f).dtype == float32)
    tilus.static_assert((i * h).dtype == float16)
    tilus.static_assert((h + b).dtype == float32)
    tilus.static_assert((h + f).dtype == float32)
    tilus.static_assert((i + 0.5).dtype == float32)
    tilus.static_assert((s + 0.5).dtype == float32)
    tilus.static_assert((i + 2**40).dtype == int64)
    tilus.static_assert((u + 1).dtype == uint32)
    tilus.static_assert((i < 3).dtype == tilus.boolean)
    tilus.static_assert((s << 3).dtype == tilus.int16)
    tilus.static_assert((1 << i).dtype == int32)
    tilus.static_assert(tilus.where(i > 0, 1, 0.5).dtype == float32)
    tilus.static_assert(int(f).dtype == int32)
    tilus.static_assert(float(i).dtype == float32)
    tilus.static_assert(bool(i).dtype == tilus.boolean)


def test_dtypes_promote_as_documented():
    trace(promotions)


def bytes_to_nibbles(a: Tensor[uint8, "n"], out: Tensor[int32, "m"]):
    tilus.grid(1)
    tile = tilus.load(a, 0, 8)
    low, high = tile & 15, tile >> 4
    tilus.store(out, low.to(int32), 0)
    tilus.store(out, high.to(int32), 8)


def test_bytes_take_bit_operations(execute):
    out = np.zeros(16, np.int32)
    execute(bytes_to_nibbles, np.arange(0, 240, 30, dtype=np.uint8), out)
    assert out[:8].tolist() == [v & 15 for v in range(0, 240, 30)]
    assert out[8:].tolist() == [v >> 4 for v in range(0, 240, 30)]


def viewed(a: Tensor[uint8, "n"], *, layout: constexpr):
    tilus.grid(1)
    tile = tilus.load(a, 0, 64)
    tilus.static_assert(tilus.view(tile, tilus.uint4).shape == (128,))
    tilus.static_assert(tile.view(tilus.float6_e3m2, (4, 16), layout).shape == (4, 16) if layout else True)
    tilus.static_assert(tilus.view(tile, tilus.uint32).shape == (16,))


def test_view_keeps_the_bits():
    kernel = trace(viewed, layout=None)
    assert [made.dtype for made in operations(kernel, ops.View)] == [tilus.uint4, uint32]


def products(a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], out: Tensor[float32, "m n"]):
    tilus.grid(1)
    x, y = tilus.load(a, (0, 0), (16, 8)), tilus.load(b, (0, 0), (8, 16))
    acc = tilus.dot(x, y)
    acc = tilus.dot(x, y, acc)
    acc = acc + x @ y
    half = tilus.dot(x, y, out_dtype=float16)
    tilus.store(out, acc + half.to(float32), (0, 0))


def test_dot_multiplies_and_adds(execute):
    generator = np.random.default_rng(3)
    a, b = (generator.standard_normal(shape).astype(np.float16) for shape in ((16, 8), (8, 16)))
    out = np.zeros((16, 16), np.float32)
    execute(products, a, b, out)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out, 4 * exact, atol=2e-2)
    assert np.abs(exact).max() > 1


def random_numbers(out: Tensor[float32, "k n"], seed: int32):
    tilus.grid(1)
    counter = tilus.arange(4096)
    tilus.store(out, tilus.rand(seed, counter)[None, :], (0, 0))
    tilus.store(out, tilus.randn(seed, counter)[None, :], (1, 0))
    bits = tilus.random_bits(seed, counter)
    for row, tile in enumerate(bits):
        tilus.store(out, (tile >> 8).to(float32)[None, :], (2 + row, 0))
    tilus.static_assert(tilus.randint(seed, counter).dtype == uint32)


def test_random_numbers_are_uniform_and_normal(execute):
    out = np.zeros((6, 4096), np.float32)
    execute(random_numbers, out, 42)
    uniform, normal = out[0].astype(np.float64), out[1].astype(np.float64)
    assert (uniform >= 0).all()
    assert (uniform < 1).all()
    # Five standard errors of 4096 samples.
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 64
    assert abs(uniform.var() - 1 / 12) < 5 * 180**-0.5 / 64
    assert abs(normal.mean()) < 5 / 64
    assert abs(normal.var() - 1) < 5 * 2**0.5 / 64
    assert np.array_equal(out[0], out[2] * np.float32(2**-24))
    assert len({tuple(row[:8]) for row in out[2:]}) == 4


def compile_time(out: Tensor[int32, "n"], *, sizes: constexpr = (1, 2, 3), table: constexpr = None):
    tilus.grid(1)
    squares = [n * n for n in sizes if n != 2]
    named = {f"size{n}": n for n in sizes}
    first, *rest = sizes
    total = sum(squares) + named["size2"] + len(rest) + max(sizes) + next_prime(first)
    total += tilus.cdiv(7, 2) + tilus.next_power_of_2(33) + int(math.sqrt(16)) + abs(-3)
    tiles = [tilus.full(4, n, int32) for n in sizes]
    tiles = [tile + i for i, tile in enumerate(tiles)]
    tilus.store(out, sum(tiles) + tilus.sum(tiles) - tilus.max(tiles) - tilus.min(tiles) * 2 + total, 0)
    total += tilus.sum(sizes) + tilus.max(sizes) * 100 + tilus.any([False, True]) + tilus.all([])
    for (a, b), c in zip([(1, 2), (3, 4)], reversed(sizes)):
        total += a * b * c
    while_text = "a" in "abc" and table is None and total not in (1, 2)
    tilus.static_assert(while_text, f"found {total}")
    tilus.store(out, total, 4)


def next_prime(n: int) -> int:
    n += 1
    while any(n % d == 0 for d in range(2, n)):
        n += 1
    return n


def test_python_runs_at_compile_time(execute):
    out = np.zeros(5, np.int32)
    execute(compile_time, out)
    total = 10 + 2 + 2 + 3 + 2 + 4 + 64 + 4 + 3
    # The tiles are filled with 1, 3 and 5.
    assert out[:4].tolist() == [9 + 9 - 5 - 2 + total] * 4
    total += 6 + 300 + 1 + 1
    assert out[4] == total + 1 * 2 * 3 + 3 * 4 * 2


def layouts(a: Tensor[float16, "m n"], *, layout: constexpr):
    tilus.grid(1, warps=1)
    tile = tilus.load(a, (0, 0), (16, 16), layout=layout)
    tile = tilus.annotate_layout(tile + 1.0, tilus.spatial(4, 8).local(4, 2))
    tilus.store(a, tile, (0, 0))


def test_layouts_are_kept_and_annotated():
    layout = tilus.spatial(8, 4).local(2, 4)
    kernel = trace(layouts, layout=layout)
    (load,) = operations(kernel, ops.LoadGlobal)
    (annotation,) = operations(kernel, ops.AnnotateLayout)
    assert load.result.type.layout == layout
    assert annotation.result.type.layout == tilus.spatial(4, 8).local(4, 2)
