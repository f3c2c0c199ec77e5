"""What each architecture has: one table, from the PTX ISA's target notes and the CUDA programming guide."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.errors import TargetNotSupported


@dataclass(frozen=True)
class Target:
    """An architecture that tilus generates code for.

    Attributes
    ----------
    name : str
        As in PTX's `.target`.
    ptx : str
        The lowest PTX ISA version that has what tilus emits for it, as LLVM's feature name.
    shared_bytes : int
        Most dynamic shared memory of one block, in bytes.
    features : frozenset of str
        Names that instruction tables ask for.
    sm_count, bandwidth : int, float
        Multiprocessors and device-memory bytes per second of a usual card, for estimates.
    """

    name: str
    ptx: str
    shared_bytes: int
    features: frozenset[str]

    @property
    def ptx_version(self) -> str:
        """PTX ISA version, such as 8.0."""
        digits = self.ptx.removeprefix("ptx")
        return f"{digits[:-1]}.{digits[-1]}"

    def has(self, feature: str) -> bool:
        """Tell whether the target has a feature; the empty feature is always there."""
        return not feature or feature in self.features


# Each line adds to the one that it names: what came with that architecture.
_TURING = {"mma_m16n8k8_f16", "mma_m8n8k16_s8", "ldmatrix"}
_AMPERE = _TURING | {
    "cp_async", "mma_m16n8k16_f16", "mma_bf16", "mma_tf32", "mma_s8", "mma_f64", "bf16_arithmetic", "redux",
    "cache_hints",
}  # fmt: skip
_ADA = _AMPERE | {"mma_fp8", "cvt_fp8"}
_HOPPER = _ADA | {
    "tma",
    "mbarrier_wait",
    "wgmma",
    "cluster",
    "dependent_launch",
    "setmaxnreg",
    "bf16_native",
    "stmatrix",
    "mma_f64_large",
}
_BLACKWELL = _ADA | {
    "tma", "mbarrier_wait", "cluster", "dependent_launch", "bf16_native", "stmatrix", "cvt_fp4",
}  # fmt: skip

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm_75", "ptx65", 65_536, frozenset(_TURING)),
        Target("sm_80", "ptx70", 166_912, frozenset(_AMPERE)),
        Target("sm_86", "ptx71", 101_376, frozenset(_AMPERE)),
        Target("sm_89", "ptx81", 101_376, frozenset(_ADA)),
        Target("sm_90a", "ptx80", 232_448, frozenset(_HOPPER)),
        Target("sm_100a", "ptx86", 232_448, frozenset(_BLACKWELL | {"tcgen05", "setmaxnreg"})),
        Target("sm_120a", "ptx87", 101_376, frozenset(_BLACKWELL | {"mma_f8f6f4", "mma_block_scale"})),
    )
}

# Compute capabilities of devices, and the target whose code runs on them.
_FALLBACK = {(8, 7): "sm_86", (9, 0): "sm_90a", (10, 0): "sm_100a", (12, 0): "sm_120a", (12, 1): "sm_120a"}


def target(name: str | Target) -> Target:
    """Return a target by name (`sm_90` stands for `sm_90a`, and so on)."""
    if isinstance(name, Target):
        return name
    found = TARGETS.get(name) or TARGETS.get(f"{name}a")
    if found is None:
        raise TargetNotSupported(f"no target named {name!r}", hint="one of " + ", ".join(TARGETS))
    return found


def target_of_capability(major: int, minor: int) -> Target:
    """Return the target for a device's compute capability."""
    name = f"sm_{major}{minor}"
    if name in TARGETS:
        return TARGETS[name]
    fallback = _FALLBACK.get((major, minor))
    if fallback is None:
        raise TargetNotSupported(
            f"tilus generates no code for compute capability {major}.{minor}",
            hint="one of " + ", ".join(TARGETS),
        )
    return TARGETS[fallback]
