"""Measures what a cost model assumes: instruction throughput, tensor cores, memory, barriers and launches.

    python benchmarks/microbench.py [--only WORD] [--out FILE] [--dry-run]

Each figure names its unit and how it was measured, and stands beside the documented one where there is one. Probes are
PTX (`_probes.py`, `_memory_kernels.py`) which is assembled here and launched through the driver. Before it is timed,
what a probe computes is compared with the simulator's result where that is exact. `sass` says which machine
instructions one pass of the loop became.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _memory_kernels as memory_kernels
import numpy as np
import torch
from _harness import Bench, Row, needs_gpu, options
from _probes import PROBES, Probe, ptx

from tilus import simulator
from tilus.codegen import target as find_target
from tilus.codegen import target_of_capability
from tilus.codegen.assemble import assemble, available
from tilus.codegen.target import Target

SEED = 5
ROUNDS = 1500
CHECK_ROUNDS = 3
REPEATS = 7


@dataclass(frozen=True)
class Figure:
    value: float
    unit: str
    method: str
    clock_ghz: float | None = None
    documented: float | None = None
    source: str = ""
    note: str = ""
    sass: str = ""


def image(text: str, target: Target, name: str) -> bytes:
    """Return machine code of a PTX text, or the text where the driver must assemble it."""
    return assemble(text, target, name, line_info=False)[0] if available() is None else text.encode() + b"\0"


def disassembler() -> str | None:
    """Return the path of nvdisasm: on PATH, of its package, or of Triton's."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    import importlib.util

    for package, pattern in (("nvidia", "*/bin/nvdisasm*"), ("triton", "backends/nvidia/bin/nvdisasm*")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).glob(pattern)):
                return str(path)
    return None


def machine_instructions(probe: Probe, target: Target) -> str:
    """Return the machine instructions of one pass: what twice the passes have more than once the passes."""
    nvdisasm = disassembler()
    if nvdisasm is None or available() is not None:
        return ""
    counts = []
    for passes in (probe.passes, 2 * probe.passes):
        cubin, _ = assemble(ptx(probe, target.name, passes), target, "probe", line_info=False)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.cubin"
            path.write_bytes(cubin)
            listing = subprocess.run(
                [nvdisasm, "-c", path], capture_output=True, text=True, timeout=60
            ).stdout
        names = re.findall(
            r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE
        )
        counts.append(Counter(name for name in names if name != "NOP"))
    counts[1].subtract(counts[0])
    found = {name: count / probe.passes for name, count in counts[1].items() if count}
    return ", ".join(f"{count:g} {name}" for name, count in sorted(found.items(), key=lambda item: -item[1]))


