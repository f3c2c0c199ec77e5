"""A cluster of thread blocks as the interpreter sees it: its barrier, and the shared memory of its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tilus.errors import HazardFound
from tilus.ir.numerics import Array

if TYPE_CHECKING:
    from tilus.ir.semantics import Block


@dataclass(eq=False)
class Cluster:
    """The blocks that run together, in the order of their ranks; one block is a cluster too.

    Attributes
    ----------
    blocks : list of Block
        By rank.
    phase : int
        How often the cluster's barrier has completed.
    arrived : int
        Warps that have arrived since.
    events : int
        Counts what may let a waiting group go on.
    """

    blocks: list[Block] = field(default_factory=list)
    phase: int = 0
    arrived: int = 0
    events: int = 0

    def arrive(self, warps: int) -> None:
        """Arrive with some warps at the cluster's barrier."""
        self.arrived += warps
        self.advance()

    def advance(self) -> None:
        """Complete the barrier if all warps that have not ended have arrived."""
        self.events += 1
        if self.arrived and self.arrived >= sum(block.alive for block in self.blocks):
            self.phase += 1
            self.arrived = 0

    def block(self, rank: int) -> Block:
        """Return the block of a rank."""
        if not 0 <= rank < len(self.blocks):
            raise HazardFound(f"rank {rank} in a cluster of {len(self.blocks)} blocks")
        return self.blocks[rank]

    def ranks(self, mask: int) -> list[int]:
        """Return the ranks that a mask names."""
        if mask <= 0 or mask >> len(self.blocks):
            raise HazardFound(f"the mask {mask:#x} names no blocks of a cluster of {len(self.blocks)}")
        return [rank for rank in range(len(self.blocks)) if mask >> rank & 1]


def same_tile(block: Block, tile: Array, other: Block) -> Array:
    """Return what lies in another block's shared memory where a tile lies in a block's own."""
    for operation, root in block.allocated.items():
        if isinstance(root, np.ndarray) and np.may_share_memory(root, tile):
            twin = other.allocate(operation)
            start = tile.__array_interface__["data"][0] - root.__array_interface__["data"][0]
            return np.ndarray(tile.shape, tile.dtype, twin.data, start, tile.strides)
    raise HazardFound("a tile that is not in shared memory has no place in another block")


def same_barriers(block: Block, barriers: Any, other: Block) -> Any:
    """Return the array of barriers that lies in another block where one lies in a block's own."""
    operation = next(op for op, made in block.allocated.items() if made is barriers)
    return other.allocate(operation)
