"""Repeats on the GPU what tests launch on the simulator, and compares memory bit for bit: a pytest plugin.

    TILUS_DIFFERENTIAL_REPORT=report.jsonl python -m pytest -p tests.gpu.differential tests/simulator

Every launch that the simulator ends without a hazard and with all its checks on is repeated through the CUDA driver
with the same PTX, the same parameters and the same memory. The report has a line for each: `equal`, `close` where the
PTX ISA leaves room (approximate functions, the order of a tensor core's additions), `differs`, `skipped` with
the reason, or `error`. A line `started` without an end says which launch ended the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilus.simulator import TensorMap
from tilus.simulator import module as simulator_module
from tilus.simulator.arguments import DEVICE, ArgumentPacker, DeviceArray, _extent, is_array

LAUNCH_SECONDS = 20.0
# What depends on the machine or on chance.
UNSPECIFIED = re.compile(
    r"%(clock|globaltimer|smid|nsmid|gridid|warpid|nwarpid|envreg|total_smem|aggr_smem)|nanosleep|cvta(?!\.to)|activemask|\bvprintf\b|mapa"
)
# What the ISA does not fix to the bit, with the relative error between two results that obey it.
LOOSE = (
    (re.compile(r"\btanh\.approx"), 2.0**-9),
    (re.compile(r"\b(sin|cos)\.approx"), 2.0**-17),
    (re.compile(r"\bw?g?mma\b|wmma\.mma|\bmma\."), 2.0**-9),
    (re.compile(r"\b(ex2|lg2|rcp|rsqrt|sqrt|div)\.(approx|full)"), 2.0**-20),
    (re.compile(r"\b(atom|red)\.[\w.:]*\.add\.[\w.]*(f16|bf16|f32|f64)"), 2.0**-9),
)
FLOATS = {2: (np.float16,), 4: (np.float32, np.float16), 8: (np.float64, np.float32, np.float16)}


@dataclass(frozen=True)
class Block:
    """Memory that arguments point into: its place in the host's memory, and what it held before the launch."""

    start: int
    before: bytes
    dtype: Any


def tolerance(ptx: str) -> float:
    """Return the relative difference that two right results may have; 0 where the bits are fixed."""
    return max((error for pattern, error in LOOSE if pattern.search(ptx)), default=0.0)


def compare(simulated: bytes, real: bytes, dtype: Any, relative: float) -> str:
    """Return `equal`, `close` or `differs` with the first place."""
    if simulated == real:
        return "equal"
    left, right = (np.frombuffer(x, np.uint8) for x in (simulated, real))
    first = int(np.argmax(left != right))
    if relative > 0:
        size = np.dtype(dtype).itemsize
        kinds = [np.dtype(dtype)] if np.dtype(dtype).kind == "f" else []
        kinds += [np.dtype(kind) for kind in FLOATS.get(size, ()) if np.dtype(kind) not in kinds]
        for kind in kinds:
            if len(left) % kind.itemsize == 0 and _close(left.view(kind), right.view(kind), relative):
                return "close"
    word = first // 4 * 4
    found = f"{real[word : word + 4][::-1].hex()} for {simulated[word : word + 4][::-1].hex()}"
    return f"differs in {int((left != right).sum())} of {len(left)} bytes, first at byte {first}: the GPU has {found}"


def _close(simulated: np.ndarray, real: np.ndarray, relative: float) -> bool:
    with np.errstate(all="ignore"):
        x, y = simulated.astype(np.float64), real.astype(np.float64)
        unit = np.finfo(simulated.dtype).eps if simulated.dtype.kind == "f" else 0.0
        # One unit in the last place, for results that are rounded after an approximate one.
        size = np.maximum(np.abs(x), np.abs(y))
        largest = size[np.isfinite(size)].max(initial=0.0)
        near = np.abs(x - y) <= 2 * unit * size + relative * np.maximum(size, min(largest, 1.0))
        return bool((near | (x == y) | (np.isnan(x) & np.isnan(y))).all())


