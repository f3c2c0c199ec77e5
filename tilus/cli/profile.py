"""`tilus profile`: what each line of a kernel costs, counted on the simulator, and what limits it on a card."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilus.cli import UsageError, arguments, kernels
from tilus.errors import TilusError

if TYPE_CHECKING:
    from tilus.codegen.figures import Figures
    from tilus.simulator import LineCounters, Report

_EXAMPLES = """\
examples:
  tilus profile softmax.py::softmax --size rows=64 --size columns=1024
  tilus profile matmul.py::matmul --size m=256 --size n=256 --size k=512 --set block_m=128 --target sm_80
  tilus profile train.py::step --arg batch=4 --card 'RTX 4090' --json
"""
_RESOURCES = {
    "dram_bytes": "device memory",
    "global_bytes": "second-level cache",
    "shared_wavefronts": "shared memory",
    "tensor_core_flops": "tensor cores",
    "warp_instructions": "instruction issue",
    "special_functions": "special functions",
}
_LONGEST_SOURCE = 60
_MOST_KINDS = 8


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "profile",
        help="count on the simulator what each line of a kernel costs, and say what limits it",
        description=(
            "Run a kernel with random tensors, or a Python function and all kernels that it launches with CPU tensors,"
            " on the simulator; show counts by line, and a roofline estimate for a card."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "function",
        metavar="FILE::FUNCTION",
        help="a Python file or module, and a kernel or a function that launches kernels",
    )
    parser.add_argument(
        "--size", dest="sizes", metavar="NAME=SIZE", action="append", default=[],
        help="size of a named dimension of a kernel, or number of elements behind a pointer; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--arg", dest="given", metavar="NAME=VALUE", action="append", default=[],
        help="dtype of a tensor whose annotation leaves it open, value of a scalar, or an argument of a function",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="constexprs", metavar="NAME=VALUE", action="append", default=[],
        help="value of a constexpr parameter: a Python literal, a dtype or a layout; may be repeated",
    )  # fmt: skip
    parser.add_argument("--target", metavar="TARGET", help="whose PTX runs, such as sm_80 (default: sm_90a)")
    parser.add_argument(
        "--card",
        metavar="NAME",
        help="whose figures the estimate takes (default: a usual card of the target)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random tensors (default: 0)")
    parser.add_argument(
        "--check", action="store_true", help="look for races and other hazards too, which takes longer"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, by instruction too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run, count and print."""
    from tilus import simulator

    target, card = find_target(options.target, options.card)
    call = find_call(options)
    with _settings(target, options.check), simulator.collect_reports() as reports:
        try:
            # What kernels and functions print would not be JSON.
            with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
                call()
        except (TilusError, UsageError):
            raise
        except Exception:
            traceback.print_exc()
            return 1
    if not reports:
        raise UsageError(
            f"{options.function} launched no kernel on the simulator, expected launches with CPU tensors"
        )
    profiles = collect(reports, target, card)
    if options.json:
        print(json.dumps([profile.to_dict() for profile in profiles], indent=1))
    else:
        print("\n\n".join(profile.text() for profile in profiles))
    return 0


def find_target(target: str | None, card: str | None) -> tuple[str, Figures]:
    """Return the target whose PTX runs, and the card whose figures are used."""
    from tilus.codegen import target as find
    from tilus.codegen.figures import figures
    from tilus.runtime.simulate import default_target

    if card is not None:
        found = figures(card)
        return find(target or found.target).name, found
    name = find(target or default_target()).name
    return name, figures(name)


def find_call(options: argparse.Namespace) -> Callable[[], object]:
    """Return what is to run: the kernel with random arguments, or the function with those given."""
    place, _, name = options.function.partition("::")
    if not place or not name:
        raise UsageError(f"{options.function!r} names no function, expected FILE::FUNCTION")
    module = kernels.load_module(place)
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    from tilus.runtime.kernel import Kernel

    if isinstance(value, Kernel):
        given, constexprs = arguments.random_arguments(
            value, options.constexprs, options.given, options.sizes, options.seed
        )
        return lambda: value(*given, **constexprs)
    if not callable(value):
        own = [key for key, each in vars(module).items() if callable(each) and _is_from(each, module)]
        raise UsageError(f"{place} has no kernel or function {name!r}; it has: {', '.join(own) or 'none'}")
    if options.sizes or options.constexprs:
        raise UsageError(
            f"{name} is a Python function: --size and --set are for kernels, expected --arg NAME=VALUE"
        )
    values = kernels.read_constexprs(options.given, "--arg")
    try:
        inspect.signature(value).bind(**values)
    except TypeError as error:
        raise UsageError(f"{name} cannot be called so: {error}; give arguments as --arg NAME=VALUE") from None
    return lambda: value(**values)


def _is_from(value: Any, module: Any) -> bool:
    return getattr(value, "__module__", None) == module.__name__


