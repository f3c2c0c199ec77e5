"""Where the bits of narrow elements lie in words so that masking a shifted word gives two or four elements at once.

A word is two lanes of 16 bits, or four of 8, and all is the same in each. A *slot* is a place in one lane of a
shifted word where a lane's element has its bits where the destination's format wants them, so that one masking
instruction takes out an element of each lane. Bits of a word in which no slot fits are put together with those of
other words first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from math import gcd

from tilus.codegen.casts.arrangement import Arrangement

LANE = 16
_FEW_SETS = 40
# Of a group of integers: half of what a thread holds of a unit of a packed weight.
_MOST_ELEMENTS = 64


@dataclass(frozen=True)
class Part:
    """Bits of a word, shifted right (left if negative), that a gathered word takes where the mask has ones."""

    word: int
    shift: int
    mask: int


@dataclass(frozen=True)
class Slot:
    """An element of each lane: code bit i lies at `places[i]` of the word shifted right (left if negative).

    An element that begins in one lane and ends in the next one is got by rotating the word instead.
    """

    word: int
    shift: int
    places: tuple[int, ...]

    @property
    def mask(self) -> int:
        """The slot's bits in a lane."""
        return sum(1 << place for place in self.places)


@dataclass(frozen=True)
class Plan:
    """How to take a group of elements apart: output t holds one element of each lane, the next ones of the group.

    Word numbers below `words` are those stored, the ones after them are gathered in order. A lane has `lane` bits.
    """

    bits: int
    words: int
    gathers: tuple[tuple[Part, ...], ...]
    slots: tuple[Slot, ...]
    lane: int = LANE

    @property
    def lanes(self) -> int:
        """Lanes of a word."""
        return 32 // self.lane

    @property
    def elements(self) -> int:
        """Elements of a group."""
        return self.lanes * len(self.slots)

    @property
    def rotated(self) -> frozenset[tuple[int, int]]:
        """The views, of a word and a shift, in which bits come from the other lane."""
        return frozenset(
            (slot.word, slot.shift)
            for slot in self.slots
            if slot.shift > 0 and slot.places[-1] + slot.shift >= self.lane
        )

    @property
    def moves(self) -> int:
        """Instructions before the maskings: shifts, and selections of bits for gathered words."""
        views = {(slot.word, slot.shift) for slot in self.slots if slot.shift}
        views |= {(part.word, part.shift) for gather in self.gathers for part in gather if part.shift}
        return len(views) + sum(len(gather) - 1 for gather in self.gathers)

    def arrangement(self, flip: tuple[int, ...] = ()) -> Arrangement:
        """Return how the group must be stored."""
        places = [-1] * (32 * self.words)
        for number, slot in enumerate(self.slots):
            for bit, place in enumerate(slot.places):
                word, lane_bit = slot.word, place + slot.shift
                if word >= self.words:
                    part = next(p for p in self.gathers[word - self.words] if p.mask >> lane_bit & 1)
                    word, lane_bit = part.word, lane_bit + part.shift
                for lane in range(self.lanes):
                    element = self.lanes * number + lane
                    places[32 * word + (self.lane * lane + lane_bit) % 32] = element * self.bits + bit
        if sorted(places) != list(range(32 * self.words)):
            raise AssertionError(f"a plan for {self.bits} bits loses bits: {places}")
        return Arrangement(self.bits, tuple(places), flip or (0,) * self.words)


