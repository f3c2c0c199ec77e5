"""One measurement of one simulator or interpreter, in a process of its own: `python _interpreters.py WHO WHAT SIZE`.

Prints one line of JSON: seconds of each run after the first, the first run's (with compilation), the largest error
against float64, and the process's peak memory. Imports only what the one that is asked for needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Check = Callable[[], np.ndarray]
cuda: Any = None
float32: Any = None


def operands(what: str, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the inputs and what must come out: a GEMM of float16 size^3, or softmax of float32 size x 1024."""
    rng = np.random.default_rng(0)
    if what == "gemm":
        a, b = (rng.standard_normal((size, size)).astype(np.float16) for _ in range(2))
        return [a, b], a.astype(np.float64) @ b.astype(np.float64)
    x = rng.standard_normal((size, 1024)).astype(np.float32)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return [x], e / e.sum(1, keepdims=True)


def tilus(what: str, inputs: list[np.ndarray], options: argparse.Namespace) -> Check:
    root = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(root)]
    arrays = [*inputs, np.zeros((len(inputs[0]), inputs[-1].shape[1]), inputs[0].dtype)]
    kernel: Any
    if what == "gemm":
        from _gemm_kernel import gemm as kernel
    else:
        import importlib.util

        spec = importlib.util.spec_from_file_location("softmax_example", root / "examples" / "softmax.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        kernel = module.softmax

    def run() -> np.ndarray:
        report = kernel.simulate(*arrays, target=options.target, checks=options.checks)
        report.raise_if_hazards()
        return arrays[-1]

    return run


def triton(what: str, inputs: list[np.ndarray], options: argparse.Namespace) -> Check:
    import os

    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from _triton_kernels import matmul_pointers, softmax_rows

    tensors = [torch.from_numpy(x) for x in inputs]
    out = torch.empty((len(inputs[0]), inputs[-1].shape[1]), dtype=tensors[0].dtype)
    if what == "softmax":

        def run_softmax() -> np.ndarray:
            softmax_rows[(len(inputs[0]),)](tensors[0], out, 1024, WIDTH=1024)
            return np.asarray(out.numpy())

        return run_softmax
    a, b = tensors
    (m, k), n, none = a.shape, b.shape[1], torch.empty(1)
    grid = (-(-m // 128) * -(-n // 128),)

    def run() -> np.ndarray:
        matmul_pointers[grid](
            a, b, out, none, none, m, n, k, a.stride(0), b.stride(0), b.stride(1),
            BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, SCALED=False,
        )  # fmt: skip
        return np.asarray(out.numpy())

    return run


def pallas(what: str, inputs: list[np.ndarray], options: argparse.Namespace) -> Check:
    """A Hopper matmul in Pallas' Mosaic GPU dialect: a pipeline of bulk copies and wgmma, with race detection."""
    import functools

    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if what != "gemm":
        raise SystemExit("only the matrix product is written in Pallas")
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    tile, depth = 128, 64
    a, b = (jnp.asarray(x) for x in inputs)
    m, k = a.shape
    n = b.shape[1]
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    @functools.partial(
        plgpu.kernel,
        out_type=jax.ShapeDtypeStruct((m, n), a.dtype),
        grid=(m // tile, n // tile),
        grid_names=("m", "n"),
        scratch_types=dict(staged=plgpu.SMEM((tile, tile), a.dtype, transforms=transforms)),
        interpret=InterpretGPUParams(detect_races=options.checks),
    )
    def matmul(a_gmem: Any, b_gmem: Any, o_gmem: Any, staged: Any) -> None:
        row, column = pl.ds(jax.lax.axis_index("m") * tile, tile), pl.ds(jax.lax.axis_index("n") * tile, tile)

        def multiply(acc: Any) -> Any:
            def step(_: Any, a_smem: Any, b_smem: Any) -> None:
                plgpu.wgmma(acc, a_smem, b_smem)
                plgpu.wgmma_wait(0)

            plgpu.emit_pipeline(
                step,
                grid=(k // depth,),
                in_specs=[
                    plgpu.BlockSpec((tile, depth), lambda i: (0, i), transforms=transforms),
                    plgpu.BlockSpec((depth, tile), lambda i: (i, 0), transforms=transforms),
                ],
                max_concurrent_steps=3,
            )(a_gmem.at[row, :], b_gmem.at[:, column])
            return acc[...]

        staged[...] = pl.run_scoped(multiply, plgpu.ACC((tile, tile))).astype(a.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staged, o_gmem.at[row, column])
        plgpu.wait_smem_to_gmem(0)

    return lambda: np.asarray(matmul(a, b))


def numba(what: str, inputs: list[np.ndarray], options: argparse.Namespace) -> Check:
    """A product with tiles of 16 x 16 in shared memory, a thread for each element; softmax by a thread for each row."""
    import os

    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    from numba import cuda, float32

    # The simulator exchanges `cuda` among a kernel's globals only.
    globals().update(cuda=cuda, float32=float32)
    out = np.zeros((len(inputs[0]), inputs[-1].shape[1]), inputs[0].dtype)
    kernel = cuda.jit(numba_gemm if what == "gemm" else numba_softmax)
    shape = (out.shape[1] // 16, out.shape[0] // 16) if what == "gemm" else (out.shape[0] // 16,)

    def run() -> np.ndarray:
        kernel[shape, (16,) * len(shape)](*inputs, out)
        return out

    return run


def numba_gemm(a: Any, b: Any, c: Any) -> None:
    left = cuda.shared.array((16, 16), float32)
    right = cuda.shared.array((16, 16), float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    row, column = cuda.blockIdx.y * 16 + i, cuda.blockIdx.x * 16 + j
    acc = np.float32(0)
    for start in range(0, a.shape[1], 16):
        left[i, j] = a[row, start + j]
        right[i, j] = b[start + i, column]
        cuda.syncthreads()
        for d in range(16):
            acc += left[i, d] * right[d, j]
        cuda.syncthreads()
    c[row, column] = acc


def numba_softmax(x: Any, y: Any) -> None:
    row = cuda.grid(1)
    largest = x[row, 0]
    for j in range(x.shape[1]):
        largest = max(largest, x[row, j])
    total = np.float32(0)
    for j in range(x.shape[1]):
        total += np.exp(x[row, j] - largest)
    for j in range(x.shape[1]):
        y[row, j] = np.exp(x[row, j] - largest) / total


WHO = {"tilus": tilus, "triton": triton, "pallas": pallas, "numba": numba}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("who", choices=WHO)
    parser.add_argument("what", choices=("gemm", "softmax"))
    parser.add_argument("size", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", default="sm_80")
    parser.add_argument("--checks", action="store_true")
    options = parser.parse_args()
    inputs, expected = operands(options.what, options.size)
    run = WHO[options.who](options.what, inputs, options)
    start = time.perf_counter()
    found = run().astype(np.float64)
    first = time.perf_counter() - start
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    # Rounding the result to float16 costs 2**-11 at most.
    if not error < 2.0**-10:
        raise SystemExit(f"wrong numbers: relative error {error:.1e}")
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"first": first, "seconds": seconds, "error": error, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int | None:
    """Return the most memory that this process had, where the system says it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    main()
