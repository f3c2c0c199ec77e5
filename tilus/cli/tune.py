"""`tilus tune`: find the fastest constexpr values of a kernel, or the fastest schedules of an op."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tilus.cli import UsageError, arguments, kernels
from tilus.errors import TilusError

if TYPE_CHECKING:
    from tilus.codegen.figures import Figures
    from tilus.ops.defaults.tuning import Ranked
    from tilus.runtime.tuning import Result, Space

_EXAMPLES = """\
examples:
  tilus tune matmul.py::matmul --size m=4096 --size n=4096 --size k=4096 --space block_m=64,128 --space stages=2,3,4
  tilus tune matmul.py::matmul ... --where 'block_m * block_n <= 16384' --card A100
  tilus tune quantized_matmul --shape 16x8192x8192 --bits 4
"""
_CHILD = "TILUS_TUNE_CHILD"
_INTERRUPTED = 3
_MOST_RESTARTS = 8
_KEYWORDS = ("and", "or", "not", "min", "max", "True", "False")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="find the fastest constexpr values of a kernel, or schedules of an op",
        description=(
            "Find the constexpr values with which a kernel is fastest. On a GPU candidates are measured; without one a "
            "cost model estimates their times for a card. Of an op, schedules are chosen, and kept for later calls."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        metavar="FILE::KERNEL|OP",
        help="a kernel in a Python file or module, or matmul or quantized_matmul",
    )
    for option, name, metavar, words in (
        (
            "--space",
            "space",
            "NAME=VALUE,VALUE,...",
            "values of a constexpr parameter to choose from; may be repeated",
        ),
        (
            "--where",
            "where",
            "CONDITION",
            "keep only candidates for which this is true, of parameters and dimensions",
        ),
        (
            "--set",
            "constexprs",
            "NAME=VALUE",
            "value of a constexpr parameter that is not chosen; may be repeated",
        ),
        ("--size", "sizes", "NAME=SIZE", "size of a named dimension; may be repeated"),
        (
            "--arg",
            "given",
            "NAME=VALUE",
            "dtype of a tensor whose annotation leaves it open, or value of a scalar",
        ),
        ("--shape", "shapes", "MxNxK", "of an op: rows, columns and depth of a problem; may be repeated"),
    ):
        parser.add_argument(option, dest=name, metavar=metavar, action="append", default=[], help=words)
    parser.add_argument(
        "--bits", type=int, metavar="N", help="of an op: width of the operands or of the weight"
    )
    parser.add_argument(
        "--card", metavar="NAME", help="without a GPU: the card to choose for (default: H200)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="time for the search (default: 60)"
    )
    parser.add_argument(
        "--keep", type=int, default=16, metavar="N", help="candidates that are measured (default: 16)"
    )
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep results on disk")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Search and print."""
    gpu = has_gpu()
    if gpu and os.environ.get(_CHILD) != "1":
        # A candidate may take the process, or the device, with it; what was found before is kept, so another goes on.
        return restarted(options.arguments if hasattr(options, "arguments") else sys.argv[1:])
    if "::" not in options.what and is_op(options.what):
        return tune_op(options, gpu)
    return tune_kernel(options, gpu)


def has_gpu() -> bool:
    """Tell whether there is a GPU that torch can use."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def is_op(name: str) -> bool:
    """Tell whether a name is an op's that can be tuned."""
    return name in ("matmul", "quantized_matmul")


def restarted(
    command_line: Sequence[str], start: Callable[..., Any] = subprocess.run, most: int = _MOST_RESTARTS
) -> int:
    """Run the command in processes of its own until one comes to its end.

    Parameters
    ----------
    command_line : sequence of str
        What stands behind `tilus`.
    start : function
        Starts a process; takes its command line and its environment.
    most : int
        Processes that may die.
    """
    for _ in range(most):
        done = start([sys.executable, "-m", "tilus", *command_line], env={**os.environ, _CHILD: "1"})
        code: int = done.returncode
        if code in (0, 1, 2, 130):
            return code
        print(f"tilus tune: the process ended with {code}; another one goes on", file=sys.stderr)
    print(f"tilus tune: {most} processes died, giving up", file=sys.stderr)
    return 1


# A kernel.


def tune_kernel(options: argparse.Namespace, gpu: bool) -> int:
    """Tune a kernel and print all candidates."""
    from tilus.runtime.tuning import tune

    kernel = kernels.find_kernel(options.what)
    if not options.space:
        names = ", ".join(kernel.source.constexprs) or "none"
        raise UsageError(
            f"{kernel.source.name} has nothing to choose from, expected --space NAME=VALUE,VALUE for some of: {names}"
        )
    space = read_space(options.space, options.where)
    chosen = [f"{name}={values[0]!r}" for name, values in space.choices if is_plain(values[0])]
    args, constexprs = arguments.random_arguments(
        kernel, [*options.constexprs, *chosen], options.given, options.sizes, 0
    )
    constexprs = {name: value for name, value in constexprs.items() if name not in space.names}
    if gpu:
        args = [on_gpu(value) for value in args]
    result = tune(
        kernel,
        args,
        space=space,
        constexprs=constexprs,
        budget_seconds=options.seconds,
        keep=options.keep,
        card=None if gpu else card_of(options.card),
        use_cache=not options.no_cache,
    )
    print(json.dumps(result.to_json(), indent=1) if options.json else summary(result))
    sys.stdout.flush()
    if gpu and result.interrupted:
        # The device is busy or lost: an orderly end would wait for it.
        os._exit(_INTERRUPTED)
    return 0


