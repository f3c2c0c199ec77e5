"""Arithmetic of dtypes in NumPy agrees with Python's integers, with ml_dtypes and with exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus import dtypes
from tilus.dtypes import DType
from tilus.ir import numerics
from tilus.layout import RegisterLayout, local, spatial

INTEGERS = [
    dtypes.int1, dtypes.uint1, dtypes.int3, dtypes.uint4, dtypes.int7, dtypes.int8, dtypes.uint8, dtypes.int16,
    dtypes.uint16, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64,
]  # fmt: skip


def held(value: int | float, dtype: DType) -> np.ndarray:
    return numerics.from_values(np.asarray(value), dtype)


def shown(array: np.ndarray, dtype: DType) -> int | float | bool:
    return numerics.to_values(np.asarray(array), dtype).item()


def wrapped(value: int, dtype: DType) -> int:
    """Python's own integers, brought into the range of the dtype."""
    value %= 1 << dtype.bits
    return value - (1 << dtype.bits) if dtype.is_signed and value >= 1 << (dtype.bits - 1) else value


INTEGER_OPERATIONS = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul": lambda a, b, n: a * b,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "and": lambda a, b, n: a & b,
    "or": lambda a, b, n: a | b,
    "xor": lambda a, b, n: a ^ b,
    "floordiv": lambda a, b, n: math.floor(Fraction(a, b)) if b else 0,
    "mod": lambda a, b, n: a - b * math.floor(Fraction(a, b)) if b else 0,
    "mulhi": lambda a, b, n: math.floor(Fraction(a * b, 1 << n)),
    "shl": lambda a, b, n: a * 2**b if 0 <= b < n else 0,
    "shr": lambda a, b, n: math.floor(Fraction(a, 2**b)) if 0 <= b < n else -(a < 0),
}


@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(sorted(INTEGER_OPERATIONS)))
def test_integer_arithmetic_is_exact_and_wraps(data: st.DataObject, dtype: DType, kind: str):
    values = st.integers(int(dtype.min), int(dtype.max))
    small = st.integers(max(int(dtype.min), -2), min(int(dtype.max), dtype.bits + 2))
    a, b = data.draw(values), data.draw(values | small)
    found = shown(numerics.binary(kind, held(a, dtype), held(b, dtype), dtype), dtype)
    assert found == wrapped(INTEGER_OPERATIONS[kind](a, b, dtype.bits), dtype)


@given(st.data(), st.sampled_from(INTEGERS))
def test_bit_counts_agree_with_the_binary_text(data: st.DataObject, dtype: DType):
    a = data.draw(st.integers(int(dtype.min), int(dtype.max)))
    text = f"{a % (1 << dtype.bits):0{dtype.bits}b}"
    expected = {
        "popcount": text.count("1"),
        "clz": len(text) - len(text.lstrip("0")),
        "ctz": len(text) - len(text.rstrip("0")),
        "brev": wrapped(int(text[::-1], 2), dtype),
        "not": wrapped(int(text.translate({48: "1", 49: "0"}), 2), dtype),
        "neg": wrapped(-a, dtype),
        "abs": wrapped(abs(a), dtype),
    }
    for kind, value in expected.items():
        made = numerics.unary(kind, held(a, dtype), dtype)
        assert shown(made, dtypes.int32 if kind in ("popcount", "clz", "ctz") else dtype) == value


FLOATS = {
    dtypes.float32: np.float32,
    dtypes.float16: np.float16,
    dtypes.bfloat16: ml_dtypes.bfloat16,
}
finite = st.floats(-1e4, 1e4, width=32)


def rounded(exact: Fraction, type: type) -> float:
    """The element of a small format that is nearest to a fraction, ties to even."""
    near = np.array([float(exact)]).astype(type)
    around = [near, np.nextafter(near, type(np.inf)), np.nextafter(near, type(-np.inf))]
    values = [
        (abs(Fraction(float(v[0])) - exact), int(v.view(f"u{v.itemsize}")[0]) & 1, float(v[0]))
        for v in around
    ]
    return min(values)[2]


