"""Checks every schedule that ships or that a heuristic chooses: no spills, wide accesses, no bank conflicts.

    python benchmarks/shipped_schedules.py [--target sm_90a] [--every 40] [--processes 2] [--write]

For all types, groups, zero points and activations, m from 1 to 4096 and the layers of large models, each distinct
specialisation is compiled to machine code: the assembler says whether it spills, has a stack frame, or serialises
tensor-core instructions. In its PTX the loops that multiply or copy are searched for accesses to global memory of less
than 16 bytes a thread. A small product with the same schedule runs on the simulator, which counts bank conflicts.

All problems are several hundred thousand, and their specialisations some eighty thousand, which takes hours: `--every N`
looks at all that ships, and of the others at each N-th by a digest of what it is, the same ones each time. Whatever is compiled is kept in the
cache. The exit code is 1 where there is an exception.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from _ptx import narrow_accesses, working_loops
from _shipped import Specialisation, cases, form_of, specialisations, taken

from tilus.codegen.assemble import assemblers, available
from tilus.errors import TilusError
from tilus.ops.defaults.generate import CARDS
from tilus.ops.defaults.problems import Key, Schedule, replaced
from tilus.ops.prepack import UNIT_K
from tilus.runtime.simulate import CHECKS_VARIABLE, TARGET_VARIABLE
from tilus.runtime.tuning.search import reason
from tilus.simulator import collect_reports

RESULTS = Path(__file__).parent / "results" / "shipped_schedules.json"
# What of two schedules' PTX says nothing of bank conflicts: names and targets.
_HEADER = (".version", ".target", "//", ".visible .entry", ".file", ".loc")


@dataclass(frozen=True)
class Row:
    """What one specialisation compiles to.

    Attributes
    ----------
    target, kernel, problem, schedule : str
    ships : bool
        Whether the schedule is in a file that ships.
    registers, spills, stack : int
    warnings : tuple of str
        What the assembler warned of.
    narrow, narrow_outside : tuple of str
        Accesses to global memory of less than 16 bytes: in the loops that do the work, and elsewhere.
    conflicts : float or None
        Passes through shared memory for each that would do; None where no product ran.
    failure : str
        Why it did not compile or run.
    """

    target: str
    kernel: str
    problem: str
    schedule: str
    ships: bool
    registers: int = 0
    spills: int = 0
    stack: int = 0
    warnings: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    narrow_outside: tuple[str, ...] = ()
    conflicts: float | None = None
    failure: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        found = [self.failure] if self.failure else []
        found += [f"spills {self.spills} bytes"] if self.spills else []
        found += [f"stack of {self.stack} bytes"] if self.stack else []
        found += list(self.warnings)
        found += [f"in the loop: {', '.join(self.narrow)}"] if self.narrow else []
        if self.conflicts is not None and self.conflicts > 1:
            found.append(f"bank conflicts: {self.conflicts:.2f} passes for each")
        return found


def checked(subject: Specialisation) -> Row:
    """Compile a specialisation and say what is wrong with it."""
    sizes = "x".join(str(subject.key[name]) for name in ("m", "n", "k"))
    tiles = " ".join(f"{name}={value}" for name, value in subject.schedule.items())
    named = (subject.target, subject.kernel.source.name, f"{sizes} {subject.form}", tiles, subject.ships)
    try:
        binary = subject.kernel._variant(subject.call.constexprs, subject.call.types, subject.target)
    except TilusError as error:
        return Row(*named, failure=reason(error))
    resources = binary.resources
    assert resources is not None
    loops = working_loops(binary.ptx)
    everywhere = narrow_accesses(binary.ptx.splitlines())
    inside = [access for loop in loops for access in narrow_accesses(loop)]
    outside = Counter(everywhere) - Counter(inside)
    return Row(
        *named, resources.registers, resources.spill_stores + resources.spill_loads, resources.stack,
        resources.warnings, tuple(sorted(set(inside))), tuple(sorted(outside)),
    )  # fmt: skip


def code_of(subject: Specialisation) -> str:
    """Return a digest of the PTX without what tells targets apart."""
    ptx = subject.kernel._variant(subject.call.constexprs, subject.call.types, subject.target).ptx
    lines = [line for line in ptx.splitlines() if not line.strip().startswith(_HEADER)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Of the device of a small product: so many clusters run at once and share what there is.
SMALL_TEAMS = 4


def clusters(schedule: Schedule) -> tuple[int, int]:
    """Return the blocks of a cluster below and beside one another."""
    return schedule.get("cluster_m", 1), schedule.get("cluster_n", schedule.get("cluster", 1))


def small(key: Key, schedule: Schedule) -> Key:
    """Return a problem that a few blocks solve with the schedule of a large one."""
    rows, columns = clusters(schedule)
    # Enough for the pipeline to fill, and for each of those who share a tile.
    shared = schedule.get("stream") or schedule.get("blocks")
    steps = 2 * schedule["stages"] + 2 if shared else min(schedule["stages"], 3) + 1
    k = schedule.get("block_k", UNIT_K) * schedule.get("deep", 1) * schedule.get("splits", 1) * steps
    if key.get("group", -1) > 0:
        k = -(-k // max(key["group"], UNIT_K)) * max(key["group"], UNIT_K)
    return {**key, "m": min(key["m"], schedule["block_m"] * rows), "n": schedule["block_n"] * columns, "k": k}


def conflicts(subject: Specialisation) -> float:
    """Run a small product with a schedule, and return the passes through shared memory for each that would do."""
    torch.manual_seed(0)
    os.environ[TARGET_VARIABLE], os.environ[CHECKS_VARIABLE] = subject.target, "0"
    problem, schedule = subject.problem, dict(subject.schedule)
    if schedule.get("blocks"):
        schedule["blocks"] = SMALL_TEAMS
    rows, columns = clusters(schedule)
    arguments = problem.arguments(small(subject.key, schedule), "cpu")
    teams = replaced(problem.module, "processors", SMALL_TEAMS * rows * columns)
    with teams, problem.using(schedule), collect_reports() as reports:
        problem.run(arguments)
    mine = [r for r in reports if r.kernel == subject.kernel.source.name]
    if not mine:
        raise TilusError(f"the small product ran {', '.join(r.kernel for r in reports)} instead")
    taken, least = (sum(r.counters[f"shared_wavefronts{end}"] for r in mine) for end in ("", "_ideal"))
    return float(taken / least) if least else 1.0


def simulated(subject: Specialisation, row: Row) -> Row:
    """Return a row with bank conflicts."""
    try:
        return Row(**{**vars(row), "conflicts": conflicts(subject)})
    except (TilusError, RuntimeError, ValueError) as error:
        return Row(**{**vars(row), "failure": f"on the simulator: {reason(error)}"})


def part(subjects: Sequence[Specialisation], simulate_every: int) -> Iterator[Row]:
    """Check specialisations; of those that compile to the same code one runs on the simulator."""
    seen: set[str] = set()
    for subject in subjects:
        row = checked(subject)
        if not row.failure and simulate_every:
            digest = code_of(subject)
            if digest not in seen and int(digest[:8], 16) % simulate_every == 0:
                row = simulated(subject, row)
            seen.add(digest)
        yield row


def send(subjects: Sequence[Specialisation], simulate_every: int, queue: Any) -> None:
    """Check specialisations in a process of its own."""
    torch.set_num_threads(1)
    for row in part(subjects, simulate_every):
        queue.put(row)
    queue.put(None)


def check_all(subjects: list[Specialisation], processes: int, simulate_every: int) -> Iterator[Row]:
    """Check specialisations in several processes, which take over what this one has found."""
    if processes == 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from part(subjects, simulate_every)
        return
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=send, args=(subjects[number::processes], simulate_every, queue), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    left = processes
    while left:
        try:
            row = queue.get(timeout=60)
        except Empty:
            if all(worker.is_alive() for worker in workers):
                continue
            raise SystemExit("a process died: nothing can be said of what it was to check") from None
        if row is None:
            left -= 1
        else:
            yield row


def summary(rows: Sequence[Row], of: int) -> dict[str, Any]:
    """Return totals."""
    ran = [row for row in rows if row.conflicts is not None]
    outside = Counter(f"{row.kernel}: {access}" for row in rows for access in row.narrow_outside)
    return {
        "specialisations": of,
        "checked": len(rows),
        "by_kernel": dict(Counter(row.kernel for row in rows)),
        "shipped": sum(row.ships for row in rows),
        "simulated": len(ran),
        "most_registers": max((row.registers for row in rows), default=0),
        "narrow_outside_the_loop": dict(outside.most_common()),
        "exceptions": sum(bool(row.faults) for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--target", action="append", choices=sorted(CARDS), help="may be repeated; all by default"
    )
    parser.add_argument("--every", type=int, default=1, help="of what does not ship, look at each so-manieth")
    parser.add_argument("--simulate-every", type=int, default=1, help="run each so-manieth code; 0 for none")
    parser.add_argument("--match", default="", help="only problems with this text, such as dtype or group=64")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which to stop")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    if available() is not None:
        raise SystemExit(f"no assembler here: {available()}")
    start = time.monotonic()
    results: dict[str, Any] = {}
    bad: list[Row] = []
    for name in options.target or sorted(CARDS):
        problems = [case for case in cases(name) if options.match in form_of(case[1])]
        wanted = [case for case in problems if case[2] is not None or taken(case[0], case[1], options.every)]
        subjects = list(specialisations(name, wanted))
        # A digest's order mixes kernels, so that a run that is stopped has seen some of each.
        subjects.sort(key=lambda subject: subject.identity)
        print(
            f"{name}: {len(wanted)} of {len(problems)} problems, {len(subjects)} specialisations, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
        rows: list[Row] = []
        for row in check_all(subjects, options.processes, options.simulate_every):
            rows.append(row)
            if row.faults:
                bad.append(row)
                print(
                    f"{row.kernel} {row.target} {row.problem}: {'; '.join(row.faults)}\n    {row.schedule}",
                    flush=True,
                )
            if len(rows) % 100 == 0:
                print(f"{name}: {len(rows)} of {len(subjects)}, {time.monotonic() - start:.0f} s", flush=True)
            if time.monotonic() - start > options.limit:
                break
        results[name] = {"problems": len(problems), "looked_at": len(wanted), **summary(rows, len(subjects))}
        print(json.dumps(results[name], indent=1), flush=True)
    if options.write:
        facts = {
            "every": options.every,
            "simulate_every": options.simulate_every,
            "assemblers": assemblers().split(",")[0],
        }
        exceptions = [asdict(row) | {"faults": row.faults} for row in bad]
        data = {**facts, "targets": results, "exceptions": exceptions}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
