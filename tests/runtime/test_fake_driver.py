"""The fake driver refuses what a driver refuses, so that what it takes is worth something; and errors say what to do."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import pytest

from tests.runtime.test_driver import launches, program

Run = Callable[..., tuple[str, list[str]]]

# Calls of the driver with one thing wrong; each is right without it.
DIRECT = """
import ctypes
import torch
from cuda.bindings import driver as cuda
from tests.runtime import kernels
from tilus.runtime import driver

half = torch.zeros(128, 256, dtype=torch.float16)
compiled = kernels.tma_copy.compile(half, half, target="sm_90a", rows=128, columns=256)
driver.bindings()

def load(image=compiled.cubin, name=b"tma_copy"):
    status, module = cuda.cuModuleLoadData(image)
    return (status, None) if status else cuda.cuModuleGetFunction(module, name)

def encode(address=None, dims=(256, 128), strides=(512,), box=(64, 64), steps=(1, 1), swizzle=3, offset=0, kind=6, rank=2):
    room = ctypes.create_string_buffer(512)
    start = -ctypes.addressof(room) % 128 + offset
    from tilus.runtime.tensor_maps import encode_function
    u32, u64 = ctypes.c_uint32, ctypes.c_uint64
    status = encode_function()(
        ctypes.addressof(room) + start, kind, rank, half.data_ptr() if address is None else address,
        (u64 * 5)(*dims), (u64 * 5)(*strides), (u32 * 5)(*box), (u32 * 5)(*steps), 0, swizzle, 2, 0,
    )
    return status, room.raw[start : start + 128]

def launch(grid=(1, 1, 1), threads=128, shared=compiled.shared_bytes, asked=compiled.shared_bytes, map=None, missing=None):
    function = load()[1]
    if asked:
        (status,) = cuda.cuFuncSetAttribute(function, cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, asked)
        if status:
            return int(status)
    values = [ctypes.c_uint64(half.data_ptr()), ctypes.c_uint64(half.data_ptr()), ctypes.c_uint32(128), ctypes.c_uint32(256),
              ctypes.create_string_buffer(encode()[1] if map is None else map, 128)]
    addresses = (ctypes.c_void_p * 8)(*[ctypes.addressof(v) for v in values])
    if missing is not None:
        addresses[missing] = None
    (status,) = cuda.cuLaunchKernel(function, *grid, threads, 1, 1, shared, 0, ctypes.addressof(addresses), 0)
    return int(status)