class Gpu:
    """The first device, through the driver; nothing of tilus' own launching takes part."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.driver: Any = driver
        self.check(driver.cuInit(0))
        device = self.check(driver.cuDeviceGet(0))
        self.check(driver.cuCtxSetCurrent(self.check(driver.cuDevicePrimaryCtxRetain(device))))
        names = driver.CUdevice_attribute
        wanted = ("MAJOR", "MINOR")
        self.capability = tuple(
            int(
                self.check(
                    driver.cuDeviceGetAttribute(
                        getattr(names, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{n}"), device
                    )
                )
            )
            for n in wanted
        )

    def check(self, result: tuple[Any, ...]) -> Any:
        if int(result[0]) != 0:
            raise RuntimeError(str(result[0]))
        return result[1] if len(result) > 1 else None

    def runs(self, ptx: str) -> bool:
        """Tell whether the target of a PTX text is this device's."""
        found = re.search(r"^\s*\.target\s+sm_(\d+)(\d)([af]?)", ptx, re.MULTILINE)
        if found is None:
            return False
        wanted = int(found[1]), int(found[2])
        return self.capability == wanted if found[3] else self.capability >= wanted

    def load(self, ptx: str) -> Any:
        return self.check(self.driver.cuModuleLoadData(ptx.encode() + b"\0"))

    def upload(self, data: bytes) -> int:
        address = int(self.check(self.driver.cuMemAlloc(max(len(data), 1))))
        if data:
            self.check(self.driver.cuMemcpyHtoD(address, data, len(data)))
        return address

    def download(self, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(max(size, 1))
        if size:
            self.check(self.driver.cuMemcpyDtoH(ctypes.addressof(buffer), address, size))
        return buffer.raw[:size]

    def free(self, address: int) -> None:
        self.driver.cuMemFree(address)

    def tensor_map(self, value: TensorMap, address: int) -> bytes:
        driver = self.driver
        kinds = {
            "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "s32": "INT32", "u64": "UINT64", "s64": "INT64",
            "f16": "FLOAT16", "f32": "FLOAT32", "f32.ftz": "FLOAT32_FTZ", "f64": "FLOAT64", "bf16": "BFLOAT16",
            "tf32": "TFLOAT32", "tf32.ftz": "TFLOAT32_FTZ",
        }  # fmt: skip
        kind = getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{kinds[value.element_type]}")
        swizzle = f"{value.swizzle}B" if value.swizzle else "NONE"
        fill = "NAN_REQUEST_ZERO_FMA" if value.fill == "nan" else "NONE"
        rank = len(value.global_dims)
        encoded = self.check(
            driver.cuTensorMapEncodeTiled(
                kind, rank, address,
                [driver.cuuint64_t(n) for n in value.global_dims], [driver.cuuint64_t(n) for n in value.global_strides],
                [driver.cuuint32_t(n) for n in value.box],
                [driver.cuuint32_t(n) for n in (value.element_strides or (1,) * rank)],
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"),
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
                getattr(driver.CUtensorMapFloatOOBfill, f"CU_TENSOR_MAP_FLOAT_OOB_FILL_{fill}"),
            )
        )  # fmt: skip
        return ctypes.string_at(int(encoded.getPtr()), 128)

    def launch(
        self, module: Any, name: str, grid: Sequence[int], block: Sequence[int], cluster: Sequence[int],
        shared_bytes: int, parameters: Sequence[bytes],
    ) -> None:  # fmt: skip
        """Launch and wait; parameters are the bytes of each."""
        driver = self.driver
        function = self.check(driver.cuModuleGetFunction(module, name.encode()))
        attributes = driver.CUfunction_attribute
        if shared_bytes > 48 * 1024:
            limit = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.check(driver.cuFuncSetAttribute(function, limit, shared_bytes))
        buffers, starts = [], []
        for data in parameters:
            buffer = ctypes.create_string_buffer(len(data) + 64)
            start = -(-ctypes.addressof(buffer) // 64) * 64
            ctypes.memmove(start, data, len(data))
            buffers.append(buffer)
            starts.append(start)
        pointers = (ctypes.c_void_p * max(len(starts), 1))(*starts)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = shared_bytes
        if tuple(cluster) != (1, 1, 1):
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dimensions = attribute.value.clusterDim
            dimensions.x, dimensions.y, dimensions.z = cluster
            config.attrs, config.numAttrs = [attribute], 1
        self.check(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0))
        self.check(driver.cuCtxSynchronize())


def blocks_of(args: Sequence[Any]) -> dict[tuple[int, int], Block]:
    """Return the memory that arguments reach, by start and size, as it is now."""
    blocks = {}
    for value in args:
        array = value.array if isinstance(value, TensorMap) else value
        if array is None or not is_array(array):
            continue
        start, size, dtype = extent_of(array)
        blocks[start, size] = Block(start, ctypes.string_at(start, size), dtype)
    return blocks


def extent_of(array: Any) -> tuple[int, int, Any]:
    """Return where the memory that an array is part of begins, its size, and the elements' dtype."""
    if not isinstance(array, np.ndarray):
        storage = array.untyped_storage()
        return int(storage.data_ptr()), int(storage.nbytes()), np.dtype(f"u{array.element_size()}")
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    dtype = array.dtype if array.dtype.kind in "fiu" else np.dtype(f"u{array.dtype.itemsize}")
    return (*_extent(root), dtype)


def why_not(kernel: Any, ptx: str, report: Any, checks: Any, args: Sequence[Any], gpu: Gpu) -> str | None:
    """Return why a launch cannot be compared, or None."""
    if report.hazards:
        return "the simulator reports a hazard"
    if checks is not True:
        return "not all checks were on"
    if not gpu.runs(ptx):
        return "for another target"
    if UNSPECIFIED.search(ptx):
        return "reads what differs from machine to machine"
    if any(on_simulated_device(value) for value in args):
        return "uses addresses of the simulated device"
    if any(
        isinstance(value, TensorMap) and (value.array is None or value.atomicity != "16B") for value in args
    ):
        return "a tensor map without an array, or with a rare swizzle"
    return None


def on_simulated_device(value: Any) -> bool:
    """Tell whether an argument is memory of the simulated device, or a number that is an address of it."""
    if isinstance(value, int):
        return any(a.base <= value < a.base + max(a.size, 1) for a in DEVICE.live())
    array = value.array if isinstance(value, TensorMap) else value
    while isinstance(array, np.ndarray):
        if isinstance(array, DeviceArray):
            return True
        array = array.base
    return False


class Differential:
    """Wraps the simulator's launches."""

    def __init__(self, report: Path, gpu: Gpu) -> None:
        self.report, self.gpu = report, gpu
        self.test = ""
        self.started: float | None = None
        self.module_launch = simulator_module.Kernel.launch
        self.module_init = simulator_module.Module.__init__
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            if self.started is not None and time.monotonic() - self.started > LAUNCH_SECONDS:
                self.write("hung", "")
                os._exit(4)

    def write(self, outcome: str, kernel: str) -> None:
        with self.report.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": self.test, "kernel": kernel, "outcome": outcome}) + "\n")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        differential = self

        def initialise(module: Any, text: str) -> None:
            differential.module_init(module, text)
            module.ptx_text = text

        def launch(kernel: Any, grid: Any, block: Any, args: Sequence[Any] = (), **options: Any) -> Any:
            before = blocks_of(args)
            report = differential.module_launch(kernel, grid, block, args, **options)
            differential.repeat(kernel, report, block, args, options, before)
            return report

        monkeypatch.setattr(simulator_module.Module, "__init__", initialise)
        monkeypatch.setattr(simulator_module.Kernel, "launch", launch)

    def repeat(
        self, kernel: Any, report: Any, block: Any, args: Sequence[Any], options: dict[str, Any],
        before: dict[tuple[int, int], Block],
    ) -> None:  # fmt: skip
        """Launch on the GPU and compare all memory with what the simulator left."""
        ptx = kernel._module.ptx_text
        reason = why_not(kernel, ptx, report, options.get("checks", True), args, self.gpu)
        if reason is not None:
            self.write(f"skipped: {reason}", kernel.name)
            return
        self.write("started", kernel.name)
        self.started = time.monotonic()
        try:
            outcome = self._on_gpu(kernel, ptx, report, block, args, options, before)
        except RuntimeError as error:
            outcome = f"error: {error}"
        self.started = None
        self.write(outcome, kernel.name)
        if outcome.startswith("error") and self._lost():
            os._exit(3)

    def _lost(self) -> bool:
        return int(self.gpu.driver.cuCtxSynchronize()[0]) != 0

    def _on_gpu(
        self, kernel: Any, ptx: str, report: Any, block: Any, args: Sequence[Any], options: dict[str, Any],
        before: dict[tuple[int, int], Block],
    ) -> str:  # fmt: skip
        gpu, module = self.gpu, kernel._module
        if not hasattr(module, "gpu_module"):
            module.gpu_module = gpu.load(ptx)
        places = {key: gpu.upload(found.before) for key, found in before.items()}
        try:
            parameters = [
                self._parameter(p, value, places) for p, value in zip(kernel.params, args, strict=True)
            ]
            three = simulator_module._three
            cluster = options.get("cluster") or 1
            declared = kernel._code.required_cluster
            # A cluster that the PTX states needs no attribute.
            cluster3 = (1, 1, 1) if declared is not None else three(cluster, "cluster")
            shared = options.get("shared_bytes", 0)
            gpu.launch(
                module.gpu_module,
                kernel.name,
                report.grid,
                three(block, "block"),
                cluster3,
                shared,
                parameters,
            )
            outcomes = []
            for key, place in places.items():
                real = gpu.download(place, key[1])
                outcomes.append(compare(ctypes.string_at(*key), real, before[key].dtype, tolerance(ptx)))
        finally:
            for place in places.values():
                gpu.free(place)
        ranks = sorted(
            outcomes, key=lambda text: ("equal", "close").index(text) if text in ("equal", "close") else 2
        )
        return ranks[-1] if ranks else "equal"

    def _parameter(self, parameter: Any, value: Any, places: dict[tuple[int, int], int]) -> bytes:
        if isinstance(value, TensorMap):
            return self.gpu.tensor_map(value, self._address(value.array, places))
        if is_array(value):
            return self._address(value, places).to_bytes(8, "little")
        # Numbers and structs have the same bytes on the simulator.
        return ArgumentPacker(None, ())._encode(parameter, value, 0)

    @staticmethod
    def _address(array: Any, places: dict[tuple[int, int], int]) -> int:
        start, size, _ = extent_of(array)
        here = array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()
        return places[start, size] + here - start


def pytest_configure(config: pytest.Config) -> None:
    config.differential = Differential(Path(os.environ["TILUS_DIFFERENTIAL_REPORT"]), Gpu())  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def repeat_on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all launches of a test run on the GPU as well."""
    differential = request.config.differential  # type: ignore[attr-defined]
    differential.test = request.node.nodeid
    differential.install(monkeypatch)
