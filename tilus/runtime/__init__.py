"""Run time: specialise kernels, keep what was compiled, load it and launch it; and ahead of time."""

from __future__ import annotations

from tilus.runtime.kernel import Kernel, kernel

__all__ = ["Kernel", "kernel"]
