"""The casts of Marlin and of the Tilus paper as their authors describe them, compiled by nvcc where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HEADER = """
#include <cuda_fp16.h>
template <int table> __device__ unsigned lop3(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(table));
    return d;
}
__device__ unsigned sub2(unsigned a, unsigned b) {
    unsigned d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ unsigned fma2(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
__device__ unsigned mul2(unsigned a, unsigned b) {
    unsigned d;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
__device__ unsigned prmt(unsigned a, unsigned b, unsigned selector) { return __byte_perm(a, b, selector); }
"""
# Each casts one word `q`. 0xea is (a & b) | c.
_NIBBLES = """
    unsigned low[2], high[2];
    for (int i = 0; i < 2; ++i) {
        unsigned w = q >> (8 * i);
        low[i] = sub2(lop3<0xea>(w, 0x000f000f, 0x64006400), 0x64086408);
        high[i] = fma2(lop3<0xea>(w, 0x00f000f0, 0x64006400), 0x2c002c00, 0xd480d480);
    }
"""
_INORDER = "out[0] = low[0]; out[1] = high[0]; out[2] = low[1]; out[3] = high[1];"
_REORDERED = """
    for (int i = 0; i < 2; ++i) {
        out[2 * i] = prmt(low[i], high[i], 0x5410);
        out[2 * i + 1] = prmt(low[i], high[i], 0x7632);
    }
"""
_BYTES = """
    out[0] = sub2(prmt(q, 0x64646464, 0x5150), 0x64006400);
    out[1] = sub2(prmt(q, 0x64646464, 0x5352), 0x64006400);
"""
_SIGNED_BYTES = """
    unsigned w = q ^ 0x80808080;
    out[0] = sub2(prmt(w, 0x64646464, 0x5150), 0x64806480);
    out[1] = sub2(prmt(w, 0x64646464, 0x5352), 0x64806480);
"""
_E4M3 = """
    for (int i = 0; i < 2; ++i) {
        unsigned w = prmt(q, 0, i ? 0x3424 : 0x1404);
        out[i] = mul2((w & 0x80008000) | ((w >> 1) & 0x3f803f80), 0x5c005c00);
    }
"""
_E2M1 = """
    for (int i = 0; i < 4; ++i) {
        unsigned w = q << (4 * i);
        out[i] = (w & 0x80008000) | ((w & 0x70007000) >> 3);
    }
"""


@dataclass(frozen=True)
class Sequence:
    """A documented way to cast: whose, between which types, words that one word becomes, and its body."""

    method: str
    source: str
    dest: str
    words: int
    body: str


SEQUENCES = (
    Sequence("Marlin", "uint4", "float16", 4, _NIBBLES + _INORDER),
    Sequence("Marlin", "uint8", "float16", 2, _BYTES),
    Sequence("Marlin, without its power of 2", "float4_e2m1", "float16", 4, _E2M1),
    Sequence("Tilus paper", "int4", "float16", 4, _NIBBLES + _REORDERED),
    Sequence("Tilus paper", "int8", "float16", 2, _SIGNED_BYTES),
    Sequence("Tilus paper", "float8_e4m3", "float16", 2, _E4M3),
)


@dataclass(frozen=True)
class Counted:
    """Machine instructions of a documented sequence for one element."""

    method: str
    source: str
    dest: str
    count: float


def program(words: int, loads: int, body: str) -> str:
    """Return a kernel that casts so many words, in fours."""
    return f"""{_HEADER}
__device__ void cast(unsigned q, unsigned *out) {{ {body} }}
extern "C" __global__ void run(const uint4 *__restrict__ in, uint4 *__restrict__ to) {{
    in += threadIdx.x * 4096; to += threadIdx.x * 4096;
    unsigned from[{loads}], made[{loads * words}];
    #pragma unroll
    for (int i = 0; i < {loads // 4}; ++i) {{
        uint4 four = in[i];
        from[4 * i] = four.x; from[4 * i + 1] = four.y; from[4 * i + 2] = four.z; from[4 * i + 3] = four.w;
    }}
    #pragma unroll
    for (int i = 0; i < {loads}; ++i) cast(from[i], made + {words} * i);
    #pragma unroll
    for (int i = 0; i < {loads * words // 4}; ++i)
        to[i] = make_uint4(made[4 * i], made[4 * i + 1], made[4 * i + 2], made[4 * i + 3]);
}}
"""


def sequences(target: str, names: Callable[[bytes], list[str]]) -> list[Counted]:
    """Count the documented sequences on a target; nothing where there is no nvcc.

    Parameters
    ----------
    target : str
        Such as ``"sm_90a"``.
    names : function
        From a cubin to the instructions that count.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    found = []
    for subject in SEQUENCES:
        elements = 2 * subject.words
        # Loads and stores are not counted, and what a kernel does once does not grow.
        small, large = (
            len(names(compiled(nvcc, target, program(subject.words, loads, subject.body))))
            for loads in (8, 16)
        )
        count = (large - small) / (8 * elements)
        found.append(Counted(subject.method, subject.source, subject.dest, round(count, 4)))
    return found


def compiled(nvcc: str, target: str, text: str) -> bytes:
    """Return the cubin of a program."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "cast.cu", Path(folder) / "cast.cubin"
        source.write_text(text, encoding="utf-8")
        subprocess.run(
            [nvcc, "-O3", "-cubin", f"-arch={target}", str(source), "-o", str(cubin)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return cubin.read_bytes()
