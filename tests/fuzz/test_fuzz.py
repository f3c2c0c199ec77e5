"""Random programs mean the same in Python, in the IR before and after each pass, and in PTX; mistakes are found."""

from __future__ import annotations

import pytest

from tests.fuzz.check import Finding, Refused, check
from tests.fuzz.draft import Program
from tests.fuzz.generator import Generator
from tests.fuzz.mistakes import MISTAKES, Mistake
from tests.fuzz.shrink import shrink

TARGETS = ("sm_80", "sm_89", "sm_90a")
PROGRAMS = 45
# What a program that is drawn may be refused for: elements of less than a byte that lie apart, a product that the target
# has no instruction for, and a reshape between shapes without common factors.
REFUSALS = ("whole byte", "in pieces of", "instruction", "few factors in common")


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_a_random_program_means_the_same_everywhere(seed):
    program = Generator(seed).program()
    try:
        finding = check(program, [TARGETS[seed % len(TARGETS)]], passes=seed % 2 == 0, text=seed % 8 == 0)
    except Refused as refusal:
        known = any(words in str(refusal) for words in REFUSALS)
        finding = None if known else Finding("refusal", str(refusal))
    assert finding is None, f"{finding}\n{program.text}"


def test_a_seed_gives_one_program():
    first, second = Generator(7).program(), Generator(7).program()
    assert first.text == second.text
    assert all((a.codes == b.codes).all() for a, b in zip(first.arguments, second.arguments, strict=True))


def finding_of(program: Program) -> Finding | None:
    """Return what is wrong with a program on one target; nothing where it is refused."""
    try:
        return check(program, ["sm_80"], passes=False, text=False)
    except Refused:
        return None


@pytest.mark.parametrize(
    ("mistake", "seed"), MISTAKES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_mistakes_of_a_compiler_are_found(mistake: Mistake, seed: int, monkeypatch):
    # The first program finds it; others stand in for it where the generator has changed since.
    mistake(monkeypatch)
    assert any(finding_of(Generator(s).program()) for s in range(seed, seed + 40))


def test_a_program_with_a_finding_becomes_smaller(monkeypatch):
    before = Generator(2).program()
    (mistake,) = (m for m in MISTAKES if m.__name__ == "wrong_fold")
    mistake(monkeypatch)

    def fails(program: Program) -> bool:
        try:
            return finding_of(program) is not None
        except (NameError, UnboundLocalError, TypeError, SyntaxError, ValueError):
            return False

    small = shrink(before, fails)
    assert fails(small)
    # The grid, a tile, the difference and its store.
    assert len(small.text.split("def kernel")[1].splitlines()) == 5
