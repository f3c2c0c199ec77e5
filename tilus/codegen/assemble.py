"""PTX to cubin through nvJitLink, with the resources that the assembler reports.

nvJitLink compiles as if other objects might be linked. So it ignores `setmaxnreg`: all warps keep the registers that
they have at launch. And it makes the slow path of a division a call, beside which it serialises `wgmma`. Kernels of
both kinds are given to the `ptxas` program instead, where there is one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tilus.codegen.target import Target
from tilus.errors import CompileError

RESERVED_SHARED = 1024
"""Bytes of a block's shared memory that the system has, from compute capability 9.0 on; they lie before the block's."""


@dataclass(frozen=True)
class Resources:
    """What a kernel takes, as the assembler reports it.

    Attributes
    ----------
    registers : int
        Registers of a thread.
    stack, spill_stores, spill_loads : int
        Bytes of a thread's stack frame and of spill code.
    shared_static : int
        Bytes of static shared memory.
    barriers : int
        Hardware barriers.
    warnings : tuple of str
        What the assembler warned of, such as wgmma that it serialises or waits for. That nvJitLink ignores
        `setmaxnreg` is not among them.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared_static: int
    barriers: int
    warnings: tuple[str, ...] = ()


_lock = threading.Lock()


def available() -> str | None:
    """Return None if cubins can be made here, else why not."""
    with _lock:
        return _available()


@lru_cache(maxsize=1)
def _available() -> str | None:
    try:
        from cuda.bindings import nvjitlink
    except ImportError as error:
        return f"cuda-bindings is not installed ({error})"
    try:
        nvjitlink.version()
    except Exception as error:
        return f"the nvJitLink library was not found ({error})"
    return None


def nvjitlink_version() -> str:
    """Return nvJitLink's version, or an empty text where it is missing."""
    if available() is not None:
        return ""
    from cuda.bindings import nvjitlink

    return ".".join(map(str, nvjitlink.version()))


@lru_cache(maxsize=1)
def ptxas_path() -> str | None:
    """Return the ptxas that TILUS_PTXAS names, a pip package's (nvidia-cuda-nvcc, or Triton), or the one on PATH."""
    named = os.environ.get("TILUS_PTXAS")
    if named:
        if not Path(named).is_file():
            raise CompileError(f"the environment variable TILUS_PTXAS names {named}, which is no file")
        return named
    program = "ptxas.exe" if os.name == "nt" else "ptxas"
    for pattern in (f"nvidia/*/bin/{program}", f"triton/backends/nvidia/bin/{program}"):
        for folder in map(Path, sys.path):
            for path in sorted(folder.glob(pattern)):
                if path.is_file():
                    return str(path)
    return shutil.which(program)


def assemblers() -> str:
    """Return what tells the assemblers here from others: versions, and which file ptxas is."""
    path = ptxas_path()
    if path is None:
        return f"nvjitlink {nvjitlink_version()}"
    status = os.stat(path)
    return f"nvjitlink {nvjitlink_version()}, {path} of {status.st_size} bytes at {status.st_mtime_ns}"


def sets_registers(ptx: str) -> bool:
    """Tell whether warps of a kernel change how many registers they have."""
    return "setmaxnreg." in ptx


def assemble(ptx: str, target: Target, name: str, line_info: bool = True) -> tuple[bytes, Resources]:
    """Return the cubin of a PTX text and what the kernel takes.

    Raises
    ------
    CompileError
        Where nvJitLink is missing or refuses the PTX.
    """
    program = ptxas_path()
    if program is not None and sets_registers(ptx):
        found = _run_ptxas(program, ptx, target, line_info)
        if found is not None:
            return found
    reason = available()
    if reason is not None:
        raise CompileError(
            f"no cubin can be made here: {reason}", hint="pip install nvidia-nvjitlink cuda-bindings"
        )
    from cuda.bindings import nvjitlink

    options = [f"-arch={target.name}", "-O3", "-verbose", "-Xptxas=-warn-spills"]
    if line_info:
        options.append("-lineinfo")
    handle = nvjitlink.create(len(options), options)
    try:
        data = ptx.encode() + b"\0"
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), name)
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = _log(nvjitlink, handle, "error") or str(error)
            raise CompileError(f"the assembler refused the PTX of {name}: {log.strip()}") from None
        info = _log(nvjitlink, handle, "info")
        size = nvjitlink.get_linked_cubin_size(handle)
        cubin = bytearray(size)
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    resources = parse_resources(info)
    if target.has("cluster"):
        # Unlike ptxas it counts the memory of a block that these architectures keep for themselves.
        resources = replace(resources, shared_static=max(0, resources.shared_static - RESERVED_SHARED))
    if program is not None and any("are serialized" in warning for warning in resources.warnings):
        found = _run_ptxas(program, ptx, target, line_info)
        if found is not None:
            return found
    return bytes(cubin), resources


def _run_ptxas(program: str, ptx: str, target: Target, line_info: bool) -> tuple[bytes, Resources] | None:
    """Assemble with the program; None where it fails, as an old one may: nvJitLink then has the last word."""
    options = [f"-arch={target.name}", "-O3", "-v", "-warn-spills", *(["-lineinfo"] if line_info else [])]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8", newline="\n")
        command = [program, *options, str(source), "-o", str(cubin)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        if done.returncode != 0:
            return None
        return cubin.read_bytes(), parse_resources(done.stderr + done.stdout)


def _log(nvjitlink: Any, handle: int, kind: str) -> str:
    size = getattr(nvjitlink, f"get_{kind}_log_size")(handle)
    if size <= 1:
        return ""
    buffer = bytearray(size)
    getattr(nvjitlink, f"get_{kind}_log")(handle, buffer)
    return bytes(buffer).rstrip(b"\0").decode(errors="replace")


def parse_resources(log: str) -> Resources:
    """Read the assembler's report."""

    def number(pattern: str) -> int:
        found = re.search(pattern, log)
        return int(found.group(1)) if found else 0

    words = ("warning", "potential performance loss", "wait_group is injected")
    warnings = tuple(
        line.strip()
        for line in log.splitlines()
        if any(word in line.lower() for word in words)
        and "'setmaxnreg' ignored to maintain compat" not in line
    )
    return Resources(
        registers=number(r"Used (\d+) registers"),
        stack=number(r"(\d+) bytes stack frame"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        shared_static=number(r"(\d+) bytes smem"),
        barriers=number(r"used (\d+) barriers"),
        warnings=warnings,
    )
