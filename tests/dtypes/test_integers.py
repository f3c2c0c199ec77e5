"""Every code and every rounding boundary of the integer types and the boolean, against exact arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dtypes import reference
from tilus import dtypes
from tilus.dtypes import DType, decode, encode

INTEGERS = [dtype for dtype in dtypes.SCALARS if dtype.is_integer]
SMALL = [dtype for dtype in INTEGERS if dtype.bits <= 8]


@pytest.mark.parametrize("dtype", [dtype for dtype in INTEGERS if dtype.bits <= 16], ids=str)
def test_every_code_is_its_number_in_twos_complement(dtype: DType) -> None:
    codes = np.arange(1 << dtype.bits)
    signed = dtype.name.startswith("int")
    half = 1 << (dtype.bits - 1)
    expected = [code - (code >= half) * 2 * half if signed else code for code in range(1 << dtype.bits)]
    values = decode(codes, dtype)
    assert values.dtype == (np.int64 if signed else np.uint64)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(encode(values, dtype), codes)
    np.testing.assert_array_equal(encode(values.astype(np.float64), dtype), codes)
    assert (min(expected), max(expected)) == (dtype.min, dtype.max)


@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4"])
def test_every_code_decodes_as_in_ml_dtypes(name: str) -> None:
    codes = np.arange(1 << dtypes.dtype(name).bits, dtype=np.uint8)
    expected = codes.view(np.int8).astype(getattr(ml_dtypes, name)).astype(np.int64)
    np.testing.assert_array_equal(decode(codes, name).astype(np.int64), expected)


def test_int1_is_zero_and_minus_one() -> None:
    np.testing.assert_array_equal(decode([0, 1], "int1"), [0, -1])
    np.testing.assert_array_equal(encode([-3.0, -1.0, -0.5, 0.0, 1.0], "int1"), [1, 1, 0, 0, 0])


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_halves_round_to_even_and_the_rest_to_the_nearest(dtype: DType) -> None:
    low, high = float(dtype.min), float(dtype.max)
    whole = np.arange(max(low, -300.0) - 2, min(high, 300.0) + 3)
    ends = np.array([low, high, -(2.0**63), 2.0**63, 2.0**64, 1e300, -1e300, 2.0**52 + 0.5])
    points = np.concatenate([whole, whole + 0.5, ends])
    points = np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf)])
    points = np.concatenate([points, [np.nan, np.inf, -np.inf, -0.0]])
    signed = dtype.name.startswith("int")
    expected = [reference.encode_integer(dtype.bits, signed, float(point)) for point in points]
    codes = encode(points, dtype)
    assert codes.dtype == np.dtype(f"uint{max(8, dtype.bits)}")
    np.testing.assert_array_equal(codes, np.array(expected, np.uint64))


@given(st.integers(-(2**63), 2**64 - 1), st.sampled_from(INTEGERS))
def test_integers_are_clipped_exactly(value: int, dtype: DType) -> None:
    array = np.array([value], np.int64 if value < 0 else np.uint64)
    expected = reference.encode_integer(dtype.bits, dtype.name.startswith("int"), value)
    assert int(encode(array, dtype)[0]) == expected


@pytest.mark.parametrize("source", [np.int8, np.uint8, np.int16, np.int64, np.bool_, ml_dtypes.int4], ids=str)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_values_may_come_in_any_integer_type(dtype: DType, source: type) -> None:
    values = np.array([0, 1, 1, 0] if source is np.bool_ else [-8, -1, 0, 7], np.int64).astype(source)
    expected = [
        reference.encode_integer(dtype.bits, dtype.name.startswith("int"), int(value))
        for value in values.tolist()
    ]
    np.testing.assert_array_equal(encode(values, dtype), np.array(expected, np.uint64))


def test_wide_integers_decode_to_themselves() -> None:
    values = np.array([-(2**63), -1, 0, 2**63 - 1], np.int64)
    np.testing.assert_array_equal(decode(values.view(np.uint64), "int64"), values)
    np.testing.assert_array_equal(decode(values.view(np.uint64), "uint64"), values.view(np.uint64))
    np.testing.assert_array_equal(decode(np.array([2**31, 5], np.uint32), "i32"), [-(2**31), 5])


def test_integers_decode_to_float32_on_request() -> None:
    values = decode([0, 7, 8, 15], "i4", float32=True)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [0, 7, -8, -1])


def test_boolean_is_whatever_is_not_zero() -> None:
    np.testing.assert_array_equal(encode([0.0, -0.0, 0.25, np.nan, -3], "boolean"), [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(decode([0, 1, 2, 255], "boolean"), [False, True, True, True])
    assert decode([0], "boolean").dtype == np.bool_
    assert (dtypes.boolean.min, dtypes.boolean.max) == (0, 1)


def test_integers_have_no_other_way_than_to_saturate() -> None:
    np.testing.assert_array_equal(encode([99], "i4", saturate=True), [7])
    with pytest.raises(ValueError, match="int4 has neither infinity nor NaN and always saturates"):
        encode([99], "i4", saturate=False)


@pytest.mark.parametrize(
    ("values", "found"), [([1j], "complex128"), (["a"], "<U1"), ([2**70], "object"), ([None], "object")]
)
def test_other_values_are_refused(values: list[object], found: str) -> None:
    with pytest.raises(
        TypeError, match=f"must be booleans, integers or floats of at most 64 bits, not {found}"
    ):
        encode(values, "i4")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([16], np.uint8), "codes of int4 have 4 bits, but one is 16"),
        (np.array([300]), "codes of int4 have 4 bits, but one is 300"),
        (np.array([-1]), "codes of int4 are bit patterns and not negative, but one is -1"),
    ],
)
def test_codes_outside_the_type_are_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(codes, "i4")


def test_values_in_place_of_codes_are_refused() -> None:
    with pytest.raises(
        TypeError, match="codes of uint4 must be integers, not float64: encode the values first"
    ):
        decode([1.0], "u4")
