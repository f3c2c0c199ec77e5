"""What ends a process that has lost the GPU ends it after the test that lost it, and no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest
import torch

torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = lambda: None

@pytest.mark.MARK
@pytest.mark.parametrize("number", range(4))
def test(number):
    print("began", number)
    if number == 1:
        assert False, "a failure that costs nothing"
    if number == 2:
        def lost(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
        torch.cuda.synchronize = lost
        raise RuntimeError("launching failed")
"""


@pytest.mark.parametrize(
    ("mark", "began", "status"), [("gpu", [0, 1, 2], 3), ("filterwarnings('default')", [0, 1, 2, 3], 1)]
)
def test_process_ends_after_the_test_that_lost_the_context(
    mark: str, began: list[int], status: int, tmp_path: Path
) -> None:
    (tmp_path / "test_lost.py").write_text(TESTS.replace("MARK", mark))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-q",
        "-p",
        "tests.gpu.lost_context",
        "-p",
        "no:cacheprovider",
    ]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert [int(number) for number in re.findall(r"began (\d)", done.stdout)] == began
    assert ("the CUDA context is lost in " in done.stderr) == (status == 3)
