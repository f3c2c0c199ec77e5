"""Shared layouts: where each element of a tile lies in shared memory, as strides over digits and an XOR swizzle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import gcd, prod

from tilus.layout.errors import LayoutError
from tilus.layout.register import Digit, Digits, canonical_digits, format_digits, format_shape, row_strides
from tilus.layout.swizzle import Swizzle


@dataclass(frozen=True)
class SharedLayout:
    """A map from an index of a tile to an offset in memory, counted in elements.

    Parameters
    ----------
    shape : tuple of int
        The tile's shape.
    digits : tuple of Digit
        For each dimension, its digits from the most to the least significant: the index along the dimension
        is read as a mixed-radix number over them, and each value counts with its digit's ``stride``.
    swizzle : Swizzle, optional
        Applied to the sum.
    size : int, optional
        How many elements of memory the tile takes; by default what its offsets need, rounded up to whole
        blocks of the swizzle.

    Notes
    -----
    A swizzle presumes that the tile starts at a multiple of ``swizzle.period`` elements of memory.
    """

    shape: tuple[int, ...]
    digits: Digits
    swizzle: Swizzle | None = None
    size: int = 0

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        digits = tuple(self.digits)
        _check_digits(shape, digits)
        ordered = canonical_digits(sorted(digits, key=lambda digit: -1 if digit.dim is None else digit.dim))
        reach = 1 + sum((digit.size - 1) * digit.stride for digit in ordered)
        if self.swizzle is not None:
            reach = -(-reach // self.swizzle.block) * self.swizzle.block
        size = self.size or reach
        if size < reach:
            raise LayoutError(
                f"the offsets of a shared layout reach {reach} elements, but its size is {size}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "digits", ordered)
        object.__setattr__(self, "size", size)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @cached_property
    def elements(self) -> int:
        """The number of elements of the tile."""
        return prod(self.shape)

    @property
    def alignment(self) -> int:
        """The number of elements to a multiple of which the tile's start must be aligned."""
        return 1 if self.swizzle is None else self.swizzle.period

    @cached_property
    def chains(self) -> tuple[Digits, ...]:
        """For each dimension, its digits from the most to the least significant."""
        return tuple(tuple(d for d in self.digits if d.dim == dim) for dim in range(self.rank))

    @cached_property
    def is_injective(self) -> bool:
        """Whether no two elements share a place."""
        reach = 1
        for digit in sorted(self.digits, key=lambda digit: digit.stride):
            if digit.stride < reach:
                return len({self.linear_offset(index) for index in self.indices()}) == self.elements
            reach += (digit.size - 1) * digit.stride
        return True

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Yield every index of the tile in row-major order."""
        return product(*(range(extent) for extent in self.shape))

    def linear_offset(self, index: Sequence[int]) -> int:
        """Return the offset of an index before the swizzle."""
        if len(index) != self.rank or not all(0 <= i < n for i, n in zip(index, self.shape, strict=True)):
            raise LayoutError(f"index {tuple(index)} is outside a {format_shape(self.shape)} tile")
        total = 0
        for position, chain in zip(index, self.chains, strict=True):
            for digit in reversed(chain):
                position, value = divmod(position, digit.size)
                total += value * digit.stride
        return total

    def offset(self, index: Sequence[int]) -> int:
        """Return the offset in memory of an index, in elements."""
        linear = self.linear_offset(index)
        return linear if self.swizzle is None else self.swizzle(linear)

    def strides(self) -> tuple[int, ...] | None:
        """Return the stride of each dimension, 0 for one of size 1, or None where one stride does not tell all."""
        if self.swizzle is not None or any(len(chain) > 1 for chain in self.chains):
            return None
        return tuple(chain[0].stride if chain else 0 for chain in self.chains)

    def __str__(self) -> str:
        tail = f", {self.swizzle}" if self.swizzle else ""
        return (
            f"SharedLayout({format_shape(self.shape)}, {format_digits(self.digits)}{tail}, size {self.size})"
        )

    # Products.

    def __mul__(self, inner: SharedLayout) -> SharedLayout:
        """Return the layout of a tile of ``self`` whose every element is a tile of ``inner``, kept in one piece."""
        if self.rank != inner.rank:
            raise LayoutError(
                f"cannot multiply shared layouts of rank {self.rank} and {inner.rank}; "
                f"give both the same rank with unsqueeze"
            )
        return SharedLayout(
            tuple(a * b for a, b in zip(self.shape, inner.shape, strict=True)),
            tuple(Digit(d.size, d.dim, d.stride * inner.size) for d in self.digits) + inner.digits,
            _product_swizzle(self, inner),
            self.size * inner.size,
        )

    def with_swizzle(self, swizzle: Swizzle | None) -> SharedLayout:
        """Return the layout with another swizzle, or with none."""
        return SharedLayout(self.shape, self.digits, swizzle)

    # Changes of shape.

    def slice(self, dim: int, index: int) -> tuple[int, SharedLayout]:
        """Return the offset and the layout of the tile with the index along ``dim`` fixed.

        Used for the stages of a pipeline: the tile of stage ``i`` is at ``offset + layout.offset(rest)``.
        """
        self._check_dim(dim)
        if not 0 <= index < self.shape[dim]:
            raise LayoutError(f"index {index} is outside dimension {dim} of size {self.shape[dim]}")
        base = self.linear_offset(tuple(index if d == dim else 0 for d in range(self.rank)))
        if self.swizzle is not None and base % self.swizzle.period:
            raise LayoutError(
                f"index {index} of dimension {dim} starts at element {base}, which is not a multiple of the swizzle's "
                f"period of {self.swizzle.period} elements, so the slice has no layout of its own; "
                f"pad the tile or index a dimension with a longer stride"
            )
        place = {old: old - (old > dim) for old in range(self.rank)}
        rest = tuple(d for d in self.digits if d.dim != dim)
        return base, SharedLayout(
            self.shape[:dim] + self.shape[dim + 1 :], _rename(rest, place), self.swizzle
        )

    def window(self, start: Sequence[int], shape: Sequence[int]) -> tuple[int, SharedLayout]:
        """Return the offset and the layout of a smaller tile, which starts at an index of this one.

        The element at index ``i`` of the window is at ``offset + layout.offset(i)``.
        """
        first, extents = tuple(start), tuple(shape)
        if len(first) != self.rank or len(extents) != self.rank:
            raise LayoutError(f"a window of a layout of rank {self.rank} needs as many starts and sizes")
        digits: list[Digit] = []
        for dim, (begin, extent) in enumerate(zip(first, extents, strict=True)):
            if begin < 0 or extent < 1 or begin + extent > self.shape[dim]:
                raise LayoutError(
                    f"a window of {extent} at {begin} is outside dimension {dim} of size {self.shape[dim]}"
                )
            digits += self._cut(dim, begin, extent)
        base = self.linear_offset(first)
        if self.swizzle is not None and base % self.swizzle.period:
            raise LayoutError(
                f"a window at {first} starts at element {base}, which is not a multiple of the swizzle's period of "
                f"{self.swizzle.period} elements, so it has no layout of its own"
            )
        return base, SharedLayout(extents, tuple(digits), self.swizzle)

    def _cut(self, dim: int, begin: int, extent: int) -> list[Digit]:
        """Return the digits of the ``extent`` indices from ``begin`` on."""
        chain = self.chains[dim]
        digits: list[Digit] = []
        inner, left = 1, extent
        for digit in reversed(chain):
            # Whole digits, then a part of one; those above it have one value.
            size = min(left, digit.size)
            if left % size or begin % inner or begin // inner % digit.size + size > digit.size:
                break
            digits.insert(0, Digit(size, dim, digit.stride))
            inner, left = inner * digit.size, left // size
            if left == 1:
                break
        if left > 1:
            raise LayoutError(
                f"a window of {extent} at {begin} along dimension {dim} cuts the digits {format_digits(chain)}"
            )
        return digits

    def prepend(self, count: int, alignment: int = 1) -> SharedLayout:
        """Return the layout of ``count`` copies of the tile (stages), indexed by a new leading dimension.

        Each copy starts at a multiple of ``alignment`` elements and of the swizzle's period.
        """
        unit = self.alignment * alignment // gcd(self.alignment, alignment)
        step = -(-self.size // unit) * unit
        place = {old: old + 1 for old in range(self.rank)}
        return SharedLayout(
            (count, *self.shape),
            (Digit(count, 0, step), *_rename(self.digits, place)),
            self.swizzle,
            step * count,
        )

    def transpose(self, perm: Sequence[int] | None = None) -> SharedLayout:
        """Return the layout whose dimension ``i`` is dimension ``perm[i]`` of this one; by default, reversed."""
        order = tuple(reversed(range(self.rank))) if perm is None else tuple(perm)
        if sorted(order) != list(range(self.rank)):
            raise LayoutError(f"{order} does not name each of the {self.rank} dimensions once")
        place = {old: new for new, old in enumerate(order)}
        return SharedLayout(
            tuple(self.shape[old] for old in order), _rename(self.digits, place), self.swizzle, self.size
        )

    def reshape(self, shape: Sequence[int]) -> SharedLayout:
        """Return the layout of the same elements under another shape, both counted in row-major order."""
        new = tuple(shape)
        if prod(new) != self.elements or min(new, default=1) < 1:
            raise LayoutError(
                f"a {format_shape(self.shape)} tile has {self.elements} elements and cannot be reshaped to "
                f"{format_shape(new)}, which has {prod(new)}"
            )
        # All digits, least significant first, are one chain over the row-major number.
        flat = canonical_digits(Digit(d.size, 0, d.stride) for chain in self.chains for d in chain)
        pieces = list(reversed(flat))
        result: list[Digit] = []
        for dim in reversed(range(len(new))):
            left = new[dim]
            while left > 1:
                piece = pieces.pop(0)
                size = min(piece.size, left)
                if piece.size % size or left % size:
                    raise LayoutError(
                        f"cannot reshape {self} to {format_shape(new)}: digit {piece} would be split across a "
                        f"boundary of dimension {dim}"
                    )
                if piece.size > size:
                    pieces.insert(0, Digit(piece.size // size, piece.dim, piece.stride * size))
                result.insert(0, Digit(size, dim, piece.stride))
                left //= size
        return SharedLayout(new, tuple(result), self.swizzle, self.size)

    def unsqueeze(self, dim: int) -> SharedLayout:
        """Return the layout with a dimension of size one inserted before ``dim``."""
        if not 0 <= dim <= self.rank:
            raise LayoutError(f"cannot insert a dimension at {dim} in a layout of rank {self.rank}")
        place = {old: old + (old >= dim) for old in range(self.rank)}
        return SharedLayout(
            self.shape[:dim] + (1,) + self.shape[dim:], _rename(self.digits, place), self.swizzle, self.size
        )

    def squeeze(self, dim: int) -> SharedLayout:
        """Return the layout without a dimension of size one."""
        self._check_dim(dim)
        if self.shape[dim] != 1:
            raise LayoutError(
                f"dimension {dim} has size {self.shape[dim]}; only a dimension of size 1 can be squeezed"
            )
        place = {old: old - (old > dim) for old in range(self.rank)}
        return SharedLayout(
            self.shape[:dim] + self.shape[dim + 1 :], _rename(self.digits, place), self.swizzle, self.size
        )

    def _check_dim(self, dim: int) -> None:
        if not 0 <= dim < self.rank:
            raise LayoutError(f"dimension {dim} is outside a layout of rank {self.rank}")


# Constructors.


def strided(shape: Sequence[int], strides: Sequence[int]) -> SharedLayout:
    """Return the layout with one stride, in elements, for each dimension."""
    if len(shape) != len(strides):
        raise LayoutError(f"a shape of {len(shape)} dimensions needs as many strides, found {len(strides)}")
    return SharedLayout(
        tuple(shape), tuple(Digit(n, dim, s) for dim, (n, s) in enumerate(zip(shape, strides, strict=True)))
    )


def row_major(*shape: int) -> SharedLayout:
    """Return the layout with the last dimension contiguous."""
    return strided(shape, row_strides(shape))


def column_major(*shape: int) -> SharedLayout:
    """Return the layout with the first dimension contiguous."""
    return strided(shape, row_strides(shape[::-1])[::-1])


def padded(shape: Sequence[int], padding: int) -> SharedLayout:
    """Return the row-major layout with ``padding`` unused elements after each row."""
    shape = tuple(shape)
    if not shape:
        return row_major()
    strides = tuple(step // shape[-1] * (shape[-1] + padding) for step in row_strides(shape)[:-1])
    return strided(shape, (*strides, 1))


def swizzled_row_major(shape: Sequence[int], element_bits: int, span_bytes: int = 128) -> SharedLayout:
    """Return a row-major layout in which 8 rows of 16 bytes, and 16-byte pieces of a row, are free of conflicts.

    Parameters
    ----------
    shape : sequence of int
        The tile's shape; the last dimension is contiguous.
    element_bits : int
        The width of an element: a divisor of 128 that is a power of two.
    span_bytes : {32, 64, 128}
        How many bytes of a row the swizzle permutes; the widest span that divides the row is free of
        conflicts. A row longer than the span is cut into columns of span width, which are kept one after
        another.
    """
    shape = tuple(shape)
    if span_bytes not in (32, 64, 128):
        raise LayoutError(f"expected a swizzle span of 32, 64 or 128 bytes, found {span_bytes}")
    chunk = chunk_elements(element_bits)
    span = span_bytes // 16 * chunk
    if not shape or shape[-1] % span:
        raise LayoutError(
            f"rows of a {format_shape(shape)} tile of {element_bits}-bit elements are not made of {span_bytes}-byte "
            f"spans ({span} elements); use a narrower span or pad the rows"
        )
    rows = prod(shape[:-1])
    outer_steps = row_strides(shape[:-1])
    digits = [
        Digit(n, dim, step * span) for dim, (n, step) in enumerate(zip(shape, outer_steps, strict=False))
    ]
    last = len(shape) - 1
    digits += [Digit(shape[-1] // span, last, rows * span), Digit(span, last, 1)]
    return SharedLayout(shape, tuple(digits), span_swizzle(span_bytes, element_bits))


def chunk_elements(element_bits: int) -> int:
    """Return how many elements 16 bytes hold."""
    if element_bits < 1 or 128 % element_bits:
        raise LayoutError(
            f"16 bytes do not hold a whole number of {element_bits}-bit elements; "
            f"lay the tile out as bytes and view it as the narrower type"
        )
    return 128 // element_bits


def span_swizzle(span_bytes: int, element_bits: int) -> Swizzle:
    """Return the hardware's 32, 64 or 128-byte swizzle, in units of elements."""
    bits = {32: 1, 64: 2, 128: 3}[span_bytes]
    return Swizzle(bits, chunk_elements(element_bits).bit_length() - 1, 3)


