"""Makes a program with a finding smaller: leaves statements and blocks out while the finding stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.draft import Program


def blocks(lines: list[str]) -> list[tuple[int, int]]:
    """Return the first and last line of each statement with what is indented below it, the longest first."""
    found = []
    for start, line in enumerate(lines):
        if not line.startswith("    "):
            continue
        depth = len(line) - len(line.lstrip())
        end = start + 1
        while end < len(lines) and lines[end].startswith(" " * (depth + 1)):
            end += 1
        found.append((start, end))
    return sorted(found, key=lambda span: (span[0] - span[1], -span[0]))


def without_unused(program: Program) -> Program:
    """Leave out tensors and layouts that nothing uses."""
    body = program.text.split("tilus.grid", 1)[1]
    kept = [a for a in program.arguments if re.search(rf"\b{a.name}\b", body)]
    text = program.text
    for a in program.arguments:
        if a not in kept:
            text = re.sub(rf"\b{a.name}: tilus\.Tensor\[[^\]]*\], ", "", text)
    lines = []
    for line in text.splitlines():
        name = re.match(r"(L\d+) = ", line)
        if name is None or len(re.findall(rf"\b{name[1]}\b", text)) > 1:
            lines.append(line)
    return replace(program, text="\n".join(lines) + "\n", arguments=kept)


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Return a smaller program that still fails.

    Parameters
    ----------
    program : Program
        A program that fails.
    fails : callable
        Tells whether a program fails as the first one does; False where it is no program any more.
    """
    changed = True
    while changed:
        changed = False
        lines = program.text.splitlines()
        for start, end in blocks(lines):
            if lines[start].lstrip().startswith(("tilus.grid", "return ")) or start >= len(lines):
                continue
            attempts = [lines[:start] + lines[end:]]
            if end > start + 1:
                # The body of a block without its head.
                inner = [line[4:] for line in lines[start + 1 : end]]
                attempts.append(lines[:start] + inner + lines[end:])
            for rest in attempts:
                smaller = replace(program, text="\n".join(rest) + "\n")
                if fails(smaller):
                    program, changed = smaller, True
                    break
            if changed:
                break
    for made in (without_unused(program),):
        if fails(made):
            program = made
    return program
