"""The quantised matmul on warpgroups: right with every check on, and planted mistakes that the checks report."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import tilus
from tests.ops.support import FLOATS, WEIGHT_TYPES, check_product, finite_codes, in_activations_type
from tilus import dtypes
from tilus.codegen import target
from tilus.codegen.casts import stored_exponent
from tilus.dtypes import DType
from tilus.ops import QuantizedWeight, from_codes, quantize
from tilus.ops.quantized_schedule import WeightForm
from tilus.ops.quantized_wgmma import (
    WgmmaSchedule,
    as_rows,
    bulk_readable,
    candidates,
    estimate,
    fitting,
    out_bytes,
    stage_bytes,
    wgmma_schedule,
)
from tilus.ops.quantized_wgmma_kernel import quantized_wgmma_kernel
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
) -> tuple[torch.Tensor, list[Any], dict[str, Any]]:
    """Return the result's parts, and what the op calls the kernel with for them."""
    (m, k), (_, n) = a.shape, weight.shape
    own, form = dtypes.dtype(a.dtype), form_of(weight)
    n_out = n // 2 if weight.gated else n
    made = a.dtype if schedule.splits == 1 else torch.float32
    parts = torch.full((schedule.splits, m, n_out), float("nan"), dtype=made)
    arguments = [
        a, as_rows(weight.packed), weight.scale, weight.scale if weight.zero is None else weight.zero,
        weight.scale[0] if bias is None else bias, parts, weight.alpha, n,
    ]  # fmt: skip
    options = dict(
        a_dtype=own, b_dtype=weight.dtype, c_dtype=dtypes.dtype(made), group=form.rows_of_scale(k),
        has_zero=form.has_zero, exponent=stored_exponent(weight.dtype, own, TARGET), has_bias=bias is not None,
        activation=activation, gated=weight.gated, **schedule.options(processors, n_out, parts.element_size()),
    )  # fmt: skip
    return parts, arguments, options


def multiply(
    a: torch.Tensor, weight: QuantizedWeight, schedule: WgmmaSchedule, kernel: Kernel | None = None, **more: Any
) -> tuple[torch.Tensor, Report]:
    """Run the kernel on the simulator, add its parts up, and return the result with the report."""
    parts, arguments, options = call(a, weight, schedule, **more)
    report = (kernel or quantized_wgmma_kernel).simulate(*arguments, target="sm_90a", **options)
    return parts.sum(0).to(a.dtype), report


def by_torch(a: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """Return the product as torch has it in the activations' type."""
    return a @ in_activations_type(weight) * weight.alpha


def check(a: torch.Tensor, weight: QuantizedWeight, schedule: WgmmaSchedule, **more: Any) -> Report:
    """Multiply and compare with float64 of the dequantised weight."""
    found, report = multiply(a, weight, schedule, **more)
    report.raise_if_hazards()
    check_product(found, a.double() @ weight.dequantize(), by_torch(a, weight))
    return report


def random_weight(
    dtype: str, k: int, n: int, group: int = 128, *, zero_point: bool = False, own: torch.dtype = torch.float16
) -> QuantizedWeight:
    torch.manual_seed(0)
    return quantize(torch.randn(k, n), dtype, group, zero_point=zero_point, scale_dtype=own)


@pytest.mark.parametrize("activations", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "zero_point"),
    [(t, False) for t in WEIGHT_TYPES] + [(t, True) for t in WEIGHT_TYPES if t.kind == "uint"],
    ids=str,
)
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


TILES = [
    WgmmaSchedule(block_m=16, block_n=128, stages=2),
    WgmmaSchedule(block_m=32, block_n=256, stages=4, pieces=2),
    WgmmaSchedule(block_m=64, block_n=128, stages=3, splits=3),
    WgmmaSchedule(block_m=128, block_n=256, stages=3, pieces=4),
]


