"""Casts between any two dtypes: packed fast paths from a table, and the general path, exact for every code."""

from __future__ import annotations

from functools import lru_cache

from tilus import dtypes
from tilus.codegen.casts.arrangement import Arrangement, element_order
from tilus.codegen.casts.decode import decode, lookup
from tilus.codegen.casts.encode import encode
from tilus.codegen.casts.general import cast_at_random, cast_element
from tilus.codegen.casts.packed import multiply, permute_bytes
from tilus.codegen.casts.rows import (
    FastCast,
    best_cast,
    biased_cast,
    exact_in_float16,
    fast_casts,
    integer_exponent,
)
from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.codegen.registers import container_count, pack, unpack
from tilus.codegen.target import TARGETS, Target
from tilus.dtypes import DType
from tilus.errors import TypeMismatch

# Instructions per element that move 16-bit elements to another order.
_REORDERING = 0.5


def cast_elements(
    w: Writer,
    target: Target,
    source: DType,
    dest: DType,
    regs: tuple[V, ...],
    count: int,
    order: Arrangement | tuple[int, ...] | None = None,
) -> tuple[V, ...]:
    """Return containers of `dest` for `count` elements in containers of `source`, which stay as they are.

    Parameters
    ----------
    w : Writer
    target : Target
    source, dest : DType
        Any two types.
    regs : tuple of V
        The source's containers.
    count : int
        Elements.
    order : Arrangement or tuple of int, optional
        How the source's elements lie in each group of words: as `preferred_arrangement` or `preferred_order` says, or
        any other order of whole elements. By default they lie in natural order. The result always does.

    Raises
    ------
    TypeMismatch
        If the elements are no whole groups of the order.
    """
    if source == dest and order is None:
        return regs
    if isinstance(order, tuple):
        order = element_order(source.bits, order)
    if order is not None and (order.bits != source.bits or count % order.elements):
        raise TypeMismatch(
            f"an order of {order.elements} elements of {order.bits} bits does not fit {count} elements of {source}",
            hint="keep a multiple of the order's elements in each thread",
        )
    row = best_cast(target, source, dest, order)
    if order is None:
        reordered = _cheapest_order(target, source, dest)
        if reordered is not None and (row is None or reordered.cost + _REORDERING < row.cost):
            return _reordered(w, reordered, regs, count)
    if row is not None:
        return _by_groups(w, row, regs, count)
    if dest in (dtypes.float32, dtypes.tfloat32) and exact_in_float16(source):
        row = best_cast(target, source, dtypes.float16, order)
        if row is not None:
            halves = unpack(w, dtypes.float16, _by_groups(w, row, regs, count), count)
            return tuple(w.convert("fpext", half, "float") for half in halves)
    if source in (dtypes.float16, dtypes.bfloat16) and order is None:
        row = best_cast(target, dtypes.float32, dest, None)
        if row is not None:
            wide = tuple(w.convert("fpext", x, "float") for x in unpack(w, source, regs, count))
            return _by_groups(w, row, wide, count)
    if order is None:
        elements = unpack(w, source, regs, count)
        return pack(w, dest, [cast_element(w, target, source, dest, e) for e in elements])
    return cast_elements(w, target, source, dest, _natural(w, order, source, regs, count), count)


def preferred_arrangement(target: Target, source: DType, dest: DType) -> Arrangement | None:
    """Return how elements are best stored for `cast_elements` on a target; None if natural order is as good."""
    for row in fast_casts(source, dest):
        if target.has(row.feature) and not row.exponent and not row.finite:
            return row.arrangement
    return None


def stored_arrangement(source: DType, dest: DType) -> Arrangement | None:
    """Return how codes are stored for casts to `dest`: the same for all targets, so that weights are packed once."""
    for row in fast_casts(source, dest):
        if TARGETS["sm_80"].has(row.feature):
            return row.arrangement
    return None


@lru_cache(maxsize=1024)
def stored_exponent(source: DType, dest: DType, target: Target) -> int:
    """Return the exponent e with which the cast of stored codes costs least: the results are values / 2**e."""
    if dest == dtypes.int8 and not source.is_integer:
        return -(integer_exponent(source) or 0)
    row = best_cast(target, source, dest, stored_arrangement(source, dest), scaled=True, finite=True)
    return 0 if row is None else row.exponent