@given(
    finite, finite, st.sampled_from(sorted(FLOATS, key=str)), st.sampled_from(["add", "sub", "mul", "div"])
)
def test_float_arithmetic_is_rounded_once(x: float, y: float, dtype: DType, kind: str):
    a, b = (float(np.array(v).astype(FLOATS[dtype])) for v in (x, y))
    if kind == "div" and b == 0:
        return
    exact = {
        "add": lambda p, q: p + q,
        "sub": lambda p, q: p - q,
        "mul": lambda p, q: p * q,
        "div": lambda p, q: p / q,
    }
    expected = exact[kind](Fraction(a), Fraction(b))
    if abs(expected) > 3e4:
        return
    found = shown(numerics.binary(kind, held(a, dtype), held(b, dtype), dtype), dtype)
    assert found == rounded(expected, FLOATS[dtype])


@pytest.mark.parametrize("dtype", [dtypes.float64, dtypes.float32, dtypes.float16, dtypes.bfloat16])
def test_functions_agree_with_math(dtype: DType):
    x = shown(held(0.7, dtype), dtype)
    expected = {
        "exp": math.exp(x), "exp2": 2.0**x, "log": math.log(x), "log2": math.log2(x), "sin": math.sin(x),
        "cos": math.cos(x), "tanh": math.tanh(x), "sqrt": math.sqrt(x), "rsqrt": 1 / math.sqrt(x), "rcp": 1 / x,
        "erf": math.erf(x), "floor": 0.0, "ceil": 1.0, "round": 1.0, "trunc": 0.0, "neg": -x, "abs": x,
        "fast_exp": math.exp(x), "fast_exp2": 2.0**x, "fast_rcp": 1 / x,
    }  # fmt: skip
    for kind, value in expected.items():
        found = shown(numerics.unary(kind, held(x, dtype), dtype), dtype)
        assert found == pytest.approx(value, rel=2.0 ** (1 - dtype.mantissa_bits), abs=0)


def test_rounding_functions_go_to_even_and_keep_the_sign():
    x = np.array([-1.5, -0.5, 0.5, 2.5], np.float32)
    assert numerics.unary("round", x, dtypes.float32).tolist() == [-2.0, -0.0, 0.0, 2.0]
    assert numerics.unary("trunc", x, dtypes.float32).tolist() == [-1.0, -0.0, 0.0, 2.0]
    assert np.signbit(numerics.unary("ceil", x, dtypes.float32)).tolist() == [True, True, False, False]


def test_nan_spreads_through_extremes_and_compares_with_nothing():
    x, y = np.array([np.nan, 1.0], np.float32), np.array([2.0, np.nan], np.float32)
    assert np.isnan(numerics.binary("max", x, y, dtypes.float32)).all()
    assert np.isnan(numerics.binary("min", x, y, dtypes.float32)).all()
    assert not numerics.compare("eq", x, x, dtypes.float32)[0]
    assert numerics.compare("ne", x, x, dtypes.float32)[0]
    assert numerics.unary("isnan", x, dtypes.float32).tolist() == [True, False]
    assert numerics.unary("isinf", np.array([np.inf], np.float32), dtypes.float32).tolist() == [True]


@pytest.mark.parametrize(("kind", "negative"), [("min", True), ("max", False)])
def test_minus_zero_is_less_than_zero(kind: str, negative: bool):
    x, y = np.array([0.0, -0.0, -1.0], np.float32), np.array([-0.0, 0.0, -1.0], np.float32)
    assert np.signbit(numerics.binary(kind, x, y, dtypes.float32)).tolist() == [negative, negative, True]
    for zeros in (x[:2], y[:2]):
        assert np.signbit(numerics.reduce(kind, zeros, 0, dtypes.float32)).tolist() == [negative]


def test_mod_of_floats_has_the_sign_of_the_divisor():
    x, y = np.array([-7.5, 7.5], np.float32), np.array([2.0, -2.0], np.float32)
    assert numerics.binary("mod", x, y, dtypes.float32).tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("base", "exponent", "expected"),
    [(3, 4, 81), (-2, 31, -(2**31)), (2, 32, 0), (-1, -3, -1), (7, -1, 0), (5, 0, 1)],
)
def test_powers_of_integers_wrap(base: int, exponent: int, expected: int):
    made = numerics.binary("pow", held(base, dtypes.int32), held(exponent, dtypes.int32), dtypes.int32)
    assert shown(made, dtypes.int32) == expected


