"""What well-known cards do per clock and per second, for estimates: rooflines and the tuner's cost model.

Figures come from NVIDIA's architecture whitepapers, datasheets and the CUDA programming guide; `sources` says which
is from where, and which is assumed. What `benchmarks/microbench.py` measured on a card takes their place:
`benchmarks/calibrate.py` writes it to `measured.json` beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tilus.errors import TargetNotSupported

MEASURED = Path(__file__).with_name("measured.json")
"""Figures that were measured, by card; there need not be any."""
KIB, MIB = 1 << 10, 1 << 20
WARP = 32


@dataclass(frozen=True)
class TensorRates:
    """Dense operations (a multiplication and an addition are two) of one multiprocessor in a clock, by operand type.

    Attributes
    ----------
    f16, tf32, f8, i8, f64 : int
        For float16 and bfloat16 with float32 sums, tfloat32, 8-bit floats, 8-bit integers and float64; 0 where the
        card has none.
    f16_in_f16, f8_in_f16 : int
        With float16 sums, where those are faster.
    i4, b1, f4 : int
        For 4-bit integers, bits and 4-bit floats, where they have a rate of their own.
    """

    f16: int
    tf32: int
    f8: int
    i8: int
    f64: int = 0
    f16_in_f16: int = 0
    f8_in_f16: int = 0
    i4: int = 0
    b1: int = 0
    f4: int = 0


@dataclass(frozen=True)
class LaneRates:
    """Results of one multiprocessor in a clock, by kind of instruction; a packed pair of halves counts as one.

    Attributes
    ----------
    fma : int
        Single-precision addition, multiplication and multiply-add.
    alu : int
        32-bit logic, shifts, integer addition, comparison, selection.
    half2 : int
        Packed pairs of float16.
    special : int
        Exponential, logarithm, reciprocal, roots, sine; also population count.
    convert : int
        Conversions between types.
    shuffle : int
        Warp shuffles.
    """

    fma: int
    alu: int
    half2: int
    special: int
    convert: int
    shuffle: int


@dataclass(frozen=True)
class Figures:
    """A card, as a cost model sees it.

    Attributes
    ----------
    name, target : str
        The card, and the target whose code runs on it.
    processors : int
        Multiprocessors.
    clock : float
        Hertz under load: the boost clock that the vendor's peak rates assume.
    global_bandwidth : float
        Bytes per second of device memory, by the datasheet.
    global_share : float
        Part of `global_bandwidth` that a copy reaches.
    l2_bytes, l2_bytes_per_clock : int
        Size of the L2 cache, and what it delivers to all multiprocessors in a clock.
    shared_bytes_per_clock : int
        Shared memory of one multiprocessor in a clock.
    tensor : TensorRates
        The tensor cores of one multiprocessor.
    mma_sync_share : float
        Part of the tensor rate that `mma.sync` reaches; on Hopper only wgmma reaches all.
    lanes : LaneRates
        The other units of one multiprocessor.
    issue_per_clock : int
        Warp instructions that one multiprocessor issues in a clock.
    registers, shared_bytes, threads, blocks : int
        What the blocks that are resident on one multiprocessor share: 32-bit registers, bytes of shared memory,
        threads, and the number of blocks.
    shared_latency, l2_latency, global_latency : int
        Clocks from a load to its value.
    launch_seconds : float
        From the start of an empty kernel to the start of the next on a stream.
    sources : tuple of (str, str)
        Field name (or several, separated by commas) and where the figures are from.
    """

    name: str
    target: str
    processors: int
    clock: float
    global_bandwidth: float
    global_share: float
    l2_bytes: int
    l2_bytes_per_clock: int
    shared_bytes_per_clock: int
    tensor: TensorRates
    mma_sync_share: float
    lanes: LaneRates
    issue_per_clock: int
    registers: int
    shared_bytes: int
    threads: int
    blocks: int
    shared_latency: int
    l2_latency: int
    global_latency: int
    launch_seconds: float
    sources: tuple[tuple[str, str], ...]

    def tensor_ops(self, dtype: str, asynchronous: bool = False) -> float:
        """Return operations of one multiprocessor in a clock for operands of a dtype, as PTX or tilus names it.

        Parameters
        ----------
        dtype : str
            Such as ``"bf16"``, ``"bfloat16"``, ``"e4m3"`` or ``"int8"``.
        asynchronous : bool
            By wgmma rather than mma.sync.
        """
        rate = getattr(self.tensor, _TENSOR_TYPES.get(dtype, ""), 0)
        return rate if asynchronous else rate * self.mma_sync_share

    @property
    def clock_bytes(self) -> float:
        """Bytes of device memory in a clock, by the share that a copy reaches."""
        return self.global_bandwidth * self.global_share / self.clock

    def per_second(self) -> dict[str, float]:
        """Return what the whole chip does per second, by the names that `tilus.simulator.Report.roofline` takes."""
        clocks = self.processors * self.clock
        return {
            "sm_count": float(self.processors),
            "dram_bytes": self.global_bandwidth * self.global_share,
            "global_bytes": self.l2_bytes_per_clock * self.clock,
            "shared_wavefronts": clocks * self.shared_bytes_per_clock / 128,
            "warp_instructions": clocks * self.issue_per_clock,
            "special_functions": clocks * self.lanes.special / WARP,
            **{
                f"tensor_core_flops.{kind}": clocks * getattr(self.tensor, field)
                for kind, field in _TENSOR_KINDS.items()
                if getattr(self.tensor, field)
            },
        }


_TENSOR_TYPES = {
    "f16": "f16", "float16": "f16", "bf16": "f16", "bfloat16": "f16",
    "tf32": "tf32", "tfloat32": "tf32",
    "e4m3": "f8", "e5m2": "f8", "float8_e4m3": "f8", "float8_e5m2": "f8",
    "s8": "i8", "u8": "i8", "int8": "i8", "uint8": "i8",
    "f64": "f64", "float64": "f64",
}  # fmt: skip

# As the simulator's counters name kinds of operands, and the field of `TensorRates` for each.
_TENSOR_KINDS = {
    "f16": "f16", "f16 in f16": "f16_in_f16", "tf32": "tf32", "f8": "f8", "f8 in f16": "f8_in_f16", "f4": "f4",
    "int8": "i8", "int4": "i4", "b1": "b1", "f64": "f64",
}  # fmt: skip

_GUIDE = "CUDA C++ programming guide, compute capabilities and arithmetic throughput"
_LATENCY = "assumed: round numbers in the range of published pointer chases; microbench.py measures them"
_LAUNCH = "assumed; microbench.py measures it"
_SHARE = "assumed: what large copies usually reach; microbench.py measures it"

_HOPPER = Figures(
    name="H100",
    target="sm_90a",
    processors=132,
    clock=1.83e9,
    global_bandwidth=3.35e12,
    global_share=0.9,
    l2_bytes=50 * MIB,
    l2_bytes_per_clock=5120,
    shared_bytes_per_clock=128,
    tensor=TensorRates(f16=4096, tf32=2048, f8=8192, i8=8192, f64=256),
    mma_sync_share=0.62,
    lanes=LaneRates(fma=128, alu=64, half2=128, special=16, convert=64, shuffle=32),
    issue_per_clock=4,
    registers=65_536,
    shared_bytes=228 * KIB,
    threads=2048,
    blocks=32,
    shared_latency=30,
    l2_latency=270,
    global_latency=600,
    launch_seconds=2.5e-6,
    sources=(
        ("processors, clock, tensor", "NVIDIA H100 whitepaper: 989.4 TFLOP/s in float16 are 132 x 4096 x 1.83 GHz"),
        ("global_bandwidth, l2_bytes", "NVIDIA H100 datasheet and whitepaper, SXM5"),
        ("l2_bytes_per_clock", "assumed to be the A100's; microbench.py measures it"),
        ("lanes, shared_bytes_per_clock, registers, shared_bytes, threads, blocks", _GUIDE),
        ("mma_sync_share", "published studies of mma.sync on Hopper: 62 to 75 percent; microbench.py measures it"),
        ("global_share", _SHARE),
        ("shared_latency, l2_latency, global_latency", _LATENCY),
        ("launch_seconds", _LAUNCH),
    ),
)  # fmt: skip

_AMPERE = Figures(
    name="A100",
    target="sm_80",
    processors=108,
    clock=1.41e9,
    global_bandwidth=2.039e12,
    global_share=0.9,
    l2_bytes=40 * MIB,
    l2_bytes_per_clock=5120,
    shared_bytes_per_clock=128,
    tensor=TensorRates(f16=2048, tf32=1024, f8=0, i8=4096, f64=128, i4=8192, b1=32768),
    mma_sync_share=1.0,
    lanes=LaneRates(fma=64, alu=64, half2=128, special=16, convert=64, shuffle=32),
    issue_per_clock=4,
    registers=65_536,
    shared_bytes=164 * KIB,
    threads=2048,
    blocks=32,
    shared_latency=30,
    l2_latency=250,
    global_latency=550,
    launch_seconds=2.5e-6,
    sources=(
        ("processors, clock, tensor", "NVIDIA A100 whitepaper: 312 dense TFLOP/s in float16 are 108 x 2048 x 1.41 GHz"),
        ("global_bandwidth", "NVIDIA A100 datasheet, SXM 80 GB"),
        ("l2_bytes, l2_bytes_per_clock", "NVIDIA A100 whitepaper"),
        ("lanes, shared_bytes_per_clock, registers, shared_bytes, threads, blocks", _GUIDE),
        ("global_share", _SHARE),
        ("shared_latency, l2_latency, global_latency", _LATENCY),
        ("launch_seconds", _LAUNCH),
    ),
)  # fmt: skip

_ADA = Figures(
    name="L40S",
    target="sm_89",
    processors=142,
    clock=2.52e9,
    global_bandwidth=864e9,
    global_share=0.9,
    l2_bytes=96 * MIB,
    l2_bytes_per_clock=4096,
    shared_bytes_per_clock=128,
    tensor=TensorRates(f16=1024, tf32=512, f8=2048, i8=2048),
    mma_sync_share=1.0,
    lanes=LaneRates(fma=128, alu=64, half2=64, special=16, convert=64, shuffle=32),
    issue_per_clock=4,
    registers=65_536,
    shared_bytes=100 * KIB,
    threads=1536,
    blocks=24,
    shared_latency=30,
    l2_latency=280,
    global_latency=650,
    launch_seconds=2.5e-6,
    sources=(
        ("processors, clock, tensor", "NVIDIA L40S datasheet: 366 dense TFLOP/s in float16 are 142 x 1024 x 2.52 GHz"),
        ("global_bandwidth", "NVIDIA L40S datasheet"),
        ("l2_bytes", "NVIDIA Ada whitepaper, AD102 with all of its cache"),
        ("l2_bytes_per_clock", "assumed; microbench.py measures it"),
        ("lanes, shared_bytes_per_clock, registers, shared_bytes, threads, blocks", _GUIDE),
        ("global_share", _SHARE),
        ("shared_latency, l2_latency, global_latency", _LATENCY),
        ("launch_seconds", _LAUNCH),
    ),
)  # fmt: skip

_OTHERS = (
    replace(
        _HOPPER,
        name="H200",
        global_bandwidth=4.8e12,
        sources=(("global_bandwidth", "NVIDIA H200 datasheet"), *_HOPPER.sources),
    ),
    replace(
        _ADA,
        name="RTX 4090",
        processors=128,
        global_bandwidth=1008e9,
        l2_bytes=72 * MIB,
        # GeForce cards run float16 and 8-bit floats at half the rate where the sums are float32.
        tensor=TensorRates(f16=512, tf32=256, f8=1024, i8=2048, f16_in_f16=1024, f8_in_f16=2048, i4=4096),
        sources=(
            ("processors, clock, tensor", "NVIDIA Ada whitepaper: 165.2 TFLOP/s are 128 x 512 x 2.52 GHz"),
            ("global_bandwidth, l2_bytes", "NVIDIA Ada whitepaper"),
            *_ADA.sources[3:],
        ),
    ),
    replace(
        _ADA,
        name="RTX 3090",
        target="sm_86",
        processors=82,
        clock=1.695e9,
        global_bandwidth=936e9,
        l2_bytes=6 * MIB,
        l2_bytes_per_clock=3072,
        tensor=TensorRates(f16=512, tf32=256, f8=0, i8=2048, f16_in_f16=1024, i4=4096),
        blocks=16,
        sources=(
            ("processors, clock, tensor", "NVIDIA GA102 whitepaper: 71 TFLOP/s are 82 x 512 x 1.695 GHz"),
            ("global_bandwidth, l2_bytes", "NVIDIA GA102 whitepaper"),
            *_ADA.sources[3:],
        ),
    ),
    replace(
        _AMPERE,
        name="T4",
        target="sm_75",
        processors=40,
        clock=1.59e9,
        global_bandwidth=320e9,
        l2_bytes=4 * MIB,
        l2_bytes_per_clock=1024,
        tensor=TensorRates(f16=1024, tf32=0, f8=0, i8=2048, i4=4096, b1=16384),
        lanes=LaneRates(fma=64, alu=64, half2=64, special=16, convert=16, shuffle=32),
        shared_bytes=64 * KIB,
        threads=1024,
        blocks=16,
        sources=(
            ("processors, clock, tensor", "NVIDIA T4 datasheet: 65 TFLOP/s are 40 x 1024 x 1.59 GHz"),
            ("global_bandwidth, l2_bytes", "NVIDIA T4 datasheet and Turing whitepaper"),
            ("l2_bytes_per_clock", "assumed; microbench.py measures it"),
            *_AMPERE.sources[3:],
        ),
    ),
    replace(
        _ADA,
        name="RTX 5090",
        target="sm_120a",
        processors=170,
        clock=2.407e9,
        global_bandwidth=1792e9,
        tensor=TensorRates(f16=512, tf32=256, f8=1024, i8=2048, f16_in_f16=1024, f8_in_f16=2048, f4=4096),
        sources=(
            (
                "processors, clock, tensor",
                "NVIDIA RTX Blackwell whitepaper: 209.5 TFLOP/s are 170 x 512 x 2.407 GHz",
            ),
            ("global_bandwidth, l2_bytes", "NVIDIA RTX Blackwell whitepaper"),
            *_ADA.sources[3:],
        ),
    ),
    replace(
        _HOPPER,
        name="B200",
        target="sm_100a",
        processors=148,
        clock=1.85e9,
        global_bandwidth=8e12,
        l2_bytes=126 * MIB,
        tensor=TensorRates(f16=8192, tf32=4096, f8=16384, i8=16384),
        # What of the tensor cores mma.sync reaches is that of Hopper's.
        mma_sync_share=0.31,
        sources=(
            (
                "processors, clock, tensor",
                "assumed: 2250 TFLOP/s of NVIDIA's datasheet are 148 x 8192 x 1.85 GHz",
            ),
            ("global_bandwidth", "NVIDIA B200 datasheet"),
            ("l2_bytes, l2_bytes_per_clock, mma_sync_share", "assumed; microbench.py measures them"),
            *_HOPPER.sources[3:],
        ),
    ),
)

FIGURES: dict[str, Figures] = {card.name: card for card in (_HOPPER, _AMPERE, _ADA, *_OTHERS)}
"""By card, as documented."""

_OF_TARGET = {
    "sm_75": "T4", "sm_80": "A100", "sm_86": "RTX 3090", "sm_89": "L40S", "sm_90a": "H100", "sm_100a": "B200",
    "sm_120a": "RTX 5090",
}  # fmt: skip


def figures_of_device(name: str, target: str, processors: int | None = None) -> Figures:
    """Return the figures of a device by the name that its driver tells, else of a usual card of its target.

    Parameters
    ----------
    name : str
        Such as ``"NVIDIA H200"``.
    target : str
        Whose figures to take where no card of this name is known.
    processors : int, optional
        The device's multiprocessors, where the driver tells them: a partition has fewer than the card.
    """
    words = name.upper().replace("-", " ").split()
    known = [n for n, f in FIGURES.items() if f.target == target and set(n.upper().split()) <= set(words)]
    found = figures(known[0] if known else target)
    if processors is not None and processors != found.processors:
        found = replace(found, processors=processors)
    return found


def figures(name: str) -> Figures:
    """Return the figures of a card, or of a usual card of a target.

    Parameters
    ----------
    name : str
        A card such as ``"H200"`` or ``"rtx-4090"``, or a target such as ``"sm_90a"`` or ``"sm_90"``.
    """
    target = name if name in _OF_TARGET else f"{name}a"
    asked = _OF_TARGET.get(target, name).lower().replace("-", " ")
    found = next((card for card in FIGURES.values() if card.name.lower() == asked), None)
    if found is None:
        raise TargetNotSupported(
            f"there are no figures of {name!r}", hint="one of " + ", ".join([*FIGURES, *_OF_TARGET])
        )
    measured = _measured().get(found.name)
    return calibrated(found, measured) if measured else found


@lru_cache(maxsize=1)
def _measured() -> dict[str, Mapping[str, Any]]:
    """Return what was measured, by card."""
    if not MEASURED.is_file():
        return {}
    data = json.loads(MEASURED.read_text(encoding="utf-8"))
    return {name: card["figures"] for name, card in data.items()}


def calibrated(base: Figures, measured: Mapping[str, Any]) -> Figures:
    """Return figures with what was measured in place of what is documented.

    Parameters
    ----------
    base : Figures
        Whose remaining figures are kept.
    measured : mapping
        Field names to numbers; for `tensor` and `lanes` a mapping of their own fields.
    """
    known = {field.name for field in fields(Figures)} - {"name", "target", "sources"}
    unknown = sorted(set(measured) - known)
    if unknown:
        raise ValueError(f"there is no figure {unknown[0]!r}, expected some of {', '.join(sorted(known))}")
    changes: dict[str, Any] = {}
    for name, value in measured.items():
        old = getattr(base, name)
        changes[name] = replace(old, **value) if isinstance(value, Mapping) else value
    source = (", ".join(measured), "measured by benchmarks/microbench.py")
    return replace(base, **changes, sources=(source, *base.sources)) if changes else base
