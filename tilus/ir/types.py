"""Types of tile IR values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod

from tilus.dtypes import DType
from tilus.ir.literals import NAME, format_layout, format_list
from tilus.layout import RegisterLayout, SharedLayout


@dataclass(frozen=True)
class Symbol:
    """A size that is known at launch only, and an integer that divides it for certain."""

    name: str
    divisor: int = 1

    def __str__(self) -> str:
        name = self.name if self.name == "?" or NAME.match(self.name) else json.dumps(self.name)
        return f"{name}:{self.divisor}"


Extent = int | Symbol


def divisor_of(extent: Extent) -> int:
    """Return an integer that divides an extent for certain."""
    return extent.divisor if isinstance(extent, Symbol) else extent


class Type:
    """Base of all types; `str` of a type is its text in the textual IR."""


def format_align(align: int) -> str:
    """Return the text of an alignment that is worth saying."""
    return f", align={align}" if align != 1 else ""


@dataclass(frozen=True)
class ScalarType(Type):
    """One value, equal in all threads of the group that computes it."""

    dtype: DType

    def __str__(self) -> str:
        return self.dtype.short


@dataclass(frozen=True)
class PointerType(Type):
    """A pointer to global memory, known to be aligned to `align` bytes."""

    dtype: DType
    align: int = 1

    def __str__(self) -> str:
        return f"ptr<{self.dtype.short}{format_align(self.align)}>"


@dataclass(frozen=True)
class RegisterType(Type):
    """A tile that the threads of a group hold in registers."""

    dtype: DType
    shape: tuple[int, ...]
    layout: RegisterLayout | None = None

    def __str__(self) -> str:
        layout = f", {format_layout(self.layout)}" if self.layout is not None else ""
        return f"tile<{self.dtype.short}, {format_list(self.shape)}{layout}>"

    @property
    def size(self) -> int:
        """Number of elements of the tile."""
        return prod(self.shape)


@dataclass(frozen=True)
class SharedType(Type):
    """A tile in shared memory: the block's own, or that of another block of the cluster."""

    dtype: DType
    shape: tuple[int, ...]
    layout: SharedLayout | None = None
    remote: bool = False

    def __str__(self) -> str:
        layout = f", {format_layout(self.layout)}" if self.layout is not None else ""
        return (
            f"{'remote' if self.remote else 'shared'}<{self.dtype.short}, {format_list(self.shape)}{layout}>"
        )

    @property
    def size(self) -> int:
        """Number of elements of the tile."""
        return prod(self.shape)


@dataclass(frozen=True)
class GlobalType(Type):
    """A tensor in global memory: extents and strides (in elements), and the alignment of its pointer in bytes."""

    dtype: DType
    dims: tuple[Extent, ...]
    strides: tuple[Extent, ...]
    align: int = 1

    def __str__(self) -> str:
        extents = f"{format_list(self.dims)}, {format_list(self.strides)}"
        return f"global<{self.dtype.short}, {extents}{format_align(self.align)}>"

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.dims)


@dataclass(frozen=True)
class BarrierType(Type):
    """An array of `count` mbarriers in shared memory."""

    count: int = 1

    def __str__(self) -> str:
        return f"barrier<{self.count}>"
