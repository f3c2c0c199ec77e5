"""What a foreign program's test is made of: a launch, its inputs, the numbers expected, and bounds on their error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

PTX = Path(__file__).parent / "ptx"
FACTS: dict[str, dict[str, Any]] = json.loads((PTX / "facts.json").read_text())

# Unit roundoff: half the distance from 1 to the next number.
F16, BF16, F32, F64 = 2.0**-11, 2.0**-8, 2.0**-24, 2.0**-53
TF32 = 2.0**-11
UNIT = {
    np.dtype(np.float16): F16,
    np.dtype(ml_dtypes.bfloat16): BF16,
    np.dtype(np.float32): F32,
    np.dtype(np.float64): F64,
}


@dataclass(frozen=True, eq=False)
class Check:
    """After the launch, `got` lies within `bound` of `want`; a bound of None asks for equal bits (0 allows other NaNs).

    `unordered` is for kernels that may write their values in any order.
    """

    got: np.ndarray
    want: np.ndarray
    bound: np.ndarray | float | None = None
    unordered: bool = False

    def failure(self) -> str | None:
        """What is wrong with `got`, or None."""
        got = np.sort(self.got) if self.unordered else self.got
        if got.shape != self.want.shape:
            return f"expected the shape {self.want.shape}, found {got.shape}"
        if self.bound is None:
            if got.dtype != self.want.dtype:
                return f"expected the type {self.want.dtype}, found {got.dtype}"
            wrong = bits(got) != bits(self.want)
        else:
            error = np.abs(got.astype(np.float64) - self.want.astype(np.float64))
            both_nan = np.isnan(got.astype(np.float64)) & np.isnan(self.want.astype(np.float64))
            wrong = ~((error <= self.bound) | both_nan)
        if not wrong.any():
            return None
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        bound = None if self.bound is None else np.broadcast_to(self.bound, got.shape)[at]
        expected = f"expected {self.want[at]} within {bound}, found {got[at]}"
        return f"{wrong.sum()} of {wrong.size} values are wrong; at {at} {expected}"


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(
        {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize]
    )


@dataclass(frozen=True, eq=False)
class Descriptor:
    """A tensor map over a matrix with contiguous rows, before it is put into a simulator's or a driver's form."""

    array: np.ndarray
    box: tuple[int, ...]
    swizzle: int = 0


@dataclass(frozen=True, eq=False)
class Launch:
    args: list[Any]
    checks: list[Check]
    grid: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (32, 1, 1)
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    output: str | None = None


@dataclass(frozen=True)
class Program:
    """A kernel of a file in `ptx/`; `setup` makes a fresh launch, `label` tells the launches of a file apart."""

    file: str
    kernel: str
    setup: Callable[[np.random.Generator], Launch] = field(compare=False)
    label: str = ""
    text: str | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.file, self.label)))

    @property
    def ptx(self) -> str:
        return (PTX / f"{self.file}.ptx").read_text() if self.text is None else self.text


Setup = Callable[[np.random.Generator], Launch]


def registry(prefix: str) -> tuple[list[Program], Callable[..., Callable[[Setup], Setup]]]:
    """A list of programs, and a decorator that appends a setup function to it."""
    programs: list[Program] = []

    def program(file: str, kernel: str, variant: str = "") -> Callable[[Setup], Setup]:
        def register(setup: Setup) -> Setup:
            label = "-".join(filter(None, (kernel, variant)))
            programs.append(Program(prefix + file, kernel, setup, label))
            return setup

        return register

    return programs, program


def normal(rng: np.random.Generator, shape: Any, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def ints(rng: np.random.Generator, low: int, high: int, shape: Any, dtype: Any = np.int32) -> np.ndarray:
    return rng.integers(low, high, shape, dtype)


def zeros(shape: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def rounded(x: Any, dtype: Any) -> np.ndarray:
    return np.asarray(x).astype(dtype)


def dot_bound(
    a: np.ndarray, b: np.ndarray, out: np.dtype | type, *, accumulate: float = 2 * F32, operands: float = 0.0
) -> np.ndarray:
    """The error of `a @ b` summed in any order: k additions that each lose at most `accumulate`, then one rounding.

    Tensor cores truncate instead of rounding, hence twice the unit roundoff of float32. `operands` is the error that
    each operand has before it is multiplied.
    """
    magnitude = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    k = a.shape[-1]
    return magnitude * ((k + 1) * accumulate + 2 * operands) + rounding(
        a.astype(np.float64) @ b.astype(np.float64), out
    )


def rounding(value: np.ndarray, out: np.dtype | type, ulps: float = 0.5) -> np.ndarray:
    """The error of a value that is right to so many units in the last place of a type."""
    unit = UNIT[np.dtype(out)]
    smallest = {F16: 2.0**-24, BF16: 2.0**-133, F32: 2.0**-149, F64: 2.0**-1074}[unit]
    return np.abs(value) * (2 * ulps * unit) * (1 + 8 * unit) + smallest


def philox(counter: np.ndarray, seed: int) -> list[np.ndarray]:
    """Philox 4x32 with ten rounds (Salmon et al., SC 2011), from the paper: counter (i, 0, 0, 0), key (seed, 0)."""
    mask = np.uint64(0xFFFFFFFF)
    c = [counter.astype(np.uint64), *(np.zeros(counter.shape, np.uint64) for _ in range(3))]
    key = [np.uint64(seed), np.uint64(0)]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high, low = (lambda p: p >> np.uint64(32)), (lambda p: p & mask)
        c = [high(p1) ^ c[1] ^ key[0], low(p1), high(p0) ^ c[3] ^ key[1], low(p0)]
        key = [(key[0] + np.uint64(0x9E3779B9)) & mask, (key[1] + np.uint64(0xBB67AE85)) & mask]
    return [x.astype(np.uint32) for x in c]


def vectorized(function: Callable[..., float]) -> Callable[..., np.ndarray]:
    """A function of Python's math module over arrays, in float64."""
    return np.vectorize(function, otypes=[np.float64])


def signed(x: int, bits: int) -> int:
    x %= 2**bits
    return x - 2**bits if x >> (bits - 1) else x


def quotient(x: int, y: int) -> int:
    """Division of integers that truncates, as C's does."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


erf, lgamma = vectorized(math.erf), vectorized(math.lgamma)
