"""The benchmarks' harness: what is wrong is not timed, what crashes costs one contender, and tables say the ratio."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a file of `benchmarks/`, which is no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, made)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("_harness", monkeypatch)


class Clock:
    """A timer for which each contender takes a time of its own."""

    def __init__(self, harness: ModuleType) -> None:
        self.harness = harness
        self.timed: list[str] = []

    def rounds(self, runs: dict[str, Any], rounds: int) -> dict[str, Any]:
        self.timed += list(runs)
        return {
            name: tuple([self.harness.Spread(float(len(name)), 1.0, 9.0, 3)] * 2) + (2.0,) for name in runs
        }


def bench_of(harness: ModuleType, out: Path, resume: bool = False) -> Any:
    parsed = argparse.Namespace(dry_run=True, seconds=60.0, rounds=2, out=out, resume=resume)
    bench = harness.Bench("sample", parsed)
    bench.timer = Clock(harness)
    return bench


REFERENCE = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(3, 4)


def compare(harness: ModuleType, bench: Any, contenders: dict[str, Any]) -> dict[str, Any]:
    made = [
        harness.Contender(name, lambda result=result: lambda: result) for name, result in contenders.items()
    ]
    rows: dict[str, Any] = bench.compare({"m": 3}, made, REFERENCE, 1e-3, lambda us: {"tflops": 12 / us})
    return rows


def test_errors_see_what_is_missing_or_not_finite(harness: ModuleType) -> None:
    assert harness.relative_error(REFERENCE.float(), REFERENCE) == 0
    assert harness.relative_error(REFERENCE[:2], REFERENCE) == math.inf
    broken = REFERENCE.clone()
    broken[1, 2] = math.nan
    assert harness.relative_error(broken, REFERENCE) == math.inf
    assert harness.relative_error(torch.zeros(3, 4), REFERENCE) == 1


def test_a_wrong_contender_is_reported_and_not_timed(harness: ModuleType, tmp_path: Path) -> None:
    bench = bench_of(harness, tmp_path / "out.json")
    rows = compare(harness, bench, {"good": REFERENCE, "bad": REFERENCE + 1})
    assert rows["bad"].status == "wrong"
    assert "allowed 1.0e-03" in rows["bad"].note
    assert rows["good"].status == "ok"
    assert rows["good"].figures == {"tflops": 3.0, "warm_tflops": 3.0}
    assert bench.timer.timed == ["good"]


def test_a_failure_is_reported_and_the_others_go_on(harness: ModuleType, tmp_path: Path) -> None:
    bench = bench_of(harness, tmp_path / "out.json")

    def fail() -> Any:
        raise ValueError("no such kernel\nand more")

    def absent() -> Any:
        raise harness.SkipContender("not installed")

    contenders = [
        harness.Contender("broken", fail), harness.Contender("absent", absent),
        harness.Contender("good", lambda: lambda: REFERENCE),
    ]  # fmt: skip
    bench.compare({"m": 3}, contenders, REFERENCE, 1e-3, lambda us: {})
    saved = {row["contender"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert (saved["broken"]["status"], saved["broken"]["note"]) == ("failed", "ValueError: no such kernel")
    assert (saved["absent"]["status"], saved["absent"]["note"]) == ("skipped", "not installed")
    assert saved["good"]["status"] == "ok"


def test_an_opponents_own_error_widens_the_bound(harness: ModuleType, tmp_path: Path) -> None:
    bench = bench_of(harness, tmp_path / "out.json")
    contenders = [
        harness.Contender(name, lambda factor=factor: lambda: REFERENCE * factor)
        for name, factor in (("library", 1.0005), ("near", 1.0009), ("far", 1.002))
    ]
    rows = bench.compare({"m": 3}, contenders, REFERENCE, 6e-4, lambda us: {}, raise_bound_by="library")
    assert [rows[name].status for name in ("library", "near", "far")] == ["ok", "ok", "wrong"]


def test_what_died_is_left_out_of_the_next_start(harness: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bench = bench_of(harness, out)
    compare(harness, bench, {"first": REFERENCE})
    bench.rows.append(harness.Row({"m": 4}, "killer", harness.RUNNING))
    bench.save()
    again = bench_of(harness, out, resume=True)
    assert [(row.contender, row.status) for row in again.rows] == [("first", "ok"), ("killer", "failed")]
    assert again.done({"m": 3})
    assert again.rows[0].cold == harness.Spread(5.0, 1.0, 9.0, 3)

    def kills() -> Any:
        raise AssertionError("it ran again")

    contenders = [harness.Contender("killer", kills), harness.Contender("other", lambda: lambda: REFERENCE)]
    rows = again.compare({"m": 4}, contenders, REFERENCE, 1e-3, lambda us: {})
    assert (rows["killer"].status, rows["other"].status) == ("failed", "ok")


def test_widened_weights_are_what_quantize_makes_of_repeated_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = module("quantized_matmul", monkeypatch)
    dense = torch.randn(256, quantized.COLUMNS)
    for name in ("uint4", "int3", "float6_e3m2"):
        wide = quantized.widen(quantized.ops.quantize(dense, name, 128), 3)
        expected = quantized.ops.quantize(dense.repeat(1, 3), name, 128)
        assert torch.equal(wide.packed, expected.packed)
        assert torch.equal(wide.scale, expected.scale)
        assert wide.shape == expected.shape


def test_a_benchmark_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_gpu = module("run_gpu", monkeypatch)
    monkeypatch.setattr(run_gpu, "HERE", tmp_path)
    (tmp_path / "sample.py").write_text(
        "import json, pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "again = '--resume' in sys.argv\n"
        "rows = json.loads(out.read_text())['rows'] if again else []\n"
        "rows.append({'contender': 'again' if again else 'first'})\n"
        "out.write_text(json.dumps({'benchmark': 'sample', 'rows': rows, 'facts': {}}))\n"
        "sys.exit(0 if again else 3)\n"
    )
    found = run_gpu.run_part(run_gpu.Part("sample", 1.0), 60.0, tmp_path, False)
    assert [row["contender"] for row in found["rows"]] == ["first", "again"]
    assert found["happened"] == ["CUDA context lost"]


def test_a_benchmark_that_hangs_is_ended_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_gpu = module("run_gpu", monkeypatch)
    (tmp_path / "sleep.py").write_text("print('before', flush=True)\nimport time\ntime.sleep(60)\n")
    status, printed = run_gpu._watched([sys.executable, str(tmp_path / "sleep.py")], 3.0)
    assert status != 0
    assert printed == "before\n"


def test_tables_say_how_many_times_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    run_gpu = module("run_gpu", monkeypatch)

    def row(contender: str, cold: float, warm: float) -> dict[str, Any]:
        figures = {"tflops": 100.0, "gbps": 2000.0, "floor_share": 0.5}
        times = {"cold": {"median": cold}, "warm": {"median": warm}}
        return {
            "case": {"m": 1},
            "contender": contender,
            "status": "ok",
            "note": "",
            "figures": figures,
            **times,
        }

    rows = [row("cublas", 30.0, 20.0), row("tilus", 10.0, 5.0)]
    lines = run_gpu._comparison_table(rows).splitlines()
    assert lines[0].endswith("| cublas / tilus |")
    assert lines[2] == "| m=1 | 10.0 | 5.0 | 100 | 2000 | 0.50 | 3.00 / 4.00 |"


def test_a_child_that_outlives_its_benchmark_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_gpu = module("run_gpu", monkeypatch)
    monkeypatch.setattr(run_gpu, "GRACE", 1.0)
    child = "import time; time.sleep(60)"
    (tmp_path / "parent.py").write_text(
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('before', flush=True)\nif sys.argv[1:]:\n    time.sleep(60)\n"
    )
    command = [sys.executable, str(tmp_path / "parent.py")]
    start = time.monotonic()
    assert run_gpu._watched(command, 30.0) == (0, "before\n")
    status, printed = run_gpu._watched([*command, "wait"], 3.0)
    assert (status, printed) == (-9, "before\n")
    assert time.monotonic() - start < 25


def test_a_case_that_fails_before_its_contenders_costs_that_case(harness: ModuleType, tmp_path: Path) -> None:
    bench = bench_of(harness, tmp_path / "out.json")
    failures = (ValueError("no such type"), torch.OutOfMemoryError("too large"))
    for m, failure in enumerate(failures):
        with bench.guarded():
            assert not bench.done({"m": m})
            raise failure
    assert [(row.case, row.status, row.note) for row in bench.rows] == [
        ({"m": 0}, "failed", "ValueError: no such type"), ({"m": 1}, "skipped", "OutOfMemoryError: too large"),
    ]  # fmt: skip
    assert bench_of(harness, tmp_path / "out.json", resume=True).done({"m": 0})


def test_an_error_of_any_class_while_timed_is_reported(harness: ModuleType, tmp_path: Path) -> None:
    from tilus.errors import LaunchError

    class Refuses:
        def rounds(self, runs: dict[str, Any], rounds: int) -> dict[str, Any]:
            raise LaunchError("launching k failed: an illegal memory access was encountered")

    bench = bench_of(harness, tmp_path / "out.json")
    bench.timer = Refuses()
    rows = compare(harness, bench, {"good": REFERENCE})
    assert rows["good"].status == "failed"
    assert rows["good"].note.startswith("while timed: LaunchError: launching k failed")
