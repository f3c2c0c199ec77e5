"""Launches on the CPU: the simulator runs the PTX that a GPU would get."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tilus.codegen.target import target
from tilus.errors import CompileError, HazardFound, LaunchError, Location, TargetNotSupported
from tilus.ir import ScalarType
from tilus.runtime import tensor_maps
from tilus.runtime.arguments import Operand, scalar_bits
from tilus.runtime.binary import Binary
from tilus.runtime.cache import switched
from tilus.runtime.launch import grid_function, size_values
from tilus.runtime.signature import scalar_format

if TYPE_CHECKING:
    from tilus.simulator import Hazard, Module, Report

CHECKS_VARIABLE = "TILUS_SIMULATOR_CHECKS"
TARGET_VARIABLE = "TILUS_SIMULATOR_TARGET"
DEFAULT_TARGET = "sm_90a"


def checks_wanted() -> bool:
    """Tell whether launches on the CPU are checked for hazards; `TILUS_SIMULATOR_CHECKS=0` turns that off."""
    return switched(CHECKS_VARIABLE)


def default_target() -> str:
    """Return the target whose PTX CPU tensors get: `TILUS_SIMULATOR_TARGET`, or sm_90a."""
    named = os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    try:
        return target(named).name
    except TargetNotSupported as error:
        raise TargetNotSupported(
            f"the environment variable {TARGET_VARIABLE} is {named!r}, and there is no such target",
            hint=error.hint,
        ) from None


@lru_cache(maxsize=64)
def load(ptx: str) -> Module:
    """Return the simulator's module for PTX; the same text is decoded once."""
    from tilus import simulator

    try:
        return simulator.load(ptx)
    except simulator.SimulatorError as error:
        raise CompileError(f"the simulator refuses the PTX: {error}") from None


def launch(
    binary: Binary,
    operands: Sequence[Operand | None],
    values: Sequence[Any],
    *,
    checks: bool | Sequence[str] = True,
) -> Report | None:
    """Run a kernel on CPU tensors, in place.

    Parameters
    ----------
    binary : Binary
        The compiled variant.
    operands : sequence of Operand or None
        The tensors as the kernel sees them.
    values : sequence
        For each parameter, the tensor or array, or a checked number.
    checks : bool or sequence of str
        As for `tilus.simulator`.

    Returns
    -------
    Report or None
        What the simulator found and counted; None for an empty grid, which runs nothing.
    """
    from tilus import simulator

    signature = binary.signature
    sizes = size_values(signature, operands)
    numbers = {
        name: value
        for name, type, value in zip(signature.names, signature.types, values, strict=True)
        if isinstance(type, ScalarType)
    }
    grid = grid_function(signature, sizes)(numbers)
    if 0 in grid:
        return None
    arguments: list[Any] = []
    for type, value in zip(signature.types, values, strict=True):
        if isinstance(type, ScalarType):
            # As bytes: PTX does not tell a float16 from a bfloat16 parameter.
            arguments.append(struct.pack("=" + scalar_format(type.dtype), scalar_bits(type.dtype, value)))
        else:
            arguments.append(value.detach() if hasattr(value, "detach") else value)
    maps = []
    for wanted in signature.tensor_maps:
        operand = operands[wanted.param]
        assert operand is not None
        maps.append(tensor_maps.simulated(wanted, operand, arguments[wanted.param]))
    kernel = load(binary.ptx)[signature.name]
    cluster = signature.cluster if signature.cluster != (1, 1, 1) else None
    try:
        return kernel.launch(
            grid,
            (signature.threads, 1, 1),
            [*arguments, *sizes, *maps],
            cluster=cluster,
            shared_bytes=signature.shared_bytes,
            checks=checks,
        )
    except simulator.SimulatorError as error:
        raise LaunchError(f"the simulator cannot launch {signature.name}: {error}") from None


def finish(report: Report) -> None:
    """Print what the kernel printed, and raise if it has hazards."""
    if report.printed:
        sys.stdout.write(report.printed)
    if report.hazards:
        first = report.hazards[0]
        location = Location(*first.source) if first.source is not None else None
        raise HazardFound(_in_words(first, len(report.hazards) - 1), location)


def _in_words(hazard: Hazard, more: int) -> str:
    """Return a hazard without the place in the source, which the error has itself."""
    who = [f"kernel {hazard.kernel}"]
    who += [f"block {hazard.block}"] if hazard.block is not None else []
    who += [f"thread {hazard.thread}"] if hazard.thread is not None else []
    line = f" (PTX line {hazard.ptx_line}: {hazard.instruction})" if hazard.ptx_line is not None else ""
    others = f"; {more} more hazards in the report of simulate(...)" if more else ""
    return f"{hazard.kind}: {hazard.message}, in {', '.join(who)}{line}{others}"