def cast_stored(
    w: Writer, target: Target, source: DType, dest: DType, regs: tuple[V, ...], count: int, exponent: int = 0,
    biased: bool = False,
) -> tuple[V, ...]:  # fmt: skip
    """Return containers of `dest` for codes that are stored as `stored_arrangement` says, all of them finite.

    Parameters
    ----------
    w, target, source, dest, regs, count
        As for `cast_elements`.
    exponent : int
        The results are the values divided by ``2**exponent``; `stored_exponent` is the one that costs least.
    biased : bool
        Leave in each result the offset that `biased_cast` speaks of; without an exponent.
    """
    order = stored_arrangement(source, dest)
    packed = dest in (dtypes.float16, dtypes.bfloat16)
    if order is not None and count % order.elements:
        raise TypeMismatch(
            f"codes of {source} are stored in groups of {order.elements} for a cast to {dest}, and {count} are no "
            "whole groups",
            hint="keep a multiple of the group's elements in each thread",
        )
    if biased:
        kept = biased_cast(source, dest)
        if kept is None or exponent:
            raise TypeMismatch(
                f"no cast of {source} to {dest} over 2**{exponent} leaves an offset in what it makes",
                hint="biased=False; `tilus.codegen.casts.biased_cast` tells where there is one",
            )
        return _by_groups(w, kept, regs, count)
    best: tuple[float, FastCast] | None = None
    for row in fast_casts(source, dest):
        if row.arrangement == order and target.has(row.feature) and (packed or row.exponent == exponent):
            cost = row.cost + (0.5 if row.exponent != exponent else 0.0)
            if best is None or cost < best[0]:
                best = cost, row
    if best is not None:
        left, made = best[1].exponent - exponent, _by_groups(w, best[1], regs, count)
    elif exponent and dest == dtypes.int8 and exponent == -(integer_exponent(source) or 0):
        # Of the general path the power of two takes a multiplication.
        floats = cast_elements(w, target, source, dtypes.float32, regs, count, order)
        wide = unpack(w, dtypes.float32, floats, count)
        scaled = [w.binary("fmul", x, floating(2.0**-exponent, "float")) for x in wide]
        packed_wide = pack(w, dtypes.float32, scaled)
        left, made = 0, cast_elements(w, target, dtypes.float32, dest, packed_wide, count)
    else:
        left, made = -exponent, cast_elements(w, target, source, dest, regs, count, order)
    if not left:
        return made
    if not packed:
        raise TypeMismatch(
            f"a cast of {source} to {dest} leaves no power of two out", hint="exponent=0, or stored_exponent"
        )
    for step in _steps(dest, left):
        made = tuple(multiply(w, dest, word, 2.0**step) for word in made)
    return made


