"""What a tuner must know of an op: its classes of problems, its candidates, and how to run one of them.

Without a GPU an op's launches are recorded on torch's meta device, where nothing has memory and nothing runs: the op's
own code says which kernels it launches with which arguments, for a card that need not be there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any
from unittest import mock

import torch

import tilus.ops.quantized_matmul  # noqa: F401
from tilus import dtypes
from tilus.codegen import Target, target
from tilus.codegen.figures import Figures
from tilus.errors import TilusError
from tilus.ops import prepack, quantized_schedule, quantized_wgmma, schedules
from tilus.ops.matmul import Schedule as PlainSchedule
from tilus.ops.matmul import result_dtype
from tilus.ops.matmul import schedule as plain_schedule
from tilus.ops.tokens import ALIGN, BLOCK
from tilus.ops.tuned import forced
from tilus.runtime.kernel import Kernel

Key = dict[str, Any]
Schedule = dict[str, Any]
Launch = tuple[Kernel, tuple[Any, ...], dict[str, Any]]

# A problem's sizes may be twice or half of these, see `tilus.ops.tuned`.
ROWS = (16, 32, 64, 128, 256, 1024, 4096)
SIDES = (1024, 4096, 16384, 65536)
FEW = 8
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

    def key(self, bits: int, m: int, n: int, k: int) -> Key:
        """Return the key of a problem of the commonest form."""
        raise TilusError(f"{self.name} does not say this of itself")

    def keys(self, machine: Target) -> Iterator[Key]:
        """Yield the keys that ship."""
        raise TilusError(f"{self.name} does not say this of itself")

    def candidates(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        """Return schedules as plain data; the heuristic's own is the first."""
        raise TilusError(f"{self.name} does not say this of itself")

    def few(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        """Return the candidates that are worth an estimate from the kernel's own code; the heuristic's is the first."""
        return self.candidates(key, machine, card)

    def heuristic(self, key: Key, machine: Target, card: Figures) -> Schedule:
        """Return the schedule that the op would choose itself."""
        return self.candidates(key, machine, card)[0]

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
        stack.enter_context(replaced(module, "target_of", target(card.target)))
        stack.enter_context(replaced(module, "processors", card.processors))
        yield launches


def replaced(module: str, function: str, value: Any) -> AbstractContextManager[Any]:
    """Let a function of a module return a value, whatever it is asked."""

    # A function, for making a mock takes longer than most ops.
    def known(*arguments: Any, **options: Any) -> Any:
        return value

    return mock.patch.object(sys.modules[module], function, known)


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
    """`matmul` of two matrices of one type, by its bits.

    A key may also say the operands' `dtype`, whether b is `turned`, and an `epilogue` ("bias", "residual", "scales"):
    what ships does not depend on them, what is compiled does.
    """

    name, module, fields = "matmul", "tilus.ops.matmul", ("bits",)

    def key(self, bits: int, m: int, n: int, k: int) -> Key:
        return {"bits": bits, "m": m, "n": n, "k": k}

    def keys(self, machine: Target) -> Iterator[Key]:
        for bits, m, n, k in product((16, 8), ROWS, SIDES, SIDES):
            if n * k <= LARGEST:
                yield self.key(bits, m, n, k)

    def heuristic(self, key: Key, machine: Target, card: Figures) -> Schedule:
        m, n, bits = key["m"], key["n"], key["bits"]
        if not machine.has("wgmma"):
            return asdict(plain_schedule(m, n, bits, machine))
        out_bits, most = self._limits(key)
        return asdict(
            schedules.hopper_schedule(m, n, key["k"], 1, bits, out_bits, machine, card.processors, most)
        )

    @staticmethod
    def _limits(key: Key) -> tuple[int, int]:
        """Return the bits of the result, and how many sums a thread may hold."""
        many = key.get("epilogue") in ("residual", "scales")
        return (
            32 if key["bits"] == 32 else 16,
            schedules.FEWER_ACCUMULATORS if many else schedules.MOST_ACCUMULATORS,
        )

    def candidates(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        m, bits = key["m"], key["bits"]
        found = [self.heuristic(key, machine, card)]
        if machine.has("wgmma"):
            out_bits, most = self._limits(key)
            every = schedules.hopper_candidates(bits, out_bits, machine, most)
            return unique([*found, *(asdict(c) for c in every if c.block_m < 2 * max(m, 64))])
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
                    found.append(asdict(PlainSchedule(block_m, block_n, block_k, stages, warps)))
        return unique(found)

    def few(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        found = self.candidates(key, machine, card)
        if not machine.has("wgmma"):
            return found

        def cycles(chosen: Schedule) -> float:
            made = schedules.HopperSchedule(**chosen)
            return schedules.estimated_cycles(
                made, key["m"], key["n"], key["k"], 1, key["bits"], card.processors
            )

        return [found[0], *sorted(found[1:], key=cycles)[:FEW]]

    def arguments(self, key: Key, device: str) -> tuple[Any, ...]:
        m, n, k = key["m"], key["n"], key["k"]
        dtype = key.get("dtype") or {16: torch.float16, 32: torch.float32, 8: torch.int8}[key["bits"]]
        a = filled(device, m, k, dtype=dtype)
        # 8-bit and 32-bit types want b as the transpose of a row-major matrix, and copy it otherwise.
        turned = key.get("turned", key["bits"] != 16)
        b = filled(device, n, k, dtype=dtype).T if turned else filled(device, k, n, dtype=dtype)
        out, epilogue = result_dtype(a), key.get("epilogue", "")
        bias = filled(device, n, dtype=out) if epilogue in ("bias", "scales") else None
        residual = filled(device, m, n, dtype=out) if epilogue == "residual" else None
        factors = [filled(device, size, dtype=torch.float32) for size in (m, n)]
        scales = factors if epilogue == "scales" else [None, None]
        return a, b, bias, residual, *scales, "gelu" if epilogue == "bias" else ""

    def choosing(self, schedule: Schedule) -> AbstractContextManager[Any]:
        if "consumers" in schedule:
            chosen: Any = schedules.HopperSchedule(**schedule)
            return replaced(self.module, "hopper_schedule", chosen)
        return replaced(self.module, "schedule", PlainSchedule(**schedule))


HALF = 16
BYTES = {"int8": torch.int8, "float8_e4m3": torch.float8_e4m3fn}
"""Activations of 8 bits, by what a key calls them; those of 16 bits are `HALF`."""
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Form:
    """A form of weights that ships: the codes, the activations, the groups, and whether there are zero points."""

    code: str
    activations: int | str
    group: int
    zero: bool


FORMS = (
    Form("int4", HALF, 128, False), Form("int4", HALF, 128, True), Form("int8", HALF, -1, False),
    Form("int2", HALF, 128, True), Form("float4_e2m1", HALF, 32, False), Form("float8_e4m3", HALF, -1, False),
    Form("int4", "int8", 128, False), Form("int8", "int8", -1, False), Form("int4", HALF, 64, True),
    Form("int4", HALF, 32, True), Form("nf4", HALF, 64, False),
)  # fmt: skip
"""The commonest; MXFP4, NF4 and float8 by channel among them. For others the heuristic decides."""

STORED = {16: dtypes.float8_e4m3, 32: dtypes.float8_e8m0}
STORED_BY = ("float4_e2m1", "float6_e3m2", "float6_e2m3")
"""Scales of 8 bits of the formats that have them, by the group: NVFP4, and MXFP4 and MXFP6."""


def fits(
    tile: quantized_schedule.Schedule, form: quantized_schedule.WeightForm, k: int, machine: Target
) -> bool:
    """Tell whether a schedule of mma.sync fits a weight's groups and a target's shared memory."""
    whole = tile.deep == 1 or quantized_schedule.fits_deep(form.group, k, tile.deep)
    return whole and quantized_schedule.stage_bytes(tile, form) * tile.stages <= machine.shared_bytes


class QuantizedMatmul(Problem):
    """`quantized_matmul` by the form of the weight; integers of a width count as one, with a sign or without.

    A key may also say the very `dtype` of the codes, the `half` type of the results, and whether activations of 8 bits
    are scaled `by_block`: what ships does not depend on them, what is compiled does.
    """

    name, module = "quantized_matmul", "tilus.ops.quantized_matmul"
    fields = ("code", "activations", "group", "zero")

    def key(self, bits: int, m: int, n: int, k: int) -> Key:
        return {**asdict(Form(f"int{bits}", HALF, 128, False)), "m": m, "n": n, "k": k}

    def keys(self, machine: Target) -> Iterator[Key]:
        # A lookup takes a class twice as large or half. With more rows the tensor core is what limits.
        for form, m, n, k in product(FORMS, (16, 64, 256), SIDES[1:], SIDES[1:3]):
            if n * k <= LARGEST:
                yield {**asdict(form), "m": m, "n": n, "k": k}

    def dtype(self, key: Key) -> dtypes.DType:
        """Return the type of the codes."""
        code = str(key["code"])
        plain = f"u{code}" if key["zero"] and code.startswith("int") else code
        return dtypes.dtype(key.get("dtype", plain))

    def form(self, key: Key) -> quantized_schedule.WeightForm:
        """Return what matters of a weight."""
        own = key["activations"] if key["activations"] != HALF else key.get("half", "float16")
        group = key["k"] if key["group"] == -1 else key["group"]
        stored = self.stored(key)
        return quantized_schedule.WeightForm(self.dtype(key), dtypes.dtype(own), group, key["zero"], stored)

    def stored(self, key: Key) -> dtypes.DType | None:
        """Return the type of scales of 8 bits, which small floats in groups of 16 and 32 have."""
        if "scales" in key:
            return dtypes.dtype(key["scales"]) if key["scales"] else None
        return STORED.get(key["group"]) if key["code"] in STORED_BY else None

    def heuristic(self, key: Key, machine: Target, card: Figures) -> Schedule:
        problem = key["m"], key["n"], key["k"], self.form(key), machine, card.processors
        own = quantized_wgmma.wgmma_schedule(*problem, by_block=bool(key.get("by_block")))
        return asdict(quantized_schedule.choose(*problem).schedule if own is None else own)

    def on_warpgroups(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        """Return the schedules for wgmma, those of fewer estimated cycles first."""
        if not machine.has("wgmma"):
            return []
        problem = key["m"], key["n"], key["k"], self.form(key), machine, card.processors
        found = list(quantized_wgmma.candidates(*problem, by_block=bool(key.get("by_block"))))
        found.sort(key=lambda s: quantized_wgmma.estimate(s, *problem, bool(key.get("by_block"))))
        return [asdict(schedule) for schedule in found]

    def candidates(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        m, n, k, form = key["m"], key["n"], key["k"], self.form(key)
        first = quantized_schedule.choose(m, n, k, form, machine, card.processors).schedule
        found = [self.heuristic(key, machine, card), asdict(first), *self.on_warpgroups(key, machine, card)]
        steps = -(-k // prepack.UNIT_K)
        for block_m, deep, stages, splits in product((8, 16, 32, 64), (1, 2, 4), (2, 3, 4), (1, 2, 4, 8)):
            tiles = -(-m // block_m) * -(-n // (128 // deep))
            if (
                (block_m > 16 and (block_m >= 2 * m or deep > 1))
                or steps < deep * splits * stages
                or (splits > 1 and tiles * splits > 2 * card.processors)
            ):
                continue
            tile = replace(
                first, block_m=block_m, block_n=128 // deep, deep=deep, stages=stages, splits=splits,
                swap=block_m == 8,
            )  # fmt: skip
            if fits(tile, form, k, machine):
                found.append(asdict(replace(tile, late=quantized_schedule.scales_late(tile, k, form))))
        return unique(found)

    def few(self, key: Key, machine: Target, card: Figures) -> list[Schedule]:
        m, n, k, form = key["m"], key["n"], key["k"], self.form(key)
        first = quantized_schedule.choose(m, n, k, form, machine, card.processors).schedule
        found = [
            self.heuristic(key, machine, card),
            *self.on_warpgroups(key, machine, card)[:FEW],
            asdict(first),
        ]
        steps = -(-k // prepack.UNIT_K)
        wide, deep = first.block_n, first.deep
        changes: list[Schedule] = [
            {"stages": first.stages - 1}, {"stages": first.stages + 1}, {"splits": 2 * first.splits},
            {"splits": first.splits // 2}, {"block_n": wide // 2, "deep": 2 * deep},
            {"block_n": 2 * wide, "deep": deep // 2}, {"block_n": 2 * wide}, {"block_n": wide // 2},
            {"block_m": 2 * first.block_m, "swap": False}, {"block_m": first.block_m // 2, "swap": first.block_m == 16},
        ]  # fmt: skip
        for change in changes:
            tile = replace(first, **change)
            sensible = min(tile.stages, tile.deep, tile.splits) > 0 and 32 <= tile.block_n * tile.deep <= 256
            if (
                sensible
                and 8 <= tile.block_m < 2 * max(m, 8)
                and tile.block_n >= prepack.UNIT_N
                and tile.stages > 1
                and (tile.deep == 1 or tile.block_m <= 16)
                and steps >= tile.deep * tile.splits * tile.stages
                and fits(tile, form, k, machine)
            ):
                found.append(asdict(replace(tile, late=quantized_schedule.scales_late(tile, k, form))))
        return unique(found)

    def arguments(self, key: Key, device: str) -> tuple[Any, ...]:
        m, n, k, form = key["m"], key["n"], key["k"], self.form(key)
        units = -(-k // prepack.UNIT_K), -(-n // prepack.UNIT_N)
        packed = filled(device, *units, prepack.unit_bytes(form.dtype.bits), dtype=torch.uint8)
        half = HALVES[key.get("half", "float16")]
        groups = -(-k // form.group), units[1] * prepack.UNIT_N
        scale = filled(device, *groups, dtype=half if form.scale is None else torch.uint8)
        zero = filled(device, *groups, dtype=half) if key["zero"] else None
        weight = packed, scale, zero, form.dtype.name, k, n, form.group
        stored = "" if form.scale is None else form.scale.name
        if key["activations"] == HALF:
            return filled(device, m, k, dtype=half), *weight, 1.0, None, None, "", False, stored
        blocks = -(-k // BLOCK) if key.get("by_block") else 1
        row_scale = filled(device, blocks, -(-m // ALIGN) * ALIGN, dtype=torch.float32)
        rows = filled(device, m, k, dtype=BYTES[key["activations"]])
        return rows, row_scale, *weight, 1.0, None, "", False, stored, half if stored else None

    def run(self, arguments: tuple[Any, ...]) -> torch.Tensor:
        ops = sys.modules[self.module]
        run = ops._run if arguments[0].dtype in HALVES.values() else ops._run_bytes
        result: torch.Tensor = run(*arguments)
        return result

    def choosing(self, schedule: Schedule) -> AbstractContextManager[Any]:
        on_wgmma = None
        if "resident" in schedule:
            on_wgmma = quantized_wgmma.WgmmaSchedule(**schedule)
        plain = quantized_schedule.Schedule(**({} if on_wgmma is not None else schedule))
        stack = ExitStack()
        stack.enter_context(replaced(self.module, "wgmma_schedule", on_wgmma))
        stack.enter_context(replaced(self.module, "choose", quantized_schedule.Choice("mma", plain)))
        return stack


PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (Matmul(), QuantizedMatmul())}
"""The ops whose schedules are tuned and ship."""
