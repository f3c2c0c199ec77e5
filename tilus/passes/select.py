"""What passes ask of the target: which dot instruction fits, and what a shared access costs.

Code generation implements this; passes know only the interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tilus.dtypes import DType
from tilus.layout import RegisterLayout, SharedLayout


@dataclass(frozen=True)
class DotChoice:
    """An instruction and the layouts in which it takes a, b and c."""

    atom: str
    a: RegisterLayout
    b: RegisterLayout
    c: RegisterLayout


class Selector(Protocol):
    """The target's side of layout inference."""

    def choose_dot(
        self,
        shape: tuple[int, int, int],
        dtypes: tuple[DType, DType, DType],
        warps: int,
        a: RegisterLayout | None,
        b: RegisterLayout | None,
        c: RegisterLayout | None,
        by_rows: bool = False,
    ) -> DotChoice:
        """Return the instruction for a dot of shape (m, n, k); layouts that are given are kept where possible.

        With `by_rows` the warps are spread over the rows of the result as far as they can be.

        Raises TilusError, saying why, where no instruction fits.
        """
        ...

    def choose_dot_async(
        self,
        shape: tuple[int, int, int],
        dtypes: tuple[DType, DType, DType],
        warps: int,
        a: RegisterLayout | None = None,
        c: RegisterLayout | None = None,
    ) -> DotChoice:
        """Return the warpgroup instruction for a dot of shape (m, n, k); b's layout is that of shared memory.

        Layouts that are given, of operands in registers, are kept where they fit the instruction.
        """
        ...

    def shared_cost(self, layout: RegisterLayout, shared: SharedLayout, bits: int, load: bool) -> float:
        """Return the wavefronts of moving a tile between registers and shared memory, by the best instruction."""
        ...

    def copy_cost(self, shared: SharedLayout, threads: int, bits: int, along: int | None = None) -> float:
        """Return the wavefronts of an asynchronous copy, in pieces along a dimension, into shared memory."""
        ...
