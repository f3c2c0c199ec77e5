"""Packed casts give, for every code and in every order, what the general path gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.codegen.harness import (
    assert_same_codes,
    compile_module,
    expected_codes,
    pack_words,
    run_codes,
    run_words,
    unpack_words,
    words_of,
)
from tests.codegen.test_casts_general import interesting
from tilus import dtypes
from tilus.codegen.assemble import available
from tilus.codegen.casts import (
    Arrangement,
    best_cast,
    cast_elements,
    cast_stored,
    element_order,
    fast_casts,
    integer_exponent,
    preferred_arrangement,
    preferred_order,
    stored_arrangement,
    stored_exponent,
)
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.target import TARGETS, Target
from tilus.codegen.target import target as find_target
from tilus.dtypes import DType
from tilus.errors import TypeMismatch

CODEBOOK = dtypes.table_type([0.1 * i * i - 7.5 for i in range(16)])
INTEGERS = dtypes.table_type([0.25 * i for i in (0, 1, -3, 8, 11, -128, 127, 2)])
SOURCES = tuple(t for t in (*dtypes.NAMED, CODEBOOK, INTEGERS) if t.bits <= 8 and not t.is_boolean)
SIXTEEN = (dtypes.float16, dtypes.bfloat16)
DESTS = (*SIXTEEN, dtypes.int8, dtypes.float8_e4m3, dtypes.float32)


def casting(source: DType, dest: DType, count: int, order=None):  # type: ignore[no-untyped-def]
    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return cast_elements(w, target, source, dest, regs, count, order)

    return emit


def some_codes(source: DType, count: int) -> np.ndarray:
    """Every code at every position of a thread's elements, and random ones."""
    rng = np.random.default_rng(source.bits)
    rotated = (np.arange(1 << source.bits)[:, None] + np.arange(count)) & source.code_mask
    random = rng.integers(0, 1 << source.bits, (64, count))
    return np.concatenate([rotated, random]).astype(source.code_numpy)


def run_stored(target: str, source: DType, dest: DType, codes, arrangement: Arrangement, emit):  # type: ignore[no-untyped-def]
    """Run on codes that lie in memory in an arrangement."""
    count = codes.shape[1]
    stored = arrangement.store(pack_words(codes, source))
    ptx = compile_module(target, source, dest, count, emit, check=False)
    return unpack_words(run_words(ptx, stored, words_of(dest, count)), dest, count).reshape(-1)


