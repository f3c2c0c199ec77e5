"""From what a launch counted to the time that each resource of a chip needs for it at least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECTOR = 32
# Instructions that go to the special-function units; divisions and square roots begin with one.
SPECIAL = frozenset({"ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt", "div"})
SHARED_BY_THE_CHIP = frozenset({"dram_bytes"})
_TENSOR = "tensor_core_flops"


def seconds_by_resource(
    counters: Mapping[str, Any], figures: Mapping[str, float], blocks: int
) -> dict[str, float]:
    """Seconds that each resource needs, the largest first; see `Report.roofline`."""
    work = {
        "dram_bytes": counters["global_distinct_bytes_read"] + counters["global_distinct_bytes_written"],
        "global_bytes": SECTOR * (counters["global_load_sectors"] + counters["global_store_sectors"]),
        "shared_wavefronts": counters["shared_wavefronts"],
        "warp_instructions": counters["warp_instructions"],
        "special_functions": sum(counters["instructions_by_kind"].get(name, 0) for name in SPECIAL),
    }
    kinds = {name.partition(".")[2] for name in figures if name.startswith(_TENSOR + ".")}
    known = {*work, _TENSOR, "sm_count", *(f"{_TENSOR}.{kind}" for kind in kinds)}
    unknown = sorted(set(figures) - known)
    if unknown:
        names = ", ".join([*work, _TENSOR, f"{_TENSOR}.KIND", "sm_count"])
        raise ValueError(f"unknown resource {unknown[0]!r}; use some of {names}")
    fill = 1.0
    sm_count = int(figures.get("sm_count", 0))
    if sm_count and blocks:
        fill = -(-blocks // sm_count) * sm_count / blocks
    seconds = {}
    for name, amount in work.items():
        if name in figures:
            seconds[name] = amount / figures[name] * (1.0 if name in SHARED_BY_THE_CHIP else fill)
    if _TENSOR in figures or kinds:
        flops = counters["tensor_core_flops_by_kind"]
        seconds[_TENSOR] = fill * sum(amount / _rate(kind, figures) for kind, amount in flops.items())
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _rate(kind: str, figures: Mapping[str, float]) -> float:
    """Operations per second for a kind of operands: its own figure, or that of the kind that it is a form of."""
    own = figures.get(f"{_TENSOR}.{kind}")
    if own is not None:
        return own
    if kind.endswith(" sparse"):
        return 2 * _rate(kind.removesuffix(" sparse"), figures)
    if kind.endswith(" in f16"):
        return _rate(kind.removesuffix(" in f16"), figures)
    if kind == "bf16":
        return _rate("f16", figures)
    general = figures.get(_TENSOR)
    if general is None:
        raise ValueError(f"no figure for tensor-core operations of kind {kind!r}: give {_TENSOR}.{kind}")
    return general
