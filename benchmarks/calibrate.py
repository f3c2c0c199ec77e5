"""Turns what `microbench.py` measured into the cost model's figures.

    python benchmarks/calibrate.py [RESULTS.json ...]

Reads the results of `run_gpu.py` (by default all in `results/`, the newest of each device), and writes the figures of
known cards to `tilus/codegen/measured.json`, which take the place of documented ones.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _harness import RESULTS, write_json

from tilus.codegen.figures import FIGURES, MEASURED, Figures

# Field (a dot before the field of a field), the probe, and how the field follows from what was measured.
Convert = Callable[[float, Figures], float]
PROBES: tuple[tuple[str, str, Convert], ...] = (
    ("global_share", "HBM: copy", lambda v, card: v * 1e9 / card.global_bandwidth),
    ("l2_bytes_per_clock", "L2, 24 MiB: read", lambda v, card: v * 1e9 / card.clock),
    ("l2_latency", "latency of L2", lambda v, card: v),
    ("global_latency", "latency of HBM", lambda v, card: v),
    ("shared_latency", "latency of ld.shared", lambda v, card: v),
    ("shared_bytes_per_clock", "ld.shared 16 bytes", lambda v, card: v),
    ("launch_seconds", "launch: graph", lambda v, card: v * 1e-6),
    ("tensor.f16", "wgmma n256 bf16 -> f32", lambda v, card: v),
    ("tensor.tf32", "wgmma n256 tf32 -> f32", lambda v, card: v),
    ("tensor.f8", "wgmma n256 e4m3 -> f32", lambda v, card: v),
    ("tensor.i8", "wgmma n256 s8 -> s32", lambda v, card: v),
    ("lanes.fma", "fma.f32", lambda v, card: v),
    ("lanes.alu", "lop3", lambda v, card: v),
    ("lanes.half2", "fma.f16x2", lambda v, card: v),
    ("lanes.special", "ex2.f32", lambda v, card: v),
    ("lanes.convert", "cvt f16x2 <- f32", lambda v, card: v),
    ("lanes.shuffle", "shfl.bfly", lambda v, card: v),
)
WITHOUT_WGMMA: tuple[tuple[str, str, Convert], ...] = (
    ("tensor.f16", "mma.sync bf16 -> f32", lambda v, card: v),
    ("tensor.tf32", "mma.sync tf32 -> f32", lambda v, card: v),
    ("tensor.i8", "mma.sync s8 -> s32", lambda v, card: v),
)
SYNCHRONOUS = "mma.sync bf16 -> f32"
PLAUSIBLE = 3.0
"""A figure that is so much larger or smaller than the documented one is a mistake of the measurement."""


def measured_values(results: Mapping[str, Any]) -> dict[str, float]:
    """Return what the microbenchmarks measured, by probe."""
    rows = results.get("parts", {}).get("microbench", {}).get("rows", [])
    return {
        row["case"]["probe"]: float(row["figures"]["value"])
        for row in rows
        if row["status"] == "ok" and "value" in row["figures"]
    }


def figures_from(values: Mapping[str, float], card: Figures) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a card that follow from what was measured, and what was left out and why."""
    found: dict[str, Any] = {}
    left_out = []
    probes = PROBES if any(name.startswith("wgmma") for name in values) else (*PROBES, *WITHOUT_WGMMA)
    for field, probe, convert in probes:
        if probe not in values:
            continue
        value = convert(values[probe], card)
        outer, _, inner = field.partition(".")
        documented = getattr(getattr(card, outer), inner) if inner else getattr(card, outer)
        if documented and not 1 / PLAUSIBLE < value / documented < PLAUSIBLE:
            left_out.append(f"{field}: {probe} gives {value:.4g}, documented or assumed is {documented:.4g}")
            continue
        if isinstance(documented, int):
            value = round(value)
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[outer] = value
    whole = found.get("tensor", {}).get("f16", card.tensor.f16)
    if SYNCHRONOUS in values and card.target == "sm_90a":
        found["mma_sync_share"] = round(min(1.0, values[SYNCHRONOUS] / whole), 3)
    return found, left_out


def card_of(results: Mapping[str, Any]) -> Figures | None:
    """Return the card that a file of results is about, if it is a known one."""
    words = set(results.get("info", {}).get("device", "").upper().replace("-", " ").split())
    return next((card for name, card in FIGURES.items() if set(name.upper().split()) <= words), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="files of results (default: all in results/)")
    parser.add_argument("--out", type=Path, default=MEASURED, help="the file of figures")
    parsed = parser.parse_args()
    files = parsed.results or sorted(
        p for p in RESULTS.glob("*.json") if re.search(r"\d{4}-\d\d-\d\d", p.name)
    )
    known: dict[str, Any] = json.loads(parsed.out.read_text(encoding="utf-8")) if parsed.out.exists() else {}
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        card, values = card_of(results), measured_values(results)
        if card is None or not values:
            print(f"{file.name}: no microbenchmarks of a known card")
            continue
        fields, left_out = figures_from(values, card)
        known[card.name] = {
            "source": f"{file.name} of {results['info'].get('time', '')[:10]}",
            "figures": fields,
        }
        print(f"{file.name}: {len(fields)} figures of {card.name}")
        for line in left_out:
            print(f"  left out: {line}")
    if known:
        write_json(parsed.out, known)
        print(f"written to {parsed.out}")
    else:
        print("nothing is measured yet: run make gpu on a machine with a GPU")


if __name__ == "__main__":
    main()
