"""What the GPU benchmarks share: correctness before time, timing with cold and warm L2, results as JSON and tables.

A benchmark compares contenders on cases. Each contender's result is first compared with a reference; what is wrong or
fails is reported and not timed. Those that are right take turns in several rounds, so that ratios come from one run:

- cold: between two calls a buffer larger than the L2 cache is written, and then another one read, so that the call
  finds neither its operands nor lines that must be written back. Each call is timed by CUDA events; the flush
  gives the host time to run ahead, so that its overhead is not in the figure (`host_us` says what it is).
- warm: calls in a CUDA graph follow one another without a gap, and their mean is taken.

Results are written after each contender. A crash or a hang therefore costs one contender: the next start with
`--resume` leaves out what is there, and what was running when the process ended is reported as failed.
With `--dry-run` the same code runs on the CPU and the simulator, with small cases and no time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NO_GPU = 0
"""Exit status where there is no GPU: a benchmark that cannot run here is no failure."""
CONTEXT_LOST = 3
HUNG = 4
RUNNING = "running"
MIB = 1 << 20

Run = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """One way to compute a case: `make` prepares it and returns what is called and timed."""

    name: str
    make: Callable[[], Run | OwnReference]
    bound: float | None = None
    """Relative error that is allowed, where it differs from the case's."""


@dataclass(frozen=True)
class OwnReference:
    """What `make` returns for a contender whose operands are others than the case's: with what its result is compared."""

    run: Run
    reference: torch.Tensor
    view: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Spread:
    """Microseconds of a call: the median, and the 10th and 90th of a hundred."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
        )


@dataclass
class Row:
    """What one contender did on one case."""

    case: dict[str, Any]
    contender: str
    status: str
    """`ok`, `checked` (right, in a dry run), `wrong`, `failed`, `skipped` or `running`."""
    note: str = ""
    error: float | None = None
    cold: Spread | None = None
    warm: Spread | None = None
    host_us: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


def options(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with what all GPU benchmarks take."""
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="small cases on the CPU and the simulator, no times"
    )
    parser.add_argument(
        "--seconds", type=float, default=defaults.get("seconds", 600), help="stop after so long"
    )
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--resume", action="store_true", help="leave out what the JSON file has already")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    return parser


