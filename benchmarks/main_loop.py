"""Machine instructions in the main loop of float16 GEMMs for sm_90a, tilus beside Triton, for the same tiles.

    python benchmarks/main_loop.py [--out FILE]

Both are compiled here, in one run and without a GPU, disassembled by NVIDIA's nvdisasm (`pip install
nvidia-cuda-nvdisasm`), and counted between the label of the shortest loop with tensor-core instructions and the branch
back to it. tilus: the loop of the consumers, in the form that `tilus.pipeline` writes; the producer's loop is another
warp's. Triton: `tl.dot` over tensor descriptors; it runs in the Python that the environment variable TRITON_PYTHON
names, or in this one. CUTLASS, where CUTLASS_PATH names its source tree and nvcc is installed: the persistent cooperative
kernel of the same tile, without a cluster; its loop, too, is that of the consumers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _gemm_kernel import persistent, pipelined
from _sass import counts, disassemble, main_loop

from tilus.cli.inspect import find_disassembler

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "main_loop.json"
TARGET = "sm_90a"
# Block of m, n and k, warps that multiply, stages.
TILES = ((128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 4))
Row = dict[str, object]


def ours(tile: tuple[int, ...], nvdisasm: str) -> list[Row]:
    """Compile and count the kernels of tilus."""
    block_m, block_n, block_k, warps, stages = tile
    rows: list[Row] = []
    for kernel in (pipelined, persistent):
        made = kernel.compile(
            target=TARGET, block_m=block_m, block_n=block_n, block_k=block_k, warps=warps, stages=stages
        )
        assert made.cubin is not None
        assert made.resources is not None
        loop = counts(main_loop(disassemble(made.cubin, nvdisasm)))
        more = {"registers": made.resources.registers, "spill_bytes": made.resources.spill_stores}
        rows.append({"contender": f"tilus, {kernel.source.name}", "tile": tile, **loop, **more})
    return rows


def theirs(tile: tuple[int, ...], nvdisasm: str, python: str) -> list[Row]:
    """Compile and count Triton's kernel, and the one that it specialises, where it does."""
    rows: list[Row] = []
    for specialised in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            command = [python, str(HERE / "_triton_main_loop.py"), *map(str, (*tile, specialised)), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                rows.append({"contender": "Triton", "tile": tile, "error": last[0]})
                continue
            said = json.loads(done.stdout.strip().splitlines()[-1])
            if specialised and said["warps"] == tile[3]:
                continue
            name = f"Triton {said['triton']}" + (", warp_specialize" if specialised else "")
            loop = counts(main_loop(disassemble(path.read_bytes(), nvdisasm)))
            rows.append({"contender": name, "tile": tile, **loop})
    return rows


CUTLASS = """
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/device_kernel.h"
using namespace cutlass;
using Size = cute::Shape<cute::_{0}, cute::_{1}, cute::_{2}>;
using Alone = cute::Shape<cute::_1, cute::_1, cute::_1>;
using Row = layout::RowMajor;
using Store = epilogue::collective::CollectiveBuilder<
    arch::Sm90, arch::OpClassTensorOp, Size, Alone, epilogue::collective::EpilogueTileAuto, float, float,
    void, Row, 8, half_t, Row, 8, epilogue::TmaWarpSpecializedCooperative>::CollectiveOp;
using Loop = gemm::collective::CollectiveBuilder<
    arch::Sm90, arch::OpClassTensorOp, half_t, Row, 8, half_t, layout::ColumnMajor, 8, float, Size, Alone,
    gemm::collective::StageCountAutoCarveout<int(sizeof(Store::SharedStorage))>,
    gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
using Counted = gemm::kernel::GemmUniversal<
    cute::Shape<int, int, int, int>, Loop, Store, gemm::PersistentScheduler>;
template __global__ void cutlass::device_kernel<Counted>(Counted::Params const __grid_constant__);
"""


def cutlass(tile: tuple[int, ...], nvdisasm: str, path: Path, nvcc: str) -> list[Row]:
    """Compile and count CUTLASS's kernel, which has two warpgroups of consumers."""
    if tile[3] != 8:
        return []
    source = CUTLASS
    for place, size in enumerate(tile[:3]):
        source = source.replace(f"{{{place}}}", str(size))
    with tempfile.TemporaryDirectory() as folder:
        file, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        file.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [nvcc, "-std=c++17", "-O3", f"-arch={TARGET}", "--expt-relaxed-constexpr", "-DNDEBUG", "-cubin",
             "-I", str(path / "include"), "-o", str(cubin), str(file)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            return [{"contender": "CUTLASS", "tile": tile, "error": said[0]}]
        return [
            {
                "contender": "CUTLASS",
                "tile": tile,
                **counts(main_loop(disassemble(cubin.read_bytes(), nvdisasm))),
            }
        ]


def table(rows: list[Row]) -> str:
    """Return the rows for people."""
    keys = ("instructions", "tensor_core", "others", "barriers", "to_uniform", "moves")
    lines = [f"{'tile':>16} {'warps':>5}  {'':32}" + "".join(f"{k:>14}" for k in keys)]
    for row in rows:
        block_m, block_n, block_k, warps, _ = row["tile"]  # type: ignore[misc]
        head = f"{f'{block_m}x{block_n}x{block_k}':>16} {warps:>5}  {row['contender']!s:32}"
        lines.append(head + (str(row["error"]) if "error" in row else "".join(f"{row[k]:>14}" for k in keys)))
    return "\n".join(lines)


def main() -> None:
    """Compile, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tiles", type=int, default=len(TILES), help="how many of the tiles")
    options = parser.parse_args()
    nvdisasm = find_disassembler()
    if nvdisasm is None:
        print("nvdisasm is not installed, so nothing can be counted: pip install nvidia-cuda-nvdisasm")
        return
    python = os.environ.get("TRITON_PYTHON", sys.executable)
    has_triton = subprocess.run([python, "-c", "import triton"], capture_output=True).returncode == 0
    if not has_triton:
        print(
            "Triton is not installed here (set TRITON_PYTHON to a Python that has it): only tilus is counted"
        )
    rows: list[Row] = []
    for tile in TILES[: options.tiles]:
        rows += ours(tile, nvdisasm)
        if has_triton:
            rows += theirs(tile, nvdisasm, python)
        nvcc = shutil.which("nvcc")
        if "CUTLASS_PATH" in os.environ and nvcc:
            rows += cutlass(tile, nvdisasm, Path(os.environ["CUTLASS_PATH"]), nvcc)
    print(table(rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
