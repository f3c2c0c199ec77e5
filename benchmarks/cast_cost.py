"""Counts the machine instructions that a cast takes for each element, for every narrow type, and compares with limits.

    python benchmarks/cast_cost.py [--target sm_90a] [--types uint4 e2m1] [--parts] [--write]

The exit code is 1 where a cast of weights takes more than its limit. Where nvcc is installed it compiles the sequences of
Marlin and of the Tilus paper, whose counts stand beside ours.

A kernel loads words, casts them and stores the result; beside it stands one that loads and stores as much without
a cast. Both are compiled for n and 2n groups of words, assembled and disassembled; the growth of their difference is
the cost of n groups, free of what a loop does once, such as keeping constants in registers. The disassembler is
NVIDIA's nvdisasm, from `pip install nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from _nvcc_casts import sequences

from tilus import dtypes
from tilus.codegen.assemble import assemble, available
from tilus.codegen.casts import (
    Arrangement,
    best_cast,
    cast_cost,
    cast_elements,
    cast_stored,
    preferred_arrangement,
    stored_arrangement,
    stored_exponent,
)
from tilus.codegen.llvm import to_ptx
from tilus.codegen.llvm_text import GLOBAL, V, Writer
from tilus.codegen.registers import bits_of
from tilus.codegen.target import Target
from tilus.codegen.target import target as find_target
from tilus.dtypes import DType

RESULTS = Path(__file__).parent / "results" / "cast_cost.json"
TARGETS = ("sm_80", "sm_89", "sm_90a")
DESTS = (dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.float8_e4m3)
# Loads and stores are the same with and without a cast, but for how the assembler splits them.
_NOT_COUNTED = ("NOP", "BRA", "EXIT", "LDG", "STG")
SOURCES = tuple(t for t in dtypes.NAMED if t.bits <= 8 and t.kind in ("int", "uint", "float", "table"))


def find_nvdisasm() -> Path | None:
    """Return nvdisasm of the Python package, or of the PATH."""
    import shutil

    try:
        import nvidia
    except ImportError:
        nvidia = None
    for folder in getattr(nvidia, "__path__", ()):
        for found in sorted(Path(folder).glob("*/bin/nvdisasm*")):
            return found
    found = shutil.which("nvdisasm")
    return Path(found) if found else None


def disassemble(nvdisasm: Path, ptx: str, target: Target) -> list[str]:
    """Return the instructions of a kernel, without its predicates and operands."""
    cubin, _ = assemble(ptx, target, "cast", line_info=False)
    return names_of(nvdisasm, cubin)


def names_of(nvdisasm: Path, cubin: bytes) -> list[str]:
    """Return the instructions of a cubin that count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cast.cubin"
        path.write_bytes(cubin)
        listing = subprocess.run([nvdisasm, "-c", path], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)
    return [name for name in names if name.split(".")[0] not in _NOT_COUNTED]


def kernel(target: Target, loads: int, stores: int, make: Callable[[Writer, list[V]], list[V]]) -> str:
    """Return the PTX of a kernel that loads and stores so many words, in fours, with `make` between."""
    w = Writer("benchmark")
    # Each thread has words of its own: what is the same in all of them would go to another unit.
    thread = w.convert("zext", w.call("i32", "llvm.nvvm.read.ptx.sreg.tid.x"), "i64")
    start = w.mul(thread, V("i64", "65536"))
    source, dest = (w.gep(V(GLOBAL, name), start, "i8") for name in ("%in", "%out"))
    words: list[V] = []
    for first in range(0, loads, 4):
        place = w.gep(source, V("i64", str(4 * first)), "i8")
        four = w.value("<4 x i32>", f"load <4 x i32>, {place}, align 16")
        words += [w.extract(four, lane, "i32") for lane in range(4)]
    made = make(w, words)
    for first in range(0, stores, 4):
        place = w.gep(dest, V("i64", str(4 * first)), "i8")
        w.run(f"store {w.vector(made[first : first + 4])}, {place}, align 16")
    w.leave()
    attributes = '"denormal-fp-math"="ieee,ieee"'
    pointer = f"{GLOBAL} noalias align 16"
    signature = f"define ptx_kernel void @cast({pointer} %in, {pointer} %out) {attributes}"
    return to_ptx(w.module("", signature), target)


