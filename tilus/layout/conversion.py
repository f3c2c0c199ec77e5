"""The plan for bringing a tile from one register layout into another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations
from math import gcd, prod

from tilus.layout.analysis import WARP, AccessCost, bank_conflicts, lanes_per_pass, vector_width
from tilus.layout.errors import LayoutError
from tilus.layout.memory import Piece
from tilus.layout.register import Digit, Digits, RegisterLayout, format_shape, row_strides
from tilus.layout.shared import SharedLayout
from tilus.layout.swizzle import Swizzle

# What a warp pays, in issue slots: a shuffle serves a warp in two; barriers before and after the tile is in
# shared memory stall about as long as this many instructions.
SHUFFLE_COST = 2
SELECT_COST = 1
BARRIER_COST = 40


@dataclass(frozen=True)
class Affine:
    """A function of the thread number: ``constant`` plus the sum of ``thread // weight % size * stride``."""

    terms: tuple[Piece, ...]
    constant: int

    def __call__(self, thread: int) -> int:
        """Return the value for a thread."""
        return self.constant + sum(term.value(thread) for term in self.terms)


@dataclass(frozen=True)
class NoConversion:
    """The layouts are the same function."""

    kind = "none"
    cost = 0


@dataclass(frozen=True)
class RegisterConversion:
    """Each thread has what it needs.

    Parameters
    ----------
    sources : tuple of int
        For each element of the destination, the element of the source that it takes, in every thread.
    """

    sources: tuple[int, ...]
    kind = "registers"
    cost = 0


@dataclass(frozen=True)
class ShuffleStep:
    """Where one element of the destination comes from.

    Parameters
    ----------
    thread : Affine
        The thread that holds it, of the same warp.
    element : Affine
        The element of that thread's source tile, as a function of the *receiving* thread.
    candidates : tuple of int
        Every value that ``element`` takes: shuffle each of them and select where there is more than one.
    is_local : bool
        Whether every thread already holds its element, so that a selection is enough.
    """

    thread: Affine
    element: Affine
    candidates: tuple[int, ...]
    is_local: bool


@dataclass(frozen=True)
class ShuffleConversion:
    """Each thread finds what it needs within its warp.

    Parameters
    ----------
    steps : tuple of ShuffleStep
        For each word of the destination.
    cost : int
        In issue slots of a warp.
    pack : int
        How many neighbouring elements make a word; the elements that steps name are counted in words, too.
    """

    steps: tuple[ShuffleStep, ...]
    cost: int
    pack: int = 1
    kind = "shuffle"


@dataclass(frozen=True)
class SharedConversion:
    """Through shared memory: store, barrier, load.

    Parameters
    ----------
    layout : SharedLayout
        Where the tile lies meanwhile.
    store_vector, load_vector : int
        How many elements each access moves.
    store, load : AccessCost
        The wavefronts of either side.
    cost : int
        In issue slots of a warp.
    """

    layout: SharedLayout
    store_vector: int
    load_vector: int
    store: AccessCost
    load: AccessCost
    cost: int
    kind = "shared"


Plan = NoConversion | RegisterConversion | ShuffleConversion | SharedConversion


@lru_cache(maxsize=512)
def plan_conversion(
    source: RegisterLayout,
    target: RegisterLayout,
    element_bits: int = 32,
    allow_shuffle: bool = True,
    max_pack: int = 1,
) -> Plan:
    """Find the cheapest way to bring a tile from one register layout into another.

    Parameters
    ----------
    source, target : RegisterLayout
        Layouts of the same shape over the same number of threads.
    element_bits : int
        The width of an element as it is moved.
    allow_shuffle : bool
        Whether shuffles may be used.
    max_pack : int
        How many neighbouring elements of a thread one shuffle may move, at most and where they stay together.
    """
    if source.shape != target.shape or source.threads != target.threads:
        raise LayoutError(
            f"cannot convert a {format_shape(source.shape)} tile over {source.threads} threads into a "
            f"{format_shape(target.shape)} tile over {target.threads}; shapes and threads must agree"
        )
    if source == target:
        return NoConversion()
    steps = _steps(source, target)
    if steps is not None and all(step.is_local and len(step.candidates) == 1 for step in steps):
        return RegisterConversion(tuple(step.candidates[0] for step in steps))
    if steps is None:
        sources = _register_sources(source, target)
        if sources is not None:
            return RegisterConversion(sources)
    shared = plan_shared(source, target, element_bits)
    if allow_shuffle and steps is not None:
        pack = _common_run(source, target, max_pack)
        steps = [_in_words(step, pack) for step in steps[::pack]]
        cost = _shuffle_cost(steps, element_bits * pack)
        if cost <= shared.cost and _within_warps(steps, target.threads):
            return ShuffleConversion(tuple(steps), cost, pack)
    return shared


