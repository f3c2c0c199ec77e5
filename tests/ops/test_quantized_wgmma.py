"""The quantised matmul on warpgroups: right with every check on, and planted mistakes that the checks report."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.ops.support import FLOATS, WEIGHT_TYPES, check_product, finite_codes, in_activations_type
from tilus import dtypes
from tilus.codegen import target
from tilus.codegen.assemble import available
from tilus.dtypes import DType
from tilus.ops import QuantizedWeight, from_codes, gated_pair, quantize, quantized_matmul
from tilus.ops.quantized_schedule import WeightForm
from tilus.ops.quantized_wgmma import (
    WgmmaSchedule,
    candidates,
    estimate,
    fitting,
    heights,
    out_bytes,
    stage_bytes,
    wgmma_schedule,
)
from tilus.ops.quantized_wgmma_call import wgmma_call
from tilus.ops.quantized_wgmma_kernel import quantized_wgmma_kernel
from tilus.ops.schedules import fits_bulk_copies
from tilus.runtime.kernel import Kernel
from tilus.simulator import Report

TARGET = target("sm_90a")
SMALL = WgmmaSchedule(block_m=16, block_n=128, stages=2)


def form_of(weight: QuantizedWeight) -> WeightForm:
    own = dtypes.dtype(weight.scale.dtype)
    return WeightForm(weight.dtype, own, weight.group_size, weight.zero is not None)


def call(
    a: torch.Tensor,
    weight: QuantizedWeight,
    schedule: WgmmaSchedule,
    *,
    bias: torch.Tensor | None = None,
    activation: str = "",
    processors: int = 2,
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return where the result goes, and what the op calls the kernel with for it."""
    m, n = a.shape[0], weight.shape[1]
    parts = torch.full((1, m, n // 2 if weight.gated else n), float("nan"), dtype=a.dtype)
    made = wgmma_call(a, weight, schedule, TARGET, processors, out=parts, bias=bias, activation=activation)
    return parts, made.arguments, made.options


def multiply(
    a: torch.Tensor,
    weight: QuantizedWeight,
    schedule: WgmmaSchedule,
    kernel: Kernel | None = None,
    **more: Any,
) -> tuple[torch.Tensor, Report]:
    """Run the kernel on the simulator, and return the result with the report."""
    parts, arguments, options = call(a, weight, schedule, **more)
    report = (kernel or quantized_wgmma_kernel).simulate(*arguments, target="sm_90a", **options)
    return parts[0], report


def by_torch(a: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """Return the product as torch has it in the activations' type."""
    return a @ in_activations_type(weight)


def check(a: torch.Tensor, weight: QuantizedWeight, schedule: WgmmaSchedule, **more: Any) -> Report:
    """Multiply and compare with float64 of the dequantised weight."""
    found, report = multiply(a, weight, schedule, **more)
    report.raise_if_hazards()
    check_product(found, a.double() @ weight.dequantize(), by_torch(a, weight))
    return report


def random_weight(
    dtype: str,
    k: int,
    n: int,
    group: int = 128,
    *,
    zero_point: bool = False,
    own: torch.dtype = torch.float16,
) -> QuantizedWeight:
    torch.manual_seed(0)
    return quantize(torch.randn(k, n), dtype, group, zero_point=zero_point, scale_dtype=own)


COMMON = ["float8_e4m3", "float8_e5m2", "float6_e3m2", "float6_e2m3", "float4_e2m1", "nf4", "ternary"]
EVERY = [(t, False, torch.float16) for t in WEIGHT_TYPES]
EVERY += [(t, True, torch.float16) for t in WEIGHT_TYPES if t.kind == "uint"]
# Of bfloat16 those that people have; the op's own tests take all of them.
EVERY += [(t, t.kind == "uint", torch.bfloat16) for t in WEIGHT_TYPES if t.is_integer or t.name in COMMON]


@pytest.mark.parametrize(("dtype", "zero_point", "activations"), EVERY, ids=str)
def test_every_code_of_every_type(dtype: DType, zero_point: bool, activations: torch.dtype) -> None:
    """The rows of the identity pick single weights, so the result is exact."""
    rng = np.random.default_rng(0)
    k, n, group = 128, 40, 32
    codes = rng.choice(finite_codes(dtype, activations), (k, n))
    scale = torch.from_numpy(rng.uniform(0.25, 1.0, (k // group, n))).to(activations)
    zero = None
    if zero_point:
        zero = torch.from_numpy(rng.integers(0, 1 << dtype.bits, (k // group, n))).to(activations)
    weight = from_codes(codes, dtype, scale, zero, group)
    schedule = WgmmaSchedule(block_m=64, block_n=128, stages=2)
    found, report = multiply(torch.eye(k, dtype=activations), weight, schedule)
    report.raise_if_hazards()
    assert torch.equal(found, in_activations_type(weight))


@pytest.mark.parametrize("own", FLOATS, ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_zero_points_of_long_groups_cost_no_precision(bits: int, own: torch.dtype) -> None:
    """Whole numbers and halves are exact as before; others are rounded no worse than by subtracting them first."""
    rng = np.random.default_rng(bits)
    k, n = 128, 96
    dtype = dtypes.dtype(f"uint{bits}")
    codes = rng.integers(0, 1 << bits, (k, n)).astype(np.uint8)
    top = (1 << bits) - 1
    zeros = np.concatenate(
        [rng.integers(0, top + 1, 32), rng.integers(0, top, 32) + 0.5, rng.uniform(-1, top, 32)]
    )
    zero = torch.from_numpy(zeros[None, :]).to(own)
    scale = torch.from_numpy(rng.uniform(0.25, 1.0, (1, n))).to(own)
    weight = from_codes(codes, dtype, scale, zero, -1)
    found, report = multiply(
        torch.eye(k, dtype=own), weight, WgmmaSchedule(block_m=64, block_n=128, stages=2)
    )
    report.raise_if_hazards()
    before, exact = in_activations_type(weight), weight.dequantize()
    simple = slice(0, 64) if bits < 8 or own == torch.float16 else slice(0, 32)
    assert torch.equal(found[:, simple], before[:, simple])
    errors = [(x.double() - exact).abs().max(0).values for x in (found, before)]
    assert (errors[0] <= errors[1] + exact.abs().max(0).values * torch.finfo(own).eps / 2).all()


@pytest.mark.parametrize("dtype", ["int4", "int8", "float4_e2m1"])
def test_zero_points_of_types_with_a_sign(dtype: str) -> None:
    rng = np.random.default_rng(0)
    k, n = 128, 96
    source = dtypes.dtype(dtype)
    codes = rng.integers(0, 1 << source.bits, (k, n)).astype(np.uint8)
    zero = torch.from_numpy(rng.integers(-3, 4, (1, n))).half()
    weight = from_codes(codes, source, torch.full((1, n), 0.5).half(), zero, 128)
    found, report = multiply(torch.eye(k).half(), weight, WgmmaSchedule(block_m=64, block_n=128, stages=2))
    report.raise_if_hazards()
    assert torch.equal(found, in_activations_type(weight))


TILES = [
    WgmmaSchedule(block_m=16, block_n=128, stages=2),
    WgmmaSchedule(block_m=48, block_n=256, stages=4, pieces=2),
    WgmmaSchedule(block_m=64, block_n=128, stages=3, pieces=2, stream=True),
    WgmmaSchedule(block_m=128, block_n=256, stages=3, pieces=4),
    WgmmaSchedule(block_m=96, block_n=128, stages=3, pieces=4, cluster_n=2),
]


@pytest.mark.parametrize(
    ("m", "n", "k", "dtype", "group", "zero_point", "own", "tile"),
    [
        (1, 8, 16, "uint4", -1, True, torch.float16, 0),
        (1, 72, 264, "uint2", -1, True, torch.bfloat16, 2),
        (17, 40, 400, "int3", 16, False, torch.bfloat16, 0),
        (17, 136, 272, "uint6", 16, True, torch.float16, 1),
        (130, 264, 256, "float6_e3m2", 128, False, torch.float16, 3),
        (40, 333, 512, "uint8", 256, True, torch.float16, 1),
        (70, 33, 512, "int7", 256, False, torch.float16, 2),
        (5, 520, 200, "uint1", -1, False, torch.float16, 3),
        (33, 96, 576, "nf4", 64, False, torch.bfloat16, 2),
        (33, 130, 128, "float5_e2m2", 32, False, torch.bfloat16, 1),
        (20, 257, 176, "ternary", 16, False, torch.float16, 3),
        (100, 264, 272, "uint4", 16, True, torch.float16, 4),
        (3, 24, 128, "int8", 128, False, torch.bfloat16, 4),
    ],
)
def test_ragged_shapes_groups_and_tiles(
    m: int, n: int, k: int, dtype: str, group: int, zero_point: bool, own: torch.dtype, tile: int
) -> None:
    weight = random_weight(dtype, k, n, group, zero_point=zero_point, own=own)
    check(torch.randn(m, k).to(own), weight, TILES[tile], processors=3)


@pytest.mark.parametrize("processors", [1, 5, 100])
def test_any_number_of_blocks_takes_all_tiles(processors: int) -> None:
    """Each block goes through one tile after another, and its copies run ahead from one into the next."""
    weight = random_weight("uint4", 256, 264, zero_point=True)
    check(torch.randn(40, 256).half(), weight, SMALL, processors=processors)


def test_tiles_are_grouped_for_the_cache() -> None:
    """More rows of tiles than a group has, and a last group that is not full."""
    weight = random_weight("uint4", 128, 136)
    check(torch.randn(16 * 19, 128).half(), weight, SMALL, processors=4)


@pytest.mark.parametrize("activation", ["", "gelu"])
def test_bias_and_activation_at_the_end(activation: str) -> None:
    weight = random_weight("int5", 256, 136)
    a, bias = torch.randn(20, 256).half(), torch.randn(136).half()
    found, report = multiply(a, weight, SMALL, bias=bias, activation=activation)
    report.raise_if_hazards()
    after = torch.nn.functional.gelu if activation else torch.clone
    exact = after(a.double() @ weight.dequantize() + bias.double())
    check_product(found, exact, after(by_torch(a, weight) + bias))


def test_the_factor_of_all_values_is_applied() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (128, 64), dtype=np.uint8)
    weight = from_codes(codes, dtypes.dtype("int4"), torch.ones(1, 64).half(), None, 128, alpha=0.375)
    a = torch.randn(9, 128).half()
    found, report = multiply(a, weight, SMALL)
    report.raise_if_hazards()
    exact = a.double() @ weight.dequantize()
    check_product(found, exact, (a.float() @ weight.dequantize().float()).half())


@pytest.mark.parametrize("dtype", ["uint1", "uint3", "uint4", "float6_e3m2", "int8"])
def test_no_bank_conflicts_and_no_byte_too_many(dtype: str) -> None:
    """With one block, each byte of the weight and of the activations comes once; the result is stored in full sectors."""
    m, n, k = 64, 256, 512
    weight = random_weight(dtype, k, n)
    a = torch.randn(m, k).half()
    report = check(a, weight, WgmmaSchedule(block_m=64, block_n=256, stages=3), processors=1)
    counters = report.counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0
    assert counters["global_store_sectors"] == counters["global_store_sectors_ideal"] > 0
    scales = 2 * weight.scale.nbytes if weight.zero is not None else weight.scale.nbytes
    assert report.counters["global_bytes_read"] == weight.packed.nbytes + a.nbytes + scales
    assert report.counters["global_bytes_written"] == m * n * 2


def test_blocks_of_a_cluster_bring_parts_of_what_they_share() -> None:
    """Rows of activations come once, and not for each block; so do units of the weight."""
    m, n, k = 64, 256, 512
    weight, a = random_weight("int4", k, n), torch.randn(m, k).half()
    read = {}
    for below, beside in ((1, 1), (1, 2), (2, 1), (2, 2)):
        schedule = WgmmaSchedule(block_m=32, block_n=128, stages=3, cluster_m=below, cluster_n=beside)
        read[below, beside] = check(a, weight, schedule, processors=4).counters["global_bytes_read"]
    assert read[1, 1] - read[1, 2] == a.nbytes
    assert read[1, 1] - read[2, 1] == weight.packed.nbytes
    assert read[1, 1] - read[2, 2] == a.nbytes + weight.packed.nbytes


CLUSTERS = [
    (1, 1, 40, 264, 640, 7, 16, 128, True),
    (1, 1, 33, 264, 512, 20, 64, 256, True),
    (1, 2, 33, 500, 400, 7, 32, 128, True),
    (2, 1, 70, 264, 384, 8, 32, 128, True),
    (2, 2, 130, 520, 384, 8, 32, 128, False),
    (2, 2, 130, 520, 384, 8, 32, 128, True),
    (1, 4, 33, 1030, 384, 20, 32, 128, False),
    (4, 1, 130, 264, 512, 40, 32, 128, True),
]


@pytest.mark.parametrize(
    ("cluster_m", "cluster_n", "m", "n", "k", "processors", "block_m", "block_n", "stream"), CLUSTERS
)
def test_clusters_share_operands_and_tiles(
    cluster_m: int,
    cluster_n: int,
    m: int,
    n: int,
    k: int,
    processors: int,
    block_m: int,
    block_n: int,
    stream: bool,
) -> None:
    """Units of k are cut into equal shares, and the counters are left as they were."""
    weight = (
        random_weight("uint4", k, n, zero_point=True) if k % 128 == 0 else random_weight("uint4", k, n, 16)
    )
    schedule = WgmmaSchedule(
        block_m, block_n, stages=3, pieces=max(1, block_m // 32), stream=stream, cluster_m=cluster_m, cluster_n=cluster_n
    )  # fmt: skip
    a = torch.randn(m, k).half()
    division = schedule.division(m, n, k, processors)
    if stream:
        assert division.shared_tiles % division.clusters, "some tile has several shares"
    parts, arguments, options = call(a, weight, schedule, processors=processors)
    assert options["stream"] == stream
    quantized_wgmma_kernel.simulate(*arguments, target="sm_90a", **options).raise_if_hazards()
    check_product(parts[0], a.double() @ weight.dequantize(), by_torch(a, weight))
    (arrived,) = (
        x for x in arguments if isinstance(x, torch.Tensor) and x.dtype == torch.int32 and x.ndim == 1
    )
    assert not stream or not arrived.any()


def test_shares_are_equal_and_few_clusters_share_a_tile() -> None:
    for m, n, k in [
        (17, 1024, 4096),
        (64, 4096, 4096),
        (100, 6144, 4096),
        (256, 8192, 28672),
        (200, 57344, 8192),
    ]:
        for block_n in (128, 256):
            schedule = WgmmaSchedule(32, block_n, stream=True)
            tiles, steps = schedule.tiles(m, n), k // 128
            division = schedule.division(m, n, k, 132)
            if not division.shared_tiles:
                assert tiles % 132 == 0
                continue
            whole = tiles - division.shared_tiles
            assert whole % division.clusters == 0
            shares = division.shared_tiles * steps / division.clusters
            assert shares >= 2
            assert division.clusters <= 8 * division.shared_tiles
            if tiles > 132:
                assert steps <= shares < 2 * steps


IN_ORDER = ("range(first, last + 1)", "range(first, last + 1)")
BACKWARDS = (
    "for other in range(first, last + 1):",
    "for back in range(last - first + 1):\n        other = last - back",
)


@pytest.mark.parametrize("order", [IN_ORDER, BACKWARDS], ids=["in order", "backwards"])
def test_shares_are_added_in_the_order_of_k(order: tuple[str, str], tmp_path: Path) -> None:
    """2**24 + 1 - 2**24 is 0 in float32 from left to right, and 1 from right to left."""
    k, n = 768, 128
    weight = from_codes(np.full((k, n), 4, np.uint8), dtypes.int4, torch.ones(1, n).half(), None, -1)
    a = torch.zeros(20, k).half()
    a[:, :256], a[:, 300], a[:, 512:] = 2.0**14, 0.25, -(2.0**14)
    schedule = WgmmaSchedule(block_m=32, block_n=128, stages=2, stream=True)
    assert schedule.division(20, n, k, 3).clusters == 3
    kernel = changed(*order, tmp_path)
    found, report = multiply(a, weight, schedule, kernel, processors=3)
    report.raise_if_hazards()
    assert (found == (0 if order == IN_ORDER else 1)).all()


def test_a_gated_pair_is_multiplied_at_the_end() -> None:
    torch.manual_seed(0)
    weight = gated_pair(*(quantize(torch.randn(256, 64), "uint4", 128, zero_point=True) for _ in range(2)))
    a = torch.randn(20, 256).half()
    found, report = multiply(a, weight, SMALL, activation="silu")
    report.raise_if_hazards()

    def gated(both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up

    rounded = (a.double() @ weight.dequantize()).half()
    check_product(found, gated(a.double() @ weight.dequantize()), gated(rounded))


MISTAKES = {
    "the weights' registers are decoded anew before the product has read them": (
        "tilus.dot_wait(pending=1)", "tilus.dot_wait(pending=2)",
    ),
    "the accumulator is read before the product is done": ("tilus.dot_wait(acc)", "acc"),
    "a stage is used before its bytes are there": (
        "tilus.wait(full, phase, index=stage)", "tilus.wait(full, 1 - phase, index=stage)",
    ),
    "a stage is filled while others still read it": (
        "tilus.wait(empty, 1 - phase if stage == 0 else phase, index=before)", "pass",
    ),
    "fewer bytes are announced than come": ("prod(buffer.shape[1:])", "prod(buffer.shape[1:]) // 2"),
}  # fmt: skip


MISTAKES_OF_PARTS = {
    "what a share left may not be there when it is read": ('order="acq_rel"', 'order="relaxed"'),
    "the last one reads what nobody has left": ("== end - first\n        if last", ">= 0\n        if last"),
    "the bulk store may miss what threads stored": ('tilus.fence("async")', "pass"),
    "the piece before may still be on its way out": ("tilus.bulk_wait(0)\n", "pass\n"),
}


MISTAKES_OF_CLUSTERS = {
    "a stage is filled while the other block still reads it": ("arrivals=how.size * warps", "arrivals=warps"),
    "the other block never hears that a stage is free": (
        "release(empty, before, how.size)",
        "release(empty, before, 1)",
    ),
    "the other block's half never comes": (
        "rank % how.cluster_n, how.cluster_n, beside)",
        "rank % how.cluster_n, how.cluster_n, 1 << rank)",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_planted_mistake_is_reported(mistake: str, tmp_path: Path) -> None:
    kernel = changed(*MISTAKES[mistake], tmp_path)
    weight = random_weight("uint4", 640, 128)
    _, report = multiply(torch.randn(60, 640).half(), weight, SMALL, kernel, processors=1)
    assert report.hazards


SHARING = WgmmaSchedule(block_m=32, block_n=128, stages=2, pieces=2, stream=True)


@pytest.mark.parametrize("mistake", list(MISTAKES_OF_PARTS))
def test_a_planted_mistake_in_the_parts_is_reported(mistake: str, tmp_path: Path) -> None:
    kernel = changed(*MISTAKES_OF_PARTS[mistake], tmp_path)
    weight, a = random_weight("uint4", 1024, 256), torch.randn(20, 1024).half()
    _, report = multiply(a, weight, SHARING, kernel, processors=5)
    assert report.hazards


@pytest.mark.parametrize("reset", [True, False])
def test_counters_are_left_as_they_were_found(reset: bool, tmp_path: Path) -> None:
    """The next launch counts on it."""
    put_back = "tilus.store(arrived, 0, at)"
    kernel = changed(put_back, put_back if reset else "pass", tmp_path)
    weight, a = random_weight("uint4", 1024, 256), torch.randn(20, 1024).half()
    _, arguments, options = call(a, weight, SHARING, processors=5)
    kernel.simulate(*arguments, target="sm_90a", **options).raise_if_hazards()
    (arrived,) = (
        x for x in arguments if isinstance(x, torch.Tensor) and x.dtype == torch.int32 and x.ndim == 1
    )
    assert arrived.any() != reset


@pytest.mark.parametrize("mistake", list(MISTAKES_OF_CLUSTERS))
def test_a_planted_mistake_in_a_cluster_is_reported(mistake: str, tmp_path: Path) -> None:
    kernel = changed(*MISTAKES_OF_CLUSTERS[mistake], tmp_path)
    weight = random_weight("uint4", 640, 256)
    schedule = WgmmaSchedule(block_m=16, block_n=128, stages=2, cluster_n=2)
    _, report = multiply(torch.randn(60, 640).half(), weight, schedule, kernel)
    assert report.hazards


HARMLESS = {
    "the kernel": ("stages: constexpr = 3", "stages: constexpr = 4"),
    "its parts": ("turn += 1", "turn += 2 - 1"),
}


@pytest.mark.parametrize("where", list(HARMLESS))
def test_the_copy_for_planted_mistakes_is_right_without_one(where: str, tmp_path: Path) -> None:
    kernel = changed(*HARMLESS[where], tmp_path)
    weight = random_weight("uint4", 640, 128)
    _, report = multiply(torch.randn(60, 640).half(), weight, SMALL, kernel, processors=1)
    report.raise_if_hazards()


def changed(old: str, new: str, folder: Path, name: str = "quantized_wgmma_kernel") -> Kernel:
    """Return a kernel with one place of its module, or else of the parts that it is made of, changed."""
    module = importlib.import_module(f"tilus.ops.{name}")
    if old in inspect.getsource(module):
        made = loaded(module, old, new, folder)
    else:
        made = loaded(module, "import tilus", "import tilus", folder)
        parts = loaded(importlib.import_module("tilus.ops.quantized_wgmma_parts"), old, new, folder)
        for key in vars(made).keys() & {key for key in vars(parts) if not key.startswith("__")}:
            setattr(made, key, getattr(parts, key))
    kernel: Kernel = getattr(made, name)
    return kernel


def loaded(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """Return a copy of a module with one place changed."""
    source = inspect.getsource(module)
    assert old in source, f"{old!r} is not in {module.__name__} any more"
    name = f"changed_{module.__name__.rpartition('.')[2]}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    # A dataclass looks for its module there.
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


FORMS = [
    WeightForm(dtypes.dtype(name), dtypes.float16, group, zero)
    for name, group, zero in [
        ("uint1", 128, True),
        ("uint4", 16, True),
        ("float6_e3m2", 64, False),
        ("uint8", 32, True),
    ]
]
SHAPES = [
    (17, 4096, 4096),
    (64, 57344, 8192),
    (256, 28672, 8192),
    (1024, 6144, 4096),
    (4096, 8192, 28672),
    (9000, 33, 80),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.dtype.name)
def test_all_candidates_fit(form: WeightForm) -> None:
    """Blocks that are resident together share the memory, and a part of k has work for a pipeline."""
    for m, n, k in SHAPES:
        found = list(candidates(m, n, k, form, TARGET, 132))
        assert found
        for schedule in found:
            taken = schedule.stages * stage_bytes(schedule, form) + out_bytes(schedule, False)
            assert schedule.resident * (taken + 1024) <= 233_472
            assert schedule.stages >= 2
            assert schedule.block_m % schedule.pieces == 0
            division = schedule.division(m, n, k, 132)
            assert division.clusters * schedule.cluster <= 132 * schedule.resident
            assert (division.shared_tiles > 0) == schedule.stream
            if schedule.stream:
                assert division.shared_tiles * -(-k // 128) >= division.clusters
                assert schedule.block_m // schedule.pieces <= 32


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.dtype.name)
def test_the_tiles_suit_the_shape(form: WeightForm) -> None:
    few = wgmma_schedule(17, 4096, 4096, form, TARGET, 132)
    many = wgmma_schedule(8192, 8192, 8192, form, TARGET, 132)
    assert few is not None
    assert many is not None
    assert few.block_m == 32
    blocks = few.division(17, 4096, 4096, 132).clusters * few.cluster
    assert blocks >= 64, "about half of the multiprocessors, or more, have work"
    assert (many.block_m, many.block_n, many.stream) == (128, 256, False)


def test_tiles_of_other_heights_are_for_what_they_fit() -> None:
    assert heights(96)[-1] == 96
    assert heights(40)[-1] == 48
    assert set(heights(8192)) == {16, 32, 64, 128}
    assert heights(1) == [16]


def test_the_estimate_follows_what_limits() -> None:
    form = WeightForm(dtypes.uint4, dtypes.float16, 128, True)
    tile = fitting(WgmmaSchedule(128, 256), form, TARGET)
    assert tile is not None

    def cycles(m: int, n: int = 8192, k: int = 8192) -> float:
        return estimate(tile, m, n, k, form, TARGET, 132)

    # Products take twice as long for twice as many rows, or columns, or elements of k.
    for larger in (cycles(16384), cycles(8192, n=16384), cycles(8192, k=16384)):
        assert 1.8 < larger / cycles(8192) < 2.2
    # The least that they can take is what the tensor cores take.
    assert cycles(8192) >= 8192**3 / (2048 * 132)
    assert cycles(8192) <= 1.15 * 8192**3 / (2048 * 132)


def test_without_warpgroups_there_is_no_schedule() -> None:
    form = WeightForm(dtypes.uint4, dtypes.float16, 128, True)
    assert wgmma_schedule(64, 4096, 4096, form, target("sm_80"), 108) is None
    assert wgmma_schedule(8, 4096, 4096, form, TARGET, 132) is None


@pytest.mark.parametrize(
    "a",
    [
        torch.zeros(20, 168).half()[:, 4:164],
        torch.zeros(20, 164).half()[:, :160],
        torch.zeros(160, 20).half().t(),
        torch.zeros(1, 160).half().expand(20, 160),
    ],
    ids=["begins at 8 bytes", "rows of 328 bytes", "transposed", "one row"],
)
def test_activations_that_bulk_copies_cannot_read(a: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are multiplied all the same, by the kernel that takes any."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_90a")
    assert not fits_bulk_copies(a)
    a[0 if a.stride(0) == 0 else slice(None)].normal_(generator=torch.Generator().manual_seed(0))
    weight = random_weight("uint4", 160, 72, 32)
    check_product(quantized_matmul(a, weight), a.double() @ weight.dequantize(), by_torch(a, weight))


@pytest.mark.parametrize("stream", [False, True])
def test_the_op_runs_the_kernel(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tilus.ops.quantized_matmul")
    chosen = WgmmaSchedule(block_m=16, block_n=128, stages=2, stream=stream)
    monkeypatch.setattr(module, "processors", lambda x: 3)
    asked = []

    def choose(m: int, n: int, k: int, *rest: object) -> WgmmaSchedule:
        asked.append((m, n, k))
        return chosen

    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_90a")
    monkeypatch.setattr(module, "wgmma_schedule", choose)
    weight = random_weight("uint4", 384, 100, zero_point=True)
    a, bias = torch.randn(2, 11, 384).half(), torch.randn(100).half()
    found = quantized_matmul(a, weight, bias, "relu")
    assert asked == [(22, 100, 384)]
    exact = torch.relu(a.double() @ weight.dequantize() + bias.double())
    check_product(found, exact, torch.relu(by_torch(a, weight) + bias))


ASSEMBLED = [
    ("uint4", torch.float16, WgmmaSchedule(128, 256)),
    ("uint8", torch.bfloat16, WgmmaSchedule(128, 256, cluster_n=2)),
    ("float6_e3m2", torch.float16, WgmmaSchedule(64, 256)),
    ("uint3", torch.bfloat16, WgmmaSchedule(16, 128)),
]


@pytest.mark.skipif(available() is not None, reason="NVIDIA's assembler has no package for this platform")
@pytest.mark.parametrize(("dtype", "own", "tile"), ASSEMBLED)
def test_the_assembler_spills_and_serialises_nothing(
    dtype: str, own: torch.dtype, tile: WgmmaSchedule
) -> None:
    """`benchmarks/quantized_main_loop.py` does the same for every type and counts the loop's instructions."""
    codes = np.zeros((256, 256), np.uint8)
    source = dtypes.dtype(dtype)
    zero = torch.zeros(2, 256, dtype=own) if source.kind == "uint" else None
    weight = from_codes(codes, source, torch.ones(2, 256, dtype=own), zero, 128)
    schedule = fitting(tile, form_of(weight), TARGET)
    assert schedule is not None
    _, arguments, options = call(torch.empty(256, 256, dtype=own), weight, schedule)
    made = quantized_wgmma_kernel.compile(*arguments, target="sm_90a", **options)
    assert made.resources is not None
    assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0
    assert made.resources.warnings == ()
    assert made.ptx.count("wgmma.mma_async") == 16
    assert "stmatrix.sync.aligned.m8n8.x4.trans" in made.ptx
    assert "cp.async.bulk.tensor.3d.global.shared::cta" in made.ptx


@pytest.mark.parametrize("own", [torch.float16, torch.int8], ids=str)
def test_blocks_tell_one_another_of_free_stages_without_fences(own: torch.dtype) -> None:
    """An arrival that orders a cluster's memory waits for all of it, in each step of k: stages are only read."""
    kw: dict[str, Any] = {"activations": own} if own == torch.int8 else {}
    weight = quantize(torch.randn(1024, 512), "uint4", 128, **kw)
    schedule = WgmmaSchedule(32, 128, stages=2, stream=True, cluster_n=2)
    a = torch.zeros(40, 1024, dtype=own)
    factors = torch.ones(1, 48) if own == torch.int8 else None
    out = torch.zeros(1, 40, 512).half()
    made = wgmma_call(a, weight, schedule, TARGET, 6, out=out, row_scale=factors)
    assert made.options["stream"]
    ptx = made.kernel.compile(*made.arguments, target="sm_90a", **made.options).ptx
    arrivals = [line for line in ptx.splitlines() if "mbarrier.arrive" in line and "shared::cluster" in line]
    assert len(arrivals) == 2
    assert not [line for line in arrivals if "release.cluster" in line]


def test_the_committed_figures_are_of_all_types_and_bound_by_the_tensor_core() -> None:
    """With 128 rows of activations the products take longer than decoding, and integers leave half of the issue slots."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "quantized_main_loop.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    large = [row for row in rows if row["tile"] == "128x256" and "float16" in row["activations"]]
    names = {(t.name, own) for t in WEIGHT_TYPES for own in ("float16", "bfloat16")}
    assert {(row["dtype"], row["activations"]) for row in large} == names
    for row in rows:
        assert row["spills"] == row["serialised"] == 0, row
    for row in large:
        # This one's cast goes the general way.
        assert row["limit"] == "tensor" or row["dtype"] == "float8_e3m4", row
        assert row["issue"] < 0.5 * row["tensor"] or "int" not in row["dtype"], row
