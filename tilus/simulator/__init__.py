"""Runs PTX on the CPU, finds its hazards and counts what decides its speed.

>>> from tilus import simulator
>>> report = simulator.load(ptx)["kernel"].launch(grid=(4,), block=(128,), args=[x, y, 17])   # doctest: +SKIP
>>> report.hazards, report.counters["global_load_sectors"]                                    # doctest: +SKIP

It executes all warps that stand at the same instruction together, as NumPy array operations.
"""

from __future__ import annotations

from .arguments import DeviceArray, device_array
from .errors import HazardError, LaunchError, PtxError, SimulatorError
from .hazards import KINDS, Hazard
from .module import CHECKS, Kernel, Module, collect_reports, load
from .report import LineCounters, Report
from .tma import TensorMap

__all__ = [
    "CHECKS",
    "KINDS",
    "DeviceArray",
    "Hazard",
    "HazardError",
    "Kernel",
    "LaunchError",
    "LineCounters",
    "Module",
    "PtxError",
    "Report",
    "SimulatorError",
    "TensorMap",
    "collect_reports",
    "device_array",
    "load",
]