def plan_shared(source: RegisterLayout, target: RegisterLayout, element_bits: int) -> SharedConversion:
    """Choose the shared layout, among row-major, padded and swizzled ones, with the fewest wavefronts."""
    best: tuple[tuple[int, int, int], SharedLayout] | None = None
    limit = max(1, 128 // element_bits)
    candidates = _shared_candidates(source, target, element_bits)
    # With these, no candidate is better: the widest vectors that any order of the dimensions gives, no conflicts.
    plain = [_plain(source.shape, order) for order in _orders(source, target)]
    ideal = 0
    for layout in (source, target):
        accesses = layout.elements // max(vector_width(layout, memory, limit) for memory in plain)
        bits = element_bits * (layout.elements // accesses)
        ideal += accesses * (1 + -(-min(WARP, layout.threads) // lanes_per_pass(bits)))
    for order, candidate in enumerate(candidates):
        wave = 0
        for layout in (source, target):
            vector = vector_width(layout, candidate, limit)
            few = bank_conflicts(layout, candidate, element_bits, vector, sample=2)
            accesses = layout.elements // vector
            wave += few.count * accesses // few.accesses + accesses
        rank = (wave, candidate.size, order)
        if best is None or rank < best[0]:
            best = rank, candidate
            if wave <= ideal and candidate.size == source.size:
                break
    assert best is not None
    shared = best[1]
    store_vector = vector_width(source, shared, limit)
    load_vector = vector_width(target, shared, limit)
    store = bank_conflicts(source, shared, element_bits, store_vector)
    load = bank_conflicts(target, shared, element_bits, load_vector)
    warps = -(-source.threads // WARP)
    accesses = source.elements // store_vector + target.elements // load_vector
    cost = (store.count + load.count) // warps + accesses + BARRIER_COST
    return SharedConversion(shared, store_vector, load_vector, store, load, cost)


# Moves within a warp.


def _steps(source: RegisterLayout, target: RegisterLayout) -> list[ShuffleStep] | None:
    """Return, for each element of the target, where it comes from; None where digits do not fit each other."""
    cuts = common_boundaries(source, target)
    if cuts is None:
        return None
    from_threads = _weights(source.spatial_digits, cuts)
    from_elements = _weights(source.local_digits, cuts)
    to_threads = _weights(target.spatial_digits, cuts)
    to_elements = _weights(target.local_digits, cuts)
    thread_terms: list[Piece] = []
    element_terms: list[Piece] = []
    thread_parts: list[Piece] = []
    element_parts: list[Piece] = []
    for key, (size, weight) in to_threads.items():
        if key in from_threads:
            thread_terms.append(Piece(size, weight, from_threads[key][1]))
        else:
            element_terms.append(Piece(size, weight, from_elements[key][1]))
    for key, (size, weight) in to_elements.items():
        if key in from_threads:
            thread_parts.append(Piece(size, weight, from_threads[key][1]))
        else:
            element_parts.append(Piece(size, weight, from_elements[key][1]))
    # Of several copies, take the one that is nearest: replication digits keep the thread's own value.
    weight = 1
    for digit in reversed(source.spatial_digits):
        if digit.dim is None:
            thread_terms.append(Piece(digit.size, weight, weight))
        weight *= digit.size
    offsets = [0]
    for term in element_terms:
        offsets = [offset + value * term.stride for offset in offsets for value in range(term.size)]
    covered = prod(term.size for term in thread_terms)
    stays = covered == target.threads and all(term.weight == term.stride for term in thread_terms)
    steps = []
    for element in range(target.elements):
        first = sum(part.value(element) for part in element_parts)
        steps.append(
            ShuffleStep(
                Affine(tuple(thread_terms), sum(part.value(element) for part in thread_parts)),
                Affine(tuple(element_terms), first),
                tuple(sorted(first + offset for offset in offsets)),
                stays,
            )
        )
    return steps


def _register_sources(source: RegisterLayout, target: RegisterLayout) -> tuple[int, ...] | None:
    """Compare all threads and elements, for layouts whose digits do not fit each other."""
    sources: list[int] = []
    for thread in range(target.threads):
        for element in range(target.elements):
            places = source.locate(target.index(thread, element))
            here = next((e for holder, e in places if holder == thread), None)
            if here is None:
                return None
            if thread == 0:
                sources.append(here)
            elif sources[element] != here:
                return None
    return tuple(sources)


def _common_run(source: RegisterLayout, target: RegisterLayout, max_pack: int) -> int:
    """Return how many neighbouring elements of the target are neighbours in the source, in the same order."""
    if not source.local_digits or not target.local_digits:
        return 1
    a, b = source.local_digits[-1], target.local_digits[-1]
    return gcd(a.size, b.size, max_pack) if (a.dim, a.stride) == (b.dim, b.stride) else 1


def _in_words(step: ShuffleStep, pack: int) -> ShuffleStep:
    terms = tuple(Piece(term.size, term.weight, term.stride // pack) for term in step.element.terms)
    element = Affine(terms, step.element.constant // pack)
    return ShuffleStep(step.thread, element, tuple(c // pack for c in step.candidates), step.is_local)


def _shuffle_cost(steps: Sequence[ShuffleStep], word_bits: int) -> int:
    moved = {(step.thread, candidate) for step in steps if not step.is_local for candidate in step.candidates}
    selects = sum(len(step.candidates) - 1 for step in steps)
    registers = -(-word_bits // 32)
    return registers * (SHUFFLE_COST * len(moved) + SELECT_COST * selects)


def _within_warps(steps: Sequence[ShuffleStep], threads: int) -> bool:
    functions = {step.thread for step in steps}
    return all(f(thread) // WARP == thread // WARP for f in functions for thread in range(threads))


def common_boundaries(a: RegisterLayout, b: RegisterLayout) -> list[list[int]] | None:
    """Return, for each dimension, the strides at which digits of either layout begin, and the extent.

    None where the digits of the two layouts do not fit each other.
    """
    result = []
    for dim, extent in enumerate(a.shape):
        cuts = {digit.stride for digit in a.chain(dim) + b.chain(dim)} | {1, extent}
        ordered = sorted(cuts)
        if any(high % low for low, high in pairwise(ordered)):
            return None
        result.append(ordered)
    return result


def _weights(digits: Digits, cuts: list[list[int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return, for each (dim, stride) of the digits split at the cuts, its size and weight in the number."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    weight = 1
    for digit in reversed(digits):
        if digit.dim is not None:
            end = digit.stride * digit.size
            inside = [cut for cut in cuts[digit.dim] if digit.stride <= cut <= end]
            for low, high in pairwise(inside):
                found[digit.dim, low] = (high // low, weight * (low // digit.stride))
        weight *= digit.size
    return found


# Shared layouts to choose from.


def _shared_candidates(
    source: RegisterLayout, target: RegisterLayout, element_bits: int
) -> Iterator[SharedLayout]:
    word = max(1, 32 // element_bits)
    chunk = max(1, 128 // element_bits)
    for order in _orders(source, target):
        plain = _plain(source.shape, order)
        yield plain
        for swizzle in _swizzles(source.size, element_bits, word, chunk):
            yield plain.with_swizzle(swizzle)
        for padding in sorted({word, 2 * word, chunk, 2 * chunk}):
            yield _plain(source.shape, order, padding)


def _plain(shape: tuple[int, ...], order: Sequence[int], padding: int = 0) -> SharedLayout:
    """Return the layout with dimensions in ``order``, slowest first, and rows that are ``padding`` apart."""
    extents = [shape[dim] for dim in order]
    steps = row_strides(extents)
    if padding and extents:
        steps = (*(step // extents[-1] * (extents[-1] + padding) for step in steps[:-1]), 1)
    digits = (Digit(extent, dim, step) for extent, dim, step in zip(extents, order, steps, strict=True))
    return SharedLayout(shape, tuple(digits))


def _swizzles(size: int, element_bits: int, word: int, chunk: int) -> Iterator[Swizzle]:
    """Yield the swizzles that spread words, pairs of words or 16 bytes over all banks."""
    line = (1024 // element_bits).bit_length() - 1
    top = size.bit_length() - 1
    for unit in sorted({word, 2 * word, chunk}, reverse=True):
        base = unit.bit_length() - 1
        bits = min(line, top) - base
        for shift in range(max(bits, 1), top - base + 1):
            if bits > 0:
                yield Swizzle(bits, base, shift)


def _orders(source: RegisterLayout, target: RegisterLayout) -> list[tuple[int, ...]]:
    """Return orders of the dimensions, slowest first: all for few dimensions, else those the layouts suggest."""
    rank = source.rank
    if rank <= 2:
        return list(permutations(range(rank)))
    orders = [tuple(range(rank))]
    for layout in (source, target):
        innermost = [d.dim for d in layout.local_digits + layout.spatial_digits if d.stride == 1]
        for dim in innermost:
            if dim is not None:
                order = (*(d for d in range(rank) if d != dim), dim)
                if order not in orders:
                    orders.append(order)
    return orders
