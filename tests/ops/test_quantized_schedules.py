"""What the schedules for few rows compile to: no spills, wide accesses, no conflicts, and few instructions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.test_generated_code import (
    ASSEMBLES,
    TARGETS,
    check_global_accesses,
    check_no_conflicts,
    check_resources,
)
from tilus.codegen import target
from tilus.dtypes import float16, int8
from tilus.ops import QuantizedWeight, quantize, quantize_tokens
from tilus.ops.quantized_matmul import Call, call_of
from tilus.ops.quantized_schedule import Schedule, WeightForm, choose, fitting, scales_late

FP8 = torch.float8_e4m3fn
SWAP = Schedule(block_m=8, swap=True, late=True)
DEEP = Schedule(block_m=8, block_n=32, deep=4, stages=2, swap=True, late=True)
CASES = {
    "weights first": ("uint4", None, 64, True, SWAP),
    "weights first, wide": ("uint2", None, 128, True, Schedule(block_m=8, block_n=256, swap=True, late=True)),
    "weights first, scaled": ("float6_e3m2", None, 32, False, Schedule(block_m=8, swap=True)),
    "weights first, shared": ("uint3", None, 128, True, DEEP),
    "weights second": ("nf4", None, 128, False, Schedule(late=True)),
    "weights second, shared": ("uint4", None, -1, True, Schedule(block_n=64, deep=2, stages=2, late=True)),
    "bytes": ("int4", torch.int8, 64, False, Schedule(late=True)),
    "bytes first": ("uint1", torch.int8, -1, True, SWAP),
    "bytes first, shared": ("uint4", torch.int8, 128, True, DEEP),
    "small floats": ("float4_e2m1", FP8, 32, False, Schedule(block_m=32, stages=2, late=True)),
}


def call(name: str, machine: str, *, k: int = 512, n: int = 256) -> Call:
    """Return the kernel's call of a case, for as many rows as its tile has."""
    dtype, activations, group, zero_point, schedule = CASES[name]
    torch.manual_seed(0)
    weight = quantize(torch.randn(k, n), dtype, group, zero_point=zero_point, activations=activations)
    rows = torch.randn(schedule.block_m, k).half()
    if activations is None:
        return call_of(rows, weight, schedule, target(machine))
    tokens = quantize_tokens(rows, activations)
    return call_of(tokens.values, weight, schedule, target(machine), row_scale=tokens.scale)


@ASSEMBLES
@pytest.mark.parametrize("machine", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_no_spills_and_wide_accesses(name: str, machine: str) -> None:
    made = call(name, machine, k=256)
    compiled = made.kernel.compile(*made.arguments, target=machine, **made.options)
    check_resources(compiled)
    # Values of each column or row are read once a block, after the loop, which begins by waiting for copies.
    waits = "mbarrier.try_wait" if "cp.async.bulk" in compiled.ptx else "cp.async.wait_group"
    loop = compiled.ptx[compiled.ptx.index(waits) :] if CASES[name][2] != -1 else ""
    check_global_accesses("\n".join(line for line in loop.splitlines() if "ld.global" not in line))
    assert "ldmatrix" in compiled.ptx


@pytest.mark.parametrize("name", CASES)
def test_no_conflicts(name: str) -> None:
    made = call(name, "sm_90a")
    report = made.kernel.simulate(*made.arguments, target="sm_90a", **made.options)
    report.raise_if_hazards()
    check_no_conflicts(report)


@pytest.mark.parametrize(("m", "dtype"), [(16, "uint4"), (8, "uint2"), (16, "int8")])
def test_what_comes_from_memory_is_what_there_is(m: int, dtype: str) -> None:
    """At the aspect of 16 x 57344 x 8192, within 3 percent: only the rows of a are read more than once."""
    n, k = 896, 512
    torch.manual_seed(0)
    weight = quantize(torch.randn(k, n), dtype, 128)
    form = WeightForm(weight.dtype, float16, 128, weight.zero is not None)
    schedule = choose(m, n, k, form, target("sm_90a"), 1).schedule
    made = call_of(torch.randn(m, k).half(), weight, schedule, target("sm_90a"))
    counters = made.kernel.simulate(*made.arguments, target="sm_90a", **made.options).counters
    weights = k * n * weight.bits_per_weight / 8
    least = weights + m * k * 2
    assert counters["global_distinct_bytes_read"] <= 1.03 * least
    assert counters["global_distinct_bytes_written"] == m * n * 2
    blocks = -(-n // schedule.block_n)
    assert counters["global_bytes_read"] <= 1.03 * (weights + blocks * m * k * 2)


def issue_slots() -> object:
    """Import the benchmark that counts."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("issue_slots")
    finally:
        sys.path.remove(folder)


@ASSEMBLES
@pytest.mark.parametrize(
    ("dtype", "activations", "m", "group", "zero_point", "share"),
    [
        ("uint4", "float16", 16, 128, True, 0.85),
        ("uint3", "float16", 8, 128, True, 0.85),
        ("float4_e2m1", "bfloat16", 8, 128, False, 0.85),
        ("uint2", "float16", 8, 128, True, 0.7),
        ("uint1", "int8", 8, 128, True, 0.7),
        ("uint1", "int8", 16, -1, True, 0.7),
    ],
)
def test_issue_slots_suffice_for_the_memory(
    dtype: str, activations: str, m: int, group: int, zero_point: bool, share: float
) -> None:
    """Of an H200's rate: 85 percent from 3 bits on, 70 percent for 2 bits, and for 1 bit with activations of 8."""
    module = issue_slots()
    nvdisasm = module.find_nvdisasm()  # type: ignore[attr-defined]
    if nvdisasm is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    row = module.measure(module.Case(dtype, activations, m, group, zero_point), "sm_90a", nvdisasm)  # type: ignore[attr-defined]
    assert row.share >= share
    assert row.spills == 0
    assert 0.5 < row.slots < 4


def form_of(weight: QuantizedWeight) -> WeightForm:
    return WeightForm(weight.dtype, float16, weight.group_size, weight.zero is not None)


def test_small_floats_are_scaled_before_the_tensor_core_sees_them() -> None:
    """Their cast leaves a power of two out, and what is left may be subnormal."""
    for name, late in (("float4_e2m1", False), ("float8_e4m3", False), ("uint4", True), ("nf4", True)):
        form = form_of(quantize(torch.randn(128, 8), name, 128))
        assert scales_late(SWAP, 4096, form) == late
    few = WeightForm(form.dtype, int8, 32, False)
    assert scales_late(SWAP, 4096, few)


def test_schedules_fit_the_shared_memory_of_every_target() -> None:
    from tilus.codegen import TARGETS as ALL
    from tilus.ops.quantized_schedule import stage_bytes

    for machine in ALL.values():
        for name in ("uint8", "uint1"):
            form = form_of(quantize(torch.randn(128, 8), name, 32))
            for m in (1, 16, 32, 64, 4096):
                schedule = choose(m, 4096, 4096, form, machine, 132).schedule
                assert schedule.stages * stage_bytes(schedule, form) <= machine.shared_bytes
    small = fitting(Schedule(block_m=64, stages=9), form, ALL["sm_75"])
    assert small.stages * stage_bytes(small, form) <= ALL["sm_75"].shared_bytes
    whole = Schedule(block_m=64, stages=3)
    assert fitting(whole, form, ALL["sm_90a"]) == whole
