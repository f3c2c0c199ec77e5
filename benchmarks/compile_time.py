"""Cold compile time of one float16 GEMM, tilus beside Triton, in one run.

Both compile the same tile (128 x 128 x 32, 4 warps, 3 stages) from Python source to cubin, each time in a fresh
process with an empty cache, without a GPU; the two take turns. Imports are measured apart. Triton runs in the Python
that the environment variable TRITON_PYTHON names, or in this one.

    python benchmarks/compile_time.py [--repeats 5]
"""

from __future__ import annotations

import argparse
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


def compile_once(target: str) -> dict[str, object]:
    """Compile the kernel in this process."""
    start = time.perf_counter()
    sys.path.insert(0, str(HERE.parent))
    import tilus
    from tilus.codegen import compile_kernel

    imported = time.perf_counter()
    from _gemm_kernel import gemm

    source = gemm.source
    constexprs: dict[str, object] = {}
    kernel = source.trace(constexprs, source.default_types(constexprs, 16))
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
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(compile_once(options.once)))
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
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
