"""Kernel arguments: arrays become device allocations, numbers and structs bytes of the parameter buffer."""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import LaunchError
from .spaces import AddressSpace, Allocation, GlobalMemory
from .types import TYPES

_WORD = 4


class DeviceArray(np.ndarray[Any, Any]):
    """A NumPy array that keeps one device address for its whole life (`device_array` makes it)."""

    @property
    def address(self) -> int:
        """The device address of the first element, for pointers stored in memory or passed as numbers."""
        allocation = DEVICE.allocation_of(self)
        return allocation.base + _host_address(self) - _host_address(allocation.data)


class Device:
    """The simulated device: its address space, and the arrays that live on it between launches."""

    def __init__(self) -> None:
        self.addresses = AddressSpace()
        self.arrays: list[tuple[Any, Allocation]] = []

    def register(self, array: Any, backing: Any) -> None:
        """Give an array an address of its own; its bytes in whole words are the backing."""
        allocation = Allocation(
            self.addresses.reserve(array.nbytes),
            backing,
            f"device array {array.dtype}{list(array.shape)}",
            tail=len(backing) - array.nbytes,
        )
        self.arrays = [(ref, a) for ref, a in self.arrays if ref() is not None]
        # The allocation's view would keep the array alive: hold its bytes only while the array lives.
        self.arrays.append((weakref.ref(array), allocation))

    def live(self) -> list[Allocation]:
        """The allocations of living device arrays."""
        self.arrays = [(ref, a) for ref, a in self.arrays if ref() is not None]
        return [a for _, a in self.arrays]

    def allocation_of(self, array: Any) -> Allocation:
        """The allocation that a device array or a view of one lies in."""
        address = _host_address(array)
        for allocation in self.live():
            start = _host_address(allocation.data)
            if start <= address < start + max(allocation.size, 1):
                return allocation
        raise LaunchError("this array is not on the simulated device; make it with device_array")


DEVICE = Device()


def device_array(data: Any, dtype: Any = None) -> DeviceArray:
    """Memory on the simulated device that persists between launches.

    Parameters
    ----------
    data : array_like, int or tuple of int
        Initial contents, or a shape (then zeros).
    dtype : dtype, optional
        Element type; for a shape float32 if not said.

    Returns
    -------
    DeviceArray
        A NumPy array with an ``address``.
    """
    if isinstance(data, (int, np.integer)) or (
        isinstance(data, tuple) and all(isinstance(i, int) for i in data)
    ):
        plain = np.zeros(data, np.float32 if dtype is None else dtype)
    else:
        plain = np.array(data, dtype=dtype)
    backing = np.zeros(plain.nbytes + 512, np.uint8)
    start = -backing.ctypes.data % 256
    words = backing[start : start - (-plain.nbytes & -_WORD)]
    array = words[: plain.nbytes].view(plain.dtype).reshape(plain.shape).view(DeviceArray)
    array[...] = plain
    DEVICE.register(array, words)
    return array


def _host_address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def is_array(value: Any) -> bool:
    """Whether an argument is a pointer: a NumPy array with dimensions or a torch tensor."""
    return (isinstance(value, np.ndarray)) or (
        hasattr(value, "data_ptr") and hasattr(value, "untyped_storage")
    )