def _steps(dest: DType, exponent: int) -> tuple[int, ...]:
    """Return exponents of normal numbers that add up to one."""
    most = 15 if dest == dtypes.float16 else 127
    return (exponent,) if -most < exponent <= most else (exponent // 2, exponent - exponent // 2)


def preferred_order(source: DType, dest: DType, target: Target | None = None) -> tuple[int, ...] | None:
    """Return the element to store at each position of a group, for the cast that needs no reordering.

    None if natural order is as good, or if the best arrangement moves bits of an element apart (see
    `preferred_arrangement`). Without a target, the cast that every target with 16-bit floats has.
    """
    for row in fast_casts(source, dest):
        known = target.has(row.feature) if target is not None else row.feature in ("", "bf16_arithmetic")
        if known and not row.exponent and not row.finite:
            return row.arrangement.order if row.arrangement is not None else None
    return None


def cast_cost(
    target: Target,
    source: DType,
    dest: DType,
    order: Arrangement | tuple[int, ...] | None = None,
    scaled: bool = False,
) -> float | None:
    """Return instructions per element of the packed cast; None where there is none for this order."""
    if isinstance(order, tuple):
        order = element_order(source.bits, order)
    row = best_cast(target, source, dest, order, scaled)
    return row.cost if row is not None else None


def _by_groups(w: Writer, row: FastCast, regs: tuple[V, ...], count: int) -> tuple[V, ...]:
    made: list[V] = []
    for first in range(0, len(regs), row.words):
        words = list(regs[first : first + row.words])
        nothing = floating(0.0, "float") if row.source == dtypes.float32 else integer(0)
        words += [nothing] * (row.words - len(words))
        made += row.emit(w, words)
    return tuple(made[: container_count(row.dest, count)])


def _cheapest_order(target: Target, source: DType, dest: DType) -> FastCast | None:
    for row in fast_casts(source, dest):
        ordered = row.arrangement is not None and row.arrangement.order is not None
        if ordered and target.has(row.feature) and not row.exponent and not row.finite:
            return row
    return None


def _reordered(w: Writer, row: FastCast, regs: tuple[V, ...], count: int) -> tuple[V, ...]:
    """Cast elements in natural order with a cast for another order, and move what comes out."""
    assert row.arrangement is not None
    assert row.arrangement.order is not None
    order, bits = row.arrangement.order, row.dest.bits
    made = list(_by_groups(w, row, regs, -(-count // row.elements) * row.elements))
    per = 32 // bits
    out = []
    for first in range(0, count, per):
        group = first // row.elements * row.elements
        places = [group + order[(first + i) % row.elements] for i in range(per)]
        out.append(_collect(w, made, places, bits))
    return tuple(out)


def _collect(w: Writer, words: list[V], places: list[int], bits: int) -> V:
    """Return a word of elements at places in words, by byte permutations of two words at a time."""
    size, per = bits // 8, 32 // bits
    result: V | None = None
    pending = list(range(per))
    while pending:
        sources = list(dict.fromkeys(places[i] // per for i in pending))[: 2 if result is None else 1]
        selectors = [0, 1, 2, 3]
        done = []
        for i in pending:
            number = places[i] // per
            if number in sources:
                base = 4 * sources.index(number) if result is None else 4
                for byte in range(size):
                    selectors[i * size + byte] = base + places[i] % per * size + byte
                done.append(i)
        a = words[sources[0]] if result is None else result
        b = words[sources[-1]]
        s0, s1, s2, s3 = selectors
        result = permute_bytes(w, a, b, (s0, s1, s2, s3))
        pending = [i for i in pending if i not in done]
    assert result is not None
    return result


def _natural(w: Writer, order: Arrangement, source: DType, regs: tuple[V, ...], count: int) -> tuple[V, ...]:
    """Return containers in natural order, bit by bit unless whole elements moved."""
    if order.order is not None:
        elements = unpack(w, source, regs, count)
        place = {element: position for position, element in enumerate(order.order)}
        group = order.elements
        return pack(w, source, [elements[i // group * group + place[i % group]] for i in range(count)])
    out = []
    for first in range(0, len(regs), order.words):
        words = [w.binary("xor", reg, integer(flip)) for reg, flip in zip(regs[first:], order.flip)]
        moved: list[V] = [integer(0)] * order.words
        # All bits that move by the same distance between the same words go together.
        moves: dict[tuple[int, int, int], int] = {}
        for stored, natural in enumerate(order.places):
            key = (stored // 32, natural // 32, stored % 32 - natural % 32)
            moves[key] = moves.get(key, 0) | 1 << stored % 32
        for (origin, to, shift), mask in moves.items():
            bits = w.binary("and", words[origin], integer(mask))
            bits = w.binary("lshr" if shift >= 0 else "shl", bits, integer(abs(shift)))
            moved[to] = w.binary("or", moved[to], bits)
        out += moved
    return tuple(out)


__all__ = [
    "Arrangement", "FastCast", "best_cast", "biased_cast", "cast_at_random", "cast_cost", "cast_element",
    "cast_elements", "cast_stored", "decode", "element_order", "encode", "fast_casts", "integer_exponent", "lookup",
    "preferred_arrangement", "preferred_order", "stored_arrangement", "stored_exponent",
]  # fmt: skip
