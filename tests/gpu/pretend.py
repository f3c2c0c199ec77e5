"""A GPU to pretend with: tests and benchmarks for a GPU run without one, down to the driver's own functions.

    python -m tests.gpu.pretend -m pytest -m gpu tests/runtime/test_gpu.py
    python -m tests.gpu.pretend benchmarks/matmul.py --dry-run

Tensors "on the GPU" are wrappers that say so and hold CPU tensors; `torch.cuda` says what an H200 says. Everything of
tilus is the real thing: op dispatch, schedules for the device, machine code, plans, cuda-bindings. The driver under them
is the fake one of `tests/runtime/fake_cuda`, which checks each call as a driver would, takes a launch's arguments from
memory by the sizes that the cubin states, and hands the launch to the simulator, which writes to the CPU tensors.
Nothing takes the time that it would: events are a second apart, so that nothing is timed often.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

FAKE = Path(__file__).resolve().parents[1] / "runtime" / "fake_cuda"
CUDA = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=1 << 20,
    total_memory=150_000_000_000, shared_memory_per_block_optin=232448, warp_size=32, is_integrated=False,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, gcnArchName="", uuid="pretended",
)  # fmt: skip
LAUNCH_FAILED = 719
CUDA_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
# The driver's numbering of element types, as the simulator names them.
MAP_TYPES = (
    "u8",
    "u16",
    "u32",
    "s32",
    "u64",
    "s64",
    "f16",
    "f32",
    "f64",
    "bf16",
    "f32.ftz",
    "tf32",
    "tf32.ftz",
)
# number, address; strides; extents less one; box; mark, type, rank, swizzle
MAP = struct.Struct("<2Q4Q5I5H4B")


def build(folder: Path, compiler: str = "cc") -> Path:
    """Compile the fake driver into a folder, and return the library."""
    library = folder / "libcuda.so.1"
    command = [compiler, "-std=gnu99", "-O1", "-shared", "-fPIC", "-pthread", f"-I{FAKE}"]
    subprocess.run([*command, *map(str, sorted(FAKE.glob("*.c"))), "-o", str(library), "-ldl"], check=True)
    return library


# Tensors.


class PretendTensor(torch.Tensor):
    """A tensor that says it is on the GPU and holds one on the CPU."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        made.host = host
        return made

    def data_ptr(self) -> int:
        storage = self.host.untyped_storage()
        if storage.nbytes():
            MEMORY.remember(storage)
        return self.host.data_ptr()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Pretended({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in GUARDED:
                return dispatch(GUARDED[func], args, {})
            return func(*args, **(kwargs or {}))


def set_item(x: torch.Tensor, index: Any, value: Any) -> None:
    x[index] = value


# What switches to the tensor's device first, which a build of torch for CPUs cannot.
GUARDED = {
    torch.Tensor.__getitem__: lambda x, index: x[index],
    torch.Tensor.__setitem__: set_item,
    torch.Tensor.copy_: lambda x, other, *_: x.copy_(other),
    torch.Tensor.tolist: lambda x: x.tolist(),
    torch.Tensor.contiguous: lambda x: x.contiguous(),
    torch.Tensor.__float__: float,
    torch.Tensor.__int__: int,
}


class Pretend(TorchDispatchMode):
    """Makes tensors on the GPU pretended ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            return dispatch(func, args, kwargs or {})


def is_cuda(value: object) -> bool:
    return value is not None and torch.device(value).type == "cuda"  # type: ignore[arg-type]


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation: tilus' own as on a GPU, torch's on the CPU."""
    wrappers: dict[int, Any] = {}
    pretended = False

    def enter(value: Any) -> Any:
        nonlocal pretended
        if isinstance(value, PretendTensor):
            pretended = True
            wrappers[id(value.host)] = value
            return value.host
        if isinstance(value, torch.Tensor):
            wrappers[id(value)] = value
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return value

    host_args, host_kwargs = tree_map(enter, (args, kwargs))
    device = kwargs.get("device")
    devices = [value for value in args if isinstance(value, torch.device)]
    on_gpu = is_cuda(device or devices[0]) if device is not None or devices else pretended
    if getattr(func, "namespace", "") == "tilus" and on_gpu:
        with torch._C._EnableTorchFunction():
            return func.redispatch(CUDA_KEY, *args, **kwargs)
    if func is torch.ops.aten._to_copy.default and device is not None and is_cuda(device) != pretended:
        # A copy from one memory to the other, never the same tensor.
        host_kwargs.pop("non_blocking", None)

    def leave(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, PretendTensor):
            return value
        if id(value) in wrappers:
            return wrappers[id(value)]
        return PretendTensor(value) if on_gpu else value

    host_kwargs.pop("pin_memory", None)

    def run() -> Any:
        with torch._C._DisableTorchDispatch(), _disable_current_modes():
            return func(*host_args, **host_kwargs)

    out = run()
    if on_gpu and GRAPH.open is not None:
        GRAPH.open.steps.append(lambda: again(out, run()))
    return tree_map(leave, out)


def again(before: Any, now: Any) -> None:
    """Give the results that a captured operation had when it was captured the values of a replay."""
    pairs = zip(before, now) if isinstance(before, (tuple, list)) else [(before, now)]
    for old, new in pairs:
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)


# Memory, and launches.


class Memory:
    """Where the memory of pretended tensors lies."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int, Any]] = {}
        self.driver: Any = None

    def remember(self, storage: Any) -> None:
        start, size = storage.data_ptr(), storage.nbytes()
        known = self.blocks.get(start)
        if known is not None and known[0] == size:
            return
        for other in [o for o, (n, _) in self.blocks.items() if o < start + size and start < o + n]:
            del self.blocks[other]
        self.blocks[start] = size, None

    def block(self, address: int) -> tuple[int, int] | None:
        for start, (size, _) in self.blocks.items():
            if start <= address < start + size:
                return start, size
        start_, size_ = ctypes.c_size_t(), ctypes.c_size_t()
        if self.driver.fake_cuda_block(ctypes.c_size_t(address), ctypes.byref(start_), ctypes.byref(size_)):
            return start_.value, size_.value
        return None


MEMORY = Memory()
BINARIES: dict[int, Any] = {}
COUNTS = {"launches": 0, "hazards": 0}


class Addresses:
    """Arrays for a launch's addresses; those in one block of memory are views of one array."""

    def __init__(self) -> None:
        self.roots: dict[int, np.ndarray[Any, Any]] = {}

    def array(self, address: int) -> np.ndarray[Any, Any] | None:
        found = MEMORY.block(address)
        if found is None:
            return None
        start, size = found
        if start not in self.roots:
            self.roots[start] = np.frombuffer((ctypes.c_uint8 * size).from_address(start), np.uint8)
        return self.roots[start][address - start :]


def tensor_map(data: bytes, addresses: Addresses) -> Any:
    from tilus.simulator.tma import TensorMap

    if not any(data):
        return data
    _, address, *rest = MAP.unpack_from(data)
    strides, last, box, (_, kind, rank, swizzle) = rest[:4], rest[4:9], rest[9:14], rest[14:]
    array = addresses.array(address)
    assert array is not None, "a tensor map of memory that no tensor has"
    return TensorMap(
        MAP_TYPES[kind], tuple(extent + 1 for extent in last[:rank]), tuple(strides[: rank - 1]), tuple(box[:rank]),
        swizzle=(0, 32, 64, 128)[swizzle], array=array,
    )  # fmt: skip


def simulate(handle: int, name: str, image: int, dims: list[int], parameters: list[bytes]) -> None:
    """Run a launch on the simulator, with the arguments as the driver found them."""
    from tilus.runtime.simulate import load

    binary = BINARIES.get(handle)
    ptx = binary.ptx if binary is not None else ctypes.string_at(image).decode()
    addresses = Addresses()
    arguments: list[Any] = []
    for data in parameters:
        if len(data) == 128:
            arguments.append(tensor_map(data, addresses))
            continue
        array = addresses.array(int.from_bytes(data, "little")) if len(data) == 8 else None
        arguments.append(data if array is None else array)
    cluster = tuple(dims[6:9]) if any(dims[6:9]) else None
    report = load(ptx)[name].launch(
        tuple(dims[:3]), tuple(dims[3:6]), arguments, cluster=cluster, shared_bytes=dims[9],
        checks=os.environ.get("TILUS_PRETEND_CHECKS", "1") != "0",
    )  # fmt: skip
    COUNTS["launches"] += 1
    sys.stdout.write(report.printed)
    for hazard in report.hazards:
        COUNTS["hazards"] += 1
        print(f"pretended launch of {name}: {hazard}", file=sys.stderr)
    if report.hazards:
        raise RuntimeError(f"{name} has hazards")


def on_launch(
    handle: int, name: bytes, image: int, dims: Any, stream: int | None, values: Any, sizes: Any, count: int
) -> int:
    at, parameters = 0, []
    for i in range(count):
        parameters.append(ctypes.string_at(values + at, sizes[i]))
        at += sizes[i]
    shape = dims[:10]

    def run() -> None:
        with _disable_current_modes():
            simulate(handle, name.decode(), image, shape, parameters)

    try:
        if GRAPH.open is not None:
            GRAPH.open.steps.append(run)
        else:
            run()
    except BaseException:
        traceback.print_exc()
        return LAUNCH_FAILED
    return 0


HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p,
    ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint,
)(on_launch)  # fmt: skip


