"""The loop over k: bulk copies and plain ones bring the same, offsets that casts leave are taken off exactly."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.ops.support import check_product, in_activations_type
from tests.ops.test_generated_code import ASSEMBLES, check_no_conflicts, check_resources
from tilus import dtypes
from tilus.codegen import target
from tilus.ops import QuantizedWeight, from_codes, quantize, quantized_kernel, quantized_sums
from tilus.ops.call import Call
from tilus.ops.quantized_matmul import call_of
from tilus.ops.quantized_schedule import Schedule

FIRST = Schedule(block_m=8, swap=True, late=True, stages=3)
SECOND = Schedule(late=True, stages=3)
# Weight, group, zero points, schedule.
CASES = {
    "weights first": ("uint2", 64, True, FIRST),
    "weights second": ("int3", 128, False, SECOND),
    "of whole columns": ("uint1", -1, True, SECOND),
    "shared by warps": ("int5", 128, False, replace(FIRST, block_n=32, deep=4)),
    "scaled before": ("float4_e2m1", 32, False, replace(SECOND, late=False)),
    "in streams": ("uint4", 128, True, replace(SECOND, block_n=64, deep=2, blocks=3)),
    "of a codebook": ("nf4", 64, False, replace(SECOND, blocks=3)),
    "in parts": ("uint8", 128, True, replace(FIRST, splits=2)),
}


def result_of(call: Call) -> torch.Tensor:
    names = [declared.name for declared in call.kernel.source.runtime_params]
    c: torch.Tensor = call.arguments[names.index("c")]
    return c[0]


def multiplied(
    a: torch.Tensor, weight: QuantizedWeight, schedule: Schedule, **options: object
) -> torch.Tensor:
    """Return the product by the kernel on the simulator, which must find nothing."""
    call = call_of(a, weight, schedule, target("sm_90a"))
    call.options.update(options)
    report = call.kernel.simulate(*call.arguments, target="sm_90a", **call.options)
    report.raise_if_hazards()
    return result_of(call)


@pytest.mark.parametrize("name", CASES)
def test_bulk_copies_bring_what_plain_ones_bring(name: str) -> None:
    """More steps than stages, the last one not full, and the last tile's columns neither."""
    dtype, group, zero_point, schedule = CASES[name]
    torch.manual_seed(0)
    weight = quantize(torch.randn(1152, 200), dtype, group, zero_point=zero_point)
    a = torch.randn(schedule.block_m - 3, 1152).half()
    bulk = multiplied(a, weight, schedule, bulk=True)
    assert torch.equal(bulk, multiplied(a, weight, schedule, bulk=False))
    check_product(bulk, a.double() @ weight.dequantize(), a @ in_activations_type(weight))


@pytest.mark.parametrize(
    "schedule", [FIRST, SECOND, replace(SECOND, late=False)], ids=["first", "second", "scaled"]
)
@pytest.mark.parametrize("dtype", ["nf4", "codebook"])
def test_codes_that_are_looked_up_are_what_they_are_without(dtype: str, schedule: Schedule) -> None:
    """All codes of a codebook at all places; the table has a place for each lane, so that there are no conflicts."""
    book = dtypes.nf4 if dtype == "nf4" else dtypes.table_type([0.1 * i * i - 7.5 for i in range(16)])
    codes = np.arange(384 * 64, dtype=np.uint32).reshape(384, 64)
    codes = ((codes ^ codes >> 4 ^ codes >> 8) & 15).astype(np.uint8)
    weight = from_codes(codes, book, torch.rand(3, 64).half() + 0.5, None, 128)
    a = torch.randn(8, 384).half()
    call = call_of(a, weight, schedule, target("sm_90a"))
    assert call.options["lookup"]
    report = call.kernel.simulate(*call.arguments, target="sm_90a", **call.options)
    report.raise_if_hazards()
    check_no_conflicts(report)
    assert torch.equal(result_of(call), multiplied(a, weight, schedule, lookup=False))