def needs_gpu(parsed: argparse.Namespace) -> bool:
    """Tell whether the benchmark cannot go on, having said why."""
    if parsed.dry_run or torch.cuda.is_available():
        return False
    print("no CUDA GPU on this machine: --dry-run tries the benchmark without times")
    return True


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device_info() -> dict[str, Any]:
    """Return what is known of the machine, the GPU's state as nvidia-smi reads it included."""
    info: dict[str, Any] = {
        "device": "simulator",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {
            p: version_of(p)
            for p in ("torch", "triton", "numpy", "llvmlite", "nvidia-nvjitlink", "cuda-bindings")
        },
        "commit": _output(["git", "-C", str(HERE.parent), "rev-parse", "--short", "HEAD"]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        info |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "state": gpu_state(),
        }
    return info


def gpu_state() -> dict[str, str]:
    """Return clocks, power, temperature and driver version, read and never set."""
    wanted = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,temperature.gpu"
    text = _output(["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader", "--id=0"])
    return dict(zip(wanted.split(","), (part.strip() for part in (text or "").split(","))))


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Return |out - reference| / |reference|; infinite where a value is missing or not finite."""
    if tuple(out.shape) != tuple(reference.shape):
        return math.inf
    difference = float(torch.linalg.vector_norm(out.to(torch.float64) - reference))
    size = float(torch.linalg.vector_norm(reference))
    return difference / size if math.isfinite(difference) and size else math.inf


def rounding_error(reference: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the relative error of a reference rounded once to a dtype."""
    return relative_error(reference.to(dtype), reference)


class GpuTimer:
    """Times calls on the current CUDA device."""

    def __init__(self, cold_seconds: float = 0.05, warm_seconds: float = 0.02) -> None:
        self.cold_seconds, self.warm_seconds = cold_seconds, warm_seconds
        size = max(4 * torch.cuda.get_device_properties(0).L2_cache_size, 256 * MIB)
        self.written = torch.empty(size // 4, dtype=torch.int32, device="cuda")
        self.read = torch.zeros(size // 4, dtype=torch.int32, device="cuda")

    def flush(self) -> None:
        """Fill the L2 cache with lines that nobody needs and that need not be written back."""
        self.written.zero_()
        torch.amax(self.read)

    def cold(self, run: Run, count: int) -> list[float]:
        """Return microseconds of calls that find nothing in the cache."""
        pairs = []
        for _ in range(count):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush()
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in pairs]

    def graph_of(self, run: Run, calls: int) -> Run:
        """Return a function that runs so many calls back to back: a CUDA graph where the call can be captured."""

        def plain() -> None:
            for _ in range(calls):
                run()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                run()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                plain()
        except Exception:
            # Whatever a contender says against being captured, it can still be called.
            torch.cuda.synchronize()
            return plain
        return graph.replay

    def warm(self, replay: Run, calls: int, count: int) -> list[float]:
        """Return microseconds of a call among calls that follow one another."""
        samples = []
        for _ in range(count):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end) * 1e3 / calls)
        return samples

    def host(self, run: Run, count: int = 20) -> float:
        """Return microseconds that the host is busy with a call."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        elapsed = time.perf_counter() - start
        torch.cuda.synchronize()
        return elapsed / count * 1e6

    def quick(self, run: Run, count: int = 5) -> float:
        """Return the median of a few cold calls, for choosing among variants."""
        run()
        return statistics.median(self.cold(run, count))

    def rounds(self, runs: Mapping[str, Run], rounds: int) -> dict[str, tuple[Spread, Spread, float]]:
        """Time several calls in turns; return cold and warm times and the host's."""
        plans = {}
        for name, run in runs.items():
            estimate = self.quick(run, 3)
            calls = int(min(max(2e4 * self.warm_seconds / estimate, 1), 50))
            count = int(min(max(1e6 * self.cold_seconds / (estimate + 300) / rounds, 4), 60))
            plans[name] = (run, self.graph_of(run, calls), calls, count)
        cold: dict[str, list[float]] = {name: [] for name in runs}
        warm: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, (run, replay, calls, count) in plans.items():
                cold[name] += self.cold(run, count)
                replay()
                warm[name] += self.warm(replay, calls, 5)
        return {n: (Spread.of(cold[n]), Spread.of(warm[n]), self.host(run)) for n, run in runs.items()}


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Return bytes read and written per second by a copy from device memory to device memory."""
    source = torch.empty(size // 4, dtype=torch.int32, device="cuda").random_()
    dest = torch.empty_like(source)
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        dest.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * size / statistics.median(times[2:])


class Bench:
    """Runs cases, keeps rows, and writes them."""

    def __init__(self, name: str, parsed: argparse.Namespace, watchdog_seconds: float = 90.0) -> None:
        self.name = name
        self.dry_run = parsed.dry_run
        self.device = torch.device("cpu" if parsed.dry_run else "cuda")
        self.deadline = time.monotonic() + parsed.seconds
        self.number_of_rounds = parsed.rounds
        self.out: Path | None = parsed.out
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self.case: dict[str, Any] = {}
        self.info = device_info()
        self.timer = None if parsed.dry_run else GpuTimer()
        self._watchdog_seconds = watchdog_seconds
        self._alive = time.monotonic()
        if parsed.resume and self.out is not None and self.out.exists():
            self._take_over(json.loads(self.out.read_text(encoding="utf-8")))
        if not parsed.dry_run:
            threading.Thread(target=self._watch, daemon=True).start()

    def _take_over(self, data: dict[str, Any]) -> None:
        self.facts = data["facts"]
        for found in data["rows"]:
            row = Row(**{**found, "cold": _spread(found["cold"]), "warm": _spread(found["warm"])})
            if row.status == RUNNING:
                row.status, row.note = "failed", f"the process ended or hung here {row.note}".strip()
            self.rows.append(row)

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            if time.monotonic() - self._alive > self._watchdog_seconds:
                print(f"{self.name}: no progress for {self._watchdog_seconds:.0f} s, giving up", flush=True)
                os._exit(HUNG)

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def done(self, case: Mapping[str, Any]) -> bool:
        """Tell whether an earlier process came to the end of a case, which is now the current one."""
        self.case = dict(case)
        names = [row for row in self.rows if row.case == dict(case)]
        return bool(names) and all(row.figures or row.status != "ok" for row in names)

    def compare(
        self,
        case: Mapping[str, Any],
        contenders: Sequence[Contender],
        reference: torch.Tensor,
        bound: float,
        figures: Callable[[float], dict[str, float]],
        view: Callable[[torch.Tensor], torch.Tensor] = lambda out: out,
        raise_bound_by: str | None = None,
    ) -> dict[str, Row]:
        """Check all contenders of a case, then time those that are right.

        `figures` makes what people read (TFLOP/s, GB/s) of microseconds, `view` brings outputs into the reference's
        shape. Where `raise_bound_by` names a contender, twice its own error is allowed to the others if
        that is more than `bound`.
        """
        known = {row.contender: row for row in self.rows if row.case == dict(case)}
        runs: dict[str, Run] = {}
        rows: dict[str, Row] = {}
        for contender in contenders:
            if contender.name in known and known[contender.name].status != "ok":
                rows[contender.name] = known[contender.name]
                continue
            if contender.name in known:
                self.rows.remove(known[contender.name])
            row = Row(dict(case), contender.name, RUNNING)
            rows[contender.name] = row
            self.rows.append(row)
            self.save()
            run = self._checked(row, contender, reference, max(bound, contender.bound or 0.0), view)
            if contender.name == raise_bound_by and row.error is not None and row.error < 0.1:
                bound = max(bound, 2 * row.error)
            if run is not None:
                runs[contender.name] = run
        if self.timer is not None and runs:
            self._time(rows, runs, figures)
        self.save()
        self.show(case, rows)
        return rows

    def _checked(
        self,
        row: Row,
        contender: Contender,
        reference: torch.Tensor,
        bound: float,
        view: Callable[[Any], torch.Tensor],
    ) -> Run | None:
        self._alive = time.monotonic()
        try:
            made = contender.make()
            if isinstance(made, OwnReference):
                run, reference, view = made.run, made.reference, made.view
            else:
                run = made
            row.error = relative_error(view(run()), reference)
        except SkipContender as reason:
            row.status, row.note = "skipped", str(reason)
            return None
        except Exception as error:
            row.status, row.note = "failed", _in_short(error)
            self.survive(row)
            return None
        if not row.error <= bound:
            row.status, row.note = "wrong", f"relative error {row.error:.1e}, allowed {bound:.1e}"
            return None
        row.status = "ok" if self.timer is not None else "checked"
        return run

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Go on where a case fails outside of its contenders, such as while it makes operands or its reference."""
        self.case = {}
        try:
            yield
        except Exception as error:
            status = "skipped" if isinstance(error, torch.OutOfMemoryError) else "failed"
            row = Row(self.case, "tilus operands", status, _in_short(error))
            self.rows.append(row)
            self.save()
            print(f"{' '.join(map(str, row.case.values()))}: {row.note}", flush=True)
            self.survive(row)

    def _time(
        self, rows: dict[str, Row], runs: dict[str, Run], figures: Callable[[float], dict[str, float]]
    ) -> None:
        assert self.timer is not None
        for name in runs:
            rows[name].status, rows[name].note = RUNNING, "while timed"
        self.save()
        try:
            times = self.timer.rounds(runs, self.number_of_rounds)
        except Exception as error:
            for name in runs:
                rows[name].status, rows[name].note = "failed", f"while timed: {_in_short(error)}"
            self.survive(rows[next(iter(runs))])
            return
        for name, (cold, warm, host) in times.items():
            rows[name].status, rows[name].note = "ok", ""
            rows[name].cold, rows[name].warm, rows[name].host_us = cold, warm, round(host, 2)
            rows[name].figures = {key: round(value, 3) for key, value in figures(cold.median).items()}
            rows[name].figures |= {
                f"warm_{key}": round(value, 3) for key, value in figures(warm.median).items()
            }

    def survive(self, row: Row) -> None:
        """After a failure: go on if the CUDA context still works, or else end so that a new process can go on."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            self.save()
            print(
                f"{self.name}: the CUDA context is lost after {row.contender} on {row.case}: {row.note}",
                flush=True,
            )
            os._exit(CONTEXT_LOST)

    def show(self, case: Mapping[str, Any], rows: Mapping[str, Row]) -> None:
        words = " ".join(f"{key}={value}" for key, value in case.items())
        parts = []
        for name, row in rows.items():
            if row.cold is not None and row.warm is not None:
                parts.append(f"{name} {row.cold.median:.1f}/{row.warm.median:.1f} us")
            else:
                parts.append(f"{name} {row.status}" + (f" ({row.note})" if row.note else ""))
        print(f"{words}: " + "; ".join(parts), flush=True)

    def save(self) -> None:
        """Write all rows, by rename."""
        self._alive = time.monotonic()
        if self.out is None:
            return
        data = {
            "benchmark": self.name,
            "info": self.info,
            "facts": self.facts,
            "rows": [asdict(r) for r in self.rows],
        }
        write_json(self.out, data)

    def finish(self) -> None:
        """Write the results, say what went wrong, and end the process."""
        if not self.dry_run:
            self.info["state_after"] = gpu_state()
        self.save()
        bad = [row for row in self.rows if row.status in ("wrong", "failed")]
        print(
            f"{self.name}: {len(self.rows)} rows, {len(bad)} wrong or failed"
            + (", out of time" if self.out_of_time else "")
        )
        for row in bad:
            print(f"  {row.status}: {row.contender} on {row.case}: {row.note}")
        # Our own wrong results fail the benchmark, an opponent's do not.
        sys.exit(1 if any(row.contender.startswith("tilus") for row in bad) else 0)


def _in_short(error: Exception) -> str:
    """Return the first line of an error, with its class."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


class SkipContender(Exception):
    """Raised by `make` where a contender cannot take part: the reason is reported."""


def _spread(found: dict[str, Any] | None) -> Spread | None:
    return None if found is None else Spread(**found)


def write_json(path: Path, data: object) -> None:
    """Write JSON by rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8", newline="\n")
    temporary.replace(path)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    out = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    out += ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join(out)
