"""The assembler's report: no serialised wgmma and no spills in what is shipped, and register budgets that take effect."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import tilus
from tilus import Tensor, constexpr, float16, float32
from tilus.cli.inspect import disassemble, find_disassembler
from tilus.codegen import assemble as assembler
from tilus.codegen.assemble import parse_resources
from tilus.codegen.target import target
from tilus.errors import CompileError, TilusError

TARGET = "sm_90a"
ROOT = Path(__file__).resolve().parents[2]

needs_assembler = pytest.mark.skipif(
    assembler.available() is not None, reason="nvJitLink is not installed, so nothing is assembled"
)
needs_ptxas = pytest.mark.skipif(
    assembler.ptxas_path() is None, reason="no ptxas: pip install nvidia-cuda-nvcc, or set TILUS_PTXAS"
)


def examples():
    """Load the kernels of the Hopper tutorial."""
    spec = importlib.util.spec_from_file_location("hopper_matmul", ROOT / "examples" / "hopper_matmul.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VERSIONS = examples().VERSIONS


@needs_assembler
@pytest.mark.parametrize("name", VERSIONS)
def test_shipped_hopper_kernels_are_not_serialised_and_do_not_spill(name):
    kernel, options = VERSIONS[name]
    made = kernel.compile(target=TARGET, **options)
    assert made.resources.warnings == ()
    assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0


@tilus.kernel
def reads_too_early(a: Tensor[float16, "m k"], c: Tensor[float32, "m n"]):
    """Accumulators are used while a product is still writing them."""
    tilus.grid(1, warps=4)
    s = tilus.shared(float16, (64, 64))
    tilus.store(s, tilus.load(a, (0, 0), (64, 64)))
    acc = tilus.dot_async(s, s.transpose())
    for _ in range(a.shape[0]):
        acc = tilus.dot_async(s, s.transpose(), acc * 2.0)
    tilus.store(c, tilus.dot_wait(acc), (0, 0))


@needs_assembler
@pytest.mark.skipif(
    assembler.nvjitlink_version().startswith("13.0"), reason="nvJitLink 13.0 waits without a word"
)
def test_products_that_the_assembler_waits_for_are_a_warning():
    (warning,) = reads_too_early.compile(target=TARGET).resources.warnings
    assert "wgmma.wait_group is injected" in warning


@needs_assembler
def test_dynamic_shared_memory_is_not_static():
    compiled = reads_too_early.compile(target=TARGET)
    assert compiled.shared_bytes >= 64 * 64 * 2
    assert compiled.resources.shared_static == 0


def test_the_report_is_read_whatever_the_tool_calls_it():
    log = """ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x
