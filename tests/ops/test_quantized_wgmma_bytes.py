"""The quantised matmul on warpgroups with activations of 8 bits: exact sums, every type, planted mistakes."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ops.support import WEIGHT_TYPES
from tests.ops.test_quantized_bytes import FLOATS, FP8, INTEGERS, random_weight, tokens
from tests.ops.test_quantized_wgmma import HARMLESS, changed
from tilus import dtypes
from tilus.codegen import target
from tilus.codegen.assemble import available
from tilus.dtypes import DType, decode
from tilus.ops import QuantizedWeight, from_codes, gated_pair, quantize, quantized_matmul
from tilus.ops.call import Call
from tilus.ops.quantized_schedule import WeightForm
from tilus.ops.quantized_wgmma import (
    WgmmaSchedule,
    candidates,
    estimate,
    fitting,
    most_rows,
    out_bytes,
    span_of,
    stage_bytes,
    wgmma_schedule,
)
from tilus.ops.quantized_wgmma_call import wgmma_call
from tilus.ops.quantized_wgmma_sums_kernel import row_sums_kernel
from tilus.ops.tokens import QuantizedTokens
from tilus.runtime.kernel import Kernel
from tilus.simulator import Report

TARGET = target("sm_90a")
SMALL = WgmmaSchedule(block_m=16, block_n=128, stages=2)
INT8 = torch.int8
SUMS = "quantized_wgmma_sums_kernel"


def call(
    a: QuantizedTokens,
    weight: QuantizedWeight,
    schedule: WgmmaSchedule,
    *,
    bias: torch.Tensor | None = None,
    activation: str = "",
    processors: int = 2,
) -> tuple[torch.Tensor, Call]:
    """Return where the result goes, and what the op calls for it."""
    (m, _), n = a.values.shape, weight.shape[1]
    out = torch.full((1, m, n // 2 if weight.gated else n), float("nan"), dtype=weight.result)
    found = wgmma_call(
        a.values,
        weight,
        schedule,
        TARGET,
        processors,
        out=out,
        row_scale=a.scale,
        bias=bias,
        activation=activation,
    )
    return out, found


def multiply(
    a: QuantizedTokens,
    weight: QuantizedWeight,
    schedule: WgmmaSchedule,
    kernel: Kernel | None = None,
    **more: Any,
) -> tuple[torch.Tensor, Report]:
    """Run the kernels on the simulator, and return the result with the product's report."""
    parts, found = call(a, weight, schedule, **more)
    if found.before is not None:
        before = found.before
        before.kernel.simulate(*before.arguments, target="sm_90a", **before.options).raise_if_hazards()
    report = (kernel or found.kernel).simulate(*found.arguments, target="sm_90a", **found.options)
    return parts[0], report


def allowed(a: QuantizedTokens, weight: QuantizedWeight, exact: torch.Tensor) -> torch.Tensor:
    """Return by how much results may differ: rounded once to 16 bits, and what cancels leaves of float32's rounding."""
    slack = a.dequantize().abs() @ weight.dequantize().abs() * 2.0**-22
    if weight.zero is not None:
        slack = slack * (1 << weight.dtype.bits)
    return exact.abs() * torch.finfo(weight.result).eps / 2 + slack + 2.0**-24


def check(a: QuantizedTokens, weight: QuantizedWeight, schedule: WgmmaSchedule, **more: Any) -> Report:
    """Multiply and compare with float64."""
    found, report = multiply(a, weight, schedule, **more)
    report.raise_if_hazards()
    exact = a.dequantize() @ weight.dequantize()
    limit = allowed(a, weight, exact)
    assert ((found.double() - exact).abs() <= limit).all()
    # Nothing of this size would pass by chance.
    assert limit.mean() < 0.02 * exact.abs().mean()
    return report


EVERY = [(t, INT8, t.kind == "uint") for t in INTEGERS]
# Of float8 one of each width and kind: how codes lie depends on these; the casts have tests of their own.
EVERY += [(t, FP8, t.kind == "uint") for t in {(t.bits, t.kind): t for t in reversed(FLOATS)}.values()]


