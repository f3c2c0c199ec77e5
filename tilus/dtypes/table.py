"""Types whose codes are indices into a table of values: nf4, ternary, and any codebook of 2**n entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilus.errors import InvalidValue, TypeMismatch

from .scalar import DType


@dataclass(frozen=True, repr=False)
class TableType(DType):
    """A type of `bits` bits whose code ``c`` has the value ``values[c]``.

    Make one with `table_type`, or use `nf4` or `ternary`.
    """

    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or len(self.values) != 1 << self.bits:
            raise InvalidValue(
                f"a table type of {self.bits} bits was given {len(self.values)} values: "
                "give 2, 4, 8, ... or 256 values, one for each code"
            )
        if not all(map(math.isfinite, self.values)):
            raise InvalidValue(f"the values of a table type must be finite, not {self.values}")

    # A dataclass that compares by value makes its own hash unless the class has one.
    __hash__ = DType.__hash__

    @property
    def is_signed(self) -> bool:
        """Whether some value is negative."""
        return min(self.values) < 0

    @property
    def max(self) -> float:
        """The largest value of the table."""
        return max(self.values)

    @property
    def min(self) -> float:
        """The smallest value of the table."""
        return min(self.values)


def table_type(values: Sequence[float]) -> TableType:
    """Make the type whose code ``c`` has the value ``values[c]``.

    Its name spells the whole table, as in ``table1(-1.0,1.0)``, so that ``dtype(name)`` makes it again and
    two equal tables are the same type.

    Parameters
    ----------
    values : sequence of float
        2, 4, 8, ... or 256 finite values, in any order. A value may stand there more than once.

    Returns
    -------
    TableType
    """
    try:
        entries = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise TypeMismatch(f"the values of a table type must be numbers, not {values!r}") from None
    bits = max(len(entries) - 1, 0).bit_length()
    name = f"table{bits}({','.join(map(repr, entries))})"
    return TableType(name, bits, "table", name, values=entries)


def parse_table_type(name: str) -> TableType:
    """Make a table type from the name that `table_type` gave it."""
    inside = name[name.index("(") + 1 : -1]
    try:
        made = table_type([float(value) for value in inside.split(",")])
    except ValueError as error:
        raise InvalidValue(f"{name!r} is not the name of a table type: {error}") from None
    if not name.startswith(f"table{made.bits}("):
        raise InvalidValue(
            f"{name!r} has {len(made.values)} values: its name must start with 'table{made.bits}('"
        )
    return made


NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution, scaled to [-1, 1], as float32 numbers: NormalFloat4 of the QLoRA
paper (arXiv 2305.14314, appendix E)."""

nf4 = TableType("nf4", 4, "table", "nf4", values=NF4_VALUES)

# Code 3 is never written; it reads as zero so that every code has a value.
ternary = TableType("ternary", 2, "table", "ternary", values=(-1.0, 0.0, 1.0, 0.0))
