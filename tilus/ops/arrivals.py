"""Counters for blocks that share a tile of a result: the last one to arrive at it adds up what all have found.

Counters are zero before a launch, and each launch leaves them so. Launches that may run at the same time have counters
of their own: those on one stream follow one another and share theirs, those that a CUDA graph captures keep theirs.
"""

from __future__ import annotations

from functools import lru_cache
from threading import Lock

import torch

FEWEST = 4096
CAPTURED = 1 << 20
LINE = 32
"""Counters of a line of the cache."""


def arrivals(device: torch.device, count: int) -> torch.Tensor:
    """Return at least so many counters of int32 for a launch on a device's current stream."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    index = torch.cuda.current_device() if device.index is None else device.index
    return _counters(index).take(count)


@lru_cache(maxsize=64)
def _counters(index: int) -> Counters:
    return Counters(torch.device("cuda", index))


class Counters:
    """The counters of a GPU.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lock = Lock()
        self._of_stream: dict[int, torch.Tensor] = {}
        self._of_graphs: torch.Tensor | None = None
        self._captured = 0

    def take(self, count: int) -> torch.Tensor:
        """Return at least so many counters for a launch on the current stream."""
        # Whole lines: code is specialised on what divides an extent, and must be the same inside a capture.
        count = -(-count // LINE) * LINE
        with self._lock:
            if torch.cuda.is_current_stream_capturing():
                return self._for_graph(count)
            if self._of_graphs is None:
                self._of_graphs = self._zeros(CAPTURED)
                # A graph may be replayed on any stream.
                torch.cuda.current_stream(self.device).synchronize()
            stream = torch.cuda.current_stream(self.device).cuda_stream
            found = self._of_stream.get(stream)
            if found is None or found.numel() < count:
                found = self._of_stream[stream] = self._zeros(max(count, FEWEST))
            return found

    def _for_graph(self, count: int) -> torch.Tensor:
        """Return counters that no other launch gets; where there are no more, the graph has them zeroed."""
        first = self._captured
        if self._of_graphs is None or first + count > self._of_graphs.numel():
            return self._zeros(count)
        self._captured += count
        return self._of_graphs[first : first + count]

    def _zeros(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self.device)
