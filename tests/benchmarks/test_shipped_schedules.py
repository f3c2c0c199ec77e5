"""What ships is swept: a sample of it here, and the parts of the sweep."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tilus.codegen import target  # noqa: E402
from tilus.codegen.assemble import available  # noqa: E402
from tilus.codegen.figures import figures  # noqa: E402
from tilus.ops.defaults.generate import CARDS  # noqa: E402
from tilus.ops.defaults.problems import PROBLEMS  # noqa: E402
from tilus.ops.defaults.tuning import Workshop  # noqa: E402

FOLDER = str(Path(__file__).parents[2] / "benchmarks")
ASSEMBLES = pytest.mark.skipif(
    available() is not None, reason="NVIDIA's assembler has no package for this platform"
)


def module(name: str) -> Any:
    """Import a file of the benchmarks."""
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(FOLDER)


LOOP = """
    ld.global.b32 %r1, [%rd1];
    bra.uni $L__BB0_3;
$L__BB0_2:
    st.global.v2.b32 [%rd4], {%r1, %r2};
    ret;
$L__BB0_3:
    cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;
$L__BB0_4:
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    ld.acquire.gpu.global.b32 %r9, [%rd9];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {..};
    @%p2 bra $L__BB0_4;
    @%p1 bra $L__BB0_3;
    bra.uni $L__BB0_2;
