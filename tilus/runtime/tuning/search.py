"""The search: estimate all candidates, compile the best of them ahead in threads, and measure as long as there is time.

One bad candidate never ends it: what does not compile, fails, hangs or gives another result is listed with its reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tilus.codegen import target as find_target
from tilus.codegen.assemble import Resources, available
from tilus.codegen.compiler import prepare as run_passes
from tilus.codegen.figures import Figures, figures, figures_of_device
from tilus.errors import LaunchError, TilusError
from tilus.ir import Kernel as TileKernel
from tilus.ir import ScalarType
from tilus.runtime import driver
from tilus.runtime.arguments import Operand, is_torch_tensor
from tilus.runtime.binary import Binary
from tilus.runtime.kernel import Kernel, Prepared
from tilus.runtime.tuning import measure as measuring
from tilus.runtime.tuning import store
from tilus.runtime.tuning.count import work_of
from tilus.runtime.tuning.measure import Bench, DeviceLost, GpuTimer, TimedOut
from tilus.runtime.tuning.model import Estimate, estimate
from tilus.runtime.tuning.progress import Progress, shown
from tilus.runtime.tuning.result import Result, Trial
from tilus.runtime.tuning.space import Choice, Space
from tilus.runtime.tuning.work import Work

Measure = Callable[[Kernel, Sequence[Any]], float]
METHODS = ("auto", "time", "model", "simulate")
ESTIMATE_SHARE = 0.4
"""Part of the budget after which no more candidates are estimated."""
MOST_WORKERS = 16
GRACE_SECONDS = 30.0
"""After a launch that did not end in its time: how long the device may take to be idle again."""


@dataclass(frozen=True)
class Setting:
    """What all candidates of a search have in common."""

    kernel: Kernel
    args: tuple[Any, ...]
    fixed: dict[str, Any]
    target: str
    card: Figures
    device: int
    device_name: str
    sizes: dict[str, int]


@dataclass(frozen=True)
class Candidate:
    """A candidate that can be traced: the kernel with its values, a checked call, and what it does."""

    values: Choice
    kernel: Kernel
    call: Prepared
    work: Work
    estimate: Estimate


def tune(
    kernel: Kernel,
    args: Sequence[Any] | Mapping[str, Any],
    *,
    space: Space,
    constexprs: Mapping[str, Any] | None = None,
    budget_seconds: float = 60.0,
    keep: int = 16,
    measure: str | Measure = "auto",
    reference: Sequence[Any] | None = None,
    tolerance: float = 0.02,
    bucket: Sequence[str] = ("m",),
    seconds_at_most: float = 5.0,
    target: str | None = None,
    card: Figures | None = None,
    use_cache: bool = True,
    progress: bool = True,
) -> Result:
    """Find the constexpr values of a kernel that are fastest for some arguments.

    The cost model orders all candidates; the best are compiled in threads and measured, as long as there is time.
    Results are kept on disk for the device, the kernel and the shape class, so that a second search measures only
    what is new. The caller's tensors are not changed.

    Parameters
    ----------
    kernel : Kernel
        Any `@tilus.kernel`.
    args : sequence or mapping
        Its run-time arguments. On a GPU the time is measured. For CPU tensors, arrays and tensors on torch's meta
        device nothing is: the model's estimate counts.
    space : Space
        What to choose.
    constexprs : mapping, optional
        Values of constexpr parameters that are not chosen.
    budget_seconds : float
        Time for the whole search; what is begun is finished, and one candidate at least is measured.
    keep : int
        Candidates that are compiled and measured, the best by the model.
    measure : str or function
        "time" (on a GPU), "model", "simulate" (candidates run on the simulator with all checks, and what it counts
        goes into the model), or a function of a kernel and arguments that returns seconds.
    reference : sequence, optional
        The right values of the tensors that the kernel writes, in the order of its parameters; by default what the
        first candidate writes.
    tolerance : float
        Allowed relative difference from the reference, as a norm.
    bucket : sequence of str
        Dimensions whose sizes count as the next power of two in the shape class; other sizes count as they are.
    seconds_at_most : float
        Time in which one launch has to end.
    target : str, optional
        The target, where no GPU decides it.
    card : Figures, optional
        The card that the model assumes; by default the device, or a usual card of the target.
    use_cache : bool
        Whether to read and keep results on disk.
    progress : bool
        Whether to show a progress bar, if standard error is a terminal.

    Returns
    -------
    Result

    Raises
    ------
    TilusError
        If no candidate works; the reasons are listed.
    """
    setting = _setting(kernel, args, dict(constexprs or {}), space, target, card)
    method = _method(measure, setting)
    end = time.monotonic() + budget_seconds
    # What the model says costs little, and is another thing for each version of it.
    measured = method not in ("model", "simulate")
    file = entry_path(setting, method, bucket) if use_cache and measured else None
    known = {name: entry for name, entry in store.read_entries(file).items() if entry.holds}
    candidates = list(space.candidates(setting.sizes))
    if not candidates:
        raise TilusError(f"the constraints leave no candidate for {kernel.source.name}")
    search = _Search(setting, method, file, end, seconds_at_most, tolerance, reference)
    with shown(f"tuning {kernel.source.name}", progress) as bar:
        found = search.estimate_all(candidates, bar, time.monotonic() + ESTIMATE_SHARE * budget_seconds)
        found.sort(key=lambda candidate: candidate.estimate.seconds)
        for candidate in found[keep:]:
            search.add(candidate, "pruned")
        search.run(found[:keep], known, measure if callable(measure) else None, bar)
    return search.result(str(method))


def _method(measure: str | Measure, setting: Setting) -> str:
    if callable(measure):
        return f"{measure.__module__}.{getattr(measure, '__qualname__', type(measure).__qualname__)}"
    if measure not in METHODS:
        raise TilusError(
            f"no way to measure named {measure!r}", hint="one of " + ", ".join(map(repr, METHODS))
        )
    if measure == "auto":
        return "time" if setting.device >= 0 else "model"
    if measure == "time" and setting.device < 0:
        raise TilusError(
            "times are measured on a GPU, and the tensors are on the CPU", hint='measure="model"'
        )
    if measure == "simulate" and setting.device >= 0:
        raise TilusError("the simulator runs CPU tensors, and these are on a GPU", hint="x.cpu()")
    return measure


def _setting(
    kernel: Kernel,
    args: Sequence[Any] | Mapping[str, Any],
    constexprs: dict[str, Any],
    space: Space,
    target: str | None,
    card: Figures | None,
) -> Setting:
    source = kernel.source
    for name in space.names:
        if name not in source.constexprs:
            raise TilusError(
                f"{source.name} has no constexpr parameter {name!r} to choose",
                hint="one of " + ", ".join(source.constexprs) if source.constexprs else None,
            )
    if isinstance(args, Mapping):
        left = dict(args)
        args = [left.pop(p.name) if p.name in left else p.default for p in source.runtime_params]
        if left:
            raise LaunchError(f"{source.name} has no run-time parameter {next(iter(left))!r}")
    args = tuple(args)
    fixed = {**kernel.bound, **constexprs}
    fixed = {name: value for name, value in fixed.items() if name not in space.names}
    device = _device_of(args)
    if device >= 0:
        import torch

        target = driver.target(device).name
        name = driver.device_name(device)
        processors = int(torch.cuda.get_device_properties(device).multi_processor_count)
        card = card or figures_of_device(name, target, processors)
    else:
        from tilus.runtime.simulate import default_target

        target = find_target(target or (card.target if card is not None else default_target())).name
        card = card or figures(target)
        name = card.name
    sizes: dict[str, int] = {}
    for param, value in zip(source.runtime_params, args):
        for dim, extent in zip(param.dims if param.kind == "tensor" else (), getattr(value, "shape", ())):
            if isinstance(dim, str):
                sizes.setdefault(dim, int(extent))
    return Setting(kernel.bind(**constexprs), args, fixed, target, card, device, name, sizes)


def _device_of(args: Sequence[Any]) -> int:
    """Return the CUDA device of the arguments, or -1."""
    for value in args:
        if is_torch_tensor(value) and value.is_cuda:
            index: int = value.device.index
            return index
    return -1


def entry_path(setting: Setting, method: str, bucket: Sequence[str]) -> Any:
    """Return where the results of a search are kept."""
    shape = {n: store.bucket(s) if n in bucket else s for n, s in sorted(setting.sizes.items())}
    dtypes = [str(getattr(value, "dtype", type(value).__name__)) for value in setting.args]
    parts = [
        setting.kernel.source.fingerprint(setting.fixed), setting.target, method, store.identity(shape), *dtypes
    ]  # fmt: skip
    return store.path(setting.device_name, f"{setting.kernel.source.name}-{store.key(*parts)[:24]}")


class _Search:
    """The state of one search."""

    def __init__(
        self,
        setting: Setting,
        method: str,
        file: Any,
        end: float,
        seconds_at_most: float,
        tolerance: float,
        reference: Sequence[Any] | None,
    ) -> None:
        self.setting, self.method, self.file, self.end = setting, method, file, end
        self.seconds_at_most, self.tolerance = seconds_at_most, tolerance
        self.expected = list(reference) if reference is not None else None
        self.trials: list[Trial] = []
        self.interrupted = ""
        self.bench: Bench | None = None
        self.timer: GpuTimer | None = None

    # What is known of candidates.

    def add(
        self, candidate: Candidate, status: str, seconds: float | None = None, note: str = "", **more: Any
    ) -> None:
        more.setdefault("estimate", candidate.estimate)
        self.trials.append(Trial(candidate.values, status, seconds, note, **more))

    @property
    def best_seconds(self) -> float:
        return min((t.seconds for t in self.trials if t.seconds is not None), default=float("inf"))

    def result(self, method: str) -> Result:
        order = {"ok": 0, "wrong": 1, "timeout": 1, "failed": 1, "skipped": 2, "pruned": 3}
        trials = sorted(
            self.trials,
            key=lambda t: (
                order[t.status],
                t.seconds
                if t.seconds is not None
                else t.estimate.seconds
                if t.estimate is not None
                else float("inf"),
            ),
        )
        if not trials or trials[0].status != "ok":
            reasons = list(dict.fromkeys(t.note for t in trials if t.note))
            raise TilusError(
                f"none of {len(trials)} candidates of {self.setting.kernel.source.name} works: "
                + "; ".join(reasons[:4])
            )
        return Result(self.setting.kernel, self.setting.device_name, method, tuple(trials), self.interrupted)

    # Estimates.

    def estimate_all(self, candidates: list[Choice], bar: Progress, until: float) -> list[Candidate]:
        """Estimate candidates, spread over the space, until it is time to go on."""
        found: list[Candidate] = []
        bar.stage("estimating", len(candidates))
        for values in spread(candidates):
            if found and time.monotonic() > until:
                self.trials.append(Trial(values, "skipped", note="not estimated: time was up"))
                continue
            try:
                candidate = candidate_of(self.setting, values)
            except Exception as error:
                self.trials.append(Trial(values, "failed", note=reason(error)))
            else:
                if candidate.estimate.blocks_per_processor:
                    found.append(candidate)
                else:
                    self.add(
                        candidate,
                        "failed",
                        note="a block needs more registers or shared memory than there are",
                    )
            bar.step()
        return found

    # Measurements.

    def run(
        self,
        candidates: list[Candidate],
        known: dict[str, store.Entry],
        measure: Measure | None,
        bar: Progress,
    ) -> None:
        bar.stage("measuring", len(candidates))
        workers = min(MOST_WORKERS, os.cpu_count() or 1, max(1, len(candidates)))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="tilus-tune")
        try:
            fresh = [c for c in candidates if store.identity(c.values) not in known]
            futures = {id(c): pool.submit(compiled, self.setting, c) for c in fresh}
            for candidate in candidates:
                entry = known.get(store.identity(candidate.values))
                if entry is not None:
                    self.add(candidate, *_of_entry(entry), kept=True)
                elif self.interrupted:
                    self.add(candidate, "skipped", note=self.interrupted)
                elif time.monotonic() > self.end and self.best_seconds < float("inf"):
                    self.add(candidate, "skipped", note="time was up")
                else:
                    self.one(candidate, futures[id(candidate)], measure)
                best = self.best_seconds
                bar.step(f"best {best * 1e6:.1f} us" if best < float("inf") else "")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def one(self, candidate: Candidate, future: Future[Binary], measure: Measure | None) -> None:
        """Measure one candidate, and keep what comes of it."""
        try:
            binary = future.result()
        except Exception as error:
            self.finish(candidate, "failed", note=reason(error))
            return
        resources = binary.resources
        more: dict[str, Any] = {}
        if resources is not None:
            spills = resources.spill_stores + resources.spill_loads
            more = {"registers": resources.registers, "spills": spills}
            candidate = replace(candidate, estimate=estimate(candidate.work, self.setting.card, resources))
            more["note"] = f"spills {spills} bytes" if spills else ""
        if not candidate.estimate.blocks_per_processor:
            self.finish(
                candidate, "failed", **{**more, "note": "a block needs more registers than there are"}
            )
            return
        try:
            seconds = self.measured(candidate, resources, measure)
        except _Wrong as error:
            self.finish(candidate, "wrong", **{**more, "note": str(error)})
        except TimedOut as error:
            self.finish(candidate, "timeout", **{**more, "note": error.message})
            if self.timer is not None and not self.timer.idle(GRACE_SECONDS):
                self.interrupted = (
                    "the device is still busy with a candidate that does not end; search again to go on"
                )
        except Exception as error:
            self.finish(candidate, "failed", **{**more, "note": reason(error)})
            lost = isinstance(error, DeviceLost)
            if lost or (self.timer is not None and not self.timer.idle(GRACE_SECONDS)):
                self.interrupted = (
                    "the device does not answer after a candidate that failed; search again to go on"
                )
        except BaseException:
            # The user has enough, which says nothing about the candidate.
            store.remove_entry(self.file, candidate.values, self.about())
            raise
        else:
            self.finish(candidate, "ok", seconds, **more)

    def finish(self, candidate: Candidate, status: str, seconds: float | None = None, **more: Any) -> None:
        self.keep(candidate, status, seconds, more.get("note", ""))
        self.add(candidate, status, seconds, **more)

    def keep(self, candidate: Candidate, status: str, seconds: float | None, note: str) -> None:
        values = {name: store.as_json(value) for name, value in candidate.values.items()}
        entry = store.Entry(values, status, seconds, note, store.compiler())
        store.add_entry(self.file, entry, self.about())

    def about(self) -> dict[str, Any]:
        """Return what the file of the results is about."""
        return {
            "kernel": self.setting.kernel.source.name,
            "device": self.setting.device_name,
            "method": self.method,
            "sizes": self.setting.sizes,
            "fixed": {name: store.as_json(value) for name, value in self.setting.fixed.items()},
        }

    def measured(self, candidate: Candidate, resources: Resources | None, measure: Measure | None) -> float:
        """Return the seconds of a candidate, by whatever method the search has."""
        if measure is not None:
            seconds = float(measure(candidate.kernel, self.setting.args))
            if not seconds > 0:
                raise LaunchError(f"the function that measures returned {seconds}, expected seconds above 0")
            return seconds
        if self.method == "model":
            return candidate.estimate.seconds
        bench = self.prepared(candidate)
        bench.restore()
        if self.method == "simulate":
            counters = measuring.run_simulated(candidate.kernel, bench.args, self.setting.target)
            self.compare(bench)
            return estimate(counted(candidate.work, counters), self.setting.card, resources).seconds
        # If the process ends here, the next search knows by what.
        self.keep(candidate, "running", None, "")
        if self.timer is None:
            self.timer = GpuTimer.of(self.setting.device, self.seconds_at_most)
        candidate.kernel(*bench.args)
        if not self.timer.idle(self.seconds_at_most):
            raise TimedOut(f"it did not end within {self.seconds_at_most:g} s")
        self.compare(bench)
        return self.timer.seconds(lambda: candidate.kernel(*bench.args), self.best_seconds)

    def prepared(self, candidate: Candidate) -> Bench:
        if self.bench is None:
            self.bench = Bench.of(self.setting.args, written_arguments(candidate))
        return self.bench

    def compare(self, bench: Bench) -> None:
        """Compare what was written with the reference, or take it as the reference."""
        found = bench.outputs()
        if self.expected is None:
            self.expected = found
            return
        if len(found) != len(self.expected):
            raise _Wrong(
                f"the reference has {len(self.expected)} tensors, and the kernel writes {len(found)}"
            )
        for output, expected in zip(found, self.expected):
            distance = measuring.difference(output, expected)
            if not distance <= self.tolerance:
                raise _Wrong(f"its result differs by {distance:.1e}, allowed is {self.tolerance:.1e}")


class _Wrong(Exception):
    """A result that differs from the reference."""


def spread(candidates: list[Choice]) -> list[Choice]:
    """Return candidates in an order that visits all of the space early: every 8th, then the next to them."""
    return [c for first in range(8) for c in candidates[first::8]]


def candidate_of(setting: Setting, values: Choice) -> Candidate:
    """Trace a candidate, run the passes, and count and estimate what it does."""
    kernel = setting.kernel.bind(**values)
    call = kernel._check(setting.args, {}, meta=True)
    work = work_for(
        kernel, call, final_ir(kernel, call, setting.target), setting.target, setting.card.processors
    )
    return Candidate(values, kernel, call, work, estimate(work, setting.card))


def final_ir(kernel: Kernel, call: Prepared, target: str) -> TileKernel:
    """Return the tile IR of a call after all passes."""
    source = kernel.source
    named = {param.name: type for param, type in zip(source.runtime_params, call.types, strict=True)}
    return run_passes(source.trace(call.constexprs, dict(named)), find_target(target))


def work_for(kernel: Kernel, call: Prepared, final: TileKernel, target: str, processors: int) -> Work:
    """Count what a call does, from its final tile IR."""
    scalars = {
        param.name: value
        for param, value, type in zip(kernel.source.runtime_params, call.values, call.types, strict=True)
        if isinstance(type, ScalarType)
    }
    return work_of(final, size_values(final, call.operands), scalars, find_target(target), processors)


def size_values(kernel: TileKernel, operands: Sequence[Operand | None]) -> dict[str, int]:
    """Return the sizes that a launch passes, by symbol."""
    sizes = {}
    for symbol, param, kind, axis in kernel.symbols():
        operand = operands[kernel.params.index(param)]
        assert operand is not None
        sizes[symbol.name] = (operand.shape if kind == "dim" else operand.strides)[axis]
    return sizes


def compiled(setting: Setting, candidate: Candidate) -> Binary:
    """Compile a candidate, with machine code where that can be made."""
    call = candidate.call
    return candidate.kernel._variant(
        call.constexprs, call.types, setting.target, assemble=available() is None
    )


def written_arguments(candidate: Candidate) -> list[int]:
    """Return the positions of the arguments that a kernel writes to."""
    written = {traffic.tensor for traffic in candidate.work.traffic if traffic.written}
    return [i for i, param in enumerate(candidate.kernel.source.runtime_params) if param.name in written]


def counted(work: Work, counters: Mapping[str, Any]) -> Work:
    """Return work with what the simulator counted in place of what the tile IR says."""
    wavefronts = 128 * counters["shared_wavefronts"] / work.blocks
    return replace(
        work,
        issue=counters["warp_instructions"] / work.blocks,
        # Conflicts show in wavefronts; what bulk copies and wgmma move is not among them.
        shared_bytes_moved=max(work.shared_bytes_moved, wavefronts),
    )


def reason(error: BaseException) -> str:
    """Return why a candidate failed, in one line."""
    if isinstance(error, TilusError):
        return error.message.splitlines()[0]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _of_entry(entry: store.Entry) -> tuple[str, float | None, str]:
    if entry.status == "running":
        return "failed", None, "the process ended while it was measured"
    return entry.status, entry.seconds, entry.note
