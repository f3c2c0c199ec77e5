"""Global layouts: how a tensor lies in global memory, as strides that may be symbolic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tilus.layout.errors import LayoutError

Extent = int | str


@dataclass(frozen=True)
class Monomial:
    """An integer times a product of symbols, as in ``2*n*k``.

    Parameters
    ----------
    coefficient : int
        The integer.
    symbols : tuple of str
        The names of the symbols, sorted.
    """

    coefficient: int
    symbols: tuple[str, ...] = ()

    @staticmethod
    def of(extent: Extent) -> Monomial:
        """Read an integer, a symbol's name, or a product of them such as ``"8*n*k"``."""
        if isinstance(extent, int):
            return Monomial(extent)
        coefficient = 1
        symbols = []
        for factor in extent.split("*"):
            name = factor.strip()
            if name.isdigit():
                coefficient *= int(name)
            elif name.isidentifier():
                symbols.append(name)
            else:
                raise LayoutError(f"{extent!r} is not a product of integers and names, such as '8*n*k'")
        return Monomial(coefficient, tuple(sorted(symbols)))

    def __mul__(self, other: Monomial) -> Monomial:
        return Monomial(self.coefficient * other.coefficient, tuple(sorted(self.symbols + other.symbols)))

    def evaluate(self, symbols: Mapping[str, int]) -> int:
        """Return the value, given the symbols'."""
        missing = [name for name in self.symbols if name not in symbols]
        if missing:
            raise LayoutError(f"the value of {', '.join(missing)} is needed for {self}")
        return self.coefficient * prod(symbols[name] for name in self.symbols)

    def divisor(self, multiples: Mapping[str, int]) -> int:
        """Return an integer that divides the value, given one that divides each symbol; 1 where none is given."""
        return self.coefficient * prod(multiples.get(name, 1) for name in self.symbols)

    def __str__(self) -> str:
        factors = [] if self.coefficient == 1 and self.symbols else [str(self.coefficient)]
        return "*".join([*factors, *self.symbols])


@dataclass(frozen=True)
class Term:
    """One summand of an offset: the index along a dimension, times a stride."""

    dim: int
    stride: Monomial


@dataclass(frozen=True)
class GlobalLayout:
    """A map from an index of a tensor to an offset in global memory, counted in elements.

    Parameters
    ----------
    shape : tuple of int or str
        The tensor's shape; a string names a size that is known at launch.
    strides : tuple of int or str
        The stride of each dimension, in elements: an integer, a name, or a product such as ``"n*k"``.
    """

    shape: tuple[Extent, ...]
    strides: tuple[Extent, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.strides):
            raise LayoutError(
                f"a shape of {len(self.shape)} dimensions needs as many strides, found {len(self.strides)}"
            )
        shape = tuple(_normal(extent) for extent in self.shape)
        for dim, extent in enumerate(shape):
            if isinstance(extent, int) and extent < 0:
                raise LayoutError(f"dimension {dim} of a global layout has size {extent}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "strides", tuple(_normal(stride) for stride in self.strides))

    @staticmethod
    def row_major(*shape: Extent) -> GlobalLayout:
        """Return the layout of a contiguous tensor whose last dimension is the fastest."""
        step = Monomial(1)
        strides: list[Extent] = []
        for extent in reversed(shape):
            strides.insert(0, str(step))
            step = step * Monomial.of(extent)
        return GlobalLayout(shape, tuple(strides))

    @staticmethod
    def column_major(*shape: Extent) -> GlobalLayout:
        """Return the layout of a contiguous tensor whose first dimension is the fastest."""
        flipped = GlobalLayout.row_major(*reversed(shape))
        return GlobalLayout(shape, flipped.strides[::-1])

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names that the layout depends on, sorted."""
        found: set[str] = set()
        for extent in self.shape + self.strides:
            found.update(Monomial.of(extent).symbols)
        return tuple(sorted(found))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The offset of an index as a sum; a dimension of size one, or with stride zero, adds nothing."""
        return tuple(
            Term(dim, Monomial.of(stride))
            for dim, (extent, stride) in enumerate(zip(self.shape, self.strides, strict=True))
            if extent != 1 and stride != 0
        )

    def expression(self, names: Sequence[str]) -> str:
        """Return the offset as text, given what the index along each dimension is called."""
        if len(names) != self.rank:
            raise LayoutError(f"expected {self.rank} index names, found {len(names)}")
        one = Monomial(1)
        parts = [
            names[term.dim] if term.stride == one else f"{names[term.dim]}*{term.stride}"
            for term in self.terms
        ]
        return " + ".join(parts) if parts else "0"

    def offset(self, index: Sequence[int], symbols: Mapping[str, int] | None = None) -> int:
        """Return the offset of an index, given the values of the symbols."""
        if len(index) != self.rank:
            raise LayoutError(f"expected an index of {self.rank} dimensions, found {len(index)}")
        return sum(index[term.dim] * term.stride.evaluate(symbols or {}) for term in self.terms)

    def bind(self, symbols: Mapping[str, int]) -> GlobalLayout:
        """Return the layout with the values of its symbols put in."""
        return GlobalLayout(
            tuple(Monomial.of(extent).evaluate(symbols) for extent in self.shape),
            tuple(Monomial.of(stride).evaluate(symbols) for stride in self.strides),
        )

    def transpose(self, perm: Sequence[int] | None = None) -> GlobalLayout:
        """Return the layout whose dimension ``i`` is dimension ``perm[i]`` of this one; by default, reversed."""
        order = tuple(reversed(range(self.rank))) if perm is None else tuple(perm)
        if sorted(order) != list(range(self.rank)):
            raise LayoutError(f"{order} does not name each of the {self.rank} dimensions once")
        return GlobalLayout(
            tuple(self.shape[old] for old in order), tuple(self.strides[old] for old in order)
        )

    def __str__(self) -> str:
        shape = ", ".join(str(extent) for extent in self.shape)
        strides = ", ".join(str(stride) for stride in self.strides)
        return f"GlobalLayout(({shape}), strides ({strides}))"


def _normal(extent: Extent) -> Extent:
    monomial = Monomial.of(extent)
    return str(monomial) if monomial.symbols and monomial.coefficient else monomial.coefficient
