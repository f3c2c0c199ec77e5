"""Launch plans: everything about a launch that does not change while its tensors keep their shapes.

A plan holds the loaded function, the grid, and argument buffers in which only pointers and scalars are still
missing. To launch is to recognise the plan, write these, and call the driver; nothing is allocated on the GPU, so a
CUDA graph can capture it.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilus.errors import LaunchError
from tilus.ir import ScalarType
from tilus.runtime.arguments import Operand, scalar_bits
from tilus.runtime.host_expression import evaluator, leaves
from tilus.runtime.signature import Signature, scalar_format
from tilus.runtime.tensor_maps import ALIGNMENT, BYTES

GRID_LIMITS = (2**31 - 1, 65535, 65535)
Grid = tuple[int, int, int]
SLOT = 8
_Buffer = tuple[Any, int, memoryview]


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
        hint = "the largest extent as the first of tilus.grid(...), or fewer blocks that do more each"
        raise LaunchError(
            f"{signature.name} has the grid {grid}, expected extents from 0 to {GRID_LIMITS}",
            hint=hint if min(grid) >= 0 else None,
        )
    if any(extent % blocks for extent, blocks in zip(grid, signature.cluster, strict=True)):
        raise LaunchError(
            f"{signature.name} has the grid {grid}, expected multiples of its cluster {signature.cluster}"
        )
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
        Gives the handle of a device's current stream.
    current_device : callable
        Gives the device that is current.
    device : int
        The device of the plan.
    slow_launch : callable
        Called with the arguments of the launch where another device is current, or where the driver refused it.
    encoders : sequence of callable
        For each tensor map, a function from the tensor's address to the map.

    Attributes
    ----------
    run : callable
        Launches with pointers and scalars. Scalars that do not fit their types raise `struct.error` or OverflowError.
    """

    __slots__ = ("_fixed", "_maps", "_order", "run", "signature")

    def __init__(
        self,
        signature: Signature,
        operands: Sequence[Operand | None],
        handle: Any,
        driver_launch: Callable[..., tuple[Any, ...]],
        stream: Callable[[int], int],
        current_device: Callable[[], int],
        device: int,
        slow_launch: Callable[..., None],
        encoders: Sequence[Callable[[int], bytes]] = (),
    ) -> None:
        self.signature = signature
        sizes = size_values(signature, operands)
        scalars = [i for i, type in enumerate(signature.types) if isinstance(type, ScalarType)]
        pointers = [i for i in range(len(signature.types)) if i not in scalars]
        # Pointers, then scalars, then sizes, each in a slot of its own; the driver gets the addresses in its order.
        self._fixed = (0,) * len(signature.types) + tuple(value & (2**64 - 1) for value in sizes)
        slots = {parameter: slot for slot, parameter in enumerate(pointers + scalars)}
        self._order = [slots[i] for i in range(len(signature.types))]
        self._order += range(len(signature.types), len(self._fixed))
        self._maps = [
            (slots[wanted.param], encode)
            for wanted, encode in zip(signature.tensor_maps, encoders, strict=True)
        ]
        self.run = self._runner(
            len(pointers), sizes, handle, driver_launch, stream, current_device, device, slow_launch
        )

    def _new_buffer(self) -> _Buffer:
        """Return memory for arguments, the address of the list of their addresses, and where tensor maps lie."""
        slots, maps = len(self._fixed), len(self._maps)
        addresses = len(self._order) + maps
        unaligned = slots + addresses
        words = unaligned + (ALIGNMENT + maps * BYTES) // SLOT if maps else unaligned
        buffer = array("Q", bytes(words * SLOT))
        buffer[:slots] = array("Q", self._fixed)
        start = buffer.buffer_info()[0]
        first_map = -(-(start + unaligned * SLOT) // ALIGNMENT) * ALIGNMENT - start
        for i, slot in enumerate(self._order):
            buffer[slots + i] = start + SLOT * slot
        for i in range(maps):
            buffer[slots + len(self._order) + i] = start + first_map + BYTES * i
        return buffer, start + SLOT * slots, memoryview(buffer).cast("B")[first_map:]

    def _runner(
        self,
        pointers: int,
        sizes: Sequence[int],
        handle: Any,
        driver_launch: Callable[..., tuple[Any, ...]],
        stream: Callable[[int], int],
        current_device: Callable[[], int],
        device: int,
        slow_launch: Callable[..., None],
    ) -> Callable[..., None]:
        """Return the function that launches; all that it needs is in its closure, which Python reads fastest."""
        signature = self.signature
        threads, shared = signature.threads, signature.shared_bytes
        names = [name for name, type in zip(signature.names, signature.types) if isinstance(type, ScalarType)]
        types = [type.dtype for type in signature.types if isinstance(type, ScalarType)]
        formats = [scalar_format(dtype) for dtype in types]
        padded = "".join(code + "x" * (SLOT - struct.calcsize(code)) for code in formats)
        pack = struct.Struct(f"={'Q' * pointers}{padded}").pack_into
        compute = grid_function(signature, sizes)
        varying = any(leaf[0] == "scalar" for extent in signature.grid for leaf in leaves(extent))
        grid: Grid = (0, 0, 0) if varying else compute({})
        as_bits = any(dtype.name == "bfloat16" for dtype in types)
        # A buffer is taken out while a launch uses it, so that threads never share one.
        pool: list[_Buffer] = []
        maps = [
            (slice(BYTES * i, BYTES * (i + 1)), slot, encode) for i, (slot, encode) in enumerate(self._maps)
        ]

        def run_fixed(pointers: Sequence[int], scalars: Sequence[int | float] = ()) -> None:
            try:
                entry = pool.pop()
            except IndexError:
                entry = self._new_buffer()
            buffer, address, memory = entry
            pack(buffer, 0, *pointers, *scalars)
            for place, slot, encode in maps:
                memory[place] = encode(pointers[slot])
            if (
                current_device() != device
                or driver_launch(handle, x, y, z, threads, 1, 1, shared, stream(device), address, 0)[0]
            ):
                slow_launch(handle, grid, threads, shared, address)
            pool.append(entry)

        def run_varying(pointers: Sequence[int], scalars: Sequence[int | float] = ()) -> None:
            extents = compute(dict(zip(names, scalars)))
            if 0 in extents:
                return
            buffer, address, memory = self._new_buffer()
            bits = [scalar_bits(dtype, value) for dtype, value in zip(types, scalars)]
            pack(buffer, 0, *pointers, *bits)
            for place, slot, encode in maps:
                memory[place] = encode(pointers[slot])
            if (
                current_device() != device
                or driver_launch(handle, *extents, threads, 1, 1, shared, stream(device), address, 0)[0]
            ):
                slow_launch(handle, extents, threads, shared, address)

        def run_nothing(pointers: Sequence[int], scalars: Sequence[int | float] = ()) -> None:
            return

        x, y, z = grid
        if varying:
            return run_varying
        if 0 in grid:
            return run_nothing
        if as_bits:
            return lambda pointers, scalars: run_fixed(pointers, list(map(scalar_bits, types, scalars)))
        return run_fixed
