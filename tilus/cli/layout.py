"""`tilus layout`: draw a layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tilus.cli import UsageError


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "layout",
        help="draw a layout as text and as SVG",
        description="Draw a layout: which thread holds which element, or where elements lie in shared memory.",
        epilog="example: tilus layout 'spatial(8, 4).local(1, 2)' --svg mma.svg",
    )
    parser.add_argument("expression", metavar="EXPR", help="such as 'spatial(8, 4).local(1, 2)'")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a picture too")
    parser.add_argument(
        "--bits", type=int, metavar="N", help="width of an element of a shared layout, to show memory banks"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw the layout."""
    from tilus import layout
    from tilus.errors import TilusError

    if options.bits is not None and options.bits < 1:
        raise UsageError(f"--bits {options.bits}: expected a positive integer")
    try:
        made = layout.parse(options.expression)
        text = layout.draw_text(made, options.bits)
        picture = layout.draw_svg(made, options.bits) if options.svg is not None else None
    except (layout.LayoutError, TilusError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    if picture is not None:
        try:
            options.svg.write_text(picture, encoding="utf-8", newline="\n")
        except OSError as error:
            raise UsageError(f"{options.svg} cannot be written: {error.strerror or error}") from None
        print(f"wrote {options.svg}")
    return 0
