"""Checks `quantized_matmul` of every weight type and form on the simulator, with all hazard checks, against float64.

    python benchmarks/accuracy_sweep.py [--quick] [--types uint4 nf4] [--match int8] [--write]

Every type of 1 to 8 bits with activations of float16, bfloat16, int8 and float8_e4m3 where they go together, with zero
points and without, groups of 16 to 256 and whole columns, scales of 16 and of 8 bits, rows from 1 to 131 and ragged
columns and depths. Rows are random but for some of a single one, whose products are single weights: there an error has
no sum to hide in. What is allowed is derived from the roundings that the operation documents, see `allowed`. Integer
types are multiplied once more with scales of 1, where each result is an exact integer.

`--quick` takes one number of rows for each form. The exit code is 1 where a result is off or a launch has a hazard.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tilus import dtypes
from tilus.dtypes import DType, decode
from tilus.errors import TilusError, TypeMismatch
from tilus.ops import QuantizedWeight, from_codes, quantized_matmul
from tilus.ops.scales import fewest_scale, highest_scale, scale_exponent
from tilus.ops.tokens import QuantizedTokens
from tilus.ops.weights import operand_type
from tilus.runtime.simulate import TARGET_VARIABLE

RESULTS = Path(__file__).parent / "results" / "accuracy_sweep.json"
MODULE = sys.modules["tilus.ops.quantized_matmul"]
WEIGHTS = tuple(t for t in dtypes.NAMED if t.bits <= 8 and t.kind not in ("bool", "scale"))
HALVES = (torch.float16, torch.bfloat16)
BYTES = (torch.int8, torch.float8_e4m3fn)
GROUPS = (16, 32, 64, 128, 256, -1)
ROWS = (1, 7, 16, 33, 131)
# Ragged columns, and depths for each group; -1 takes any depth, odd ones too.
COLUMNS = (40, 33, 129, 72, 17)
DEPTHS = {16: 272, 32: 288, 64: 320, 128: 384, 256: 512, -1: 264}
ODD_DEPTH = 203
PROCESSORS = (1, 132)
TARGETS = ("sm_90a", "sm_80", "sm_89")
BLOCK = 128
STORED = {16: dtypes.float8_e4m3, 32: dtypes.float8_e8m0}
"""Scales of 8 bits, by the groups of the formats that have them: NVFP4, and MXFP4, MXFP6 and MXFP8."""
SPREAD = 3
"""Powers of two between the largest and the smallest scale of type float8_e8m0."""


@dataclass(frozen=True)
class Case:
    """One product: the types, the form of the weight, the sizes, and for which device a schedule is chosen."""

    dtype: str
    activations: str
    group: int
    zero: bool
    scales: str
    m: int
    n: int
    k: int
    by_block: bool
    target: str
    processors: int
    seed: int

    @property
    def form(self) -> str:
        """The case in words."""
        zero = " zero" if self.zero else ""
        block = " by block" if self.by_block else ""
        sizes = f"{self.m}x{self.n}x{self.k}"
        return (
            f"{self.dtype} x {self.activations}{block}, group {self.group}{zero}, scales {self.scales}, {sizes}, "
            f"{self.target}, {self.processors} processors"
        )


@dataclass(frozen=True)
class Row:
    """What a case came to: the largest error as a share of what is allowed, or what went wrong."""

    case: Case
    share: float
    failure: str = ""


def name_of(dtype: torch.dtype) -> str:
    """Return a type's name here."""
    return dtypes.dtype(dtype).name


def goes(dtype: DType, activations: torch.dtype) -> bool:
    """Tell whether weights of a type are multiplied with activations of a type."""
    try:
        operand_type(dtype, activations)
    except TypeMismatch:
        return False
    return True


def has_room(dtype: DType, activations: torch.dtype) -> bool:
    """Tell whether block scales as far apart as a case's are exact beside a type's values; else they are refused."""
    highest, fewest = highest_scale(dtype, activations), fewest_scale(dtype, activations, None)
    return highest / 2 >= fewest * 2.0**SPREAD


