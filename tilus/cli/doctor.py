"""`tilus doctor`: what this machine can do."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tilus.errors import TilusError

VARIABLES = (
    "TILUS_BENCH_MINUTES", "TILUS_CACHE", "TILUS_CACHE_DIR", "TILUS_DIFFERENTIAL_FOLDER", "TILUS_DIFFERENTIAL_REPORT",
    "TILUS_DUMP", "TILUS_PRETEND_CHECKS", "TILUS_PRETEND_DRIVER", "TILUS_PTXAS", "TILUS_REQUIRE_GPU",
    "TILUS_SIMULATOR_CHECKS", "TILUS_SIMULATOR_TARGET", "TILUS_TUNE_CHILD",
)  # fmt: skip
"""Environment variables that tilus, its tests and its benchmarks read."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, whether it works, and details."""

    what: str
    works: bool
    detail: str


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="say what this machine can do",
        description="Say what works on this machine, and why not.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; what is missing is no failure of the command."""
    findings = [_careful(what, look) for what, look in LOOKS]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{'ok' if finding.works else '--':3} {finding.what.ljust(width)}  {finding.detail}")
    print()
    for line in conclusions({finding.what: finding.works for finding in findings}):
        print(line)
    return 0


def _careful(what: str, look: Callable[[], tuple[bool, str]]) -> Finding:
    """Look at something; whatever goes wrong becomes a finding."""
    try:
        works, detail = look()
    except TilusError as error:
        works, detail = False, error.message
    except Exception as error:
        works, detail = False, f"{type(error).__name__}: {error}"
    return Finding(what, works, " ".join(detail.split()))


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 10), f"{platform.python_version()} on {platform.platform()}"


def _tilus() -> tuple[bool, str]:
    import tilus

    return True, f"{tilus.__version__} in {os.path.dirname(os.path.abspath(tilus.__file__))}"


def _llvm() -> tuple[bool, str]:
    import llvmlite
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.Target.from_triple("nvptx64-nvidia-cuda")
    return (
        True,
        f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}, makes PTX",
    )


def _assembler() -> tuple[bool, str]:
    from tilus.codegen.assemble import available, nvjitlink_version

    reason = available()
    return (True, f"nvJitLink {nvjitlink_version()}, makes cubins") if reason is None else (False, reason)


def _register_budgets() -> tuple[bool, str]:
    from tilus.codegen.assemble import ptxas_path

    path = ptxas_path()
    missing = "no ptxas: register budgets of warp groups have no effect (pip install nvidia-cuda-nvcc)"
    return path is not None, path or missing


def _disassembler() -> tuple[bool, str]:
    from tilus.cli.inspect import find_disassembler

    path = find_disassembler()
    return path is not None, path or "no nvdisasm: tilus inspect --stage sass needs it"


def _driver() -> tuple[bool, str]:
    from tilus.runtime import driver

    return True, f"CUDA {driver.driver_version()} (cuda-bindings {_version('cuda-bindings')})"


def _gpus() -> tuple[bool, str]:
    from tilus.runtime import driver

    found = []
    for device in range(driver.device_count()):
        major, minor = driver.capability(device)
        try:
            target = driver.target(device).name
        except Exception:
            target = "no target of tilus"
        found.append(f"{driver.device_name(device)}, {major}.{minor} ({target})")
    return bool(found), "; ".join(found) or "the driver shows no device"


def _torch() -> tuple[bool, str]:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    usable = "" if torch.version.cuda is None or torch.cuda.is_available() else ", which finds no usable GPU"
    return True, f"{torch.__version__}, {cuda}{usable}"


def _cache() -> tuple[bool, str]:
    from tilus.runtime import cache

    folder = cache.directory()
    if folder is None:
        return False, f"turned off by {cache.SWITCH_VARIABLE}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    entries = sum(1 for _ in folder.glob("kernels/*/*.json"))
    return True, f"{folder} ({entries} kernels)"


def _variables() -> tuple[bool, str]:
    from difflib import get_close_matches

    found = sorted(name for name in os.environ if name.startswith("TILUS_"))
    unknown = [name for name in found if name not in VARIABLES]
    if unknown:
        near = get_close_matches(unknown[0], VARIABLES, n=1, cutoff=0.0)[0]
        return False, f"{unknown[0]} is read by nothing: did you mean {near}?"
    return True, ", ".join(f"{name}={os.environ[name]}" for name in found) or "none is set"


def _simulator() -> tuple[bool, str]:
    from tilus import simulator

    module = simulator.load(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing()\n{\n\tret;\n}\n"
    )
    module["nothing"].launch(grid=1, block=32).raise_if_hazards()
    return True, "runs PTX on the CPU"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


LOOKS: tuple[tuple[str, Callable[[], tuple[bool, str]]], ...] = (
    ("python", _python),
    ("tilus", _tilus),
    ("llvm", _llvm),
    ("assembler", _assembler),
    ("simulator", _simulator),
    ("torch", _torch),
    ("driver", _driver),
    ("gpu", _gpus),
    ("cache", _cache),
    ("variables", _variables),
    ("ptxas", _register_budgets),
    ("disassembler", _disassembler),
)


def conclusions(works: dict[str, bool]) -> list[str]:
    """Return what can be done here, in sentences."""
    lines = []
    lines.append(
        "Kernels compile to PTX." if works["llvm"] else "Kernels do not compile: pip install llvmlite"
    )
    if works["llvm"]:
        lines.append(
            "Cubins are made here."
            if works["assembler"]
            else "No cubins are made here; on Linux and Windows, pip install nvidia-nvjitlink cuda-bindings."
        )
        lines.append(
            "Kernels run on CPU tensors, on the simulator." if works["simulator"] else "The simulator fails."
        )
    if works["gpu"] and works["torch"]:
        lines.append("Kernels run on the GPU.")
    elif works["gpu"]:
        lines.append("There is a GPU; to run on it, install a torch with CUDA.")
    else:
        lines.append("There is no usable GPU here.")
    return lines
