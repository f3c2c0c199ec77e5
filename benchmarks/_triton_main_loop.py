"""Triton's float16 GEMM for Hopper with tensor descriptors: compiles one tile and writes the machine code to a file.

    python benchmarks/_triton_main_loop.py BLOCK_M BLOCK_N BLOCK_K WARPS STAGES SPECIALISED CUBIN

Prints one line of JSON. `main_loop.py` calls it in the Python that has Triton.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def gemm(
    a_ptr, b_ptr, c_ptr, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPECIALISED: tl.constexpr,
):  # fmt: skip
    """c = a @ b.T, all row-major, through descriptors (TMA); each program makes one tile of c."""
    a = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [BLOCK_M, BLOCK_K])
    b = tl.make_tensor_descriptor(b_ptr, [n, k], [k, 1], [BLOCK_N, BLOCK_K])
    c = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [BLOCK_M, BLOCK_N])
    i, j = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in tl.range(0, k, BLOCK_K, warp_specialize=SPECIALISED):
        acc = tl.dot(a.load([i, at]), b.load([j, at]).T, acc)
    c.store([i, j], acc.to(tl.float16))


def main() -> None:
    """Compile and write."""
    *tile, warps, stages, specialised = map(int, sys.argv[1:7])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
        import triton
        import triton.language
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        # The decorator wants the kernel in a module's scope; `tl` is a global of this module from here on.
        globals()["tl"] = triton.language
        constants = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=True))
        constants["SPECIALISED"] = bool(specialised)
        signature = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*fp16") | dict.fromkeys("mnk", "i32")
        source = ASTSource(
            triton.jit(gemm),
            signature | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in range(6)},
        )
        options = {"num_warps": warps, "num_stages": stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    Path(sys.argv[7]).write_bytes(compiled.asm["cubin"])
    print(
        json.dumps(
            {
                "triton": triton.__version__,
                "warps": compiled.metadata.num_warps,
                "shared_bytes": compiled.metadata.shared,
            }
        )
    )


if __name__ == "__main__":
    main()
