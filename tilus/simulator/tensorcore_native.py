"""``mma.sync`` in machine code: many instructions of one kind in one call, straight from and to the registers.

The values are those of `Mma.__call__`: multiplicands are decoded by a table of the same function `numbers`, products
are exact, and their sum over k, in order, and the accumulator are float64 numbers that are rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tilus.simulator.native import Code, compiled
from tilus.simulator.tensorcore_layout import dense_a_index, dense_b_index
from tilus.simulator.tensorcore_mma import Mma, numbers
from tilus.simulator.tensorcore_wgmma import Wgmma

Array = np.ndarray[Any, Any]

PARAMETERS = (
    "first", "last", "bank", "pitch", "a_rows", "a_count", "b_rows", "b_count", "steps", "count", "a_index", "b_index",
    "a_table", "b_table", "scratch",
)  # fmt: skip
ACCUMULATE_PARAMETERS = ("product", "warps", "count", "bank", "pitch", "rows", "keep")
_DECLARATIONS = (
    "declare <8 x double> @llvm.fmuladd.v8f64(<8 x double>, <8 x double>, <8 x double>)",
    "declare <8 x i32> @llvm.sadd.sat.v8i32(<8 x i32>, <8 x i32>)",
)
_COLUMNS = 8
_TF32_VALUE = 0xFFFFE000


def supports(op: object) -> bool:
    """Whether an instruction's kind is one that is compiled; NumPy computes the others."""
    return (
        isinstance(op, Mma)
        and op.d_type in ("f32", "s32")
        and not op.sparse
        and not op.scale_vec
        and op.bit_op is None
        and not op.quad_pairs
        and op.element_bits >= 8
    )


def scratch_doubles(op: Mma, a_count: int, b_count: int) -> int:
    """The scratch memory that a call needs, in float64 numbers."""
    m, n, k = op.shape
    return a_count * m * k + b_count * n * k + 64


@cache
def tables(op: Mma) -> tuple[Array, Array, Array, Array]:
    """Index arrays (position of each element of A by rows, and of B by rows) and value tables of A and B."""
    m, _, k = op.shape
    a_index = np.ascontiguousarray(dense_a_index(m, k, op.element_bits), np.int32)
    b_index = np.ascontiguousarray(dense_b_index(k, op.element_bits).T, np.int32)
    return a_index, b_index, _values(op, op.a_type), _values(op, op.b_type)


def _values(op: Mma, dtype: str) -> Array:
    """The number that each code of a multiplicand stands for; tf32 is converted instead."""
    if op.element_bits == 32:
        return np.zeros(1)
    codes = np.arange(1 << op.element_bits).astype(f"u{op.element_bits // 8}")
    return np.ascontiguousarray(numbers(codes, dtype, op.kind), np.float64)


@cache
def multiply(op: Mma) -> Callable[..., int]:
    """The compiled function for an instruction: parameters as in `PARAMETERS`, for warps ``first`` to ``last``.

    ``a_rows`` and ``b_rows`` list the registers of each distinct fragment, ``steps`` for each instruction the numbers
    of its fragments, the registers of C and those of D, all int64.
    """
    m, _, k = op.shape
    rows = m // 8
    code = Code(PARAMETERS)
    code.declarations += _DECLARATIONS
    a_bytes, b_bytes = m * k * 8, k * _COLUMNS * 8
    buffer = "%scratch"
    a_scratch = code.value("add i64 %scratch, 512")
    b_scratch = code.value(f"add i64 {a_scratch}, {code.value(f'mul i64 %a_count, {a_bytes}')}")
    with code.loop("%first", "%last") as warp:
        base = code.value(f"add i64 %bank, {code.value(f'mul i64 {warp}, 128')}")
        _decode(code, op.a_registers, m * k, op.element_bits, base, "a", a_scratch, buffer)
        _decode(code, op.b_registers, _COLUMNS * k, op.element_bits, base, "b", b_scratch, buffer)
        with code.loop(0, "%count") as step:
            entry = code.value(f"add i64 %steps, {code.value(f'mul i64 {step}, {8 * (2 + 4 * rows)}')}")
            slots = [code.load("i64", code.at(entry, 8 * i), 8) for i in range(2)]
            a_at = code.value(f"add i64 {a_scratch}, {code.value(f'mul i64 {slots[0]}, {a_bytes}')}")
            b_at = code.value(f"add i64 {b_scratch}, {code.value(f'mul i64 {slots[1]}, {b_bytes}')}")
            with code.loop(0, rows) as half:
                _eight_rows(code, op, base, entry, half, a_at, b_at)
    return compiled(code)