# torch.cuda.


class Graph:
    """A CUDA graph: what was done while it was captured."""

    def __init__(self, *_: object, **__: object) -> None:
        self.steps: list[Callable[[], None]] = []

    def replay(self) -> None:
        for step in self.steps:
            step()


GRAPH = SimpleNamespace(open=None)


@contextlib.contextmanager
def capture(graph: Graph, *_: object, **__: object) -> Iterator[None]:
    GRAPH.open = graph
    try:
        yield
    finally:
        GRAPH.open = None


class Event:
    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record(self, stream: object = None) -> None:
        pass

    synchronize = wait = record

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 1000.0


class Stream:
    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    synchronize = wait_event = record_event = lambda self, *_: None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def install() -> Pretend:
    """Pretend from now on, in this process."""
    # It tables the functions of torch.cuda, so that those below must come after.
    import torch._dynamo

    import tilus.runtime.kernel as kernel_module
    import tilus.runtime.manifest as manifest_module
    from tilus.runtime import cuda as launches

    library = MEMORY.driver = ctypes.CDLL("libcuda.so.1")
    library.fake_cuda_on_launch(HOOK)
    original = launches.load_binary

    def load_binary(binary: Any, device: int, image: bytes | None = None) -> Any:
        loaded = original(binary, device, image)
        BINARIES[int(loaded.handle)] = binary
        return loaded

    for module in (kernel_module, manifest_module, launches):
        if hasattr(module, "load_binary"):
            module.load_binary = load_binary  # type: ignore[attr-defined]
    stream = Stream()
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    fakes: dict[str, Any] = {
        "_lazy_init": nothing, "init": nothing, "is_available": lambda: True, "is_initialized": lambda: True,
        "device_count": lambda: 1, "current_device": lambda: 0, "set_device": nothing, "synchronize": nothing,
        "empty_cache": nothing, "get_device_capability": lambda *_: (9, 0), "get_device_name": lambda *_: PROPERTIES.name,
        "get_device_properties": lambda *_: PROPERTIES, "current_stream": lambda *_: stream, "Stream": Stream,
        "default_stream": lambda *_: stream, "stream": contextlib.nullcontext, "device": contextlib.nullcontext,
        "Event": Event, "CUDAGraph": Graph, "graph": capture, "_sleep": nothing,
        "is_current_stream_capturing": lambda: GRAPH.open is not None,
        "memory_stats": lambda *_: {"allocation.all.allocated": 0}, "max_memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (10**11, 10**11), "memory_allocated": lambda *_: 0,
        "manual_seed_all": nothing, "manual_seed": nothing, "_is_in_bad_fork": lambda: False,
    }  # fmt: skip
    for name, value in fakes.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getDevice = lambda: 0  # type: ignore[attr-defined]
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # type: ignore[attr-defined]
    # As for torch's own fake tensors: nothing switches to a device that is not there.
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    # Without an index a build of torch for CPUs would ask CUDA for the current device.
    original_to = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        here = [CUDA if isinstance(x, (str, torch.device)) and str(x) == "cuda" else x for x in args]
        return original_to(self, *here, **{k: CUDA if str(x) == "cuda" else x for k, x in options.items()})

    torch.Tensor.to = to  # type: ignore[method-assign,assignment]
    torch.Tensor.cuda = lambda self, *_, **__: self.to(CUDA)  # type: ignore[method-assign,assignment]
    mode = Pretend()
    mode.__enter__()
    return mode


