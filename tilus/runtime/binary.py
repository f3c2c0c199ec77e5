"""What compiling one variant of a kernel for one target leaves: all that a launch needs, and no tile IR."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.codegen.assemble import Resources
from tilus.codegen.compiler import Compiled
from tilus.runtime.signature import Signature


@dataclass(frozen=True)
class Binary:
    """A compiled variant.

    Attributes
    ----------
    signature : Signature
        What a launch passes and needs.
    target : str
        Name of the target.
    ptx : str
        The PTX.
    cubin : bytes or None
        The machine code; None where no assembler is installed.
    resources : Resources or None
        What the assembler reports, with the cubin.
    """

    signature: Signature
    target: str
    ptx: str
    cubin: bytes | None
    resources: Resources | None

    @classmethod
    def of(cls, compiled: Compiled) -> Binary:
        """Return what a launch needs of a compiled kernel."""
        return cls(Signature.of(compiled), compiled.target, compiled.ptx, compiled.cubin, compiled.resources)
