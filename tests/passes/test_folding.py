"""Folded constants are what the interpreter computes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus import dtypes
from tilus.dtypes import DType
from tilus.ir import numerics
from tilus.ir.ops.elementwise import (
    BINARY_ARITHMETIC,
    BINARY_FLOAT,
    BINARY_INTEGER,
    BINARY_LOGIC,
    COMPARISONS,
)
from tilus.passes.folding import canonical, fold_binary, fold_cast, fold_compare, fold_unary, round_to, wrap

INTEGERS = (dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64, dtypes.int8, dtypes.uint4)
FLOATS = (dtypes.float64, dtypes.float32, dtypes.float16)
FOLDED = (*INTEGERS, *FLOATS, dtypes.boolean)


def values(dtype: DType) -> st.SearchStrategy[int | float | bool]:
    if dtype == dtypes.boolean:
        return st.booleans()
    if dtype.is_integer:
        return st.integers(int(dtype.min), int(dtype.max)) | st.sampled_from(
            [0, 1, 2, int(dtype.max), int(dtype.min)]
        )
    return st.floats(width=min(dtype.bits, 32), allow_nan=False, allow_infinity=False)


def computed(array: np.ndarray, dtype: DType) -> int | float | bool:
    return numerics.to_values(np.asarray(array), dtype).item()


def same(a: int | float | bool, b: int | float | bool) -> bool:
    return a == b and math.copysign(1.0, a) == math.copysign(1.0, b) and type(a) is type(b)


def kinds_of(dtype: DType) -> tuple[str, ...]:
    if dtype == dtypes.boolean:
        return BINARY_LOGIC
    return BINARY_ARITHMETIC + (BINARY_FLOAT if dtype.is_float else BINARY_INTEGER + BINARY_LOGIC)


@given(st.data(), st.sampled_from(FOLDED))
def test_binary_operations(data: st.DataObject, dtype: DType):
    kind = data.draw(st.sampled_from(kinds_of(dtype)))
    a, b = data.draw(values(dtype)), data.draw(values(dtype))
    folded = fold_binary(kind, a, b, dtype)
    if folded is None:
        uncertain = b == 0 or kind in ("pow", "mod") or dtype.is_float
        assert uncertain
        return
    with np.errstate(all="ignore"):
        expected = numerics.binary(kind, *(numerics.from_values(v, dtype) for v in (a, b)), dtype)
    assert same(folded, computed(expected, dtype))


@given(st.data(), st.sampled_from(FOLDED))
def test_unary_operations(data: st.DataObject, dtype: DType):
    kinds = ["neg", "abs", "not", "popcount", "clz", "ctz", "brev"] if dtype.is_integer else ["neg", "abs"]
    kinds += ["floor", "ceil", "trunc", "round"] if dtype.is_float else []
    kind = "not" if dtype == dtypes.boolean else data.draw(st.sampled_from(kinds))
    a = data.draw(values(dtype))
    made = numerics.unary(kind, numerics.from_values(a, dtype), dtype)
    result = dtypes.int32 if kind in ("popcount", "clz", "ctz") else dtype
    folded = fold_unary(kind, a, dtype)
    assert folded is not None
    assert same(folded, computed(made, result))


@given(st.data(), st.sampled_from(FOLDED), st.sampled_from(COMPARISONS))
def test_comparisons(data: st.DataObject, dtype: DType, kind: str):
    a, b = data.draw(values(dtype)), data.draw(values(dtype))
    expected = numerics.compare(kind, *(numerics.from_values(v, dtype) for v in (a, b)), dtype)
    assert fold_compare(kind, a, b) is bool(expected)


@given(st.data(), st.sampled_from(FOLDED), st.sampled_from(FOLDED))
def test_casts(data: st.DataObject, source: DType, target: DType):
    a = data.draw(values(source))
    folded = fold_cast(a, source, target)
    with np.errstate(all="ignore"):
        expected = computed(numerics.cast(numerics.from_values(a, source), source, target), target)
    if folded is None:
        assert target.is_float
        assert math.isinf(expected) or abs(a) > 2**53
    else:
        assert same(folded, expected)


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float8_e4m3, dtypes.nf4])
def test_dtypes_that_are_not_rounded_here_are_left_alone(dtype: DType):
    assert fold_binary("add", 1.0, 1.0, dtype) is None
    assert fold_unary("neg", 1.0, dtype) is None
    assert fold_cast(1.5, dtypes.float32, dtype) is None


def test_a_constant_is_read_as_its_dtype_holds_it():
    assert canonical(300, dtypes.int8) == 44
    assert canonical(0.1, dtypes.float32) == float(np.float32(0.1))
    assert canonical(1e39, dtypes.float32) is None
    assert canonical(math.nan, dtypes.float64) is None
    assert canonical(1.0, dtypes.bfloat16) == 1.0
    assert canonical(0.1, dtypes.bfloat16) is None
    assert canonical(2, dtypes.boolean) is True


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (2**31, dtypes.int32, -(2**31)),
        (-1, dtypes.uint8, 255),
        (2**64 + 5, dtypes.int64, 5),
        (1, dtypes.int1, -1),
    ],
)
def test_integers_wrap(value: int, dtype: DType, expected: int):
    assert wrap(value, dtype) == expected


def test_float32_rounds_to_even():
    assert round_to(1 + 2.0**-24, dtypes.float32) == 1.0
    assert round_to(1 + 3 * 2.0**-24, dtypes.float32) == 1 + 2.0**-22


@pytest.mark.parametrize(
    ("kind", "a", "b", "expected"),
    [
        ("floordiv", -7, 2, -4),
        ("mod", -7, 2, 1),
        ("floordiv", 7, -2, -4),
        ("mod", 7, -2, -1),
        ("mod", 7, 0, None),
    ],
)
def test_division_rounds_to_minus_infinity(kind: str, a: int, b: int, expected: int | None):
    assert fold_binary(kind, a, b, dtypes.int32) == expected
