"""What `make gpu` does about tuning: measured figures for the cost model, and ops that are tuned before they are timed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("torch")

from tilus.codegen import figures as codegen_figures
from tilus.codegen import target
from tilus.codegen.figures import FIGURES, calibrated, figures

ROOT = Path(__file__).resolve().parents[2]
H200 = FIGURES["H200"]
MEASURED = {
    "HBM: copy": 4300.0, "L2, 24 MiB: read": 7000.0, "latency of HBM": 640.4, "launch: graph": 1.5,
    "wgmma n256 bf16 -> f32": 4012.3, "mma.sync bf16 -> f32": 2600.0, "lop3": 63.7, "fma.f16x2": 127.0,
    "ld.shared 16 bytes": 1.0,
}  # fmt: skip


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def results(device: str = "NVIDIA H200") -> dict[str, object]:
    rows = [{"case": {"probe": p}, "status": "ok", "figures": {"value": v}} for p, v in MEASURED.items()]
    rows.append({"case": {"probe": "popc"}, "status": "failed", "figures": {}})
    return {"info": {"device": device, "time": "2026-11-21"}, "parts": {"microbench": {"rows": rows}}}


def test_microbenchmarks_become_figures_of_the_card(benchmark) -> None:  # type: ignore[no-untyped-def]
    calibrate = benchmark("calibrate")
    assert calibrate.card_of(results()).name == "H200"
    assert calibrate.card_of(results("NVIDIA GeForce RTX 4090")).name == "RTX 4090"
    assert calibrate.card_of(results("GTX 1080")) is None
    values = calibrate.measured_values(results())
    assert values == MEASURED
    fields, left_out = calibrate.figures_from(values, H200)
    assert fields == {
        "global_share": pytest.approx(4.3 / 4.8),
        "l2_bytes_per_clock": round(7e12 / H200.clock),
        "global_latency": 640,
        "launch_seconds": pytest.approx(1.5e-6),
        "tensor": {"f16": 4012},
        "lanes": {"alu": 64, "half2": 127},
        "mma_sync_share": 0.648,
    }
    assert left_out == ["shared_bytes_per_clock: ld.shared 16 bytes gives 1, documented or assumed is 128"]
    card = calibrated(H200, fields)
    assert card.tensor_ops("bf16") == pytest.approx(2600, rel=0.001)
    assert card.lanes.special == H200.lanes.special


def test_a_card_without_wgmma_is_measured_by_mma_sync(benchmark) -> None:  # type: ignore[no-untyped-def]
    calibrate = benchmark("calibrate")
    fields, _ = calibrate.figures_from({"mma.sync bf16 -> f32": 2040.0}, FIGURES["A100"])
    assert fields == {"tensor": {"f16": 2040}}


def test_the_probes_have_the_names_of_the_microbenchmarks(benchmark) -> None:  # type: ignore[no-untyped-def]
    calibrate, probes, microbench = benchmark("calibrate"), benchmark("_probes"), benchmark("microbench")
    gpu = SimpleNamespace(target=target("sm_90a"))
    known = {probe.name for probe in probes.PROBES} | {name for name, _ in microbench.memory_figures(gpu)}
    named = {probe for _, probe, _ in (*calibrate.PROBES, *calibrate.WITHOUT_WGMMA)} | {calibrate.SYNCHRONOUS}
    assert named <= known


def test_measured_figures_are_read_where_the_model_looks(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    calibrate = benchmark("calibrate")
    file, out = tmp_path / "nvidia-h200-2026-11-21.json", tmp_path / "measured.json"
    file.write_text(json.dumps(results()))
    monkeypatch.setattr(sys, "argv", ["calibrate.py", str(file), "--out", str(out)])
    calibrate.main()
    monkeypatch.setattr(codegen_figures, "MEASURED", out)
    codegen_figures._measured.cache_clear()
    try:
        assert figures("H200").tensor.f16 == 4012
        assert figures("H200").sources[0][1] == "measured by benchmarks/microbench.py"
        assert figures("A100") == FIGURES["A100"]
    finally:
        codegen_figures._measured.cache_clear()


def test_the_table_of_a_run_shows_heuristic_choice_and_fastest(benchmark) -> None:  # type: ignore[no-untyped-def]
    run_gpu = benchmark("run_gpu")
    assert [part.name for part in run_gpu.PARTS[:3]] == ["smoke", "microbench", "tune"]
    times = {"heuristic_us": 12.0, "choice_us": 10.0, "best_us": 8.0, "model_us": 7.5}
    rows = [
        {
            "case": {"op": "matmul", "m": 16},
            "status": "ok",
            "figures": times,
            "note": "block_m=16",
            "contender": "tilus",
        },
        {
            "case": {"op": "matmul", "m": 32},
            "status": "failed",
            "figures": {},
            "note": "no",
            "contender": "tilus",
        },
    ]
    lines = run_gpu._tuning_table(rows).splitlines()
    assert lines[2] == "| op=matmul m=16 | 12.0 | 10.0 | 8.0 | 1.50 | 7.5 | block_m=16 |"
    assert lines[3].startswith("| op=matmul m=32 | failed |")
    info = {"device": "H200", "time": "2026-11-21T00", "versions": {}}
    text = run_gpu.tables({"info": info, "parts": {"tune": {"rows": rows, "facts": {}, "happened": []}}})
    assert "## tune" in text
    assert "- tilus on op=matmul m=32: failed, no" in text


def test_schedules_of_a_dry_run_give_the_heuristics_result(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "tune.py"), "--dry-run", "--out", str(out)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["status"] for row in rows] == ["checked", "checked"]
