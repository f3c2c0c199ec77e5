"""What a tuner must know of an op: its classes of problems, its candidates, and how to run one of them.

Without a GPU an op's launches are recorded on torch's meta device, where nothing has memory and nothing runs: the op's
own code says which kernels it launches with which arguments, for a card that need not be there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from itertools import product
from typing import Any
from unittest import mock

import torch

import tilus.ops.matmul
import tilus.ops.quantized_matmul  # noqa: F401
from tilus import dtypes
from tilus.codegen import Target, target
from tilus.codegen.figures import Figures
from tilus.errors import TilusError
from tilus.ops import prepack, quantized_schedule, quantized_wgmma, schedules
from tilus.ops.tuned import forced
from tilus.runtime.kernel import Kernel

Key = dict[str, Any]
Schedule = dict[str, Any]
Launch = tuple[Kernel, tuple[Any, ...], dict[str, Any]]

# A problem's sizes may be twice or half of these, see `tilus.ops.tuned`.
ROWS = (16, 32, 64, 128, 256, 1024, 4096)
SIDES = (1024, 4096, 16384, 65536)
LARGEST = 1 << 28
"""Elements of the largest weight."""


class Problem:
    """An op as a tuner sees it.

    Attributes
    ----------
    name : str
        The op.
    module : str
        Where it asks for its target and chooses its schedule.
    fields : tuple of str
        Fields of a key beside m, n and k.
    """

    name: str
    module: str
    fields: tuple[str, ...]

    def keys(self, machine: Target) -> Iterator[Key]:
        """Yield the keys that ship."""
        raise TilusError(f"{self.name} does not say this of itself")

    def candidates(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        """Return schedules as plain data; the heuristic's own is the first."""
        raise TilusError(f"{self.name} does not say this of itself")

    def arguments(self, key: Key, device: str) -> tuple[Any, ...]:
        """Return arguments for `run`; random ones where the device has memory."""
        raise TilusError(f"{self.name} does not say this of itself")

    def choosing(self, schedule: Schedule) -> AbstractContextManager[Any]:
        """Let the op's heuristic choose a schedule, whatever the problem."""
        raise TilusError(f"{self.name} does not say this of itself")

    @contextmanager
    def using(self, schedule: Schedule) -> Iterator[None]:
        """Let the op use a schedule, whatever it looks up and its heuristic chooses."""
        with forced(self.name, schedule), self.choosing(schedule):
            yield

    def run(self, arguments: tuple[Any, ...]) -> torch.Tensor:
        """Run the op."""
        result: torch.Tensor = sys.modules[self.module]._run(*arguments)
        return result

    def launches(self, key: Key, schedule: Schedule, card: Figures) -> list[Launch]:
        """Return what the op launches with a schedule."""
        with recorded(card, self.module) as found, self.using(schedule):
            self.run(self.arguments(key, "meta"))
        return found


@contextmanager
def recorded(card: Figures, module: str) -> Iterator[list[Launch]]:
    """Yield a list to which each launch is added, instead of being made; the op sees a card's target and processors.

    Parameters
    ----------
    card : Figures
        The card.
    module : str
        The op's module, which asks for the device of a tensor.
    """
    launches: list[Launch] = []

    def record(kernel: Kernel, *args: Any, **options: Any) -> None:
        launches.append((kernel, args, options))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Kernel, "__call__", record))
        stack.enter_context(mock.patch(f"{module}.target_of", return_value=target(card.target)))
        stack.enter_context(mock.patch(f"{module}.processors", return_value=card.processors))
        yield launches


