"""Cold compile time of float16 GEMMs, tilus beside Triton, in one run.

Both compile the same tile (128 x 128 x 32, 4 warps, 3 stages) from Python source to cubin, each time in a fresh
process with an empty cache, without a GPU; the two take turns. Imports are measured apart. Triton runs in the Python
that the environment variable TRITON_PYTHON names, or in this one. Beside them, tilus alone: the persistent,
warp-specialised kernels for sm_90a, written by hand and by `tilus.pipeline`.

    python benchmarks/compile_time.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = {"sm_80": 80, "sm_90a": 90}
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "compile_time.json"
# Other kernels, of tilus alone: where their source is, and the constexprs.
KERNELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "gemm": ("benchmarks/_gemm_kernel.py", "gemm", {}),
    "persistent by hand": ("examples/hopper_matmul.py", "v6_persistent", {}),
    "persistent by tilus.pipeline": ("benchmarks/_gemm_kernel.py", "persistent", {}),
    "persistent, 128 x 256": ("benchmarks/_gemm_kernel.py", "persistent", {"block_n": 256, "stages": 3}),
}


def compile_once(target: str, name: str = "gemm") -> dict[str, object]:
    """Compile a kernel in this process."""
    path, function, constexprs = KERNELS[name]
    sys.path[:0] = [str(HERE.parent), str((HERE.parent / path).parent)]
    if name == "persistent by hand":
        # The example checks its results with torch, which compilation has no use for.
        import torch  # noqa: F401
    start = time.perf_counter()
    import tilus
    from tilus.codegen import compile_kernel

    imported = time.perf_counter()
    source = getattr(importlib.import_module(Path(path).stem), function).source
    given = source.complete(constexprs)
    kernel = source.trace(given, source.default_types(given, 16))
    compiled = compile_kernel(kernel, target)
    finished = time.perf_counter()
    assert compiled.resources is not None
    return {
        "target": target,
        "tilus": tilus.__version__,
        "import_seconds": imported - start,
        "compile_seconds": finished - imported,
        "registers": compiled.resources.registers,
        "spill_bytes": compiled.resources.spill_stores,
        "shared_bytes": compiled.shared_bytes,
    }


def fresh(command: list[str], **environment: str) -> dict[str, object]:
    """Run a command that prints one line of JSON, in a fresh process."""
    with tempfile.TemporaryDirectory() as cache:
        made = {**os.environ, "TILUS_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache, **environment}
        done = subprocess.run(command, capture_output=True, text=True, env=made, check=True)
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", metavar="TARGET", help="one measurement of tilus in this process, as JSON")
    parser.add_argument("--kernel", choices=KERNELS, default="gemm", help="what --once compiles")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(compile_once(options.once, options.kernel)))
        return
    triton = os.environ.get("TRITON_PYTHON", sys.executable)
    has_triton = subprocess.run([triton, "-c", "import triton"], capture_output=True).returncode == 0
    if not has_triton:
        print(
            "Triton is not installed here (set TRITON_PYTHON to a Python that has it): only tilus is measured"
        )
    rows = []
    for target, arch in TARGETS.items():
        ours, theirs = [], []
        for _ in range(options.repeats):
            ours.append(fresh([sys.executable, __file__, "--once", target]))
            if has_triton:
                theirs.append(fresh([triton, str(HERE / "triton_gemm.py"), "--once", str(arch)]))
        row: dict[str, object] = {"target": target, "repeats": options.repeats}
        for name, runs in (("tilus", ours), ("triton", theirs)):
            for key in ("compile_seconds", "import_seconds"):
                if runs:
                    row[f"{name}_{key}"] = statistics.median(float(str(r[key])) for r in runs)
        if theirs:
            pairs = zip(ours, theirs, strict=True)
            row["ratio"] = statistics.median(
                float(str(a["compile_seconds"])) / float(str(b["compile_seconds"])) for a, b in pairs
            )
            row["triton_version"] = theirs[0]["triton"]
        row.update({k: ours[0][k] for k in ("registers", "spill_bytes", "shared_bytes")})
        rows.append(row)
        print(
            f"{target}: tilus {row['tilus_compile_seconds']:.3f} s"
            + (f", Triton {row['triton_compile_seconds']:.3f} s, ratio {row['ratio']:.2f}" if theirs else "")
            + f" (imports: tilus {row['tilus_import_seconds']:.3f} s"
            + (f", Triton {row['triton_import_seconds']:.3f} s)" if theirs else ")")
        )
    for name in list(KERNELS)[1:]:
        command = [sys.executable, __file__, "--once", "sm_90a", "--kernel", name]
        runs = [fresh(command) for _ in range(options.repeats)]
        seconds = statistics.median(float(str(r["compile_seconds"])) for r in runs)
        row = {
            "target": "sm_90a",
            "kernel": name,
            "repeats": options.repeats,
            "tilus_compile_seconds": seconds,
        }
        row.update({k: runs[0][k] for k in ("registers", "spill_bytes", "shared_bytes")})
        rows.append(row)
        print(f"sm_90a, {name}: tilus {seconds:.3f} s")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
