"""Counts what the quantised matmul's loop issues for each weight, beside what a GPU issues while the weight arrives.

    python benchmarks/issue_slots.py [--target sm_90a] [--types uint4 ...] [--write]

With few rows a product is as fast as its weights come from memory, unless decoding them takes longer. A multiprocessor
issues for 128 lanes a clock, and its memory brings so many bytes: that is the budget of a weight of so many bits, its
share of scales and zero points counted. Integer logic has half as many lanes, and the tensor core its own rate. The
disassembler is NVIDIA's nvdisasm (`pip install nvidia-cuda-nvdisasm`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _flow import issued
from cast_cost import find_nvdisasm

from tilus import dtypes
from tilus.codegen import Compiled
from tilus.codegen.assemble import available
from tilus.codegen.figures import Figures, figures
from tilus.codegen.target import target as find_target
from tilus.ops import QuantizedWeight, quantize
from tilus.ops.quantized_matmul import OPERANDS, call_of
from tilus.ops.quantized_schedule import Schedule, WeightForm, choose
from tilus.ops.tokens import ALIGN

RESULTS = Path(__file__).parent / "results" / "issue_slots.json"
CARDS = {"sm_80": "A100", "sm_89": "L40S", "sm_90a": "H200"}
LANES = 128
N, K = 57344, 8192
ACTIVATIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
# What instructions are for, by how their names begin; the first that fits.
CAUSES = (
    ("tensor core", ("HMMA", "IMMA", "QMMA")),
    ("scales", ("FFMA", "FMUL", "FADD", "HADD2.F32", "I2FP", "I2F")),
    ("cast", ("LOP3", "SHF.R", "SHF.L.W", "PRMT", "HFMA2", "HADD2", "HMUL2", "IMAD.SHL", "F2F", "F2FP")),
    ("rows", ("LDSM",)),
    ("weights", ("LDS.128",)),
    ("scales", ("LDS",)),
    ("copies", ("LDGSTS", "UTMALDG", "SYNCS", "LDGDEPBAR", "DEPBAR", "BAR", "ELECT")),
)
# What the units for integers execute, at half of the lanes.
ALU = ("LOP3", "SHF", "PRMT", "ISETP", "SEL", "IADD3", "LEA", "VIADD", "PLOP3", "I2FP")


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
        The part of the memory's rate for which issue slots, the units for integers and the tensor core suffice.
    limit : str
        Which of them is the tightest.
    causes : dict
        The instructions for each weight by what they are for.
    columns : int
        Of a warp.
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
    limit: str
    causes: dict[str, float]
    columns: int
    registers: int
    spills: int


CASES = (
    *(Case(name, "float16", m, 128, name.startswith("uint")) for name in
      ("uint8", "uint7", "uint6", "uint5", "uint4", "uint3", "uint2", "uint1", "int4", "int3", "int2", "float8_e4m3",
       "float6_e3m2", "float4_e2m1", "nf4", "ternary") for m in (8, 16)),
    *(Case(name, "float16", 16, group, True) for name in ("uint4", "uint3") for group in (32, -1)),
    *(Case(name, "bfloat16", 16, 128, name.startswith("uint")) for name in
      ("uint8", "uint4", "uint3", "uint2", "float4_e2m1")),
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
    schedule = choose(case.m, N, K, form, machine, figures(CARDS[target]).processors).schedule
    rows = torch.zeros(case.m, 256, dtype=ACTIVATIONS[case.activations])
    scale = torch.ones(1, ALIGN) if own.bits == 8 else None
    call = call_of(rows, weight, schedule, machine, row_scale=scale)
    return call.kernel.compile(*call.arguments, target=target, **call.options), schedule


def cause_of(opcode: str) -> str:
    """Return what an instruction is for."""
    return next((cause for cause, names in CAUSES if opcode.startswith(names)), "other")


def measure(case: Case, target: str, nvdisasm: Path) -> Row:
    """Compile, disassemble and count."""
    made, schedule = compiled(case, target)
    assert made.cubin is not None
    assert made.resources is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.cubin)
        listing = subprocess.run([nvdisasm, "-c", path], capture_output=True, text=True, check=True).stdout
    counts = issued(listing, schedule.warps)
    card = figures(CARDS[target])
    weights = 128 * schedule.deep * schedule.block_n // schedule.warps
    side = 0.0 if case.group == -1 else 16 / case.group * (2 if case.zero_point else 1)
    arriving = (
        card.global_bandwidth / card.clock / ((dtypes.dtype(case.dtype).bits + side) / 8) / card.processors
    )
    # What goes to the uniform unit is issued too.
    slots = 32 * sum(counts.values()) / weights
    shares = {
        "issue": LANES / arriving / slots,
        "integers": card.lanes.alu / arriving / (32 * count_of(counts, ALU) / weights),
        "tensor core": 1 / arriving / tensor_clocks(counts, case, card) * weights,
    }
    limit = min(shares, key=lambda name: shares[name])
    causes: Counter[str] = Counter()
    for opcode, count in counts.items():
        causes[cause_of(opcode)] += count
    return Row(
        case.dtype, case.activations, case.m, case.group, case.zero_point, round(slots, 3), round(LANES / arriving, 3),
        round(min(1.0, shares[limit]), 3), limit, {k: round(32 * v / weights, 3) for k, v in causes.most_common()},
        schedule.deep * schedule.block_n // schedule.warps, made.resources.registers, made.resources.spill_stores,
    )  # fmt: skip


def count_of(counts: Counter[str], names: tuple[str, ...]) -> float:
    """Return how many instructions have names that begin so."""
    return sum(count for opcode, count in counts.items() if opcode.startswith(names))


def tensor_clocks(counts: Counter[str], case: Case, card: Figures) -> float:
    """Return the clocks of a multiprocessor's tensor cores that a warp's turn of the loop takes."""
    k = 32 if case.activations == "int8" else 16
    return count_of(counts, CAUSES[0][1]) * 2 * 16 * 8 * k / card.tensor_ops(case.activations)


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
        f"instructions per weight on {options.target}, {N} x {K}; share: of the memory's rate of a "
        f"{CARDS[options.target]} that they allow"
    )
    print(
        f"{'weight':>12} {'rows of':>9} {'m':>3} {'group':>5} {'zero':>5} {'slots':>6} {'budget':>7} {'share':>6} "
        f"{'registers':>9}  {'limit':11} by cause"
    )
    rows = []
    for case in CASES:
        if options.types and case.dtype not in options.types:
            continue
        row = measure(case, options.target, nvdisasm)
        rows.append(row)
        print(
            f"{row.dtype:>12} {row.activations:>9} {row.m:3} {row.group:5} {'yes' if row.zero_point else '':>5} "
            f"{row.slots:6.2f} {row.budget:7.2f} {row.share:6.0%} {row.registers:9}  {row.limit:11} "
            + ", ".join(f"{name} {value:.2f}" for name, value in row.causes.items())
            + (" spills" if row.spills else ""),
            flush=True,
        )
    if options.write:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[options.target] = [asdict(row) for row in rows]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
