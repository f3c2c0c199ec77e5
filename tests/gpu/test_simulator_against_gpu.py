"""The simulator and the hardware agree: instruction tests, other compilers' programs, and this library's kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.differential import compare, tolerance
from tests.simulator.foreign import test_foreign, test_foreign_gpu
from tests.simulator.foreign.corpus import Descriptor, Launch, Program
from tests.simulator.foreign.test_foreign import PROGRAMS

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
RESTARTS = 5
FAMILIES = (
    "test_integer", "test_logic", "test_floating", "test_compare", "test_convert", "test_memory", "test_atomics",
    "test_warp", "test_control", "test_matrix", "test_async",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_instructions_do_the_same_on_the_gpu(family: str, tmp_path: Path) -> None:
    """All launches of the simulator's own tests, repeated: the same memory afterwards."""
    report = tmp_path / "report.jsonl"
    environment = os.environ | {"TILUS_DIFFERENTIAL_REPORT": str(report), "PYTHONPATH": _path()}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.gpu.differential", "-p", "no:cacheprovider"]
    left_out: list[str] = []
    for _ in range(RESTARTS):
        deselected = [option for test in left_out for option in ("--deselect", test)]
        done = subprocess.run(
            [*command, *deselected, f"tests/simulator/{family}.py"], cwd=ROOT, env=environment, timeout=300,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode in (0, 1, 5) or not report.exists():
            break
        # The process ended in a launch: go on without that test.
        left_out.append(_lines(report)[-1]["test"])
    lines = _lines(report) if report.exists() else []
    counts = Counter(line["outcome"].split(":")[0].split()[0] for line in lines)
    wrong = [line for line in lines if line["outcome"].split()[0].rstrip(":") in ("differs", "error", "hung")]
    print(f"{family}: {dict(counts)}")
    folder = os.environ.get("TILUS_DIFFERENTIAL_FOLDER")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{family}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert wrong == []
    assert left_out == []
    assert counts["equal"] + counts["close"] > 0, done.stdout[-2000:]


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _lines(report: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


def arrays_of(launch: Launch) -> list[np.ndarray]:
    """All arrays of a launch, those under descriptors included."""
    found = [value.array if isinstance(value, Descriptor) else value for value in launch.args]
    return [value for value in found if isinstance(value, np.ndarray)]


def agreement(program: Program, simulated: Launch, real: Launch) -> list[str]:
    """What differs between two runs of a program."""
    relative = tolerance(program.ptx)
    if any(check.unordered for check in real.checks):
        return []
    failures = []
    if relative == 0:
        for i, (left, right) in enumerate(zip(arrays_of(simulated), arrays_of(real), strict=True)):
            outcome = compare(left.tobytes(), right.tobytes(), left.dtype, 0.0)
            if outcome != "equal":
                failures.append(f"argument {i} {outcome}")
        return failures
    # Where the ISA leaves room, both lie within the program's own bound around the same reference.
    for i, (left_check, right_check) in enumerate(zip(simulated.checks, real.checks, strict=True)):
        left, right = left_check.got.astype(np.float64), right_check.got.astype(np.float64)
        bound = 0.0 if left_check.bound is None else 2 * np.asarray(left_check.bound)
        if not ((np.abs(left - right) <= bound) | (np.isnan(left) & np.isnan(right)) | (left == right)).all():
            failures.append(f"result {i} differs by up to {np.nanmax(np.abs(left - right)):.1e}")
    return failures


def fresh(program: Program) -> Launch:
    return program.setup(np.random.default_rng(zlib.crc32(program.name.encode())))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_foreign_programs_leave_the_same_memory(program: Program) -> None:
    device = test_foreign_gpu.Device()
    major, minor, exact = test_foreign_gpu.needs(program.ptx)
    if device.capability < (major, minor) or (exact and device.capability != (major, minor)):
        pytest.skip(f"the program is for compute capability {major}.{minor}, the GPU has {device.capability}")
    if re.search(r"%(clock|globaltimer|smid)", program.ptx):
        pytest.skip("the program reads a clock or where it runs")
    simulated, real = fresh(program), fresh(program)
    test_foreign.run(program, simulated, checks=False)
    try:
        device.run(program, real)
    finally:
        device.close()
    assert agreement(program, simulated, real) == []


def on_both(kernel: Any, tensors: list[Any], **options: Any) -> list[tuple[Any, Any]]:
    """Run a kernel on the simulator, for the GPU's target, and on the GPU; return pairs of all tensors."""
    import torch

    from tilus.ops.device import target_of

    real = [tensor.cuda() for tensor in tensors]
    kernel.simulate(*tensors, target=target_of(real[0]).name, **options).raise_if_hazards()
    kernel(*real, **options)
    torch.cuda.synchronize()
    return [(left, right.cpu()) for left, right in zip(tensors, real, strict=True)]


@pytest.mark.parametrize("shape", [(5, 1000), (8, 1024)])
def test_softmax_agrees_to_the_last_bits(shape: tuple[int, int]) -> None:
    import torch

    from examples.softmax import softmax

    x = torch.randn(shape)
    ((_, _), (left, right)) = on_both(softmax, [x, torch.full(shape, -1.0)])
    # ex2.approx of both is right within 2 units in the last place (PTX ISA); sums and quotients follow it.
    assert float(((left - right).abs() / left.abs()).max()) <= 2.0**-20


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("m", [16, 100, 200])
def test_matmul_agrees_within_one_rounding(dtype: str, m: int) -> None:
    import torch

    from tilus import ops

    kind = getattr(torch, dtype)
    n, k = 136, 256
    if dtype == "int8":
        a, b = (torch.randint(-127, 128, shape, dtype=kind) for shape in ((m, k), (n, k)))
        left, right = (
            ops.matmul(a, b.T, out_dtype=torch.float32),
            ops.matmul(a.cuda(), b.cuda().T, out_dtype=torch.float32),
        )
        assert torch.equal(left, right.cpu())
        return
    a, b = torch.randn(m, k).to(kind), torch.randn(n, k).to(kind)
    left, right = ops.matmul(a, b.T), ops.matmul(a.cuda(), b.cuda().T).cpu()
    exact = a.double() @ b.double().T
    # Each lies within one rounding of the sum; the order of additions moves the sum itself by far less.
    unit = torch.finfo(kind).eps
    assert bool(((left.double() - right.double()).abs() <= unit * exact.abs() + 2.0**-12).all())


@pytest.mark.parametrize("name", ["uint4", "int3", "uint1", "float6_e3m2", "float8_e4m3", "nf4"])
@pytest.mark.parametrize("m", [1, 40])
def test_quantized_matmul_agrees_within_one_rounding(name: str, m: int) -> None:
    import torch

    from tilus import ops

    k, n = 512, 160
    weight = ops.quantize(torch.randn(k, n) / k**0.5, name, 128)
    a = torch.randn(m, k).half()
    left, right = ops.quantized_matmul(a, weight), ops.quantized_matmul(a.cuda(), weight.to("cuda")).cpu()
    exact = a.double() @ weight.dequantize()
    assert bool(((left.double() - right.double()).abs() <= 2.0**-10 * exact.abs() + 2.0**-9).all())
