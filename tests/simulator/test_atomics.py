"""``atom`` and ``red`` against sequential Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import integers, load, signed, unsigned
from tilus import simulator

PARAMETERS = ".param .u64 cells, .param .u64 values, .param .u64 olds"
BEGIN = """
.reg .b64 %c, %v, %o, %x; .reg .b32 %t, %k;
ld.param.u64 %c, [cells]; ld.param.u64 %v, [values]; ld.param.u64 %o, [olds]; mov.u32 %t, %tid.x;
"""


def run(
    operation: str, bits: int, cells: np.ndarray, values: np.ndarray, keys: int, extra: str = ""
) -> np.ndarray:
    """Thread t applies the operation with values[t] to cell t % keys; returns what each saw before."""
    size = bits // 8
    body = f"""{BEGIN} .reg .b{bits} %b, %d, %e;
    mul.wide.u32 %x, %t, {size}; add.u64 %v, %v, %x; add.u64 %o, %o, %x; ld.global.b{bits} %b, [%v];
    rem.u32 %k, %t, {keys}; mul.wide.u32 %x, %k, {size}; add.u64 %c, %c, %x;
    {extra}
    {operation}
    st.global.b{bits} [%o], %d;
    """
    olds = np.zeros_like(values)
    load(body, PARAMETERS).launch(1, len(values), [cells, values, olds]).raise_if_hazards()
    return olds


def check_chain(
    cells_before: np.ndarray,
    cells_after: np.ndarray,
    values: np.ndarray,
    olds: np.ndarray,
    keys: int,
    step: Callable[[int, int], int],
) -> None:
    """Each cell's old values must be reachable one after the other in some order: here, in order of lanes."""
    for key in range(keys):
        current = int(cells_before[key])
        for t in range(key, len(values), keys):
            assert int(olds[t]) == current
            current = step(current, int(values[t]))
        assert int(cells_after[key]) == current


OPERATIONS: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: unsigned(a + b, n),
    "add.s": lambda a, b, n: unsigned(a + b, n),
    "and": lambda a, b, n: a & b,
    "or": lambda a, b, n: a | b,
    "xor": lambda a, b, n: a ^ b,
    "exch": lambda a, b, n: b,
    "min.u": lambda a, b, n: min(a, b),
    "max.u": lambda a, b, n: max(a, b),
    "min.s": lambda a, b, n: unsigned(min(signed(a, n), signed(b, n)), n),
    "max.s": lambda a, b, n: unsigned(max(signed(a, n), signed(b, n)), n),
    "inc": lambda a, b, n: 0 if a >= b else a + 1,
    "dec": lambda a, b, n: b if a == 0 or a > b else a - 1,
}


@pytest.mark.parametrize("keys", [1, 5, 64])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_integers(name: str, bits: int, keys: int) -> None:
    if name in ("inc", "dec", "add.s") and bits == 64:
        bits = 32
    operation, _, kind = name.partition(".")
    kind = kind or ("b" if operation in ("and", "or", "xor", "exch") else "u")
    before, values = integers(bits, keys, seed=1), integers(bits, 64, seed=2)
    cells = before.copy()
    olds = run(f"atom.global.{operation}.{kind}{bits} %d, [%c], %b;", bits, cells, values, keys)
    check_chain(before, cells, values, olds, keys, lambda a, b: OPERATIONS[name](a, b, bits))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_compare_and_swap(bits: int) -> None:
    before = np.array([3, 7], f"u{bits // 8}")
    values = np.arange(64, dtype=before.dtype)
    cells = before.copy()
    extra = f"mov.b{bits} %e, 3;"
    olds = run(f"atom.global.cas.b{bits} %d, [%c], %e, %b;", bits, cells, values, 2, extra)
    # Only the first lane of cell 0 finds 3; it swaps its own number in.
    assert olds[0] == 3
    assert set(olds[2::2].tolist()) == {0}
    assert set(olds[1::2].tolist()) == {7}
    assert cells.tolist() == [0, 7]


@pytest.mark.parametrize(("bits", "type"), [(32, "f32"), (64, "f64")])
def test_float_addition_is_a_sequence_of_rounded_sums(bits: int, type: str) -> None:
    dtype = f"f{bits // 8}"
    rng = np.random.default_rng(0)
    before, values = rng.standard_normal(3).astype(dtype), rng.standard_normal(64).astype(dtype)
    cells = before.copy()
    olds = run(f"atom.global.add.{type} %d, [%c], %b;", bits, cells, values, 3)
    for key in range(3):
        current = before[key]
        for t in range(key, 64, 3):
            assert olds[t] == current
            current = current + values[t]
        assert cells[key] == current


def test_packed_half_addition() -> None:
    values = np.random.default_rng(0).integers(0, 8, 128).astype(np.float16).view(np.uint32)
    cells = np.zeros(1, np.uint32)
    run("atom.global.add.noftz.f16x2 %d, [%c], %b;", 32, cells, values, 1)
    halves = values.view(np.float16).reshape(-1, 2)
    assert cells.view(np.float16).tolist() == halves.sum(axis=0).tolist()


