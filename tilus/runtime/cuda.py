"""Launches on a GPU: on the device of the tensors and on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tilus.runtime import driver
from tilus.runtime.arguments import Operand
from tilus.runtime.binary import Binary
from tilus.runtime.launch import Plan
from tilus.runtime.tensor_maps import driver_encoder


def is_capturing() -> bool:
    """Tell whether the current stream is being captured into a CUDA graph."""
    import torch

    return bool(torch.cuda.is_current_stream_capturing())


def load_binary(binary: Binary, device: int, image: bytes | None = None) -> driver.Function:
    """Load a compiled variant on a device: its cubin or, where no assembler is installed, its PTX."""
    signature = binary.signature
    if image is None:
        image = binary.cubin if binary.cubin is not None else binary.ptx.encode() + b"\0"
    return driver.load(image, signature.name, device, signature.shared_bytes, prod(signature.cluster))


def make_plan(
    binary: Binary, operands: Sequence[Operand | None], loaded: driver.Function, torch: Any
) -> Plan:
    """Return a launch plan for a loaded variant, on torch's current stream."""
    bindings = driver.bindings()
    device: int = loaded.device
    launch = driver.overlapping_launch() if binary.signature.overlaps else bindings.cuLaunchKernel
    current_device, current_stream = torch._C._cuda_getDevice, torch._C._cuda_getCurrentRawStream

    def slow_launch(handle: Any, grid: tuple[int, int, int], threads: int, shared: int, address: int) -> None:
        # Another device is current, or this thread has no context yet; any other failure comes again.
        with driver.in_context(device):
            (status,) = launch(handle, *grid, threads, 1, 1, shared, current_stream(device), address, 0)
        if status:
            blocks = " x ".join(map(str, grid))
            raise driver.error_of(status, f"launching {binary.signature.name} on {blocks} blocks")

    encoders = []
    for wanted in binary.signature.tensor_maps:
        operand = operands[wanted.param]
        assert operand is not None
        encoders.append(driver_encoder(wanted, operand))
    return Plan(
        binary.signature, operands, loaded.handle, launch, current_stream, current_device, device, slow_launch,
        encoders,
    )  # fmt: skip
