"""Orders the schedules of an op's problem by the cost model, checks what they compile to, measures them on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tilus.codegen import target
from tilus.codegen.assemble import Resources, available
from tilus.codegen.figures import Figures
from tilus.errors import TilusError
from tilus.ir import Kernel as TileKernel
from tilus.ops.defaults.problems import Key, Launch, Problem, Schedule
from tilus.runtime.kernel import Kernel, Prepared
from tilus.runtime.tuning.measure import GpuTimer, difference
from tilus.runtime.tuning.model import Estimate, estimate
from tilus.runtime.tuning.search import final_ir, reason, work_for

TOLERANCE = 0.02


@dataclass(frozen=True)
class Ranked:
    """A schedule and what is known of it: an estimate for each launch, or why it is none."""

    schedule: Schedule
    seconds: float
    estimates: tuple[Estimate, ...] = ()
    failure: str = ""
    measured: bool = False

    @property
    def bound(self) -> str:
        """What limits the longest launch."""
        return max(self.estimates, key=lambda e: e.seconds).bound if self.estimates else ""


@dataclass
class Workshop:
    """Compiles the launches of a card once for all problems in which they are the same.

    Attributes
    ----------
    card : Figures
        The card.
    assembles : bool
        Whether machine code is made, so that registers and spills are known.
    """

    card: Figures
    assembles: bool = field(default_factory=lambda: available() is None)
    _traced: dict[Any, TileKernel] = field(default_factory=dict)
    _resources: dict[Any, Resources | None] = field(default_factory=dict)

    def call(self, launch: Launch) -> tuple[Kernel, Prepared]:
        """Return a launch's kernel with its values, and the checked call."""
        kernel, args, options = launch
        names = set(kernel.source.constexprs)
        bound = kernel.bind(**{name: value for name, value in options.items() if name in names})
        more = {name: value for name, value in options.items() if name not in names}
        return bound, bound._check(args, more, meta=True)

    def estimate(self, launch: Launch, assemble: bool = False) -> tuple[Estimate, Resources | None]:
        """Estimate a launch; with `assemble` from the registers that it takes."""
        kernel, call = self.call(launch)
        key = (kernel.source.name, kernel._constexpr_key(call.constexprs), call.types)
        traced = self._traced.get(key)
        if traced is None:
            traced = self._traced[key] = final_ir(kernel, call, self.card.target)
        if assemble and self.assembles and key not in self._resources:
            binary = kernel._variant(call.constexprs, call.types, self.card.target)
            self._resources[key] = binary.resources
        resources = self._resources.get(key)
        work = work_for(kernel, call, traced, self.card.target, self.card.processors)
        return estimate(work, self.card, resources), resources

    def rank(self, problem: Problem, key: Key, schedules: Iterable[Schedule]) -> list[Ranked]:
        """Return schedules in the order of their estimates; those that fail are last."""
        found = []
        for schedule in schedules:
            try:
                estimates = [
                    self.estimate(launch)[0] for launch in problem.launches(key, schedule, self.card)
                ]
            except TilusError as error:
                found.append(Ranked(schedule, float("inf"), failure=reason(error)))
            else:
                found.append(Ranked(schedule, sum(e.seconds for e in estimates), tuple(estimates)))
        return sorted(found, key=lambda ranked: ranked.seconds)

    def checked(self, problem: Problem, key: Key, ranked: Ranked) -> Ranked:
        """Compile a schedule's launches; say why it cannot ship if one spills, or fails."""
        if ranked.failure:
            return ranked
        estimates = []
        for launch in problem.launches(key, ranked.schedule, self.card):
            try:
                found, resources = self.estimate(launch, assemble=True)
            except TilusError as error:
                return replace(ranked, failure=reason(error), seconds=float("inf"))
            estimates.append(found)
            if resources is not None:
                spills = resources.spill_loads + resources.spill_stores
                if spills or resources.stack:
                    return replace(ranked, failure=f"spills {spills} bytes", seconds=float("inf"))
                if resources.warnings:
                    return replace(ranked, failure=resources.warnings[0], seconds=float("inf"))
        total = sum(e.seconds for e in estimates)
        failure = "" if total < float("inf") else "no block fits on a multiprocessor"
        return replace(ranked, seconds=total, estimates=tuple(estimates), failure=failure)


def best_of(
    workshop: Workshop, problem: Problem, key: Key, worth: float, tried: int
) -> tuple[Ranked, list[Ranked]]:
    """Return the schedule to ship for a problem, and all that were looked at.

    Parameters
    ----------
    workshop : Workshop
        For the card.
    problem, key
        The problem.
    worth : float
        By how much another schedule must be faster than the heuristic's, as a factor, to take its place.
    tried : int
        Schedules that are compiled, the best by the model.
    """
    candidates = problem.few(key, target(workshop.card.target), workshop.card)
    ranked = workshop.rank(problem, key, candidates)
    own = next(r for r in ranked if r.schedule == candidates[0])
    compiled: list[Ranked] = []
    for entry in [own, *(r for r in ranked if r is not own)]:
        good = [r for r in compiled if not r.failure]
        # The registers that code takes make an estimate longer, never shorter.
        if len(good) > tried or (good and entry.seconds * worth > min(r.seconds for r in good)):
            break
        if not entry.failure:
            compiled.append(workshop.checked(problem, key, entry))
    good = sorted((r for r in compiled if not r.failure), key=lambda r: r.seconds)
    if not good:
        reasons = dict.fromkeys(r.failure for r in [*compiled, *ranked] if r.failure)
        raise TilusError(f"no schedule of {problem.name} for {key} can ship: " + "; ".join(list(reasons)[:3]))
    first = next((r for r in good if r.schedule == own.schedule), None)
    if first is not None and first.seconds <= worth * good[0].seconds:
        return first, compiled
    return good[0], compiled


def measure(workshop: Workshop, problem: Problem, key: Key, device: int, tried: int) -> list[Ranked]:
    """Measure the best schedules of a problem on a GPU; the fastest is the first, what failed is last.

    The result of each is compared with that of the heuristic's schedule.
    """
    import torch

    candidates = problem.candidates(key, target(workshop.card.target), workshop.card)
    ranked = workshop.rank(problem, key, candidates)
    own = next(r for r in ranked if r.schedule == candidates[0])
    timer = GpuTimer.of(device)
    arguments = problem.arguments(key, f"cuda:{device}")
    expected: torch.Tensor | None = None
    found: list[Ranked] = []
    for entry in [own, *(r for r in ranked if r is not own)][: tried + 1]:
        if entry.failure:
            found.append(entry)
            continue
        try:
            with problem.using(entry.schedule):
                out = problem.run(arguments)
                if not timer.idle(timer.seconds_at_most):
                    raise TilusError(f"it did not end within {timer.seconds_at_most:g} s")
                expected = out if expected is None else expected
                distance = difference(out, expected)
                if not distance <= TOLERANCE:
                    raise TilusError(f"its result differs by {distance:.1e}, allowed is {TOLERANCE:.1e}")
                best = min((r.seconds for r in found), default=float("inf"))
                seconds = timer.seconds(lambda: problem.run(arguments), best)
        except (TilusError, RuntimeError) as error:
            found.append(replace(entry, failure=reason(error), seconds=float("inf")))
            if not timer.idle(timer.seconds_at_most):
                break
        else:
            found.append(replace(entry, seconds=seconds, measured=True))
    return sorted(found, key=lambda r: r.seconds)
