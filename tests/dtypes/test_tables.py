"""Table-coded types: nearest entry, ties, and names that spell the table."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus import dtypes
from tilus.dtypes import decode, encode, nf4, table_type, ternary

finite = st.floats(allow_nan=False, allow_infinity=False)
tables = st.integers(1, 4).flatmap(
    lambda bits: st.lists(finite | st.sampled_from([0.0, 1.0, -1.0]), min_size=1 << bits, max_size=1 << bits)
)


def brute_force(values: tuple[float, ...], value: float) -> int:
    """Return the smallest code of the nearest entry, by trying all."""
    if math.isinf(value):
        return values.index(max(values) if value > 0 else min(values))
    target = Fraction(0) if math.isnan(value) else Fraction(value)
    return min(range(len(values)), key=lambda code: (abs(Fraction(values[code]) - target), code))


def around(values: tuple[float, ...]) -> list[float]:
    """Entries, their rounded midpoints, and the neighbours of both."""
    ordered = sorted(set(values))
    points = [*ordered, *(a / 2 + b / 2 for a, b in pairwise(ordered))]
    points = [
        *points,
        *(math.nextafter(p, -math.inf) for p in points),
        *(math.nextafter(p, math.inf) for p in points),
    ]
    return [*points, math.inf, -math.inf, math.nan, 0.0, -0.0]


@pytest.mark.parametrize(
    "dtype", [nf4, ternary, table_type([3.0, -1.0, 3.0, 0.5])], ids=["nf4", "ternary", "own"]
)
def test_values_become_the_nearest_entry(dtype: dtypes.TableType) -> None:
    points = around(dtype.values)
    np.testing.assert_array_equal(
        encode(points, dtype), [brute_force(dtype.values, point) for point in points]
    )


@given(tables, st.lists(st.floats(), max_size=5))
def test_any_table_rounds_to_the_nearest_entry(values: list[float], others: list[float]) -> None:
    dtype = table_type(values)
    points = [*around(dtype.values), *others]
    np.testing.assert_array_equal(
        encode(points, dtype), [brute_force(dtype.values, point) for point in points]
    )


@given(tables)
def test_every_code_decodes_to_its_entry(values: list[float]) -> None:
    dtype = table_type(values)
    np.testing.assert_array_equal(decode(np.arange(len(values)), dtype), values)
    assert (dtype.min, dtype.max) == (min(values), max(values))


@given(tables)
def test_the_name_makes_the_type_again(values: list[float]) -> None:
    dtype = table_type(values)
    again = dtypes.dtype(dtype.name)
    assert again == dtype
    assert hash(again) == hash(dtype)
    assert copy.deepcopy(dtype) == dtype


def test_ties_go_to_the_smaller_code() -> None:
    assert encode([0.5], table_type([0.0, 1.0])).tolist() == [0]
    assert encode([0.5], table_type([1.0, 0.0])).tolist() == [0]
    assert encode([1.0, 3.0], table_type([0.0, 4.0, 2.0, 2.0])).tolist() == [0, 1]


def test_ternary_writes_three_codes_and_reads_four() -> None:
    assert encode([-5.0, -1.0, -0.5, 0.0, 0.5, 0.6, 1.0, 7.0], ternary).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert decode([0, 1, 2, 3], ternary).tolist() == [-1.0, 0.0, 1.0, 0.0]


def test_nf4_is_made_of_quantiles_of_the_normal_distribution() -> None:
    # The construction of the QLoRA paper: 8 steps below zero and 7 above, between quantiles of the same tail.
    from statistics import NormalDist

    tail = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = [NormalDist().inv_cdf(0.5 + (tail - 0.5) * step / 8) for step in range(9)]
    negative = [-NormalDist().inv_cdf(0.5 + (tail - 0.5) * step / 7) for step in range(7, 0, -1)]
    expected = np.array([*negative, *positive]) / positive[-1]
    np.testing.assert_allclose(nf4.values, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.float32(nf4.values), nf4.values)


def test_a_table_is_signed_if_a_value_is_negative() -> None:
    assert nf4.is_signed
    assert not table_type([0.0, 1.0]).is_signed


@pytest.mark.parametrize("count", [0, 1, 3, 5, 512])
def test_a_table_has_a_value_for_each_code(count: int) -> None:
    with pytest.raises(ValueError, match=f"was given {count} values: give 2, 4, 8, ... or 256 values"):
        table_type([0.0] * count)


def test_a_table_holds_finite_values() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        table_type([0.0, math.nan])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table1(0.0,x)", "is not the name of a table type"),
        ("table2(0.0,1.0)", "must start with 'table1\\('"),
        ("table1(0.0,1.0,2.0)", "was given 3 values"),
    ],
)
def test_a_wrong_table_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dtypes.dtype(name)
