"""Tunes the ops on the problems of the other benchmarks: the schedule of the heuristic beside the fastest.

    python benchmarks/tune.py [--op matmul] [--keep 12] [--seconds 300] [--out FILE] [--dry-run]

The cost model orders the schedules, and the best are measured with a cold L2 cache; what each computes is compared with
the result of the heuristic's schedule. The fastest is kept on disk, where the ops find it. A row says how good the
model's own choice was, too. `facts["entries"]` of the results is what `tilus.ops.defaults.generate --measured` takes.
"""

from __future__ import annotations

from typing import Any

import torch
from _harness import Bench, Row, needs_gpu, options

from tilus.codegen import target
from tilus.codegen.figures import figures, figures_of_device
from tilus.ops import tuned
from tilus.ops.defaults.problems import PROBLEMS, Key, Problem
from tilus.ops.defaults.tuning import Ranked, Workshop, measure
from tilus.runtime import driver
from tilus.runtime.tuning.measure import difference

# Llama-3 layers as (n, k), and squares.
LAYERS = ((6144, 4096), (4096, 14336), (28672, 4096), (10240, 8192), (8192, 28672), (57344, 8192))
ALLOWED = 0.02


def cases() -> list[tuple[str, Key]]:
    """Return what is tuned, in order of importance."""
    found = [
        ("matmul", PROBLEMS["matmul"].key(bits, side, side, side))
        for bits in (16, 8)
        for side in (8192, 4096)
    ]
    for m in (16, 1, 128, 1024, 4096):
        for n, k in LAYERS:
            found += [
                ("quantized_matmul", PROBLEMS["quantized_matmul"].key(bits, m, n, k)) for bits in (4, 3, 2)
            ]
            found.append(("matmul", PROBLEMS["matmul"].key(16, m, n, k)))
    return found


def small_cases() -> list[tuple[str, Key]]:
    """Return what a dry run tries."""
    sizes = {"matmul": (16, 48, 128, 128), "quantized_matmul": (4, 5, 128, 512)}
    return [(name, PROBLEMS[name].key(*given)) for name, given in sizes.items()]


def dry_run(bench: Bench, problem: Problem, key: Key, row: Row) -> None:
    """Run the model's two best schedules on the simulator and compare them with the heuristic's."""
    card = figures("sm_90a")
    ranked = Workshop(card, assembles=False).rank(
        problem, key, problem.candidates(key, target(card.target), card)
    )
    arguments = problem.arguments(key, "cpu")
    expected: torch.Tensor | None = None
    for entry in ranked[:2]:
        with problem.using(entry.schedule):
            out = problem.run(arguments)
        expected = out if expected is None else expected
        row.error = max(row.error or 0.0, difference(out, expected))
    row.status = "checked" if row.error is not None and row.error <= ALLOWED else "wrong"


def tune(workshop: Workshop, problem: Problem, key: Key, row: Row, keep: int, device: int) -> dict[str, Any]:
    """Measure schedules; fill the row, and return the fastest as an entry."""
    card = workshop.card
    found = measure(workshop, problem, key, device, keep)
    good = [r for r in found if r.measured]
    if not good:
        raise RuntimeError("; ".join(dict.fromkeys(r.failure for r in found)))
    first = problem.candidates(key, target(card.target), card)[0]
    own = next((r for r in good if r.schedule == first), None)
    best, choice = good[0], min(good, key=_estimated)
    row.status = "ok"
    row.figures = {"best_us": 1e6 * best.seconds, "model_us": 1e6 * _estimated(best)}
    row.figures["choice_us"] = 1e6 * choice.seconds
    if own is not None:
        row.figures["heuristic_us"] = 1e6 * own.seconds
    row.note = ", ".join(f"{name}={value}" for name, value in best.schedule.items())
    bad = [r.failure for r in found if r.failure]
    row.note += f"; {len(bad)} failed: {bad[0]}" if bad else ""
    return {
        "op": problem.name,
        "target": card.target,
        "key": key,
        "schedule": best.schedule,
        "seconds": best.seconds,
    }


def _estimated(ranked: Ranked) -> float:
    return sum(estimate.seconds for estimate in ranked.estimates)


def main() -> None:
    parser = options(__doc__, seconds=300)
    parser.add_argument("--op", choices=sorted(PROBLEMS), help="this op only")
    parser.add_argument("--keep", type=int, default=12, help="schedules that are measured for each problem")
    parsed = parser.parse_args()
    if needs_gpu(parsed):
        return
    bench = Bench("tune", parsed)
    device, name = 0, ""
    card = figures("sm_90a")
    if not bench.dry_run:
        name, machine = driver.device_name(device), driver.target(device).name
        card = figures_of_device(
            name, machine, torch.cuda.get_device_properties(device).multi_processor_count
        )
    # What is compiled for one problem serves the others.
    workshop = Workshop(card)
    entries: list[dict[str, Any]] = bench.facts.setdefault("entries", [])
    for op, key in small_cases() if bench.dry_run else cases():
        case = {"op": op, **key}
        if bench.out_of_time or bench.done(case) or parsed.op not in (None, op):
            continue
        row = Row(case, "tilus", "running")
        bench.rows.append(row)
        bench.save()
        try:
            if bench.dry_run:
                dry_run(bench, PROBLEMS[op], key, row)
            else:
                entry = tune(workshop, PROBLEMS[op], key, row, parsed.keep, device)
                entries.append(entry)
                tuned.keep(op, card.target, key, entry["schedule"], entry["seconds"], name)
        except Exception as error:
            row.status, row.note = "failed", f"{type(error).__name__}: {error}"[:300]
            bench.survive(row)
        bench.save()
        print(f"{' '.join(map(str, case.values()))}: {row.status} {row.figures or ''} {row.note}", flush=True)
    bench.finish()


if __name__ == "__main__":
    main()