def test_casts_follow_the_declaration():
    def cast(value: int | float, source: DType, target: DType) -> int | float | bool:
        return shown(numerics.cast(held(value, source), source, target), target)

    assert cast(300, dtypes.int32, dtypes.uint8) == 44
    assert cast(-1, dtypes.int8, dtypes.uint4) == 15
    assert cast(300.7, dtypes.float32, dtypes.uint8) == 255
    assert cast(-1.9, dtypes.float32, dtypes.int32) == -1
    assert cast(math.nan, dtypes.float32, dtypes.int32) == 0
    assert cast(1e6, dtypes.float32, dtypes.float8_e4m3) == 448
    assert cast(1e6, dtypes.float32, dtypes.float16) == math.inf
    assert cast(2.5, dtypes.float32, dtypes.boolean) is True
    assert cast(math.nan, dtypes.float32, dtypes.boolean) is True
    assert cast(True, dtypes.boolean, dtypes.float16) == 1.0
    assert cast(True, dtypes.boolean, dtypes.int8) == 1
    assert cast(2**24 + 1, dtypes.int32, dtypes.float32) == 2.0**24
    assert cast(2**63 - 1, dtypes.int64, dtypes.float32) == 2.0**63
    assert cast(0.3, dtypes.float32, dtypes.ternary) == 0.0
    assert cast(0.6, dtypes.float32, dtypes.ternary) == 1.0
    assert cast(0.45, dtypes.float32, dtypes.nf4) == pytest.approx(0.4407098)
    # One rounding, from float64: the tie with float32's rounding in between goes the other way.
    assert cast(1 + 2**-11 + 2**-30, dtypes.float64, dtypes.float16) == 1 + 2**-10


def test_a_code_that_has_no_value_of_its_own_survives_moving():
    # Code 3 of ternary reads as zero, like code 1.
    codes = np.array([3, 1], np.uint8)
    assert numerics.cast(codes, dtypes.ternary, dtypes.ternary).tolist() == [3, 1]
    assert numerics.to_values(codes, dtypes.ternary).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sum", 10), ("max", 4), ("min", 1), ("xor", 1 ^ 3 ^ 2 ^ 4), ("argmax", 3), ("argmin", 0)],
)
def test_reductions_keep_their_axis(kind: str, expected: int):
    x = np.array([[1, 3, 2, 4]], np.int32)
    made = numerics.reduce(kind, x, 1, dtypes.int32)
    assert (made.tolist(), made.dtype) == ([[expected]], np.int32)


def test_sums_wrap_as_integers_and_round_once_as_floats():
    assert numerics.reduce("sum", np.full((1, 4), 100, np.int8), 1, dtypes.int8).tolist() == [[-112]]
    # 2048 + 1 rounds back to 2048 in float16, a thousand times.
    x = np.array([2048] + [1] * 1000, np.float16)
    assert numerics.reduce("sum", x, 0, dtypes.float16).tolist() == [3048.0]


def test_booleans_reduce():
    x = np.array([[True, False], [True, True]])
    assert numerics.reduce("any", x, 1, dtypes.boolean).tolist() == [[True], [True]]
    assert numerics.reduce("all", x, 1, dtypes.boolean).tolist() == [[False], [True]]


@pytest.mark.parametrize(
    ("kind", "inclusive", "exclusive"),
    [
        ("sum", [3, 1, 6], [0, 3, 1]),
        ("prod", [3, -6, -30], [1, 3, -6]),
        ("max", [3, 3, 5], [-128, 3, 3]),
        ("min", [3, -2, -2], [127, 3, -2]),
        ("and", [3, 2, 0], [-1, 3, 2]),
        ("or", [3, -1, -1], [0, 3, -1]),
        ("xor", [3, -3, -8], [0, 3, -3]),
    ],
)
def test_scans(kind: str, inclusive: list[int], exclusive: list[int]):
    x = np.array([3, -2, 5], np.int8)
    assert numerics.scan(kind, x, 0, False, dtypes.int8).tolist() == inclusive
    assert numerics.scan(kind, x, 0, True, dtypes.int8).tolist() == exclusive


