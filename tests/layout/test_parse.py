"""Reading layouts from text: what is understood, what is refused, and where the caret stands."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.layout.strategies import law
from tilus.layout import (
    LayoutError,
    RegisterLayout,
    SharedLayout,
    Swizzle,
    canonical,
    coalesced,
    column_spatial,
    local,
    padded,
    parse,
    replicated,
    row_major,
    spatial,
    strided,
    swizzled_row_major,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spatial(8, 4).local(1, 2)", spatial(8, 4).local(1, 2)),
        (" local(2,1) * spatial(8, 4)\n * local(1, 2) ", local(2, 1).spatial(8, 4).local(1, 2)),
        ("spatial(6) / spatial(3)", spatial(2)),
        ("replicated(2, rank=1) * column_spatial(4)", replicated(2, rank=1) * column_spatial(4)),
        ("spatial(8).reduce(0, keepdim=True)", spatial(8).reduce(0, keepdim=True)),
        ("spatial(2, 3).transpose((1, 0))", spatial(2, 3).transpose()),
        ("spatial(12).reshape([3, 4])", spatial(3, 4)),
        ("coalesced((64, 64), 128, 8)", coalesced((64, 64), 128, 8)),
        ("row_major(8, 8) * row_major(2, 2)", row_major(8, 8) * row_major(2, 2)),
        ("padded((8, 8), 1)", padded((8, 8), 1)),
        ("strided((8, 8), (1, 8))", strided((8, 8), (1, 8))),
        ("swizzled_row_major((8, 64), 16).prepend(3)", swizzled_row_major((8, 64), 16).prepend(3)),
        ("row_major(8, 64).with_swizzle(Swizzle(3, 3, 3))", row_major(8, 64).with_swizzle(Swizzle(3, 3, 3))),
        ("canonical((64, 64), 'mn', 128, 16)", canonical((64, 64), "mn", 128, 16)),
    ],
)
def test_expressions_are_read(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("spatal(8)", 1, "unknown layout constructor 'spatal'; there are: Swizzle, canonical"),
        ("spatial(8) * foo(2)", 14, "unknown layout constructor 'foo'"),
        ("spatial(8).mro()", 12, "a register layout has no operation 'mro'; it has: column_local"),
        ("row_major(8).local(2)", 14, "a shared layout has no operation 'local'"),
        ("spatial(8) / spatial(3)", 14, "dimension 0 of size 8 is not divisible by 3"),
        ("spatial(8).squeeze(0)", 12, "only a dimension of size 1 can be squeezed"),
        ("spatial(8) + local(2)", 14, "layouts have [*] and /, but not Add"),
        ("spatial(8) * 2", 14, "cannot compute a register layout [*] 2"),
        ("row_major(8) / row_major(2)", 16, "cannot compute a shared layout / a shared layout"),
        ("spatial(1.5)", 9, "expected an integer up to 16777216, found 1.5"),
        ("spatial(99999999999)", 9, "expected an integer up to 16777216"),
        ("spatial('a')", 1, "spatial does not take these arguments"),
        ("spatial(*[2])", 9, "found Starred"),
        ("spatial(**{})", 11, "'[*][*]' is not understood"),
        ("spatial(8,, 2)", 11, "not an expression: invalid syntax"),
        ("spatial", 1, "'spatial' is not called; write spatial"),
        ("(8, 4)", 1, r"expected a layout, found \(8, 4\)"),
        ("Swizzle(3, 3, 3)", 1, "expected a layout, found Swizzle"),
        ("[spatial(2)][0]", 1, "found Subscript"),
        ("'é' * spatial(8)", 7, "cannot compute 'é' [*] a register layout"),
    ],
)
def test_errors_stand_at_their_place(text: str, column: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message) as caught:
        parse(text)
    first, shown, caret = str(caught.value).splitlines()
    assert first.startswith(f"column {column}: ")
    assert shown.strip() == text
    assert caret.index("^") - 4 == column - 1


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "spatial.__globals__",
        "spatial(8).__class__.__subclasses__()",
        "(lambda: spatial(2))()",
        "[spatial(2) for _ in (1,)]",
        "spatial(8) if True else 0",
        "spatial(n := 2)",
        "f'{spatial(2)}'",
        "spatial(8)**100",
        "open('x')",
        "",
        "spatial(2); spatial(3)",
        "spatial(2",
        "\0",
    ],
)
def test_nothing_else_is_evaluated(text: str) -> None:
    with pytest.raises(LayoutError):
        parse(text)


def test_unbounded_text_is_refused() -> None:
    with pytest.raises(LayoutError, match="at most 4096 characters, found 5000"):
        parse("(" * 5000)
    with pytest.raises(LayoutError):
        parse("(" * 2000 + ")" * 2000)


@law(st.text(max_size=40), examples=200)
def test_any_text_is_a_layout_or_a_layout_error(text: str) -> None:
    try:
        layout = parse(text)
    except LayoutError:
        return
    assert isinstance(layout, (RegisterLayout, SharedLayout))
