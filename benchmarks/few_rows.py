"""Shows how the quantised matmul of few rows shares its work out, for the layers of known models.

    python benchmarks/few_rows.py [--target sm_90a] [--processors 132] [--types uint4 ...] [--rows 1 16]

For each layer: the tiles that `ops.quantized_matmul` takes, how even the multiprocessors' shares are, the bytes of the
weight that each asks for ahead, and the estimate beside the time that the bytes take at the memory's full rate.
"""

from __future__ import annotations

import argparse

from tilus import dtypes
from tilus.codegen.figures import figures
from tilus.codegen.target import target as find_target
from tilus.ops.few_rows import CARDS, estimate, few_rows_schedule, parts_of, shares, step_bytes
from tilus.ops.quantized_tiles import WeightForm

LAYERS = (
    ("57344 x 8192", 57344, 8192),
    ("Llama-3 8B qkv", 6144, 4096), ("Llama-3 8B o", 4096, 4096), ("Llama-3 8B gate, up", 28672, 4096),
    ("Llama-3 8B down", 4096, 14336), ("Llama-3 70B qkv", 10240, 8192), ("Llama-3 70B o", 8192, 8192),
    ("Llama-3 70B down", 8192, 28672), ("Qwen2.5 32B qkv", 7168, 5120), ("Qwen2.5 32B o", 5120, 5120),
    ("Qwen2.5 32B gate, up", 55296, 5120), ("Qwen2.5 32B down", 5120, 27648),
)  # fmt: skip


def line(name: str, m: int, n: int, k: int, form: WeightForm, target: str, processors: int) -> str:
    """Return a row of the table."""
    machine = find_target(target)
    card = figures(CARDS.get(target, target))
    schedule = few_rows_schedule(m, n, k, form, machine, processors)
    steps, most, resident = shares(schedule, n, k, form, machine, processors)
    tiles = -(-n // schedule.block_n)
    weights, _ = step_bytes(schedule, m, form)
    blocks = schedule.blocks or tiles * schedule.splits
    ahead = resident * min(schedule.stages - 1, most) * weights / 1024
    cycles = estimate(schedule, m, n, k, form, machine, processors)
    least = tiles * steps * weights / (card.global_bandwidth / card.clock)
    return (
        f"{form.dtype.name:>12} {m:3} {name:>21} {n:6} x {k:5} {schedule.block_n:5} {schedule.deep:4} "
        f"{schedule.stages:6} {blocks:6}{'*' if schedule.blocks else ' '} {parts_of(schedule, n, k):5} {resident:8} "
        f"{tiles * steps / processors / most:6.0%} {ahead:8.0f} {cycles / card.clock * 1e6:8.1f} "
        f"{least / card.clock * 1e6:7.1f} {least / cycles:6.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="sm_90a", help="such as sm_80 or sm_90a")
    parser.add_argument(
        "--processors", type=int, help="multiprocessors; those of the target's card by default"
    )
    parser.add_argument("--types", nargs="*", default=["uint8", "uint4", "uint3", "uint2"])
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 16])
    options = parser.parse_args()
    processors = options.processors or figures(CARDS.get(options.target, options.target)).processors
    print(
        f"{options.target}, {processors} multiprocessors, float16, groups of 128, zero points; *: equal shares"
    )
    print(
        f"{'weight':>12} {'m':>3} {'layer':>21} {'n x k':>14} {'tile':>5} {'deep':>4} {'stages':>6} {'blocks':>7} "
        f"{'parts':>5} {'resident':>8} {'shares':>6} {'KB ahead':>8} {'us':>8} {'least':>7} {'':>6}"
    )
    for name in options.types:
        form = WeightForm(dtypes.dtype(name), dtypes.float16, 128, name.startswith("uint"))
        for m in options.rows:
            for layer, n, k in LAYERS:
                print(line(layer, m, n, k, form, options.target, processors))


if __name__ == "__main__":
    main()
