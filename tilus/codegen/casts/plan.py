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


@dataclass(frozen=True)
class Part:
    """Bits of a word, shifted right (left if negative), that a gathered word takes where the mask has ones."""

    word: int
    shift: int
    mask: int


@dataclass(frozen=True)
class Slot:
    """An element of each lane: code bit i lies at `places[i]` of the word shifted right (left if negative)."""

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
                    places[32 * word + self.lane * lane + lane_bit] = element * self.bits + bit
        if sorted(places) != list(range(32 * self.words)):
            raise AssertionError(f"a plan for {self.bits} bits loses bits: {places}")
        return Arrangement(self.bits, tuple(places), flip or (0,) * self.words)


@lru_cache(maxsize=64)
def integer_plan(bits: int, window: int) -> Plan:
    """Return the plan for integers that may lie anywhere in the low `window` bits of a lane."""
    words = bits // gcd(bits, LANE)
    left = LANE % bits
    slots = [slot for word in range(words) for slot in _fields(word, 0, bits, window)]
    if not left:
        return Plan(bits, words, (), tuple(slots))
    # What is left at the top of each word makes one more word.
    parts = tuple(Part(w, w * left, ((1 << left) - 1) << (LANE - (w + 1) * left)) for w in range(words))
    slots += _fields(words, LANE - words * left, bits, window)
    return Plan(bits, words, (parts,), tuple(slots))


def _fields(word: int, start: int, bits: int, window: int) -> list[Slot]:
    slots, shift = [], 0
    for low in range(start, LANE - bits + 1, bits):
        if low - shift + bits > window:
            shift = low
        slots.append(Slot(word, shift, tuple(range(low - shift, low - shift + bits))))
    return slots


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
