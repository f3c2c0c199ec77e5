"""Drawings of layouts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tilus.layout import (
    LayoutError,
    draw_svg,
    draw_text,
    local,
    replicated,
    row_major,
    spatial,
    swizzled_row_major,
)


def test_a_register_layout_shows_thread_and_element() -> None:
    assert draw_text(spatial(2, 2).local(1, 2)) == (
        "2x4 over 4 threads, 2 elements each\n     0   1   2   3\n0  0:0 0:1 1:0 1:1\n1  2:0 2:1 3:0 3:1\n"
    )


def test_copies_are_counted_and_the_first_is_shown() -> None:
    assert draw_text(replicated(2, rank=1).spatial(3)) == (
        "3 over 6 threads, 1 elements each, 2 copies\n     0   1   2\n0  0:0 1:0 2:0\n"
    )


def test_a_shared_layout_shows_offset_and_bank() -> None:
    assert draw_text(row_major(2, 3), 32) == (
        "2x3 in 6 elements of shared memory\n     0   1   2\n0  0/0 1/1 2/2\n1  3/3 4/4 5/5\n"
    )
    assert "\n0  0 1 2\n1  3 4 5\n" in draw_text(row_major(2, 3))


def test_every_cell_is_drawn() -> None:
    layout = swizzled_row_major((8, 64), 16)
    rows = draw_text(layout, 16).splitlines()[2:]
    cells = [row.split()[1:] for row in rows]
    assert cells == [
        [f"{layout.offset((i, j))}/{layout.offset((i, j)) // 2 % 32}" for j in range(64)] for i in range(8)
    ]


def test_leading_dimensions_become_grids() -> None:
    text = draw_text(local(2, 1, 2))
    assert "[0, :, :]" in text
    assert "[1, :, :]" in text
    assert text.index("0:1") < text.index("[1, :, :]") < text.index("0:2")


def test_a_scalar_is_one_cell() -> None:
    assert draw_text(local()).splitlines()[-1] == "0  0:0"


@pytest.mark.parametrize("layout", [spatial(8, 4).local(1, 2), row_major(4, 6), local(2, 3, 4), spatial(5)])
def test_the_picture_is_svg_with_one_rectangle_for_each_cell(layout) -> None:
    root = ElementTree.fromstring(draw_svg(layout))
    space = "{http://www.w3.org/2000/svg}"
    cells = 1
    for extent in layout.shape:
        cells *= extent
    assert len(root.findall(f"{space}rect")) == cells + 1, "and one for the background"
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    for rect in root.findall(f"{space}rect")[1:]:
        assert int(rect.attrib["x"]) + int(rect.attrib["width"]) <= width
        assert int(rect.attrib["y"]) + int(rect.attrib["height"]) <= height


def test_cells_of_one_thread_have_one_colour() -> None:
    picture = draw_svg(spatial(1, 32).local(1, 2))
    colours = re.findall(r'fill="(hsl[^"]*)"', picture)
    assert [colours[2 * i] == colours[2 * i + 1] for i in range(32)] == [True] * 32
    assert len(set(colours)) == 32


def test_a_tile_too_large_to_draw_is_refused() -> None:
    with pytest.raises(LayoutError, match="has 1048576 cells, too many to draw"):
        draw_text(local(1024, 1024))