class ArgumentPacker:
    """Packs one launch's arguments and collects the memory they reach."""

    def __init__(self, kernel: Any, module_allocations: Sequence[Allocation]) -> None:
        self.kernel = kernel
        self.memory = GlobalMemory()
        for allocation in module_allocations:
            self.memory.add(allocation)
        for allocation in DEVICE.live():
            self.memory.add(allocation)
        self.roots: dict[tuple[int, int], Allocation] = {}
        # The host's bytes of allocations that are filled up to whole words.
        self.filled: list[tuple[Any, Allocation]] = []

    def pack(self, args: Sequence[Any]) -> bytes:
        """The parameter buffer."""
        parameters = self.kernel.parameters
        if len(args) != len(parameters):
            names = ", ".join(p.name for p in parameters)
            raise LaunchError(
                f"kernel {self.kernel.name} takes {len(parameters)} arguments ({names}), {len(args)} were given"
            )
        buffer = bytearray(self.kernel.parameter_bytes)
        for position, (parameter, value) in enumerate(zip(parameters, args)):
            raw = self._encode(parameter, value, position)
            buffer[parameter.offset : parameter.offset + len(raw)] = raw
        return bytes(buffer)

    def _encode(self, parameter: Any, value: Any, position: int) -> bytes:
        if is_array(value):
            if parameter.size != 8:
                raise LaunchError(
                    f"argument {position} ({parameter.name}) is an array, the parameter is .{parameter.type}"
                )
            return struct.pack("<Q", self.pointer(value, f"argument {position} ({parameter.name})"))
        if hasattr(value, "global_dims"):
            value = self._tensor_map(value, f"argument {position} ({parameter.name})")
        if isinstance(value, (bytes, bytearray, memoryview)):
            raw = bytes(value)
            if len(raw) != parameter.size:
                raise LaunchError(
                    f"argument {position} ({parameter.name}) has {len(raw)} bytes, the parameter {parameter.size}"
                )
            return raw
        if value is None:
            return bytes(parameter.size)
        return self._number(parameter, value, position)

    def _tensor_map(self, value: Any, name: str) -> bytes:
        """A TMA descriptor, whose tensor becomes reachable."""
        if value.array is not None:
            value = value.at(self.pointer(value.array, name))
        return bytes(value.encode())

    def _number(self, parameter: Any, value: Any, position: int) -> bytes:
        if isinstance(value, np.generic) and not isinstance(value, (np.floating, np.integer, np.bool_)):
            value = value.item()
        kind = TYPES.get(parameter.type)
        if kind is None or not isinstance(value, (int, float, np.floating, np.integer, np.bool_)):
            raise LaunchError(
                f"argument {position} ({parameter.name}) is {type(value).__name__}; "
                f".{parameter.type} of {parameter.size} bytes "
                "takes a number, an array or bytes"
            )
        floating = isinstance(value, (float, np.floating))
        if kind.kind == "f" or (floating and kind.kind in ("b", "x")):
            formats = {2: "<e", 4: "<f", 8: "<d"}
            if parameter.size not in formats:
                raise LaunchError(
                    f"argument {position} ({parameter.name}) is a float, the parameter is .{parameter.type}"
                )
            return struct.pack(formats[parameter.size], float(value))
        if floating:
            if float(value) != int(value):
                raise LaunchError(
                    f"argument {position} ({parameter.name}) is {value}, the parameter is .{parameter.type}"
                )
        number = int(value)
        bits = parameter.size * 8
        if not -(1 << (bits - 1)) <= number < 1 << bits:
            raise LaunchError(f"argument {position} ({parameter.name}) is {number}, beyond {bits} bits")
        return (number & ((1 << bits) - 1)).to_bytes(parameter.size, "little")

    def finish(self) -> None:
        """Give the host what is not in its own memory."""
        for host, allocation in self.filled:
            host[...] = allocation.data[: allocation.size]

    def pointer(self, value: Any, name: str) -> int:
        """The device address of an array's first element."""
        if isinstance(value, np.ndarray):
            root: Any = value
            while isinstance(root.base, np.ndarray):
                root = root.base
            address = _host_address(value)
            for allocation in DEVICE.live():
                start = _host_address(allocation.data)
                if start <= address <= start + allocation.size and _host_address(root) <= start:
                    return allocation.base + address - start
            start, size = _extent(root)
            writeable = bool(value.flags.writeable)
        else:
            device = str(getattr(value, "device", "cpu"))
            if device != "cpu":
                raise LaunchError(f"{name} is a tensor on {device}; the simulator takes CPU tensors")
            storage = value.untyped_storage()
            root, writeable = value, True
            start, size = int(storage.data_ptr()), int(storage.nbytes())
            # Of a tensor without elements torch gives no address, though it may be a slice of one that has some.
            address = int(value.data_ptr()) if value.numel() else start
        key = (start, size)
        found = self.roots.get(key)
        if found is None:
            found = self._adopt(start, size, name, root, writeable)
        if address < start or address > start + size:
            raise LaunchError(f"{name} lies outside its own storage")
        return found.base + address - start

    def _adopt(self, start: int, size: int, name: str, owner: Any, writeable: bool) -> Allocation:
        if size:
            pointer: Any = (ctypes.c_uint8 * size).from_address(start)
            data = np.frombuffer(pointer, np.uint8)
        else:
            data = np.zeros(0, np.uint8)
        tail = -size % _WORD if self.kernel.swaps_words and writeable else 0
        host = data
        if tail:
            data = np.concatenate([data, np.zeros(tail, np.uint8)])
        # Keep the low bits of the host address out of it: device allocations are aligned.
        base = DEVICE.addresses.reserve(size)
        label = f"{name}, {_describe(owner)}"
        allocation = Allocation(base, data, label, owner, not writeable, tail)
        if tail:
            self.filled.append((host, allocation))
        self.memory.add(allocation)
        self.roots[start, size] = allocation
        return allocation


def _describe(owner: Any) -> str:
    kind = str(owner.dtype).replace("torch.", "")
    return f"{kind}{list(owner.shape)}"


def _extent(array: Any) -> tuple[int, int]:
    """First byte and size of the memory that an array's strides reach."""
    start = low = _host_address(array)
    high = low + array.itemsize if array.size else low
    for extent, stride in zip(array.shape, array.strides):
        if array.size == 0:
            break
        reach = (extent - 1) * stride
        low, high = (low + reach, high) if reach < 0 else (low, high + reach)
    del start
    return low, high - low