def test_reductions_in_shared_memory_and_vectors() -> None:
    body = f"""{BEGIN} .shared .align 4 .u32 sum; .reg .pred %p; .reg .b32 %d, %f;
    setp.eq.u32 %p, %t, 0; @%p st.shared.u32 [sum], 0; bar.sync 0;
    red.shared.add.u32 [sum], %t; bar.sync 0;
    @%p ld.shared.u32 %d, [sum]; @%p st.global.u32 [%c], %d;
    cvt.rn.f32.u32 %f, %t; red.global.add.v2.f32 [%v], {{%f, %f}};
    """
    total, vector = np.zeros(1, np.uint32), np.zeros(2, np.float32)
    assert load(body, PARAMETERS).launch(1, 128, [total, vector, vector]).hazards == []
    assert total[0] == sum(range(128))
    assert vector.tolist() == [float(total[0])] * 2


def test_contention_is_counted() -> None:
    body = f"{BEGIN} red.global.add.u32 [%c], 1;"
    cell = np.zeros(1, np.uint32)
    report = load(body, PARAMETERS).launch(2, 64, [cell, cell, cell])
    assert cell[0] == 128
    assert report.counters["atomic_requests"] == 4
    assert report.counters["atomic_conflicts"] == 4 * 31


def test_a_lock_taken_by_every_block_makes_progress() -> None:
    body = f"""{BEGIN} .reg .pred %p; .reg .b32 %d;
    setp.ne.u32 %p, %t, 0; @%p ret;
    spin: atom.global.acquire.gpu.cas.b32 %d, [%c], 0, 1; setp.ne.u32 %p, %d, 0; @%p bra spin;
    ld.global.u32 %d, [%v]; add.u32 %d, %d, 1; st.global.u32 [%v], %d;
    atom.global.release.gpu.exch.b32 %d, [%c], 0;
    """
    lock, counter = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    report = load(body, PARAMETERS).launch(50, 32, [lock, counter, lock])
    assert report.hazards == []
    assert counter[0] == 50


# A 16-bit atomic done by a swap of the word that holds it, as compilers do where the target has none.
HALF_OF_WORD = """
.reg .b64 %c, %w; .reg .b32 %t, %i, %s, %m, %o, %n, %h; .reg .pred %p;
ld.param.u64 %c, [cells]; mov.u32 %t, %tid.x; rem.u32 %i, %t, 3;
mad.wide.u32 %c, %i, 2, %c; and.b64 %w, %c, -4; and.b32 %s, %i, 1; shl.b32 %s, %s, 4; shl.b32 %m, 65535, %s;
LOAD
again:
shr.u32 %h, %o, %s; add.u32 %h, %h, ADDED; shl.b32 %h, %h, %s; and.b32 %h, %h, %m; not.b32 %n, %m; and.b32 %n, %o, %n;
or.b32 %n, %n, %h; TAIL
atom.relaxed.gpu.global.cas.b32 %h, [%w], %o, %n; setp.ne.u32 %p, %h, %o; mov.b32 %o, %h; @%p bra again;
"""
LOADS = ("ld.relaxed.gpu.global.b32 %o, [%w];", "ld.global.b32 %o, [%w];")


@pytest.mark.parametrize("form", LOADS)
@pytest.mark.parametrize("make", [np.array, simulator.device_array])
def test_swaps_of_words_reach_over_the_end_of_an_array_of_halves(make: Any, form: str) -> None:
    """Elements 0 to 2 of three, by threads of two blocks; the host sees the sums."""
    body = HALF_OF_WORD.replace("LOAD", form).replace("ADDED", "5").replace("TAIL", "")
    cells = make([7, 8, 9], np.uint16)
    kernel = load(body, ".param .u64 cells")
    kernel.launch(2, 96, [cells]).raise_if_hazards()
    assert list(cells) == [7 + 320, 8 + 320, 9 + 320]


@pytest.mark.parametrize("make", [np.array, simulator.device_array])
@pytest.mark.parametrize(
    ("load_form", "tail", "what"),
    [
        (LOADS[1], "or.b32 %n, %n, 65536;", "4-byte write of global memory, past the end of"),
        ("ld.global.v2.b16 {%a, %b}, [%w]; mov.b32 %o, {%a, %b};", "", "4-byte read of global memory"),
        ("ld.global.b32 %o, [%w+4];", "", "4-byte read of global memory"),
        (LOADS[1] + "st.global.b32 [%w], %o;", "", "4-byte write of global memory"),
    ],
    ids=["swapped", "vector", "elsewhere", "stored"],
)
def test_other_accesses_over_the_end_of_an_array_of_halves(
    make: Any, load_form: str, tail: str, what: str
) -> None:
    """Only the load and the swap may, and the swap must put back what is not the array's."""
    body = HALF_OF_WORD.replace("LOAD", load_form).replace("ADDED", "5").replace("TAIL", tail)
    body = body.replace("rem.u32 %i, %t, 3;", "mov.u32 %i, 2;").replace(
        ".reg .pred", ".reg .b16 %a, %b; .reg .pred"
    )
    report = load(body, ".param .u64 cells").launch(1, 1, [make([7, 8, 9], np.uint16)])
    assert [(h.kind, what in str(h)) for h in report.hazards] == [("out-of-bounds", True)]
