"""What a function of the language does when it is called outside a kernel."""

from __future__ import annotations

from tilus.errors import TilusError


class OutsideKernel(TilusError):
    """A function of the language called by plain Python."""


def only_in_kernel(name: str) -> OutsideKernel:
    """Return the error for a call outside a kernel."""
    return OutsideKernel(
        f"{name} was called by plain Python, but it only has a meaning inside a kernel",
        hint="call it in a function marked @tilus.kernel, or in one marked @tilus.inline that a kernel calls",
    )
