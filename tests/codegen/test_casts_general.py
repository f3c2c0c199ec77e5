"""The general path of casts gives, for every pair of dtypes, what encoding the decoded values gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.harness import (
    assert_same_codes,
    compile_module,
    expected_codes,
    run_codes,
    run_words,
    unpack_words,
)
from tilus import dtypes
from tilus.codegen.casts.encode import encode
from tilus.codegen.casts.general import cast_element
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.registers import pack, unpack
from tilus.codegen.target import Target
from tilus.dtypes import DType

CODEBOOK = dtypes.table_type([0.1, -3.0, 7.25, 1e9, -0.1, 0.3, 2.0**-30, 255.5])
ALL = (*dtypes.NAMED, CODEBOOK)
NARROW = tuple(t for t in ALL if t.bits <= 8 and not t.is_boolean)
WIDE_FLOATS = (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.tfloat32, dtypes.float64)


def general(source: DType, dest: DType, count: int):  # type: ignore[no-untyped-def]
    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        elements = unpack(w, source, regs, count)
        return pack(w, dest, [cast_element(w, target, source, dest, e) for e in elements])

    return emit


def interesting(source: DType, seed: int = 0) -> np.ndarray:
    """All codes of a type of at most 16 bits; for the others ends, special values, neighbours and random codes."""
    if source.is_boolean:
        return np.array([0, 1], np.uint8)
    if source.bits <= 16:
        return np.arange(1 << source.bits).astype(source.code_numpy)
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, source.code_mask, 400, np.uint64, endpoint=True)]
    if source.is_integer:
        powers = np.uint64(1) << np.arange(source.bits, dtype=np.uint64)
        near = np.concatenate([powers + np.uint64(d) for d in (0, 1, 2, 3)] + [powers - np.uint64(1)])
        # Halves of the last place of float32, float16 and bfloat16, and what lies beside them.
        tails = [powers >> np.uint64(s) for s in (8, 9, 11, 24, 53)]
        halves = np.concatenate([(powers | tail) + np.uint64(d) for tail in tails for d in (0, 1)])
        codes += [near, -near.astype(np.int64).view(np.uint64), halves, ~halves]
    else:
        for narrow in (*NARROW, dtypes.float16, dtypes.bfloat16, dtypes.int16, dtypes.int32, dtypes.int64):
            codes.append(_around(narrow, source))
    every = np.concatenate([np.asarray(c, np.uint64) for c in codes]) & np.uint64(source.code_mask)
    return every.astype(source.code_numpy)


def _around(narrow: DType, source: DType) -> np.ndarray:
    """The values of a narrow type, their midpoints and the source's neighbours of both."""
    if narrow.bits <= 8:
        values = dtypes.decode(np.arange(1 << narrow.bits), narrow).astype(np.float64)
    else:
        values = np.array([float(narrow.max), float(narrow.min), 0.5, 1.5, 2.5])
    values = np.unique(values[np.isfinite(values)])
    if values.size > 64:
        values = np.concatenate(
            [values[:12], values[values.size // 2 - 20 : values.size // 2 + 20], values[-12:]]
        )
    middles = (values[1:] + values[:-1]) / 2
    # Beyond the largest value lies the midpoint to what would come next.
    above, below = values[-1] + (values[-1] - values[-2]) / 2, values[0] - (values[1] - values[0]) / 2
    beyond = np.array([above, below, 1e38, -1e38])
    points = np.concatenate([values, middles, beyond])
    codes = dtypes.encode(points, source).astype(np.uint64)
    special = dtypes.encode(np.array([np.inf, -np.inf, np.nan, 0.0, -0.0]), source).astype(np.uint64)
    step = np.uint64(1 << source.unused_bits)
    return np.concatenate([codes, codes + step, codes - step, special])


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "e3m2", "e2m3", "e1m2", "e3m0", "e7m0", "e3m4"])
def test_rounding_at_random_is_up_where_the_random_bits_are_less(name: str) -> None:
    dest = dtypes.dtype(name)

    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return pack(w, dest, [encode(w, dest, regs[0], w.convert("bitcast", regs[1], "i32"))])

    rng = np.random.default_rng(1)
    top = min(float(dest.max), 1e30)
    points = np.concatenate([
        rng.uniform(-top, top, 3000), rng.uniform(-1, 1, 3000) * dest.smallest_normal * 2,
        np.ldexp(rng.uniform(1, 2, 2000), rng.integers(-40, 20, 2000)) * dest.smallest_subnormal,
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45],
    ])  # fmt: skip
    values = points.astype(np.float32)
    random = rng.integers(0, 1 << 32, values.size, np.uint32)
    random[: values.size // 4] >>= 12
    words = np.stack([values.view(np.uint32), random], axis=1)
    ptx = compile_module("sm_80", dtypes.float32, dest, 2, emit, check=False)
    made = unpack_words(run_words(ptx, words, 1), dest, 1).reshape(-1)
    expected = dtypes.encode(values, dest, random=random / 2.0**32)
    np.testing.assert_array_equal(made, expected)


def pairs() -> list[tuple[DType, DType]]:
    """Every narrow type with every other one, and each type with each wide one, thinned so that all stay covered."""
    chosen = []
    for i, source in enumerate(ALL):
        for j, dest in enumerate(ALL):
            both_narrow = source.bits <= 8 and dest.bits <= 8
            if source == dest or (both_narrow and (i + j) % 5):
                continue
            chosen.append((source, dest))
    return chosen


@pytest.mark.parametrize("source", ALL, ids=str)
def test_every_code_casts_as_encoding_its_value(source: DType) -> None:
    codes = interesting(source)
    for _, dest in (pair for pair in pairs() if pair[0] == source):
        made = run_codes("sm_90a", source, dest, codes, general(source, dest, 1), 1)
        assert_same_codes(made, expected_codes(source, dest, codes), dest, codes)