@lru_cache(maxsize=64)
def integer_plan(bits: int, window: int, low: int = 0) -> Plan:
    """Return the plan for integers that may lie anywhere from bit `low` of a lane to below bit `window`.

    Outputs t, t + 2, t + 4 and t + 6 of each eight lie at the same place of a lane (t and t + 2 of four). They are
    the four column blocks of a unit of a packed weight at the same k, so that what depends on the place of a code in a
    lane is the same for all columns.
    """
    best: Plan | None = None
    for repeat, each in product((1, 2, 4), range(min(window - low, LANE) // bits, 0, -1)):
        if repeat * bits // gcd(bits, LANE) * (32 // bits) > _MOST_ELEMENTS:
            continue
        plan = _balanced(bits, window, low, repeat, each)
        if plan and (best is None or plan.moves * best.elements < best.moves * plan.elements):
            best = plan
    assert best is not None
    return best


@dataclass(frozen=True)
class _Run:
    """Neighbouring elements of a lane that are taken out of one view: their first bit in the word, and how many."""

    word: int
    first: int
    count: int


def _balanced(bits: int, window: int, low: int, repeat: int, each: int) -> Plan | None:
    """Return a plan for `repeat` times the fewest words and at most so many slots in a view, or None."""
    period = bits // gcd(bits, LANE)
    words, fields, left = repeat * period, LANE // bits, LANE % bits
    runs = [
        _Run(word, low + at * bits, min(each, fields - at))
        for word in range(words)
        for at in range(0, fields, each)
    ]
    gathers = []
    # What is left at the end of each word makes words of their own, in which it begins at `start`.
    size = left * period
    start = low if size <= window - low else LANE - size
    for number in range(repeat if left else 0):
        parts = []
        for i in range(period):
            place, word = start + i * left, number * period + i
            from_bit = (low + fields * bits) % LANE
            parts.append(Part(word, from_bit - place, ((1 << left) - 1) << place))
        gathers.append(tuple(parts))
        count = size // bits
        runs += [
            _Run(words + number, start + at * bits, min(each, count - at)) for at in range(0, count, each)
        ]
    outputs = sum(run.count for run in runs)
    alike = min(4, max(1, outputs // 2))
    choices = [_first_places(run, bits, window, low) for run in runs]
    places = _even_places([run.count for run in runs], choices, bits, alike)
    if places is None:
        return None
    slots = [
        Slot(run.word, run.first - place, tuple(range(place + i * bits, place + (i + 1) * bits)))
        for run, place in zip(runs, places, strict=True)
        for i in range(run.count)
    ]
    # A view's fields keep their distance, so slot i of it is at the view's first place plus i * bits.
    return Plan(bits, words, tuple(gathers), _by_place(slots, alike))


def _first_places(run: _Run, bits: int, window: int, low: int) -> list[int]:
    """Return the places for a run's first element, its own first where it needs no shift there."""
    places = range(low, window - run.count * bits + 1)
    return [run.first] if run.first in places else list(reversed(places))


def _even_places(counts: list[int], choices: list[list[int]], bits: int, alike: int) -> list[int] | None:
    """Choose first places of runs so that the number of elements at each place is a multiple of `alike`."""
    failed: set[tuple[int, tuple[tuple[int, int], ...]]] = set()

    def search(number: int, held: dict[int, int]) -> list[int] | None:
        held = {place: count % alike for place, count in held.items() if count % alike}
        if number == len(counts):
            return None if held else []
        key = number, tuple(sorted(held.items()))
        # What is missing must not be more than what comes.
        if key in failed or sum(alike - count for count in held.values()) > sum(counts[number:]):
            return None
        for place in choices[number]:
            more = dict(held)
            for i in range(counts[number]):
                more[place + i * bits] = more.get(place + i * bits, 0) + 1
            rest = search(number + 1, more)
            if rest is not None:
                return [place, *rest]
        failed.add(key)
        return None

    return search(0, {})


def _by_place(slots: list[Slot], alike: int) -> tuple[Slot, ...]:
    """Order slots so that those that must be alike have the same place."""
    waiting: dict[int, list[Slot]] = {}
    groups: list[list[Slot]] = []
    for slot in slots:
        group = waiting.setdefault(slot.places[0], [])
        group.append(slot)
        if len(group) == alike:
            groups.append(waiting.pop(slot.places[0]))
    if len(groups) == 1:
        return tuple(slots)
    pairs = [groups[i : i + 2] for i in range(0, len(groups), 2)]
    return tuple(slot for even, odd in pairs for both in zip(even, odd, strict=True) for slot in both)


@lru_cache(maxsize=8)
def signed_plan(bits: int) -> Plan:
    """Return the plan for integers in bytes: the sign bit on top, the others at the bottom."""
    places = (*range(bits - 1), 7)
    if 8 % bits:
        return float_plan(bits, places, 8)
    # The sign of each element but the first in a byte stands below the next byte's elements.
    return Plan(bits, 1, (), tuple(Slot(0, shift, places) for shift in range(0, 8, bits)), 8)


@lru_cache(maxsize=8)
def nibble_plan(bits: int) -> Plan:
    """Return the plan for elements of 1 or 3 bits anywhere in the low three bits of nibbles."""
    if bits == 3:
        return float_plan(bits, (0, 1, 2), 4)
    slots = (Slot(0, 0, (0,)), Slot(0, 0, (1,)), Slot(0, 0, (2,)), Slot(0, 1, (2,)))
    return Plan(bits, 1, (), slots, 4)


@lru_cache(maxsize=128)
def float_plan(bits: int, pattern: tuple[int, ...], lane: int = LANE) -> Plan:
    """Return the plan for elements whose code bit i must lie at ``pattern[i]`` of a lane, in rising order."""
    best: Plan | None = None
    sets = _disjoint_shifts(pattern, lane)
    for direct, sparing in product(sets, (False, True)):
        # To weigh every gathered word against every set takes seconds for patterns with very many of them.
        if sparing and len(sets) > _FEW_SETS:
            continue
        plan = _complete(bits, pattern, direct, sets, sparing, lane)
        if best is None or plan.moves < best.moves:
            best = plan
    assert best is not None
    return best


def _disjoint_shifts(pattern: tuple[int, ...], lane: int) -> list[tuple[int, ...]]:
    """Return the sets of left shifts that bring disjoint bits of a lane to the pattern."""
    found = []
    for count in range(lane // len(pattern), 0, -1):
        for shifts in combinations(range(min(pattern) + 1), count):
            bits = {place - shift for shift in shifts for place in pattern}
            if len(bits) == count * len(pattern):
                found.append(shifts)
    return found


def _complete(
    bits: int,
    pattern: tuple[int, ...],
    direct: tuple[int, ...],
    sets: list[tuple[int, ...]],
    sparing: bool,
    lane: int,
) -> Plan:
    """Use the given shifts in every word, and gather what is left into words for one of the sets each.

    The set is the first that fits, or, if sparing, the one with the fewest instructions for each slot.
    """
    words = bits // gcd(bits, lane)
    slots = [Slot(word, -shift, pattern) for word in range(words) for shift in direct]
    used = {place - shift for shift in direct for place in pattern}
    free = {(word, bit) for word in range(words) for bit in range(lane) if bit not in used}
    gathers: list[tuple[Part, ...]] = []
    while free:
        best: tuple[float, tuple[int, ...], tuple[Part, ...]] | None = None
        for shifts in sets:
            if len(shifts) <= len(free) // bits and (sparing or best is None):
                parts = _gather({place - shift for shift in shifts for place in pattern}, free)
                moves = len(parts) - 1 + sum(part.shift != 0 for part in parts) + sum(s != 0 for s in shifts)
                if best is None or moves / len(shifts) < best[0]:
                    best = moves / len(shifts), shifts, parts
        assert best is not None
        _, shifts, parts = best
        for part in parts:
            free -= {(part.word, bit + part.shift) for bit in range(lane) if part.mask >> bit & 1}
        gathers.append(parts)
        slots += [Slot(words + len(gathers) - 1, -shift, pattern) for shift in shifts]
    return Plan(bits, words, tuple(gathers), tuple(slots), lane)


def _gather(wanted: set[int], free: set[tuple[int, int]]) -> tuple[Part, ...]:
    """Choose free bits for all wanted positions, each time those of one shifted word that serve most."""
    parts = []
    free = set(free)
    while wanted:
        served: dict[tuple[int, int], list[int]] = {}
        for word, bit in sorted(free):
            for place in sorted(wanted):
                served.setdefault((word, bit - place), []).append(place)
        word, shift = max(served, key=lambda c: (len(served[c]), c[1] == 0, -abs(c[1]), -c[0]))
        places = served[word, shift]
        parts.append(Part(word, shift, sum(1 << place for place in places)))
        free -= {(word, place + shift) for place in places}
        wanted = wanted - set(places)
    return tuple(parts)
