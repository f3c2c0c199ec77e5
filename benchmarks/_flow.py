"""The control flow of machine code: its basic blocks, and what each warp issues in a turn of the main loop."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

LABEL = re.compile(r"\s*(\.L_\w+):")
LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
ENDS = ("BRA", "EXIT", "RET")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode with modifiers, its operands as text, and whether a predicate guards it."""

    opcode: str
    operands: str
    guarded: bool

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]


@dataclass(frozen=True)
class Flow:
    """Basic blocks in the order of their addresses, and the blocks that may follow each."""

    blocks: tuple[tuple[Instruction, ...], ...]
    following: tuple[tuple[int, ...], ...]


def flow_of(listing: str) -> Flow:
    """Return the basic blocks of a kernel's disassembly."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        label, match = LABEL.match(line), LINE.match(line)
        if label:
            labels[label[1]] = len(found)
        elif match:
            found.append(Instruction(match[2], match[3], match[1] is not None))
    starts = {0, *labels.values(), *(i + 1 for i, x in enumerate(found) if x.base in ENDS)}
    firsts = sorted(start for start in starts if start < len(found))
    block_at = {first: number for number, first in enumerate(firsts)}
    blocks = [tuple(found[a:b]) for a, b in zip(firsts, [*firsts[1:], len(found)], strict=True)]
    following = []
    for number, block in enumerate(blocks):
        last, after = block[-1], []
        target = re.search(r"`\((\.L_\w+)\)", last.operands) if last.base == "BRA" else None
        if target:
            after.append(block_at[labels[target[1]]])
        # A branch may have its condition among the operands, too.
        conditional = last.guarded or re.match(r"\s*!?U?P\d", last.operands) is not None
        if (last.base not in ENDS or conditional) and number + 1 < len(blocks):
            after.append(number + 1)
        following.append(tuple(after))
    return Flow(tuple(blocks), tuple(following))


def dominators(flow: Flow) -> dict[int, set[int]]:
    """Return for each block that can be reached the blocks that all ways to it lead through."""
    before: dict[int, set[int]] = {}
    reached, waiting = {0}, [0]
    while waiting:
        number = waiting.pop()
        for after in flow.following[number]:
            before.setdefault(after, set()).add(number)
            if after not in reached:
                reached.add(after)
                waiting.append(after)
    found = {number: set(reached) for number in reached}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for number in sorted(reached - {0}):
            made = {number} | set.intersection(*(found[b] for b in before[number]))
            changed |= made != found[number]
            found[number] = made
    return found


def main_loop(flow: Flow) -> tuple[set[int], set[int]]:
    """Return the blocks of the main loop, and those that each turn goes through.

    Of loops with tensor-core instructions it is the longest one that has no other such loop inside.
    """
    above = dominators(flow)
    before: dict[int, list[int]] = {}
    for number, after in enumerate(flow.following):
        for other in after:
            before.setdefault(other, []).append(number)
    loops: list[tuple[set[int], set[int]]] = []
    for end in above:
        for head in flow.following[end]:
            if head not in above[end]:
                continue
            body, waiting = {head}, [end]
            while waiting:
                number = waiting.pop()
                if number in above and number not in body:
                    body.add(number)
                    waiting += before.get(number, [])
            if any("MMA" in x.base for number in body for x in flow.blocks[number]):
                loops.append((body, body & above[end]))
    inner = [loop for loop in loops if not any(other[0] < loop[0] for other in loops)]
    return max(inner, key=lambda loop: sum(len(flow.blocks[n]) for n in loop[0]), default=(set(), set()))


def issued(listing: str, warps: int) -> Counter[str]:
    """Return how many instructions of each kind a warp issues in a turn of the main loop, of `warps` on average.

    What a turn need not go through counts for every warp, unless bulk copies are started there: then for one of them.
    """
    flow = flow_of(listing)
    body, always = main_loop(flow)
    bulk = any(x.base == "UTMALDG" for number in body for x in flow.blocks[number])
    found: Counter[str] = Counter()
    for number in body:
        for x in flow.blocks[number]:
            found[x.opcode] += 1 if number in always or not bulk else 1 / warps  # type: ignore[assignment]
    return found