@pytest.mark.parametrize("dtype", ["uint1", "int2", "uint3", "uint4", "int7", "uint8"])
def test_offsets_cost_no_accuracy(dtype: str) -> None:
    """Activations with a mean ten times their spread: what offsets add is largest, and all of it must go.

    The error may be that of the result's rounding to float16, and of single precision beside what is added up.
    """
    torch.manual_seed(1)
    weight = quantize(torch.randn(512, 64), dtype, 128, zero_point=dtype.startswith("u"))
    a = (10 + torch.randn(8, 512)).half()
    exact = a.double() @ weight.dequantize()
    error = (multiplied(a, weight, FIRST).double() - exact).abs()
    size = a.double().abs() @ weight.dequantize().abs()
    assert (error <= exact.abs() * 2.0**-11 + size * 2.0**-16).all()


@ASSEMBLES
@pytest.mark.parametrize("machine", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_wide_warps_do_not_spill(bits: int, machine: str) -> None:
    for schedule in (replace(FIRST, block_n=256), replace(SECOND, block_n=256)):
        weight = quantize(torch.randn(256, 256), f"uint{bits}", 128, zero_point=True)
        call = call_of(torch.zeros(schedule.block_m, 256).half(), weight, schedule, target(machine))
        compiled = call.kernel.compile(*call.arguments, target=machine, **call.options)
        check_resources(compiled)
        assert ("cp.async.bulk" in compiled.ptx) == (machine == "sm_90a")


def test_rows_that_bulk_copies_cannot_read_are_copied_plainly() -> None:
    weight = quantize(torch.randn(256, 32), "uint4", 128)
    wide = torch.randn(4, 261).half()
    for a, bulk in ((wide[:, :256].contiguous(), True), (wide[:, :256], False), (wide[:, 1:257], False)):
        assert call_of(a, weight, FIRST, target("sm_90a")).options["bulk"] == bulk
    assert not call_of(wide[:, :256].contiguous(), weight, FIRST, target("sm_89")).options["bulk"]


# Mistakes that must be found.

MISTAKES = {
    "a stage is filled while warps still read it": ("            tilus.sync()\n", ""),
    "a stage is read before its bytes are there": ("tilus.wait(full, phase,", "tilus.wait(full, 1 - phase,"),
    "fewer bytes are announced than come": ("self.block_m * self.block_k", "self.block_m * UNIT_K // 2"),
    "the next tile's columns are the last one's": ("column + how.block_n", "column"),
    "offsets stay in": ("start = excess_of(", "start = 0.0 * excess_of("),
}


def planted(folder: Path, before: str, after: str) -> ModuleType:
    """Return the module of the kernel, made with a text of `quantized_sums` in which a part is another."""
    text = Path(quantized_sums.__file__).read_text(encoding="utf-8")
    assert before in text
    (folder / "planted_sums.py").write_text(text.replace(before, after), encoding="utf-8")
    kernels = Path(quantized_kernel.__file__).read_text(encoding="utf-8")
    assert kernels.count("tilus.ops.quantized_sums import") == 1
    kernels = kernels.replace("tilus.ops.quantized_sums import", "planted_sums import")
    (folder / "planted_sums_kernel.py").write_text(kernels, encoding="utf-8")
    made = None
    for name in ("planted_sums", "planted_sums_kernel"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    assert made is not None
    return made


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_mistakes_are_found(mistake: str | None, tmp_path: Path) -> None:
    """By a hazard that is reported, or by a result that is far off."""
    torch.manual_seed(2)
    weight = quantize(torch.randn(1024, 256), "uint4", 128, zero_point=True)
    a = torch.randn(8, 1024).half()
    call = call_of(a, weight, replace(FIRST, blocks=3), target("sm_90a"))
    before, after = MISTAKES[mistake] if mistake else ("MOST_BIASED_ROWS = 32", "MOST_BIASED_ROWS = 16")
    made = getattr(planted(tmp_path, before, after), call.kernel.source.name)
    report = made.simulate(*call.arguments, target="sm_90a", **call.options)
    off = (result_of(call).double() - a.double() @ weight.dequantize()).abs().max() > 1.0
    assert (bool(report.hazards) or bool(off)) == (mistake is not None), report