"""


def test_a_working_loop_is_the_innermost_one_wherever_its_blocks_stand() -> None:
    ptx = module("_ptx")
    (inner,) = ptx.working_loops(LOOP)
    assert any("mma.sync" in line for line in inner)
    assert not any("cp.async" in line for line in inner)
    assert ptx.narrow_accesses(inner) == []
    assert ptx.narrow_accesses(LOOP.splitlines()) == ["ld.global.b32", "st.global.v2.b32"]
    # The block at the top of the text belongs to the loop where a way leads through it.
    through = LOOP.replace("    ret;\n", "    bra.uni $L__BB0_4;\n").replace(
        "    @%p2 bra $L__BB0_4;\n    @%p1 bra $L__BB0_3;\n", ""
    )
    (inner,) = ptx.working_loops(through)
    assert ptx.narrow_accesses(inner) == ["st.global.v2.b32"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ld.global.nc.L1::no_allocate.v4.b32 {..}, [%rd1];", []),
        ("@%p1 ld.global.nc.v2.u16 {..}, [%rd1];", ["ld.global.nc.v2.u16"]),
        ("cp.async.ca.shared.global [%r1], [%rd1], 4, %r2;", ["cp.async of 4 bytes"]),
        ("st.global.u8 [%rd1], %r3;", ["st.global.u8"]),
        ("red.release.gpu.global.add.u32 [%rd1], 1;", []),
    ],
)
def test_accesses_of_less_than_16_bytes_are_found(line: str, found: list[str]) -> None:
    assert module("_ptx").narrow_accesses([line]) == found


def test_every_type_form_and_shape_is_among_the_problems() -> None:
    shipped = module("_shipped")
    keys = [key for _, key in shipped.quantized_problems()]
    assert {key["dtype"] for key in keys} == {t.name for t in shipped.WEIGHTS}
    assert len(shipped.WEIGHTS) == 45
    assert {key["m"] for key in keys} >= {1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096}
    assert {key["group"] for key in keys} == {16, 32, 64, 128, 256, -1}
    assert {(key["activations"], key.get("half")) for key in keys} == {
        (16, "float16"), (16, "bfloat16"), ("int8", None), ("float8_e4m3", None),
    }  # fmt: skip
    zero = {key["dtype"] for key in keys if key["zero"]}
    assert zero == {f"uint{bits}" for bits in range(1, 9)}
    products = list(shipped.matmul_problems(target("sm_90a")))
    assert {str(key["dtype"]) for _, key in products} == {
        "torch.float16", "torch.bfloat16", "torch.float32", "torch.int8", "torch.float8_e4m3fn",
    }  # fmt: skip


CASES = {
    "int4": {"code": "int4", "activations": 16, "group": 128, "zero": False},
    "uint3 with zero points, by channel": {"code": "int3", "activations": 16, "group": 64, "zero": True},
    "mxfp4, bfloat16": {
        "code": "float4_e2m1",
        "activations": 16,
        "group": 32,
        "zero": False,
        "half": "bfloat16",
    },
    "int4 by int8": {"code": "int4", "activations": "int8", "group": -1, "zero": False},
}


def specialised(name: str, op: str, form: dict[str, Any], m: int, k: int = 4096) -> Any:
    """Return what an op launches first for its own choice of a schedule."""
    workshop = Workshop(figures(CARDS[name]))
    problem = PROBLEMS[op]
    key = {**form, "m": m, "n": 4096, "k": k}
    schedule = problem.heuristic(key, target(name), workshop.card)
    return next(module("_shipped").launched(workshop, problem, key, schedule))


@ASSEMBLES
@pytest.mark.parametrize("name", sorted(CARDS))
@pytest.mark.parametrize(("form", "m"), [(form, m) for form, m in zip(CASES, (1, 16, 64, 8))])
def test_what_the_heuristic_chooses_is_clean(form: str, m: int, name: str) -> None:
    sweep = module("shipped_schedules")
    subject = specialised(name, "quantized_matmul", CASES[form], m)
    row = sweep.checked(subject)
    row = sweep.simulated(subject, row)
    assert row.faults == []
    assert row.conflicts == 1
    assert 32 < row.registers < 255


@ASSEMBLES
@pytest.mark.parametrize(
    ("name", "dtype", "group", "zero", "more", "m", "k"),
    [
        # Zero points of spans beside the sums of 64 rows.
        ("sm_80", "uint2", 256, True, {"activations": 16}, 128, 14336),
        ("sm_80", "uint6", 128, True, {"activations": 16, "half": "bfloat16"}, 256, 4096),
        ("sm_80", "uint7", 128, True, {"activations": 16, "half": "bfloat16"}, 256, 4096),
        ("sm_89", "uint6", 256, True, {"activations": 16}, 64, 4096),
        # Casts of single elements.
        ("sm_89", "float8_e3m4", 32, False, {"activations": 16, "half": "bfloat16"}, 4, 14336),
        ("sm_89", "float8_e3m4", -1, False, {"activations": 16, "half": "bfloat16"}, 16, 14336),
        # Sums of spans shorter than a unit of k.
        ("sm_80", "float6_e3m2", 32, False, {"activations": "float8_e4m3", "by_block": False}, 64, 4096),
        ("sm_89", "uint3", 64, True, {"activations": "float8_e4m3", "by_block": False}, 64, 4096),
        ("sm_89", "uint1", 32, False, {"activations": "int8", "by_block": False}, 64, 4096),
    ],
)
def test_forms_that_take_many_registers_get_tiles_that_fit(
    name: str, dtype: str, group: int, zero: bool, more: dict[str, Any], m: int, k: int
) -> None:
    """Each of these spills with the tile, or the way to scale, that other forms get for as many rows."""
    code = dtype.replace("uint", "int")
    form = {"code": code, "dtype": dtype, "group": group, "zero": zero, **more}
    row = module("shipped_schedules").checked(specialised(name, "quantized_matmul", form, m, k))
    assert row.faults == []


@ASSEMBLES
@pytest.mark.parametrize("name", sorted(CARDS))
def test_products_of_two_matrices_are_clean(name: str) -> None:
    sweep = module("shipped_schedules")
    subject = specialised(name, "matmul", {"bits": 16, "turned": True, "epilogue": "bias"}, 64)
    row = sweep.simulated(subject, sweep.checked(subject))
    assert row.faults == []
    assert row.conflicts == 1


def test_a_sample_is_the_same_each_time_and_has_each_specialisation_once() -> None:
    shipped = module("_shipped")
    problem = PROBLEMS["quantized_matmul"]
    keys = [{**CASES["int4"], "m": m, "n": 4096, "k": 4096} for m in range(1, 200)]
    picked = [key["m"] for key in keys if shipped.taken(problem, key, 10)]
    assert picked == [key["m"] for key in keys if shipped.taken(problem, key, 10)]
    assert 5 < len(picked) < 40
    assert all(shipped.taken(problem, key, 1) for key in keys)
    found = list(shipped.specialisations("sm_80", [(problem, key, None) for key in keys[:8]]))
    assert len({s.identity for s in found}) == len(found) < 8
    assert not any(s.ships for s in found)
    (known,) = shipped.specialisations("sm_80", [(problem, keys[0], found[0].schedule)])
    assert known.ships
    assert known.identity == found[0].identity


@ASSEMBLES
def test_a_schedule_that_needs_too_many_registers_is_found() -> None:
    """Four warps hold 64 x 256 sums twice over: as they are summed, and scaled."""
    sweep = module("shipped_schedules")
    workshop = Workshop(figures("A100"))
    problem = PROBLEMS["quantized_matmul"]
    key = {**CASES["int4"], "m": 64, "n": 4096, "k": 4096}
    schedule = {
        **problem.heuristic(key, target("sm_80"), workshop.card),
        "block_m": 64,
        "block_n": 256,
        "warps": 4,
    }
    subject = next(module("_shipped").launched(workshop, problem, key, {**schedule, "late": True}))
    assert any("spills" in fault for fault in sweep.checked(subject).faults)


def test_each_kind_of_fault_is_an_exception() -> None:
    sweep = module("shipped_schedules")
    clean = sweep.Row(
        "sm_80", "k", "p", "s", False, registers=90, conflicts=1.0, narrow_outside=("st.global.b32",)
    )
    assert clean.faults == []
    for change in (
        {"spills": 4}, {"stack": 8}, {"warnings": ("C7510",)}, {"narrow": ("ld.global.b32",)}, {"conflicts": 1.01},
        {"failure": "does not compile"},
    ):  # fmt: skip
        assert len(replace(clean, **change).faults) == 1
        assert sweep.summary([clean, replace(clean, **change)], 9)["exceptions"] == 1
    assert sweep.summary([clean], 9)["narrow_outside_the_loop"] == {"k: st.global.b32": 1}
