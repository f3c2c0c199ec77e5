"""Speed and memory of the simulator on the CPU, beside others that run GPU kernels without a GPU, in one run.

A float16 GEMM of 512 x 512 x 512 and a softmax of 512 rows of 1024, ours with all checks and without any, as the
machine code's PTX; against Triton's interpreter (tile operations in NumPy, no checks), Pallas' Mosaic GPU interpreter
(tile operations, with race detection) and Numba's CUDA simulator (Python threads, smaller sizes: rates compare). Each
measurement is a process of its own, and all take turns.

    TRITON_PYTHON=... JAX_PYTHON=... NUMBA_PYTHON=... python benchmarks/simulator.py [--rounds 3]

The variables name Pythons that have Triton with torch, JAX, and Numba with numba-cuda; without them this one is asked.
Who is not there is left out with a message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "simulator.json"
COLUMNS = 1024
TIMEOUT = 600


@dataclass(frozen=True)
class Entry:
    """A way to run a kernel without a GPU."""

    name: str
    who: str
    what: str
    size: int
    arguments: tuple[str, ...] = ()
    variable: str = ""
    modules: str = "tilus"


def entries(size: int) -> list[Entry]:
    """Return all that are compared."""
    numba, triton = ("NUMBA_PYTHON", "numba.cuda"), ("TRITON_PYTHON", "triton, torch")
    found = []
    for what in ("gemm", "softmax"):
        found += [
            Entry("tilus, all checks", "tilus", what, size, ("--checks",)),
            Entry("tilus, no checks", "tilus", what, size),
            Entry("Triton's interpreter", "triton", what, size, (), *triton),
        ]
    hopper = ("--target", "sm_90a")
    pallas = ("JAX_PYTHON", "jax.experimental.pallas.mosaic_gpu")
    found += [
        Entry("tilus, Hopper, all checks", "tilus", "gemm", size, ("--checks", *hopper)),
        Entry("tilus, Hopper, no checks", "tilus", "gemm", size, hopper),
        Entry("Pallas Mosaic GPU, race detection", "pallas", "gemm", size, ("--checks",), *pallas),
        Entry("Pallas Mosaic GPU, no detection", "pallas", "gemm", size, (), *pallas),
        Entry("Numba's simulator", "numba", "gemm", max(size // 16, 16), (), *numba),
        Entry("Numba's simulator", "numba", "softmax", max(size // 16, 16), (), *numba),
    ]
    return found


def python_of(entry: Entry) -> tuple[str, str | None]:
    """Return the Python that runs an entry, and why there is none."""
    python = os.environ.get(entry.variable, sys.executable) if entry.variable else sys.executable
    try:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", f"import {entry.modules}"],
            capture_output=True,
            env=environment(),
            timeout=TIMEOUT,
        )
    except OSError as error:
        return python, str(error)
    if done.returncode == 0:
        return python, None
    return python, f"{python} cannot import {entry.modules}; {entry.variable} may name one that can"


def environment() -> dict[str, str]:
    paths = filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }


def measure(entry: Entry, python: str) -> dict[str, Any]:
    """Run one measurement in a fresh process."""
    command = [
        python,
        "-W",
        "ignore",
        str(HERE / "_interpreters.py"),
        entry.who,
        entry.what,
        str(entry.size),
        *entry.arguments,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {TIMEOUT} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def work(entry: Entry) -> float:
    """Return what is done in a run: operations of the GEMM, elements of the softmax."""
    return float(2 * entry.size**3 if entry.what == "gemm" else entry.size * COLUMNS)


def summary(entry: Entry, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of results."""
    row: dict[str, Any] = {"name": entry.name, "what": entry.what, "size": entry.size}
    failed = next((run["failed"] for run in runs if "failed" in run), None)
    if failed is not None:
        return row | {"failed": failed}
    seconds = statistics.median(min(run["seconds"]) for run in runs)
    row |= {"seconds": seconds, "first_run_seconds": statistics.median(run["first"] for run in runs)}
    row["giga_per_second"] = work(entry) / seconds / 1e9
    row["peak_mib"] = (
        round(max(run["peak_bytes"] for run in runs) / 2**20, 1) if runs[0]["peak_bytes"] else None
    )
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as text; ratios are to ours with all checks, of the same kernel and target."""
    lines = [f"{'':36}{'what':>8}{'size':>6}{'seconds':>10}{'G op/s':>9}{'x slower':>10}{'MiB':>7}"]
    for row in rows:
        head = f"{row['name']:36}{row['what']:>8}{row['size']:>6}"
        if "seconds" not in row:
            lines.append(f"{head}  {row.get('failed', row.get('skipped'))}")
            continue
        lines.append(
            f"{head}{row['seconds']:>10.3f}{row['giga_per_second']:>9.2g}{row.get('slower', 0):>10.2f}{row['peak_mib'] or 0:>7.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="of the GEMM, and rows of the softmax")
    parser.add_argument("--only", default="", help="entries whose name contains this, beside our own")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    wanted = [e for e in entries(options.size) if e.who == "tilus" or options.only in e.name]
    pythons: dict[str, tuple[str, str | None]] = {}
    for entry in wanted:
        pythons.setdefault(entry.who, python_of(entry))
    for who, (_, missing) in pythons.items():
        if missing is not None:
            print(f"{who} is left out: {missing}")
    runs: dict[Entry, list[dict[str, Any]]] = {entry: [] for entry in wanted if pythons[entry.who][1] is None}
    for number in range(options.rounds):
        for entry, found in runs.items():
            # Once is enough for one that takes minutes or fails.
            if number and (sum(found[0].get("seconds", [TIMEOUT])) > 60 or "failed" in found[0]):
                continue
            found.append(measure(entry, pythons[entry.who][0]))
    rows = [summary(entry, found) for entry, found in runs.items()]
    ours = {
        (r["what"], "Hopper" in r["name"]): r
        for r in rows
        if r["name"].startswith("tilus") and "all" in r["name"]
    }
    for row in rows:
        base = ours[row["what"], "Hopper" in row["name"] or "Pallas" in row["name"]]
        if "seconds" in row and "seconds" in base:
            row["slower"] = base["giga_per_second"] / row["giga_per_second"]
    rows += [{"name": who, "what": "", "size": 0, "skipped": why} for who, (_, why) in pythons.items() if why]
    print(table(rows))
    if options.write:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
        machine["load"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        RESULTS.parent.mkdir(exist_ok=True)
        kept = [row for row in rows if "skipped" not in row]
        RESULTS.write_text(
            json.dumps({"machine": machine, "rows": kept}, indent=1) + "\n", encoding="utf-8", newline="\n"
        )
        print(f"written to results/{RESULTS.name}")


if __name__ == "__main__":
    main()