@contextlib.contextmanager
def _settings(target: str, check: bool) -> Iterator[None]:
    """Have launches with CPU tensors run a target's PTX, with or without checks."""
    from tilus.runtime.simulate import CHECKS_VARIABLE, TARGET_VARIABLE

    wanted = {TARGET_VARIABLE: target, CHECKS_VARIABLE: "1" if check else "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Profile:
    """The launches of one kernel, summed.

    Attributes
    ----------
    kernel, target : str
        Names.
    card : Figures
        Whose figures the estimate takes.
    reports : list of Report
        One for each launch.
    seconds : dict
        For each resource of the card what it needs for all launches.
    estimate : float
        Sum over the launches of the seconds of the resource that needs most.
    """

    kernel: str
    target: str
    card: Figures
    reports: Sequence[Report]
    seconds: dict[str, float]
    estimate: float

    @property
    def counters(self) -> dict[str, Any]:
        """Counters of all launches, summed."""
        total: dict[str, Any] = {}
        for report in self.reports:
            _add(total, report.counters)
        return total

    def lines(self, by_instruction: bool = False) -> list[LineCounters]:
        """Counters of all launches by source line, or by instruction."""
        found: dict[Any, Any] = {}
        for report in self.reports:
            for row in report.instructions if by_instruction else report.lines:
                key = (row.ptx_line, row.instruction) if by_instruction else row.source or row.ptx_line
                found[key] = _sum_lines(found[key], row) if key in found else row
        return list(found.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "kernel": self.kernel,
            "target": self.target,
            "card": self.card.name,
            "launches": [{"grid": list(report.grid), "block": list(report.block)} for report in self.reports],
            "seconds": self.seconds,
            "limit": next(iter(self.seconds), None),
            "estimate": self.estimate,
            "counters": self.counters,
            "lines": [vars(row) for row in self.lines()],
            "instructions": [vars(row) for row in self.lines(by_instruction=True)],
        }

    def text(self) -> str:
        """Return the profile for people."""
        grids = list(dict.fromkeys(report.grid for report in self.reports))
        shown = ", ".join(f"{x}x{y}x{z}" for x, y, z in grids[:4]) + (", ..." if len(grids) > 4 else "")
        threads = self.reports[0].block[0] * self.reports[0].block[1] * self.reports[0].block[2]
        many = "es" if len(self.reports) > 1 else ""
        head = (
            f"{self.kernel}: {len(self.reports)} launch{many}, grid {shown}, {threads} threads, {self.target}"
        )
        return "\n".join([head, "", *table(self.lines()), "", *totals(self.counters), "", *self._roofline()])

    def _roofline(self) -> list[str]:
        rows = [f"roofline on {self.card.name}: {_time(self.estimate)} at least"]
        limit = next(iter(self.seconds))
        for name, seconds in self.seconds.items():
            mark = "  <- the limit" if name == limit and seconds else ""
            rows.append(f"  {_RESOURCES[name]:20}{_time(seconds):>12}{mark}")
        blocks = sum(report.grid[0] * report.grid[1] * report.grid[2] for report in self.reports)
        if blocks < self.card.processors * len(self.reports):
            rows.append(
                f"  {blocks // len(self.reports)} blocks a launch leave some of the card's {self.card.processors}"
                " multiprocessors idle"
            )
        return rows


def collect(reports: Sequence[Report], target: str, card: Figures) -> list[Profile]:
    """Group launches by kernel, and estimate each."""
    groups: dict[str, list[Report]] = {}
    for report in reports:
        groups.setdefault(report.kernel, []).append(report)
    profiles = []
    for kernel, launches in groups.items():
        seconds: dict[str, float] = {}
        estimate = 0.0
        for report in launches:
            try:
                needed = report.roofline(card.per_second())
            except ValueError as error:
                raise TilusError(f"{card.name} cannot run {kernel}: {error}", hint="another --card") from None
            _add(seconds, needed)
            estimate += max(needed.values())
        seconds = dict(sorted(seconds.items(), key=lambda item: -item[1]))
        profiles.append(Profile(kernel, target, card, launches, seconds, estimate))
    return profiles


def _add(total: dict[str, Any], more: Any) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def _sum_lines(first: LineCounters, second: LineCounters) -> LineCounters:
    values = {field.name: getattr(first, field.name) for field in fields(first)}
    for name, value in values.items():
        if name not in ("source", "ptx_line", "instruction"):
            values[name] = value + getattr(second, name)
    return type(first)(**values)


def table(lines: Sequence[LineCounters]) -> list[str]:
    """Return counters by line as rows of text; columns in which all is zero are left out."""
    columns: list[tuple[str, Callable[[LineCounters], int], Callable[[LineCounters], str]]] = [
        ("instr", lambda row: row.warp_instructions, lambda row: f"{row.warp_instructions:,}"),
        ("lanes", lambda row: 1, lambda row: f"{row.lane_efficiency:.0%}"),
        ("diverge", lambda row: row.divergent_branches, lambda row: f"{row.divergent_branches:,}"),
        ("sectors", lambda row: row.global_sectors, lambda row: f"{row.global_sectors:,}"),
        (
            "ideal",
            lambda row: row.global_sectors,
            lambda row: f"{row.global_efficiency:.0%}" if row.global_sectors else "",
        ),
        ("wavefr", lambda row: row.shared_wavefronts, lambda row: f"{row.shared_wavefronts:,}"),
        (
            "ideal",
            lambda row: row.shared_wavefronts,
            lambda row: f"{row.shared_efficiency:.0%}" if row.shared_wavefronts else "",
        ),
        ("Mflop", lambda row: row.tensor_core_flops, lambda row: f"{row.tensor_core_flops / 1e6:,.2f}"),
        ("waits", lambda row: row.barrier_waits, lambda row: f"{row.barrier_waits:,}"),
        ("atomics", lambda row: row.atomic_requests, lambda row: f"{row.atomic_requests:,}"),
        ("clash", lambda row: row.atomic_conflicts, lambda row: f"{row.atomic_conflicts:,}"),
    ]
    kept = [column for column in columns if any(column[1](row) for row in lines)]
    header = ["line", *(name for name, _, _ in kept), "source"]
    body = []
    several = len({row.source[0] for row in lines if row.source is not None}) > 1
    for row in lines:
        cells = [_place(row, several)]
        for _, amount, shown in kept:
            cells.append(shown(row) if amount(row) else "")
        cells.append(_source(row))
        body.append(cells)
    widths = [max(len(cells[i]) for cells in (header, *body)) for i in range(len(header) - 1)]
    return [
        "  ".join(
            [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:-1], widths[1:])), cells[-1]]
        ).rstrip()
        for cells in (header, *body)
    ]


