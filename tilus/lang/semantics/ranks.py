"""Which blocks of a cluster are meant: ranks and masks of ranks."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from tilus.dtypes import int32
from tilus.errors import ShapeMismatch, SyntaxNotSupported, TypeMismatch
from tilus.ir import Value
from tilus.lang.diagnostics import describe
from tilus.lang.semantics.arithmetic import convert

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


def cluster_of(t: Tracer, what: str) -> tuple[int, int, int]:
    """Return the blocks of a cluster along x, y and z, or say that the kernel has no clusters."""
    if t.cluster is None:
        raise SyntaxNotSupported(
            f"{what} needs clusters, which the kernel's grid does not have",
            hint="tilus.grid(..., cluster=(2, 1, 1)) further up",
        )
    return t.cluster


def rank_value(t: Tracer, what: str, rank: object) -> Value | None:
    """Return the rank of a block as an int32 scalar; None in a cluster of one block."""
    size = prod(cluster_of(t, what))
    if isinstance(rank, int) and not isinstance(rank, bool) and not 0 <= rank < size:
        blocks = "one block" if size == 1 else f"{size} blocks"
        raise ShapeMismatch(
            f"{what} with rank {rank} in a cluster of {blocks}", hint=f"a rank from 0 to {size - 1}"
        )
    scalar = t.integer(rank)
    if scalar is None:
        raise TypeMismatch(
            f"{what} takes an integer as rank, not {describe(rank)}", hint="an int, or tilus.cluster_rank()"
        )
    return None if size == 1 else convert(t, scalar, int32)


def mask_value(t: Tracer, what: str, mask: object) -> Value | None:
    """Return a mask of ranks as an int32 scalar; None in a cluster of one block."""
    size = prod(cluster_of(t, what))
    if isinstance(mask, int) and not isinstance(mask, bool) and (mask <= 0 or mask >> size):
        raise ShapeMismatch(
            f"{what} with the mask {mask:#b}, whose bits name the ranks of a cluster of {size}",
            hint=f"a mask from 1 to {(1 << size) - 1:#b}",
        )
    scalar = t.integer(mask)
    if scalar is None:
        raise TypeMismatch(
            f"{what} takes an integer as mask, not {describe(mask)}", hint="multicast=0b11 for ranks 0 and 1"
        )
    return None if size == 1 else convert(t, scalar, int32)