def cases(quick: bool = False) -> Iterator[Case]:
    """Yield the cases; sizes, targets and devices take turns, so that each meets each form of some type."""
    number = 0
    for dtype in WEIGHTS:
        for activations in (*HALVES, *BYTES):
            if not goes(dtype, activations):
                continue
            for group in GROUPS:
                if group == 16 and activations in BYTES:
                    continue
                kinds = [(False, "float16"), *([(True, "float16")] if dtype.kind == "uint" else [])]
                if group in STORED and dtype.kind == "float" and activations in HALVES:
                    if STORED[group] != dtypes.float8_e8m0 or has_room(dtype, activations):
                        kinds.append((False, STORED[group].name))
                for zero, scales in kinds:
                    number += 1
                    for turn, m in enumerate(ROWS):
                        if quick and turn != number % len(ROWS):
                            continue
                        i = number + turn
                        depth = ODD_DEPTH if group == -1 and i % 2 else DEPTHS[group]
                        yield Case(
                            dtype.name, name_of(activations), group, zero, scales, m, COLUMNS[i % len(COLUMNS)], depth,
                            activations in BYTES and i % 3 == 0, TARGETS[i % 4 % 3], PROCESSORS[i // 2 % 2], number,
                        )  # fmt: skip


def finite_codes(dtype: DType, most: float) -> np.ndarray[Any, Any]:
    """Return the codes whose values are finite and that a type which ends at `most` has."""
    codes = np.arange(1 << dtype.bits, dtype=np.uint8)
    values = decode(codes, dtype).astype(np.float64)
    return codes[np.isfinite(values) & (np.abs(values) <= most)]


def weight_of(case: Case) -> QuantizedWeight:
    """Return a weight of random codes, all there are; zero points of any size; and scales of some sizes."""
    rng = np.random.default_rng(case.seed)
    dtype = dtypes.dtype(case.dtype)
    operand = dtypes.dtype(case.activations)
    half = result_of(case)
    info = torch.finfo(half)
    # In float16 the sums of the largest values overflow: scales keep them below.
    codes = finite_codes(dtype, info.max)
    largest = float(np.abs(decode(codes, dtype).astype(np.float64)).max())
    chosen = rng.choice(codes, (case.k, case.n))
    groups = (1 if case.group == -1 else case.k // case.group, case.n)
    top = min(1.5, 2000.0 / max(largest, 1.0))
    if case.scales == "float8_e8m0":
        exponent = int(np.floor(np.log2(top)))
        scale = torch.from_numpy(
            rng.integers(127 + exponent - SPREAD, 127 + exponent + 1, groups).astype(np.uint8)
        )
    elif case.scales == "float8_e4m3":
        scale = torch.from_numpy(rng.uniform(top / 8, top, groups)).to(torch.float8_e4m3fn)
        scale = torch.where(scale.float() == 0, torch.tensor(2.0**-9), scale.float()).to(torch.float8_e4m3fn)
    else:
        scale = torch.from_numpy(rng.uniform(top / 8, top, groups)).to(half)
    zero = None
    if case.zero:
        zero = torch.from_numpy(rng.integers(0, 1 << dtype.bits, groups)).to(half)
    return from_codes(
        chosen, dtype, scale, zero, case.group,
        activations=None if operand.bits == 16 else {d.name: t for t, d in BYTE_TYPES.items()}[case.activations],
        scale_type=dtypes.float8_e8m0 if case.scales == "float8_e8m0" else None,
        out_dtype=half if case.scales.startswith("float8") else None,
    )  # fmt: skip


BYTE_TYPES = {t: dtypes.dtype(t) for t in BYTES}


def result_of(case: Case) -> torch.dtype:
    """Return the type of results."""
    return torch.bfloat16 if case.activations == "bfloat16" else torch.float16


def activations_of(case: Case) -> torch.Tensor | QuantizedTokens:
    """Return random rows; every third one has a single element, so that its products are single weights."""
    rng = np.random.default_rng(case.seed + 1)
    rows = rng.standard_normal((case.m, case.k))
    alone = np.arange(2, case.m, 3)
    rows[alone] = 0.0
    rows[alone, rng.integers(0, case.k, len(alone))] = 1.0
    if case.activations in ("float16", "bfloat16"):
        return torch.from_numpy(rows).to(result_of(case))
    blocks = -(-case.k // BLOCK) if case.by_block else 1
    scale = torch.ones((blocks, -(-case.m // 16) * 16), dtype=torch.float32)
    scale[:, : case.m] = torch.from_numpy(rng.uniform(0.001, 0.02, (blocks, case.m))).float()
    if case.activations == "int8":
        return QuantizedTokens(torch.from_numpy(np.clip(np.rint(40 * rows), -128, 127)).to(torch.int8), scale)
    return QuantizedTokens(torch.from_numpy(40 * rows).to(torch.float8_e4m3fn), scale)


def allowed(case: Case, weight: QuantizedWeight, a: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return how far each result may be from the exact one.

    The result is rounded once, to its type. Products are summed in float32, where each addition, and each scale that
    multiplies a sum, is off by at most 2**-23 of the sum of all terms' sizes: tensor cores cut off what others round.
    Of a zero point there is a term of its own, or it is subtracted before. With activations of 16 bits weights are
    rounded to their type three times at most (less the zero point, times the scale, and the zero point times the
    scale), and where they are tiny by a step of the type's subnormal numbers.
    """
    half = torch.finfo(result_of(case))
    k, n = weight.shape
    rows = np.arange(k) // weight.group_size
    values = decode(weight.codes(), weight.dtype).astype(np.float64)
    zero = np.zeros((k, n)) if weight.zero is None else weight.zero.double().numpy()[rows, :n]
    scale = np.abs(scales_of(weight)[rows, :n]) * abs(weight.alpha)
    sizes = torch.from_numpy((np.abs(values) + np.abs(zero)) * scale)
    rounded = torch.zeros_like(sizes)
    if case.activations in ("float16", "bfloat16"):
        unit = half.eps / 2
        apart = torch.from_numpy((2 * np.abs(values - zero) + np.abs(zero)) * scale)
        # Kernels divide scales of float8_e4m3 by a power of two as they read them, see `scale_exponent`.
        step = (
            half.tiny * half.eps / 2 * 2.0 ** scale_exponent(weight.scale_type, weight.dtype, result_of(case))
        )
        rounded = unit * (1 + unit) * apart + step * abs(weight.alpha)
    size = a.abs()
    sums = (case.k + 16) * 2.0**-23 * (size @ sizes)
    before = size @ rounded + sums
    return before + half.eps / 2 * (exact.abs() + before) + half.tiny * half.eps / 2


def scales_of(weight: QuantizedWeight) -> np.ndarray[Any, Any]:
    """Return the values of a weight's scales."""
    if weight.scale_type is not None:
        return decode(weight.scale.numpy(), weight.scale_type).astype(np.float64)
    return weight.scale.double().numpy()


def values_of(a: torch.Tensor | QuantizedTokens) -> torch.Tensor:
    """Return activations in float64."""
    return a.dequantize() if isinstance(a, QuantizedTokens) else a.double()


def product(case: Case, a: torch.Tensor | QuantizedTokens, weight: QuantizedWeight) -> torch.Tensor:
    """Multiply on the simulator, with the schedule that a device of the case's size gets."""
    with (
        mock.patch.dict(os.environ, {TARGET_VARIABLE: case.target}),
        mock.patch.object(MODULE, "processors", return_value=case.processors),
    ):
        return quantized_matmul(a, weight)


def run(case: Case) -> Row:
    """Return how far a product is from float64, as a share of what is allowed."""
    try:
        weight, a = weight_of(case), activations_of(case)
        exact = values_of(a) @ weight.dequantize()
        found = product(case, a, weight).double()
        limits = allowed(case, weight, values_of(a), exact)
        share = float(((found - exact).abs() / limits).nan_to_num(nan=float("inf")).max())
        failure = "" if share <= 1 else f"off by {share:.3g} times what is allowed"
        # A limit that zeros, or a neighbour's results, would meet says nothing.
        if not failure and (exact.abs() > limits).double().mean() < 0.6:
            failure = "the limit would take zeros for most results"
        if not failure and case.activations == "int8":
            failure = integers(case, weight)
    except (TilusError, RuntimeError) as error:
        return Row(case, float("inf"), f"{type(error).__name__}: {error}".splitlines()[0][:300])
    return Row(case, round(share, 4), failure)


def integers(case: Case, weight: QuantizedWeight) -> str:
    """Multiply with scales of 1 and few, small activations: each result is an integer that its type has."""
    values = decode(weight.codes(), weight.dtype).astype(np.float64)
    if not np.array_equal(values, np.rint(values)):
        return ""
    rng = np.random.default_rng(case.seed + 2)
    ones = torch.ones((1, case.n), dtype=torch.float16)
    zero = (ones * int(rng.integers(0, 1 << weight.dtype.bits))) if case.zero else None
    plain = from_codes(weight.codes(), weight.dtype, ones, zero, -1, activations=torch.int8)
    few = np.zeros((case.m, case.k), np.int8)
    few[np.arange(case.m)[:, None], rng.integers(0, case.k, (case.m, 7))] = rng.integers(-1, 2, (case.m, 7))
    tokens = QuantizedTokens(torch.from_numpy(few), torch.ones((1, -(-case.m // 16) * 16)))
    exact = torch.from_numpy(few).double() @ plain.dequantize()
    if exact.abs().max() > 2048:
        return ""
    return (
        "" if torch.equal(product(case, tokens, plain).double(), exact) else "an integer result is not exact"
    )


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return totals, by activations, target, group and rows."""
    parts: dict[str, Any] = {}
    for name in ("activations", "target", "group", "m"):
        of = {row.case.form: str(getattr(row.case, name)) for row in rows}
        parts[name] = {}
        for value in sorted(set(of.values())):
            mine = [row for row in rows if of[row.case.form] == value]
            right = [row.share for row in mine if not row.failure]
            parts[name][value] = {
                "cases": len(mine), "failed": len(mine) - len(right), "largest_share": max(right, default=None),
            }  # fmt: skip
    bad = [row for row in rows if row.failure]
    types = len({row.case.dtype for row in rows})
    return {"cases": len(rows), "types": types, "failed": len(bad), "by": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one number of rows for each form")
    parser.add_argument("--types", nargs="*", help="names of weight types; all by default")
    parser.add_argument("--match", default="", help="only cases whose description has this text")
    parser.add_argument("--part", default="0/1", help="I/N: each N-th case, from the I-th on")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    wanted = [case for case in cases(options.quick) if options.match in case.form][first::step]
    if options.types:
        wanted = [case for case in wanted if case.dtype in options.types]
    start = time.monotonic()
    rows: list[Row] = []
    for case in wanted:
        rows.append(run(case))
        if rows[-1].failure:
            print(f"{case.form}: {rows[-1].failure}", flush=True)
        if len(rows) % 100 == 0:
            print(f"{len(rows)} of {len(wanted)}, {time.monotonic() - start:.0f} s", flush=True)
    made = summary(rows)
    print(json.dumps(made, indent=1))
    if options.write:
        failures = [
            asdict(row.case) | {"share": row.share, "failure": row.failure} for row in rows if row.failure
        ]
        data = {"quick": options.quick, "part": options.part, **made, "failures": failures}
        RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"written to {RESULTS.name}")
    sys.exit(bool(made["failed"]))


if __name__ == "__main__":
    main()