"""

WRONG_MAPS = {
    "address=half.data_ptr() + 8": "a tensor map of a tensor at 0x",
    "dims=(0, 128)": "extent 0",
    "dims=(256, 2**33)": "extent 8589934592",
    "strides=(520,)": "a stride of 520 bytes",
    "strides=(2**40,)": "a stride of 1099511627776 bytes",
    "box=(64, 257)": "a box of 257 elements along dimension 1",
    "box=(4, 64)": "an inner box of 8 bytes",
    "box=(128, 64)": "an inner box of 256 bytes for a swizzle of 128",
    "box=(32, 64), swizzle=1": "an inner box of 64 bytes for a swizzle of 32",
    "steps=(1, 9)": "a step of 9 elements",
    "offset=16": "the tensor map is at no multiple of 64 bytes",
    "kind=99": "type 99 of a tensor map",
    "rank=0": "a tensor map of rank 0",
    "swizzle=9": "swizzle 9",
}
WRONG_LAUNCHES = {
    "grid=(0, 1, 1)": "tma_copy is launched on 0 x 1 x 1 blocks",
    "grid=(1, 65536, 1)": "tma_copy is launched on 1 x 65536 x 1 blocks",
    "threads=256": "tma_copy is launched with 256 threads, and made for 128",
    "asked=0": r"tma_copy is launched with \d+ bytes of shared memory of 49152",
    "asked=240_000": "tma_copy asks for 240000 bytes of shared memory of 232448",
    "map=b'x' * 128": "parameter 4 of tma_copy is no tensor map",
    "missing=2": "no value of parameter 2 of tma_copy",
}


def direct(text: str) -> list[str]:
    return [program("")[0], "-c", DIRECT + textwrap.dedent(text)]


def test_what_is_wrong_is_refused_and_said(with_fake_driver: Run) -> None:
    code = "assert encode()[0] == 0 and launch() == 0\n"
    code += "".join(f"print(encode({wrong})[0])\n" for wrong in WRONG_MAPS)
    code += "".join(f"print(launch({wrong}))\n" for wrong in WRONG_LAUNCHES)
    printed, log = with_fake_driver(direct(code), capability=90)
    assert set(printed.split()) == {"1"}, "CUDA_ERROR_INVALID_VALUE"
    said = [line for line in log if line.startswith("wrong: ")]
    for line, pattern in zip(said, [*WRONG_MAPS.values(), *WRONG_LAUNCHES.values()], strict=True):
        assert re.match(f"wrong: {pattern}", line)


def test_images_for_others_are_refused(with_fake_driver: Run) -> None:
    code = """
        ptx = compiled.ptx.encode() + b"\\0"
        print(load(ptx)[0].name, load(name=b"other")[0].name)
        print(load(ptx.replace(b".version 8.0", b".version 9.1"))[0].name, load(b"no code\\0")[0].name)
        import os
        for capability in ("80", "100"):
            os.environ["FAKE_CUDA_CAPABILITY"] = capability
            print(load()[0].name)
    """
    printed, _ = with_fake_driver(direct(code), capability=90, driver=13000)
    assert printed.splitlines() == [
        "CUDA_SUCCESS CUDA_ERROR_NOT_FOUND",
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION CUDA_ERROR_INVALID_IMAGE",
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
    ]


def test_parameters_are_those_of_the_ptx(with_fake_driver: Run) -> None:
    """What the driver reads off machine code, by a format that is not documented, is what the PTX declares."""
    code = """
        from tilus.runtime import cuda as launches
        load = launches.load_binary
        for as_ptx in (False, True):
            kernel = tilus.Kernel(kernels.scalars.source)
            if as_ptx:
                kernel_module.load_binary = lambda binary, device: load(
                    binary, device, binary.ptx.encode() + bytes(1)
                )
            kernel(torch.zeros(96), 3, 0.5, 1.0078125, 2.25, True, 2**40)
    """
    _, log = with_fake_driver(program(code), capability=90)
    first, second = (line.split(" args ")[1].split()[1:] for line in launches(log))
    assert first == second == ["3", "3f000000", "3f81", "4080", "1", hex(2**40)[2:], "60"]
    assert [line.split()[1] for line in log if line.startswith("load")] == ["cubin", "ptx"]


def test_threads_without_a_context_get_one(with_fake_driver: Run) -> None:
    code = """
        source, target = torch.zeros(4, 32), torch.zeros(4, 32)
        for _ in range(2):
            kernels.copy_rows(source, target)
    """
    _, log = with_fake_driver(program(code), no_context=1)
    kinds = [line.split()[0] for line in log]
    assert kinds == ["push", "load", "find", "pop"] + ["launch", "push", "launch", "pop"] * 2


@pytest.mark.parametrize(
    ("failure", "name", "hint"),
    [
        ("cuModuleLoadData=2", "OUT_OF_MEMORY", "torch.cuda.empty_cache()"),
        ("cuModuleLoadData=200", "INVALID_IMAGE", "tilus doctor"),
        ("cuModuleLoadData=209", "NO_BINARY_FOR_GPU", "a target of this GPU's"),
        ("cuModuleLoadData=222", "UNSUPPORTED_PTX_VERSION", "update the driver"),
        ("cuLaunchKernel=701", "LAUNCH_OUT_OF_RESOURCES", "fewer warps or smaller tiles"),
        ("cuLaunchKernel=912", "INVALID_CLUSTER_SIZE", "a smaller cluster="),
        ("cuFuncSetAttribute=1", "INVALID_VALUE", ""),
    ],
)
def test_errors_say_what_to_do(with_fake_driver: Run, failure: str, name: str, hint: str) -> None:
    code = """
        half = torch.zeros(256, 256, dtype=torch.float16)
        try:
            kernels.tma_copy(half, half, rows=128, columns=256)
        except LaunchError as error:
            print(error.message)
            print(error.hint or "")
    """
    printed, _ = with_fake_driver(program(code), capability=90, fail=failure)
    message, said = printed.splitlines()
    assert f"(CUDA_ERROR_{name})" in message
    assert hint in said


def test_an_illegal_address_ends_the_use_of_the_gpu_with_words(with_fake_driver: Run) -> None:
    code = """
        source, target = torch.zeros(4, 32), torch.zeros(4, 32)
        for _ in range(3):
            try:
                kernels.copy_rows(source, target)
                print("launched")
            except LaunchError as error:
                print(error.message)
                assert "CPU tensors" in error.hint
    """
    printed, _ = with_fake_driver(program(code), fail="kernel=700")
    lost = "launching copy_rows on 1 x 1 x 1 blocks failed: illegal address, says the fake (CUDA_ERROR_ILLEGAL_ADDRESS)"
    assert printed.splitlines() == ["launched", lost, lost]


def test_nothing_that_is_launched_here_is_wrong(with_fake_driver: Run) -> None:
    code = """
        half = torch.zeros(256, 160, dtype=torch.float16)
        x = torch.zeros(256)
        for rows in (64, 128):
            kernels.tma_copy(half, half.clone(), rows=rows)
            kernels.tma_copy(half[:100, :64], half[:100, :64].clone(), rows=rows)
        kernels.next_copy(x, x.clone())
        kernels.scalars(torch.zeros(96), 3, 0.5, 1.0, 2.25, False)
        kernels.through_pointer(x, x.clone())
    """
    _, log = with_fake_driver(program(code), capability=90)
    assert len(launches(log)) == 7
    assert [line for line in log if line.startswith("wrong")] == []
