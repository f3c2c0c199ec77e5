"""What the library's kernels compile to: instructions, widths, bank conflicts, registers."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from tilus.codegen import Compiled, target
from tilus.codegen.assemble import available
from tilus.ops import quantize
from tilus.ops.matmul import schedule as matmul_schedule
from tilus.ops.matmul_kernel import matmul_kernel
from tilus.ops.quantized_matmul import Call, call_of
from tilus.ops.quantized_schedule import WeightForm, choose
from tilus.runtime.kernel import Kernel
from tilus.simulator import Report

TARGETS = ["sm_80", "sm_89", "sm_90a"]
ASSEMBLES = pytest.mark.skipif(
    available() is not None, reason="NVIDIA's assembler has no package for this platform"
)


def accesses(ptx: str) -> Counter[str]:
    """Count the memory instructions of PTX, with the bytes that each moves where it says so."""
    return Counter(re.findall(r"\b((?:ld|st|ldmatrix|stmatrix|cp|red|atom)\.[\w.:]+)", ptx))


def bytes_moved(opcode: str) -> int:
    """Return the bytes that one thread moves with a load or store."""
    vector = re.search(r"\.v(\d)", opcode)
    element = re.search(r"[bsuf](\d+)$", opcode)
    assert element, opcode
    return (int(vector[1]) if vector else 1) * int(element[1]) // 8


def check_global_accesses(ptx: str) -> None:
    """All accesses to global memory move 16 bytes for each thread, or go through the tensor memory accelerator."""
    found = accesses(ptx)
    for opcode in found:
        if re.match(r"(ld|st)\.global", opcode):
            assert bytes_moved(opcode) == 16, found
    copies = re.findall(r"cp\.async\.(?:ca|cg)\.shared\.global \[[^\]]*\], \[[^\]]*\], (\d+)", ptx)
    assert set(copies) <= {"16"}, copies


def check_operands(ptx: str) -> None:
    """Tensor cores get operands from shared memory by ldmatrix, or read it themselves (wgmma)."""
    found = accesses(ptx)
    assert "wgmma.mma_async" in ptx or any(opcode.startswith("ldmatrix") for opcode in found), found
    assert not [o for o in found if re.match(r"ld\.shared", o) and bytes_moved(o) < 16], found


def check_resources(compiled: Compiled) -> None:
    assert compiled.resources is not None
    assert compiled.resources.spill_stores == compiled.resources.spill_loads == 0
    assert compiled.resources.stack == 0
    assert compiled.resources.warnings == ()


def matmul_arguments(
    name: str, m: int = 256, n: int = 256, k: int = 128, *, turned: bool = False
) -> tuple[list[object], dict[str, object]]:
    """Return what the op calls its kernel with for a float16 product."""
    torch.manual_seed(0)
    a, b = torch.randn(1, m, k).half(), torch.randn(1, *((n, k) if turned else (k, n))).half()
    c, none = torch.empty(1, m, n).half(), torch.empty(1)
    from tilus.dtypes import float16

    options: dict[str, object] = dict(
        dtype=float16,
        b_dtype=float16,
        out_dtype=float16,
        b_turned=turned,
        **vars(matmul_schedule(m, n, 16, target(name))),
    )
    return [a, b, c, c[0, 0], c, none, none, 1.0, 1.0], options


def quantized_call(
    name: str, dtype: str, m: int, *, n: int = 256, k: int = 256, zero_point: bool = False
) -> Call:
    """Return the call of the kernel that the op would make for a quantised product."""
    torch.manual_seed(0)
    weight = quantize(torch.randn(k, n), dtype, 128, zero_point=zero_point)
    from tilus.dtypes import float16

    form = WeightForm(weight.dtype, float16, 128, weight.zero is not None)
    choice = choose(m, n, k, form, target(name), processors=1)
    return call_of(torch.randn(m, k).half(), weight, choice.schedule, target(name))


def simulate(kernel: Kernel, arguments: list[object], options: dict[str, object], name: str) -> Report:
    report = kernel.simulate(*arguments, target=name, **options)
    report.raise_if_hazards()
    return report


def check_no_conflicts(report: Report) -> None:
    counters = report.counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0
    assert counters["global_load_sectors"] == counters["global_load_sectors_ideal"]
    assert counters["global_store_sectors"] == counters["global_store_sectors_ideal"]


@ASSEMBLES
@pytest.mark.parametrize("turned", [False, True], ids=["row-major b", "transposed b"])
@pytest.mark.parametrize("m", [16, 64, 256])
@pytest.mark.parametrize("name", TARGETS)
def test_float16_matmul(name: str, m: int, turned: bool) -> None:
    arguments, options = matmul_arguments(name, m, turned=turned)
    compiled = matmul_kernel.compile(*arguments, target=name, **options)
    check_global_accesses(compiled.ptx)
    check_operands(compiled.ptx)
    check_resources(compiled)


@pytest.mark.parametrize("name", TARGETS)
def test_float16_matmul_has_no_bank_conflicts(name: str) -> None:
    for m, turned in ((16, True), (128, False)):
        arguments, options = matmul_arguments(name, m, n=128, turned=turned)
        check_no_conflicts(simulate(matmul_kernel, arguments, options, name))


@ASSEMBLES
@pytest.mark.parametrize("m", [16, 64])
@pytest.mark.parametrize(
    ("dtype", "zero_point"),
    [("uint4", True), ("int6", False), ("float6_e3m2", False), ("uint1", True), ("uint8", False)],
)
@pytest.mark.parametrize("name", TARGETS)
def test_quantized_matmul(name: str, dtype: str, zero_point: bool, m: int) -> None:
    call = quantized_call(name, dtype, m, zero_point=zero_point)
    compiled = call.kernel.compile(*call.arguments, target=name, **call.options)
    check_global_accesses(compiled.ptx)
    assert any(opcode.startswith("ldmatrix") for opcode in accesses(compiled.ptx))
    check_resources(compiled)


@pytest.mark.parametrize("dtype", ["uint4", "float6_e3m2", "uint1", "int8"])
@pytest.mark.parametrize("name", TARGETS)
def test_quantized_matmul_has_no_bank_conflicts(name: str, dtype: str) -> None:
    call = quantized_call(name, dtype, 16, n=128)
    check_no_conflicts(simulate(call.kernel, list(call.arguments), call.options, name))


def test_weights_are_read_once_and_by_their_own_width() -> None:
    """A narrower type reads fewer bytes: that is what it is for."""
    read = {}
    for dtype in ("uint2", "uint4", "uint8"):
        call = quantized_call("sm_80", dtype, 16, n=128)
        report = simulate(call.kernel, list(call.arguments), call.options, "sm_80")
        read[dtype] = report.counters["global_distinct_bytes_read"]
    assert read["uint8"] - read["uint4"] == 128 * 256 * 4 // 8
    assert read["uint4"] - read["uint2"] == 128 * 256 * 2 // 8


def test_checks_notice_narrow_accesses_and_conflicts() -> None:
    narrow = "ld.global.v2.b32 {%r1, %r2}, [%rd1];"
    with pytest.raises(AssertionError):
        check_global_accesses(narrow)
    with pytest.raises(AssertionError):
        check_global_accesses("cp.async.ca.shared.global [%r1], [%rd1], 4, %r2;")
    with pytest.raises(AssertionError):
        check_operands("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {..}; ld.shared.b16 %rs1, [%r1];")
    check_global_accesses("ld.global.v4.b32 {..}, [%rd1]; cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;")
