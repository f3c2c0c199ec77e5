"""Time of Triton's cold compilation of a plain float16 GEMM, without a GPU.

`python benchmarks/triton_gemm.py` prints one line of JSON. Each measurement runs in a fresh process, its cache empty:
`import_seconds` is the time to import Triton, `compile_seconds` from the kernel's source to its cubin, and
`process_seconds` all of it with the start of Python. Needs a Python that has Triton; without it the line says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

# What the benchmark asks of both compilers: one tile shape, one warp count, one pipeline depth.
TILE = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}
OPTIONS = {"num_warps": 4, "num_stages": 3}


def compile_once(arch: int) -> dict[str, object]:
    """Compile the kernel for `sm_<arch>` in this process; the caller sees to it that the cache is empty."""
    start = time.perf_counter()
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    imported = time.perf_counter()

    # The decorator wants the kernel in a module's scope; `tl` is a global of this module from here on.
    globals()["tl"] = tl
    kernel = triton.jit(gemm)
    pointers = dict.fromkeys(("a", "b", "c"), "*fp16")
    sizes = dict.fromkeys(("m", "n", "k"), "i32")
    signature = pointers | sizes | dict.fromkeys(TILE, "constexpr")
    divisible = {(i,): [["tt.divisibility", 16]] for i in range(6)}
    source = ASTSource(kernel, signature, constexprs=TILE, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS)
    finished = time.perf_counter()
    return {
        "arch": f"sm_{arch}",
        "triton": triton.__version__,
        "import_seconds": imported - start,
        "compile_seconds": finished - imported,
        "cubin_bytes": len(compiled.asm["cubin"]),
        "ptx_bytes": len(compiled.asm["ptx"]),
        "shared_bytes": compiled.metadata.shared,
    }


def gemm(a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """c = a b, all row-major and contiguous; each program makes one tile of c."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_at = a + rows[:, None] * k + depth[None, :]
    b_at = b + depth[:, None] * n + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        x = tl.load(a_at, mask=(rows[:, None] < m) & (depth[None, :] < k - start), other=0.0)
        y = tl.load(b_at, mask=(depth[:, None] < k - start) & (cols[None, :] < n), other=0.0)
        acc = tl.dot(x, y, acc)
        a_at += BLOCK_K
        b_at += BLOCK_K * n
    keep = (rows[:, None] < m) & (cols[None, :] < n)
    tl.store(c + rows[:, None] * n + cols[None, :], acc.to(tl.float16), mask=keep)


def measure(arch: int, python: str = sys.executable) -> dict[str, object]:
    """Compile in a fresh process with an empty cache and say how long each part took."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache, "TRITON_DEFAULT_FP_FUSION": "1"}
        command = [python, os.path.abspath(__file__), "--once", str(arch)]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        elapsed = time.perf_counter() - start
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"arch": f"sm_{arch}", "error": last[0]}
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": elapsed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", default=sys.executable, help="the Python that has Triton (default: this one)"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="measurements for each target (default: %(default)s)"
    )
    parser.add_argument("--arch", type=int, nargs="*", default=[80, 90], help="targets (default: 80 90)")
    parser.add_argument("--once", type=int, metavar="ARCH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once is not None:
        print(json.dumps(compile_once(options.once)))
        return
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('triton') is None)"
    here = options.python == sys.executable
    missing = (
        importlib.util.find_spec("triton") is None
        if here
        else subprocess.run([options.python, "-c", probe]).returncode
    )
    if missing:
        print(
            json.dumps(
                {"skipped": f"{options.python} has no Triton; name a Python that has it with --python"}
            )
        )
        return
    results = []
    for arch in options.arch:
        runs = [measure(arch, options.python) for _ in range(options.repeat)]
        failed = [run for run in runs if "error" in run]
        if failed:
            results.append(failed[0])
            continue
        seconds = [key for key in runs[0] if key.endswith("_seconds")]
        results.append(
            runs[0] | {key: round(statistics.median(float(run[key]) for run in runs), 4) for key in seconds}
        )
    print(json.dumps({"runs": options.repeat, "results": results}))


if __name__ == "__main__":
    main()
