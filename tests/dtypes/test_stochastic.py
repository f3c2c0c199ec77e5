"""Stochastic rounding: which random numbers round up, and that the mean is the value."""

from __future__ import annotations

import numpy as np
import pytest

from tilus import dtypes
from tilus.dtypes import DType, decode, encode

ROUNDED = [dtype for dtype in dtypes.SCALARS if dtype.bits <= 8 and not dtype.is_boolean] + [
    dtypes.float16,
    dtypes.bfloat16,
]
# Numbers that stand for equal parts of [0, 1).
PARTS = np.arange(16) / 16


def neighbours(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of adjacent finite values of a type, the one nearer to where rounding starts first."""
    codes = np.arange(1 << dtype.bits)
    values = np.unique(decode(codes, dtype).astype(np.float64))
    values = values[np.isfinite(values)]
    down, up = values[:-1], values[1:]
    if dtype.is_float:  # away from zero
        return np.where(down < 0, up, down), np.where(down < 0, down, up)
    return down, up


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_a_value_rounds_on_if_its_number_is_below_the_fraction(dtype: DType) -> None:
    near, far = neighbours(dtype)
    for part in range(16):
        values = near + (far - near) * (part / 16)  # exact: four bits more
        codes = encode(np.repeat(values[:, None], 16, axis=1), dtype, random=PARTS)
        expected = np.where(PARTS < part / 16, far[:, None], near[:, None])
        np.testing.assert_array_equal(decode(codes, dtype), expected)


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_the_mean_over_all_numbers_is_the_value(dtype: DType) -> None:
    near, far = neighbours(dtype)
    values = near + (far - near) * 0.3125
    rounded = decode(encode(np.repeat(values[:, None], 16, axis=1), dtype, random=PARTS), dtype)
    np.testing.assert_array_equal(rounded.astype(np.float64).mean(axis=1), values)


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_values_of_the_type_never_move(dtype: DType) -> None:
    near, _ = neighbours(dtype)
    for number in (0.0, np.nextafter(1.0, 0.0)):
        np.testing.assert_array_equal(decode(encode(near, dtype, random=number), dtype), near)


@pytest.mark.parametrize("dtype", [dtype for dtype in ROUNDED if dtype.bits <= 8], ids=str)
def test_what_is_too_large_saturates(dtype: DType) -> None:
    values = np.array([float(dtype.max) * 1.01, np.inf])
    for number in (0.0, 0.999):
        np.testing.assert_array_equal(decode(encode(values, dtype, random=number), dtype), [dtype.max] * 2)


def test_zero_and_nan_are_as_in_nearest_rounding() -> None:
    values = [0.0, -0.0, np.nan]
    for name in ("e2m1", "e4m3", "bf16", "f32", "i4", "e8m0"):
        np.testing.assert_array_equal(encode(values, name, random=0.0), encode(values, name))


def test_float32_is_rounded_stochastically_too() -> None:
    value = 1.0 + 2.0**-24 + 2.0**-25  # three quarters of the way
    codes = encode(np.full(4, value), "f32", random=[0.0, 0.5, 0.75, 0.9])
    np.testing.assert_array_equal(decode(codes, "f32"), [1 + 2.0**-23, 1 + 2.0**-23, 1.0, 1.0])


def test_each_value_has_its_own_number_in_a_large_array() -> None:
    random = np.random.default_rng(2)
    numbers = random.random((3, 50_000))
    values = np.full((3, 50_000), 2.25)  # a quarter of the way from 2 to 3
    expected = np.where(numbers < 0.25, 3.0, 2.0)
    np.testing.assert_array_equal(decode(encode(values, "e2m1", random=numbers), "e2m1"), expected)
    np.testing.assert_array_equal(decode(encode(values, "i4", random=numbers), "i4"), expected)


@pytest.mark.parametrize("random", [[-0.1], [1.0], [np.nan]])
def test_random_numbers_must_be_in_the_unit_interval(random: list[float]) -> None:
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\)"):
        encode([0.5], "e2m1", random=random)


@pytest.mark.parametrize("name", ["nf4", "boolean", "float64"])
def test_types_without_stochastic_rounding_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"not for {name}: leave out random="):
        encode([0.5], name, random=[0.5])
