"""Measures the GPU, tunes the ops and runs the GPU benchmarks within a time budget; writes one file of results.

    python benchmarks/run_gpu.py [--minutes 20] [--only matmul] [--out FOLDER]

Each benchmark is a process of its own with its own time limit. One that crashes or hangs is started again and goes on
after the case that it died of; one that fails never stops the others. Results go to `FOLDER/<device>-<date>.json` and
`.md` after each benchmark, so that an interrupted run keeps what it has; parts that run twice on one day are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness import CONTEXT_LOST, HERE, HUNG, RESULTS, device_info, gpu_state, markdown_table, write_json
from calibrate import card_of, figures_from, measured_values

RESTARTS = 6
MARGIN = 20.0
"""Seconds between the moment when a benchmark ends by itself and the one when it is ended."""
GRACE = 5.0
"""Seconds for a process that is ended to be gone."""


@dataclass(frozen=True)
class Part:
    """A benchmark, and its share of the time."""

    name: str
    share: float
    arguments: tuple[str, ...] = ()
    resumes: bool = True


# In order of what is missed most if time ends; the first says within a minute whether the others make sense.
PARTS = (
    Part("smoke", 0.1),
    Part("microbench", 0.12),
    Part("tune", 0.25),
    Part("matmul", 0.28),
    Part("quantized_matmul", 0.3),
    Part("mixture_of_experts", 0.2),
    Part("launch_overhead", 0.05, ("--json",), resumes=False),
)


def run_part(part: Part, seconds: float, folder: Path, dry_run: bool) -> dict[str, Any]:
    """Run a benchmark and return its results, with what happened to it."""
    out = folder / f"{part.name}.part.json"
    out.unlink(missing_ok=True)
    end = time.monotonic() + seconds
    happened: list[str] = []
    printed = ""
    for attempt in range(RESTARTS):
        left = end - time.monotonic()
        if left < 5:
            happened.append("out of time")
            break
        command = [sys.executable, str(HERE / f"{part.name}.py"), *part.arguments]
        if part.resumes:
            command += ["--out", str(out), "--seconds", str(max(left - MARGIN, left / 2))]
            command += ["--resume"] if attempt else []
            command += ["--dry-run"] if dry_run else []
        status, printed = _watched(command, left)
        if status == 0:
            break
        happened.append(
            {CONTEXT_LOST: "CUDA context lost", HUNG: "hung"}.get(status, f"exit status {status}")
        )
        if not part.resumes or status == 1:
            break
    found: dict[str, Any] = {"benchmark": part.name, "rows": [], "facts": {}}
    if out.exists():
        found = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
    elif not part.resumes:
        found["facts"] = _last_json(printed)
    if not found["rows"] and not found["facts"]:
        found["printed"] = printed[-2000:]
    return found | {"happened": happened, "seconds": round(seconds - (end - time.monotonic()), 1)}


def _watched(command: list[str], seconds: float) -> tuple[int, str]:
    """Run a command for so long at most; pass on what it prints, and return its status and its output."""
    environment = dict(os.environ)
    paths = [str(HERE.parent), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        errors="replace",
        # What it starts, such as an assembler, ends with it.
        start_new_session=True,
    )
    lines: list[str] = []

    def pass_on() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = _ended(process)
    except BaseException:
        _ended(process)
        raise
    # A process that the driver holds cannot be ended, and keeps its end of the pipe.
    reader.join(GRACE)
    return status, "".join(lines)


def _ended(process: subprocess.Popen[str]) -> int:
    """End a process and what it started; return its status, or that of a signal if it does not end."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return -signal.SIGTERM


