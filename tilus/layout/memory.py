"""The memory offset of each element of each thread, split into what a thread and what an element adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilus.layout.errors import LayoutError
from tilus.layout.global_ import GlobalLayout, Monomial
from tilus.layout.register import Digit, Digits, RegisterLayout, format_shape
from tilus.layout.shared import SharedLayout
from tilus.layout.swizzle import Swizzle

Memory = SharedLayout | GlobalLayout | Sequence[int]


@dataclass(frozen=True)
class Piece:
    """A digit of a thread or element number that moves through memory with one stride.

    Parameters
    ----------
    size : int
        How many values the digit takes.
    weight : int
        The digit is ``number // weight % size``.
    stride : int
        What one step adds to the memory offset, in elements.
    known : bool
        Whether ``stride`` is the stride itself; otherwise the stride is some multiple of it.
    """

    size: int
    weight: int
    stride: int
    known: bool = True

    def value(self, number: int) -> int:
        """Return what a thread or element number adds to the memory offset through this digit."""
        return number // self.weight % self.size * self.stride


@dataclass(frozen=True)
class Decomposition:
    """The memory offsets of a register layout: the sum of the pieces' values, then the swizzle."""

    threads: tuple[Piece, ...]
    elements: tuple[Piece, ...]
    swizzle: Swizzle | None

    def thread_offset(self, thread: int) -> int:
        """Return what a thread adds before the swizzle."""
        return sum(piece.value(thread) for piece in self.threads)

    def element_offset(self, element: int) -> int:
        """Return what an element adds before the swizzle."""
        return sum(piece.value(element) for piece in self.elements)


def decompose(
    layout: RegisterLayout, memory: Memory, multiples: Mapping[str, int] | None = None
) -> Decomposition | None:
    """Split every digit of a register layout at the digits of the memory's layout.

    Parameters
    ----------
    layout : RegisterLayout
        The registers' side.
    memory : SharedLayout, GlobalLayout or sequence of int
        The memory's side; integers are the strides of the dimensions.
    multiples : mapping, optional
        For symbols of a global layout, integers that are known to divide them.

    Returns
    -------
    Decomposition or None
        None where a digit would be split between two digits of the other side that do not fit each other, so
        that a thread's and an element's share of the offset cannot be told apart.
    """
    chains = _memory_chains(layout, memory, multiples or {})
    threads = _split(layout.spatial_digits, chains)
    elements = _split(layout.local_digits, chains)
    if threads is None or elements is None:
        return None
    swizzle = memory.swizzle if isinstance(memory, SharedLayout) else None
    if swizzle is not None:
        furthest = sum((piece.size - 1) * piece.stride for piece in threads + elements)
        if furthest < 1 << (swizzle.base + swizzle.shift):
            swizzle = None
    return Decomposition(threads, elements, swizzle)


def offsets(
    layout: RegisterLayout,
    memory: SharedLayout | Sequence[int],
    threads: Sequence[int] | None = None,
    elements: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return memory offsets, in elements: a row for each thread, and in it one for each element; by default all."""
    threads = range(layout.threads) if threads is None else threads
    elements = range(layout.elements) if elements is None else elements
    parts = decompose(layout, memory)
    if parts is None:
        assert isinstance(memory, SharedLayout), "strides always decompose"
        return [[memory.offset(layout.index(thread, e)) for e in elements] for thread in threads]
    firsts = piece_values(parts.threads, layout.threads)
    constants = piece_values(parts.elements, layout.elements)
    chosen = [constants[element] for element in elements]
    table = [[firsts[thread] + constant for constant in chosen] for thread in threads]
    if parts.swizzle is None:
        return table
    shift, mask = parts.swizzle.shift, parts.swizzle.mask
    return [[offset ^ (offset >> shift & mask) for offset in row] for row in table]


def piece_values(pieces: Sequence[Piece], count: int) -> list[int]:
    """Return the sum of the pieces' values for every number below ``count``."""
    values = [0]
    for piece in sorted(pieces, key=lambda piece: piece.weight):
        values = values * (piece.weight // len(values))
        values = [
            step + value for step in range(0, piece.size * piece.stride, piece.stride) for value in values
        ]
    return values * (count // len(values))


def reachable_bits(pieces: Sequence[Piece]) -> int:
    """Return a mask of the bits that some sum of the pieces' values has set (perhaps with more bits)."""
    mask = 0
    for piece in pieces:
        bits = 0
        for value in range(piece.size):
            bits |= value * piece.stride
        if bits & mask:
            furthest = sum((piece.size - 1) * piece.stride for piece in pieces)
            return (1 << furthest.bit_length()) - 1
        mask |= bits
    return mask


Chain = tuple[tuple[int, int, bool], ...]  # (size, stride, known), from the least significant digit


def _memory_chains(layout: RegisterLayout, memory: Memory, multiples: Mapping[str, int]) -> list[Chain]:
    if isinstance(memory, SharedLayout):
        if memory.shape != layout.shape:
            raise LayoutError(
                f"a register layout of a {format_shape(layout.shape)} tile does not fit a shared layout of a "
                f"{format_shape(memory.shape)} tile; slice or reshape one of them"
            )
        return [tuple((d.size, d.stride, True) for d in reversed(chain)) for chain in memory.chains]
    strides = memory.strides if isinstance(memory, GlobalLayout) else tuple(memory)
    if len(strides) != layout.rank:
        raise LayoutError(
            f"a register layout of rank {layout.rank} does not fit memory with {len(strides)} strides"
        )
    chains: list[Chain] = []
    for extent, stride in zip(layout.shape, strides, strict=True):
        monomial = Monomial.of(stride)
        chains.append(((extent, monomial.divisor(multiples), not monomial.symbols),))
    return chains


def _split(digits: Digits, chains: list[Chain]) -> tuple[Piece, ...] | None:
    pieces: list[Piece] = []
    weight = 1
    for digit in reversed(digits):
        if digit.dim is not None:
            found = _split_digit(digit, weight, chains[digit.dim])
            if found is None:
                return None
            pieces.extend(found)
        weight *= digit.size
    return tuple(pieces)


def _split_digit(digit: Digit, weight: int, chain: Chain) -> list[Piece] | None:
    pieces: list[Piece] = []
    start, left = digit.stride, digit.size
    unit = 1
    for size, stride, known in chain:
        end = unit * size
        if left > 1 and unit <= start < end:
            if start % unit or end % start:
                return None
            here = min(left, end // start)
            if left % here:
                return None
            pieces.append(Piece(here, weight, start // unit * stride, known))
            weight *= here
            start *= here
            left //= here
        unit = end
    return pieces if left == 1 else None
