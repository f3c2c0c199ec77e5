"""What cards do per second, for estimates: multiprocessors, clocks, memory and tensor cores, from their data sheets.

Sources: NVIDIA's architecture white papers (Turing WP-09183, A100, GA102, Ada, H100, RTX Blackwell) and the data
sheets of T4, A100 80GB, L40S and H200. Tensor rates are dense ones, in TFLOPS, at the boost clock. Per multiprocessor
and clock every card since Volta issues 4 warp instructions, and moves 128 bytes of shared memory and 64 bytes from the
second-level cache (CUDA C++ Programming Guide, compute capabilities; Choquette, "NVIDIA A100 GPU", Hot Chips 32);
special-function units serve 16 lanes (Programming Guide, throughput of native arithmetic instructions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tilus.errors import TargetNotSupported

_ISSUE = 4
_WAVEFRONTS = 1
_L2_BYTES = 64
_SPECIAL_WARPS = 0.5


@dataclass(frozen=True)
class Device:
    """A card.

    Attributes
    ----------
    name : str
        As NVIDIA sells it.
    target : str
        The target whose code it runs.
    sm_count : int
        Multiprocessors.
    clock : float
        Boost clock in Hz.
    bandwidth : float
        Bytes per second of device memory.
    tensor : mapping
        Dense tensor-core TFLOPS by kind of operands; ``f16 in f16`` where accumulators of that type are faster.
    """

    name: str
    target: str
    sm_count: int
    clock: float
    bandwidth: float
    tensor: Mapping[str, float]

    def figures(self) -> dict[str, float]:
        """Return what the whole card does per second, by the names that `tilus.simulator.Report.roofline` takes."""
        cycles = self.sm_count * self.clock
        return {
            "sm_count": self.sm_count,
            "dram_bytes": self.bandwidth,
            "global_bytes": _L2_BYTES * cycles,
            "shared_wavefronts": _WAVEFRONTS * cycles,
            "warp_instructions": _ISSUE * cycles,
            "special_functions": _SPECIAL_WARPS * cycles,
            **{f"tensor_core_flops.{kind}": rate * 1e12 for kind, rate in self.tensor.items()},
        }


def _tensor(**rates: float) -> Mapping[str, float]:
    return MappingProxyType({kind.replace("_in_", " in "): rate for kind, rate in rates.items()})


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("T4", "sm_75", 40, 1.59e9, 320e9, _tensor(f16=65, int8=130, int4=260, b1=1040)),
        Device(
            "A100", "sm_80", 108, 1.41e9, 2039e9,
            _tensor(f16=312, tf32=156, f64=19.5, int8=624, int4=1248, b1=4992),
        ),
        Device(
            "RTX 3090", "sm_86", 82, 1.695e9, 936e9,
            _tensor(f16=71, f16_in_f16=142, tf32=35.6, int8=284, int4=568),
        ),
        Device("L40S", "sm_89", 142, 2.52e9, 864e9, _tensor(f16=362, tf32=183, f8=733, int8=733)),
        Device(
            "RTX 4090", "sm_89", 128, 2.52e9, 1008e9,
            _tensor(
                f16=165.2, f16_in_f16=330.3, tf32=82.6, f8=330.3, f8_in_f16=660.6, int8=660.6, int4=1321.2
            ),
        ),
        Device(
            "H200", "sm_90a", 132, 1.83e9, 4800e9,
            _tensor(f16=989, tf32=494, f64=67, f8=1979, int8=1979),
        ),
        Device(
            "H100", "sm_90a", 132, 1.83e9, 3350e9,
            _tensor(f16=989, tf32=494, f64=67, f8=1979, int8=1979),
        ),
        Device(
            "RTX 5090", "sm_120a", 170, 2.407e9, 1792e9,
            _tensor(f16=209.5, f16_in_f16=419, tf32=104.8, f8=419, f8_in_f16=838, f4=1676, int8=838),
        ),
    )
}  # fmt: skip
"""Cards by name; the first of a target stands for it."""


def device(name: str) -> Device:
    """Return a card by its name, or the card that stands for a target."""
    for found in DEVICES.values():
        if name.lower() in (found.name.lower(), found.name.lower().replace(" ", "-"), found.target):
            return found
    for found in DEVICES.values():
        if f"{name}a" == found.target:
            return found
    raise TargetNotSupported(f"there are no figures for {name!r}", hint="one of " + ", ".join(DEVICES))