def use_the_gpu_in_dry_runs() -> None:
    """Let the benchmarks' dry runs, which have small cases, take the GPU and its timer, as runs that count do."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import _harness

    original = _harness.Bench.__init__

    def begin(self: Any, name: str, parsed: Any, *more: Any, **others: Any) -> None:
        dry_run, parsed.dry_run = parsed.dry_run, False
        original(self, name, parsed, *more, **others)
        self.dry_run = parsed.dry_run = dry_run

    _harness.Bench.__init__ = begin  # type: ignore[method-assign]


def main() -> None:
    """Run a module (with -m) or a script as python does, with the pretended GPU."""
    if "TILUS_PRETEND_DRIVER" not in os.environ:
        # The loader reads its path when a process starts.
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder))
            environment = {**os.environ, "TILUS_PRETEND_DRIVER": folder, "FAKE_CUDA_CAPABILITY": "90"}
            environment.setdefault("FAKE_CUDA_DRIVER", "13000")
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(
                filter(None, (folder, os.environ.get("LD_LIBRARY_PATH")))
            )
            command = [sys.executable, "-m", "tests.gpu.pretend", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=environment).returncode)
    # The module as others import it, not the one that runs.
    from tests.gpu import pretend

    pretend.install()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        if "--dry-run" in sys.argv:
            use_the_gpu_in_dry_runs()
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
