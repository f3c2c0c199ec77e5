"""Counts the main loop of the quantised matmul on warpgroups, for every type: is the tensor core what limits it?

    python benchmarks/quantized_main_loop.py [--types uint4 int8] [--tiles 128x256 16x128] [--write]

Each kernel is compiled and assembled for sm_90a and its loop over k is disassembled. In a step of 16 along k a scheduler
issues the instructions of its warps, the integer unit takes two cycles for each of its own, and the tensor cores take
the cycles of the products; what takes longest is the limit. `decode` counts instructions for each weight. Copies, which
one warp starts in each round, are counted apart. The disassembler is NVIDIA's nvdisasm, from `pip install
nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _sass import Instruction, disassemble, instructions
from cast_cost import SOURCES

from tilus import dtypes
from tilus.cli.inspect import find_disassembler
from tilus.codegen import Compiled, target
from tilus.codegen.assemble import available
from tilus.codegen.figures import figures
from tilus.dtypes import DType
from tilus.ops import QuantizedWeight, from_codes
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_schedule import WeightForm
from tilus.ops.quantized_wgmma import WgmmaSchedule, fitting, wgmma_call
from tilus.ops.quantized_wgmma_kernel import quantized_wgmma_kernel

RESULTS = Path(__file__).parent / "results" / "quantized_main_loop.json"
TARGET = target("sm_90a")
CARD = figures("H200")
DESTS = {dtypes.float16: torch.float16, dtypes.bfloat16: torch.bfloat16}
TILES = ((128, 256), (64, 256), (16, 128))
# Halves are multiplied and added by the units of float32, two lanes' worth in each; moves to uniform registers and
# what the tensor core, memory and control do goes elsewhere.
INTEGER = ("LOP3", "SHF", "IADD3", "LEA", "PRMT", "ISETP", "SEL", "VIADD", "IABS", "SGXT", "PLOP3")
DECODE = (
    "LOP3",
    "SHF",
    "PRMT",
    "HADD2",
    "HMUL2",
    "HFMA2",
    "I2F",
    "F2F",
    "F2FP",
    "IMAD",
    "FMUL",
    "FADD",
    "FFMA",
    "I2FP",
)


@dataclass(frozen=True)
class Loop:
    """What one type's main loop takes for one tile.

    Attributes
    ----------
    dtype, activations : str
    tile : str
        Rows of activations x columns of the weight.
    registers, spills, serialised : int
        Of a thread; bytes; waits for the tensor core beside the one of each product.
    products : int
        Tensor-core instructions of a warp for 128 elements of k.
    instructions, copies : int
        The other instructions of a warp for as much, and those that one warp takes besides to start copies.
    decode : float
        Instructions for each weight that can belong to its decoding.
    tensor, issue, integer, cache : float
        Cycles for 16 elements of k.
    limit : str
        Which of them is the longest.
    share : float
        Part of the time that the tensor cores are busy, if nothing else delays them.
    """

    dtype: str
    activations: str
    tile: str
    registers: int
    spills: int
    serialised: int
    products: int
    instructions: int
    copies: int
    decode: float
    tensor: float
    issue: float
    integer: float
    cache: float
    limit: str
    share: float


def compiled(source: DType, dest: DType, block_m: int, block_n: int) -> Compiled:
    """Compile the kernel for a type and a tile; unsigned integers have zero points."""
    own = DESTS[dest]
    zero = torch.zeros(2, 512, dtype=own) if source.kind == "uint" else None
    codes = torch.zeros(256, 512, dtype=torch.uint8).numpy()
    weight = from_codes(codes, source, torch.ones(2, 512, dtype=own), zero, 128)
    return kernel_of(weight, dest, block_m, block_n)


def kernel_of(weight: QuantizedWeight, dest: DType, block_m: int, block_n: int) -> Compiled:
    form = WeightForm(weight.dtype, dest, weight.group_size, weight.zero is not None)
    schedule = fitting(WgmmaSchedule(block_m, block_n), form, TARGET)
    assert schedule is not None
    m, (k, n) = 2 * block_m, weight.shape
    a, c = torch.empty(m, k, dtype=DESTS[dest]), torch.empty(1, m, n, dtype=DESTS[dest])
    arguments, options = wgmma_call(a, weight, schedule, TARGET, CARD.processors, out=c)
    return quantized_wgmma_kernel.compile(*arguments, target=TARGET.name, **options)


def parts_of_loop(sass: str) -> tuple[list[Instruction], list[Instruction]]:
    """Return the loop over k as most warps run it, and what one warp runs besides to start copies."""
    found, labels = instructions(sass)
    loops = [
        (labels[i.target], end)
        for end, i in enumerate(found)
        if i.target in labels and labels[i.target] <= end
        and any(x.base == "HGMMA" for x in found[labels[i.target] : end])
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
        if "UTMALDG" in inside and "HGMMA" not in inside:
            feeding.update(range(first, last))
    usual = [found[i] for i in range(start, end + 1) if i not in feeding]
    return usual, [found[i] for i in sorted(feeding)]


def measure(nvdisasm: str, source: DType, dest: DType, block_m: int, block_n: int) -> Loop:
    """Compile and count one loop."""
    made = compiled(source, dest, block_m, block_n)
    assert made.cubin is not None and made.resources is not None
    usual, feeding = parts_of_loop(disassemble(made.cubin, nvdisasm))
    kinds = Counter(i.base for i in usual)
    products = kinds["HGMMA"]
    others = sum(kinds.values()) - products
    # Each product is waited for once, a part of the unit later.
    waits = sum(i.opcode.startswith("WARPGROUP.DEPBAR") for i in usual)
    steps, warps = UNIT_K // 16, block_n // 32 // CARD.issue_per_clock
    cycles = {
        "tensor": 2 * 16 * block_n * max(block_m, 32) / CARD.tensor_ops("f16", asynchronous=True),
        "issue": warps * (others + products) / steps,
        "integer": warps * 2 * sum(kinds[name] for name in INTEGER) / steps,
        "cache": (block_m * 32 + block_n * 2 * source.bits) * CARD.processors / CARD.l2_bytes_per_clock,
    }
    limit = max(cycles, key=lambda name: cycles[name])
    return Loop(
        source.name, dest.name, f"{block_m}x{block_n}", made.resources.registers, made.resources.spill_stores,
        waits - 2, products, others, len(feeding), round(sum(kinds[name] for name in DECODE) / UNIT_K, 3),
        **{name: round(value, 1) for name, value in cycles.items()},
        limit=limit, share=round(cycles["tensor"] / cycles[limit], 3),
    )  # fmt: skip


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
    tiles = [tuple(int(x) for x in text.split("x")) for text in options.tiles] if options.tiles else TILES
    print(
        f"{'type':>13} {'with':>9} {'tile':>8} {'regs':>5} {'spill':>6} {'HGMMA':>6} {'others':>7} {'decode':>7} "
        f"{'tensor':>7} {'issue':>6} {'integer':>8} {'cache':>6} {'limit':>8} {'share':>6}"
    )
    rows = []
    for source in sources:
        for dest in DESTS:
            for block_m, block_n in tiles:
                row = measure(nvdisasm, source, dest, block_m, block_n)
                rows.append(asdict(row))
                print(
                    f"{row.dtype:>13} {row.activations:>9} {row.tile:>8} {row.registers:5} {row.spills:6} "
                    f"{row.products:6} {row.instructions:7} {row.decode:7.2f} {row.tensor:7.1f} {row.issue:6.1f} "
                    f"{row.integer:8.1f} {row.cache:6.1f} {row.limit:>8} {row.share:6.2f}",
                    flush=True,
                )
    if options.write:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
