"""Code generation: tile IR to LLVM IR, PTX and cubin."""

from tilus.codegen.assemble import Resources
from tilus.codegen.compiler import Compiled, compile_kernel
from tilus.codegen.target import TARGETS, Target, target, target_of_capability

__all__ = ["TARGETS", "Compiled", "Resources", "Target", "compile_kernel", "target", "target_of_capability"]
