"""A kernel: what a launch passes, the grid, and the body."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilus.errors import Location
from tilus.ir.core import Region, Value
from tilus.ir.types import GlobalType, Symbol


@dataclass(frozen=True, eq=False)
class Kernel:
    """A thread-block program.

    Attributes
    ----------
    name : str
        Name of the entry point.
    params : tuple of Value
        Parameters in launch order, of scalar, pointer or global type.
    grid : Region
        Computes the three grid extents (int32 scalars) from the parameters, on the host; ends in a yield.
    body : Region
        The program of one thread block; ends in a return.
    warps : int
        Warps in a thread block.
    cluster : tuple of int
        Thread blocks in a cluster, along x, y, z.
    shared_bytes : int
        Dynamic shared memory, set by planning.
    """

    name: str
    params: tuple[Value, ...]
    grid: Region
    body: Region
    warps: int = 4
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    loc: Location | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def threads(self) -> int:
        """Threads in a thread block."""
        return 32 * self.warps

    def symbols(self) -> list[tuple[Symbol, Value, str, int]]:
        """Return the sizes that a launch passes after the parameters.

        Each is (symbol, parameter, "dim" or "stride", axis), at its first appearance. Extents are passed as
        int32, strides as int64; equal names are passed once.
        """
        found: dict[str, tuple[Symbol, Value, str, int]] = {}
        for param in self.params:
            if isinstance(param.type, GlobalType):
                for kind, extents in (("dim", param.type.dims), ("stride", param.type.strides)):
                    for axis, extent in enumerate(extents):
                        if isinstance(extent, Symbol) and extent.name not in found:
                            found[extent.name] = (extent, param, kind, axis)
        # A name that is a dim of any tensor is an extent, even where it appears first as a stride.
        for name, (_, _, kind, _) in list(found.items()):
            if kind == "stride":
                for param in self.params:
                    if isinstance(param.type, GlobalType):
                        for axis, extent in enumerate(param.type.dims):
                            if isinstance(extent, Symbol) and extent.name == name:
                                found[name] = (extent, param, "dim", axis)
        return list(found.values())
