"""Draws what ops are called with: sizes, and tensors of any strides in memory whose gaps no kernel may read."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

POISON = {torch.int8: 0x6D, torch.uint8: 0x6D, torch.int32: 0x6D}
"""What each byte of a gap is; those of floats are NaN."""
KINDS = ("normal", "normal", "whole", "wide", "special")
SPECIAL = (float("inf"), -float("inf"), float("nan"), -0.0, 0.0, "denormal", "largest", "-largest")


class Draw:
    """Random choices, the same for the same seed.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)

    def one(self, choices: Sequence[T]) -> T:
        """Return one of several things."""
        return choices[self.random.randrange(len(choices))]

    def chance(self, share: float) -> bool:
        """Tell whether something that is so in a share of all cases is so in this one."""
        return self.random.random() < share

    def size(self, most: int, step: int = 1) -> int:
        """Return a size: tiny ones, multiples of tiles and their neighbours, and any other; a multiple of `step`."""
        found = self.one(
            (
                self.random.randint(0, 3),
                self.one((8, 16, 32, 64, 128, 192, 256)) + self.one((-1, 0, 0, 1)),
                self.random.randint(1, most),
                8 * self.random.randint(1, max(1, most // 8)),
                16 * self.random.randint(1, max(1, most // 16)),
            )
        )
        # Nothing at all is a case of its own, and few are enough.
        found = found if found or self.chance(0.2) else 1
        return min(most, -(-found // step) * step)

    def values(self, shape: Sequence[int], dtype: torch.dtype, kind: str = "") -> torch.Tensor:
        """Return numbers of a type: around one, whole and few, of many sizes, or with special ones among them."""
        kind = kind or self.one(KINDS)
        if not dtype.is_floating_point:
            low, high = (-2, 2) if kind == "whole" else (-128, 127)
            return torch.from_numpy(self.numbers.integers(low, high + 1, tuple(shape))).to(dtype)
        data = np.asarray(self.numbers.standard_normal(tuple(shape)))
        if kind == "whole":
            data = np.rint(data)
        elif kind == "wide":
            data *= np.exp2(self.numbers.integers(-6, 5, tuple(shape)))
        info = torch.finfo(dtype)
        made = torch.from_numpy(np.asarray(np.clip(data, info.min, info.max))).to(dtype)
        if kind == "special" and made.numel():
            special = {"denormal": info.tiny / 4, "largest": info.max, "-largest": info.min}
            flat = made.to(torch.float64).reshape(-1)
            for _ in range(self.random.randint(1, 4)):
                number = self.one(SPECIAL)
                flat[self.random.randrange(flat.numel())] = special.get(number, number)  # type: ignore[call-overload]
            made = flat.reshape(made.shape).to(dtype)
        return made

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, kind: str = "") -> torch.Tensor:
        """Return random numbers somewhere in memory."""
        return self.laid_out(self.values(shape, dtype, kind))

    def laid_out(self, values: torch.Tensor) -> torch.Tensor:
        """Return values with other strides, at another offset; sometimes one slice of them repeated without memory."""
        if self.chance(0.35):
            return values.contiguous()
        shape, rank = list(values.shape), values.ndim
        order = list(range(rank))
        if self.chance(0.4):
            self.random.shuffle(order)
        repeated = self.random.randrange(rank) if rank and self.chance(0.1) else -1
        steps, stride = [0] * rank, 1
        for place, dim in enumerate(reversed(order)):
            if dim == repeated:
                continue
            gap = self.one((0, 0, 1, 8, 16)) if place or self.chance(0.2) else 0
            every = 2 if self.chance(0.07) else 1
            steps[dim] = stride * every
            stride *= max(1, shape[dim]) * every + gap
        # Kernels specialise on addresses that divide by 16 bytes.
        offset = self.one((0, 0, 0, 1, 16 // values.element_size(), 3))
        room = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True) if size)
        memory = poisoned((offset + max(room, 1) + 64,), values.dtype)
        made = memory.as_strided(shape, steps, offset)
        if values.numel():
            one = [made, values] if repeated < 0 else [x.narrow(repeated, 0, 1) for x in (made, values)]
            one[0].copy_(one[1])
        return made


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return memory that nobody wrote to: NaN, or numbers that no case has."""
    size = torch.empty((), dtype=dtype).element_size()
    filling = POISON.get(dtype, 0xFF)
    return torch.full((math.prod(shape) * size,), filling, dtype=torch.uint8).view(dtype).view(*shape)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of all memory that a tensor has a part in, as a copy."""
    made: Any = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
    return made.clone()
