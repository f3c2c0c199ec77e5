"""The documentation's drawings are what `draw_svg` draws; `--update-golden` draws them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilus.layout import (
    RegisterLayout,
    SharedLayout,
    column_local,
    draw_svg,
    local,
    row_major,
    spatial,
    swizzled_row_major,
)

pytestmark = pytest.mark.golden
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
DRAWINGS: dict[str, tuple[RegisterLayout | SharedLayout, int | None]] = {
    "spatial": (spatial(4, 4), None),
    "local": (local(2, 4), None),
    "product": (spatial(4, 4) * local(1, 2), None),
    "turned-product": (local(1, 2) * spatial(4, 4), None),
    "accumulator": (local(2, 1).spatial(8, 4).local(1, 2), None),
    "first-operand": (column_local(2, 2).spatial(8, 4).local(1, 2), None),
    "row-major": (row_major(8, 32), 32),
    "swizzled": (swizzled_row_major((8, 32), 32), 32),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_is_up_to_date(name: str, request: pytest.FixtureRequest) -> None:
    path = IMAGES / f"{name}.svg"
    drawn = draw_svg(*DRAWINGS[name])
    if request.config.getoption("--update-golden"):
        path.write_text(drawn, encoding="utf-8", newline="\n")
    assert path.read_text(encoding="utf-8") == drawn


def test_every_drawing_is_shown() -> None:
    page = (IMAGES.parent / "layouts.md").read_text(encoding="utf-8")
    assert sorted(path.stem for path in IMAGES.glob("*.svg")) == sorted(DRAWINGS)
    assert all(f"(images/{name}.svg)" in page for name in DRAWINGS)