def filled(device: str, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of random numbers, or one without memory on the meta device."""
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    if dtype.is_floating_point:
        return torch.randn(shape, device=device).to(dtype)
    return torch.randint(0, 100, shape, device=device, dtype=dtype)


def unique(found: Sequence[Mapping[str, Any]]) -> list[Schedule]:
    """Return schedules without repetitions, in order."""
    return [dict(items) for items in dict.fromkeys(tuple(schedule.items()) for schedule in found)]


class Matmul(Problem):
    """`matmul` of two matrices of one type, by its bits."""

    name, module, fields = "matmul", "tilus.ops.matmul", ("bits",)

    def keys(self, machine: Target) -> Iterator[Key]:
        for bits, m, n, k in product((16, 8), ROWS, SIDES, SIDES):
            if n * k <= LARGEST:
                yield {"bits": bits, "m": m, "n": n, "k": k}

    def candidates(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        m, n, k, bits = key["m"], key["n"], key["k"], key["bits"]
        if machine.has("wgmma"):
            first = schedules.hopper_schedule(m, n, k, 1, bits, 16, machine, card.processors)
            every = schedules.hopper_candidates(bits, 16, machine)
            return unique([asdict(first), *(asdict(c) for c in every if c.block_m < 2 * max(m, 64))])
        from tilus.ops.matmul import Schedule as Tiles
        from tilus.ops.matmul import schedule

        found = [asdict(schedule(m, n, bits, machine))]
        depth = 1024 // bits
        for block_m, block_n in product((16, 32, 64, 128, 256), (32, 64, 128, 256)):
            if (
                block_m >= 2 * max(m, 16)
                or not 512 <= block_m * block_n <= 128 * 256
                or block_m > 4 * block_n
            ):
                continue
            warps = 8 if block_m * block_n > 128 * 128 else 4
            for block_k, stages in product((depth // 2, depth), (3, 4)):
                if stages * (block_m + block_n) * block_k * bits // 8 <= machine.shared_bytes:
                    found.append(asdict(Tiles(block_m, block_n, block_k, stages, warps)))
        return unique(found)

    def arguments(self, key: Key, device: str) -> tuple[Any, ...]:
        dtype = {16: torch.float16, 32: torch.float32, 8: torch.int8}[key["bits"]]
        a = filled(device, key["m"], key["k"], dtype=dtype)
        # 8-bit and 32-bit types want b as the transpose of a row-major matrix, and copy it otherwise.
        plain = key["bits"] == 16
        shape = (key["k"], key["n"]) if plain else (key["n"], key["k"])
        b = filled(device, *shape, dtype=dtype)
        return a, b if plain else b.T

    def choosing(self, schedule: Schedule) -> AbstractContextManager[Any]:
        if "consumers" in schedule:
            chosen: Any = schedules.HopperSchedule(**schedule)
            return mock.patch(f"{self.module}.hopper_schedule", return_value=chosen)
        from tilus.ops.matmul import Schedule as Tiles

        return mock.patch(f"{self.module}.schedule", return_value=Tiles(**schedule))


class QuantizedMatmul(Problem):
    """`quantized_matmul` of float16 by codes of a width, with a scale for each 128 of them."""

    name, module = "quantized_matmul", "tilus.ops.quantized_matmul"
    fields = ("bits", "activations", "group", "zero")
    group = 128

    def keys(self, machine: Target) -> Iterator[Key]:
        for bits, m, n, k in product(range(1, 9), ROWS, SIDES[1:], SIDES[1:3]):
            if n * k <= LARGEST:
                yield {
                    "bits": bits,
                    "activations": 16,
                    "group": self.group,
                    "zero": False,
                    "m": m,
                    "n": n,
                    "k": k,
                }

    def form(self, key: Key) -> quantized_schedule.WeightForm:
        """Return what matters of a weight."""
        code = dtypes.dtype(f"uint{key['bits']}")
        return quantized_schedule.WeightForm(code, dtypes.float16, key["group"], key["zero"])

    def candidates(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        m, n, k, form = key["m"], key["n"], key["k"], self.form(key)
        first = quantized_schedule.choose(m, n, k, form, machine, card.processors)
        own = quantized_wgmma.wgmma_schedule(m, n, k, form, machine, card.processors)
        found: list[Schedule] = [asdict(own if own is not None else first.schedule), asdict(first.schedule)]
        if machine.has("wgmma"):
            every = quantized_wgmma.candidates(m, n, k, form, machine, card.processors)
            found += [asdict(schedule) for schedule in every]
        steps = -(-k // prepack.UNIT_K)
        for block_m, deep, stages, splits in product((8, 16, 32, 64), (1, 2, 4), (2, 3, 4), (1, 2, 4, 8)):
            tiles = -(-m // block_m) * -(-n // (128 // deep))
            if (
                (block_m > 16 and (block_m >= 2 * m or deep > 1))
                or (deep > 1 and not quantized_schedule.fits_deep(form.group, k, deep))
                or steps < deep * splits * stages
                or (splits > 1 and tiles * splits > 2 * card.processors)
            ):
                continue
            tile = replace(
                first.schedule, block_m=block_m, block_n=128 // deep, deep=deep, stages=stages, splits=splits,
                swap=block_m == 8,
            )  # fmt: skip
            if quantized_schedule.stage_bytes(tile, form) * stages <= machine.shared_bytes:
                found.append(asdict(replace(tile, late=quantized_schedule.scales_late(tile, k, form))))
        return unique(found)

    def arguments(self, key: Key, device: str) -> tuple[Any, ...]:
        m, n, k, group = key["m"], key["n"], key["k"], key["group"]
        units = -(-k // prepack.UNIT_K), -(-n // prepack.UNIT_N)
        size = prepack.unit_bytes(key["bits"])
        packed = filled(device, *units, size, dtype=torch.uint8)
        scale = filled(device, -(-k // group), units[1] * prepack.UNIT_N, dtype=torch.float16)
        zero = scale if key["zero"] else None
        return (
            filled(device, m, k, dtype=torch.float16),
            packed,
            scale,
            zero,
            f"uint{key['bits']}",
            k,
            n,
            group,
        )

    def choosing(self, schedule: Schedule) -> AbstractContextManager[Any]:
        on_wgmma = None
        if "resident" in schedule:
            on_wgmma = quantized_wgmma.WgmmaSchedule(**schedule)
        plain = quantized_schedule.Schedule(**({} if on_wgmma is not None else schedule))
        stack = ExitStack()
        stack.enter_context(mock.patch(f"{self.module}.wgmma_schedule", return_value=on_wgmma))
        choice = quantized_schedule.Choice("mma", plain)
        stack.enter_context(mock.patch(f"{self.module}.choose", return_value=choice))
        return stack


PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (Matmul(), QuantizedMatmul())}
"""The ops whose schedules are tuned and ship."""
