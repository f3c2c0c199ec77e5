"""Every code and every rounding boundary of every float type, against exact fractions, ml_dtypes and NumPy."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dtypes import reference
from tilus import dtypes
from tilus.dtypes import DType, decode, encode

FLOATS = [dtype for dtype in dtypes.SCALARS if dtype.is_float]
SMALL = [dtype for dtype in FLOATS if dtype.bits <= 8]
ENUMERABLE = [dtype for dtype in FLOATS if dtype.bits <= 16]

# The types that ml_dtypes has with the same codes.
PEERS = {
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float8_e8m0": ml_dtypes.float8_e8m0fnu,
    "float6_e2m3": ml_dtypes.float6_e2m3fn,
    "float6_e3m2": ml_dtypes.float6_e3m2fn,
    "float4_e2m1": ml_dtypes.float4_e2m1fn,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def all_codes(dtype: DType) -> np.ndarray:
    return np.arange(1 << dtype.bits).astype(dtype.code_numpy)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Check for equal values, where zeros must agree in sign and NaN equals NaN."""
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


def boundaries(dtype: DType) -> np.ndarray:
    """Values, midpoints and the float64 neighbours of both, in both signs, with what lies outside the range."""
    finite = np.array([float(value) for value in reference.magnitudes(dtype.name)])
    points = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2])
    outside = np.array([5e-324, 1e-300, 1e300, np.finfo(np.float64).max, np.inf])
    points = np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf), outside])
    points = points[points >= 0]
    return np.concatenate([points, -points, [0.0, -0.0, np.nan, -np.nan]])


@pytest.mark.parametrize("dtype", ENUMERABLE, ids=str)
def test_every_code_decodes_to_the_value_of_its_fields(dtype: DType) -> None:
    expected = np.array([reference.decode_float(dtype.name, code) for code in range(1 << dtype.bits)])
    same(decode(all_codes(dtype), dtype), expected)


@pytest.mark.parametrize("name", PEERS)
def test_every_code_decodes_as_in_ml_dtypes(name: str) -> None:
    codes = all_codes(dtypes.dtype(name))
    with np.errstate(invalid="ignore"):
        expected = codes.view(PEERS[name]).astype(np.float64)
    same(decode(codes, name), expected)


@pytest.mark.parametrize("dtype", [*ENUMERABLE, dtypes.float8_e8m0], ids=str)
def test_every_code_survives_decoding_and_encoding(dtype: DType) -> None:
    values = decode(all_codes(dtype), dtype)
    expected = np.where(np.isnan(values), dtype.nan_code if dtype.has_nan else 0, all_codes(dtype))
    np.testing.assert_array_equal(encode(values, dtype, saturate=False if dtype.has_nan else None), expected)


@pytest.mark.parametrize("dtype", [*ENUMERABLE, dtypes.float8_e8m0], ids=str)
def test_float32_holds_every_value_of_a_narrow_type(dtype: DType) -> None:
    narrow = decode(all_codes(dtype), dtype, float32=True)
    assert narrow.dtype == np.float32
    same(narrow.astype(np.float64), decode(all_codes(dtype), dtype))


@pytest.mark.parametrize("saturate", [True, False], ids=["saturating", "overflowing"])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_boundaries_round_to_the_nearest_even_code(dtype: DType, saturate: bool) -> None:
    if not saturate and not dtype.has_nan:
        with pytest.raises(ValueError, match="always saturates"):
            encode([1.0], dtype, saturate=False)
        return
    values = boundaries(dtype)
    expected = [reference.encode_float(dtype.name, float(value), saturate) for value in values]
    codes = encode(values, dtype, saturate=saturate)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, expected)


