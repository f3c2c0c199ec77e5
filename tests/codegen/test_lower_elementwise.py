"""Arithmetic, comparison, selection and reinterpretation of tiles and scalars, from the language to PTX."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen.compiler import prepare
from tilus.codegen.lower.module import lower_kernel
from tilus.codegen.target import target as find_target
from tilus.dtypes import (
    DType,
    bfloat16,
    boolean,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from tilus.dtypes import dtype as find_dtype
from tilus.ir import Builder, GlobalType, Kernel, Value, make_region, ops
from tilus.lang import Tensor, constexpr

FLOATS = (float16, bfloat16, float32, float64)
SIGNED = (int16, int32, int64)
UNSIGNED = (uint16, uint32, uint64)
NAN, INF = float("nan"), float("inf")


def arithmetic(
    a: Tensor["dtype", "n"], b: Tensor["dtype", "n"], out: Tensor["dtype", "rows n"], *,
    dtype: constexpr, size: constexpr, warps: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    x, y = tilus.load(a, 0, size), tilus.load(b, 0, size)
    for row, z in enumerate(
        (x + y, x - y, x * y, tilus.minimum(x, y), tilus.maximum(x, y), -x, tilus.abs(x))
    ):
        tilus.store(out, z, (row, 0))


# Sizes with an odd number of elements in each thread, with copies among threads, and with more than one container.
@pytest.mark.parametrize(("size", "warps"), [(96, 1), (5, 2), (640, 4)])
@pytest.mark.parametrize("dtype", FLOATS + SIGNED + UNSIGNED, ids=str)
def test_arithmetic_rounds_once_and_wraps(dtype, size, warps):
    a, b = d.random(dtype, size, seed=1), d.random(dtype, size, seed=2)
    if dtype.is_integer:
        a[:4], b[:4] = [dtype.max, dtype.min, dtype.min, dtype.max], [1, dtype.max, dtype.min, dtype.max]
    else:
        a[:5], b[:5] = d.array([NAN, 1, INF, -0.0, 3], dtype), d.array([1, NAN, INF, 0.0, -INF], dtype)
    made = d.run(arithmetic, a, b, np.zeros((7, size), a.dtype), dtype=dtype, size=size, warps=warps)
    assert made.count(".local") == 0
    total = d.values(a, dtype).astype(np.float64) + d.values(b, dtype).astype(np.float64)
    if dtype.is_float:
        wanted = d.values(d.array(total, dtype), dtype)
        np.testing.assert_array_equal(d.values(made.arrays[2], dtype)[0], wanted)


def division(
    a: Tensor["dtype", "n"], b: Tensor["dtype", "n"], out: Tensor["dtype", "rows n"], *, dtype: constexpr
):
    tilus.grid(1, warps=1)
    x, y = tilus.load(a, 0, 64), tilus.load(b, 0, 64)
    for row, z in enumerate((x // y, x % y, x // 8, x % 8, x // 7, x % 7)):
        tilus.store(out, z, (row, 0))
    if dtype.is_signed:
        for row, z in enumerate((x // -8, x % -8, x // -7, x % -7)):
            tilus.store(out, z, (6 + row, 0))


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED, ids=str)
def test_integer_division_rounds_down_as_in_python(dtype):
    a, b = d.random(dtype, 64, seed=3, low=-30, high=30), d.random(dtype, 64, seed=4, low=-5, high=5)
    b[b == 0] = 3
    a[:4] = [dtype.min, dtype.max, dtype.min, dtype.max]
    b[:4] = [dtype.max, dtype.max, 3, 5]
    made = d.run(division, a, b, np.zeros((10, 64), a.dtype), dtype=dtype)
    np.testing.assert_array_equal(made.arrays[2][0], a // b)
    np.testing.assert_array_equal(made.arrays[2][1], a % b)


def guarded_unsigned(a: Tensor[uint32, "n"], b: Tensor[uint32, "n"], out: Tensor[uint32, "n"]):
    tilus.grid(1, warps=1)
    x, y = tilus.load(a, 0, 32), tilus.load(b, 0, 32)
    tilus.store(out, tilus.where(y == 0, x, x // y), 0)


def test_an_unsigned_division_by_zero_does_not_either():
    a, b = np.arange(5, 37, dtype=np.uint32), np.arange(32, dtype=np.uint32) % 3
    d.run(guarded_unsigned, a, b, np.zeros(32, np.uint32))


def guarded(a: Tensor[int32, "n"], b: Tensor[int32, "n"], out: Tensor[int32, "m"], i: int32, j: int32):
    tilus.grid(1, warps=1)
    x, y = tilus.load(a, 0, 32), tilus.load(b, 0, 32)
    tilus.store(out, tilus.where(y != 0, x // y, -1), 0)
    tilus.store(out, (i // j if j != 0 else -2), 32)


def test_a_division_by_zero_does_not_disturb_what_surrounds_it():
    a, b = np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32) % 3
    made = d.run(guarded, a, b, np.zeros(33, np.int32), 7, 0)
    np.testing.assert_array_equal(made.arrays[2][:32], np.where(b != 0, a // np.maximum(b, 1), -1))
    assert made.arrays[2][32] == -2


def overflowing(
    a: Tensor["dtype", "n"], b: Tensor["dtype", "n"], out: Tensor["dtype", "rows n"], *, dtype: constexpr
):
    tilus.grid(1, warps=1)
    x, y = tilus.load(a, 0, 32), tilus.load(b, 0, 32)
    for row, z in enumerate((x // y, x // -1)):
        tilus.store(out, z, (3 * row, 0))
        tilus.store(out, tilus.where(z >= 0, 1, -1).to(dtype), (3 * row + 1, 0))
        tilus.store(out, x % y if row == 0 else x % -1, (3 * row + 2, 0))


@pytest.mark.parametrize("dtype", (int32, int64), ids=str)
def test_the_least_number_divided_by_minus_one_wraps_and_is_what_it_is_to_all_that_use_it(dtype):
    a, b = d.random(dtype, 32, seed=6), np.full(32, -1, dtype.numpy)
    a[::2], b[::4] = dtype.min, 3
    made = d.run(overflowing, a, b, np.zeros((6, 32), dtype.numpy), dtype=dtype)
    quotients = np.where(b == -1, -a, a // np.maximum(b, 1))
    np.testing.assert_array_equal(made.arrays[2][0], quotients)
    np.testing.assert_array_equal(made.arrays[2][3], -a)
    for row in (0, 3):
        np.testing.assert_array_equal(made.arrays[2][row + 1], np.where(made.arrays[2][row] >= 0, 1, -1))


def bits(
    a: Tensor["dtype", "n"], b: Tensor["dtype", "n"], out: Tensor["dtype", "rows n"], *, dtype: constexpr
):
    tilus.grid(1, warps=1)
    x, y = tilus.load(a, 0, 96), tilus.load(b, 0, 96)
    shifts = (x << y, x >> y, x << 3, x >> 3, x >> (dtype.bits - 1))
    for row, z in enumerate((x & y, x | y, x ^ y, ~x, *shifts)):
        tilus.store(out, z, (row, 0))


@pytest.mark.parametrize("dtype", (int8, uint8, *SIGNED, *UNSIGNED), ids=str)
def test_bit_operations_and_shifts_of_any_amount(dtype):
    a = d.random(dtype, 96, seed=5, low=dtype.min // 2 * 2, high=dtype.max // 2)
    b = d.random(dtype, 96, seed=6, low=-3, high=min(dtype.max, 2 * dtype.bits))
    b[:3] = [dtype.bits, dtype.bits - 1, dtype.max]
    made = d.run(bits, a, b, np.zeros((9, 96), a.dtype), dtype=dtype)
    assert made.arrays[2][5][0] == (-1 if a[0] < 0 else 0)
    assert made.arrays[2][4][0] == 0


UNARY = ("neg", "abs", "popcount", "clz", "ctz", "brev", "not")
BINARY = (
    "add", "sub", "mul", "min", "max", "floordiv", "mod", "shl", "shr", "mulhi", "and", "or", "xor",
)  # fmt: skip
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")


def on_codes(dtype: DType) -> Kernel:
    """Return a kernel of all integer operations of the IR on a dtype, to which int64 is cast and back."""
    b = Builder()
    rows = len(UNARY) + len(BINARY) + len(COMPARED)
    params = [Value(GlobalType(int64, (96,), (1,), 16), name) for name in ("a", "b")]
    out = Value(GlobalType(int64, (rows, 96), (96, 1), 16), "out")
    with b.region() as grid:
        one = b.constant(1)
        b.emit(ops.Yield, (one, one, one))
    with b.region() as body:
        zero = b.constant(0)
        x, y = (
            b.emit(
                ops.Cast, b.emit(ops.LoadGlobal, p, (zero,), shape=(96,), checked=(False,)).result, dtype
            ).result
            for p in params
        )
        made = [b.emit(ops.Unary, kind, x).result for kind in UNARY]
        made += [b.emit(ops.Binary, kind, x, y).result for kind in BINARY]
        made += [b.emit(ops.Compare, kind, x, y).result for kind in COMPARED]
        for row, value in enumerate(made):
            wide = b.emit(ops.Cast, value, int64).result
            b.emit(ops.StoreGlobal, out, wide, (b.constant(row), zero), checked=(False, False))
        b.emit(ops.Return)
    return Kernel("on_codes", (*params, out), make_region((), grid), make_region((), body), 1)


INTEGERS = (
    *(
        dtype
        for bits in (1, 2, 3, 5, 7, 8, 16, 32, 64)
        for dtype in (find_dtype(f"uint{bits}"), find_dtype(f"int{bits}"))
    ),
)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_operations_of_any_width(dtype):
    low, high = max(dtype.min, -(2**62)), min(dtype.max, 2**62)
    a, b = (d.random(int64, 96, seed=s, low=low, high=high) for s in (14, 15))
    a[:6] = [high, low, 0, 1, dtype.min, high]
    b[:6] = [high, high, 1, high, 1, low]
    b[b == 0] = 1 if dtype.max >= 1 else -1
    made = d.run_kernel(
        on_codes(dtype), a, b, np.zeros((len(UNARY) + len(BINARY) + len(COMPARED), 96), np.int64)
    )
    assert made.arrays[2][UNARY.index("clz")][2] == dtype.bits
    assert made.arrays[2][UNARY.index("ctz")][2] == dtype.bits


def comparisons(
    a: Tensor["dtype", "n"], b: Tensor["dtype", "n"], out: Tensor[boolean, "rows n"], chosen: Tensor["dtype", "n"], *,
    dtype: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=2)
    x, y = tilus.load(a, 0, 80), tilus.load(b, 0, 80)
    both = (x < y) & (x != y)
    rows = (x == y, x != y, x < y, x <= y, x > y, x >= y, both, ~both, (x < y) | (x == y), (x < y) ^ (x <= y))
    for row, z in enumerate(rows):
        tilus.store(out, z, (row, 0))
    tilus.store(chosen, tilus.where(x < y, x, y), 0)


@pytest.mark.parametrize("dtype", (int8, uint8, *FLOATS, *SIGNED, *UNSIGNED), ids=str)
def test_comparisons_logic_and_selection(dtype):
    a, b = d.random(dtype, 80, seed=10, low=-3, high=3), d.random(dtype, 80, seed=11, low=-3, high=3)
    if dtype.is_float:
        a[:4], b[:4] = d.array([NAN, 1, NAN, INF], dtype), d.array([1, NAN, NAN, INF], dtype)
    else:
        a[:2], b[:2] = [dtype.max, dtype.min], [dtype.min, dtype.max]
    made = d.run(comparisons, a, b, np.zeros((10, 80), np.bool_), np.zeros(80, a.dtype), dtype=dtype)
    x, y = d.values(a, dtype), d.values(b, dtype)
    np.testing.assert_array_equal(made.arrays[2][3], x <= y)


def float_mod(
    a: Tensor["dtype", "n"], b: Tensor["dtype", "n"], out: Tensor["dtype", "n"], *, dtype: constexpr
):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.load(a, 0, 64) % tilus.load(b, 0, 64), 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_remainder_of_floats_has_the_sign_of_the_divisor(dtype):
    a, b = d.array(d.random(float64, 64, seed=12) * 100, dtype), d.random(dtype, 64, seed=13)
    a[:9] = d.array([5.5, -5.5, 5.5, -5.5, 1, -1, INF, 1, 6], dtype)
    b[:9] = d.array([2, 2, -2, -2, INF, INF, 2, 0, 3], dtype)
    d.run(float_mod, a, b, np.zeros_like(a), dtype=dtype)


def powers(
    a: Tensor["dtype", "n"], out: Tensor["dtype", "rows n"], *, dtype: constexpr, exponents: constexpr
):
    tilus.grid(1, warps=1)
    x = tilus.load(a, 0, 64)
    for row, exponent in enumerate(exponents):
        tilus.store(out, x**exponent, (row, 0))


@pytest.mark.parametrize(("dtype", "rtol"), [(float16, 2e-3), (bfloat16, 2e-2), (float32, 2e-5)], ids=str)
def test_powers_with_constant_exponents(dtype, rtol):
    a = d.array(np.random.default_rng(0).uniform(-2, 2, 64), dtype)
    a[:4] = d.array([0, -1, 1, NAN], dtype)
    exponents = (0, 1, 2, 5, -1, 0.5, -0.5, 1.7, -1.3, 0.0)
    d.run(
        powers, a, np.zeros((10, 64), a.dtype), dtype=dtype, exponents=exponents, rtol=rtol, atol=rtol * 1e-3
    )


def test_a_negative_base_takes_large_integer_exponents():
    a = np.linspace(-1.1, 1.1, 64, dtype=np.float32)
    made = d.run(
        powers, a, np.zeros((2, 64), np.float32), dtype=float32, exponents=(65, 66), rtol=1e-4, atol=1e-30
    )
    assert made.arrays[1][0][0] < 0 < made.arrays[1][1][0]


def scalars(
    out: Tensor["dtype", "n"], logic: Tensor[boolean, "m"], a: int16, b: uint8, x: float16, y: float32, wide: int64, *,
    dtype: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=1)
    i, j = tilus.cast(a, dtype), tilus.cast(b, dtype)
    rows = (i + j, i * j, i - j, tilus.cast(wide, dtype), tilus.cast(y, dtype), tilus.cast(x, dtype))
    for place, value in enumerate(rows):
        tilus.store(out, value, place)
    tilus.store(logic, i < j, 0)
    tilus.store(logic, x < y.to(float16), 1)
    tilus.store(logic, wide > 5, 2)


@pytest.mark.parametrize("dtype", (int16, uint16, int32, uint32, int64, float32, float16), ids=str)
def test_scalars_compute_in_their_own_width(dtype):
    out = np.zeros(8, dtype.numpy)
    made = d.run(scalars, out, np.zeros(3, np.bool_), 300, 200, 2.5, 7.75, 41, dtype=dtype)
    assert made.arrays[0][1] == np.array(
        300 * 200 if not dtype.is_float or dtype.bits > 16 else 60000
    ).astype(dtype.numpy)


def views(
    a: Tensor[float32, "n"], out: Tensor[uint32, "n"], halves: Tensor[uint16, "m"], wide: Tensor[uint64, "k"]
):
    tilus.grid(1, warps=1)
    x = tilus.load(a, 0, 128, layout=tilus.spatial(32).local(4))
    tilus.store(out, tilus.view(x, uint32), 0)
    tilus.store(halves, tilus.view(x, uint16, layout=tilus.spatial(32).local(8)), 0)
    tilus.store(wide, tilus.view(x, uint64, layout=tilus.spatial(32).local(2)), 0)


def test_a_view_shows_the_bits():
    a = np.random.default_rng(1).standard_normal(128).astype(np.float32)
    made = d.run(views, a, np.zeros(128, np.uint32), np.zeros(256, np.uint16), np.zeros(64, np.uint64))
    for array in made.arrays[1:]:
        np.testing.assert_array_equal(array, a.view(array.dtype))


def inline(
    a: Tensor[int32, "n"], b: Tensor[int16, "n"], h: Tensor[float16, "n"],
    out: Tensor[int32, "n"], narrow: Tensor[int16, "n"], half: Tensor[float16, "n"], k: int32, turns: int32,
):  # fmt: skip
    tilus.grid(1, warps=1)
    x, y, z = tilus.load(a, 0, 64), tilus.load(b, 0, 64), tilus.load(h, 0, 64)
    # Written before the last operand is read, so that result and operand may not share a register.
    text = "add.s32 $0, $1, 1; mul.lo.s32 $0, $0, $1; add.s32 $0, $0, $2;"
    for _ in range(turns):
        x = tilus.inline_ptx(text, [x, k], int32)
    tilus.store(out, x, 0)
    tilus.store(narrow, tilus.inline_ptx("add.s16 $0, $1, $2;", [y, y], int16), 0)
    tilus.store(half, tilus.inline_ptx("add.f16 $0, $1, $2;", [z, z], float16), 0)


def written_by_hand(a: Tensor[int32, "n"], out: Tensor[int32, "n"], *, template: constexpr):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.inline_ptx(template, [tilus.load(a, 0, 32)], int32), 0)


@pytest.mark.parametrize(
    ("template", "together"),
    [
        ("shfl.sync.bfly.b32 $0, $1, 16, 31, 0xffffffff;", True),
        ("bar.red.popc.u32 $0, 0, 1;", True),
        ("barrier.cta.red.popc.u32 $0, 0, 1;", True),
        ("activemask.b32 $0;", True),
        ("add.s32 $0, $1, 1;", False),
    ],
)
def test_inline_ptx_that_threads_execute_together_is_moved_under_no_condition(template, together):
    target = find_target("sm_80")
    array = np.zeros(32, np.int32)
    text, _ = lower_kernel(prepare(d.trace(written_by_hand, array, array, template=template), target), target)
    (line,) = [line for line in text.splitlines() if template in line]
    assert ("convergent" in line) == together


def test_inline_ptx_has_operands_of_the_types_said():
    a, b = (
        d.random(int32, 64, seed=1, low=-9, high=9),
        d.random(int16, 64, seed=2, low=-(2**15), high=2**15 - 1),
    )
    h = d.random(float16, 64, seed=3)
    arrays = [a, b, h, np.zeros(64, np.int32), np.zeros(64, np.int16), np.zeros(64, np.float16)]
    d.launch(d.trace(inline, *arrays, 5, 3), [*arrays, 5, 3])
    x = a
    for _ in range(3):
        x = (x + 1) * x + 5
    np.testing.assert_array_equal(arrays[3], x)
    np.testing.assert_array_equal(arrays[4], b + b)
    np.testing.assert_array_equal(arrays[5], h + h)