def _product_swizzle(outer: SharedLayout, inner: SharedLayout) -> Swizzle | None:
    if outer.swizzle is not None and inner.swizzle is not None:
        raise LayoutError(
            "cannot multiply two swizzled shared layouts; apply one swizzle to the product instead"
        )
    if inner.swizzle is not None:
        if outer.elements > 1 and inner.size % inner.swizzle.period:
            raise LayoutError(
                f"a tile of {inner.size} elements is not a multiple of the period of {inner.swizzle.period} elements "
                f"of its swizzle, so it cannot be repeated; give it a larger size"
            )
        return inner.swizzle
    if outer.swizzle is not None:
        if inner.size & (inner.size - 1):
            raise LayoutError(
                f"a swizzled layout of tiles needs tiles whose size is a power of two, found {inner.size} elements"
            )
        return outer.swizzle.rescaled(inner.size.bit_length() - 1)
    return None


def _check_digits(shape: tuple[int, ...], digits: Digits) -> None:
    sizes = [1] * len(shape)
    for digit in digits:
        if digit.dim is None or not 0 <= digit.dim < len(shape):
            raise LayoutError(f"digit {digit} of a shared layout names no dimension of its {len(shape)}")
        if digit.size < 1 or digit.stride < 0:
            raise LayoutError(f"digit {digit} of a shared layout has a size below 1 or a negative stride")
        sizes[digit.dim] *= digit.size
    for dim, (found, extent) in enumerate(zip(sizes, shape, strict=True)):
        if found != extent:
            raise LayoutError(
                f"the digits of dimension {dim} of a shared layout cover {found} indices, not {extent}"
            )


def _rename(digits: Digits, place: dict[int, int]) -> Digits:
    return tuple(Digit(d.size, None if d.dim is None else place[d.dim], d.stride) for d in digits)
