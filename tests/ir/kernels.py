"""Kernels for tests: text with a frame around it, and one kernel that has every operation."""

from __future__ import annotations

from pathlib import Path

from tilus.ir.interpreter import run
from tilus.ir.kernel import Kernel
from tilus.ir.parser import parse_kernel
from tilus.ir.verifier import verify

GRID = """
  grid () {
    %extent = constant {value = 1, dtype = i32} : i32
    yield [%extent, %extent, %extent]
  }"""


def kernel_text(body: str, params: str = "", warps: int = 1) -> str:
    """Return the text of a kernel with a body, which need not end in a return, and a grid of one block."""
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    return f"kernel @test({params}) warps={warps} {{{GRID}\n  body () {{\n{lines}\n    return\n  }}\n}}\n"


def make(body: str, params: str = "", warps: int = 1) -> Kernel:
    """Return a kernel that the verifier accepts."""
    kernel = parse_kernel(kernel_text(body, params, warps))
    verify(kernel)
    return kernel


def execute(body: str, params: str, *args: object, warps: int = 1) -> list[str]:
    """Run a body as one block in NumPy; returns what it printed."""
    printed: list[str] = []
    run(make(body, params, warps), args, output=printed.append)
    return printed


def everything_text() -> str:
    """Return the text of a kernel that has every operation."""
    return Path(__file__).with_name("everything.ir").read_text(encoding="utf-8")


def everything() -> Kernel:
    """Return a kernel that has every operation."""
    kernel = parse_kernel(everything_text())
    verify(kernel)
    return kernel
