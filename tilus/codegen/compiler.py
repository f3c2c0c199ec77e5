"""From a traced kernel to PTX and cubin: the passes in their order, then LLVM, then the assembler."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

from tilus.codegen.assemble import Resources
from tilus.codegen.assemble import assemble as make_cubin
from tilus.codegen.assemble import available as assembler_available
from tilus.codegen.llvm import load as load_llvm
from tilus.codegen.llvm import to_ptx
from tilus.codegen.lower.hopper import TensorMap
from tilus.codegen.lower.module import lower_kernel
from tilus.codegen.selection import Mma
from tilus.codegen.target import Target
from tilus.codegen.target import target as find_target
from tilus.ir.kernel import Kernel
from tilus.passes import run
from tilus.passes.order import pipeline_passes


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a target.

    Attributes
    ----------
    name : str
        Name of the entry point.
    target : str
        Name of the target.
    ptx : str
        The PTX.
    cubin : bytes or None
        The machine code, unless assembling was left out.
    resources : Resources or None
        What the assembler reports, with the cubin.
    threads : int
        Threads of a block.
    cluster : tuple of int
        Blocks of a cluster.
    shared_bytes : int
        Dynamic shared memory of a block.
    kernel : Kernel
        The tile IR after all passes.
    tensor_maps : tuple of TensorMap
        What a launch passes after parameters and sizes: tensor maps, 128 bytes each by value.
    """

    name: str
    target: str
    ptx: str
    cubin: bytes | None
    resources: Resources | None
    threads: int
    cluster: tuple[int, int, int]
    shared_bytes: int
    kernel: Kernel
    tensor_maps: tuple[TensorMap, ...] = ()


@lru_cache(maxsize=32)
def warm_up(target: Target, assemble: bool) -> None:
    """Load LLVM and the assembler in the background: what Python does meanwhile needs neither."""

    def load() -> None:
        load_llvm(target)
        if assemble:
            assembler_available()

    threading.Thread(target=load, name="tilus-warm-up", daemon=True).start()


def prepare(kernel: Kernel, target: Target, dump: str | None = None) -> Kernel:
    """Run all passes."""
    return run(kernel, pipeline_passes(Mma(target)), dump=dump)


def compile_kernel(
    kernel: Kernel, target: str | Target, *, assemble: bool = True, dump: str | None = None
) -> Compiled:
    """Compile a traced kernel.

    Parameters
    ----------
    kernel : Kernel
        As the front end or the parser made it.
    target : str or Target
        Such as ``"sm_90a"``.
    assemble : bool
        Whether to make machine code too.
    dump : str, optional
        A directory to which the IR is written after each pass.

    Raises
    ------
    TilusError
        Located, where the kernel cannot be compiled.
    """
    machine = find_target(target)
    warm_up(machine, assemble)
    final = prepare(kernel, machine, dump)
    llvm, tensor_maps = lower_kernel(final, machine)
    ptx = to_ptx(llvm, machine)
    cubin, resources = make_cubin(ptx, machine, final.name) if assemble else (None, None)
    return Compiled(
        final.name,
        machine.name,
        ptx,
        cubin,
        resources,
        final.threads,
        final.cluster,
        final.shared_bytes,
        final,
        tensor_maps,
    )
