"""`tilus inspect`: a kernel at any stage of its way to machine code."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilus.cli import UsageError, kernels
from tilus.errors import TilusError

if TYPE_CHECKING:
    from tilus.codegen import Target
    from tilus.ir import Kernel

STAGES = ("ir", "llvm", "ptx", "sass", "resources")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="print a kernel as tile IR, after a pass, as LLVM IR, PTX or SASS, or what it takes",
        description=f"Print a kernel at a stage: {', '.join(STAGES)}, 'passes' for their names, or a pass's name.",
    )
    kernels.add_kernel_arguments(parser)
    parser.add_argument("--stage", default="ptx", metavar="STAGE", help="what to print (default: ptx)")
    parser.add_argument(
        "--target", default="sm_90a", metavar="TARGET", help="such as sm_80 (default: sm_90a)"
    )
    parser.add_argument(
        "--unaligned",
        action="store_true",
        help="assume no alignment and no divisible sizes, instead of 16 bytes",
    )
    parser.add_argument("--locations", action="store_true", help="print source locations in tile IR")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the stage."""
    kernel = kernels.find_kernel(options.kernel)
    from tilus.codegen import target as find_target
    from tilus.runtime.aot import parameters_for
    from tilus.runtime.specialize import assumed_types

    constexprs = kernels.read_constexprs(options.constexprs)
    dtypes = kernels.read_pairs(options.dtypes, "--arg")
    kernels.check_constexprs(kernel, constexprs, dtypes)
    values, declared = parameters_for(kernel, constexprs, dtypes, kernels.read_sizes(options.sizes))
    types = assumed_types(declared, aligned=not options.unaligned)
    named = {parameter.name: type for parameter, type in zip(declared, types, strict=True)}
    traced = kernel.source.trace(values, dict(named))
    text = stage(traced, options.stage, find_target(options.target), options.locations)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    return 0


def stage(kernel: Kernel, name: str, target: Target, locations: bool = False) -> str:
    """Return a traced kernel at a stage, as text."""
    from tilus.codegen import compile_kernel
    from tilus.codegen.lower.module import lower_kernel
    from tilus.codegen.selection import Mma
    from tilus.ir.printer import print_kernel
    from tilus.passes import run as run_passes
    from tilus.passes.order import pipeline_passes

    steps = pipeline_passes(Mma(target))
    names = [step.name for step in steps]
    if name == "ir":
        return print_kernel(kernel, locations=locations)
    if name == "passes":
        return "\n".join(names)
    if name in names:
        return print_kernel(run_passes(kernel, steps[: names.index(name) + 1]), locations=locations)
    if name == "llvm":
        return lower_kernel(run_passes(kernel, steps), target)[0]
    if name == "ptx":
        return compile_kernel(kernel, target, assemble=False).ptx
    if name in ("sass", "resources"):
        compiled = compile_kernel(kernel, target)
        assert compiled.cubin is not None
        assert compiled.resources is not None
        if name == "sass":
            return disassemble(compiled.cubin)
        rows = [
            (field, getattr(compiled.resources, field)) for field in compiled.resources.__dataclass_fields__
        ]
        rows = [(field, value) for field, value in rows if field != "warnings"]
        rows += [("shared_dynamic", compiled.shared_bytes), ("threads", compiled.threads)]
        lines = [f"{field:16} {value}" for field, value in rows]
        return "\n".join([*lines, *compiled.resources.warnings])
    stages = ", ".join((*STAGES, "passes"))
    raise UsageError(f"there is no stage {name!r}; stages are {stages}, and passes {', '.join(names)}")


def find_disassembler() -> str | None:
    """Return the path of nvdisasm: on PATH, in a CUDA toolkit, or in NVIDIA's pip package."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    program = "nvdisasm.exe" if os.name == "nt" else "nvdisasm"
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(root) / "bin" / program for root in roots if root]
    for folder in map(Path, sys.path):
        candidates += sorted(folder.glob(f"nvidia/*/bin/{program}"))
    return next((str(path) for path in candidates if path.is_file()), None)


def disassemble(cubin: bytes) -> str:
    """Return machine code as text."""
    program = find_disassembler()
    if program is None:
        raise TilusError(
            "SASS needs nvdisasm, which is not on PATH, not in CUDA_HOME and not among the pip packages",
            hint="pip install nvidia-cuda-nvdisasm, or --stage ptx",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        result = subprocess.run([program, "-c", str(path)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise TilusError(f"{program} failed: {result.stderr.strip() or result.returncode}")
    return result.stdout