def test_scans_of_floats_start_at_the_neutral_element():
    x = np.array([[1.0, 2.0]], np.float16)
    assert numerics.scan("max", x, 1, True, dtypes.float16).tolist() == [[-math.inf, 1.0]]
    assert numerics.scan("min", x, 1, True, dtypes.float16).tolist() == [[math.inf, 1.0]]


def test_products_of_matrices_are_exact_before_the_last_rounding():
    a, b = np.array([[4096.0, 1.0]], np.float16), np.array([[4096.0], [0.5]], np.float16)
    c = np.array([[0.5]], np.float32)
    kinds = dtypes.float16, dtypes.float16, dtypes.float32
    # 2**24 + 0.5 + 0.5: either half alone would be lost.
    assert numerics.dot(a, b, c, kinds).tolist() == [[2.0**24]]
    assert numerics.dot(a, b, np.array([[1.5]], np.float32), kinds).tolist() == [[2.0**24 + 2]]


def test_integer_products_wrap_in_the_accumulator():
    a, b = np.full((1, 4), -128, np.int8), np.full((4, 1), -128, np.int8)
    c = np.array([[2**31 - 1]], np.int32)
    kinds = dtypes.int8, dtypes.int8, dtypes.int32
    assert numerics.dot(a, b, c, kinds).tolist() == [[2**31 - 1 + 65536 - 2**32]]


def philox_reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 on Python integers."""
    for _ in range(10):
        low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        mask = 0xFFFFFFFF
        counter = [high >> 32 ^ counter[1] ^ key[0], high & mask, low >> 32 ^ counter[3] ^ key[1], low & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


def test_the_reference_gives_the_published_numbers():
    # Random123's kat_vectors for philox4x32 with 10 rounds.
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    assert philox_reference([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox_reference([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox_reference([*pi[:4]], [*pi[4:]]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_random_numbers_are_those_of_the_reference(counter: int, seed: int):
    found = numerics.philox(seed, np.array([counter], np.uint64))
    words = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    assert [int(w[0]) for w in found] == philox_reference(words, [seed & 0xFFFFFFFF, seed >> 32])


def test_view_of_bytes_as_three_bits_reads_each_thread_from_its_low_end():
    # 8 threads hold 3 bytes each, which are 8 elements of 3 bits.
    before, after = spatial(8).local(3), spatial(8).local(8)
    data = np.arange(24, dtype=np.uint8) * 37
    made = numerics.reinterpret(data, dtypes.uint8, before, dtypes.uint3, after)
    for thread in range(8):
        word = int.from_bytes(bytes(data[3 * thread : 3 * thread + 3]), "little")
        assert made[8 * thread : 8 * thread + 8].tolist() == [word >> 3 * i & 7 for i in range(8)]
    back = numerics.reinterpret(made, dtypes.uint3, after, dtypes.uint8, before)
    assert np.array_equal(back, data)


@given(st.permutations(range(3)), st.permutations(range(2)))
def test_view_follows_the_layouts_digit_by_digit(threads: list[int], elements: list[int]):
    outer = [spatial(2, 1), spatial(1, 4), spatial(4, 1)]
    inner = [local(2, 1), local(1, 2)]
    layout = RegisterLayout((1, 1), (), ())
    for i in threads:
        layout = layout * outer[i]
    for i in elements:
        layout = layout * inner[i]
    data = np.random.default_rng(0).integers(0, 2**16, layout.shape).astype(np.uint16)
    plain = spatial(32).local(8)
    made = numerics.reinterpret(data, dtypes.uint16, layout, dtypes.uint8, plain)
    for thread in range(32):
        held_here = [data[layout.index(thread, i)] for i in range(4)]
        assert made[8 * thread : 8 * thread + 8].tobytes() == np.array(held_here, "<u2").tobytes()


def test_view_to_copies_that_differ_gives_nothing():
    data = np.arange(8, dtype=np.uint8)
    copies = local(1).with_replication(1) * spatial(4).with_replication(2)
    assert numerics.reinterpret(data, dtypes.uint8, spatial(8), dtypes.int8, copies) is None
    assert numerics.reinterpret(data % 4, dtypes.uint8, spatial(8), dtypes.int8, copies).tolist() == [
        0,
        1,
        2,
        3,
    ]
