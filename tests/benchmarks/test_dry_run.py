"""The GPU benchmarks run without a GPU: the same code on the simulator, right results, no times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def dry_run(name: str, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run a benchmark as users do and return its rows."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / f"{name}.py"),
        "--dry-run",
        "--out",
        str(out),
        *arguments,
    ]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return rows


def test_matmul_is_right_in_every_type_without_a_gpu(tmp_path: Path) -> None:
    rows = dry_run("matmul", tmp_path / "out.json", "--types", "bf16", "fp16", "tf32", "int8", "fp8")
    ours = [row for row in rows if row["contender"] == "tilus"]
    assert {row["status"] for row in ours} == {"checked"}
    assert {row["case"]["type"] for row in ours} == {"bf16", "fp16", "tf32", "int8", "fp8"}
    assert all(
        row["cold"] is None and 0 < row["error"] < 0.01 for row in ours if row["case"]["type"] != "int8"
    )


def test_quantized_matmul_is_right_without_a_gpu(tmp_path: Path) -> None:
    rows = dry_run("quantized_matmul", tmp_path / "out.json", "--types", "uint4", "int3", "float6_e3m2")
    assert [row["status"] for row in rows if row["contender"] == "tilus"] == ["checked"] * 3
    assert [row["status"] for row in rows if row["contender"] == "cublas float16"] == ["checked"] * 3


def test_every_probe_runs_on_the_simulator_without_a_hazard(tmp_path: Path) -> None:
    rows = dry_run("microbench", tmp_path / "out.json")
    assert [row for row in rows if row["status"] != "checked"] == []
    names = {row["case"]["probe"] for row in rows}
    assert {"lop3", "prmt", "popc", "shfl.bfly", "ex2.f32", "fma.f16x2", "ld.shared 16 bytes"} <= names
    assert {name.split()[0] for name in names} >= {"mma.sync", "wgmma", "bar.sync,", "mbarrier", "cvt"}


@pytest.mark.parametrize("name", ["matmul", "quantized_matmul", "microbench"])
def test_without_a_gpu_a_benchmark_says_so_and_is_no_failure(name: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0
    assert "no CUDA GPU on this machine" in done.stdout
