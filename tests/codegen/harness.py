"""Runs what code generation emits for registers alone: a kernel that loads containers, applies it and stores."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from tilus import dtypes, simulator
from tilus.codegen.assemble import assemble, available
from tilus.codegen.llvm import to_ptx
from tilus.codegen.llvm_text import GLOBAL, V, Writer, integer
from tilus.codegen.registers import bits_of, container_count, from_bits, llvm_type
from tilus.codegen.target import Target
from tilus.codegen.target import target as find_target
from tilus.dtypes import DType

Emit = Callable[[Writer, Target, tuple[V, ...]], tuple[V, ...]]

_THREADS = 128


def words_of(dtype: DType, count: int) -> int:
    """32-bit words that hold the elements of one thread in memory."""
    if dtype.is_boolean:
        return count
    return -(-count * dtype.bits // 32)


def module(target: Target, source: DType, dest: DType, count: int, emit: Emit) -> str:
    """Return LLVM IR of a kernel that applies `emit` to the containers of `count` elements of each thread."""
    w = Writer("tests")
    thread = w.call("i32", "llvm.nvvm.read.ptx.sreg.tid.x")
    block = w.call("i32", "llvm.nvvm.read.ptx.sreg.ctaid.x")
    index = w.add(w.mul(block, integer(_THREADS)), thread)

    def place(pointer: str, words: int, word: int) -> V:
        return w.gep(V(GLOBAL, pointer), w.add(w.mul(index, integer(words)), integer(word)), "i32")

    size = words_of(source, count)
    loaded = [w.value("i32", f"load i32, {place('%in', size, i)}") for i in range(size)]
    if source.is_boolean:
        regs = tuple(w.icmp("ne", word, integer(0)) for word in loaded)
    else:
        regs = from_bits(w, source, loaded)
    assert len(regs) == container_count(source, count)
    made = emit(w, target, regs)
    if dest.is_boolean:
        words = [w.convert("zext", value, "i32") for value in made]
    else:
        words = list(_bits(w, dest, made))
    for i, word in enumerate(words):
        w.run(f"store {word}, {place('%out', len(words), i)}")
    w.leave()
    return w.module(
        "", f'define ptx_kernel void @cast({GLOBAL} %in, {GLOBAL} %out) "denormal-fp-math"="ieee,ieee"'
    )


def _bits(w: Writer, dest: DType, made: tuple[V, ...]) -> tuple[V, ...]:
    from types import SimpleNamespace

    return bits_of(w, SimpleNamespace(dtype=dest, regs=made))  # type: ignore[arg-type]


def compile_module(
    target: str, source: DType, dest: DType, count: int, emit: Emit, check: bool = True
) -> str:
    """Return the PTX, which the assembler has taken where there is one."""
    machine = find_target(target)
    ptx = to_ptx(module(machine, source, dest, count, emit), machine)
    if check and available() is None:
        _assemble(ptx, machine)
    return ptx


@lru_cache(maxsize=4096)
def _assemble(ptx: str, machine: Target) -> None:
    assemble(ptx, machine, "cast")


def run_words(ptx: str, words: np.ndarray, out_words: int) -> np.ndarray:
    """Run the kernel on the words of each thread, ``[threads, words]``, and return its words."""
    threads = words.shape[0]
    blocks = -(-threads // _THREADS)
    padded = np.zeros((blocks * _THREADS, words.shape[1]), np.uint32)
    padded[:threads] = words
    out = np.zeros((blocks * _THREADS, out_words), np.uint32)
    report = simulator.load(ptx)["cast"].launch(blocks, _THREADS, [padded, out], checks=False)
    assert not report.hazards, report.hazards
    return out[:threads]


def pack_words(codes: np.ndarray, dtype: DType) -> np.ndarray:
    """Return ``[threads, elements]`` codes as ``[threads, words]``, the bits of a thread packed little end first."""
    if dtype.is_boolean:
        return codes.astype(np.uint32)
    threads, count = codes.shape
    numbers = codes.astype(np.uint64)
    bits = (numbers[:, :, None] >> np.arange(dtype.bits, dtype=np.uint64)) & np.uint64(1)
    flat = bits.reshape(threads, -1).astype(np.uint8)
    padded = np.zeros((threads, words_of(dtype, count) * 32), np.uint8)
    padded[:, : flat.shape[1]] = flat
    return np.packbits(padded, axis=1, bitorder="little").view("<u4")


def unpack_words(words: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    """Return the codes of each thread, ``[threads, elements]``."""
    if dtype.is_boolean:
        return words.astype(np.uint8)
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    bits = flat[:, : count * dtype.bits].reshape(words.shape[0], count, dtype.bits).astype(np.uint64)
    codes = (bits << np.arange(dtype.bits, dtype=np.uint64)).sum(-1, dtype=np.uint64)
    return codes.astype(dtype.code_numpy)


def run_codes(
    target: str, source: DType, dest: DType, codes: np.ndarray, emit: Emit, count: int, check: bool = False
) -> np.ndarray:
    """Apply `emit` to codes, `count` of them in each thread, and return the codes that come out."""
    flat = np.asarray(codes).reshape(-1)
    threads = -(-flat.size // count)
    padded = np.resize(flat, threads * count).reshape(threads, count)
    ptx = compile_module(target, source, dest, count, emit, check)
    made = run_words(ptx, pack_words(padded, source), words_of(dest, count))
    return unpack_words(made, dest, count).reshape(-1)[: flat.size]


def expected_codes(source: DType, dest: DType, codes: np.ndarray) -> np.ndarray:
    """Return what a cast must give, from `tilus.dtypes` alone."""
    values = dtypes.decode(codes, source)
    if dest.is_integer:
        if values.dtype.kind in "iub":
            whole = values.astype(np.uint64) if values.dtype.kind != "i" else values.view(np.uint64)
            return (whole & np.uint64(dest.code_mask)).astype(dest.code_numpy)
        return dtypes.encode(np.trunc(values), dest)
    return dtypes.encode(values, dest)


def assert_same_codes(made: np.ndarray, expected: np.ndarray, dest: DType, codes: np.ndarray) -> None:
    """Compare codes; any NaN of a float wider than 8 bits stands for each other."""
    same = made == expected
    if dest.is_float and dest.bits > 8:
        same |= np.isnan(dtypes.decode(made, dest)) & np.isnan(dtypes.decode(expected, dest))
    wrong = np.flatnonzero(~same)
    assert wrong.size == 0, [
        f"code {int(codes.reshape(-1)[i]):#x}: got {int(made[i]):#x}, expected {int(expected[i]):#x}"
        for i in wrong[:8]
    ] + [f"{wrong.size} of {made.size} are wrong"]


__all__ = [
    "assert_same_codes", "compile_module", "expected_codes", "llvm_type", "module", "pack_words", "run_codes",
    "run_words", "unpack_words", "words_of",
]  # fmt: skip
