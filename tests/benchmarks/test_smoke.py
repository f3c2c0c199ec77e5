"""The first minute on a GPU: every family is tried, and one that is wrong, fails or ends the process costs itself only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# The library as it would be with a kernel that is wrong, one that raises, and one that takes the process with it.
BREAK = """
import os, runpy, sys
sys.path.insert(0, "benchmarks")
import torch
from tilus import ops

matmul, route = ops.matmul, ops.route

def wrong(a, b, **more):
    return matmul(a, b, **more) + (a.dtype == torch.float32)

def ends(*arguments):
    if not os.path.exists(os.environ["MARKER"]):
        open(os.environ["MARKER"], "w").close()
        os._exit(3)
    return route(*arguments)

def fails(*arguments):
    raise RuntimeError("no such\\nluck")

ops.matmul, ops.route, ops.matmul_block_scaled = wrong, ends, fails
runpy.run_path("benchmarks/smoke.py", run_name="__main__")
"""


def smoke(folder: Path, *arguments: str, program: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    out = folder / "out.json"
    command = [sys.executable, "benchmarks/smoke.py"] if program is None else [sys.executable, "-c", program]
    command += ["--dry-run", "--out", str(out), *arguments]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "PYTHONPATH": paths,
        "CUDA_VISIBLE_DEVICES": "",
        "MARKER": str(folder / "marker"),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=300, capture_output=True, text=True)
    return done.returncode, json.loads(out.read_text(encoding="utf-8"))["rows"]


def test_every_family_is_right_and_what_is_not_costs_itself_only(tmp_path: Path) -> None:
    status, rows = smoke(tmp_path)
    assert status == 0
    assert [row for row in rows if row["status"] != "checked"] == []
    names = " ".join(row["case"]["family"] for row in rows)
    for word in (
        "tensor map",
        "cluster",
        "overlap",
        "mma",
        "ping-pong",
        "stream-k",
        "blocks",
        "uint1",
        "route",
        "grouped",
    ):
        assert word in names

    status, _ = smoke(tmp_path, program=BREAK)
    assert status == 3, "the process ended in one case"
    status, rows = smoke(tmp_path, "--resume", program=BREAK)
    assert status == 1
    found = {row["case"]["family"]: (row["status"], row["note"]) for row in rows}
    assert len(found) == len(rows) > 35
    bad = {name: what for name, what in found.items() if what[0] != "checked"}
    assert bad.keys() == {"matmul tf32", "matmul, blocks' scales", "route"}
    assert bad["matmul tf32"][0] == "wrong"
    assert bad["matmul, blocks' scales"] == ("failed", "RuntimeError: no such")
    assert bad["route"] == ("failed", "the process ended or hung here")