@pytest.mark.parametrize("schedule", TILES, ids=lambda s: f"{s.block_m}x{s.block_n}, {s.splits} splits")
@pytest.mark.parametrize(
    ("m", "n", "k", "dtype", "group", "zero_point", "own"),
    [
        (1, 8, 16, "uint4", -1, True, torch.float16),
        (17, 40, 400, "int3", 16, False, torch.bfloat16),
        (130, 264, 640, "float6_e3m2", 128, False, torch.float16),
        (70, 333, 768, "uint8", 256, True, torch.float16),
        (5, 520, 200, "uint1", -1, False, torch.float16),
        (33, 96, 576, "nf4", 64, False, torch.bfloat16),
    ],
)
def test_ragged_shapes_groups_and_tiles(
    m: int, n: int, k: int, dtype: str, group: int, zero_point: bool, own: torch.dtype, schedule: WgmmaSchedule
) -> None:
    weight = random_weight(dtype, k, n, group, zero_point=zero_point, own=own)
    check(torch.randn(m, k).to(own), weight, schedule, processors=3)


@pytest.mark.parametrize("processors", [1, 2, 5, 100])
def test_any_number_of_blocks_takes_all_tiles(processors: int) -> None:
    """Each block goes through one tile after another, and its copies run ahead from one into the next."""
    weight = random_weight("uint4", 384, 300, zero_point=True)
    check(torch.randn(70, 384).half(), weight, SMALL, processors=processors)


def test_tiles_are_grouped_for_the_cache() -> None:
    """More rows of tiles than a group has, and a last group that is not full."""
    weight = random_weight("uint4", 128, 256)
    check(torch.randn(16 * 19, 128).half(), weight, SMALL, processors=4)


@pytest.mark.parametrize("activation", ["", "relu", "gelu", "silu"])
def test_bias_and_activation_at_the_end(activation: str) -> None:
    weight = random_weight("int5", 256, 136)
    a, bias = torch.randn(20, 256).half(), torch.randn(136).half()
    found, report = multiply(a, weight, SMALL, bias=bias, activation=activation)
    report.raise_if_hazards()
    after = {
        "": lambda x: x,
        "relu": torch.relu,
        "gelu": lambda x: torch.nn.functional.gelu(x),
        "silu": torch.nn.functional.silu,
    }[activation]
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


def test_two_runs_give_the_same_bits() -> None:
    weight = random_weight("uint3", 512, 256, 64, zero_point=True)
    a = torch.randn(20, 512).half()
    schedule = WgmmaSchedule(block_m=32, block_n=128, stages=2, splits=2)
    first, second = (multiply(a, weight, schedule, processors=p)[0] for p in (1, 3))
    assert torch.equal(first, second)


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
    "fewer bytes are announced than come": ("size = block_m * UNIT_K", "size = block_m * UNIT_K // 2"),
    "the bulk store may miss what threads stored": ('tilus.fence("async")', "pass"),
    "the tile before may still be on its way out": ("tilus.bulk_wait(0)\n", "pass\n"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_planted_mistake_is_reported(mistake: str, tmp_path: Any) -> None:
    kernel = changed(*MISTAKES[mistake], tmp_path)
    weight = random_weight("uint4", 640, 128)
    _, report = multiply(torch.randn(60, 640).half(), weight, SMALL, kernel, processors=1)
    assert report.hazards


def test_the_copy_for_planted_mistakes_is_right_without_one(tmp_path: Any) -> None:
    kernel = changed("stages: constexpr = 3", "stages: constexpr = 4", tmp_path)
    weight = random_weight("uint4", 640, 128)
    _, report = multiply(torch.randn(60, 640).half(), weight, SMALL, kernel, processors=1)
    report.raise_if_hazards()


def changed(old: str, new: str, folder: Any) -> Kernel:
    """Return the kernel made of its module's source with one place changed."""
    import importlib.util

    from tilus.ops import quantized_wgmma_kernel as module

    source = inspect.getsource(module)
    assert old in source, f"{old!r} is not in the kernel any more"
    path = folder / "changed_kernel.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("changed_kernel", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    kernel: Kernel = loaded.quantized_wgmma_kernel
    return kernel
