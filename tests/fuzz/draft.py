"""Random kernels as source text: what is known while one is drawn, and how its lines are written.

All floats that meet arithmetic are small multiples of a power of two, so that every sum and product is exact and every
right compiler gives the same bits. Values beyond that are cast, compared, moved and sorted only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tests.fuzz.layouts import random_layout
from tilus import dtypes
from tilus.dtypes import DType

INTEGERS = ("int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
BYTES = ("int8", "uint8")
NARROW = (
    *(f"int{n}" for n in range(1, 8)), *(f"uint{n}" for n in range(1, 8)), *BYTES, "float3_e1m1", "float4_e2m1",
    "float5_e2m2", "float6_e2m3", "float6_e3m2", "float7_e3m3", "float8_e4m3", "float8_e5m2", "float8_e3m4",
)  # fmt: skip
EXTENTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53, "float8_e4m3": 4, "float8_e5m2": 3}


@dataclass(frozen=True)
class Exact:
    """What is known of floats: multiples of ``2**-places`` of at most ``bound``."""

    bound: float
    places: int = 0

    def fits(self, dtype: DType) -> bool:
        """Tell whether a type holds all of these numbers."""
        return self.bound * 2**self.places <= 2 ** PRECISION[dtype.name]


@dataclass(frozen=True)
class Var:
    """A name in scope: a tile, or a scalar where there is no shape."""

    name: str
    dtype: DType
    shape: tuple[int, ...] | None
    exact: Exact | None = None
    said: str = ""


@dataclass(frozen=True)
class SharedVar:
    """A tensor in shared memory that holds defined values."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    exact: Exact | None = None


@dataclass(frozen=True)
class Argument:
    """A tensor parameter.

    Attributes
    ----------
    name, dtype : str, DType
        What it is called, and its elements' type.
    codes : ndarray
        Its elements as bit patterns.
    output : bool
        Whether the kernel writes it.
    """

    name: str
    dtype: DType
    codes: np.ndarray
    output: bool
    named: bool = False


@dataclass
class Program:
    """A kernel as text, and what it is launched with."""

    text: str
    arguments: list[Argument]
    scalars: list[int]