def _place(row: LineCounters, several: bool) -> str:
    if row.source is None:
        return f"PTX {row.ptx_line}"
    file, line = row.source
    return f"{Path(file).name}:{line}" if several else str(line)


def _source(row: LineCounters) -> str:
    if row.source is None:
        return ""
    text = linecache.getline(*row.source).strip()
    return text if len(text) <= _LONGEST_SOURCE else text[: _LONGEST_SOURCE - 3] + "..."


def totals(counters: dict[str, Any]) -> list[str]:
    """Return the sums as rows of text; what did not happen is left out."""
    rows: list[tuple[str, str]] = []

    def say(name: str, *parts: str) -> None:
        rows.append((name, ", ".join(parts)))

    def needed(name: str) -> str:
        return f"{counters[name + '_ideal'] / counters[name]:.0%} of them needed"

    lanes = counters["thread_instructions"] / max(32 * counters["warp_instructions"], 1)
    say("warp instructions", f"{counters['warp_instructions']:,}", f"{lanes:.0%} of the lanes active")
    by_warp = counters["instructions_by_warp"]
    if len(set(by_warp.values())) > 1:
        say("  by warp of a block", *(f"{warp}: {count:,}" for warp, count in by_warp.items()))
    kinds = sorted(counters["instructions_by_kind"].items(), key=lambda item: (-item[1], item[0]))
    say("  most frequent", *(f"{kind} {count:,}" for kind, count in kinds[:_MOST_KINDS]))
    if counters["divergent_branches"]:
        say("divergent branches", f"{counters['divergent_branches']:,}")
    for word, verb in (("load", "read"), ("store", "written")):
        sectors = counters[f"global_{word}_sectors"]
        if sectors:
            requests = counters[f"global_{word}_requests"]
            say(
                f"global {word}s",
                f"{requests:,} requests",
                f"{sectors:,} sectors",
                needed(f"global_{word}_sectors"),
            )
            size, distinct = counters[f"global_bytes_{verb}"], counters[f"global_distinct_bytes_{verb}"]
            say("", f"{size:,} bytes {verb}", f"{distinct:,} bytes of different sectors")
    if counters["shared_wavefronts"]:
        requests, wavefronts = counters["shared_requests"], counters["shared_wavefronts"]
        say(
            "shared memory",
            f"{requests:,} requests",
            f"{wavefronts:,} wavefronts",
            needed("shared_wavefronts"),
        )
        say("", f"{counters['shared_bytes']:,} bytes")
    for name, words in (("async_bytes", "bulk copies"), ("local_bytes", "local memory")):
        if counters[name]:
            say(words, f"{counters[name]:,} bytes")
    for name, count in counters["tensor_core_instructions"].items():
        say("tensor cores", f"{count:,} {name}")
    if counters["tensor_core_flops"]:
        say("", f"{counters['tensor_core_flops']:,} operations")
    if counters["barrier_waits"]:
        say("barrier waits", f"{counters['barrier_waits']:,} of a warp")
    if counters["atomic_requests"]:
        clashes = f"{counters['atomic_conflicts']:,} wait for another lane of their warp"
        lanes_ = f"{counters['atomic_lanes']:,} lanes"
        say("atomics", f"{counters['atomic_requests']:,} requests", lanes_, clashes)
    return [f"{name:22}{value}" for name, value in rows]


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