@pytest.mark.parametrize(("dtype", "activations", "zero_point"), EVERY, ids=str)
def test_every_type(dtype: DType, activations: torch.dtype, zero_point: bool) -> None:
    weight = random_weight(dtype, 160, 40, 32, activations, zero_point)
    check(tokens(20, 160, activations), weight, WgmmaSchedule(block_m=32, block_n=128, stages=2))


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", False), ("uint5", True), ("uint1", False)])
def test_integer_sums_are_exact(dtype: str, zero_point: bool) -> None:
    """With one scale for all of k nothing is rounded but the result."""
    rng = np.random.default_rng(0)
    m, k, n = 33, 416, 72
    code_type = dtypes.dtype(dtype)
    codes = rng.integers(0, 1 << code_type.bits, (k, n)).astype(np.uint8)
    zero = torch.full((1, n), 7.0).half() if zero_point else None
    ones = torch.ones((1, n), dtype=torch.float16)
    weight = from_codes(codes, code_type, ones, zero, -1, activations=INT8)
    values = torch.from_numpy(rng.integers(-1, 2, (m, k)).astype(np.int8))
    values[:, 12:-3] = 0
    a = QuantizedTokens(values, torch.ones((1, 48)))
    exact = values.long().numpy() @ (decode(codes, code_type).astype(np.int64) - (7 if zero_point else 0))
    assert 4 < np.abs(exact).max() <= 2048
    found, report = multiply(a, weight, SMALL)
    report.raise_if_hazards()
    assert np.array_equal(found.numpy(), exact)


def test_sums_beyond_float32_are_exact_before_they_are_rounded() -> None:
    """127 * 127 * 4096 has 26 bits, of which those of float32 are lost once, not term by term."""
    k = 4096
    codes = np.full((k, 8), 127, np.uint8)
    codes[1::2] = 129  # -127
    ones = torch.ones((1, 8), dtype=torch.float16)
    weight = from_codes(codes, dtypes.int8, ones, None, -1, activations=INT8)
    values = torch.full((1, k), 127, dtype=INT8)
    values[0, 1] = 126
    found, _ = multiply(QuantizedTokens(values, torch.ones((1, 16))), weight, SMALL)
    assert (found == 127).all()


TILES = [
    WgmmaSchedule(block_m=16, block_n=128, stages=2),
    WgmmaSchedule(block_m=48, block_n=256, stages=3, pieces=2),
    WgmmaSchedule(block_m=64, block_n=128, stages=3, pieces=2, stream=True),
    WgmmaSchedule(block_m=64, block_n=256, stages=3, pieces=4),
    WgmmaSchedule(block_m=64, block_n=128, stages=3, pieces=2, cluster_n=2),
]


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype", "group", "activations", "zero_point", "by_block", "tile"),
    [
        (1, 8, 16, "uint4", -1, INT8, True, False, 0),
        (17, 40, 400, "int3", -1, INT8, False, True, 0),
        (17, 136, 272, "float6_e3m2", -1, FP8, False, False, 1),
        (70, 33, 512, "uint7", 256, INT8, True, True, 2),
        (33, 130, 640, "float4_e2m1", 64, FP8, False, True, 2),
        (5, 520, 192, "uint2", 32, INT8, True, False, 3),
        (67, 264, 384, "float8_e4m3", 128, FP8, False, True, 3),
        (40, 333, 256, "uint3", -1, FP8, True, False, 1),
        (100, 264, 272, "ternary", -1, INT8, False, False, 4),
        (70, 260, 256, "uint4", 128, INT8, True, True, 4),
    ],
)
def test_ragged_shapes_groups_and_tiles(
    m: int, n: int, k: int, dtype: str, group: int, activations: torch.dtype, zero_point: bool, by_block: bool,
    tile: int,
) -> None:  # fmt: skip
    weight = random_weight(dtypes.dtype(dtype), k, n, group, activations, zero_point)
    check(tokens(m, k, activations, by_block=by_block), weight, TILES[tile], processors=3)