def accumulates(op: Wgmma) -> bool:
    """Whether the accumulators of a ``wgmma`` are of a type that is compiled."""
    return op.d_type in ("f32", "s32") and op.bit_op is None


@cache
def accumulate(op: Wgmma) -> Callable[..., int]:
    """The compiled function that adds products to a ``wgmma``'s accumulators: parameters `ACCUMULATE_PARAMETERS`.

    ``product`` is float64 ``[16 * count, n]``, ``warps`` the warp and ``keep`` whether its old D counts for each 16
    rows, ``rows`` the registers of D, all int64.
    """
    n = op.shape[1]
    code = Code(ACCUMULATE_PARAMETERS)
    code.declarations += _DECLARATIONS
    with code.loop(0, "%count") as number:
        warp = code.load("i64", code.pointer("%warps", number, 8), 8)
        base = code.value(f"add i64 %bank, {code.value(f'mul i64 {warp}, 128')}")
        kept = code.load("i64", code.pointer("%keep", number, 8), 8)
        keep = code.value(f"icmp ne i64 {kept}, 0")
        matrix = code.value(f"add i64 %product, {code.value(f'mul i64 {number}, {16 * n * 8}')}")
        with code.loop(0, n // 8) as block, code.loop(0, 2) as half:
            first = code.value(f"mul i64 {half}, {8 * n * 8}")
            place = code.value(f"add i64 {first}, {code.value(f'mul i64 {block}, 64')}")
            corner = code.value(f"add i64 {matrix}, {place}")
            sums = [code.load("<8 x double>", code.at(corner, row * n * 8), 8) for row in range(8)]
            pair = code.value(
                f"add i64 {code.value(f'mul i64 {block}, 4')}, {code.value(f'mul i64 {half}, 2')}"
            )
            registers = []
            for i in range(2):
                which = code.load("i64", code.pointer("%rows", code.value(f"add i64 {pair}, {i}"), 8), 8)
                registers.append(code.value(f"add i64 {base}, {code.value(f'mul i64 {which}, %pitch')}"))
            _accumulate(code, op, sums, registers, registers, keep)
    return compiled(code)


def _decode(
    code: Code, registers: int, count: int, bits: int, base: str, side: str, target: str, buffer: str
) -> None:
    """Fragments of one side to float64 matrices."""
    with code.loop(0, f"%{side}_count") as fragment:
        first = code.value(f"mul i64 {fragment}, {registers}")
        with code.loop(0, registers) as register:
            number = code.value(f"add i64 {first}, {register}")
            row = code.load("i64", code.pointer(f"%{side}_rows", number, 8), 8)
            words = code.load("<32 x i32>", code.pointer(base, row, "%pitch"), 4)
            code.store("<32 x i32>", words, code.pointer(buffer, register, 128), 4)
        values = code.value(f"add i64 {target}, {code.value(f'mul i64 {fragment}, {count * 8}')}")
        with code.loop(0, count) as i:
            position = code.value(
                f"sext i32 {code.load('i32', code.pointer(f'%{side}_index', i, 4), 4)} to i64"
            )
            raw = code.load(f"i{bits}", code.pointer(buffer, position, bits // 8), bits // 8)
            if bits == 32:
                kept = code.value(f"and i32 {raw}, {_TF32_VALUE}")
                number = code.value(f"fpext float {code.value(f'bitcast i32 {kept} to float')} to double")
            else:
                wide = code.value(f"zext i{bits} {raw} to i64")
                number = code.load("double", code.pointer(f"%{side}_table", wide, 8), 8)
            code.store("double", number, code.pointer(values, i, 8), 8)


def _eight_rows(code: Code, op: Mma, base: str, entry: str, half: str, a_at: str, b_at: str) -> None:
    """Eight rows of one instruction's result. Row g has columns 2t and 2t + 1 in two registers of lane 4g + t."""
    m, _, k = op.shape
    a_rows = code.value(f"add i64 {a_at}, {code.value(f'mul i64 {half}, {8 * k * 8}')}")
    sums = ["zeroinitializer"] * 8
    for step in range(k):
        right = code.load("<8 x double>", code.at(b_at, step * _COLUMNS * 8), 8)
        for row in range(8):
            one = code.load("double", code.at(a_rows, (row * k + step) * 8), 8)
            single = code.value(f"insertelement <8 x double> poison, double {one}, i32 0")
            left = code.value(
                f"shufflevector <8 x double> {single}, <8 x double> poison, <8 x i32> zeroinitializer"
            )
            sums[row] = code.value(
                "call <8 x double> @llvm.fmuladd.v8f64("
                f"<8 x double> {left}, <8 x double> {right}, <8 x double> {sums[row]})"
            )
    c_rows = [_register(code, entry, base, half, 16, i) for i in range(2)]
    d_rows = [_register(code, entry, base, half, 16 + m // 8 * 16, i) for i in range(2)]
    _accumulate(code, op, sums, c_rows, d_rows, None)


def _accumulate(
    code: Code, op: Mma | Wgmma, sums: list[str], c_rows: list[str], d_rows: list[str], keep: str | None
) -> None:
    """Add eight rows of sums to C, which counts as zero unless ``keep``, and put them into D."""
    for row in range(8):
        old = [code.load("<4 x i32>", code.at(c, 16 * row), 4) for c in c_rows]
        c = code.value(
            f"shufflevector <4 x i32> {old[0]}, <4 x i32> {old[1]}, "
            "<8 x i32> <i32 0, i32 4, i32 1, i32 5, i32 2, i32 6, i32 3, i32 7>"
        )
        if keep is not None:
            c = code.value(f"select i1 {keep}, <8 x i32> {c}, <8 x i32> zeroinitializer")
        total = (
            _rounded(code, sums[row], c) if op.d_type == "f32" else _wrapped(code, sums[row], c, op.satfinite)
        )
        for i, d in enumerate(d_rows):
            which = ", ".join(f"i32 {2 * t + i}" for t in range(4))
            part = code.value(f"shufflevector <8 x i32> {total}, <8 x i32> poison, <4 x i32> <{which}>")
            code.store("<4 x i32>", part, code.at(d, 16 * row), 4)


def _register(code: Code, entry: str, base: str, half: str, offset: int, i: int) -> str:
    """The address of register ``2 * half + i`` of C or D."""
    place = code.at(code.value(f"add i64 {entry}, {offset + 8 * i}"), code.value(f"mul i64 {half}, 16"))
    row = code.load("i64", place, 8)
    return code.value(f"add i64 {base}, {code.value(f'mul i64 {row}, %pitch')}")


def _rounded(code: Code, total: str, c: str) -> str:
    """The sum with a float32 accumulator, rounded, NaN canonical."""
    wide = code.value(
        f"fpext <8 x float> {code.value(f'bitcast <8 x i32> {c} to <8 x float>')} to <8 x double>"
    )
    exact = code.value(f"fadd <8 x double> {total}, {wide}")
    rounded = code.value(f"fptrunc <8 x double> {exact} to <8 x float>")
    nan = code.value(f"fcmp uno <8 x float> {rounded}, zeroinitializer")
    bits = code.value(f"bitcast <8 x float> {rounded} to <8 x i32>")
    canonical = "<" + ", ".join(["i32 2147483647"] * 8) + ">"
    return code.value(f"select <8 x i1> {nan}, <8 x i32> {canonical}, <8 x i32> {bits}")


def _wrapped(code: Code, total: str, c: str, saturates: bool) -> str:
    """The sum with an integer accumulator."""
    product = code.value(f"fptosi <8 x double> {total} to <8 x i32>")
    if saturates:
        return code.value(f"call <8 x i32> @llvm.sadd.sat.v8i32(<8 x i32> {product}, <8 x i32> {c})")
    return code.value(f"add <8 x i32> {product}, {c}")
