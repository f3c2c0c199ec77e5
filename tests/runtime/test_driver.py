"""The CUDA path against a driver that does nothing but write down what it is asked; tensors pretend to be on a GPU."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable

Run = Callable[..., tuple[str, list[str]]]

# A CPU build of torch has no CUDA tensors; their place is all that differs here.
PRETEND = """
import torch
from dataclasses import replace
from tests.runtime import kernels
from tilus.errors import LaunchError, TilusError
from tilus.runtime import arguments, driver, kernel as kernel_module, manifest as manifest_module
import tilus

original, DEVICE = arguments.read_array, 0

def read_array(name, value, meta=False):
    found = original(name, value, meta)
    return replace(found, device=DEVICE, pointer=value.data_ptr()) if not value.is_meta else found

kernel_module.read_array = manifest_module.read_array = read_array
capturing, current, stream = False, 0, 0x55
torch._C._cuda_getDevice = lambda: current
torch._C._cuda_getCurrentRawStream = lambda device: stream
torch.cuda.is_current_stream_capturing = lambda: capturing
"""


def program(text: str) -> list[str]:
    return [sys.executable, "-c", PRETEND + textwrap.dedent(text)]


def launches(log: list[str]) -> list[str]:
    return [line for line in log if line.startswith("launch")]


def test_launch_loads_once_and_passes_the_arguments(with_fake_driver: Run) -> None:
    code = """
        source, target = torch.zeros(7, 100)[:, :50], torch.zeros(7, 50)
        for _ in range(3):
            kernels.copy_rows(source, target)
        print(f"{source.data_ptr():x} {target.data_ptr():x}")
    """
    printed, log = with_fake_driver(program(code))
    assert [line.split()[0] for line in log] == ["push", "load", "find", "pop", "launch", "launch", "launch"]
    assert log[0] == "push 1000"
    assert log[1].startswith("load cubin")
    assert log[2] == "find copy_rows"
    expected = f"grid 2 2 1 block 32 1 1 shared 0 stream {0x55} extra 0 args {printed.strip()} 7 32 64"
    assert all(line.endswith(expected) for line in launches(log))


def test_target_follows_the_device(with_fake_driver: Run) -> None:
    code = """
        import os
        for capability in (75, 80, 86, 90, 100, 70):
            os.environ["FAKE_CUDA_CAPABILITY"] = str(capability)
            driver.capability.cache_clear()
            kernel = tilus.Kernel(kernels.copy_rows.source)
            try:
                kernel(torch.zeros(4, 32), torch.zeros(4, 32))
                print(*(binary.target for binary in kernel._variants.values()))
            except TilusError as error:
                print(error.message)
    """
    printed, log = with_fake_driver(program(code))
    assert printed.splitlines() == [
        "sm_75",
        "sm_80",
        "sm_86",
        "sm_90a",
        "sm_100a",
        "tilus generates no code for compute capability 7.0",
    ]
    assert len(launches(log)) == 5


def test_much_shared_memory_is_asked_for(with_fake_driver: Run) -> None:
    code = """
        source, target = (torch.zeros(256, 256, dtype=torch.float16) for _ in range(2))
        kernels.tma_copy(source, target, rows=128, columns=256)
    """
    _, log = with_fake_driver(program(code), capability=90)
    (attribute,) = (line for line in log if line.startswith("attribute"))
    found = re.fullmatch(r"attribute 8 of \d+ is (\d+)", attribute)
    assert found
    assert int(found[1]) >= 128 * 256 * 2
    (launch,) = launches(log)
    assert f"shared {found[1]} " in launch


def test_tensor_maps_are_made_from_the_tensor(with_fake_driver: Run) -> None:
    code = """
        source, target = (torch.zeros(200, 160, dtype=torch.float16) for _ in range(2))
        other = torch.zeros_like(source)
        kernels.tma_copy(source, target)
        kernels.tma_copy(source, target)
        kernels.tma_copy(other, target)
        print(f"{source.data_ptr():x} {other.data_ptr():x}")
    """
    printed, log = with_fake_driver(program(code), capability=90)
    first, second = printed.split()
    maps = [line for line in log if line.startswith("map")]
    # float16 is 6; fastest dimension first; the box is the tile, or its part that a swizzle of 128 bytes covers.
    pattern = r"map {} type 6 at {} \[160 step 0 box 64 by 1\] \[200 step 320 box 64 by 1\] 0 \d 2 0"
    assert len(maps) == 2
    assert re.fullmatch(pattern.format(1, first), maps[0])
    assert re.fullmatch(pattern.format(2, second), maps[1])
    assert [line.split()[-1] for line in launches(log)] == ["1", "1", "2"]


def test_capture_without_preparation_is_refused_before_the_driver_is_asked(with_fake_driver: Run) -> None:
    code = """
        source, target = torch.zeros(4, 32), torch.zeros(4, 32)
        driver.target(0)
        capturing = True
        try:
            kernels.copy_rows(source, target)
        except LaunchError as error:
            print(error)
    """
    printed, log = with_fake_driver(program(code))
    assert "a CUDA graph is being captured" in printed
    assert "copy_rows.prepare(...)" in printed
    assert log == []


def test_capture_after_preparation_launches_only(with_fake_driver: Run) -> None:
    code = """
        source, target = torch.zeros(4, 32), torch.zeros(4, 32)
        kernels.copy_rows.prepare(source, target)
        print("prepared")
        capturing = True
        kernels.copy_rows(source, target)
        kernels.copy_rows(torch.zeros(8, 32), torch.zeros(8, 32))  # another number of rows is the same code
    """
    _, log = with_fake_driver(program(code))
    assert [line.split()[0] for line in log] == ["push", "load", "find", "pop", "launch", "launch"]


def test_other_current_device_is_switched_for_the_launch(with_fake_driver: Run) -> None:
    code = """
        DEVICE = 1
        source = torch.zeros(4, 32)
        kernels.copy_rows(source, source.clone())
        current = 1
        kernels.copy_rows(source, source)
    """
    _, log = with_fake_driver(program(code), devices=2)
    kinds = [line.split()[0] for line in log]
    assert kinds == ["push", "load", "find", "pop", "push", "launch", "pop", "launch"]
    assert {line for line in log if line.startswith("push")} == {"push 1001"}


def test_failures_of_the_driver_are_errors_in_its_words(with_fake_driver: Run) -> None:
    code = """
        import os
        for failure in ("cuInit=2", "cuModuleLoadData=2", "cuLaunchKernel=701"):
            os.environ["FAKE_CUDA_FAIL"] = failure
            try:
                kernels.copy_rows(torch.zeros(4, 32), torch.zeros(4, 32))
            except LaunchError as error:
                print(error.message)
    """
    resources = "too many resources, says the fake (CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES)"
    assert with_fake_driver(program(code))[0].splitlines() == [
        "the CUDA driver could not be initialised: out of memory, says the fake (CUDA_ERROR_OUT_OF_MEMORY)",
        "loading copy_rows failed: out of memory, says the fake (CUDA_ERROR_OUT_OF_MEMORY)",
        f"launching copy_rows on 1 x 1 x 1 blocks failed: {resources}",
    ]


def test_wrong_arguments_after_a_launch_are_still_named(with_fake_driver: Run) -> None:
    code = """
        source, target = torch.zeros(4, 32), torch.zeros(4, 32)
        kernels.copy_rows(source, target)
        for wrong in (torch.zeros(4, 31), torch.zeros(4, 32, dtype=torch.int8), 3, None):
            try:
                kernels.copy_rows(source, wrong)
            except LaunchError as error:
                print(error.message)
    """
    printed, log = with_fake_driver(program(code))
    assert printed.splitlines() == [
        "copy_rows: n is 31 in target and 32 in source, expected one size for one name",
        "copy_rows: target has dtype int8, expected float32",
        "copy_rows: target is an int, expected a tensor or an array for Tensor['dtype', \"m n\"]",
        "copy_rows: target is None, expected a tensor or an array for Tensor['dtype', \"m n\"]",
    ]
    assert len(launches(log)) == 1


def test_misaligned_tensor_is_not_launched_with_aligned_code(with_fake_driver: Run) -> None:
    code = """
        backing, target = torch.zeros(4 * 32 + 4), torch.zeros(4, 32)
        for offset in (0, 1, 0, 1):
            kernels.copy_rows(backing[offset:offset + 128].view(4, 32), target)
    """
    _, log = with_fake_driver(program(code))
    used = [line.split()[1] for line in launches(log)]
    assert used[0] == used[2] != used[1] == used[3]


def test_doctor_shows_driver_and_device(with_fake_driver: Run) -> None:
    printed, _ = with_fake_driver([sys.executable, "-m", "tilus", "doctor"], devices=2, capability=90)
    assert re.search(r"ok +driver +CUDA 12\.4", printed)
    assert re.search(r"ok +gpu +Fake GPU 0, 9\.0 \(sm_90a\); Fake GPU 1, 9\.0 \(sm_90a\)", printed)


def test_kernel_that_waits_for_the_one_before_is_allowed_to_overlap_with_it(with_fake_driver: Run) -> None:
    code = """
        x, out = torch.zeros(256), torch.zeros(256)
        for _ in range(2):
            kernels.next_copy(x, out)
        kernels.scale_add(x, x, out)
        try:
            kernels.next_copy(torch.zeros(640), torch.zeros(640))
        except LaunchError as error:
            print(error.message)
        current = 1  # another device is switched to, and the launch overlaps there too
        kernels.next_copy(x, out)
    """
    printed, log = with_fake_driver(program(code), capability=90)
    kinds = [line.split()[0] for line in log]
    first = ["push", "load", "find", "pop"]
    assert kinds == [*first, *["with", "launch"] * 2, *first, "launch", "push", "with", "launch", "pop"]
    assert {line for line in log if line.startswith("with")} == {"with 6 is 1"}
    assert " grid 2 1 1 block 128 1 1 " in launches(log)[0]
    assert printed.strip() == "next_copy has the grid (5, 1, 1), expected multiples of its cluster (2, 1, 1)"


def test_kernel_that_overlaps_is_refused_before_sm_90(with_fake_driver: Run) -> None:
    code = """
        try:
            kernels.next_copy(torch.zeros(256), torch.zeros(256))
        except TilusError as error:
            print(error.message)
    """
    printed, log = with_fake_driver(program(code), capability=80)
    assert printed.strip() == "sm_80 has no thread-block clusters"
    assert log == []
