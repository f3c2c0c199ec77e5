"""Drawings of layouts, as text and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from tilus.layout.errors import LayoutError
from tilus.layout.register import RegisterLayout, format_shape
from tilus.layout.shared import SharedLayout

Layout = RegisterLayout | SharedLayout

MAX_CELLS = 65536
BANKS = 32
CELL_WIDTH = 46
CELL_HEIGHT = 22
MARGIN = 34


def draw_text(layout: Layout, element_bits: int | None = None) -> str:
    """Return a layout as a grid of text.

    Parameters
    ----------
    layout : RegisterLayout or SharedLayout
        The layout. Dimensions before the last two are drawn as one grid for each of their indices.
    element_bits : int, optional
        For a shared layout, the width of an element: each cell then shows ``offset/bank``.

    Returns
    -------
    str
        For a register layout, each cell shows ``thread:element``; of several threads that hold copies, the
        first, and the line above says how many there are.
    """
    lines = [_title(layout)]
    cell = _cell_text(layout, element_bits)
    for leading, rows, columns in _grids(layout.shape):
        if leading is not None:
            lines.append(f"[{leading}]")
        texts = [[cell(index) for index in row] for row in rows]
        width = max((len(text) for row in texts for text in row), default=1)
        edge = len(str(len(rows) - 1))
        lines.append(" " * edge + "  " + " ".join(str(column).rjust(width) for column in range(columns)))
        for number, row in enumerate(texts):
            lines.append(str(number).rjust(edge) + "  " + " ".join(text.rjust(width) for text in row))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def draw_svg(layout: Layout, element_bits: int | None = None) -> str:
    """Return a layout as an SVG picture; cells of one thread, or of one bank, have one colour.

    Parameters
    ----------
    layout : RegisterLayout or SharedLayout
        The layout.
    element_bits : int, optional
        For a shared layout, the width of an element; by default a word of 32 bits.
    """
    cell = _cell_text(layout, element_bits)
    colour = _cell_colour(layout, element_bits or 32)
    grids = _grids(layout.shape)
    parts: list[str] = []
    top = MARGIN
    widest = 0
    for leading, rows, columns in grids:
        if leading is not None:
            parts.append(_text(4, top - 20, f"[{leading}]", "start"))
        for column in range(columns):
            parts.append(_text(MARGIN + CELL_WIDTH * column + CELL_WIDTH // 2, top - 5, str(column)))
        for number, row in enumerate(rows):
            y = top + CELL_HEIGHT * number
            parts.append(_text(MARGIN - 6, y + 15, str(number), "end"))
            for column, index in enumerate(row):
                x = MARGIN + CELL_WIDTH * column
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{CELL_WIDTH}" height="{CELL_HEIGHT}" '
                    f'fill="{colour(index)}" stroke="#777"/>'
                )
                parts.append(_text(x + CELL_WIDTH // 2, y + 15, cell(index)))
        widest = max(widest, columns)
        top += CELL_HEIGHT * len(rows) + MARGIN + 10
    width, height = MARGIN + CELL_WIDTH * widest + 10, top - MARGIN + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="11">'
    )
    title = f"<title>{_title(layout)}</title>"
    background = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, title, background, *parts, "</svg>"]) + "\n"


def _title(layout: Layout) -> str:
    if isinstance(layout, SharedLayout):
        swizzle = f", {layout.swizzle}" if layout.swizzle else ""
        return f"{format_shape(layout.shape)} in {layout.size} elements of shared memory{swizzle}"
    copies = f", {layout.replication} copies" if layout.replication > 1 else ""
    return (
        f"{format_shape(layout.shape)} over {layout.threads} threads, {layout.elements} elements each{copies}"
    )


def _grids(shape: tuple[int, ...]) -> list[tuple[str | None, list[list[tuple[int, ...]]], int]]:
    cells = 1
    for extent in shape:
        cells *= extent
    if cells > MAX_CELLS:
        raise LayoutError(
            f"a {format_shape(shape)} tile has {cells} cells, too many to draw (at most {MAX_CELLS})"
        )
    rows = shape[-2] if len(shape) >= 2 else 1
    columns = shape[-1] if shape else 1
    grids = []
    for leading in product(*(range(extent) for extent in shape[:-2])):
        grid = [[_index(shape, leading, row, column) for column in range(columns)] for row in range(rows)]
        name = ", ".join(str(i) for i in leading) + ", :, :" if leading else None
        grids.append((name, grid, columns))
    return grids


def _index(shape: tuple[int, ...], leading: Sequence[int], row: int, column: int) -> tuple[int, ...]:
    if len(shape) >= 2:
        return (*leading, row, column)
    return (column,) if shape else ()


def _cell_text(layout: Layout, element_bits: int | None) -> Callable[[tuple[int, ...]], str]:
    if isinstance(layout, SharedLayout):
        if element_bits is None:
            return lambda index: str(layout.offset(index))
        return lambda index: f"{layout.offset(index)}/{layout.offset(index) * element_bits // 32 % BANKS}"
    return lambda index: "{}:{}".format(*layout.locate(index)[0])


def _cell_colour(layout: Layout, element_bits: int) -> Callable[[tuple[int, ...]], str]:
    if isinstance(layout, SharedLayout):
        return lambda index: _hue(layout.offset(index) * element_bits // 32 % BANKS, BANKS)
    return lambda index: _hue(layout.locate(index)[0][0] % 32, 32)


def _hue(number: int, count: int) -> str:
    # Steps that are coprime to the count keep neighbours apart in colour.
    degrees = number * 11 % count * 360 // count
    return f"hsl({degrees}, 70%, {82 if number % 2 else 90}%)"


def _text(x: int, y: int, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