@dataclass
class Draft:
    """A program that is being drawn.

    Parameters
    ----------
    seed : int
        Programs of one seed are equal.
    """

    seed: int
    size: int = 14
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    scope: list[Var] = field(default_factory=list)
    shared: list[SharedVar] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    depth: int = 0
    count: int = 0
    frozen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.numpy = np.random.default_rng(self.seed)
        self.warps = self.rng.choice((1, 1, 2, 3, 4, 4, 8))
        self.group = self.warps
        self.blocks = self.rng.choice((1, 1, 2, 3))
        self.places: list[tuple[int, Var]] = []

    # Text.

    def fresh(self, prefix: str = "v") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def chance(self, one_in: int) -> bool:
        return self.rng.randrange(one_in) == 0

    def keep(self, text: str, dtype: DType, shape: tuple[int, ...] | None, exact: Exact | None = None) -> Var:
        """Write an assignment to a new name."""
        made = Var(self.fresh(), dtype, shape, exact)
        self.line(f"{made.name} = {text}")
        self.scope.append(made)
        return made

    def layout(self, shape: tuple[int, ...], copies: bool = True) -> str:
        """Return the name of a random layout."""
        name = f"L{len(self.layouts)}"
        made = random_layout(self.rng, shape, 32 * self.group, copies)
        self.layouts.append(f"{name} = {made!r}")
        return name

    def maybe_layout(self, shape: tuple[int, ...]) -> str:
        return f", layout={self.layout(shape)}" if self.chance(4) else ""

    # Values.

    def shape(self, most: int = 1024, ranks: tuple[int, int] = (1, 3)) -> tuple[int, ...]:
        """Draw a shape; half the time one that a tile in scope has."""
        known = [v.shape for v in self.scope if v.shape and ranks[0] <= len(v.shape) <= ranks[1]]
        if known and self.chance(2):
            return self.rng.choice(known)
        made: list[int] = []
        for _ in range(self.rng.choice([r for r in (1, 1, 2, 2, 2, 3) if ranks[0] <= r <= ranks[1]])):
            extent = self.rng.choice(EXTENTS)
            made.append(extent if prod(made) * extent <= most else 1)
        return tuple(made)

    def codes(self, dtype: DType, shape: tuple[int, ...], exact: Exact | None) -> np.ndarray:
        """Draw elements: small numbers, or any bits."""
        if exact is not None:
            whole = int(exact.bound * 2**exact.places)
            return np.asarray(
                dtypes.encode(self.numpy.integers(-whole, whole + 1, shape) / 2**exact.places, dtype)
            )
        if dtype.is_boolean:
            return self.numpy.integers(0, 2, shape).astype(np.uint8)
        bits = self.numpy.integers(0, 256, (*shape, 8), dtype=np.uint8).view(np.uint64)[..., 0]
        if dtype.is_integer and dtype.bits > 8 and self.chance(2):
            small = (
                self.numpy.integers(-20, 21, shape) if dtype.is_signed else self.numpy.integers(0, 41, shape)
            )
            bits = small.astype(np.int64).view(np.uint64)
        return (bits & np.uint64(dtype.code_mask)).astype(dtype.code_numpy)

    def input(self, dtype: DType, shape: tuple[int, ...], exact: Exact | None) -> Argument:
        named = dtype.bits >= 8 and self.chance(2)
        made = Argument(self.fresh("in"), dtype, self.codes(dtype, shape, exact), False, named)
        self.arguments.append(made)
        return made

    def number(self, dtype: DType) -> str:
        if dtype.is_float:
            return self.rng.choice(("1.0", "2.0", "-1.0", "0.5", "3.0", "0.0"))
        if dtype.is_boolean:
            return self.rng.choice(("True", "False"))
        choices = [0, 1, 2, 3, 5, 7, 10]
        choices += [-1, -3] if dtype.is_signed else []
        choices += [int(dtype.max), int(dtype.min)] if self.chance(4) else []
        return str(self.rng.choice([c for c in choices if dtype.min <= c <= dtype.max]))

    def bound_of(self, number: str) -> Exact:
        return Exact(abs(float(number)) or 1.0, 1 if number == "0.5" else 0)

    def a_scalar(self) -> str:
        """Return an int32 scalar, or a number."""
        found = [v.name for v in self.scope if v.shape is None and v.dtype.name == "int32"]
        return self.rng.choice([*found, "tilus.block_id()", "n0", "n1"])

    def condition(self) -> str:
        a, b = self.a_scalar(), self.rng.choice((self.a_scalar(), "2", "0", "5"))
        made = f"{a} {self.rng.choice(('<', '<=', '==', '!=', '>', '>='))} {b}"
        if self.chance(4):
            other = f"{self.a_scalar()} % 3 {self.rng.choice(('==', '!='))} 1"
            return f"{made} {self.rng.choice(('and', 'or'))} {other}"
        return f"not {made}" if self.chance(6) else made

    def output(self, dtype: DType, shape: tuple[int, ...]) -> str:
        """Add an output tensor, full of a pattern that the kernel must leave where it writes nothing."""
        codes = np.full(tuple(max(n, 1) for n in shape), 0x5A5A5A5A5A5A5A5A & dtype.code_mask, np.uint64)
        codes = (codes if not dtype.is_boolean else codes * np.uint64(0)).astype(dtype.code_numpy)
        name = self.fresh("out")
        self.arguments.append(Argument(name, dtype, codes, True, dtype.bits >= 8 and self.chance(3)))
        return name

    def finish(self, v: Var) -> None:
        """Store a value to a tensor of its own, a part of it for each block."""
        d, name, shape = v.dtype, v.name, v.shape or (1,)
        if d.bits < 8 and not d.is_boolean and (shape[-1] * d.bits % 8 or 8 % d.bits):
            d = dtypes.int32 if d.is_integer else dtypes.float32
            name = f"{name}.to(tilus.{d})"
        more = self.chance(4) and d.bits >= 8
        out = self.output(
            d, (self.blocks, *(n + (self.rng.choice((0, 3, -1)) if more else 0) for n in shape))
        )
        zeros = ", 0" * len(shape)
        mask = self.maybe_mask(shape) if v.shape and d.bits >= 8 else ""
        self.line(f"tilus.store({out}, {name}, (tilus.block_id(){zeros}){mask})")