ptxas info    : (C7517) wgmma.wait_group is injected in around line 153 by compiler to allow use of registers
ptxas info    : (C7504) Potential Performance Loss: 'setmaxnreg' ignored to maintain compatibility across compilation units.
ptxas warning : Value of threads per SM is out of range
ptxas info    : Function properties for f
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 1024 bytes smem
"""
    found = parse_resources(log)
    assert (found.registers, found.stack, found.spill_stores, found.spill_loads) == (168, 16, 12, 8)
    assert (found.barriers, found.shared_static) == (2, 1024)
    assert [w.partition(" : ")[0].split()[-1] for w in found.warnings] == ["info", "info", "warning"]


@needs_ptxas
@pytest.mark.parametrize("name", ["4 specialised", "5 tilus.pipeline", "6 persistent"])
def test_register_budgets_take_effect(name):
    kernel, options = VERSIONS[name]
    made = kernel.compile(target=TARGET, **options)
    # 384 threads begin with 168 registers each, which is all that a multiprocessor has; 256 go on with 232, 128 with 40.
    assert made.resources.registers == 168
    assert 256 * 232 + 128 * 40 <= 384 * 168 <= 65536
    assert made.resources.warnings == ()
    if find_disassembler() is not None:
        sass = disassemble(made.cubin)
        budgets = [line for line in sass.splitlines() if "USETMAXREG" in line]
        assert len(budgets) == 2
        assert sum(f"{registers:#x}" in line for registers in (40, 232) for line in budgets) == 2


@needs_assembler
@pytest.mark.skipif(find_disassembler() is None, reason="no nvdisasm: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize("name", ["4 specialised", "5 tilus.pipeline", "6 persistent"])
def test_one_thread_starts_bulk_copies_of_maps_that_were_fetched_before(name):
    kernel, options = VERSIONS[name]
    sass = disassemble(kernel.compile(target=TARGET, **options).cubin)
    assert sass.count("UTMALDG.2D") == 2
    # A loop over lanes, where the assembler does not know that it is one thread.
    assert "BRA.U.ANY" not in sass
    maps = 3 if "UTMASTG" in sass else 2
    assert sass.count("UTMACCTL.PF") == maps


@tilus.kernel
def quotient(a: Tensor[float16, "64 64"], c: Tensor[float32, "64 64"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float16, (64, 64))
    tilus.store(s, tilus.load(a, (0, 0), (64, 64)))
    total = tilus.dot_wait(tilus.dot_async(s, s.transpose()))
    tilus.store(c, tilus.dot_wait(tilus.dot_async(s, s.transpose(), total)) / total, (0, 0))


@needs_ptxas
def test_a_division_beside_products_does_not_serialise_them():
    assert quotient.compile(target=TARGET).resources.warnings == ()


@tilus.kernel
def divided(
    a: Tensor[float32, "n"], *, warps: constexpr, many: constexpr, few: constexpr, from_warp: constexpr = 4
):
    tilus.grid(1, warps=warps)
    with tilus.warps(0, from_warp, registers=few):
        tilus.store(a, tilus.load(a, 0, 32) * 2.0, 0)
    with tilus.warps(from_warp, warps - from_warp, registers=many):
        tilus.store(a, tilus.load(a, 32, 32) * 2.0, 32)


@pytest.mark.parametrize(
    ("warps", "few", "many", "at_launch"),
    [(8, 40, 232, 232), (12, 40, 232, 168), (12, 24, 240, 168), (16, 32, 160, 128), (20, 24, 112, 96)],
)
def test_groups_take_and_give_up_registers(warps, few, many, at_launch):
    made = divided.compile(target=TARGET, warps=warps, few=few, many=many)
    assert f"setmaxnreg.dec.sync.aligned.u32 {few};" in made.ptx
    assert f"setmaxnreg.inc.sync.aligned.u32 {many};" in made.ptx
    if assembler.ptxas_path() is not None:
        assert made.resources.registers == at_launch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(warps=12, few=40, many=240),
            "want 66560 registers, but a block of 384 threads begins with 168 for each",
        ),
        (dict(warps=8, few=40, many=236), "236 registers for each thread"),
        (dict(warps=8, few=16, many=232), "16 registers for each thread"),
        (dict(warps=8, few=40, many=232, from_warp=2), "whole warpgroups of 4 warps, and these are 2 from 0"),
    ],
)
def test_budgets_that_the_hardware_cannot_meet_are_refused(options, words):
    with pytest.raises(TilusError, match=words) as error:
        divided.compile(target=TARGET, **options)
    assert error.value.hint
    assert error.value.location is not None


@needs_assembler
def test_only_kernels_that_set_registers_go_to_ptxas(monkeypatch, tmp_path):
    asked: list[str] = []

    def fake(program, ptx, machine, line_info):
        asked.append(program)
        return b"cubin", parse_resources("")

    monkeypatch.setattr(assembler, "ptxas_path", lambda: "ptxas of a package")
    monkeypatch.setattr(assembler, "_run_ptxas", fake)
    plain = VERSIONS["2 TMA, wgmma"][0].compile(target=TARGET)
    assert plain.cubin != b"cubin"
    assert asked == []
    specialised = VERSIONS["4 specialised"][0].compile(target=TARGET)
    assert specialised.cubin == b"cubin"
    assert asked == ["ptxas of a package"]


def test_ptxas_is_the_one_that_is_named_then_a_packages_then_the_paths(monkeypatch, tmp_path):
    program = "ptxas.exe" if os.name == "nt" else "ptxas"
    places = [
        tmp_path / name
        for name in ("named", "packages/nvidia/cu13/bin", "packages/triton/backends/nvidia/bin", "path")
    ]
    for place in places:
        place.mkdir(parents=True)
        (place / program).touch(mode=0o755)
    monkeypatch.setattr(assembler.sys, "path", [str(tmp_path / "packages")])
    monkeypatch.setenv("PATH", str(places[-1]))
    monkeypatch.setenv("TILUS_PTXAS", str(places[0] / program))
    find = assembler.ptxas_path.__wrapped__
    for place in places:
        assert find() == str(place / program)
        (place / program).unlink()
        monkeypatch.delenv("TILUS_PTXAS", raising=False)
    assert find() is None
    monkeypatch.setenv("TILUS_PTXAS", str(places[0] / program))
    with pytest.raises(CompileError, match=r"TILUS_PTXAS names .*, which is no file"):
        find()


@needs_assembler
@pytest.mark.skipif(os.name == "nt", reason="the stand-in for a program is a shell script")
def test_a_ptxas_that_fails_leaves_the_work_to_nvjitlink(tmp_path):
    program = tmp_path / "ptxas"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    machine = target(TARGET)
    assert assembler._run_ptxas(str(program), ".version 1.0", machine, True) is None
    assert assembler._run_ptxas(str(tmp_path / "missing"), ".version 1.0", machine, True) is None


def test_the_cache_tells_one_assembler_from_another(monkeypatch, tmp_path):
    found = set()
    for content in ("one", "another"):
        program = tmp_path / content
        program.write_text(content)
        monkeypatch.setattr(assembler, "ptxas_path", lambda program=program: str(program))
        found.add(assembler.assemblers())
    monkeypatch.setattr(assembler, "ptxas_path", lambda: None)
    found.add(assembler.assemblers())
    assert len(found) == 3