@pytest.mark.parametrize("target", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_cast_in_natural_order_is_exact(source: DType, target: str) -> None:
    for dest in DESTS:
        if source != dest:
            codes = some_codes(source, 32)
            made = run_codes(target, source, dest, codes, casting(source, dest, 32), 32)
            assert_same_codes(made, expected_codes(source, dest, codes.reshape(-1)), dest, codes)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_cast_in_each_arrangement_is_exact(source: DType) -> None:
    for dest in DESTS:
        for arrangement in dict.fromkeys(row.arrangement for row in fast_casts(source, dest)):
            if arrangement is not None:
                codes = some_codes(source, arrangement.elements)
                emit = casting(source, dest, arrangement.elements, arrangement)
                made = run_stored("sm_80", source, dest, codes, arrangement, emit)
                assert_same_codes(made, expected_codes(source, dest, codes.reshape(-1)), dest, codes)


def finite_codes(source: DType, count: int) -> np.ndarray:
    """`some_codes` with zero in place of infinities and NaN."""
    codes = some_codes(source, count)
    return np.where(np.isfinite(dtypes.decode(codes, source).astype(np.float64)), codes, 0).astype(
        codes.dtype
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", [t for t in SOURCES if t.kind != "scale"], ids=str)
def test_a_cast_of_stored_codes_leaves_out_the_power_of_two_that_it_says(source: DType, target: str) -> None:
    """With and without an exponent, on a target with conversions of its own and one without."""
    machine = find_target(target)
    for dest in (*SIXTEEN, dtypes.int8, dtypes.uint8, dtypes.float8_e4m3):
        exponent = stored_exponent(source, dest, machine)
        for wanted in dict.fromkeys((0, exponent)):
            if wanted != exponent and dest not in SIXTEEN:
                continue
            stored = stored_arrangement(source, dest)
            order = stored or element_order(source.bits, tuple(range(32)))
            codes = finite_codes(source, order.elements)

            def emit(
                w: Writer,
                machine: Target,
                regs: tuple[V, ...],
                dest=dest,
                wanted=wanted,
                count=order.elements,
            ):  # type: ignore[no-untyped-def]
                return cast_stored(w, machine, source, dest, regs, count, wanted)

            made = run_stored(target, source, dest, codes, order, emit)
            flat = codes.reshape(-1)
            if not wanted:
                assert_same_codes(made, expected_codes(source, dest, flat), dest, codes)
                continue
            values = np.ldexp(dtypes.decode(made, dest).astype(np.float64), wanted)
            np.testing.assert_array_equal(values, dtypes.decode(flat, source).astype(np.float64))


def test_stored_codes_of_bfloat16_cost_what_those_of_float16_cost() -> None:
    """A scale takes the power of two over that a bfloat16 with few mantissa bits would take an instruction for."""
    machine = find_target("sm_80")
    for name, limit in (
        ("uint8", 1.0),
        ("int8", 1.0),
        ("uint4", 1.15),
        ("int4", 1.15),
        ("e4m3", 2.0),
        ("e5m2", 2.0),
    ):
        source = dtypes.dtype(name)
        row = best_cast(
            machine,
            source,
            dtypes.bfloat16,
            stored_arrangement(source, dtypes.bfloat16),
            scaled=True,
            finite=True,
        )
        assert row is not None
        assert row.cost <= limit
        assert row.exponent == stored_exponent(source, dtypes.bfloat16, machine)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_the_counted_costs_of_stored_codes_meet_their_targets(target: str) -> None:
    """What `benchmarks/cast_cost.py` counted in the assembler's code: 8 bits 1, 4 and fewer 1.15, others 2."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "cast_cost.json"
    rows = {
        (r["source"], r["dest"]): r["stored"] for r in json.loads(path.read_text(encoding="utf-8"))[target]
    }
    for bits in range(1, 9):
        limit = {8: 1.0, 4: 1.15, 2: 1.15, 1: 1.15}.get(bits, 2.0)
        for dest in ("float16", "bfloat16"):
            unsigned, signed = rows[f"uint{bits}", dest], rows[f"int{bits}", dest]
            assert unsigned <= limit + 0.005
            assert signed <= 1.1 * unsigned
        if bits < 8:
            assert rows[f"int{bits}", "int8"] < 0.7
    for name in ("float4_e2m1", "float6_e3m2", "float8_e4m3", "float8_e5m2"):
        for dest in ("float16", "bfloat16"):
            assert rows[name, dest] <= 2.0
    assert target == "sm_80" or rows["float8_e4m3", "float16"] <= 0.75


def test_values_that_are_integers_times_a_power_of_two() -> None:
    """Their int8 is off by that power; no other type has one."""
    found = {
        t.name: stored_exponent(t, dtypes.int8, find_target("sm_80")) for t in SOURCES if t.kind == "float"
    }
    assert {name: e for name, e in found.items() if e} == {
        "float8_e1m6": -5, "float7_e1m5": -4, "float7_e2m4": -4, "float6_e1m4": -3, "float6_e2m3": -3,
        "float5_e1m3": -2, "float5_e2m2": -2, "float4_e1m2": -1, "float4_e2m1": -1, "float4_e3m0": -2,
    }  # fmt: skip
    assert integer_exponent(INTEGERS) == 2
    assert integer_exponent(CODEBOOK) is None
    assert integer_exponent(dtypes.float6_e3m2) is None
    assert integer_exponent(dtypes.float3_e2m0) == 0


@pytest.mark.parametrize("bits", range(1, 8))
def test_narrow_integers_become_bytes_by_masks_alone(bits: int) -> None:
    """Less than an instruction for each element, signed or not."""
    for kind, dest in (("int", dtypes.int8), ("uint", dtypes.uint8)):
        source = dtypes.dtype(f"{kind}{bits}")
        row = best_cast(find_target("sm_80"), source, dest, stored_arrangement(source, dest), scaled=True)
        assert row is not None
        assert row.cost <= 0.7


NARROW = [r for s in ("int", "uint") for r in (f"{s}2", f"{s}4", f"{s}8")] + ["e4m3", "e5m2", "e2m1"]


@pytest.mark.parametrize("name", NARROW)
def test_narrowing_by_hardware_is_exact(name: str) -> None:
    dest = dtypes.dtype(name)
    targets = {"e4m3": "sm_89", "e5m2": "sm_89", "e2m1": "sm_100a"}
    target = targets.get(name, "sm_75")
    assert any(find_target(target).has(row.feature) for row in fast_casts(dtypes.float32, dest))
    for source in (dtypes.float32, *SIXTEEN):
        codes = interesting(source)
        made = run_codes(target, source, dest, codes, casting(source, dest, 8), 8)
        assert_same_codes(made, expected_codes(source, dest, codes), dest, codes)
    few = interesting(dtypes.float32)[:15]
    made = run_codes(target, dtypes.float32, dest, few, casting(dtypes.float32, dest, 3), 3)
    assert_same_codes(made, expected_codes(dtypes.float32, dest, few), dest, few)


def test_the_hardware_unpacks_float4() -> None:
    codes = some_codes(dtypes.float4_e2m1, 32)
    for dest in (dtypes.float16, dtypes.float32):
        made = run_codes(
            "sm_100a", dtypes.float4_e2m1, dest, codes, casting(dtypes.float4_e2m1, dest, 32), 32
        )
        assert_same_codes(made, expected_codes(dtypes.float4_e2m1, dest, codes.reshape(-1)), dest, codes)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 33])
def test_a_cast_takes_any_number_of_elements(count: int) -> None:
    for name in ("uint4", "int3", "e3m2", "int8", "ternary", "e2m1", "uint1"):
        source = dtypes.dtype(name)
        codes = some_codes(source, count)
        made = run_codes(
            "sm_90a", source, dtypes.float16, codes, casting(source, dtypes.float16, count), count
        )
        assert_same_codes(
            made, expected_codes(source, dtypes.float16, codes.reshape(-1)), dtypes.float16, codes
        )


@pytest.mark.parametrize("order", [(3, 1, 0, 2, 7, 6, 5, 4), tuple(range(8))[::-1]])
def test_any_order_of_elements_is_taken(order: tuple[int, ...]) -> None:
    for names in (("int4", "float16"), ("e2m1", "float32"), ("uint4", "int32")):
        source, dest = map(dtypes.dtype, names)
        codes = some_codes(source, 16)
        made = run_stored(
            "sm_90a", source, dest, codes, element_order(4, order), casting(source, dest, 16, order)
        )
        assert_same_codes(made, expected_codes(source, dest, codes.reshape(-1)), dest, codes)


def test_an_arrangement_made_for_another_type_is_undone() -> None:
    arrangement = preferred_arrangement(find_target("sm_80"), dtypes.float6_e3m2, dtypes.float16)
    assert arrangement is not None
    codes = some_codes(dtypes.uint6, arrangement.elements)
    emit = casting(dtypes.uint6, dtypes.int32, arrangement.elements, arrangement)
    made = run_stored("sm_80", dtypes.uint6, dtypes.int32, codes, arrangement, emit)
    np.testing.assert_array_equal(made, codes.reshape(-1))


def test_an_order_that_does_not_fit_is_refused() -> None:
    emit = casting(dtypes.uint4, dtypes.float16, 12, tuple(range(8)))
    with pytest.raises(
        TypeMismatch, match=r"an order of 8 elements of 4 bits does not fit 12 elements of uint4"
    ):
        compile_module("sm_80", dtypes.uint4, dtypes.float16, 12, emit)
    with pytest.raises(ValueError, match="is no order of elements of 4 bits"):
        element_order(4, (0, 0, 1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_storing_in_an_arrangement_and_loading_gives_the_words_back(source: DType) -> None:
    for dest in SIXTEEN:
        for row in fast_casts(source, dest):
            if row.arrangement is not None:
                words = np.random.default_rng(0).integers(0, 1 << 32, (5, 3 * row.words), np.uint32)
                stored = row.arrangement.store(words)
                np.testing.assert_array_equal(row.arrangement.load(stored), words)
                assert not np.array_equal(stored, words)


def test_an_element_order_says_which_element_lies_where() -> None:
    assert preferred_order(dtypes.uint4, dtypes.float16) == (0, 2, 4, 6, 1, 3, 5, 7)
    order = preferred_order(dtypes.int2, dtypes.bfloat16)
    assert order is not None
    assert sorted(order) == list(range(64))
    assert preferred_order(dtypes.uint8, dtypes.float16) is None
    stored = element_order(4, (0, 2, 4, 6, 1, 3, 5, 7)).store(np.array([0x76543210], np.uint32))
    assert stored.tolist() == [0x75316420]


def _limit(source: DType, dest: DType) -> float:
    """Instructions per element that a cast may take on every target with 16-bit floats of that kind."""
    if source.bits == 8 and source.is_integer:
        return 1.0 if dest == dtypes.float16 else 1.5
    if source.is_integer:
        return {1: 1.15, 2: 1.15, 4: 1.15 if dest == dtypes.float16 else 1.4}.get(source.bits, 2.0)
    return 2.0 if source.name.endswith(("e2m1", "e3m2", "e5m2")) else 2.2


@pytest.mark.parametrize("source", [t for t in SOURCES if not t.is_table and t.kind != "scale"], ids=str)
def test_no_narrow_type_costs_more_than_its_limit(source: DType) -> None:
    for dest in SIXTEEN:
        rows = [
            r for r in fast_casts(source, dest) if not r.exponent and r.feature in ("", "bf16_arithmetic")
        ]
        if source == dtypes.float8_e4m3:
            assert min(row.cost for row in rows) <= 3.0
            assert (
                min(row.cost for row in fast_casts(source, dtypes.float16) if row.feature == "cvt_fp8")
                <= 0.75
            )
        elif not source.has_nan or source == dtypes.float8_e5m2:
            beyond = source.exponent_bits > 5 or source == dtypes.float7_e5m1
            if not (beyond and dest == dtypes.float16):
                assert min(row.cost for row in rows) <= _limit(source, dest)


@pytest.mark.parametrize("bits", range(1, 9))
def test_signed_integers_cost_what_unsigned_ones_cost(bits: int) -> None:
    for dest in SIXTEEN:
        signed, unsigned = (
            min(row.cost for row in fast_casts(dtypes.dtype(f"{kind}{bits}"), dest))
            for kind in ("int", "uint")
        )
        assert signed == unsigned


def test_what_signed_integers_cost_beside_unsigned_ones_where_the_sign_is_a_bit_of_its_own() -> None:
    """One bit costs less by a table, three bits a quarter more; no other signed integer is as cheap."""
    cost = {
        name: min(row.cost for row in fast_casts(dtypes.dtype(name), dtypes.float8_e4m3))
        for name in ("uint1", "int1", "uint2", "int2", "uint3", "int3")
    }
    assert cost["int1"] < cost["uint1"]
    assert cost["int2"] < 1.3 * cost["uint2"]
    assert cost["int3"] < 1.25 * cost["uint3"]


@pytest.mark.skipif(
    available() is not None, reason="no assembler: pip install nvidia-nvjitlink cuda-bindings"
)
@pytest.mark.parametrize("target", TARGETS)
def test_the_assembler_takes_every_packed_cast(target: str) -> None:
    machine = find_target(target)
    sources = [t for t in SOURCES if t.bits in (1, 3, 4, 8) and not (t.is_float and t.bits == 3)]

    def emit(w: Writer, _: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        total = []
        for source in sources:
            for dest in (*SIXTEEN, dtypes.int8):
                for row in fast_casts(source, dest):
                    if machine.has(row.feature):
                        total += row.emit(w, list(regs[: row.words]))
        mixed = total[0]
        for word in total[1:]:
            mixed = w.binary("xor", mixed, word)
        return (mixed,) * 8

    compile_module(target, dtypes.uint32, dtypes.uint32, 8, emit, check=True)
