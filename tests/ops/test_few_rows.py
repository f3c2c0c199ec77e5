"""The schedules of products of few rows: every multiprocessor has its share, with enough bytes under way."""

from __future__ import annotations

import itertools

import pytest
import torch

from tilus import dtypes
from tilus.codegen import TARGETS, target
from tilus.ops import quantize, quantized_matmul
from tilus.ops.few_rows import (
    MOST_ROWS,
    block_bytes,
    candidates,
    estimate,
    few_rows_schedule,
    parts_of,
    shares,
    step_bytes,
    step_instructions,
)
from tilus.ops.prepack import UNIT_K, UNIT_N
from tilus.ops.quantized_matmul import call_of
from tilus.ops.quantized_schedule import choose
from tilus.ops.quantized_tiles import Schedule, WeightForm, fits_deep, packed_cost

HOPPER, PROCESSORS = target("sm_90a"), 132
# Columns and rows of the layers of Llama-3 8B and 70B and Qwen2.5-32B, and of the papers' matrix.
LAYERS = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672),
    (7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648),
]  # fmt: skip
FORMS = [
    WeightForm(dtypes.dtype(name), dtypes.float16, group, zero)
    for name, group, zero in [("uint8", 128, True), ("uint4", 128, True), ("int4", -1 % (1 << 30), False), ("uint2", 64, True)]
]  # fmt: skip


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype.name)
def test_multiprocessors_have_equal_shares(form: WeightForm, m: int) -> None:
    """At least 84 percent of the busiest one's, where it has eight steps or more; else as many as steps allow."""
    for n, k in LAYERS:
        schedule = few_rows_schedule(m, n, k, form, HOPPER, PROCESSORS)
        steps, most, _ = shares(schedule, n, k, form, HOPPER, PROCESSORS)
        mean = -(-n // schedule.block_n) * steps / PROCESSORS
        assert mean / most >= (0.84 if mean > 7 else 0.7), (n, k, schedule)


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype.name)
def test_enough_bytes_are_under_way(form: WeightForm, m: int) -> None:
    """By Little's law 4.8 TB/s times some 800 ns, of which each multiprocessor has 29 KB; or all that it has."""
    for n, k in LAYERS:
        schedule = few_rows_schedule(m, n, k, form, HOPPER, PROCESSORS)
        _, most, resident = shares(schedule, n, k, form, HOPPER, PROCESSORS)
        weights, _ = step_bytes(schedule, m, form)
        assert min(resident * (schedule.stages - 1), most) * weights >= 29_000 or m * n * k < 2**25, (
            n,
            k,
            schedule,
        )


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_shape_has_a_schedule_that_fits(name: str) -> None:
    machine = TARGETS[name]
    sizes = [(1, 1), (40, 17), (64, 256), (100, 1152), (4096, 4096), (57344, 8192)]
    for (n, k), bits, group, m in itertools.product(sizes, (1, 4, 8), (16, 128, 8192), (1, 9, MOST_ROWS)):
        form = WeightForm(dtypes.dtype(f"uint{bits}"), dtypes.float16, group, True)
        for processors in (1, 132):
            schedule = few_rows_schedule(m, n, k, form, machine, processors)
            assert block_bytes(schedule, form, machine) <= machine.shared_bytes
            assert schedule.block_m >= m
            assert schedule.deep == 1 or fits_deep(group, k, schedule.deep)
            assert schedule.block_n % (UNIT_N * schedule.warps // schedule.deep) == 0
            assert schedule.splits == 1 or not schedule.blocks
            assert choose(m, n, k, form, machine, processors).schedule == schedule


@pytest.mark.parametrize(
    ("dtype", "group", "zero_point", "schedule"),
    [
        ("int8", 64, False, Schedule(block_n=256, stages=3, late=True)),
        ("uint4", 128, True, Schedule(block_m=8, block_n=64, deep=2, stages=5, swap=True, late=True)),
        ("int4", -1, False, Schedule(block_n=64, deep=4, stages=2, late=True)),
        ("nf4", 64, False, Schedule(stages=3, late=True)),
    ],
)
@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
def test_a_block_has_the_shared_memory_that_is_counted(
    dtype: str, group: int, zero_point: bool, schedule: Schedule, name: str
) -> None:
    machine = target(name)
    weight = quantize(torch.randn(512, 256), dtype, group, zero_point=zero_point)
    form = WeightForm(weight.dtype, dtypes.float16, group if group > 0 else 512, zero_point)
    made = call_of(torch.randn(schedule.block_m, 512).half(), weight, schedule, machine)
    taken = made.kernel.compile(*made.arguments, target=name, **made.options).shared_bytes
    counted = block_bytes(schedule, form, machine)
    assert counted - 8192 < taken <= counted


def test_the_result_of_the_deepest_pipeline_has_room_too() -> None:
    """With 8-bit weights and 256 columns, stages alone would fill the memory."""
    torch.manual_seed(0)
    weight, a = quantize(torch.randn(128, 192) / 11, "int8", 64), torch.randn(14, 128).half()
    expected = a.double() @ weight.dequantize().double()
    assert (quantized_matmul(a, weight).double() - expected).abs().max() < 2e-3 * expected.abs().max()


def test_the_least_estimate_is_chosen() -> None:
    form = FORMS[1]
    found = {
        s: estimate(s, 8, 4096, 4096, form, HOPPER, PROCESSORS)
        for s in candidates(8, 4096, 4096, form, HOPPER, 132)
    }
    chosen = few_rows_schedule(8, 4096, 4096, form, HOPPER, PROCESSORS)
    assert found[chosen] == min(found.values())
    assert max(found.values()) > 1.5 * found[chosen]


def test_narrow_tiles_are_not_for_many_rows() -> None:
    """Each block reads all rows of its part of k: beside narrow columns that is more than the weights."""
    for form in FORMS:
        schedule = few_rows_schedule(16, 4096, 4096, form, HOPPER, PROCESSORS)
        weights, rows = step_bytes(schedule, 16, form)
        assert rows <= 2.1 * weights


def test_what_is_added_up_is_counted() -> None:
    form = FORMS[1]
    made = {parts_of(s, 4096, 4096) for s in candidates(8, 4096, 4096, form, HOPPER, PROCESSORS)}
    assert 1 in made
    assert max(made) > 2


def test_the_estimate_of_instructions_is_near_the_machine_code() -> None:
    """As `benchmarks/results/issue_slots.json` has them for uint4, float4_e2m1 and int8 activations."""
    import json
    from pathlib import Path

    path = Path(__file__).parents[2] / "benchmarks" / "results" / "issue_slots.json"
    for row in json.loads(path.read_text(encoding="utf-8"))["sm_90a"]:
        if row["dtype"] not in ("uint2", "uint4", "float4_e2m1"):
            continue
        group = row["group"] if row["group"] > 0 else 8192
        form = WeightForm(
            dtypes.dtype(row["dtype"]), dtypes.dtype(row["activations"]), group, row["zero_point"]
        )
        columns, whole, late = row["columns"], row["group"] < 0, form.dtype.is_integer
        instructions = step_instructions(8 if row["m"] <= 8 else 16, columns, late, whole, form, HOPPER)
        found = instructions / (UNIT_K * columns / 32)
        assert 0.7 <= found / row["slots"] <= 1.3, (row, found)


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3"])
def test_weights_of_the_activations_type_need_no_cast(dtype: str, name: str) -> None:
    """They are operands as they are: a step has fewer instructions than one with any cast."""
    own, machine = dtypes.dtype(dtype), target(name)
    same, cast = (WeightForm(weight, own, 128, False) for weight in (own, dtypes.float4_e2m1))
    assert packed_cost(same, machine) == 0
    assert step_instructions(16, 32, True, False, same, machine) < step_instructions(
        16, 32, True, False, cast, machine
    )