@pytest.mark.parametrize(
    ("dtype", "scale_dtype", "activations"),
    [
        ("float4_e2m1", "float8_e8m0", FP8),
        ("float4_e2m1", "float8_e4m3", FP8),
        ("uint4", "float8_e8m0", INT8),
    ],
)
def test_scales_stay_as_they_are_stored(dtype: str, scale_dtype: str, activations: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = quantize(torch.randn(256, 136), dtype, 32, scale_dtype=scale_dtype, activations=activations)
    assert weight.scale.element_size() == 1
    check(tokens(40, 256, activations), weight, SMALL)


@pytest.mark.parametrize(("processors", "group"), [(1, 64), (5, -1)])
def test_any_number_of_blocks_takes_all_tiles(processors: int, group: int) -> None:
    """Each block goes through one tile after another, and its copies run ahead from one into the next."""
    weight = random_weight(dtypes.uint4, 256, 264, group, INT8, True)
    check(tokens(40, 256, INT8), weight, SMALL, processors=processors)


@pytest.mark.parametrize("group", [-1, 128])
def test_bias_activation_and_gate_at_the_end(group: int) -> None:
    halves = [random_weight(dtypes.int4, 256, n, group, INT8) for n in (64, 64)]
    weight = gated_pair(halves[0], replace(halves[1], alpha=0.5))
    a, bias = tokens(20, 256, INT8), torch.randn(128).half()
    packed_bias = bias.view(2, 8, 8).transpose(0, 1).reshape(-1)
    found, report = multiply(a, weight, SMALL, bias=packed_bias, activation="silu")
    report.raise_if_hazards()
    gate, up = (a.dequantize() @ weight.dequantize() + bias.double()).chunk(2, dim=1)
    exact = torch.nn.functional.silu(gate) * up
    assert ((found.double() - exact).abs() <= exact.abs() * 2.0**-10 + 1e-3 * exact.abs().mean()).all()


@pytest.mark.parametrize("dtype", ["uint1", "int4", "int8", "float8_e4m3"])
def test_no_bank_conflicts_and_no_byte_too_many(dtype: str) -> None:
    """With one block, each byte of the weight and of the activations comes once; the result is stored in full sectors."""
    m, n, k = 64, 256, 512
    activations = FP8 if dtype.startswith("float") else INT8
    weight = random_weight(dtypes.dtype(dtype), k, n, 128, activations)
    tile = WgmmaSchedule(block_m=64, block_n=256, stages=3)
    counters = check(tokens(m, k, activations), weight, tile, processors=1).counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0
    assert counters["global_store_sectors"] == counters["global_store_sectors_ideal"] > 0
    assert counters["global_bytes_written"] == m * n * 2
    # Factors of blocks of rows come by bulk copies; those of whole rows are loaded by each warp at the end.
    a = tokens(m, k, activations, by_block=True)
    read = check(a, weight, tile, processors=1).counters["global_bytes_read"]
    assert read == weight.packed.nbytes + m * k + weight.scale.nbytes + a.scale.nbytes


def test_blocks_of_a_cluster_share_the_rows_of_activations() -> None:
    """Each reads a half of them for both, so that they come once and not twice."""
    weight, a = random_weight(dtypes.int4, 512, 256, -1, INT8), tokens(32, 512, INT8)
    read = {}
    for cluster in (1, 2):
        schedule = WgmmaSchedule(block_m=32, block_n=128, stages=3, cluster_n=cluster)
        read[cluster] = check(a, weight, schedule).counters["global_bytes_read"]
    assert read[1] - read[2] == a.values.nbytes


@pytest.mark.parametrize(
    ("activations", "group", "below", "beside"), [(INT8, -1, 1, 1), (INT8, 128, 1, 2), (FP8, -1, 2, 1)]
)
def test_clusters_share_tiles(activations: torch.dtype, group: int, below: int, beside: int) -> None:
    """Sums of integers are shared as integers."""
    m, n, k, processors = 33, 500, 1040 if group == -1 else 1024, 7
    weight = random_weight(dtypes.uint4, k, n, group, activations, True)
    schedule = WgmmaSchedule(32, 128, stages=2, cluster_m=below, cluster_n=beside, stream=True)
    division = schedule.division(m, n, k, processors)
    assert division.shared_tiles % division.clusters, "some tile has several shares"
    check(tokens(m, k, activations), weight, schedule, processors=processors)
    _, found = call(tokens(m, k, activations), weight, schedule, processors=processors)
    whole = group == -1 and activations == INT8
    assert found.options["p_dtype"] == (dtypes.int32 if whole else dtypes.float32)


@pytest.mark.parametrize("span", [0, 32, 128])
@pytest.mark.parametrize("dtype", [INT8, FP8])
def test_sums_of_rows(span: int, dtype: torch.dtype) -> None:
    a = tokens(21, 1300, dtype).values
    spans = 11 * (128 // span) if span else 1
    out = torch.full((spans, 24), float("nan"))
    own = dtypes.dtype(dtype)
    row_sums_kernel.simulate(a, out, target="sm_90a", a_dtype=own, span=span).raise_if_hazards()
    wide = torch.nn.functional.pad(a.double(), (0, 11 * 128 - 1300)).reshape(21, spans, -1).sum(2).t()
    limit = 0.0 if dtype == INT8 else 1e-3
    assert (out[:, :21] - wide).abs().max() <= limit < wide.abs().max()


MISTAKES = {
    "the first half's sums are read before the product is done": (
        "one = tilus.dot_wait(one, pending=1)", "one = tilus.dot_wait(one, pending=2)",
    ),
    "the second half's sums are read before the product is done": (
        "two = tilus.dot_wait(two)", "two = tilus.dot_wait(two, pending=1)",
    ),
    "a stage is used before its bytes are there": (
        "tilus.wait(full, phase, index=stage)", "tilus.wait(full, 1 - phase, index=stage)",
    ),
    "a stage is filled while others still read it": (
        "tilus.wait(empty, 1 - phase if stage == 0 else phase, index=before)", "pass",
    ),
    "a stage is free before it has been read": ("release(empty, before,", "release(empty, stage,"),
    "fewer bytes are announced than come": ("prod(buffer.shape[1:])", "prod(buffer.shape[1:]) // 2"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_planted_mistake_is_reported(mistake: str, tmp_path: Path) -> None:
    kernel = changed(*MISTAKES[mistake], tmp_path, SUMS)
    weight = random_weight(dtypes.uint4, 640, 128, 128, INT8)
    _, report = multiply(tokens(60, 640, INT8), weight, SMALL, kernel, processors=1)
    assert report.hazards


@pytest.mark.parametrize("where", list(HARMLESS))
def test_the_copy_for_planted_mistakes_is_right_without_one(where: str, tmp_path: Path) -> None:
    kernel = changed(*HARMLESS[where], tmp_path, SUMS)
    weight = random_weight(dtypes.uint4, 640, 128, 128, INT8)
    _, report = multiply(tokens(60, 640, INT8), weight, SMALL, kernel, processors=1)
    report.raise_if_hazards()


def test_the_row_that_another_half_would_have_is_wrong(tmp_path: Path) -> None:
    """The comparison would see scales that belong to the other columns of a warp."""
    kernel = changed("pairs[:, half : half + 1, :]", "pairs[:, 1 - half : 2 - half, :]", tmp_path, SUMS)
    weight = random_weight(dtypes.uint4, 256, 128, 128, INT8)
    a = tokens(16, 256, INT8)
    found, _ = multiply(a, weight, SMALL, kernel)
    exact = a.dequantize() @ weight.dequantize()
    assert ((found.double() - exact).abs() > allowed(a, weight, exact)).float().mean() > 0.5


FORMS = [
    WeightForm(dtypes.dtype(name), own, group, zero)
    for name, own, group, zero in [
        ("uint1", dtypes.int8, 32, True),
        ("int4", dtypes.int8, 8192, False),
        ("int8", dtypes.int8, 128, False),
        ("float8_e4m3", dtypes.float8_e4m3, 8192, False),
    ]
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.dtype.name)
@pytest.mark.parametrize("by_block", [False, True])
def test_all_candidates_fit(form: WeightForm, by_block: bool) -> None:
    """Stages fit into shared memory, and sums that are scaled and that are not into registers."""
    for m, n in [(17, 4096), (256, 57344), (4096, 8192)]:
        found = list(candidates(m, n, 8192, form, TARGET, 132, by_block=by_block))
        assert found
        for schedule in found:
            taken = schedule.stages * stage_bytes(schedule, form) + out_bytes(schedule, False)
            assert schedule.resident * (taken + 1024) <= 233_472
            assert schedule.block_m <= most_rows(form, 8192, TARGET, by_block)


def test_float8_sums_are_taken_up_in_float32() -> None:
    """The tensor core has fewer bits for them; integers it adds exactly."""
    floats, integers = (WeightForm(dtypes.dtype(n), dtypes.dtype(a), 4096, False) for n, a in
                        (("float8_e4m3", "float8_e4m3"), ("int8", "int8")))  # fmt: skip
    assert span_of(floats, 4096) == 128
    assert span_of(integers, 4096) == 0
    assert span_of(integers, 4096, by_block=True) == 128
    assert span_of(replace(integers, group=64), 4096) == 64


def test_products_of_8_bits_take_half_the_time() -> None:
    """Of those of 16 bits with the same tile, where tensor cores are the limit."""
    cycles = []
    for own in (dtypes.int8, dtypes.float16):
        form = WeightForm(dtypes.int4, own, 8192, False)
        tile = fitting(WgmmaSchedule(128, 256), form, TARGET)
        assert tile is not None
        cycles.append(estimate(tile, 8192, 8192, 8192, form, TARGET, 132))
    assert 0.45 < cycles[0] / cycles[1] < 0.6


def test_few_rows_are_for_mma() -> None:
    form = WeightForm(dtypes.int4, dtypes.int8, 128, False)
    assert wgmma_schedule(16, 4096, 4096, form, TARGET, 132) is None
    assert wgmma_schedule(64, 4096, 4096, form, target("sm_89"), 142) is None
    assert wgmma_schedule(64, 4096, 4096, form, TARGET, 132) is not None


@pytest.mark.parametrize("by_block", [False, True])
def test_the_op_runs_the_kernel(by_block: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tilus.ops.quantized_matmul")
    calls = []
    original = module.wgmma_call
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_90a")
    monkeypatch.setattr(module, "wgmma_call", lambda *a, **o: calls.append(a) or original(*a, **o))
    weight = random_weight(dtypes.uint4, 384, 104, 128, INT8, True)
    a = tokens(22, 384, INT8, by_block=by_block)
    found = quantized_matmul(a, weight)
    assert len(calls) == 1
    exact = a.dequantize() @ weight.dequantize()
    assert ((found.double() - exact).abs() <= allowed(a, weight, exact)).all()


ASSEMBLED = [
    ("uint4", -1, INT8, WgmmaSchedule(128, 256)),
    ("int8", 128, INT8, WgmmaSchedule(96, 256)),
    ("uint3", 32, INT8, WgmmaSchedule(64, 256, cluster_n=2)),
    ("float8_e4m3", -1, FP8, WgmmaSchedule(96, 256)),
    ("float6_e3m2", 128, FP8, WgmmaSchedule(64, 128)),
]


@pytest.mark.skipif(available() is not None, reason="NVIDIA's assembler has no package for this platform")
@pytest.mark.parametrize(("dtype", "group", "activations", "tile"), ASSEMBLED)
def test_the_assembler_spills_and_serialises_nothing(
    dtype: str, group: int, activations: torch.dtype, tile: WgmmaSchedule
) -> None:
    """`benchmarks/quantized_main_loop.py` does the same for every type and counts the loop's instructions."""
    source = dtypes.dtype(dtype)
    weight = random_weight(source, 256, 256, group, activations, source.kind == "uint")
    own = dtypes.dtype(activations)
    schedule = fitting(tile, WeightForm(source, own, weight.group_size, weight.zero is not None), TARGET)
    assert schedule is not None
    _, found = call(tokens(256, 256, activations), weight, schedule)
    made = found.kernel.compile(*found.arguments, target="sm_90a", **found.options)
    assert made.resources is not None
    assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0
    assert made.resources.warnings == ()
    assert made.ptx.count("wgmma.mma_async") == 8
    if group > 0:
        # While the second half of the columns is multiplied, the first half's sums are scaled.
        between = re.findall(
            r"wait_group\.sync\.aligned 1;(.*?)wait_group\.sync\.aligned 0;", made.ptx, re.DOTALL
        )
        assert between
        for text in between:
            assert len(re.findall(r"\b(?:fma|mul|add)\.(?:rn\.)?f32\b", text)) >= tile.block_m // 2
    # Operands of mixed signedness came with PTX ISA 8.4.
    assert f".version {'8.4' if source.kind == 'uint' else '8.0'}" in made.ptx


# To these types no cast is packed.
GENERAL = {("int1", "float8_e4m3"), ("int3", "float8_e4m3"), ("int5", "float8_e4m3")}


def test_the_committed_figures_are_of_all_types_and_integers_are_bound_by_the_tensor_core() -> None:
    """Decoding hides behind products with one scale for each column; with groups the sums' scaling mostly does."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "quantized_main_loop.json"
    rows = [r for r in json.loads(path.read_text(encoding="utf-8")) if "float16" not in r["activations"]]
    found = {(r["dtype"], r["activations"], r["group"]) for r in rows}
    integers = {(t.name, "int8", g) for t in WEIGHT_TYPES if t.is_integer for g in (0, 128)}
    assert integers | {(t.name, "float8_e4m3", g) for t in FLOATS for g in (0, 128)} <= found
    for row in rows:
        own = row["dtype"], row["activations"]
        if own in GENERAL or "int" not in row["dtype"]:
            continue
        assert row["issue"] < (1.5 if row["group"] else 0.9) * row["tensor"], row
        assert row["scaling"] <= (3 if row["group"] else 1), row
