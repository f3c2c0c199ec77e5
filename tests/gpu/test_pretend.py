"""The tests for a GPU run without one, on a driver that checks each call and has launches run by the simulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import torch, tilus
from tests.gpu import pretend
from tests.runtime import kernels
from tilus.ops import matmul, quantize, quantized_matmul

torch.manual_seed(0)
a, b = (torch.randn(shape, device="cuda").half() for shape in ((100, 128), (72, 128)))
c = matmul(a, b.T)
print(c.device, c.shape, bool((c.double() - a.double() @ b.double().T).abs().max() < 0.02))
weight = quantize(torch.randn(256, 64, device="cuda"), "int3")
x = torch.randn(3, 256, device="cuda").half()
exact = x.double() @ weight.dequantize().double()
print(bool((quantized_matmul(x, weight).double() - exact).abs().max() < 0.1))
print(pretend.COUNTS["launches"] >= 3, pretend.COUNTS["hazards"])
try:
    kernels.same_place(torch.zeros(32, device="cuda"))
except tilus.TilusError as error:
    print(error.message)
"""


@pytest.fixture
def pretended(c_compiler: str, tmp_path: Path) -> list[str]:
    """Return the command that runs Python with a pretended GPU."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the driver that is pretended is a libcuda.so.1, which only Linux loads")
    pytest.importorskip("cuda.bindings", reason="NVIDIA has no cuda-bindings for this platform")
    return [sys.executable, "-m", "tests.gpu.pretend"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )


def test_ops_run_through_the_driver_and_hazards_are_errors(pretended: list[str], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run([*pretended, str(tmp_path / "program.py")])
    assert done.returncode == 0, done.stderr
    device, numbers, counts, error = done.stdout.splitlines()
    assert device == "cuda:0 torch.Size([100, 72]) True"
    assert numbers == "True"
    assert counts == "True 0"
    assert error.startswith("launching same_place on 4 x 1 x 1 blocks failed: ")
    assert "global-race" in done.stderr


def test_the_tests_of_launches_pass(pretended: list[str]) -> None:
    # Counters of kernels that share tiles, in captures and on several streams, beside the launches themselves.
    files = ["tests/runtime/test_gpu.py", "tests/ops/test_shared_tiles.py"]
    done = run([*pretended, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files])
    assert re.search(r"\b14 passed, 1 skipped", done.stdout), done.stdout[-3000:] + done.stderr[-1000:]