def positive_neighbours(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """Return codes of positive values and of their successors: all of them, or some thousand of a wide type."""
    top = dtype.max_code >> dtype.unused_bits
    if top < 1 << 16:
        lower = np.arange(top)
    else:
        random = np.random.default_rng(7)
        edges = [0, 1, 2, top - 2, top - 1, (1 << dtype.mantissa_bits) - 1, 1 << dtype.mantissa_bits]
        powers = np.arange(1, 1 << dtype.exponent_bits, dtype=np.int64)[:-1] << dtype.mantissa_bits
        lower = np.unique(np.concatenate([edges, powers - 1, powers, random.integers(0, top, 5000)]))
    return lower << dtype.unused_bits, (lower + 1) << dtype.unused_bits


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("dtype", [dtype for dtype in FLOATS if dtype.name != "float64"], ids=str)
def test_rounding_turns_at_the_midpoint_of_two_values(dtype: DType, sign: int) -> None:
    lower, upper = positive_neighbours(dtype)
    middle = (decode(lower, dtype) + decode(upper, dtype)) / 2  # exact: at most 24 bits and one more
    sign_code = 0 if sign > 0 else dtype.sign_code
    even = np.where((lower >> dtype.unused_bits) % 2 == 0, lower, upper)
    for values, expected in (
        (middle, even),
        (np.nextafter(middle, 0.0), lower),
        (np.nextafter(middle, np.inf), upper),
    ):
        np.testing.assert_array_equal(encode(sign * values, dtype), expected | sign_code)


@pytest.mark.parametrize("name", PEERS)
def test_float32_values_encode_as_in_ml_dtypes(name: str) -> None:
    dtype = dtypes.dtype(name)
    random = np.random.default_rng(3)
    anywhere = random.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    nearby = (random.standard_normal(200_000) * dtype.smallest_normal * 4).astype(np.float32)
    values = np.concatenate([anywhere, nearby, np.float32([0.0, -0.0, np.inf, -np.inf])])
    values = values[~np.isnan(values)]  # ml_dtypes keeps NaN's sign, and makes of it -0 in a type without NaN
    if name == "float8_e8m0":  # ml_dtypes rounds up whatever lies between the two smallest powers of two
        values = values[(values <= 0) | (values >= 2.0**-126)]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(PEERS[name]).view(dtype.code_numpy)
    codes = encode(values, dtype, saturate=False if dtype.has_nan else None)
    if name == "float8_e8m0":
        assert np.all(codes[values <= 0] == 0xFF)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_only_narrow_types_saturate_by_default(dtype: DType) -> None:
    values = [np.inf, -np.inf, 1e300 if dtype.bits < 64 else np.inf]
    largest = [dtype.max, -dtype.max, dtype.max]
    np.testing.assert_array_equal(decode(encode(values, dtype, saturate=True), dtype), largest)
    expected = largest if dtype.bits <= 8 else [np.inf, -np.inf, np.inf]
    np.testing.assert_array_equal(decode(encode(values, dtype), dtype), expected)


def test_overflow_of_e4m3_is_nan_only_beyond_the_midpoint_to_the_next_value() -> None:
    values = [448.0, 464.0, np.nextafter(464.0, 500.0), -1000.0, np.inf]
    np.testing.assert_array_equal(encode(values, "e4m3", saturate=False), [0x7E, 0x7E, 0x7F, 0xFF, 0x7F])
    np.testing.assert_array_equal(encode(values, "e4m3"), [0x7E, 0x7E, 0x7E, 0xFE, 0x7E])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_becomes_one_positive_code(dtype: DType) -> None:
    expected = dtype.nan_code if dtype.has_nan else dtype.max_code
    np.testing.assert_array_equal(encode([np.nan, -np.nan], dtype), [expected, expected])
    value = decode([expected], dtype)[0]
    assert math.isnan(value) if dtype.has_nan else value == dtype.max


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_zero_keeps_its_sign(dtype: DType) -> None:
    np.testing.assert_array_equal(
        encode([0.0, -0.0, 5e-324, -5e-324][: 4 if dtype.bits < 64 else 2], dtype),
        [0, dtype.sign_code, 0, dtype.sign_code][: 4 if dtype.bits < 64 else 2],
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_stated_limits_are_the_values_of_their_codes(dtype: DType) -> None:
    step = 1 << dtype.unused_bits
    normal = 1 << (dtype.mantissa_bits + dtype.unused_bits)
    codes = [dtype.max_code, dtype.max_code | dtype.sign_code, step, normal]
    values = decode(np.array(codes, dtype.code_numpy), dtype)
    limits = [dtype.max, dtype.min, dtype.smallest_subnormal, dtype.smallest_normal]
    np.testing.assert_array_equal(values, limits)
    if dtype.has_inf:
        assert decode([dtype.inf_code], dtype)[0] == np.inf
    one = dtype.bias << (dtype.mantissa_bits + dtype.unused_bits)
    if dtype.exponent_bits > 1:
        np.testing.assert_array_equal(decode([one, one + step], dtype), [1.0, 1.0 + dtype.epsilon])


def test_wide_floats_are_numpys_own() -> None:
    random = np.random.default_rng(5)
    for name, codes in (
        ("float64", random.integers(0, 1 << 64, 10_000, dtype=np.uint64)),
        ("float32", random.integers(0, 1 << 32, 10_000, dtype=np.uint64).astype(np.uint32)),
    ):
        with np.errstate(invalid="ignore"):
            values = codes.view(name).astype(np.float64)
        same(decode(codes, name), values)
        numbers = ~np.isnan(values)
        np.testing.assert_array_equal(encode(values, name)[numbers], codes[numbers])


def test_tfloat32_reads_the_upper_19_bits() -> None:
    random = np.random.default_rng(6)
    codes = random.integers(0, 1 << 32, 10_000, dtype=np.uint64).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        cut = (codes & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    same(decode(codes, "tf32"), cut)
    assert not np.any(encode(cut, "tf32") & 0x1FFF)


@given(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(["float32", "bfloat16", "tfloat32", "float8_e7m0", "float7_e6m0"]),
)
def test_large_integers_are_rounded_once(value: int, name: str) -> None:
    array = np.array([value], np.int64 if value < 0 else np.uint64)
    dtype = dtypes.dtype(name)
    rounded = Fraction(float(decode(encode(array, dtype), dtype)[0]))
    # No neighbour is nearer, and of two equally near ones the even one is taken.
    code = int(encode(array, dtype)[0])
    step = 1 << dtype.unused_bits
    sign = dtype.sign_code if value < 0 else 0
    for other in (code - step, code + step):
        if not sign <= other <= sign | dtype.max_code:
            continue
        distance = abs(Fraction(float(decode([other], dtype)[0])) - value)
        assert abs(rounded - value) <= distance
        if abs(rounded - value) == distance:
            assert code // step % 2 == 0


def test_a_bit_far_below_float64s_decides_a_tie() -> None:
    tie = (1 << 60) + (1 << 52)  # halfway between two values of bfloat16
    codes = encode(np.array([tie - 1, tie, tie + 1, -tie - 1], np.int64), "bf16")
    lower = int(encode([float(1 << 60)], "bf16")[0])
    np.testing.assert_array_equal(codes, [lower, lower, lower + 1, lower + 1 | 0x8000])


def test_scale_rounds_to_the_nearest_power_of_two() -> None:
    smallest, largest = 2.0**-127, 2.0**127
    values = [1.0, 1.25, 1.5, 3.0, np.nextafter(3.0, 0.0), largest * 1.25, largest * 1.5, np.inf]
    near_zero = [0.0, -0.0, 1e-300, smallest / 2, smallest * 0.8, -1.0, np.nan, -np.inf]
    np.testing.assert_array_equal(encode(values, "e8m0"), [127, 127, 128, 128, 128, 254, 254, 254])
    np.testing.assert_array_equal(encode(near_zero, "e8m0"), [0, 0, 0, 0, 0, 255, 255, 255])
    np.testing.assert_array_equal(
        encode(values, "e8m0", saturate=False), [127, 127, 128, 128, 128, 254, 254, 255]
    )
    np.testing.assert_array_equal(
        encode(near_zero, "e8m0", saturate=False), [255, 255, 255, 255, 0, 255, 255, 255]
    )
    scale = dtypes.float8_e8m0
    assert (scale.min, scale.smallest_subnormal, scale.smallest_normal, scale.max) == (
        *[smallest] * 3,
        largest,
    )


@pytest.mark.parametrize(
    "source", [np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2], ids=str
)
def test_values_may_come_in_any_float_type(source: type) -> None:
    values = np.array([0.1, -1.75, 3.5, 100.0], source)
    np.testing.assert_array_equal(encode(values, "e3m2"), encode(values.astype(np.float64), "e3m2"))


def test_shape_and_memory_order_do_not_matter() -> None:
    values = np.random.default_rng(1).standard_normal((3, 70_000)).T[::2]  # more than one block, with strides
    codes = encode(values, "e4m3")
    assert codes.shape == values.shape
    np.testing.assert_array_equal(codes[12_345], encode(values[12_345], "e4m3"))
    np.testing.assert_array_equal(codes[-1], encode(values[-1], "e4m3"))
    assert encode(1.0, "e4m3").shape == ()
    assert encode([], "e4m3").shape == (0,)
