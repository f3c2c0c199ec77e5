"""Counts what the quantised matmul's loop issues for each weight, beside what a GPU issues while the weight arrives.

    python benchmarks/issue_slots.py [--target sm_90a] [--types uint4 ...] [--write]

With few rows a product is as fast as its weights come from memory, unless decoding them takes longer. A multiprocessor
of an H200 gets about 18.6 bytes a clock and issues for 128 lanes: that is the budget of a weight of so many bits, its
share of scales and zero points counted. The disassembler is NVIDIA's nvdisasm (`pip install nvidia-cuda-nvdisasm`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cast_cost import find_nvdisasm

from tilus import dtypes
from tilus.codegen import Compiled
from tilus.codegen.assemble import available
from tilus.codegen.target import target as find_target
from tilus.ops import QuantizedWeight, quantize
from tilus.ops.quantized_matmul import OPERANDS, call_of
from tilus.ops.quantized_schedule import Schedule, WeightForm, choose
from tilus.ops.tokens import ALIGN

RESULTS = Path(__file__).parent / "results" / "issue_slots.json"
BYTES_A_CLOCK = 18.6
LANES = 128
PROCESSORS = 132
N, K = 57344, 8192
ACTIVATIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Case:
    """A weight type, the activations, their rows, the group size, and whether there are zero points."""

    dtype: str
    activations: str
    m: int
    group: int = 128
    zero_point: bool = False


@dataclass(frozen=True)
class Row:
    """What a kernel's loop issues.

    Attributes
    ----------
    slots, budget : float
        Instructions for each weight, and how many there is time for at the memory's full rate.
    share : float
        The part of the memory's rate for which issue slots suffice.
    registers, spills : int
    """

    dtype: str
    activations: str
    m: int
    group: int
    zero_point: bool
    slots: float
    budget: float
    share: float
    registers: int
    spills: int


CASES = (
    *(Case(name, "float16", m, 128, name.startswith("uint")) for name in
      ("uint8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2", "int4", "int2", "float8_e4m3", "float6_e3m2",
       "float4_e2m1", "nf4", "ternary") for m in (8, 16)),
    *(Case(name, "bfloat16", 8, 128, name.startswith("uint")) for name in ("uint8", "uint4", "float4_e2m1")),
    *(Case(name, "int8", m, group, name.startswith("uint")) for name in ("uint1", "uint2", "uint4", "int8")
      for group in (-1, 128) for m in (8, 16)),
)  # fmt: skip


def small_weight(case: Case, n: int, k: int) -> QuantizedWeight:
    """Return a weight of the case's types; its size does not matter to what is compiled."""
    activations = ACTIVATIONS[case.activations]
    scales = activations if activations.is_floating_point else torch.float16
    return quantize(
        torch.randn(k, n), case.dtype, case.group, zero_point=case.zero_point, scale_dtype=scales,
        activations=None if activations == scales else activations,
    )  # fmt: skip


def compiled(case: Case, target: str) -> tuple[Compiled, Schedule]:
    """Compile the kernel that the op would choose for the case on a large GPU, for a weight of n x k."""
    machine = find_target(target)
    weight = small_weight(case, 256, 256)
    own = OPERANDS[ACTIVATIONS[case.activations]]
    form = WeightForm(weight.dtype, own, K if case.group == -1 else case.group, weight.zero is not None)
    schedule = choose(case.m, N, K, form, machine, PROCESSORS).schedule
    rows = torch.zeros(case.m, 256, dtype=ACTIVATIONS[case.activations])
    scale = torch.ones(1, ALIGN) if own.bits == 8 else None
    call = call_of(rows, weight, schedule, machine, row_scale=scale)
    return call.kernel.compile(*call.arguments, target=target, **call.options), schedule


def loop_of(listing: str) -> list[str]:
    """Return the names of the instructions of the longest loop of a disassembly."""
    lines = listing.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    best: list[str] = []
    for i, line in enumerate(lines):
        jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if jump and labels.get(jump[1], i) < i and i - labels[jump[1]] > len(best):
            best = lines[labels[jump[1]] : i + 1]
    names = [re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line) for line in best]
    return [name[1] for name in names if name]


def measure(case: Case, target: str, nvdisasm: Path) -> Row:
    """Compile, disassemble and count."""
    made, schedule = compiled(case, target)
    assert made.cubin is not None
    assert made.resources is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.cubin)
        listing = subprocess.run([nvdisasm, "-c", path], capture_output=True, text=True, check=True).stdout
    weights = 128 * schedule.deep * schedule.block_n // schedule.warps
    # What goes to the uniform unit is issued too.
    slots = 32 * len(loop_of(listing)) / weights
    side = 0.0 if case.group == -1 else 16 / case.group * (2 if case.zero_point else 1)
    budget = LANES * (dtypes.dtype(case.dtype).bits + side) / 8 / BYTES_A_CLOCK
    return Row(
        case.dtype, case.activations, case.m, case.group, case.zero_point, round(slots, 3), round(budget, 3),
        round(min(1.0, budget / slots), 3), made.resources.registers, made.resources.spill_stores,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="sm_90a", help="such as sm_80 or sm_90a")
    parser.add_argument("--types", nargs="*", help="names of weight types; all cases by default")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise SystemExit("no nvdisasm here: pip install nvidia-cuda-nvdisasm")
    if available() is not None:
        raise SystemExit(f"no assembler here: {available()}")
    print(
        f"instructions per weight on {options.target}, {N} x {K}; share: of the memory's rate that they allow"
    )
    print(
        f"{'weight':>12} {'rows of':>9} {'m':>3} {'group':>5} {'slots':>7} {'budget':>7} {'share':>6} registers"
    )
    rows = []
    for case in CASES:
        if options.types and case.dtype not in options.types:
            continue
        row = measure(case, options.target, nvdisasm)
        rows.append(row)
        print(
            f"{row.dtype:>12} {row.activations:>9} {row.m:3} {row.group:5} {row.slots:7.2f} {row.budget:7.2f} "
            f"{row.share:6.0%} {row.registers:5}{' spills' if row.spills else ''}",
            flush=True,
        )
    if options.write:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[options.target] = [asdict(row) for row in rows]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
