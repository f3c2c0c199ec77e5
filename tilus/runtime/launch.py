"""Launch plans: everything about a launch that does not change while its tensors keep their shapes.

A plan holds the loaded function, the grid, and argument buffers in which only pointers and scalars are still
missing. To launch is to recognise the plan, write these, and call the driver; nothing is allocated on the GPU, so a
CUDA graph can capture it.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from tilus.errors import LaunchError
from tilus.ir import ScalarType
from tilus.runtime.arguments import Operand, scalar_bits
from tilus.runtime.host_expression import evaluator, leaves
from tilus.runtime.signature import Signature, scalar_format

GRID_LIMITS = (2**31 - 1, 65535, 65535)
Grid = tuple[int, int, int]
SLOT = 8


def size_values(signature: Signature, operands: Sequence[Operand | None]) -> list[int]:
    """Return the extents and strides that a launch passes, in order."""
    values = []
    for size in signature.sizes:
        operand = operands[size.parameter]
        assert operand is not None
        values.append(operand.shape[size.axis] if size.kind == "dim" else operand.strides[size.axis])
    return values


def grid_function(signature: Signature, sizes: Sequence[int]) -> Callable[[Mapping[str, int | float]], Grid]:
    """Return a function from scalar arguments to the checked grid."""
    environment = {("size", size.name): value for size, value in zip(signature.sizes, sizes, strict=True)}
    extents = [evaluator(expression) for expression in signature.grid]
    read = set().union(*(leaves(expression) for expression in signature.grid))
    scalars = [name for kind, name in read if kind == "scalar"]

    def compute(values: Mapping[str, int | float]) -> Grid:
        known = environment | {("scalar", name): int(values[name]) for name in scalars}
        try:
            x, y, z = (extent(known) for extent in extents)
        except ZeroDivisionError:
            raise LaunchError(f"the grid of {signature.name} divides by zero") from None
        return checked_grid(signature, (x, y, z))

    if scalars:
        return compute
    constant = compute({})
    return lambda values: constant


def checked_grid(signature: Signature, grid: Grid) -> Grid:
    """Check that the device takes a grid; one with an extent of zero is no launch, and fine."""
    if any(extent < 0 or extent > limit for extent, limit in zip(grid, GRID_LIMITS, strict=True)):
        raise LaunchError(f"{signature.name} has the grid {grid}, expected extents from 0 to {GRID_LIMITS}")
    if any(extent % blocks for extent, blocks in zip(grid, signature.cluster, strict=True)):
        raise LaunchError(f"{signature.name} has the grid {grid}, expected multiples of its clusters {signature.cluster}")
    return grid


class Plan:
    """A launch of one variant on one device with tensors of fixed shapes and strides.

    Parameters
    ----------
    signature : Signature
        Of the variant.
    operands : sequence of Operand or None
        The tensors, as checked.
    handle : object
        The loaded function.
    driver_launch : callable
        `cuLaunchKernel`, or what stands in for it.
    stream : callable
        Gives the handle of the current stream.
    failed : callable
        Called with a status that is not success, the grid, the stream and the arguments' address.
    """

    __slots__ = (
        "_address", "_failed", "_fixed", "_grid", "_handle", "_launch", "_pack", "_pool", "_scalar_names",
        "_scalar_types", "_shared", "_stream", "_threads", "_varying_grid", "order", "signature",
    )  # fmt: skip

    def __init__(
        self,
        signature: Signature,
        operands: Sequence[Operand | None],
        handle: Any,
        driver_launch: Callable[..., tuple[Any, ...]],
        stream: Callable[[], int],
        failed: Callable[[Any, Grid, int, int], None],
    ) -> None:
        self.signature = signature
        self._handle = handle
        self._launch = driver_launch
        self._stream = stream
        self._failed = failed
        self._threads, self._shared = signature.threads, signature.shared_bytes
        sizes = size_values(signature, operands)
        compute = grid_function(signature, sizes)
        reads_scalars = any(leaf[0] == "scalar" for extent in signature.grid for leaf in leaves(extent))
        self._varying_grid = compute if reads_scalars else None
        self._grid: Grid = (0, 0, 0) if reads_scalars else compute({})
        scalars = [i for i, type in enumerate(signature.types) if isinstance(type, ScalarType)]
        pointers = [i for i in range(len(signature.types)) if i not in scalars]
        self._scalar_names = [signature.names[i] for i in scalars]
        self._scalar_types = [type.dtype for type in signature.types if isinstance(type, ScalarType)]
        # Pointers, then scalars, then sizes, each in a slot of its own; the driver gets the addresses in its order.
        formats = [scalar_format(dtype) for dtype in self._scalar_types]
        padded = "".join(code + "x" * (SLOT - struct.calcsize(code)) for code in formats)
        self._pack = struct.Struct(f"={'Q' * len(pointers)}{padded}").pack_into
        self._fixed = (0,) * len(signature.types) + tuple(value & (2**64 - 1) for value in sizes)
        slots = {parameter: slot for slot, parameter in enumerate(pointers + scalars)}
        self.order = [slots[i] for i in range(len(signature.types))] + [
            len(signature.types) + i for i in range(len(sizes))
        ]
        # Filled by launches: a buffer is taken out while one runs, so that threads never share one.
        self._pool: list[tuple[array[int], int]] = []

    def _new_buffer(self) -> tuple[array[int], int]:
        buffer = array("Q", self._fixed + (0,) * len(self.order))
        start = buffer.buffer_info()[0]
        first = len(self._fixed)
        for i, slot in enumerate(self.order):
            buffer[first + i] = start + SLOT * slot
        return buffer, start + SLOT * first

    def run(self, pointers: Sequence[int], scalars: Sequence[int | float] = ()) -> None:
        """Launch; scalars that do not fit their types raise `struct.error` or OverflowError."""
        if scalars:
            scalars = [
                scalar_bits(dtype, value) if dtype.name == "bfloat16" else value
                for dtype, value in zip(self._scalar_types, scalars)
            ]
        grid = self._grid
        if self._varying_grid is not None:
            grid = self._varying_grid(dict(zip(self._scalar_names, scalars)))
        x, y, z = grid
        if not (x and y and z):
            return
        pool = self._pool
        try:
            entry = pool.pop()
        except IndexError:
            entry = self._new_buffer()
        buffer, address = entry
        self._pack(buffer, 0, *pointers, *scalars)
        stream = self._stream()
        status = self._launch(self._handle, x, y, z, self._threads, 1, 1, self._shared, stream, address, 0)[0]
        if status:
            self._failed(status, grid, stream, address)
        pool.append(entry)


class RecentPlan:
    """The plan of the last launch with what recognises the next one like it at the least cost.

    Attributes
    ----------
    arity : int
        Number of positional arguments.
    names, values : tuple
        The constexpr arguments of the call.
    check : callable
        Tells whether tensors have the type, dtype, device, shape and strides of the plan's.
    misalignment : int
        The low four bits of all pointers, or-ed.
    alignments : tuple of int
        The low four bits of each pointer.
    """

    __slots__ = ("alignments", "arity", "check", "misalignment", "names", "plan", "values")

    def __init__(
        self, plan: Plan, arity: int, options: Mapping[str, Any], check: Callable[..., bool], pointers: Sequence[int]
    ) -> None:
        self.plan = plan
        self.arity = arity
        self.names = tuple(options)
        self.values = tuple(options.values())
        self.check = check
        self.alignments = alignments(pointers)
        self.misalignment = misalignment(pointers)

    def takes(self, options: Mapping[str, Any]) -> bool:
        """Tell whether constexpr arguments are the very same objects."""
        return tuple(options) == self.names and all(map(operator.is_, options.values(), self.values))


def misalignment(pointers: Sequence[int]) -> int:
    """Return the low four bits of all pointers, or-ed."""
    bits = 0
    for pointer in pointers:
        bits |= pointer
    return bits & 15


def alignments(pointers: Sequence[int]) -> tuple[int, ...]:
    """Return the low four bits of each pointer."""
    return tuple(pointer & 15 for pointer in pointers)


def total_blocks(signature: Signature) -> int:
    """Return the number of blocks of a cluster."""
    return prod(signature.cluster)
