"""Which lanes of a batch execute: a run of whole warps (array slices), or any sorted set of lanes (indices)."""

from __future__ import annotations

from typing import Any

import numpy as np

LANES = 32


class Selection:
    """The active lanes of one execution step.

    ``whole`` selections cover warps ``lo <= w < hi`` with all 32 lanes; ``lanes`` is then a slice. Others hold a
    sorted index array. ``n`` is the number of lanes.
    """

    __slots__ = ("_index", "_mask", "_row", "_warps", "cache", "hi", "key", "lanes", "lo", "n", "whole")

    def __init__(self, lo: int, hi: int, index: Any = None) -> None:
        self.whole = index is None
        self.lo = lo
        self.hi = hi
        self.lanes = slice(lo * LANES, hi * LANES) if index is None else index
        self.n = (hi - lo) * LANES if index is None else len(index)
        self._warps: Any = None
        self._row: Any = None
        self._mask: Any = None
        self._index: Any = index
        self.key = (lo, hi)
        self.cache: dict[Any, Any] = {}

    @staticmethod
    def of(index: Any) -> Selection:
        """The selection of sorted lane indices, as a run of whole warps where it is one."""
        n = len(index)
        if n and n % LANES == 0 and index[0] % LANES == 0 and index[-1] - index[0] == n - 1:
            return Selection(int(index[0]) // LANES, (int(index[-1]) + 1) // LANES)
        return Selection(0, 0, index)

    @property
    def index(self) -> Any:
        """Lane numbers as an array."""
        if self._index is None:
            self._index = np.arange(self.lo * LANES, self.hi * LANES)
        return self._index

    @property
    def warps(self) -> Any:
        """The warps that have an active lane, ascending."""
        if self._warps is None:
            if self.whole:
                self._warps = np.arange(self.lo, self.hi)
            else:
                self._find_warps()
        return self._warps

    def _find_warps(self) -> None:
        """Fill the warps, and each lane's position among them, of a set of lanes."""
        of_lane = self._index >> 5
        keep = np.empty(len(of_lane), bool)
        if len(of_lane):
            keep[0] = True
            np.not_equal(of_lane[1:], of_lane[:-1], out=keep[1:])
        self._warps = of_lane[keep]
        self._row = np.cumsum(keep) - 1

    @property
    def row(self) -> Any:
        """For each active lane the position of its warp in ``warps``."""
        if self._row is None:
            if self.whole:
                self._row = np.repeat(np.arange(self.hi - self.lo), LANES)
            else:
                self._find_warps()
        return self._row

    @property
    def mask(self) -> Any:
        """``[warps, 32]``: which lanes are active."""
        if self._mask is None:
            mask = np.zeros((len(self.warps), LANES), bool)
            if self.whole:
                mask[:] = True
            else:
                mask[self.row, self._index & 31] = True
            self._mask = mask
        return self._mask

    @property
    def warp_slice(self) -> Any:
        """An index into per-warp arrays."""
        return slice(self.lo, self.hi) if self.whole else self.warps

    def subset(self, keep: Any) -> Selection:
        """The lanes where ``keep`` (one flag per active lane) holds."""
        return Selection.of(self.index[keep])

    def spread(self, values: Any, fill: Any = 0) -> Any:
        """Per-lane values to ``[warps, 32]``, inactive lanes filled."""
        if self.whole:
            return values.reshape((-1, LANES, *values.shape[1:]))
        out = np.full((len(self.warps), LANES, *values.shape[1:]), fill, values.dtype)
        out[self.row, self._index & 31] = values
        return out

    def gather(self, values: Any) -> Any:
        """``[warps, 32]`` values to one per active lane."""
        if self.whole:
            return values.reshape((-1, *values.shape[2:]))
        return values[self.row, self._index & 31]
