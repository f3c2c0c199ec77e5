"""``cvt`` among all types, against rationals and against ml_dtypes for the narrow floats."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.simulator.support import apply, float_bits, floats, integers, round_fraction, signed, unsigned

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")


def value(type: str, raw: int) -> int:
    return signed(int(raw), int(type[1:])) if type[0] == "s" else int(raw)


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers(source: str, target: str) -> None:
    bits, width = int(source[1:]), int(target[1:])
    a = integers(bits)
    got = apply(f"cvt.{target}.{source} {{d}}, {{a}};", a, result=width)
    assert got.tolist() == [unsigned(value(source, x), width) for x in a]
    got = apply(f"cvt.sat.{target}.{source} {{d}}, {{a}};", a, result=width)
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if target[0] == "s" else (0, (1 << width) - 1)
    assert got.tolist() == [unsigned(max(low, min(high, value(source, x))), width) for x in a]


def test_bytes_are_cut_and_extended_in_wider_registers() -> None:
    a = integers(32)
    assert apply("cvt.u8.u32 {d}, {a};", a).tolist() == [int(x) & 255 for x in a]
    assert apply("cvt.s32.s8 {d}, {a};", a).tolist() == [unsigned(signed(int(x), 8), 32) for x in a]
    assert apply("cvt.u32.u8 {d}, {a};", a).tolist() == [int(x) & 255 for x in a]
    assert apply("cvt.s8.s32 {d}, {a};", a).tolist() == [unsigned(signed(int(x), 8), 32) for x in a]


def rounded(mode: str, x: float) -> int:
    exact = Fraction(x)
    if mode == "rzi":
        return math.trunc(exact)
    if mode == "rmi":
        return math.floor(exact)
    return math.ceil(exact) if mode == "rpi" else round(exact)


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers_saturate(mode: str, bits: int, target: str) -> None:
    a = floats(bits)
    width = int(target[1:])
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if target[0] == "s" else (0, (1 << width) - 1)
    got = apply(f"cvt.{mode}.{target}.f{bits} {{d}}, {{a}};", a, result=width)
    for x, result in zip(a.tolist(), got):
        if math.isnan(x):
            want = 1 << (width - 1) if bits == 64 or width == 64 else 0
        elif math.isinf(x):
            want = high if x > 0 else low
        else:
            want = max(low, min(high, rounded(mode, x)))
        assert int(result) == unsigned(want, width), x


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_to_floats(source: str, bits: int, mode: str) -> None:
    a = integers(int(source[1:]))
    got = apply(f"cvt.{mode}.f{bits}.{source} {{d}}, {{a}};", a, result=bits)
    assert got.tolist() == [
        float_bits(round_fraction(Fraction(value(source, x)), bits, mode), bits) for x in a
    ]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(("source", "target"), [(64, 32), (64, 16), (32, 16)])
def test_narrowing(source: int, target: int, mode: str) -> None:
    a = floats(source)
    got = apply(f"cvt.{mode}.f{target}.f{source} {{d}}, {{a}};", a, result=target)
    for x, result in zip(a.tolist(), got):
        want = x if not math.isfinite(x) or x == 0 else round_fraction(Fraction(x), target, mode)
        if want == 0 and math.copysign(1, x) < 0:
            want = -0.0
        assert int(result) == float_bits(want, target), x


@pytest.mark.parametrize(("source", "target"), [(16, 32), (16, 64), (32, 64)])
def test_widening_is_exact(source: int, target: int) -> None:
    a = floats(source)
    got = apply(f"cvt.f{target}.f{source} {{d}}, {{a}};", a, result=target)
    assert got.tolist() == [float_bits(float(x), target) for x in a]


def test_rounding_to_integral_values() -> None:
    a = floats(32, special=False)
    for mode in ("rni", "rzi", "rmi", "rpi"):
        got = apply(f"cvt.{mode}.f32.f32 {{d}}, {{a}};", a).view(np.float32)
        assert got.tolist() == [float(rounded(mode, float(x))) for x in a]


def test_bfloat() -> None:
    a = floats(32)
    code = apply("cvt.rn.bf16.f32 {d}, {a};", a, result=16)
    want = a.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert code.tolist() == np.where(np.isnan(a), 0x7FFF, want).tolist()
    back = apply("cvt.f32.bf16 {d}, {a};", code)
    assert back.tolist() == np.where(code == 0x7FFF, 0x7FFFFFFF, code.astype(np.uint32) << 16).tolist()
    got = apply("cvt.rz.bf16.f32 {d}, {a};", np.abs(floats(32, special=False)), result=16)
    assert got.tolist() == (np.abs(floats(32, special=False)).view(np.uint32) >> 16).tolist()


def test_packed_results_put_the_first_operand_high() -> None:
    a, b = floats(32, seed=1, special=False), floats(32, seed=2, special=False)
    with np.errstate(over="ignore"):
        high, low = a.astype(np.float16).view(np.uint16), b.astype(np.float16).view(np.uint16)
    got = apply("cvt.rn.f16x2.f32 {d}, {a}, {b};", a, b)
    assert got.tolist() == (high.astype(np.uint32) << 16 | low).tolist()
    high, low = a.astype(ml_dtypes.bfloat16).view(np.uint16), b.astype(ml_dtypes.bfloat16).view(np.uint16)
    got = apply("cvt.rn.bf16x2.f32 {d}, {a}, {b};", a, b)
    assert got.tolist() == (high.astype(np.uint32) << 16 | low).tolist()
    got = apply("cvt.rn.relu.f16x2.f32 {d}, {a}, {b};", np.float32([-1.0]), np.float32([2.0]))
    assert got.tolist() == [0x4000]


def test_tf32_keeps_ten_bits() -> None:
    a = floats(32, special=False)
    got = apply("cvt.rna.tf32.f32 {d}, {a};", a)
    assert not (got & 0x1FFF).any()
    for x, result in zip(a.tolist(), got.view(np.float32).tolist()):
        if math.isfinite(result) and abs(x) > 2.0**-100:
            unit = Fraction(2) ** (math.frexp(x)[1] - 11)
            assert abs(Fraction(x) - Fraction(result)) <= unit / 2


NARROW: dict[str, tuple[Any, float]] = {
    "e4m3x2": (ml_dtypes.float8_e4m3fn, 448.0),
    "e5m2x2": (ml_dtypes.float8_e5m2, 57344.0),
    "e2m3x2": (ml_dtypes.float6_e2m3fn, 7.5),
    "e3m2x2": (ml_dtypes.float6_e3m2fn, 28.0),
}


@pytest.mark.parametrize("name", NARROW)
def test_narrow_pairs_from_single(name: str) -> None:
    dtype, largest = NARROW[name]
    rng = np.random.default_rng(0)
    a, b = (
        np.clip(rng.standard_normal(300) * s, -largest, largest).astype(np.float32)
        for s in (largest / 8, 0.1)
    )
    got = apply(f"cvt.rn.satfinite.{name}.f32 {{d}}, {{a}}, {{b}};", a, b, result=16)
    high, low = a.astype(dtype).view(np.uint8), b.astype(dtype).view(np.uint8)
    assert got.tolist() == (high.astype(np.uint16) << 8 | low).tolist()
    big = np.float32([1e9, -1e9, np.inf])
    got = (
        apply(f"cvt.rn.satfinite.{name}.f32 {{d}}, {{a}}, {{a}};", big, result=16).view(np.uint8).view(dtype)
    )
    assert got.astype(np.float32)[::2].tolist() == [largest, -largest, largest]
    codes = rng.integers(0, 256 if "8" in dtype.__name__ else 64, (200, 2)).astype(np.uint8)
    halves = (
        apply(f"cvt.rn.f16x2.{name} {{d}}, {{a}};", codes.view(np.uint16)[:, 0])
        .view(np.float16)
        .reshape(-1, 2)
    )
    np.testing.assert_array_equal(halves.astype(np.float32), codes.view(dtype).astype(np.float32))


def test_four_bit_pairs_fill_a_byte() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-6, 6, 200).astype(np.float32) for _ in range(2))
    text = ".reg .b8 %n; cvt.rn.satfinite.e2m1x2.f32 %n, {a}, {b}; cvt.u32.u8 {d}, %n;"
    high, low = (v.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) for v in (a, b))
    assert apply(text, a, b).tolist() == (high.astype(np.uint32) << 4 | low).tolist()


def test_scale_codes_are_powers_of_two() -> None:
    a = np.float32([1.0, 1.5, 3.0, 0.3])
    got = apply("cvt.rp.satfinite.ue8m0x2.f32 {d}, {a}, {a};", a, result=16) & 255
    assert got.tolist() == [127, 128, 129, 126]
    got = apply("cvt.rz.satfinite.ue8m0x2.f32 {d}, {a}, {a};", a, result=16) & 255
    assert got.tolist() == [127, 127, 128, 125]
    pairs = apply("cvt.rn.bf16x2.ue8m0x2 {d}, {a};", np.array([0x7F80], np.uint16))
    assert pairs.view(ml_dtypes.bfloat16).astype(float).tolist() == [2.0, 1.0]


def test_pack_saturates() -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)

    def clamp(x: int) -> int:
        return max(-128, min(127, signed(int(x), 32))) & 255

    c = integers(32, seed=3)
    got = apply("cvt.pack.sat.s8.s32.b32 {d}, {a}, {b}, {c};", a, b, c)
    assert got.tolist() == [
        (int(z) << 16 & 0xFFFFFFFF) | clamp(x) << 8 | clamp(y) for x, y, z in zip(a, b, c)
    ]


def test_saturating_to_the_unit_interval() -> None:
    a = np.float32([-1.0, 0.25, 7.0, np.nan])
    assert apply("cvt.sat.f32.f32 {d}, {a};", a).view(np.float32).tolist() == [0.0, 0.25, 1.0, 0.0]
