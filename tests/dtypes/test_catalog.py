"""Names, properties and look-up of the scalar types."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from tilus import dtypes
from tilus.dtypes import DType, dtype


def test_the_catalog_has_every_width_and_split() -> None:
    names = {known.name for known in dtypes.NAMED}
    expected = {f"{sign}int{bits}" for sign in ("", "u") for bits in (*range(1, 9), 16, 32, 64)}
    expected |= {f"float{1 + e + m}_e{e}m{m}" for e in range(1, 8) for m in range(7) if 3 <= 1 + e + m <= 8}
    expected |= {
        "boolean",
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "tfloat32",
        "float8_e8m0",
        "nf4",
        "ternary",
    }
    assert names == expected
    assert len(names) == len(dtypes.NAMED)


def test_each_type_is_exported_under_its_name() -> None:
    for known in dtypes.NAMED:
        assert getattr(dtypes, known.name) is known
        assert repr(known) == str(known) == known.name
    assert set(dtypes.__all__) >= {known.name for known in dtypes.NAMED}
    for name in dtypes.__all__:
        assert hasattr(dtypes, name)


def test_fields_fill_the_bits() -> None:
    for known in dtypes.SCALARS:
        if known.is_float:
            unused = 13 if known is dtypes.tfloat32 else 0
            assert 1 + known.exponent_bits + known.mantissa_bits + unused == known.bits
            assert known.bias == 2 ** (known.exponent_bits - 1) - 1


def test_kinds() -> None:
    assert dtypes.float6_e3m2.is_float
    assert dtypes.float6_e3m2.is_signed
    assert dtypes.uint3.is_integer
    assert not dtypes.uint3.is_signed
    assert dtypes.int1.is_signed
    assert dtypes.boolean.is_boolean
    assert not dtypes.boolean.is_integer
    assert not dtypes.float8_e8m0.is_float
    assert not dtypes.float8_e8m0.is_signed
    assert dtypes.nf4.is_table
    assert dtypes.uint7.is_subbyte
    assert not dtypes.uint8.is_subbyte


def test_infinity_and_nan() -> None:
    with_inf = {known.name for known in dtypes.NAMED if known.has_inf}
    with_nan = {known.name for known in dtypes.NAMED if known.has_nan}
    ieee = {"float64", "float32", "float16", "bfloat16", "tfloat32", "float8_e5m2", "float8_e3m4"}
    assert with_inf == ieee
    assert with_nan == ieee | {"float8_e4m3", "float8_e8m0"}
    with pytest.raises(ValueError, match=r"float8_e4m3 has no infinity; its largest finite value is 448\.0"):
        _ = dtypes.float8_e4m3.inf_code
    with pytest.raises(ValueError, match="float4_e2m1 has no NaN"):
        _ = dtypes.float4_e2m1.nan_code


@pytest.mark.parametrize("known", [known for known in dtypes.SCALARS if known.is_float], ids=str)
def test_limits_are_those_of_numpy_and_ml_dtypes(known: DType) -> None:
    own = {"float8_e4m3": "float8_e4m3fn"} | {
        name: f"{name}fn" for name in ("float6_e2m3", "float6_e3m2", "float4_e2m1")
    }
    name = own.get(known.name, known.name)
    if not hasattr(ml_dtypes, name) and not hasattr(np, name):
        assert known.max == dtypes.decode([known.max_code], known)[0]
        return
    info = ml_dtypes.finfo(getattr(ml_dtypes, name, None) or getattr(np, name))
    assert known.max == float(info.max)
    assert known.min == float(info.min)
    assert known.smallest_normal == float(info.smallest_normal)
    assert known.smallest_subnormal == float(info.smallest_subnormal)
    assert known.epsilon == float(info.eps)


def test_bytes_are_whole_or_refused() -> None:
    assert [dtypes.uint8.nbytes, dtypes.bfloat16.nbytes, dtypes.tfloat32.nbytes, dtypes.float64.nbytes] == [
        1,
        2,
        4,
        8,
    ]
    assert dtypes.boolean.nbytes == 1
    assert [dtypes.uint3.packed_nbytes(count) for count in (0, 1, 2, 3, 8)] == [0, 1, 1, 2, 3]
    with pytest.raises(ValueError, match="uint3 has 3 bits, which are not whole bytes"):
        _ = dtypes.uint3.nbytes


def test_integers_have_no_float_properties() -> None:
    for name in ("smallest_normal", "smallest_subnormal", "epsilon", "max_code", "sign_code"):
        with pytest.raises(ValueError, match="int4 is not a float and has no"):
            getattr(dtypes.int4, name)


def test_numpy_carriers() -> None:
    assert dtypes.float16.numpy == np.float16
    assert dtypes.boolean.numpy == np.bool_
    assert dtypes.uint32.numpy == np.uint32
    assert dtypes.bfloat16.numpy is None
    assert dtypes.int4.numpy is None
    assert dtypes.tfloat32.numpy is None
    assert [known.code_numpy for known in (dtypes.int1, dtypes.bfloat16, dtypes.tfloat32, dtypes.int64)] == [
        np.uint8,
        np.uint16,
        np.uint32,
        np.uint64,
    ]


def test_types_are_values() -> None:
    for known in dtypes.NAMED:
        for same in (copy.deepcopy(known), dtype(known)):
            assert same == known
            assert hash(same) == hash(known)
    assert len(set(dtypes.NAMED)) == len(dtypes.NAMED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dtypes.int4.bits = 5  # type: ignore[misc]


def test_every_name_and_short_name_finds_its_type() -> None:
    for known in dtypes.NAMED:
        assert dtype(known.name) is known
        assert dtype(known.short) is known
    shorts = [known.short for known in dtypes.NAMED]
    assert len(set(shorts)) == len(shorts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("u4", "uint4"),
        ("i1", "int1"),
        ("s8", "int8"),
        ("f16", "float16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("bf16", "bfloat16"),
        ("tf32", "tfloat32"),
        ("f32", "float32"),
        ("float", "float32"),
        ("double", "float64"),
        ("bool", "boolean"),
        ("e2m1", "float4_e2m1"),
        ("fp4_e2m1", "float4_e2m1"),
        ("f6e3m2", "float6_e3m2"),
        ("f8_e4m3", "float8_e4m3"),
        ("float8_e4m3fn", "float8_e4m3"),
        ("e8m0", "float8_e8m0"),
        ("ue8m0", "float8_e8m0"),
    ],
)
def test_names_of_the_field(name: str, expected: str) -> None:
    assert dtype(name).name == expected


@pytest.mark.parametrize(
    ("name", "near"),
    [("flaot16", "float16"), ("uint44", "uint4"), ("float6_e3m3", "float7_e3m3"), ("E2M1", "e2m1"), ("", "")],
)
def test_an_unknown_name_gets_the_nearest_one(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"there is no dtype named '{name}': did you mean '{near}"):
        dtype(name)


@pytest.mark.parametrize(
    "theirs", [np.dtype(object), np.dtype("U3"), np.dtype("datetime64[s]"), np.dtype([("a", "f4")])], ids=str
)
def test_a_type_that_is_like_none_gets_no_hint(theirs: object) -> None:
    with pytest.raises(ValueError, match=r"there is no dtype named .*: tilus has booleans") as caught:
        dtype(theirs)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(
            (getattr(torch, name), name)
            for name in ("float16", "bfloat16", "float32", "float64", "int8", "uint8")
        ),
        *(
            (getattr(torch, f"{sign}int{bits}"), f"{sign}int{bits}")
            for sign in ("", "u")
            for bits in range(1, 8)
        ),
        *(
            (getattr(torch, f"{sign}int{bits}"), f"{sign}int{bits}")
            for sign in ("", "u")
            for bits in (16, 32, 64)
        ),
        (torch.bool, "boolean"),
        (torch.float8_e4m3fn, "float8_e4m3"),
        (torch.float8_e5m2, "float8_e5m2"),
        (torch.float8_e8m0fnu, "float8_e8m0"),
    ],
    ids=str,
)
def test_torch_types(theirs: torch.dtype, ours: str) -> None:
    assert dtype(theirs).name == ours


def test_torch_and_tilus_agree_on_codes() -> None:
    for theirs in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu):
        codes = torch.arange(256, dtype=torch.uint8)
        expected = codes.view(theirs).to(torch.float64).numpy()
        np.testing.assert_array_equal(dtypes.decode(codes.numpy(), dtype(theirs)), expected)
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    expected = codes.view(torch.bfloat16).to(torch.float64).numpy()
    np.testing.assert_array_equal(dtypes.decode(codes.numpy(), dtype(torch.bfloat16)), expected)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (np.dtype("float32"), "float32"),
        (np.float16, "float16"),
        (np.bool_, "boolean"),
        (np.dtype("bool"), "boolean"),
        (np.uint64, "uint64"),
        (np.intc, "int32"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        (ml_dtypes.int4, "int4"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3"),
        (ml_dtypes.float8_e3m4, "float8_e3m4"),
        (ml_dtypes.float4_e2m1fn, "float4_e2m1"),
        (ml_dtypes.float8_e8m0fnu, "float8_e8m0"),
    ],
    ids=str,
)
def test_numpy_types(theirs: object, ours: str) -> None:
    assert dtype(theirs).name == ours


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (torch.float8_e4m3fnuz, r"torch\.float8_e4m3fnuz is a float with another bias .* as float8_e4m3$"),
        (torch.float8_e5m2fnuz, r"torch\.float8_e5m2fnuz is a float with another bias .* as float8_e5m2$"),
        (
            torch.float4_e2m1fn_x2,
            "holds two elements a byte: view the tensor as torch.uint8 and say float4_e2m1",
        ),
        (torch.quint8, "is a quantised type with a scale of its own"),
        (torch.complex64, r"there is no dtype named 'torch\.complex64'"),
        (ml_dtypes.float8_e4m3, r"variant of e4m3 with infinities.*use ml_dtypes\.float8_e4m3fn"),
        (np.dtype("float32").newbyteorder(), "has the other byte order"),
        (np.dtype("complex128"), "there is no dtype named"),
    ],
    ids=str,
)
def test_foreign_types_with_other_bits_are_refused(theirs: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dtype(theirs)


@pytest.mark.parametrize("other", [3, None, float, int, print], ids=str)
def test_other_things_are_no_types(other: object) -> None:
    with pytest.raises(TypeError, match=r"a dtype was expected, not .*: write a tilus type such as"):
        dtype(other)


@pytest.mark.parametrize("named", dtypes.NAMED, ids=str)
def test_copies_of_a_named_type_are_the_type(named: DType) -> None:
    assert copy.copy(named) is copy.deepcopy(named) is named
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(named, protocol)) is named  # noqa: S301


def test_other_types_are_pickled_by_their_fields() -> None:
    for made in (dtypes.table_type([0.5, -3.0]), DType("float9_e3m5", 9, "float", "e3m5", 3, 5, 3)):
        found = pickle.loads(pickle.dumps(made))  # noqa: S301
        assert found == made
        assert type(found) is type(made)


def test_import_and_look_up_need_no_numpy() -> None:
    # What the package above imports is not the matter of this one.
    script = (
        "import sys, tilus; before = set(sys.modules);"
        "import tilus.dtypes as d; d.dtype('e3m2').max; d.table_type([0, 1]);"
        "assert not {'numpy', 'difflib'} & (set(sys.modules) - before); d.encode([1.0], 'e3m2')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'uint9'"):
        _ = dtypes.uint9  # type: ignore[attr-defined]
