"""Packed casts give, for every code and in every order, what the general path gives."""

from __future__ import annotations

import numpy as np
import pytest
from tests.codegen.harness import assert_same_codes, compile_module, expected_codes, run_codes, run_words, unpack_words, words_of
from tests.codegen.harness import pack_words as natural_words

from tilus import dtypes
from tilus.codegen.casts import Arrangement, cast_elements, element_order, fast_casts, preferred_arrangement, preferred_order
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.target import TARGETS, Target
from tilus.dtypes import DType

CODEBOOK = dtypes.table_type([0.1 * i * i - 7.5 for i in range(16)])
SOURCES = tuple(t for t in (*dtypes.NAMED, CODEBOOK) if t.bits <= 8 and not t.is_boolean)
DESTS = (dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.float8_e4m3, dtypes.float32)
RUN_TARGETS = ("sm_75", "sm_90a")


def casting(source: DType, dest: DType, count: int, order: Arrangement | None = None):  # type: ignore[no-untyped-def]
    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return cast_elements(w, target, source, dest, regs, count, order)

    return emit


def some_codes(source: DType, count: int, threads: int = 128) -> np.ndarray:
    """Every code at every position of a thread's elements, and random ones."""
    rng = np.random.default_rng(source.bits)
    all_codes = np.arange(1 << source.bits)
    rotated = (all_codes[:, None] + np.arange(count)) & source.code_mask
    random = rng.integers(0, 1 << source.bits, (threads, count))
    return np.concatenate([rotated, random]).astype(source.code_numpy)


@pytest.mark.parametrize("target", RUN_TARGETS)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_cast_in_natural_order_is_exact(source: DType, target: str) -> None:
    for dest in DESTS:
        if source == dest:
            continue
        count = 32
        codes = some_codes(source, count)
        made = run_codes(target, source, dest, codes, casting(source, dest, count), count)
        assert_same_codes(made, expected_codes(source, dest, codes.reshape(-1)), dest, codes)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_a_cast_in_its_preferred_arrangement_is_exact(source: DType) -> None:
    for target in ("sm_80",):
        for dest in DESTS:
            arrangements = {row.arrangement for row in fast_casts(source, dest) if row.arrangement is not None}
            for arrangement in arrangements:
                count = 2 * arrangement.elements
                codes = some_codes(source, count)
                stored = arrangement.store(natural_words(codes, source))
                ptx = compile_module(target, source, dest, count, casting(source, dest, count, arrangement), check=False)
                made = unpack_words(run_words(ptx, stored, words_of(dest, count)), dest, count).reshape(-1)
                assert_same_codes(made, expected_codes(source, dest, codes.reshape(-1)), dest, codes)
