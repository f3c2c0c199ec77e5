"""Counts the main loop of the quantised matmul on warpgroups, for every type: is the tensor core what limits it?

    python benchmarks/quantized_main_loop.py [--types uint4 int8] [--tiles 128x256 16x128] [--write]

Each kernel is compiled and assembled for sm_90a and its loop over k is disassembled. In a step of 16 along k a scheduler
issues the instructions of its warps, the integer unit takes two cycles for each of its own, and the tensor cores take
the cycles of the products; what takes longest is the limit. `decode` counts instructions for each weight, and `scaling`
those for each sum that leaves the tensor core before its end. Copies, which one warp starts in each round, are counted
apart. Activations of 8 bits are measured with one scale for each column (group 0) and with groups of 128, in the
largest tile that registers hold. The disassembler is NVIDIA's nvdisasm, from `pip install nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _sass import TENSOR_CORE, Instruction, disassemble, instructions
from cast_cost import SOURCES

from tilus import dtypes
from tilus.cli.inspect import find_disassembler
from tilus.codegen import Compiled, target
from tilus.codegen.assemble import available
from tilus.codegen.figures import figures
from tilus.dtypes import DType
from tilus.errors import TypeMismatch
from tilus.ops import QuantizedWeight, from_codes
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_schedule import WeightForm
from tilus.ops.quantized_wgmma import WgmmaSchedule, fitting, most_rows
from tilus.ops.quantized_wgmma_call import wgmma_call
from tilus.ops.weights import operand_type

RESULTS = Path(__file__).parent / "results" / "quantized_main_loop.json"
TARGET = target("sm_90a")
CARD = figures("H200")
HALVES = {dtypes.float16: torch.float16, dtypes.bfloat16: torch.bfloat16}
BYTES = {dtypes.int8: torch.int8, dtypes.float8_e4m3: torch.float8_e4m3fn}
TILES = ((128, 256), (64, 256), (16, 128))
GROUP = 128
# Halves are multiplied and added by the units of float32, two lanes' worth in each; moves to uniform registers and
# what the tensor core, memory and control do goes elsewhere.
INTEGER = ("LOP3", "SHF", "IADD3", "LEA", "PRMT", "ISETP", "SEL", "VIADD", "IABS", "SGXT", "PLOP3", "I2FP")
DECODE = ("LOP3", "SHF", "PRMT", "HADD2", "HMUL2", "HFMA2", "I2F", "F2F", "F2FP", "IMAD")
# In single precision sums are scaled, or weights of 16 bits made.
SINGLE = ("FMUL", "FADD", "FFMA", "I2FP")


@dataclass(frozen=True)
class Loop:
    """What one type's main loop takes for one tile.

    Attributes
    ----------
    dtype, activations : str
    group : int
        Elements of k that share a scale, or 0 for all.
    tile : str
        Rows of activations x columns of the weight.
    registers, spills, serialised : int
        Of a thread; bytes; waits for the tensor core beside the one of each product.
    products : int
        Tensor-core instructions of a warp for 128 elements of k.
    instructions, copies : int
        The other instructions of a warp for as much, and those that one warp takes besides to start copies.
    decode, scaling : float
        Instructions for each weight that can belong to its decoding, and for each sum of 8-bit products of 128 elements
        of k.
    tensor, issue, integer, cache : float
        Cycles for 16 elements of k.
    limit : str
        Which of them is the longest.
    share : float
        Part of the time that the tensor cores are busy, if nothing else delays them.
    """

    dtype: str
    activations: str
    group: int
    tile: str
    registers: int
    spills: int
    serialised: int
    products: int
    instructions: int
    copies: int
    decode: float
    scaling: float
    tensor: float
    issue: float
    integer: float
    cache: float
    limit: str
    share: float


def weight_of(source: DType, dest: DType, group: int = GROUP) -> QuantizedWeight:
    """Return a weight of a type for activations of a type; unsigned integers have zero points."""
    own = HALVES.get(dest, torch.float16)
    k = 2 * GROUP
    groups = k // group if group else 1
    zero = torch.zeros(groups, 512, dtype=own) if source.kind == "uint" else None
    codes = torch.zeros(k, 512, dtype=torch.uint8).numpy()
    scale = torch.ones(groups, 512, dtype=own)
    return from_codes(codes, source, scale, zero, group or -1, activations=BYTES.get(dest))


def form_of(weight: QuantizedWeight, dest: DType) -> WeightForm:
    return WeightForm(weight.dtype, dest, weight.group_size, weight.zero is not None)


def compiled(weight: QuantizedWeight, dest: DType, block_m: int, block_n: int) -> tuple[Compiled, int]:
    """Compile the kernel for a weight and a tile; return how often its loop waits for products, too."""
    schedule = fitting(WgmmaSchedule(block_m, block_n), form_of(weight, dest), TARGET)
    assert schedule is not None
    m, (k, n) = 2 * block_m, weight.shape
    a, c = torch.empty(m, k, dtype={**HALVES, **BYTES}[dest]), torch.empty(1, m, n, dtype=weight.result)
    factors = torch.ones(1, m) if dest in BYTES else None
    call = wgmma_call(a, weight, schedule, TARGET, CARD.processors, out=c, row_scale=factors)
    span = call.options.get("span", 0)
    # Products of a span, in two halves; or one for each half of a unit, and before codes that are operands themselves.
    waits = 2 * UNIT_K // span if span else 2 + (dest in BYTES and weight.dtype.bits == 8)
    return call.kernel.compile(*call.arguments, target=TARGET.name, **call.options), waits


def parts_of_loop(sass: str) -> tuple[list[Instruction], list[Instruction]]:
    """Return the loop over k as most warps run it, and what one warp runs besides to start copies."""
    found, labels = instructions(sass)
    loops = [
        (labels[i.target], end)
        for end, i in enumerate(found)
        if i.target in labels and labels[i.target] <= end
        and any(x.base in TENSOR_CORE for x in found[labels[i.target] : end])
    ]  # fmt: skip
    start, end = min(loops, key=lambda loop: loop[1] - loop[0])
    # The copies stand behind a branch that all other warps take.
    skipped = [
        (at + 1, labels[found[at].target or ""])
        for at in range(start, end)
        if found[at].predicated and at < labels.get(found[at].target or "", -1) <= end
    ]
    feeding: set[int] = set()
    for first, last in skipped:
        inside = [x.base for x in found[first:last]]
        if "UTMALDG" in inside and not set(inside) & set(TENSOR_CORE):
            feeding.update(range(first, last))
    usual = [found[i] for i in range(start, end + 1) if i not in feeding]
    return usual, [found[i] for i in sorted(feeding)]


def measure(
    nvdisasm: str, source: DType, dest: DType, block_m: int, block_n: int, group: int = GROUP
) -> Loop:
    """Compile and count one loop."""
    weight = weight_of(source, dest, group)
    made, expected = compiled(weight, dest, block_m, block_n)
    assert made.cubin is not None and made.resources is not None
    usual, feeding = parts_of_loop(disassemble(made.cubin, nvdisasm))
    kinds = Counter(i.base for i in usual)
    products = sum(kinds[name] for name in TENSOR_CORE)
    others = sum(kinds.values()) - products
    waits = sum(i.opcode.startswith("WARPGROUP.DEPBAR") for i in usual)
    steps, warps = UNIT_K // 16, block_n // 32 // CARD.issue_per_clock
    cycles = {
        "tensor": 2 * 16 * block_n * max(block_m, 32) / CARD.tensor_ops(dest.name, asynchronous=True),
        "issue": warps * (others + products) / steps,
        "integer": warps * 2 * sum(kinds[name] for name in INTEGER) / steps,
        "cache": (block_m * 16 * dest.nbytes + block_n * 2 * source.bits)
        * CARD.processors
        / CARD.l2_bytes_per_clock,
    }
    limit = max(cycles, key=lambda name: cycles[name])
    single = sum(kinds[name] for name in SINGLE)
    decode = sum(kinds[name] for name in DECODE) + (0 if dest in BYTES else single)
    return Loop(
        source.name, dest.name, group, f"{block_m}x{block_n}", made.resources.registers,
        made.resources.spill_stores, waits - expected, products, others, len(feeding), round(decode / UNIT_K, 3),
        round(single / block_m, 2) if dest in BYTES else 0.0,
        **{name: round(value, 1) for name, value in cycles.items()},
        limit=limit, share=round(cycles["tensor"] / cycles[limit], 3),
    )  # fmt: skip


def cases(
    sources: list[DType], tiles: list[tuple[int, int]] | None
) -> Iterator[tuple[DType, DType, int, int, int]]:
    """Return what to measure: a type, that of activations, rows and columns of a tile, and a group."""
    for source in sources:
        for dest in HALVES:
            for block_m, block_n in tiles or TILES:
                yield source, dest, block_m, block_n, GROUP
        for dest, own in BYTES.items():
            try:
                operand_type(source, own)
            except TypeMismatch:
                continue
            for group in (0, GROUP):
                form = form_of(weight_of(source, dest, group), dest)
                largest = most_rows(form, 2 * GROUP, TARGET), 256
                for block_m, block_n in tiles or [largest]:
                    yield source, dest, block_m, block_n, group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="*", help="names of types; all of at most 8 bits by default")
    parser.add_argument("--tiles", nargs="*", help="rows x columns, such as 128x256")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    nvdisasm = find_disassembler()
    if nvdisasm is None:
        raise SystemExit("no nvdisasm here: pip install nvidia-cuda-nvdisasm")
    if available() is not None:
        raise SystemExit(f"no assembler here: {available()}")
    sources = [dtypes.dtype(name) for name in options.types] if options.types else list(SOURCES)
    tiles = (
        [(int(m), int(n)) for m, n in (text.split("x") for text in options.tiles)] if options.tiles else None
    )
    print(
        f"{'type':>13} {'with':>12} {'group':>5} {'tile':>8} {'regs':>5} {'spill':>6} {'GMMA':>5} {'others':>7} "
        f"{'decode':>7} {'scaling':>8} {'tensor':>7} {'issue':>7} {'integer':>8} {'cache':>6} {'limit':>8} {'share':>6}"
    )
    rows = []
    for case in cases(sources, tiles):
        row = measure(nvdisasm, *case)
        rows.append(asdict(row))
        print(
            f"{row.dtype:>13} {row.activations:>12} {row.group:5} {row.tile:>8} {row.registers:5} {row.spills:6} "
            f"{row.products:5} {row.instructions:7} {row.decode:7.2f} {row.scaling:8.2f} {row.tensor:7.1f} "
            f"{row.issue:7.1f} {row.integer:8.1f} {row.cache:6.1f} {row.limit:>8} {row.share:6.2f}",
            flush=True,
        )
    if options.write:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
