"""Finds the loops of PTX that do a kernel's work, and the accesses to global memory in them."""

from __future__ import annotations

import re

WHOLE = 16
"""Bytes that a thread moves at best."""
LABEL = re.compile(r"^\s*(\$L[\w$]+):")
BRANCH = re.compile(r"(@!?%\w+\s+)?\bbra(?:\.uni)?\s+(\$L[\w$]+)")
END = re.compile(r"^\s*(ret|exit|trap)\b")
WORK = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|cp\.async\.)")
ACCESS = re.compile(r"\b((?:ld|st)\.(?:[\w:]+\.)*global[\w.:]*)")
COPY = re.compile(r"\bcp\.async\.(?:ca|cg)\.shared\.global[\w.:]*\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(\d+)")
# What synchronises moves no data.
SIGNAL = re.compile(r"\.(?:acquire|release|relaxed|volatile)\b")


def working_loops(ptx: str) -> list[list[str]]:
    """Return the lines of each innermost loop that multiplies or copies asynchronously.

    A loop is what lies on a way from its head back to its head, wherever its blocks stand in the text.
    """
    blocks, following = flow(ptx)
    before: list[list[int]] = [[] for _ in blocks]
    for number, targets in enumerate(following):
        for target in targets:
            before[target].append(number)
    loops: dict[int, set[int]] = {}
    for head, end in back_edges(following):
        # All that comes to the end without going through the head.
        body, waiting = {head}, [end]
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting += before[block]
        loops.setdefault(head, set()).update(body)
    working = [body for body in loops.values() if any(WORK.search(x) for b in body for x in blocks[b])]
    inner = [body for body in working if not any(other < body for other in working)]
    return [[line for block in sorted(body) for line in blocks[block]] for body in inner]


def flow(ptx: str) -> tuple[list[list[str]], list[list[int]]]:
    """Return the basic blocks of the kernel, and which ones may follow each."""
    blocks: list[list[str]] = [[]]
    for line in ptx.splitlines():
        if LABEL.match(line):
            blocks.append([])
        blocks[-1].append(line)
        if BRANCH.search(line) or END.match(line):
            blocks.append([])
    named = {
        match.group(1): i for i, block in enumerate(blocks) if block and (match := LABEL.match(block[0]))
    }
    following: list[list[int]] = []
    for number, block in enumerate(blocks):
        jump = BRANCH.search(block[-1]) if block else None
        targets = [named[jump.group(2)]] if jump else []
        falls = not (jump and not jump.group(1)) and not (block and END.match(block[-1]))
        following.append([*targets, number + 1] if falls and number + 1 < len(blocks) else targets)
    return blocks, following


def back_edges(following: list[list[int]]) -> list[tuple[int, int]]:
    """Return (head, end) of each way back to a block that is still being visited."""
    found = []
    state = [0] * len(following)
    path = [(0, iter(following[0]))]
    state[0] = 1
    while path:
        block, rest = path[-1]
        for target in rest:
            if state[target] == 1:
                found.append((target, block))
            elif not state[target]:
                state[target] = 1
                path.append((target, iter(following[target])))
                break
        else:
            state[block] = 2
            path.pop()
    return found


def narrow_accesses(lines: list[str]) -> list[str]:
    """Return the accesses to global memory that move less than 16 bytes for a thread."""
    found = []
    for line in lines:
        access = ACCESS.search(line)
        if access and not SIGNAL.search(access.group(1)) and width(access.group(1)) < WHOLE:
            found.append(access.group(1))
        copy = COPY.search(line)
        if copy and int(copy.group(1)) < WHOLE:
            found.append(f"cp.async of {copy.group(1)} bytes")
    return found


def width(opcode: str) -> int:
    """Return the bytes that a thread moves with a load or store."""
    vector = re.search(r"\.v(\d)", opcode)
    element = re.search(r"[bsuf](\d+)$", opcode)
    return (int(vector.group(1)) if vector else 1) * (int(element.group(1)) if element else 0) // 8
