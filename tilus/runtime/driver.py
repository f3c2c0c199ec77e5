"""The CUDA driver through cuda-bindings: devices, loading machine code, and errors in words.

Nothing is imported and no driver is touched before the first use. Code is loaded into a device's primary context,
which is the one that torch uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilus.codegen.target import Target, target_of_capability
from tilus.errors import LaunchError

DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that a kernel may have without asking."""
PORTABLE_CLUSTER = 8
"""Blocks of a cluster that every device with clusters takes."""
INVALID_CONTEXT = 201

_LOST = (
    "the same calls with CPU tensors, for which the simulator names the access that failed; the kernel may be one that "
    "was launched before, and this process can use the GPU no more"
)
_HINTS = {
    2: "torch.cuda.empty_cache(), which gives back what torch keeps and does not use",
    200: "rm -r of the folder that `tilus doctor` names as the cache, if a file in it is damaged",
    209: "a target of this GPU's compute capability when compiling ahead of time",
    222: "pip install nvidia-nvjitlink cuda-bindings, which make machine code here, or update the driver",
    701: "fewer warps or smaller tiles, so that a multiprocessor has the registers for a block",
    912: "a smaller cluster=",
} | dict.fromkeys((700, 710, 714, 715, 716, 717, 718, 719), _LOST)
"""What to do about a status, by number."""


@lru_cache(maxsize=1)
def bindings() -> Any:
    """Return the module `cuda.bindings.driver` with the driver initialised."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise LaunchError(
            f"tensors on a GPU need cuda-bindings, which cannot be imported: {error}",
            hint="pip install cuda-bindings",
        ) from None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:
        raise LaunchError(f"there is no CUDA driver on this machine: {error}") from None
    if status:
        raise LaunchError(f"the CUDA driver could not be initialised: {_message(driver, status)}")
    return driver


def _message(driver: Any, status: Any) -> str:
    """Return the driver's own words for a status."""
    failed, text = driver.cuGetErrorString(status)
    words = text.decode() if not failed and text else "unknown error"
    return f"{words} ({getattr(status, 'name', status)})"


def error_of(status: Any, what: str) -> LaunchError:
    """Return the error for a status that is not success."""
    return LaunchError(f"{what} failed: {_message(bindings(), status)}", hint=_HINTS.get(int(status)))


def check(result: tuple[Any, ...], what: str) -> Any:
    """Return what a driver function returns after its status, or raise its error."""
    if result[0]:
        raise error_of(result[0], what)
    return result[1] if len(result) > 1 else None


def device_count() -> int:
    """Return the number of CUDA devices."""
    return int(check(bindings().cuDeviceGetCount(), "counting the devices"))


def driver_version() -> str:
    """Return the CUDA version that the driver serves."""
    version = int(check(bindings().cuDriverGetVersion(), "asking the driver's version"))
    return f"{version // 1000}.{version % 1000 // 10}"


def device_name(device: int) -> str:
    """Return the name of a device."""
    name: bytes = check(bindings().cuDeviceGetName(128, _handle(device)), "asking a device's name")
    return name.partition(b"\0")[0].decode()


@lru_cache(maxsize=64)
def _handle(device: int) -> Any:
    return check(bindings().cuDeviceGet(device), f"opening device {device}")


@lru_cache(maxsize=64)
def capability(device: int) -> tuple[int, int]:
    """Return the compute capability of a device."""
    attributes = bindings().CUdevice_attribute
    major = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    minor = attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    values = (bindings().cuDeviceGetAttribute(which, _handle(device)) for which in (major, minor))
    first, second = (int(check(value, "asking the compute capability")) for value in values)
    return first, second


def target(device: int) -> Target:
    """Return the target whose code runs on a device."""
    return target_of_capability(*capability(device))


@lru_cache(maxsize=64)
def primary_context(device: int) -> Any:
    """Return the primary context of a device; it stays alive as long as the process."""
    return check(
        bindings().cuDevicePrimaryCtxRetain(_handle(device)), f"opening the context of device {device}"
    )


@contextmanager
def in_context(device: int) -> Iterator[None]:
    """Make the primary context of a device current."""
    driver = bindings()
    check(driver.cuCtxPushCurrent(primary_context(device)), "entering the context")
    try:
        yield
    finally:
        check(driver.cuCtxPopCurrent(), "leaving the context")


@dataclass(frozen=True, eq=False)
class Function:
    """A kernel loaded on a device; it stays loaded as long as the process."""

    handle: Any
    module: Any
    device: int


def load(image: bytes, name: str, device: int, shared_bytes: int = 0, cluster_blocks: int = 1) -> Function:
    """Load a kernel on a device.

    Parameters
    ----------
    image : bytes
        A cubin, or PTX for the driver to assemble.
    name : str
        The entry point.
    device : int
        Index of the device.
    shared_bytes : int
        Dynamic shared memory of a block.
    cluster_blocks : int
        Blocks of a cluster.
    """
    driver = bindings()
    attribute = driver.CUfunction_attribute
    with in_context(device):
        module = check(driver.cuModuleLoadData(image), f"loading {name}")
        handle = check(driver.cuModuleGetFunction(module, name.encode()), f"finding {name} in its module")
        if shared_bytes > DEFAULT_SHARED_BYTES:
            wanted = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(
                driver.cuFuncSetAttribute(handle, wanted, shared_bytes),
                f"asking for {shared_bytes} bytes of shared memory for {name}",
            )
        if cluster_blocks > PORTABLE_CLUSTER:
            wanted = attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            check(
                driver.cuFuncSetAttribute(handle, wanted, 1),
                f"asking for clusters of {cluster_blocks} for {name}",
            )
    return Function(handle, module, device)


@lru_cache(maxsize=1)
def overlapping_launch() -> Callable[..., tuple[Any, ...]]:
    """Return what launches as `cuLaunchKernel` does, and allows the launch to begin before the one before has ended."""
    driver = bindings()
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    launch = driver.cuLaunchKernelEx
    # A configuration is taken out while a launch uses it, so that threads never share one.
    pool: list[Any] = []

    def make() -> Any:
        config = driver.CUlaunchConfig()
        config.blockDimY = config.blockDimZ = 1
        config.attrs, config.numAttrs = [attribute], 1
        return config

    def overlapping(
        handle: Any, x: int, y: int, z: int, threads: int, _y: int, _z: int, shared: int, stream: int, address: int,
        extra: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        try:
            config = pool.pop()
        except IndexError:
            config = make()
        config.gridDimX, config.gridDimY, config.gridDimZ, config.blockDimX = x, y, z, threads
        config.sharedMemBytes, config.hStream = shared, stream
        status: tuple[Any, ...] = launch(config, handle, address, extra)
        pool.append(config)
        return status

    return overlapping
