"""What all Triton programs share: launch facts that the compiler wrote down, and its parameter list."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.simulator.foreign.corpus import FACTS, Check, Descriptor, Launch, Program

Setup = Callable[[str, np.random.Generator], Launch]


def launch(
    name: str, args: list[Any], checks: list[Check], grid: tuple[int, ...], output: str | None = None
) -> Launch:
    """Fill in what the compiler decided, and the two scratch pointers that end every Triton parameter list."""
    facts = FACTS[name]
    blocks = (*grid, 1, 1)[:3]
    clusters = facts["cluster"]
    scratch: Any = 0
    if facts["scratch_bytes"]:
        scratch = np.zeros(facts["scratch_bytes"] * int(np.prod(blocks)) * clusters, np.uint8)
    return Launch(
        args=[*args, scratch, 0],
        checks=checks,
        grid=(blocks[0] * clusters, blocks[1], blocks[2]),
        block=(facts["threads"], 1, 1),
        cluster=(clusters, 1, 1),
        shared_bytes=facts["shared_bytes"],
        output=output,
    )


def described(name: str, *arrays: np.ndarray) -> list[Any]:
    """A host's tensor descriptor arguments: the map, then the shape (32 bits), then the strides (64 bits)."""
    args: list[Any] = []
    for array, facts in zip(arrays, FACTS[name]["descriptors"], strict=True):
        args += [
            Descriptor(array, tuple(facts["block_size"]), facts["swizzle"]),
            *array.shape,
            array.shape[1],
            1,
        ]
    return args


def registry() -> tuple[list[Program], Callable[..., Callable[[Setup], Setup]]]:
    """A list of programs, and a decorator that appends to it a setup function under each of its names."""
    programs: list[Program] = []

    def program(*names: str) -> Callable[[Setup], Setup]:
        def register(setup: Setup) -> Setup:
            programs.extend(Program(name, FACTS[name]["kernel"], partial(setup, name)) for name in names)
            return setup

        return register

    return programs, program
