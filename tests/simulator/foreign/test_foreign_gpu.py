"""The foreign programs on a GPU, where there is one: the references and bounds hold for the hardware as well."""

from __future__ import annotations

import ctypes
import re
import struct
from typing import Any

import numpy as np
import pytest

from tests.simulator.foreign.corpus import Descriptor, Launch, Program
from tests.simulator.foreign.test_foreign import PROGRAMS, prepared
from tilus.runtime.tensor_maps import encode_function

pytestmark = pytest.mark.gpu


class Device:
    """One kernel launch through the driver: arrays are copied there and back."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.driver: Any = driver
        self.check(driver.cuInit(0))
        self.device = self.check(driver.cuDeviceGet(0))
        context = self.check(driver.cuDevicePrimaryCtxRetain(self.device))
        self.check(driver.cuCtxSetCurrent(context))
        names = driver.CUdevice_attribute
        self.capability = tuple(
            int(self.check(driver.cuDeviceGetAttribute(name, self.device)))
            for name in (
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.arrays: dict[int, tuple[np.ndarray, Any]] = {}

    def check(self, result: tuple[Any, ...]) -> Any:
        assert int(result[0]) == 0, result[0]
        return result[1] if len(result) > 1 else None

    def address(self, array: np.ndarray) -> int:
        if id(array) not in self.arrays:
            pointer = self.check(self.driver.cuMemAlloc(max(array.nbytes, 1)))
            self.check(self.driver.cuMemcpyHtoD(pointer, array.ctypes.data, array.nbytes))
            self.arrays[id(array)] = (array, pointer)
        return int(self.arrays[id(array)][1])

    def tensor_map(self, value: Descriptor) -> bytes:
        driver, array = self.driver, value.array
        kinds = driver.CUtensorMapDataType
        kind = {
            np.dtype(np.float16): kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            np.dtype(np.float32): kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        }.get(array.dtype, kinds.CU_TENSOR_MAP_DATA_TYPE_UINT8)
        rank = array.ndim
        # The driver wants the map at a multiple of 64 bytes, which cuda-bindings does not see to.
        room = ctypes.create_string_buffer(128 + 64)
        start = -(-ctypes.addressof(room) // 64) * 64
        status = encode_function()(
            start,
            int(kind),
            rank,
            self.address(array),
            (ctypes.c_uint64 * rank)(*array.shape[::-1]),
            (ctypes.c_uint64 * rank)(*array.strides[-2::-1]),
            (ctypes.c_uint32 * rank)(*value.box[::-1]),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
            int(value.swizzle),
            int(driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE),
            int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        )
        self.check((status,))
        return ctypes.string_at(start, 128)

    def value(self, parameter: str, value: Any) -> bytes:
        """The bytes of one argument; `parameter` is its declaration in the PTX."""
        if isinstance(value, Descriptor):
            return self.tensor_map(value)
        if isinstance(value, bytes):
            return value
        if isinstance(value, np.ndarray):
            return struct.pack("<Q", self.address(value))
        kind = re.search(r"\.([bsuf])(8|16|32|64)\b", parameter)
        assert kind is not None, parameter
        if kind[1] == "f":
            return struct.pack("<d" if kind[2] == "64" else "<f", value)
        return (int(value) % 2 ** int(kind[2])).to_bytes(int(kind[2]) // 8, "little")

    def run(self, program: Program, launch: Launch) -> None:
        driver = self.driver
        newest = newest_ptx(int(self.check(driver.cuDriverGetVersion())))
        status, module = driver.cuModuleLoadData(at_most(program.ptx, newest).encode() + b"\0")
        if int(status) and at_most(program.ptx, newest) != program.ptx:
            pytest.skip(
                f"the program needs a PTX ISA that is newer than the driver's, {newest[0]}.{newest[1]}"
            )
        self.check((status,))
        function = self.check(driver.cuModuleGetFunction(module, program.kernel.encode()))
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if launch.shared_bytes > 48 * 1024:
            self.check(driver.cuFuncSetAttribute(function, limit, launch.shared_bytes))
        entry = re.search(rf"\.entry\s+{program.kernel}\s*\(([^)]*)\)", program.ptx)
        assert entry is not None
        parameters = re.findall(r"\.param[^,]*", entry[1])
        assert len(parameters) == len(launch.args)
        buffers = [ctypes.create_string_buffer(128 + 64) for _ in parameters]
        starts = []
        for buffer, parameter, value in zip(buffers, parameters, launch.args, strict=True):
            start = -(-ctypes.addressof(buffer) // 64) * 64
            data = self.value(parameter, value)
            ctypes.memmove(start, data, len(data))
            starts.append(start)
        pointers = (ctypes.c_void_p * len(starts))(*starts)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
        config.sharedMemBytes = launch.shared_bytes
        if launch.cluster != (1, 1, 1):
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            cluster = attribute.value.clusterDim
            cluster.x, cluster.y, cluster.z = launch.cluster
            config.attrs = [attribute]
            config.numAttrs = 1
        self.check(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0))
        self.check(driver.cuCtxSynchronize())
        for array, pointer in self.arrays.values():
            self.check(driver.cuMemcpyDtoH(array.ctypes.data, pointer, array.nbytes))

    def close(self) -> None:
        for _, pointer in self.arrays.values():
            self.driver.cuMemFree(pointer)


def newest_ptx(driver: int) -> tuple[int, int]:
    """The PTX ISA version of a driver: CUDA 12.x has 8.x, one less from 12.7 on, and CUDA 13.x has 9.x."""
    major, minor = driver // 1000, driver % 1000 // 10
    return major - 4, minor - 1 if major == 12 and minor > 5 else minor


def at_most(ptx: str, newest: tuple[int, int]) -> str:
    """PTX as of a version that is not newer: compilers state their own, whatever a program uses."""
    stated = re.search(r"^\s*\.version\s+(\d+)\.(\d+)", ptx, re.MULTILINE)
    assert stated is not None
    if (int(stated[1]), int(stated[2])) <= newest:
        return ptx
    return ptx.replace(
        stated[0], stated[0].replace(f"{stated[1]}.{stated[2]}", f"{newest[0]}.{newest[1]}"), 1
    )


def needs(ptx: str) -> tuple[int, int, bool]:
    """The architecture of a PTX file's target, and whether it is for exactly that one."""
    target = re.search(r"^\.target\s+sm_(\d+)(\d)(a?)", ptx, re.MULTILINE)
    assert target is not None
    return int(target[1]), int(target[2]), target[3] == "a"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_foreign_program_gives_the_same_numbers_on_the_gpu(program: Program) -> None:
    device = Device()
    major, minor, exact = needs(program.ptx)
    if device.capability < (major, minor) or (exact and device.capability != (major, minor)):
        pytest.skip(f"the program is for compute capability {major}.{minor}, the GPU has {device.capability}")
    launch = prepared(program)
    try:
        device.run(program, launch)
    finally:
        device.close()
    failures = [failure for failure in (check.failure() for check in launch.checks) if failure is not None]
    assert failures == []
