"""Casts that leave an offset in what they make: the offset is what a code of zero becomes, and nothing else is added."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilus
from tests.codegen.harness import compile_module
from tests.codegen.test_casts_fast import run_stored, some_codes
from tilus import dtypes
from tilus.codegen.casts import biased_cast, cast_stored, element_order, fast_casts, stored_arrangement
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.target import Target
from tilus.dtypes import DType
from tilus.errors import TypeMismatch

INTEGERS = [dtypes.dtype(f"{kind}{bits}") for kind in ("uint", "int") for bits in range(1, 9)]
SIXTEEN = (dtypes.float16, dtypes.bfloat16)
PAIRS = [(s, d) for s in INTEGERS for d in SIXTEEN if biased_cast(s, d)]
# The exponent that their stored order is for takes a bit that an offset needs.
WITHOUT = [(s, dtypes.bfloat16) for s in INTEGERS if s.bits in (4, 8)]


def made_of(source: DType, dest: DType, codes: np.ndarray) -> np.ndarray:
    """Return what the cast makes of stored codes, as float64."""
    count = codes.shape[1]

    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return cast_stored(w, target, source, dest, regs, count, biased=True)

    order = stored_arrangement(source, dest) or element_order(source.bits, tuple(range(32)))
    made = run_stored("sm_80", source, dest, codes, order, emit)
    return dtypes.decode(made, dest).astype(np.float64).reshape(codes.shape)


def length(source: DType, dest: DType) -> int:
    row = biased_cast(source, dest)
    assert row is not None
    return max(32, row.elements)


@pytest.mark.parametrize(("source", "dest"), PAIRS, ids=str)
def test_the_offset_is_what_a_code_of_zero_becomes(source: DType, dest: DType) -> None:
    codes = some_codes(source, length(source, dest))
    offsets = made_of(source, dest, np.zeros_like(codes[:1]))
    values = dtypes.decode(codes, source).astype(np.float64)
    np.testing.assert_array_equal(made_of(source, dest, codes) - offsets, values)


@pytest.mark.parametrize(("source", "dest"), PAIRS, ids=str)
def test_column_blocks_of_a_unit_have_the_same_offsets(source: DType, dest: DType) -> None:
    """A thread's codes of a unit are, at each step of k, two pairs for each of four blocks of columns."""
    offsets = made_of(source, dest, np.zeros((1, 128), source.code_numpy)).reshape(8, 4, 4)
    np.testing.assert_array_equal(offsets, np.broadcast_to(offsets[:, :1], offsets.shape))
    np.testing.assert_array_equal(offsets[..., 0::2], offsets[..., 1::2])


@pytest.mark.parametrize(("source", "dest"), PAIRS, ids=str)
def test_offsets_are_not_large_beside_the_numbers(source: DType, dest: DType) -> None:
    """A sum in single precision loses as many of its 24 bits as the offsets have more than the numbers."""
    offsets = made_of(source, dest, np.zeros((1, length(source, dest)), source.code_numpy))
    assert offsets.max() <= 2.0 ** max(source.bits + 6, 10) + 2.0 ** (source.bits - 1)
    assert offsets.min() >= 2.0**source.bits


@pytest.mark.parametrize(("source", "dest"), PAIRS, ids=str)
def test_it_costs_half_an_instruction_less(source: DType, dest: DType) -> None:
    row, arrangement = biased_cast(source, dest), stored_arrangement(source, dest)
    assert row is not None
    assert row.arrangement == arrangement
    whole = min(r.cost for r in fast_casts(source, dest) if r.arrangement == arrangement)
    assert row.cost == whole - 0.5


@pytest.mark.parametrize(("source", "dest"), WITHOUT, ids=str)
def test_there_is_none_where_the_stored_order_has_no_room(source: DType, dest: DType) -> None:
    assert biased_cast(source, dest) is None

    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return cast_stored(w, target, source, dest, regs, 32, biased=True)

    with pytest.raises(TypeMismatch, match=rf"no cast of {source} to bfloat16 over 2\*\*0 leaves an offset"):
        compile_module("sm_80", source, dest, 32, emit)


def test_an_offset_and_an_exponent_exclude_each_other() -> None:
    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return cast_stored(w, target, dtypes.uint4, dtypes.float16, regs, 32, exponent=3, biased=True)

    with pytest.raises(TypeMismatch, match=r"no cast of uint4 to float16 over 2\*\*3 leaves an offset"):
        compile_module("sm_80", dtypes.uint4, dtypes.float16, 32, emit)


@pytest.mark.parametrize("source", [dtypes.float6_e3m2, dtypes.nf4, dtypes.ternary], ids=str)
def test_what_is_no_integer_has_none(source: DType) -> None:
    assert all(biased_cast(source, dest) is None for dest in SIXTEEN)


@tilus.kernel
def careless(out: tilus.Tensor[tilus.float16, "n"]) -> None:
    tilus.grid(1, warps=1)
    codes = tilus.arange(128, dtype=tilus.uint8)
    tilus.store(out, tilus.cast(codes, tilus.float16, biased=True), 0)


def test_only_codes_that_lie_arranged_keep_offsets() -> None:
    with pytest.raises(TypeMismatch, match="only a cast of arranged codes leaves an offset") as caught:
        careless.compile(torch.zeros(128, dtype=torch.float16), target="sm_80")
    assert "biased=False" in str(caught.value)
