"""What a launch does, as numbers: the input of the cost model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """What a launch moves between one tensor and the multiprocessors.

    Attributes
    ----------
    tensor : str
        The parameter, or the operation that made it of a pointer.
    read, written : float
        Bytes of the whole launch.
    footprint : float
        Bytes of the tensor; infinite where its extents are unknown.
    distinct : float
        Part of the bytes that blocks which run together read that no other of them reads too.
    """

    tensor: str
    read: float
    written: float
    footprint: float
    distinct: float


@dataclass(frozen=True)
class Work:
    """What a launch does; figures of a block are means over the blocks.

    Attributes
    ----------
    blocks, threads : int
        The launch.
    traffic : tuple of Traffic
        By tensor.
    tensor_ops : tuple of (str, bool, float)
        Operand type, whether by wgmma, and operations of a block.
    issue : float
        Warp instructions of a block.
    lanes : tuple of (str, float)
        Results of a block by kind of unit (fields of `LaneRates`).
    shared_bytes_moved : float
        Bytes that a block moves to and from shared memory.
    trips : float
        Iterations of a block's longest loop that loads or multiplies, outer ones included.
    depth : int
        Iterations ahead of which asynchronous copies are started; 0 where loads are waited for.
    syncs : float
        Barriers that a block passes.
    shared_bytes : int
        Shared memory of a block.
    tile_registers : int
        Registers of a thread for the tiles that a loop carries and for operands.
    exact : bool
        Whether every loop bound was known.
    """

    blocks: int
    threads: int
    traffic: tuple[Traffic, ...]
    tensor_ops: tuple[tuple[str, bool, float], ...]
    issue: float
    lanes: tuple[tuple[str, float], ...]
    shared_bytes_moved: float
    trips: float
    depth: int
    syncs: float
    shared_bytes: int
    tile_registers: int
    exact: bool

    @property
    def bytes_read(self) -> float:
        """Bytes that all blocks read from global memory."""
        return sum(t.read for t in self.traffic)

    @property
    def bytes_written(self) -> float:
        """Bytes that all blocks write to global memory."""
        return sum(t.written for t in self.traffic)

    @property
    def flops(self) -> float:
        """Tensor-core operations of the launch."""
        return self.blocks * sum(amount for _, _, amount in self.tensor_ops)
