"""Which target an op runs on."""

from __future__ import annotations

from functools import lru_cache

import torch

from tilus.codegen import Target, target, target_of_capability
from tilus.runtime.simulate import default_target


@lru_cache(maxsize=64)
def _of_device(index: int) -> Target:
    return target_of_capability(*torch.cuda.get_device_capability(index))


def target_of(x: torch.Tensor) -> Target:
    """Return the target of a tensor's device; for the CPU, the one that the simulator runs."""
    if x.device.type == "cuda":
        return _of_device(x.device.index if x.device.index is not None else torch.cuda.current_device())
    return target(default_target())


def processors(x: torch.Tensor) -> int:
    """Return how many multiprocessors a tensor's device has; the simulator counts as one."""
    if x.device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(x.device).multi_processor_count
    return count


@lru_cache(maxsize=64)
def _name_of_device(index: int) -> str:
    name: str = torch.cuda.get_device_properties(index).name
    return name


def device_name(x: torch.Tensor) -> str:
    """Return the name that the driver gives a tensor's device; none for the CPU."""
    if x.device.type != "cuda":
        return ""
    return _name_of_device(x.device.index if x.device.index is not None else torch.cuda.current_device())