class Gpu:
    """Loads and launches kernels on the current device, on torch's stream."""

    def __init__(self) -> None:
        from tilus.runtime import driver

        self.driver = driver
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        properties = torch.cuda.get_device_properties(0)
        self.multiprocessors = properties.multi_processor_count
        self.l2_bytes = properties.L2_cache_size
        self.target = target_of_capability(properties.major, properties.minor)

    def load(self, text: str, name: str, shared_bytes: int = 0) -> Any:
        return self.driver.load(image(text, self.target, name), name, 0, shared_bytes)

    def launch(
        self, function: Any, grid: int, block: int, args: Sequence[Any], shared_bytes: int = 0
    ) -> None:
        """Launch with tensors (as pointers) and 32-bit numbers."""
        values = [
            ctypes.c_uint64(x.data_ptr()) if isinstance(x, torch.Tensor) else ctypes.c_uint32(x) for x in args
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        status = self.driver.bindings().cuLaunchKernel(
            function.handle, grid, 1, 1, block, 1, 1, shared_bytes, torch.cuda.current_stream().cuda_stream,
            ctypes.addressof(pointers), 0,
        )  # fmt: skip
        self.driver.check(status, "launching a probe")

    def seconds(self, run: Callable[[], None], repeats: int = REPEATS) -> list[float]:
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return times


def simulate(probe: Probe, target: str, rounds: int = CHECK_ROUNDS) -> np.ndarray:
    """Return what one block of a probe writes, on the simulator with every check on."""
    out, clocks = np.zeros(probe.threads, np.uint32), np.zeros(probe.threads // 32 * 2, np.uint64)
    kernel = simulator.load(ptx(probe, target, 1))["probe"]
    report = kernel.launch(
        grid=(1, 1, 1),
        block=(probe.threads, 1, 1),
        args=[out, clocks, rounds, SEED],
        shared_bytes=probe.shared_bytes,
    )
    report.raise_if_hazards()
    if not (clocks.reshape(-1, 2)[:, 1] > clocks.reshape(-1, 2)[:, 0]).all():
        raise RuntimeError("a warp's clock does not go on")
    return out


def measure_probe(gpu: Gpu, probe: Probe) -> Figure:
    """Check a probe against the simulator, then time it with one block on each multiprocessor."""
    name, warps = gpu.target.name, probe.threads // 32
    out = torch.zeros(gpu.multiprocessors * probe.threads, dtype=torch.int32, device="cuda")
    clocks = torch.zeros((gpu.multiprocessors, warps, 2), dtype=torch.int64, device="cuda")
    small = gpu.load(ptx(probe, name, 1), "probe", probe.shared_bytes)
    gpu.launch(small, 1, probe.threads, [out, clocks, CHECK_ROUNDS, SEED], probe.shared_bytes)
    torch.cuda.synchronize()
    if probe.exact:
        found = out[: probe.threads].cpu().numpy().view(np.uint32)
        wrong = int((found != simulate(probe, name)).sum())
        if wrong:
            raise RuntimeError(f"GPU and simulator differ in {wrong} of {probe.threads} values")
    function = gpu.load(ptx(probe, name), "probe", probe.shared_bytes)

    def run() -> None:
        gpu.launch(
            function, gpu.multiprocessors, probe.threads, [out, clocks, ROUNDS, SEED], probe.shared_bytes
        )

    run()
    spans, rates = [], []
    for _ in range(REPEATS):
        (seconds,) = gpu.seconds(run, 1)
        stamps = clocks.cpu()
        span = (stamps[:, :, 1].amax(1) - stamps[:, :, 0].amin(1)).double()
        spans.append(float(span.median()))
        rates.append(float(span.max()) / seconds / 1e9)
    span = statistics.median(spans)
    passes = ROUNDS * probe.passes
    value = span / passes if probe.unit == "clocks" else probe.work * probe.threads * passes / span
    method = (
        f"{probe.threads} threads on each multiprocessor, {passes} passes, clock64 around the loop, median"
    )
    return Figure(
        value, probe.unit, method, statistics.median(rates), probe.documented, probe.source, probe.note,
        machine_instructions(probe, gpu.target),
    )  # fmt: skip


def measure_stream(gpu: Gpu, kind: str, size: int, passes: int) -> Figure:
    """Time loads and stores of 16 bytes that pass L1 by."""
    blocks, threads = 2 * gpu.multiprocessors, 1024
    quantum = blocks * threads * memory_kernels.UNROLL
    units = max(size // memory_kernels.UNIT // quantum, 1) * quantum
    source = torch.empty(units * 4, dtype=torch.int32, device="cuda").random_()
    dest = torch.empty_like(source) if kind != "read" else source
    function = gpu.load(memory_kernels.stream(kind, gpu.target.name), "stream")

    def run() -> None:
        gpu.launch(function, blocks, threads, [source, dest, units, passes])

    run()
    if kind == "copy" and not torch.equal(source, dest):
        raise RuntimeError("the copy differs from its source")
    seconds = statistics.median(gpu.seconds(run))
    moved = units * memory_kernels.UNIT * passes * (2 if kind == "copy" else 1)
    where = f"{units * memory_kernels.UNIT / 2**20:.0f} MiB, {passes} passes"
    return Figure(
        moved / seconds / 1e9, "GB/s", f"16-byte accesses by all multiprocessors over {where}, events, median"
    )


def measure_bulk(gpu: Gpu, size: int, passes: int) -> Figure:
    """Time bulk copies into shared memory, several in flight in each block."""
    blocks = 2 * gpu.multiprocessors
    stages, piece = memory_kernels.BULK_STAGES, memory_kernels.BULK_BYTES
    pieces = max(size // piece // blocks, stages) * blocks
    source = torch.empty(pieces * piece // 4, dtype=torch.int32, device="cuda").random_()
    shared = stages * piece + 64
    function = gpu.load(memory_kernels.bulk_read(gpu.target.name), "stream", shared)

    def run() -> None:
        gpu.launch(function, blocks, 32, [source, source, pieces, passes], shared)

    run()
    seconds = statistics.median(gpu.seconds(run))
    method = f"cp.async.bulk of 16 KiB, {stages} in flight in each of 2 blocks of a multiprocessor, {pieces * piece / 2**20:.0f} MiB"
    return Figure(pieces * piece * passes / seconds / 1e9, "GB/s", method)


def measure_latency(gpu: Gpu, size: int, steps: int, warm: bool) -> Figure:
    """Follow a chain of pointers, one cache line each, in random order."""
    lines = size // 256
    order = torch.randperm(lines, device="cuda")
    table = torch.zeros(lines * 32, dtype=torch.int64, device="cuda")
    table[order * 32] = table.data_ptr() + order.roll(-1) * 256
    result = torch.zeros(2, dtype=torch.int64, device="cuda")
    start = table[int(order[0]) * 32 :]
    function = gpu.load(memory_kernels.chase(gpu.target.name), "stream")
    clocks = []
    flush = torch.empty(4 * gpu.l2_bytes // 4, dtype=torch.int32, device="cuda")
    for _ in range(REPEATS):
        if not warm:
            flush.zero_()
        gpu.launch(function, 1, 32, [start, result, steps, 1])
        clocks.append(int(result[0]) / steps)
    if int(result[1]) != table.data_ptr() + int(order[steps % lines]) * 256:
        raise RuntimeError("the chase ended at the wrong place")
    where = "after a pass over the same lines" if warm else "after a flush of the L2 cache"
    return Figure(statistics.median(clocks[1:]), "clocks", f"one thread, {steps} dependent loads, {where}")


def measure_launch(gpu: Gpu, how: str) -> Figure:
    """Time launches of a kernel that does nothing."""
    function = gpu.load(memory_kernels.nothing(gpu.target.name), "stream")
    scratch = torch.zeros(4, dtype=torch.int32, device="cuda")
    count = 200

    def one() -> None:
        gpu.launch(function, gpu.multiprocessors, 128, [scratch, scratch, 0, 0])

    def run() -> None:
        for _ in range(count):
            one()

    run()
    torch.cuda.synchronize()
    if how == "event pair":
        return Figure(
            statistics.median(gpu.seconds(one, 50)) * 1e6, "microseconds",
            "events around one launch; with a launch that waits for the host",
        )  # fmt: skip
    if how == "graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
        run()
    seconds = statistics.median(gpu.seconds(run))
    return Figure(seconds / count * 1e6, "microseconds", f"{count} launches of an empty kernel, events, each")


MIB = 1 << 20


def memory_figures(gpu: Gpu) -> list[tuple[str, Callable[[], Figure]]]:
    """Return what is measured of memory and launches, by name."""
    found: list[tuple[str, Callable[[], Figure]]] = []
    for place, size, passes in (
        ("HBM", 4096 * MIB, 1),
        ("L2, 8 MiB", 8 * MIB, 200),
        ("L2, 24 MiB", 24 * MIB, 64),
    ):
        for kind in ("read", "write", "copy"):
            if kind == "copy" and size == 24 * MIB:
                continue
            found.append((f"{place}: {kind}", lambda k=kind, s=size, p=passes: measure_stream(gpu, k, s, p)))  # type: ignore[misc]
        if gpu.target.has("tma"):
            found.append((f"{place}: bulk read", lambda s=size, p=passes: measure_bulk(gpu, s, p)))  # type: ignore[misc]
    found.append(("latency of L2", lambda: measure_latency(gpu, MIB, 8192, warm=True)))
    found.append(("latency of HBM", lambda: measure_latency(gpu, 1024 * MIB, 8192, warm=False)))
    for how in ("stream", "graph", "event pair"):
        found.append((f"launch: {how}", lambda h=how: measure_launch(gpu, h)))  # type: ignore[misc]
    return found


def dry_run(bench: Bench, only: str) -> None:
    """Run every probe's PTX on the simulator, with all checks."""
    target = find_target("sm_90a")
    for probe in PROBES:
        if only in probe.name:
            row = Row({"probe": probe.name}, "tilus simulator", "checked")
            try:
                if not simulate(probe, target.name).any() and "cvt" not in probe.name:
                    row.note = "writes zeros"
            except Exception as error:
                row.status, row.note = "failed", str(error)
            bench.rows.append(row)
    bench.save()


def record(bench: Bench, name: str, make: Callable[[], Figure]) -> None:
    """Measure one thing; a failure is kept as its note."""
    case = {"probe": name}
    if bench.done(case):
        return
    row = Row(case, "device", "running")
    bench.rows.append(row)
    bench.save()
    try:
        figure = make()
    except Exception as error:
        row.status, row.note = "failed", f"{type(error).__name__}: {error}"[:300]
        bench.survive(row)
        return
    row.status = "ok"
    row.figures = {"value": round(figure.value, 3)}
    if figure.clock_ghz is not None:
        row.figures["clock_ghz"] = round(figure.clock_ghz, 3)
    if figure.documented is not None:
        row.figures["documented"] = figure.documented
    bench.facts[name] = {
        "unit": figure.unit,
        "method": figure.method,
        "source": figure.source,
        "sass": figure.sass,
    }
    row.note = figure.note
    beside = f"(documented {figure.documented:g})" if figure.documented is not None else ""
    print(f"{name:42} {figure.value:10.2f} {figure.unit} {beside} {figure.note}", flush=True)
    bench.save()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", default="", help="probes whose name contains this")
    parsed = parser.parse_args()
    if needs_gpu(parsed):
        return
    bench = Bench("microbench", parsed)
    if bench.dry_run:
        dry_run(bench, parsed.only)
        bench.finish()
    gpu = Gpu()
    feature = int(re.sub(r"\D", "", gpu.target.name))
    for name, make in memory_figures(gpu):
        if parsed.only in name and not bench.out_of_time:
            record(bench, name, make)
    for probe in PROBES:
        suits = probe.feature <= feature and (gpu.target.has("wgmma") or not probe.name.startswith("wgmma"))
        if parsed.only in probe.name and suits and not bench.out_of_time:
            record(bench, probe.name, lambda p=probe: measure_probe(gpu, p))  # type: ignore[misc]
    bench.finish()


if __name__ == "__main__":
    main()