def _last_json(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    return {}


def tables(results: dict[str, Any]) -> str:
    """Return what people read, in Markdown."""
    info = results["info"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items() if version)
    out = [
        f"# {info['device']}, {info['time'][:10]}",
        "",
        f"Versions: {versions}. State: {info.get('state', {})}.",
        "",
    ]
    for name, part in results["parts"].items():
        out += [f"## {name}", ""]
        if part.get("happened"):
            out += ["Interrupted: " + "; ".join(part["happened"]) + ".", ""]
        if name == "microbench":
            out += [_microbench_table(part), ""]
        elif name == "tune":
            out += [_tuning_table(part["rows"]), ""]
        elif name == "smoke":
            right = sum(row["status"] == "checked" for row in part["rows"])
            out += [f"{right} of {len(part['rows'])} kernels of all families are right.", ""]
        elif part["rows"]:
            out += [_comparison_table(part["rows"]), ""]
        elif part["facts"]:
            out += [
                markdown_table(("what", "microseconds"), [(k, f"{v:.2f}") for k, v in part["facts"].items()]),
                "",
            ]
        bad = [row for row in part["rows"] if row["status"] in ("wrong", "failed")]
        if bad:
            out += ["Wrong or failed:", ""]
            out += [
                f"- {row['contender']} on {_words(row['case'])}: {row['status']}, {row['note']}"
                for row in bad
            ] + [""]
    return "\n".join(out)


def _words(case: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in case.items())


def _microbench_table(part: dict[str, Any]) -> str:
    lines = []
    for row in part["rows"]:
        if row["status"] != "ok" or "value" not in row["figures"]:
            continue
        fact = part["facts"].get(row["case"]["probe"], {})
        documented = row["figures"].get("documented")
        beside = f"{documented:g}" if documented is not None else ""
        sass = fact.get("sass", "")
        lines.append(
            (
                row["case"]["probe"],
                f"{row['figures']['value']:.2f}",
                beside,
                fact.get("unit", ""),
                sass or row["note"],
            )
        )
    return markdown_table(("what", "measured", "documented", "unit", "machine instructions of a pass"), lines)


def _tuning_table(rows: list[dict[str, Any]]) -> str:
    """One line for each problem: the heuristic's schedule, the model's choice, and the fastest."""
    lines = []
    for row in rows:
        figures = row["figures"]
        if row["status"] == "ok" and "best_us" in figures:
            times = [figures.get(name) for name in ("heuristic_us", "choice_us", "best_us")]
            cells = ["" if time is None else f"{time:.1f}" for time in times]
            ratio = f"{times[0] / times[2]:.2f}" if times[0] is not None else ""
            lines.append((_words(row["case"]), *cells, ratio, f"{figures['model_us']:.1f}", row["note"]))
        else:
            lines.append((_words(row["case"]), row["status"], "", "", "", "", row["note"]))
    header = (
        "case", "heuristic us", "model's choice us", "fastest us", "heuristic / fastest", "the model's time us",
        "fastest schedule",
    )  # fmt: skip
    return markdown_table(header, lines)


def _comparison_table(rows: list[dict[str, Any]]) -> str:
    """One line for each case: tilus' time, TFLOP/s and GB/s, and how often faster than each other contender it is."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(_words(row["case"]), {})[row["contender"]] = row
    others = list(dict.fromkeys(row["contender"] for row in rows if row["contender"] != "tilus"))
    lines = []
    for case, found in cases.items():
        ours = found.get("tilus")
        cells = [case]
        timed = ours is not None and ours["cold"] is not None
        if timed:
            figures = ours["figures"]
            cells += [f"{ours['cold']['median']:.1f}", f"{ours['warm']['median']:.1f}"]
            cells += [f"{figures['tflops']:.0f}", f"{figures['gbps']:.0f}"]
            cells.append(f"{figures['floor_share']:.2f}" if "floor_share" in figures else "")
        else:
            cells += [ours["status"] if ours is not None else "", "", "", "", ""]
        for other in others:
            row = found.get(other)
            if row is None or row["cold"] is None:
                cells.append(row["status"] if row is not None else "")
            elif timed:
                ratio, warm = (row[k]["median"] / ours[k]["median"] for k in ("cold", "warm"))
                cells.append(f"{ratio:.2f} / {warm:.2f}")
            else:
                cells.append(f"{row['cold']['median']:.1f} us")
        lines.append(cells)
    header = [
        "case",
        "cold us",
        "warm us",
        "TFLOP/s",
        "GB/s",
        "share of floor",
        *(f"{o} / tilus" for o in others),
    ]
    return markdown_table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("TILUS_BENCH_MINUTES", "20")))
    parser.add_argument(
        "--only", action="append", choices=[part.name for part in PARTS], help="one or several of them"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--dry-run", action="store_true", help="without a GPU: all benchmarks on the simulator, no times"
    )
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.dry_run:
        raise SystemExit("no CUDA GPU on this machine: --dry-run tries the benchmarks without times")
    options.out.mkdir(parents=True, exist_ok=True)
    info = device_info()
    device = re.sub(r"[^a-z0-9]+", "-", info["device"].lower()).strip("-")
    path = options.out / f"{device}-{info['time'][:10]}.json"
    results: dict[str, Any] = {"info": info, "parts": {}}
    if path.exists():
        results["parts"] = json.loads(path.read_text(encoding="utf-8"))["parts"]
    end = time.monotonic() + 60 * options.minutes
    wanted = [part for part in PARTS if not options.only or part.name in options.only]
    for i, part in enumerate(wanted):
        # What earlier parts did not use is shared by those that remain.
        share = part.share / sum(p.share for p in wanted[i:])
        seconds = (end - time.monotonic()) * share
        if seconds < 5:
            print(f"== {part.name}: no time left")
            continue
        print(f"== {part.name}, {seconds:.0f} s", flush=True)
        results["parts"][part.name] = run_part(part, seconds, options.out, options.dry_run)
        write_json(path, results)
        path.with_suffix(".md").write_text(tables(results), encoding="utf-8", newline="\n")
    if not options.dry_run:
        results["info"]["state_after"] = gpu_state()
        card = card_of(results)
        if card is not None:
            # What the cost model takes of it: `calibrate.py` writes the same where the model reads it.
            fields, left_out = figures_from(measured_values(results), card)
            results["figures"] = {"card": card.name, "fields": fields, "left_out": left_out}
        write_json(path, results)
    print(tables(results))
    print(f"written to {path}")
    parts = [results["parts"][part.name] for part in wanted if part.name in results["parts"]]
    sys.exit(1 if any(part["happened"] for part in parts) else 0)


if __name__ == "__main__":
    main()
