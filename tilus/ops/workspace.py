"""Counters that kernels share among their blocks, and leave as they found them."""

from __future__ import annotations

from functools import lru_cache

import torch

FEWEST = 1024


def counters(like: torch.Tensor, count: int) -> torch.Tensor:
    """Return at least `count` zeros of int32 for a kernel that sets them back to zero.

    Launches of one stream follow each other and share them. A CUDA graph gets its own, for it may run on any stream.

    Parameters
    ----------
    like : Tensor
        On the device on which the kernel runs.
    count : int
    """
    size = max(FEWEST, 1 << (count - 1).bit_length())
    if like.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.int32, device=like.device)
    return _of_stream(like.device, torch.cuda.current_stream(like.device).cuda_stream, size)


@lru_cache(maxsize=256)
def _of_stream(device: torch.device, stream: int, size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int32, device=device)