def is_plain(value: Any) -> bool:
    """Tell whether a value can be written on a command line as Python prints it."""
    return isinstance(value, (bool, int, float, str))


def summary(result: Result) -> str:
    """Return a result as text."""
    best = " ".join(f"--set {name}={value}" for name, value in result.best.items())
    how = "measured on" if result.method == "time" else "estimated for"
    return f"{result.table()}\n\nfastest, {how} {result.device}: {best}"


def on_gpu(value: Any) -> Any:
    """Return an array or a CPU tensor on the GPU."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.cuda() if isinstance(value, torch.Tensor) else value


def card_of(name: str | None) -> Figures:
    """Return the card of a name."""
    from tilus.codegen.figures import figures

    try:
        return figures(name or "H200")
    except TilusError as error:
        raise UsageError(f"--card: {error.message}, expected {error.hint}") from None


def read_space(pairs: Sequence[str], conditions: Sequence[str]) -> Space:
    """Return the space of `--space NAME=VALUE,VALUE,...` and `--where CONDITION`."""
    from tilus.runtime.tuning import Space

    choices = {
        name: [kernels.read_value(part.strip(), f"--space {name}") for part in split(text)]
        for name, text in kernels.read_pairs(list(pairs), "--space").items()
    }
    space = Space(**choices)
    for text in conditions:
        space = space.where(condition(text))
    return space


def split(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    return re.split(r",(?![^(\[{]*[)\]}])", text)


def condition(text: str) -> Callable[..., bool]:
    """Return the constraint that a condition stands for."""
    from tilus.runtime.host_expression import evaluator, parse

    names = [name for name in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", text)) if name not in _KEYWORDS]
    evaluate = evaluator(parse(text, {name: ("size", name) for name in names}))

    def holds(**known: Any) -> bool:
        return bool(evaluate({("size", name): value for name, value in known.items()}))

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    holds.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return holds


# An op.


def tune_op(options: argparse.Namespace, gpu: bool) -> int:
    """Choose schedules of an op for some shapes, and keep what was measured."""
    try:
        from tilus.ops.defaults.problems import PROBLEMS
    except ImportError as error:
        raise UsageError(f"ops need torch, which cannot be imported: {error}") from None
    if not options.shapes:
        raise UsageError(
            f"{options.what} needs a problem, expected --shape MxNxK, such as --shape 16x4096x4096"
        )
    problem = PROBLEMS[options.what]
    bits = options.bits if options.bits is not None else 16 if options.what == "matmul" else 4
    allowed = (8, 16, 32) if options.what == "matmul" else tuple(range(1, 9))
    if bits not in allowed:
        raise UsageError(f"--bits {bits}: expected one of {', '.join(map(str, allowed))}")
    found = []
    for text in options.shapes:
        m, n, k = read_shape(text)
        key: dict[str, Any] = problem.key(bits, m, n, k)
        card, rows = rank(problem, key, options, gpu)
        found.append({"op": options.what, "target": card.target, "key": key, "schedule": rows[0].schedule})
        if not options.json:
            print(f"{options.what} {text}, {bits} bits, {'measured' if gpu else 'estimated'} on {card.name}")
            print(op_table(rows))
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


def rank(
    problem: Any, key: dict[str, Any], options: argparse.Namespace, gpu: bool
) -> tuple[Figures, list[Ranked]]:
    """Return the card and the schedules of a problem, the fastest first."""
    from tilus.ops import tuned
    from tilus.ops.defaults.tuning import Workshop, best_of, measure

    if not gpu:
        card = card_of(options.card)
        best, every = best_of(Workshop(card), problem, key, 1.0, min(options.keep, 8))
        return card, [best, *(r for r in every if r is not best)]
    import torch

    from tilus.codegen.figures import figures_of_device
    from tilus.runtime import driver

    device = torch.cuda.current_device()
    name, target = driver.device_name(device), driver.target(device).name
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    card = figures_of_device(name, target, processors)
    rows = measure(Workshop(card), problem, key, device, options.keep)
    if rows[0].measured and not options.no_cache:
        tuned.keep(problem.name, target, key, rows[0].schedule, rows[0].seconds, name)
    return card, rows


def read_shape(text: str) -> tuple[int, int, int]:
    """Return m, n and k of MxNxK."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise UsageError(f"--shape {text!r}: expected MxNxK, such as 16x4096x4096")
    m, n, k = map(int, found.groups())
    return m, n, k


def op_table(rows: Sequence[Ranked]) -> str:
    """Return schedules as text."""
    names = list(dict.fromkeys(name for row in rows for name in row.schedule))
    lines = [[*names, "microseconds", "limited by", "note"]]
    for row in rows:
        seconds = f"{row.seconds * 1e6:.1f}" if row.seconds < float("inf") else "failed"
        lines.append([*(str(row.schedule.get(name, "")) for name in names), seconds, row.bound, row.failure])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines)
