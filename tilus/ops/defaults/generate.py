"""Writes the schedules that ship: `python -m tilus.ops.defaults.generate [--op OP] [--target TARGET] [--out FOLDER]`.

For each op, target and class of problems the cost model chooses among the schedules that compile without spills. Where
none is clearly faster than the heuristic's own, an entry says so (null), and the heuristic goes on to decide. Entries
that were measured on a card of the target take precedence: `--measured FILE` adds them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilus.codegen import target
from tilus.codegen.figures import Figures, figures
from tilus.ops.defaults.problems import PROBLEMS, Problem, Schedule
from tilus.ops.defaults.tuning import Workshop, best_of
from tilus.ops.tuned import DEFAULTS, SIZES, size_class
from tilus.runtime.cache import write_file

CARDS = {"sm_80": "A100", "sm_89": "L40S", "sm_90a": "H200"}
"""The cards for which schedules are chosen."""
WORTH = 1.2
"""The model is no better than this: less of a gain is none, beside heuristics that know more of their kernels."""
TRIED = 3


def generate(
    problem: Problem, card: Figures, every: int = 1, measured: Sequence[dict[str, Any]] = (), say: Any = None
) -> dict[str, Any]:
    """Return the schedules of an op for a card, as JSON values.

    Parameters
    ----------
    problem : Problem
        The op.
    card : Figures
        The card.
    every : int
        Take only each so-manieth class of problems.
    measured : sequence of dict
        Entries (key, schedule) that were measured.
    say : function, optional
        Called with a line of text for each class.
    """
    machine = target(card.target)
    workshop = Workshop(card)
    schedules: list[Schedule] = []
    entries: list[list[Any]] = []
    known = {_identity(problem, e["key"]): e["schedule"] for e in measured}
    changed = 0
    keys = list(problem.keys(machine))[::every]
    for number, key in enumerate(keys):
        chosen = known.get(_identity(problem, key))
        if chosen is None:
            best, _ = best_of(workshop, problem, key, WORTH, TRIED)
            chosen = best.schedule
        which: int | None = None
        # For sizes that are not the class's very own, what the heuristic chooses is better still.
        if chosen != problem.candidates(key, machine, card)[0]:
            changed += 1
            if chosen not in schedules:
                schedules.append(chosen)
            which = schedules.index(chosen)
        sizes = [key[name] for name in SIZES]
        entries.append([*(key[name] for name in problem.fields), sizes, which])
        if say is not None and number % 20 == 19:
            say(
                f"{problem.name} {card.target}: {number + 1} of {len(keys)}, {changed} other than the heuristic's"
            )
    return {
        "op": problem.name,
        "target": card.target,
        "card": card.name,
        "source": "cost model" + (f" and {len(known)} measurements" if known else ""),
        "fields": list(problem.fields),
        "schedules": schedules,
        "entries": entries,
    }


def _identity(problem: Problem, key: dict[str, Any]) -> tuple[Any, ...]:
    sizes = tuple(size_class(name, key[name]) for name in SIZES)
    return (*(key.get(name) for name in problem.fields), *sizes)


def to_text(data: dict[str, Any]) -> str:
    """Return schedules as JSON with a line for each schedule and entry, so that differences can be read."""
    lines = ["{"]
    for name in ("op", "target", "card", "source", "fields"):
        lines.append(f"{json.dumps(name)}: {json.dumps(data[name])},")
    for name in ("schedules", "entries"):
        rows = ",\n".join(json.dumps(row) for row in data[name])
        lines.append(f"{json.dumps(name)}: [\n{rows}\n]" + ("," if name == "schedules" else ""))
    return "\n".join([*lines, "}"]) + "\n"


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of `tilus tune --json`, or those in the results of `make gpu`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = (
        data if isinstance(data, list) else data["parts"]["tune"]["facts"]["entries"]
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--op", action="append", choices=sorted(PROBLEMS), help="only this op; may be repeated"
    )
    parser.add_argument(
        "--target", action="append", choices=sorted(CARDS), help="only this target; may be repeated"
    )
    parser.add_argument(
        "--measured", type=Path, help="entries that were measured, as `tilus tune` prints them"
    )
    parser.add_argument("--out", type=Path, default=DEFAULTS, help="folder of the files")
    options = parser.parse_args(arguments)
    measured = read_entries(options.measured) if options.measured else []
    for op in options.op or sorted(PROBLEMS):
        for name in options.target or sorted(CARDS):
            start = time.monotonic()
            mine = [e for e in measured if e.get("op") == op and e.get("target") == name]
            data = generate(
                PROBLEMS[op], figures(CARDS[name]), measured=mine, say=lambda line: print(line, flush=True)
            )
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{op}-{name}.json"
            write_file(path, to_text(data).encode())
            seconds = time.monotonic() - start
            print(
                f"{path}: {len(data['schedules'])} schedules for {len(data['entries'])} classes, {seconds:.0f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
