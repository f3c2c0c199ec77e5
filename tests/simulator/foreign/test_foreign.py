"""Programs that other compilers made run on the simulator with every check on: right numbers, no hazard."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.simulator.foreign.corpus import FACTS, PTX, Descriptor, Launch, Program
from tests.simulator.foreign.programs import (
    cuda_arithmetic,
    cuda_blocks,
    cuda_groups,
    cuda_hopper,
    cuda_language,
    cuda_models,
    cuda_tensor,
    cuda_warps,
    triton_attention,
    triton_collective,
    triton_matmul,
    triton_models,
    triton_rows,
)
from tilus import simulator

TRITON = [
    p
    for module in (triton_rows, triton_matmul, triton_attention, triton_collective, triton_models)
    for p in module.PROGRAMS
]
CUDA = [
    p
    for module in (
        cuda_blocks,
        cuda_warps,
        cuda_arithmetic,
        cuda_tensor,
        cuda_models,
        cuda_language,
        cuda_groups,
        cuda_hopper,
    )
    for p in module.PROGRAMS
]
PROGRAMS = TRITON + CUDA
ELEMENT_TYPES = {np.dtype(np.float16): "f16", np.dtype(np.float32): "f32"}


def argument(value: Any) -> Any:
    if not isinstance(value, Descriptor):
        return value
    array = value.array
    return simulator.TensorMap(
        element_type=ELEMENT_TYPES.get(array.dtype, "u8"),
        global_dims=array.shape[::-1],
        global_strides=array.strides[-2::-1],
        box=value.box[::-1],
        swizzle=(0, 32, 64, 128)[value.swizzle],
        array=array,
    )


def run(program: Program, launch: Launch, checks: bool = True) -> Any:
    kernel = simulator.load(program.ptx)[program.kernel]
    return kernel.launch(
        grid=launch.grid,
        block=launch.block,
        cluster=launch.cluster,
        args=[argument(value) for value in launch.args],
        shared_bytes=launch.shared_bytes,
        checks=checks,
    )


def prepared(program: Program) -> Launch:
    return program.setup(np.random.default_rng(zlib.crc32(program.name.encode())))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_foreign_program_gives_right_numbers_and_no_hazard(program: Program) -> None:
    launch = prepared(program)
    report = run(program, launch)
    assert [str(hazard) for hazard in report.hazards] == []
    failures = [failure for failure in (check.failure() for check in launch.checks) if failure is not None]
    assert failures == []
    if launch.output is not None:
        # Warps print in any order.
        assert sorted(report.printed.splitlines()) == sorted(launch.output.splitlines())


OLDER = [
    pytest.param(path, program, id=f"{path.parent.name}-{program.name}")
    for path in sorted(PTX.glob("triton-*/*.ptx"))
    for program in TRITON
    if program.file == path.stem
]


@pytest.mark.parametrize(("path", "program"), OLDER)
def test_older_compilers_programs_are_right_as_well(
    path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads((path.parent / "facts.json").read_text())
    monkeypatch.setitem(FACTS, program.file, facts[program.file])
    test_foreign_program_gives_right_numbers_and_no_hazard(replace(program, text=path.read_text()))


def test_ptx_names_no_directory_of_a_machine() -> None:
    for path in PTX.rglob("*.ptx"):
        text = path.read_text()
        assert re.findall(r'^\s*\.file\s+\d+\s+"/.*', text, re.MULTILINE) == []
        lists = re.findall(r"^\.b8 ([\d,]+)", text, re.MULTILINE)
        strings = bytes(int(byte) for line in lists for byte in line.split(","))
        assert re.findall(rb"/\w+/\w+/", strings) == [], path


def test_an_untouched_result_fails_every_program() -> None:
    """Every program changes something that its checks look at, so that a launch which does nothing cannot pass."""
    reads_only = {"triton_printing_sm80", "nvcc_printf-hello"}
    idle = [p.name for p in PROGRAMS if all(check.failure() is None for check in prepared(p).checks)]
    assert set(idle) == reads_only


def test_every_file_is_launched() -> None:
    launched = {program.file for program in PROGRAMS}
    assert launched == {path.stem for path in PTX.glob("*.ptx")}
    assert {program.file for program in TRITON} == set(FACTS)
