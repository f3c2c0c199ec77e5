"""Memory as the interpreter sees it: global buffers, shared arrays, late copies and barriers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tilus.dtypes import DType
from tilus.errors import HazardFound, LaunchError
from tilus.ir.numerics import Array, storage

Copy = Callable[[], None]


class Packed:
    """A buffer of bytes read as bit-compact elements of fewer bits, one after the other."""

    def __init__(self, memory: Array, dtype: DType) -> None:
        self.memory = memory
        self.bits = dtype.bits
        self.dtype = dtype.code_numpy
        self.size = memory.size * 8 // dtype.bits

    def _bits_of(self, places: Array | int) -> Array:
        return np.asarray(places)[..., None] * self.bits + np.arange(self.bits)

    def __getitem__(self, places: Array | int) -> Array:
        bits = self._bits_of(places)
        found = (self.memory[bits // 8] >> (bits % 8).astype(np.uint8)) & np.uint8(1)
        return np.asarray((found << np.arange(self.bits, dtype=np.uint8)).sum(-1, dtype=np.uint8))

    def __setitem__(self, places: Array | int, codes: Array) -> None:
        memory = np.unpackbits(self.memory, bitorder="little")
        memory[self._bits_of(places)] = (
            np.asarray(codes)[..., None] >> np.arange(self.bits, dtype=np.uint8) & 1
        )
        self.memory[:] = np.packbits(memory, bitorder="little")


@dataclass(frozen=True)
class Pointer:
    """A place in a flat buffer, in elements."""

    buffer: Array | Packed
    offset: int = 0

    def cast(self, source: DType, target: DType) -> Pointer:
        """Return the same address as a pointer to another dtype."""
        if source == target:
            return self
        start = self.offset * source.bits
        if start % 8 or (source.is_subbyte and not isinstance(self.buffer, Packed)):
            raise HazardFound(
                f"a pointer to {source} at bit {start} of a buffer cannot be cast; give packed bytes as uint8"
            )
        memory = self.buffer.memory if isinstance(self.buffer, Packed) else self.buffer.view(np.uint8)
        memory = memory[start // 8 :]
        if target.is_subbyte:
            return Pointer(Packed(memory, target))
        item = storage(target).itemsize
        return Pointer(memory[: memory.size // item * item].view(storage(target)))


@dataclass(frozen=True)
class GlobalTensor:
    """A tensor in a flat buffer: extents and strides, in elements."""

    pointer: Pointer
    dims: tuple[int, ...]
    strides: tuple[int, ...]

    def locate(
        self, indices: list[Array], shape: tuple[int, ...], checked: tuple[bool, ...], mask: Array | None
    ) -> tuple[Array, Array]:
        """Return (places in the buffer, which elements are accessed) of index arrays, one for each dimension.

        An element outside of a checked dimension is not accessed; outside of another dimension it is an error.
        """
        active = np.ones(shape, bool) if mask is None else mask.copy()
        for axis, (index, extent) in enumerate(zip(indices, self.dims, strict=True)):
            inside = np.broadcast_to((index >= 0) & (index < extent), shape)
            if checked[axis]:
                active &= inside
            elif not inside[active].all():
                wrong = np.broadcast_to(index, shape)[active & ~inside][0]
                raise HazardFound(
                    f"index {wrong} of dimension {axis}, whose extent is {extent}, is not checked"
                )
        places = np.full(shape, self.pointer.offset, np.int64)
        for index, stride in zip(indices, self.strides, strict=True):
            places += np.asarray(index, np.int64) * stride
        used = places[active]
        if used.size and (used.min() < 0 or used.max() >= self.pointer.buffer.size):
            raise HazardFound(
                f"elements {used.min()} to {used.max()} of a buffer of {self.pointer.buffer.size} elements"
            )
        return places, active

    def load(self, places: Array, active: Array, other: Array) -> Array:
        """Return the elements at places of the buffer, and `other` where they are not accessed."""
        made = np.full(places.shape, other, self.pointer.buffer.dtype)
        made[active] = self.pointer.buffer[places[active]]
        return made

    def store(self, places: Array, active: Array, values: Array) -> None:
        """Store elements at places of the buffer."""
        self.pointer.buffer[places[active]] = values[active]


def tile_indices(offsets: list[int], shape: tuple[int, ...]) -> list[Array]:
    """Return the index arrays of a tile of `shape`, whose dimensions are the last ones, at `offsets`."""
    leading = len(offsets) - len(shape)
    indices = []
    for axis, offset in enumerate(offsets):
        if axis < leading:
            indices.append(np.array(offset))
        else:
            along = [1] * len(shape)
            along[axis - leading] = shape[axis - leading]
            indices.append((offset + np.arange(shape[axis - leading])).reshape(along))
    return indices


def flat(array: Array) -> Array:
    """Return the buffer that an array lies in, from its first element on, without a copy."""
    item = array.dtype.itemsize
    if any(step < 0 or step % item for step in array.strides):
        raise LaunchError(
            f"strides of {array.strides} bytes, but expected multiples of {item} that are not negative"
        )
    extent = (
        1 + sum((n - 1) * step // item for n, step in zip(array.shape, array.strides)) if array.size else 0
    )
    return np.lib.stride_tricks.as_strided(array, (extent,), (item,))


def undefined(dtype: DType, shape: tuple[int, ...]) -> Array:
    """Return an array with all bits set, which a float shows as NaN and an integer as its extreme."""
    made = np.empty(shape, storage(dtype))
    made.reshape(-1).view(np.uint8)[:] = 0xFF
    if dtype.numpy is None:
        made &= dtype.code_numpy.type(dtype.code_mask)
    return made != 0 if dtype.is_boolean else made


@dataclass
class CopyQueue:
    """What one group of threads started: it happens at the wait that covers it, not before."""

    started: list[Copy] = field(default_factory=list)
    groups: deque[list[Copy]] = field(default_factory=deque)

    def commit(self) -> None:
        """Close the group of the copies started since the last commit."""
        self.groups.append(self.started)
        self.started = []

    def wait(self, pending: int) -> None:
        """Do the oldest groups until `pending` are left."""
        while len(self.groups) > pending:
            for copy in self.groups.popleft():
                copy()


@dataclass(eq=False)
class LateTile:
    """The result of an asynchronous product of matrices, which is computed at the wait that covers it."""

    compute: Callable[[], Array]
    value: Array | None = None

    def finish(self) -> Array:
        """Return the tile; operands in shared memory are read now."""
        if self.value is None:
            self.value = self.compute()
        return self.value


@dataclass
class Barrier:
    """An mbarrier: a phase is complete when all arrivals are in and no announced byte is missing."""

    arrivals: int
    missing: int = 0
    transactions: int = 0
    phase: int = 0
    copies: deque[tuple[int, Copy]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.missing = self.arrivals

    def arrive(self, transactions: int) -> None:
        """Arrive once, announcing bytes."""
        if self.missing == 0:
            raise HazardFound(f"more than {self.arrivals} arrivals in one phase of a barrier")
        self.missing -= 1
        self.transactions += transactions
        self._advance()

    def is_complete(self, parity: int) -> bool:
        """Tell whether the phase of a parity is complete; the copies that it waits for happen now."""
        while self.phase % 2 == parity and self.copies:
            transactions, copy = self.copies.popleft()
            copy()
            self.transactions -= transactions
            self._advance()
        return self.phase % 2 != parity

    def _advance(self) -> None:
        if self.missing == 0 and self.transactions == 0:
            self.phase += 1
            self.missing = self.arrivals


def tile_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tile takes in shared memory."""
    return dtype.packed_nbytes(prod(shape))