def instructions_per_element(
    nvdisasm: Path,
    target: Target,
    source: DType,
    dest: DType,
    arrangement: Arrangement | None,
    exponent: int | None = None,
) -> tuple[float, dict[str, float]]:
    """Return the machine instructions of one element's cast, and how many of each there are.

    With an exponent of the cast of stored codes, which are finite, whose result is the value over 2**exponent.
    """
    group = arrangement.words if arrangement is not None else source.bits // math.gcd(source.bits, 32)
    # As much as a step of a kernel casts: with more, constants make way for other registers and are loaded again.
    words = group * max(1, 8 // group)
    counts = []
    for times in (1, 2):
        loads = words * times
        count = 32 * loads // source.bits
        stores = count * dest.bits // 32

        def convert(w: Writer, regs: list[V], count: int = count) -> list[V]:
            if exponent is not None:
                made = cast_stored(w, target, source, dest, tuple(regs), count, exponent)
            else:
                made = cast_elements(w, target, source, dest, tuple(regs), count, arrangement)
            return list(bits_of(w, _Regs(dest, made)))  # type: ignore[arg-type]

        cast = Counter(disassemble(nvdisasm, kernel(target, loads, stores, convert), target))
        cast.subtract(copied(nvdisasm, target, loads, stores))
        counts.append(cast)
    growth = counts[1]
    growth.subtract(counts[0])
    elements = 32 * words // source.bits
    parts = {name: round(number / elements, 3) for name, number in growth.items() if number}
    return sum(growth.values()) / elements, dict(sorted(parts.items(), key=lambda item: -item[1]))


@lru_cache(maxsize=256)
def copied(nvdisasm: Path, target: Target, loads: int, stores: int) -> Counter[str]:
    """Return the instructions of a kernel that loads and stores as much, without a cast."""

    def copy(w: Writer, regs: list[V]) -> list[V]:
        return [regs[i % len(regs)] for i in range(stores)]

    return Counter(disassemble(nvdisasm, kernel(target, loads, stores, copy), target))


class _Regs:
    def __init__(self, dtype: DType, regs: tuple[V, ...]) -> None:
        self.dtype, self.regs = dtype, regs


@dataclass(frozen=True)
class Limit:
    """How many instructions an element of some types may take, before it is scaled."""

    sources: tuple[str, ...]
    dests: tuple[str, ...]
    most: float


HALVES = ("float16", "bfloat16")
EVERY = (*HALVES, "int8", "float8_e4m3")


def _integers(*bits: int) -> tuple[str, ...]:
    return tuple(f"{sign}int{b}" for b in bits for sign in ("u", ""))


LIMITS = (
    Limit(_integers(8), EVERY, 1.0),
    Limit(_integers(1, 2, 4), EVERY, 1.15),
    Limit(_integers(3, 5, 6, 7), EVERY, 2.0),
    Limit(("float4_e2m1", "float6_e3m2", "float8_e4m3", "float8_e5m2"), EVERY, 2.0),
)
CONVERTED = Limit(("float8_e4m3", "float8_e5m2"), ("float16",), 0.75)
"""Where the target converts float8 in hardware, which it does to float16."""
SIGNED = 1.1
"""How much more a signed integer may take than an unsigned one."""
SLACK = 1 / 32
"""The assembler may load a constant again, which a loop does once: in 32 elements or more."""


def faults(target: Target, rows: list[Row]) -> list[str]:
    """Return what takes more than its limit, in words."""
    limits = [*LIMITS, CONVERTED] if target.has("cvt_fp8") else [*LIMITS]
    found = []
    counted = {(row.source, row.dest): row.stored for row in rows}
    for (source, dest), count in counted.items():
        most = min((x.most for x in limits if source in x.sources and dest in x.dests), default=math.inf)
        if count > most + SLACK:
            found.append(
                f"{target.name}: {source} to {dest} takes {count:.3f} for each element, at most {most} are allowed"
            )
        unsigned = counted.get((f"u{source}", dest))
        if unsigned is not None and count > SIGNED * unsigned + SLACK:
            found.append(f"{target.name}: {source} to {dest} takes {count:.3f}, but u{source} {unsigned:.3f}")
    return found


@dataclass(frozen=True)
class Row:
    """The counts of a cast: as it prefers its elements, in natural order, and as weights are stored."""

    source: str
    dest: str
    arranged: float
    natural: float
    stored: float
    method: float | None
    stored_method: float | None
    instructions: dict[str, float]


def measure(nvdisasm: Path, target: Target, source: DType, dest: DType) -> Row | None:
    """Count a cast; None where weights of this type are bytes already, or do not go with such activations."""
    order = stored_arrangement(source, dest)
    row = best_cast(target, source, dest, order, scaled=True, finite=True)
    if dest.bits == 8 and row is None:
        return None
    least = None if row is None else row.cost
    stored, parts = instructions_per_element(
        nvdisasm, target, source, dest, order, stored_exponent(source, dest, target)
    )
    best = natural = stored
    method = least
    if dest.bits == 16:
        natural, _ = instructions_per_element(nvdisasm, target, source, dest, None)
        best, arrangement = natural, preferred_arrangement(target, source, dest)
        if arrangement is not None:
            best, _ = instructions_per_element(nvdisasm, target, source, dest, arrangement)
        method = cast_cost(target, source, dest, arrangement)
    return Row(
        str(source), str(dest), round(best, 4), round(natural, 4), round(stored, 4), method, least, parts
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", action="append", help="such as sm_80; may be repeated, three by default")
    parser.add_argument("--types", nargs="*", help="names of source types; all of at most 8 bits by default")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--parts", action="store_true", help="show how many of each instruction there are")
    options = parser.parse_args()
    if options.write and (options.types or options.target):
        raise SystemExit(
            "results are of one run for all types and targets: --write without --types and --target"
        )
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise SystemExit("no nvdisasm here: pip install nvidia-cuda-nvdisasm")
    if available() is not None:
        raise SystemExit(f"no assembler here: {available()}")
    sources = [dtypes.dtype(name) for name in options.types] if options.types else list(SOURCES)
    results: dict[str, Any] = {}
    bad: list[str] = []
    for name in options.target or TARGETS:
        target = find_target(name)
        rows = []
        print(
            f"instructions per element on {name}; arranged: as the cast prefers; stored: as weights are, over a power of 2"
        )
        print(f"{'source':>16} {'dest':>12} {'arranged':>9} {'natural':>9} {'stored':>9}  counted by method")
        for source, dest in product(sources, DESTS):
            row = measure(nvdisasm, target, source, dest)
            if row is None:
                continue
            shown = f"{row.method:.3f}" if row.method is not None else "general path"
            line = f"{row.source:>16} {row.dest:>12} {row.arranged:9.3f} {row.natural:9.3f} {row.stored:9.3f}  {shown}"
            print(line + (f"  {row.instructions}" if options.parts else ""), flush=True)
            rows.append(row)
        bad += faults(target, rows)
        results[name] = [asdict(row) for row in rows]
        others = sequences(name, partial(names_of, nvdisasm))
        for other in others:
            ours = next((r.stored for r in rows if (r.source, r.dest) == (other.source, other.dest)), None)
            beside = "" if ours is None else f", ours {ours:.3f}"
            print(f"{other.method}, {other.source} to {other.dest} by nvcc: {other.count:.3f}{beside}")
        results.setdefault("others", {})[name] = [asdict(other) for other in others]
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")
    for fault in bad:
        print(fault)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
