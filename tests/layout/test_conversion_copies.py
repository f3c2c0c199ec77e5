"""Conversions between layouts whose digits do not fit each other, where every thread has what it wants, elsewhere."""

from __future__ import annotations

import pytest

from tests.layout.test_conversion import carry_out, filled
from tilus.layout import Digit, RegisterConversion, RegisterLayout, plan_conversion


def layout(shape: tuple[int, ...], threads: str, elements: str) -> RegisterLayout:
    """Make a layout of digits `size@stride` of the only dimension; a size alone are copies."""

    def digits(text: str) -> tuple[Digit, ...]:
        pairs = (word.partition("@") for word in text.split())
        return tuple(Digit(int(a), 0, int(b)) if b else Digit(int(a), None, 0) for a, _, b in pairs)

    return RegisterLayout(shape, digits(threads), digits(elements))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (layout((24,), "6", "12@1 2@12"), layout((24,), "2 3@8", "8@1")),
        (layout((6,), "3", "2@1 3@2"), layout((6,), "3@1", "2@3")),
        (layout((6,), "4", "3@1 2@3"), layout((6,), "2 2@1", "3@2")),
    ],
)
def test_threads_that_want_other_registers_than_the_first(source: RegisterLayout, target: RegisterLayout):
    plan = plan_conversion(source, target, 32)
    assert not isinstance(plan, RegisterConversion)
    assert carry_out(plan, source, target) == filled(target)
