"""The error that the layout algebra raises."""

from __future__ import annotations

from tilus.errors import TilusError


class LayoutError(TilusError, ValueError):
    """A layout, or an operation on layouts, that cannot exist; the message says which digit or size is at fault."""
