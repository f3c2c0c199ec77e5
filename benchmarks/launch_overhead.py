"""What a launch costs in Python: 8 tensors, without and with scalars, with a driver that does nothing.

The tensors are on the CPU and the driver's launch is a stand-in, so that no GPU is needed: the figures are for all
that tilus does in front of `cuLaunchKernel`. With a GPU, the last row is a launch with the driver included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import tilus
from tilus import Tensor, float16, int32
from tilus.runtime import kernel as runtime_kernel
from tilus.runtime.binary import Binary
from tilus.runtime.launch import Plan

REPEATS = 100
CALLS = 1_000
TARGET_MICROSECONDS = 3.0


@tilus.kernel
def eight(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float16, "m n"], d: Tensor[float16, "m n"],
    e: Tensor[float16, "m n"], f: Tensor[float16, "m n"], g: Tensor[float16, "m n"], h: Tensor[float16, "m n"],
):  # fmt: skip
    tilus.grid(tilus.cdiv(a.shape[0], 64), warps=1)


@tilus.kernel
def eight_and_scalars(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float16, "m n"], d: Tensor[float16, "m n"],
    e: Tensor[float16, "m n"], f: Tensor[float16, "m n"], g: Tensor[float16, "m n"], h: Tensor[float16, "m n"],
    s0: int32, s1: int32, s2: int32, s3: int32, s4: int32, s5: int32, s6: int32, s7: int32,
):  # fmt: skip
    tilus.grid(tilus.cdiv(a.shape[0], 64), warps=1)


def measure(call: Callable[[], Any]) -> float:
    """Return microseconds of a call, the best of several loops."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def with_stub_driver(kernel: tilus.Kernel, tensors: list[torch.Tensor], scalars: list[int]) -> None:
    """Give the kernel a plan for these tensors that calls a driver which does nothing."""
    call = kernel._check((*tensors, *scalars), {})
    compiled = runtime_kernel.compile_variant(
        kernel.source, call.constexprs, call.types, "sm_80", assemble=False
    )
    stub = lambda *arguments: (0,)  # noqa: E731

    def failed(*arguments: Any) -> None:
        raise AssertionError("the stand-in reported an error")

    plan = Plan(Binary.of(compiled).signature, call.operands, 1, stub, int, int, 0, failed)
    kernel._plans.keep(plan, (*tensors, *scalars), {})


def rows_for(name: str, kernel: tilus.Kernel, scalars: list[int]) -> Iterator[tuple[str, float]]:
    """Yield what calls cost, by what is called."""
    tensors = [torch.zeros(64, 64, dtype=torch.float16) for _ in range(8)]
    taller = [torch.zeros(64 if i == 1 else 128, 64, dtype=torch.float16) for i in range(8)]
    first, second = (*tensors, *scalars), (*taller, *scalars)

    def alternate() -> None:
        kernel(*first)
        kernel(*second)

    with_stub_driver(kernel, tensors, scalars)
    yield f"{name}, same shapes as the last launch", measure(lambda: kernel(*first))
    with_stub_driver(kernel, taller, scalars)
    yield f"{name}, alternating between two sets of shapes", measure(alternate) / 2


def main() -> None:
    rows = dict(rows_for("8 tensors", eight, []))
    rows.update(rows_for("8 tensors, 8 scalars", eight_and_scalars, list(range(8))))
    if torch.cuda.is_available():
        on_gpu = [torch.zeros(64, 64, dtype=torch.float16, device="cuda") for _ in range(8)]
        eight(*on_gpu)
        rows["8 tensors, with the driver"] = measure(lambda: eight(*on_gpu))
    for name, microseconds in rows.items():
        print(f"{name:60s} {microseconds:6.2f} us")
    first = next(iter(rows.values()))
    print(
        f"target for 8 tensors: {TARGET_MICROSECONDS} us, {'met' if first <= TARGET_MICROSECONDS else 'missed'}"
    )
    if "--json" in sys.argv:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
