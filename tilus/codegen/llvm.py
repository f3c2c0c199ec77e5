"""LLVM IR text to PTX, through llvmlite."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any

from tilus.codegen.target import Target
from tilus.errors import CompileError

_lock = threading.RLock()

# What came after the first PTX version of a target, and in which one (PTX ISA, the instruction's notes).
_LATER = (
    (re.compile(r"\bmma\.sync\.[\w.]*\.e[45]m[32]\."), (8, 4)),
    (re.compile(r"\bwgmma\.mma_async\.[\w.]*\.(?:s8\.u8|u8\.s8)\b"), (8, 4)),
)


@lru_cache(maxsize=1)
def _load() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    # Layouts say what moves together. LLVM's own vectoriser also fills gaps, and so reads what was never written.
    llvm.set_option("tilus", "-disable-nvptx-load-store-vectorizer")
    # And it would take vector loads apart whose elements are used one by one, counting on being put together again.
    llvm.set_option("tilus", "-disable-vector-combine")
    return llvm


def _binding() -> Any:
    """Return llvmlite's binding, loaded once by whichever thread comes first."""
    with _lock:
        return _load()


def _machine(name: str, ptx: str) -> Any:
    with _lock:
        return _make_machine(name, ptx)


@lru_cache(maxsize=16)
def _make_machine(name: str, ptx: str) -> Any:
    llvm = _load()
    target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    return target.create_target_machine(cpu=name, features=f"+{ptx}", opt=3)


def load(target: Target) -> None:
    """Load LLVM and make what compiles for a target."""
    _machine(target.name, target.ptx)


def llvm_version() -> str:
    """Return LLVM's version."""
    return ".".join(map(str, _binding().llvm_version_info))


def optimise(text: str, target: Target) -> Any:
    """Parse a module and run LLVM's O3 pipeline on it."""
    llvm = _binding()
    machine = _machine(target.name, target.ptx)
    try:
        module = llvm.parse_assembly(text)
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"LLVM refused the generated code, which is a bug of tilus: {error}") from None
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def to_ptx(text: str, target: Target) -> str:
    """Return the PTX of a module."""
    module = optimise(text, target)
    try:
        ptx: str = _machine(target.name, target.ptx).emit_assembly(module)
    except RuntimeError as error:
        raise CompileError(f"LLVM could not generate PTX, which is a bug of tilus: {error}") from None
    return _versioned(re.sub(r"\n{3,}", "\n\n", ptx))


def _versioned(ptx: str) -> str:
    """Return PTX that states a version which has all that it uses."""
    stated = re.search(r"^\.version (\d+)\.(\d+)", ptx, re.MULTILINE)
    needed = max((version for pattern, version in _LATER if pattern.search(ptx)), default=(0, 0))
    if stated is None or needed <= (int(stated[1]), int(stated[2])):
        return ptx
    return f"{ptx[: stated.start()]}.version {needed[0]}.{needed[1]}{ptx[stated.end() :]}"
