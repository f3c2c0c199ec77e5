"""What a memory access of a register layout costs: vector width, addresses, bank conflicts, coalescing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import gcd

from tilus.layout.errors import LayoutError
from tilus.layout.memory import Decomposition, Memory, Piece, decompose, offsets, piece_values, reachable_bits
from tilus.layout.register import RegisterLayout
from tilus.layout.shared import SharedLayout
from tilus.layout.swizzle import Swizzle

WARP = 32
BANKS = 32
BANK_BITS = 32
SECTOR_BITS = 256


@dataclass(frozen=True)
class Contiguity:
    """How each thread's elements lie next to each other in memory.

    Parameters
    ----------
    vector : int
        The length of the groups. Each starts at a memory offset that is a multiple of it, in every thread.
    groups : tuple of tuple of int
        The element numbers of each group in the order of memory; groups by their first element's number.
    """

    vector: int
    groups: tuple[tuple[int, ...], ...]


def contiguity(
    layout: RegisterLayout,
    memory: Memory,
    limit: int | None = None,
    multiples: Mapping[str, int] | None = None,
) -> Contiguity:
    """Find the widest vectors in which every thread can move its elements.

    Parameters
    ----------
    layout : RegisterLayout
        The registers' side.
    memory : SharedLayout, GlobalLayout or sequence of int
        The memory's side; integers are strides. The tile is taken to start at a multiple of the vector.
    limit : int, optional
        The groups' length divides this; for accesses of at most 16 bytes, pass 128 divided by the element's
        width.
    multiples : mapping, optional
        For symbols of a global layout, integers that are known to divide them.
    """
    parts = decompose(layout, memory, multiples)
    if parts is None:
        return Contiguity(1, tuple((element,) for element in range(layout.elements)))
    vector, place = _widest_vector(parts, layout.elements, limit)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for element in range(layout.elements):
        others, position = place(element)
        groups.setdefault((others, position // vector), []).append((position, element))
    ordered = sorted(tuple(element for _, element in sorted(group)) for group in groups.values())
    return Contiguity(vector, tuple(ordered))


def vector_width(
    layout: RegisterLayout,
    memory: Memory,
    limit: int | None = None,
    multiples: Mapping[str, int] | None = None,
) -> int:
    """Return the ``vector`` of `contiguity` alone."""
    parts = decompose(layout, memory, multiples)
    return 1 if parts is None else _widest_vector(parts, layout.elements, limit)[0]


# For an element, a number that its vector's elements share with no other's of the same position, and a position.
Place = Callable[[int], tuple[int, int]]


def _widest_vector(parts: Decomposition, elements: int, limit: int | None) -> tuple[int, Place]:
    if parts.swizzle is not None and not reachable_bits(parts.threads) & reachable_bits(parts.elements):
        return _widest_swizzled_vector(parts, parts.swizzle, elements, limit)
    reach = 1
    run: list[Piece] = []
    rest = list(parts.elements)
    while True:
        following = next((p for p in rest if p.known and p.stride == reach), None)
        if following is None:
            break
        rest.remove(following)
        run.append(following)
        reach *= following.size
    vector = reach if limit is None else gcd(reach, limit)
    for piece in (*rest, *parts.threads):
        vector = gcd(vector, piece.stride)
    if parts.swizzle is not None:
        changed = parts.swizzle.mask & (reachable_bits(parts.elements + parts.threads) >> parts.swizzle.shift)
        if changed:
            vector = gcd(vector, changed & -changed)

    inside = piece_values(run, elements)
    taken = piece_values([Piece(piece.size, piece.weight, piece.weight) for piece in run], elements)
    return vector, lambda element: (element - taken[element], inside[element])


def _widest_swizzled_vector(
    parts: Decomposition, swizzle: Swizzle, elements: int, limit: int | None
) -> tuple[int, Place]:
    """Find vectors where threads' and elements' bits are apart, so that both are swizzled on their own."""
    bits = reachable_bits(parts.threads)
    bits |= (bits >> swizzle.shift) & swizzle.mask
    places = [swizzle(offset) for offset in piece_values(parts.elements, elements)]
    held = set(places)
    vector = 1
    while 2 * vector <= elements and not bits & vector and (limit is None or limit % (2 * vector) == 0):
        if any(place ^ vector not in held for place in held):
            break
        vector *= 2
    return vector, lambda element: (0, places[element])


@dataclass(frozen=True)
class AffineOffsets:
    """Memory offsets in a form that is cheap to compute: ``(X(thread) ^ xors[element]) + adds[element]``.

    ``X(thread)`` is the sum of ``terms``, swizzled.

    Parameters
    ----------
    terms : tuple of Piece
        What the thread adds: the sum of ``thread // weight % size * stride``.
    swizzle : Swizzle or None
        Applied to that sum; None where it changes nothing.
    xors, adds : tuple of int
        For each element.
    """

    terms: tuple[Piece, ...]
    swizzle: Swizzle | None
    xors: tuple[int, ...]
    adds: tuple[int, ...]

    def thread_offset(self, thread: int) -> int:
        """Return ``X(thread)``."""
        linear = sum(piece.value(thread) for piece in self.terms)
        return linear if self.swizzle is None else self.swizzle(linear)

    def offset(self, thread: int, element: int) -> int:
        """Return the memory offset of an element of a thread."""
        return (self.thread_offset(thread) ^ self.xors[element]) + self.adds[element]


def affine_offsets(
    layout: RegisterLayout, memory: SharedLayout | Sequence[int], elements: Sequence[int] | None = None
) -> AffineOffsets | None:
    """Split the memory offsets of a register layout into a thread's and an element's share.

    Parameters
    ----------
    layout : RegisterLayout
        The registers' side.
    memory : SharedLayout or sequence of int
        The memory's side; integers are strides.
    elements : sequence of int, optional
        The elements whose offsets are wanted (the first ones of vectors, say); by default all. ``xors`` and
        ``adds`` are in this order.

    Returns
    -------
    AffineOffsets or None
        Exact for all threads; None where the shares cannot be told apart.
    """
    parts = decompose(layout, memory)
    if parts is None:
        return None
    wanted = range(layout.elements) if elements is None else elements
    numbers = piece_values(parts.elements, layout.elements)
    constants = [numbers[element] for element in wanted]
    if parts.swizzle is None:
        return AffineOffsets(parts.threads, None, (0,) * len(constants), tuple(constants))
    firsts = sorted(set(piece_values(parts.threads, layout.threads)))
    thread_bits = 0
    for first in firsts:
        thread_bits |= first
    swizzle = parts.swizzle
    deepest = max(first % swizzle.run for first in firsts)
    if not thread_bits & swizzle.source:
        # The swizzle leaves the threads' share as it is, which saves computing it.
        thread_swizzle = None
    else:
        thread_swizzle = swizzle
    placed = thread_bits | ((thread_bits >> swizzle.shift) & swizzle.mask)
    xors, adds = [], []
    for constant in constants:
        add = constant - constant % swizzle.period
        rest = constant - add
        if deepest + rest % swizzle.run < swizzle.run:
            add += rest % swizzle.run
            rest -= rest % swizzle.run
        if not rest & thread_bits:
            xor = swizzle(rest)
            add += xor & ~placed
            xor &= placed
        else:
            # Carries: the thread's share may still always move by the same distance.
            moves = {swizzle(first + rest) - swizzle(first) for first in firsts}
            if len(moves) > 1:
                return None
            xor = 0
            add += moves.pop()
        xors.append(xor)
        adds.append(add)
    return AffineOffsets(parts.threads, thread_swizzle, tuple(xors), tuple(adds))


@dataclass(frozen=True)
class AccessCost:
    """What the accesses of all warps cost, in wavefronts (shared memory) or sectors (global memory).

    Parameters
    ----------
    count : int
        The wavefronts or sectors, over all accesses.
    ideal : int
        The fewest that the same bytes could take.
    accesses : int
        The number of accesses (instructions times warps).
    worst : int
        The most that one access takes.
    """

    count: int
    ideal: int
    accesses: int
    worst: int

    @property
    def is_free(self) -> bool:
        """Whether no access takes more than the ideal."""
        return self.count == self.ideal

    @property
    def ratio(self) -> float:
        """How many times the ideal it takes."""
        return self.count / self.ideal


def wavefronts(addresses: Sequence[int], access_bits: int) -> int:
    """Return how many passes through the banks one access of a warp takes.

    Parameters
    ----------
    addresses : sequence of int
        For each lane, the address in bits.
    access_bits : int
        How many bits each lane moves.

    Notes
    -----
    There are 32 banks of 4 bytes, and lanes that touch the same word share it. A warp that moves more than
    128 bytes goes in groups of lanes that move 128 bytes each.
    """
    lanes = lanes_per_pass(access_bits)
    # Accesses of whole words at their own alignment fill groups of neighbouring banks alike.
    unit = max(access_bits, BANK_BITS)
    aligned = BANKS * BANK_BITS % unit == 0 and all(address % access_bits == 0 for address in addresses)
    aligned = aligned and unit % access_bits == 0
    total = 0
    for start in range(0, len(addresses), lanes):
        group = addresses[start : start + lanes]
        if aligned:
            units = {address // unit for address in group}
            banks = BANKS * BANK_BITS // unit
        else:
            units = {
                word
                for address in group
                for word in range(address // BANK_BITS, (address + access_bits - 1) // BANK_BITS + 1)
            }
            banks = BANKS
        load = [0] * banks
        for number in units:
            load[number % banks] += 1
        total += max(load)
    return total


def lanes_per_pass(access_bits: int) -> int:
    """Return how many lanes of a warp one pass through the banks serves."""
    return max(1, min(WARP, BANKS * BANK_BITS // max(access_bits, BANK_BITS)))


def bank_conflicts(
    layout: RegisterLayout,
    shared: SharedLayout,
    element_bits: int,
    vector: int = 1,
    sample: int | None = None,
) -> AccessCost:
    """Count the wavefronts of moving a tile between registers and shared memory.

    Parameters
    ----------
    layout : RegisterLayout
        The registers' side.
    shared : SharedLayout
        The memory's side.
    element_bits : int
        The width of an element.
    vector : int
        How many elements one access of a thread moves; see `contiguity`.
    sample : int, optional
        Count only the first accesses of the first warp, this many.
    """
    firsts = _vector_starts(layout, shared, vector)
    bits = element_bits * vector
    count = ideal = accesses = worst = 0
    for addresses in _lane_addresses(layout, shared, firsts, element_bits, sample):
        found = wavefronts(addresses, bits)
        count += found
        worst = max(worst, found)
        ideal += -(-len(addresses) // lanes_per_pass(bits))
        accesses += 1
    return AccessCost(count, ideal, accesses, worst)


def coalescing(
    layout: RegisterLayout, strides: Sequence[int], element_bits: int, vector: int = 1
) -> AccessCost:
    """Count the 32-byte sectors of moving a tile between registers and global memory.

    Parameters
    ----------
    layout : RegisterLayout
        The registers' side.
    strides : sequence of int
        The strides, in elements, of the dimensions in memory. The tile is taken to start at a sector.
    element_bits : int
        The width of an element.
    vector : int
        How many elements one access of a thread moves; see `contiguity`.
    """
    firsts = _vector_starts(layout, strides, vector)
    bits = element_bits * vector
    count = ideal = accesses = worst = 0
    for addresses in _lane_addresses(layout, strides, firsts, element_bits, None):
        sectors: set[int] = set()
        for address in addresses:
            sectors.update(range(address // SECTOR_BITS, (address + bits - 1) // SECTOR_BITS + 1))
        count += len(sectors)
        worst = max(worst, len(sectors))
        ideal += -(-len(set(addresses)) * bits // SECTOR_BITS)
        accesses += 1
    return AccessCost(count, ideal, accesses, worst)


def _vector_starts(layout: RegisterLayout, memory: Memory, vector: int) -> Iterator[int]:
    """Yield the first element of each vector."""
    parts = decompose(layout, memory)
    if vector == 1:
        yield from range(layout.elements)
        return
    found, place = (1, None) if parts is None else _widest_vector(parts, layout.elements, vector)
    if found != vector or place is None:
        raise LayoutError(
            f"elements of {layout} lie next to each other in memory in groups of {found}, "
            f"so they cannot be moved {vector} at a time"
        )
    for element in range(layout.elements):
        if place(element)[1] % vector == 0:
            yield element


def _lane_addresses(
    layout: RegisterLayout,
    memory: SharedLayout | Sequence[int],
    starts: Iterator[int],
    element_bits: int,
    sample: int | None,
) -> list[list[int]]:
    """Return, for each warp and access, the lanes' addresses in bits."""
    firsts = list(islice(starts, sample))
    threads = layout.threads if sample is None else min(layout.threads, WARP)
    table = offsets(layout, memory, range(threads), firsts)
    return [
        [row[access] * element_bits for row in table[start : start + WARP]]
        for start in range(0, threads, WARP)
        for access in range(len(firsts))
    ]
