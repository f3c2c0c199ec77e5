"""Floating-point instructions against rationals rounded by integer arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import apply, bits_of, float_bits, floats, round_fraction

MODES = ("rn", "rz", "rm", "rp")


def finite(bits: int, seed: int) -> Any:
    """Operands whose exact results the rationals give; signed zeros have tests of their own."""
    values = floats(bits, seed=seed, special=False)
    return np.where(values == 0, values.dtype.type(0.75), values)


def exact(function: Callable[..., Fraction], bits: int, mode: str, *operands: Any) -> list[int]:
    rows = zip(*operands)
    results = [round_fraction(function(*(Fraction(float(v)) for v in row)), bits, mode) for row in rows]
    return [float_bits(r, bits) for r in results]


def same(got: Any, want: list[int], bits: int) -> None:
    """Equal bits; a zero may have either sign where an exact zero is rounded."""
    magnitude = (1 << (bits - 1)) - 1
    differing = [
        (int(g), w) for g, w in zip(got, want) if int(g) != w and (int(g) & magnitude or w & magnitude)
    ]
    assert differing == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul", lambda a, b: a * b),
        ("div", lambda a, b: a / b),
    ],
)
def test_arithmetic_in_every_rounding_mode(name: str, function: Any, bits: int, mode: str) -> None:
    a, b = finite(bits, 1), finite(bits, 2)
    got = apply(f"{name}.{mode}.f{bits} {{d}}, {{a}}, {{b}};", a, b, result=bits)
    same(got, exact(function, bits, mode, a, b), bits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [32, 64])
def test_fma_rounds_once(bits: int, mode: str) -> None:
    a, b = finite(bits, 1), finite(bits, 2)
    with np.errstate(over="ignore"):
        near = -(a.astype(np.float64) * b.astype(np.float64))
        # Half of the addends cancel the product but for its rounding error.
        c = np.where(np.arange(len(a)) % 2, near.astype(a.dtype), finite(bits, 3))
    keep = np.isfinite(c)
    a, b, c = a[keep], b[keep], c[keep]
    got = apply(f"fma.{mode}.f{bits} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, result=bits)
    same(got, exact(lambda x, y, z: x * y + z, bits, mode, a, b, c), bits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [32, 64])
def test_square_roots_and_reciprocals(bits: int, mode: str) -> None:
    a = np.abs(finite(bits, 1))
    got = apply(f"sqrt.{mode}.f{bits} {{d}}, {{a}};", a, result=bits)
    view = got.view(f"f{bits // 8}")
    for x, root in zip(a, view):
        # The root is right if the square of it and of its neighbours enclose the operand as the mode says.
        square, value = Fraction(float(root)) ** 2, Fraction(float(x))
        up, down = (Fraction(float(np.nextafter(root, root.dtype.type(e)))) for e in (np.inf, 0))
        if mode in ("rz", "rm"):
            assert square <= value < up**2
        elif mode == "rp":
            assert down**2 < value <= square
        else:
            assert (down + Fraction(float(root))) ** 2 <= 4 * value <= (up + Fraction(float(root))) ** 2
    got = apply(f"rcp.{mode}.f{bits} {{d}}, {{a}};", a, result=bits)
    same(got, exact(lambda x: 1 / x, bits, mode, a), bits)


@pytest.mark.parametrize(("name", "function"), [("add", lambda a, b: a + b), ("mul", lambda a, b: a * b)])
def test_half_and_packed_half(name: str, function: Any) -> None:
    a, b = finite(16, 1), finite(16, 2)
    want = exact(function, 16, "rn", a, b)
    same(apply(f"{name}.f16 {{d}}, {{a}}, {{b}};", a, b, result=16), want, 16)
    packed = apply(
        f"{name}.f16x2 {{d}}, {{a}}, {{b}};", bits_of(a, 16).view(np.uint32), bits_of(b, 16).view(np.uint32)
    )
    same(packed.view(np.uint16), want, 16)


def test_half_fma_rounds_once() -> None:
    a, b, c = (finite(16, s) for s in (1, 2, 3))
    want = exact(lambda x, y, z: x * y + z, 16, "rn", a, b, c)
    same(apply("fma.rn.f16 {d}, {a}, {b}, {c};", a, b, c, result=16), want, 16)


def bfloat_value(code: int) -> float:
    return float(np.array(int(code) << 16, np.uint32).view(np.float32))


def round_bfloat(value: Fraction) -> int:
    """To the nearest bfloat16, ties to even: by trying the two neighbours."""
    near = np.array(round_fraction(value, 32, "rz"), np.float32).view(np.uint32)
    low = int(near) >> 16
    high = low + 1
    distance_low = abs(value - Fraction(bfloat_value(low)))
    if math.isinf(bfloat_value(high)):
        return low if distance_low < Fraction(2) ** 119 else high
    distance_high = abs(Fraction(bfloat_value(high)) - value)
    if distance_low == distance_high:
        return low if low % 2 == 0 else high
    return low if distance_low < distance_high else high


def test_bfloat_arithmetic() -> None:
    rng = np.random.default_rng(0)
    a, b, c = ((rng.standard_normal(200) * 4).astype(np.float32).view(np.uint32) >> 16 for _ in range(3))
    a, b, c = (v.astype(np.uint16) for v in (a, b, c))
    fractions = [[Fraction(bfloat_value(v)) for v in row] for row in zip(a, b, c)]
    got = apply("fma.rn.bf16 {d}, {a}, {b}, {c};", a, b, c, result=16)
    assert got.tolist() == [round_bfloat(x * y + z) for x, y, z in fractions]
    got = apply("add.bf16 {d}, {a}, {b};", a, b, result=16)
    assert got.tolist() == [round_bfloat(x + y) for x, y, _ in fractions]
    got = apply("mul.bf16x2 {d}, {a}, {b};", a.view(np.uint32), b.view(np.uint32))
    assert got.view(np.uint16).tolist() == [round_bfloat(x * y) for x, y, _ in fractions]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_special_values_give_canonical_nan_and_infinities(bits: int) -> None:
    dtype = {16: np.float16, 32: np.float32, 64: np.float64}[bits]
    inf, nan = np.inf, np.nan
    a = np.array([inf, inf, nan, 0.0, 1.0, -inf], dtype)
    b = np.array([-inf, inf, 1.0, inf, nan, 2.0], dtype)
    want = [float_bits(v, bits) for v in (nan, inf, nan, inf, nan, -inf)]
    assert apply(f"add.f{bits} {{d}}, {{a}}, {{b}};", a, b, result=bits).tolist() == want
    want = [float_bits(v, bits) for v in (-inf, inf, nan, nan, nan, -inf)]
    assert apply(f"mul.f{bits} {{d}}, {{a}}, {{b}};", a, b, result=bits).tolist() == want


def test_minimum_and_maximum_order_zeros_and_skip_nan() -> None:
    a = np.array([0.0, -0.0, np.nan, 1.0, np.nan, -2.0], np.float32)
    b = np.array([-0.0, 0.0, 1.0, np.nan, np.nan, 3.0], np.float32)
    nan = np.nan
    for bits in (16, 32):
        x, y = a.astype(f"f{bits // 8}"), b.astype(f"f{bits // 8}")
        low = [float_bits(v, bits) for v in (-0.0, -0.0, 1.0, 1.0, nan, -2.0)]
        high = [float_bits(v, bits) for v in (0.0, 0.0, 1.0, 1.0, nan, 3.0)]
        assert apply(f"min.f{bits} {{d}}, {{a}}, {{b}};", x, y, result=bits).tolist() == low
        assert apply(f"max.f{bits} {{d}}, {{a}}, {{b}};", x, y, result=bits).tolist() == high
        strict = [float_bits(v, bits) for v in (0.0, 0.0, nan, nan, nan, 3.0)]
        assert apply(f"max.NaN.f{bits} {{d}}, {{a}}, {{b}};", x, y, result=bits).tolist() == strict
    got = apply("max.xorsign.abs.f32 {d}, {a}, {b};", np.float32([-2, 3]), np.float32([1, -4]))
    assert got.view(np.float32).tolist() == [-2.0, -4.0]


def test_flushing_and_saturation() -> None:
    tiny = np.float32(1e-40)
    a, b = np.array([tiny, 1.5, -3.0, np.nan], np.float32), np.array([tiny, 2.0, 1.0, 1.0], np.float32)
    flushed = apply("add.ftz.f32 {d}, {a}, {b};", a, b).view(np.float32)
    assert flushed[0] == 0
    assert flushed[1] == 3.5
    assert apply("add.f32 {d}, {a}, {b};", a, b).view(np.float32)[0] == tiny + tiny
    assert apply("add.sat.f32 {d}, {a}, {b};", a, b).view(np.float32).tolist() == [
        float(tiny + tiny),
        1.0,
        0.0,
        0.0,
    ]
    assert apply(
        "fma.rn.relu.f16 {d}, {a}, {b}, {c};",
        np.float16([1, -1]),
        np.float16([2, 2]),
        np.float16([0, 0]),
        result=16,
    ).view(np.float16).tolist() == [2.0, 0.0]


def test_signs() -> None:
    a = floats(32)
    raw = a.view(np.uint32)
    assert apply("abs.f32 {d}, {a};", a).tolist() == (raw & 0x7FFFFFFF).tolist()
    assert apply("neg.f32 {d}, {a};", a).tolist() == (raw ^ 0x80000000).tolist()
    assert apply("neg.f16x2 {d}, {a};", raw).tolist() == (raw ^ 0x80008000).tolist()
    b = floats(32, seed=5)
    want = (raw & 0x80000000) | (b.view(np.uint32) & 0x7FFFFFFF)
    assert apply("copysign.f32 {d}, {a}, {b};", a, b).tolist() == want.tolist()


# (function, largest relative error that the ISA states, or absolute where it says so)
APPROXIMATIONS: dict[str, tuple[Any, float, float]] = {
    "rcp.approx": (lambda x: 1 / x, 2.0**-22, 0),
    "rsqrt.approx": (lambda x: 1 / np.sqrt(x), 2.0**-22, 0),
    "sqrt.approx": (np.sqrt, 2.0**-22, 0),
    "ex2.approx": (np.exp2, 2.0**-22, 0),
    "lg2.approx": (np.log2, 2.0**-22, 2.0**-22),
    "sin.approx": (np.sin, 0, 2.0**-20),
    "cos.approx": (np.cos, 0, 2.0**-20),
    "tanh.approx": (np.tanh, 2.0**-10.987, 0),
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_are_within_the_stated_error(name: str) -> None:
    function, relative, absolute = APPROXIMATIONS[name]
    x = np.random.default_rng(0).uniform(0.01, 3.0, 300).astype(np.float32)
    got = apply(f"{name}.f32 {{d}}, {{a}};", x).view(np.float32).astype(np.float64)
    want = function(x.astype(np.float64))
    assert (np.abs(got - want) <= relative * np.abs(want) + absolute).all()
    assert not (got == 0).any()


def test_approximations_of_special_values() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    nan = np.nan
    for name, want in {
        "rcp.approx": (np.inf, -np.inf, 0.0, -0.0, nan),
        "rsqrt.approx": (np.inf, -np.inf, 0.0, nan, nan),
        "ex2.approx": (1.0, 1.0, np.inf, 0.0, nan),
        "lg2.approx": (-np.inf, -np.inf, np.inf, nan, nan),
        "sin.approx": (0.0, -0.0, nan, nan, nan),
        "tanh.approx": (0.0, -0.0, 1.0, -1.0, nan),
    }.items():
        assert apply(f"{name}.f32 {{d}}, {{a}};", x).tolist() == [float_bits(v, 32) for v in want]


def test_division_forms() -> None:
    a, b = floats(32, seed=1, special=False), finite(32, 2)
    b = np.clip(np.abs(b), 2.0**-60, 2.0**60).astype(np.float32)
    a = np.clip(a, -(2.0**60), 2.0**60).astype(np.float32)
    want = a.astype(np.float64) / b
    for form in ("approx", "full"):
        got = apply(f"div.{form}.f32 {{d}}, {{a}}, {{b}};", a, b).view(np.float32)
        assert (np.abs(got - want) <= 2 * np.spacing(np.abs(want).astype(np.float32))).all()
    huge = np.array([2.0**127], np.float32)
    assert apply("div.approx.f32 {d}, {a}, {b};", np.float32([3.0]), huge).view(np.float32).tolist() == [0.0]


def test_classification() -> None:
    x = np.array([0.0, 1.0, 1e-40, np.inf, np.nan], np.float32)
    want = {
        "finite": [1, 1, 1, 0, 0],
        "infinite": [0, 0, 0, 1, 0],
        "number": [1, 1, 1, 1, 0],
        "notanumber": [0, 0, 0, 0, 1],
        "normal": [0, 1, 0, 0, 0],
        "subnormal": [0, 0, 1, 0, 0],
    }
    for kind, flags in want.items():
        assert apply(f"testp.{kind}.f32 {{d}}, {{a}};", x, result="pred").tolist() == flags


def test_fma_where_rounding_twice_would_go_wrong() -> None:
    # The product lies exactly between two binary32 numbers; the addend is too small for a binary64 sum to show.
    a = np.float32([*[1 + 2.0**-12] * 4, 3.0])
    c = np.float32([2.0**-100, -(2.0**-100), 0.0, 2.0**-120, 1.0])
    got = apply("fma.rn.f32 {d}, {a}, {b}, {c};", a, a, c).view(np.float32)
    low, high = 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23
    assert got.tolist() == [high, low, low, high, 10.0]


def test_fma_with_subnormal_results_rounds_once() -> None:
    a = np.float32([1.5 * 2.0**-75, 1.5 * 2.0**-75])
    b = np.float32([2.0**-74, 2.0**-74])
    c = np.float32([0.0, 2.0**-149])
    got = apply("fma.rn.f32 {d}, {a}, {b}, {c};", a, b, c)
    assert got.tolist() == exact(lambda x, y, z: x * y + z, 32, "rn", a, b, c)
