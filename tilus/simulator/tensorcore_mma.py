"""``mma.sync`` and ``mma.sp``: which element each register holds, and the arithmetic.

PTX ISA, "Matrix multiply-accumulate operation using mma instruction", "... with sparse matrix A" and "Block
Scaling for mma.sync".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tilus.simulator.formats import decode, decode_table
from tilus.simulator.tensorcore_layout import (
    ELEMENT_BITS,
    accumulator_index,
    dense_a_index,
    dense_b_index,
    elements,
    quad_pair_index,
)
from tilus.simulator.tensorcore_sparse import expand_sparse, sparse_metadata_index

Array = np.ndarray[Any, Any]

FP8 = ("e4m3", "e5m2")
F8F6F4 = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
INT8 = ("s8", "u8")
INT4 = ("s4", "u4")

# (m, n, k) by element type: dense, and sparse (k counts the zeros).
_DENSE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "f16": ((8, 8, 4), (16, 8, 8), (16, 8, 16)),
    "bf16": ((16, 8, 8), (16, 8, 16)),
    "tf32": ((16, 8, 4), (16, 8, 8)),
    "f64": ((8, 8, 4), (16, 8, 4), (16, 8, 8), (16, 8, 16)),
    "int8": ((8, 8, 16), (16, 8, 16), (16, 8, 32)),
    "int4": ((8, 8, 32), (16, 8, 32), (16, 8, 64)),
    "b1": ((8, 8, 128), (16, 8, 128), (16, 8, 256)),
    "fp8": ((16, 8, 16), (16, 8, 32)),
    "f8f6f4": ((16, 8, 32),),
    "mxf8f6f4": ((16, 8, 32),),
    "mxf4": ((16, 8, 64),),
    "mxf4nvf4": ((16, 8, 64),),
}
_SPARSE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "f16": ((16, 8, 16), (16, 8, 32)),
    "bf16": ((16, 8, 16), (16, 8, 32)),
    "tf32": ((16, 8, 8), (16, 8, 16)),
    "int8": ((16, 8, 32), (16, 8, 64)),
    "int4": ((16, 8, 64), (16, 8, 128)),
    "fp8": ((16, 8, 64),),
    "f8f6f4": ((16, 8, 64),),
    "mxf8f6f4": ((16, 8, 64),),
    "mxf4": ((16, 8, 128),),
    "mxf4nvf4": ((16, 8, 128),),
}
# kind -> (element types, {scale type: allowed scale vectors}, default scale vector)
_SCALED: dict[str, tuple[tuple[str, ...], dict[str, tuple[int, ...]], int]] = {
    "mxf8f6f4": (F8F6F4, {"ue8m0": (1,)}, 1),
    "mxf4": (("e2m1",), {"ue8m0": (2,)}, 2),
    "mxf4nvf4": (("e2m1",), {"ue8m0": (2, 4), "ue4m3": (4,)}, 0),
}
_ROUNDINGS = ("rn", "rz", "rm", "rp")
# "Block Scaling for mma.sync": valid byte selectors by scale vector.
_BYTE_IDS = {1: (0, 1, 2, 3), 2: (0, 2), 4: (0,)}
_BLOCK = 128  # warps at a time, so that the float64 copies stay in the cache
CANONICAL_NAN_F32 = np.uint32(0x7FFFFFFF)
CANONICAL_NAN_F16 = np.uint16(0x7FFF)


@dataclass(frozen=True)
class Mma:
    """One decoded ``mma`` instruction; call it with fragments. See `tilus.simulator.tensorcore`.

    Attributes
    ----------
    shape : tuple of int
        m, n and k. The f16 ``m8n8k4`` computes four such products.
    kind : str or None
        ``"f8f6f4"``, ``"mxf8f6f4"``, ``"mxf4"`` or ``"mxf4nvf4"``.
    scale_vec : int
        Scale factors per row of A (column of B): 0 without block scaling.
    bit_op : str or None
        ``"xor"`` or ``"and"`` for b1.
    """

    shape: tuple[int, int, int]
    d_type: str
    a_type: str
    b_type: str
    c_type: str
    a_layout: str = "row"
    b_layout: str = "col"
    satfinite: bool = False
    bit_op: str | None = None
    rounding: str = "rn"
    kind: str | None = None
    scale_vec: int = 0
    scale_type: str | None = None
    sparse: bool = False

    @property
    def quad_pairs(self) -> bool:
        """Whether this is the f16 ``m8n8k4``, which multiplies four times, once per quad pair."""
        return self.shape == (8, 8, 4) and self.a_type == "f16"

    @property
    def element_bits(self) -> int:
        """Width of an element of A and B in its register."""
        if self.kind in ("f8f6f4", "mxf8f6f4"):
            return 8
        return ELEMENT_BITS[self.a_type]

    @property
    def a_registers(self) -> int:
        """Registers of A per thread (64-bit ones for f64)."""
        if self.quad_pairs:
            return 2
        m, _, k = self.shape
        return max(1, m * k // (2 if self.sparse else 1) * self.element_bits // (32 * self._register_bits))

    @property
    def b_registers(self) -> int:
        """Registers of B per thread."""
        if self.quad_pairs:
            return 2
        _, n, k = self.shape
        return max(1, n * k * self.element_bits // (32 * self._register_bits))

    @property
    def c_registers(self) -> int:
        """Registers of C per thread."""
        return self._accumulators // (2 if self.c_type == "f16" else 1)

    @property
    def d_registers(self) -> int:
        """Registers of D per thread."""
        return self._accumulators // (2 if self.d_type == "f16" else 1)

    @property
    def flops(self) -> int:
        """Multiplications and additions per warp, zeros of a sparse A included."""
        m, n, k = self.shape
        return 2 * m * n * k * (4 if self.quad_pairs else 1)

    @property
    def _register_bits(self) -> int:
        return 64 if self.a_type == "f64" else 32

    @property
    def _accumulators(self) -> int:
        return 8 if self.quad_pairs else self.shape[0] * self.shape[1] // 32

    def __call__(
        self,
        a: Array,
        b: Array,
        c: Array,
        *,
        metadata: Array | None = None,
        selector: int = 0,
        scale_a: Array | None = None,
        byte_id_a: int | Array = 0,
        thread_id_a: int | Array = 0,
        scale_b: Array | None = None,
        byte_id_b: int | Array = 0,
        thread_id_b: int | Array = 0,
    ) -> Array:
        """Fragment of D for fragments of A, B and C, for all warps at once."""
        warps = len(a)
        if self.sparse and metadata is None:
            raise ValueError("mma.sp needs its metadata operand")
        if self.scale_vec:
            if scale_a is None or scale_b is None:
                raise ValueError("mma with block_scale needs scale-a-data and scale-b-data")
            byte_ids = _BYTE_IDS[self.scale_vec]
            bytes_a = self._selector("byte-id-a", byte_id_a, byte_ids, warps)
            bytes_b = self._selector("byte-id-b", byte_id_b, byte_ids, warps)
            threads_a = self._selector("thread-id-a", thread_id_a, (0, 1), warps)
            threads_b = self._selector("thread-id-b", thread_id_b, (0, 1, 2, 3), warps)
        parts = []
        for first in range(0, warps, _BLOCK):
            some = slice(first, first + _BLOCK)
            left, right = self._matrices(a[some], b[some])
            if self.bit_op is not None:
                parts.append(self._accumulate_integers(bit_products(left, right, self.bit_op), c[some]))
                continue
            left = numbers(left, self.a_type, self.kind)
            right = numbers(right, self.b_type, self.kind)
            if metadata is not None:
                where = sparse_metadata_index(self.shape, self.a_type, self.kind, metadata[some], selector)
                left = expand_sparse(left, where, self.shape[2])
            if self.a_type == "f64":
                at = accumulator_index(self.shape[0])
                parts.append(fma_chain(left, right, c[some], at, self.rounding))
                continue
            with np.errstate(invalid="ignore", over="ignore"):
                if scale_a is not None and scale_b is not None:
                    left = left * self._scales_a(scale_a[some], bytes_a[some], threads_a[some])
                    right = right * self._scales_b(scale_b[some], bytes_b[some], threads_b[some])
                product = left @ right.swapaxes(-1, -2)
                if self.d_type == "s32":
                    parts.append(self._accumulate_integers(product.astype(np.int64), c[some]))
                else:
                    parts.append(self._accumulate_floats(product, c[some]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _matrices(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Codes of A ``[W, m, k]`` and of the columns of B ``[W, n, k]``."""
        if self.quad_pairs:
            a_at = quad_pair_index("a", self.a_layout)
            b_at = quad_pair_index("b", self.b_layout)
        else:
            m, _, k = self.shape
            a_at = dense_a_index(m, k // 2 if self.sparse else k, self.element_bits)
            b_at = dense_b_index(k, self.element_bits)
        left = elements(a, self.element_bits).take(a_at, axis=1)
        right = elements(b, self.element_bits).take(b_at, axis=1)
        return left, right

    def _selector(self, name: str, value: int | Array, legal: tuple[int, ...], warps: int) -> Array:
        """One value per warp, checked against the ISA's table of valid selectors."""
        values = np.broadcast_to(np.asarray(value, dtype=np.intp), (warps,))
        if not np.isin(values, legal).all():
            wrong = values[~np.isin(values, legal)][0]
            allowed = ", ".join(map(str, legal))
            raise ValueError(f"{name} with scale_vec::{self.scale_vec}X is one of {allowed}, found {wrong}")
        return values

    def _register_order(self, matrix: Array, dtype: str) -> Array:
        """[W, ...] result matrices -> [W, accumulators, 32] in the order of the registers' elements."""
        at = (
            quad_pair_index("f32" if dtype == "f32" else "f16", "")
            if self.quad_pairs
            else accumulator_index(self.shape[0])
        )
        flat = matrix.reshape(len(matrix), -1)
        return flat.take(at, axis=1)

    def _accumulate_integers(self, product: Array, c: Array) -> Array:
        product = self._register_order(product, "s32")
        total = product + c.view(np.int32)
        if self.satfinite:
            total = np.clip(total, -(2**31), 2**31 - 1)
        return total.astype(np.int32).view(np.uint32)

    def _accumulate_floats(self, product: Array, c: Array) -> Array:
        warps = len(c)
        if self.quad_pairs and self.c_type != self.d_type:
            # f16 in, f32 out: the two accumulators have different layouts.
            halves = _halves_to_elements(c)
            at = quad_pair_index("f16", "")
            matrix = np.empty((warps, 256), dtype=np.float64)
            matrix[:, at.reshape(-1)] = halves.reshape(warps, -1)
            product = product + matrix.reshape(warps, 4, 8, 8)
            return to_f32_bits(self._register_order(product, "f32"))
        product = self._register_order(product, self.d_type)
        if self.d_type == "f16":
            return _elements_to_halves(to_f16_bits(product + _halves_to_elements(c)))
        return to_f32_bits(product + c.view(np.float32))

    def _scales_a(self, data: Array, byte_id: Array, thread_id: Array) -> Array:
        """Scale factors of A, one per element: [W, m, k]."""
        m, _, k = self.shape
        row = np.arange(m)
        # Of the two threads of the pair, the lower one scales row groupID and the upper one row groupID + 8.
        lane = (row % 8) * 4 + row // 8 + 2 * thread_id[:, None]
        return self._scales(data, lane, byte_id, k)

    def _scales_b(self, data: Array, byte_id: Array, thread_id: Array) -> Array:
        """Scale factors of B, one per element: [W, n, k]."""
        _, n, k = self.shape
        lane = np.arange(n) * 4 + thread_id[:, None]
        return self._scales(data, lane, byte_id, k)

    def _scales(self, data: Array, lane: Array, byte_id: Array, k: int) -> Array:
        warps = len(data)
        codes = np.ascontiguousarray(data).view(np.uint8).reshape(warps, 32, 4)
        place = byte_id[:, None, None] + np.arange(self.scale_vec)
        chosen = codes[np.arange(warps)[:, None, None], lane[:, :, None], place]
        assert self.scale_type is not None
        return np.repeat(decode(chosen, self.scale_type, np.float64), k // self.scale_vec, axis=2)


def numbers(codes: Array, dtype: str, kind: str | None = None) -> Array:
    """float64 values of the elements of a multiplicand."""
    if dtype == "f64":
        return codes.view(np.float64)
    if dtype == "tf32":
        return decode(codes, "tf32", np.float64)
    if dtype == "s8":
        return codes.view(np.int8).astype(np.float64)
    if dtype == "u8" or dtype == "u4":
        return codes.astype(np.float64)
    if dtype == "s4":
        return ((codes.astype(np.int8) ^ 8) - 8).astype(np.float64)
    if dtype == "e2m1" and kind in ("f8f6f4", "mxf8f6f4"):
        codes = (codes >> 2) & 0xF  # the middle four bits of the container
    return decode_table(dtype, np.float64).take(codes)


def bit_products(left: Array, right: Array, bit_op: str) -> Array:
    """Number of ones of ``left op right`` for every row and column: 0/1 arrays [.., m, k], [.., n, k]."""
    x = left.astype(np.float32)
    y = right.astype(np.float32)
    both = (x @ y.swapaxes(-1, -2)).astype(np.int64)
    if bit_op == "and":
        return both
    ones_x = left.sum(axis=-1, dtype=np.int64)[..., :, None]
    ones_y = right.sum(axis=-1, dtype=np.int64)[..., None, :]
    different: Array = ones_x + ones_y - 2 * both
    return different


def to_f32_bits(values: Array) -> Array:
    """Round float64 to f32 bits, with the canonical NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float32)
    bits = rounded.view(np.uint32)
    nan = np.isnan(rounded)
    if nan.any():
        bits[nan] = CANONICAL_NAN_F32
    return bits


def to_f16_bits(values: Array) -> Array:
    """Round float64 to f16 bits, with the canonical NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float16)
    bits = rounded.view(np.uint16)
    nan = np.isnan(rounded)
    if nan.any():
        bits[nan] = CANONICAL_NAN_F16
    return bits


def _halves_to_elements(c: Array) -> Array:
    """f16x2 registers [W, r, 32] -> float64 [W, 2r, 32], element 2r + h from half h of register r."""
    warps, registers, lanes = c.shape
    halves = np.ascontiguousarray(c).view(np.uint16).reshape(warps, registers, lanes, 2)
    order = halves.transpose(0, 1, 3, 2).reshape(warps, 2 * registers, lanes)
    return decode_table("f16", np.float64).take(order)


def _elements_to_halves(bits: Array) -> Array:
    """Inverse of `_halves_to_elements` on bits: uint16 [W, 2r, 32] -> uint32 [W, r, 32]."""
    low = bits[:, 0::2].astype(np.uint32)
    high = bits[:, 1::2].astype(np.uint32)
    return low | (high << np.uint32(16))


def fma_chain(left: Array, right: Array, c: Array, at: Array, rounding: str) -> Array:
    """Double precision: D = C, then one fused multiply-add for every k in order."""
    from tilus.simulator.tensorcore_fma import fused_multiply_add

    warps, m, k = left.shape
    n = right.shape[1]
    total = np.empty((warps, m * n), dtype=np.float64)
    total[:, at.reshape(-1)] = c.view(np.float64).reshape(warps, -1)
    total = total.reshape(warps, m, n)
    for step in range(k):
        total = fused_multiply_add(left[:, :, step, None], right[:, None, :, step], total, rounding)
    flat = total.reshape(warps, m * n).take(at, axis=1)
    return flat.view(np.uint64)


@cache
def mma_instruction(opcode: str) -> Mma:
    """Decode the opcode of an ``mma`` instruction.

    Parameters
    ----------
    opcode : str
        The opcode with all its modifiers, for example
        ``"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"``.
    """
    # "::" binds tighter than the dot: kind::f8f6f4, scale_vec::2X, sp::ordered_metadata.
    words = opcode.split(".")
    if words[0] != "mma" or "sync" not in words:
        raise ValueError(f"expected an mma.sync instruction, found {opcode!r}")
    sparse = any(w in ("sp", "sp::ordered_metadata") for w in words)
    shape: tuple[int, int, int] | None = None
    layouts: list[str] = []
    types: list[str] = []
    options: dict[str, Any] = {}
    for word in words[1:]:
        dimensions = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", word)
        if dimensions:
            shape = (int(dimensions[1]), int(dimensions[2]), int(dimensions[3]))
        elif word in ("row", "col"):
            layouts.append(word)
        elif word in ("sync", "aligned", "block_scale", "popc", "sp", "sp::ordered_metadata"):
            continue
        elif word == "satfinite":
            options["satfinite"] = True
        elif word in ("xor", "and"):
            options["bit_op"] = word
        elif word in _ROUNDINGS:
            options["rounding"] = word
        elif word.startswith("kind::"):
            options["kind"] = word[len("kind::") :]
        elif word.startswith("scale_vec::"):
            options["scale_vec"] = int(word[len("scale_vec::") : -1])
        elif word in ELEMENT_BITS or word in ("f32", "s32", "ue8m0", "ue4m3"):
            types.append(word)
        else:
            raise ValueError(f"unknown modifier .{word} in {opcode!r}")
    if shape is None or len(layouts) != 2 or len(types) not in (4, 5):
        raise ValueError(
            f"expected a shape, two layouts and the types of D, A, B and C (and of the scale), found {opcode!r}"
        )
    if len(types) == 5:
        options["scale_type"] = types.pop()
    d_type, a_type, b_type, c_type = types
    return make_mma(
        shape=shape,
        d_type=d_type,
        a_type=a_type,
        b_type=b_type,
        c_type=c_type,
        a_layout=layouts[0],
        b_layout=layouts[1],
        sparse=sparse,
        **options,
    )


@cache
def make_mma(
    *,
    shape: tuple[int, int, int],
    d_type: str,
    a_type: str,
    b_type: str,
    c_type: str,
    a_layout: str = "row",
    b_layout: str = "col",
    satfinite: bool = False,
    bit_op: str | None = None,
    rounding: str = "rn",
    kind: str | None = None,
    scale_vec: int | None = None,
    scale_type: str | None = None,
    sparse: bool = False,
) -> Mma:
    """Check the modifiers against the ISA and return the operation. Parameters as in `Mma`."""
    name = "mma.sp" if sparse else "mma"
    pair = f"{a_type} x {b_type}"
    family = _family(a_type, b_type, kind)
    shapes = (_SPARSE if sparse else _DENSE).get(family, ())
    if shape not in shapes:
        listed = ", ".join("m{}n{}k{}".format(*s) for s in shapes) or "no shape"
        raise ValueError("{} of {} has {}, not m{}n{}k{}".format(name, pair, listed, *shape))
    expected = _accumulator_types(family)
    if d_type not in expected or c_type not in expected:
        raise ValueError(
            f"{name} of {pair} accumulates in {' or '.join(expected)}, found D {d_type} and C {c_type}"
        )
    quad_pairs = shape == (8, 8, 4) and a_type == "f16"
    if c_type != d_type and not (quad_pairs and c_type == "f16"):
        raise ValueError(f"{name} needs the same type for C and D, found C {c_type} and D {d_type}")
    if (a_layout, b_layout) != ("row", "col") and not quad_pairs:
        raise ValueError(f"{name} of this shape takes .row.col, found .{a_layout}.{b_layout}")
    if (bit_op is not None) != (a_type == "b1"):
        raise ValueError(f"{name} has .xor.popc or .and.popc exactly for b1, found {bit_op} with {a_type}")
    if satfinite and d_type != "s32":
        raise ValueError(f"{name} takes .satfinite for integers only, found it with {a_type}")
    if rounding != "rn" and a_type != "f64":
        raise ValueError(f"{name} takes .{rounding} for f64 only, found it with {a_type}")
    if kind in _SCALED:
        _, by_type, default = _SCALED[kind]
        if scale_type not in by_type:
            raise ValueError(f"kind::{kind} scales with {' or '.join(by_type)}, found {scale_type}")
        scale_vec = scale_vec or default
        if scale_vec not in by_type[scale_type]:
            allowed = " or ".join(f"{v}X" for v in by_type[scale_type])
            raise ValueError(f"kind::{kind} with {scale_type} needs scale_vec::{allowed}, found {scale_vec}X")
    elif scale_type is not None or scale_vec:
        raise ValueError(
            f"{name} scales blocks only with kind::mxf8f6f4, mxf4 or mxf4nvf4, found kind {kind}"
        )
    return Mma(
        shape, d_type, a_type, b_type, c_type, a_layout, b_layout, satfinite, bit_op, rounding, kind,
        scale_vec or 0, scale_type, sparse,
    )  # fmt: skip


def _family(a_type: str, b_type: str, kind: str | None) -> str:
    """Row of the shape tables."""
    both = (a_type, b_type)
    if kind is not None:
        allowed = F8F6F4 if kind == "f8f6f4" else _SCALED[kind][0] if kind in _SCALED else ()
        if not allowed:
            raise ValueError(f"unknown kind::{kind}; use f8f6f4, mxf8f6f4, mxf4 or mxf4nvf4")
        if all(t in allowed for t in both):
            return kind
    elif all(t in INT8 for t in both):
        return "int8"
    elif all(t in INT4 for t in both):
        return "int4"
    elif all(t in FP8 for t in both):
        return "fp8"
    elif a_type == b_type and a_type in ("f16", "bf16", "tf32", "f64", "b1"):
        return a_type
    with_kind = f" with kind::{kind}" if kind else ""
    raise ValueError(f"mma cannot multiply {a_type} by {b_type}{with_kind}")


def _accumulator_types(family: str) -> tuple[str, ...]:
    if family in ("f16", "fp8", "f8f6f4"):
        return ("f32", "f16")
    if family in ("int8", "int4", "b1"):
        return ("s32",)
    return ("f64",) if family == "f64" else ("f32",)


def mma(
    a: Array,
    b: Array,
    c: Array,
    *,
    shape: tuple[int, int, int],
    d_type: str,
    a_type: str,
    b_type: str,
    c_type: str,
    a_layout: str = "row",
    b_layout: str = "col",
    satfinite: bool = False,
    bit_op: str | None = None,
    rounding: str = "rn",
    kind: str | None = None,
    scale_vec: int | None = None,
    scale_type: str | None = None,
    sparse: bool = False,
    **operands: Any,
) -> Array:
    """Decode by modifiers and compute at once; `operands` are those of `Mma.__call__`."""
    op = make_mma(
        shape=shape, d_type=d_type, a_type=a_type, b_type=b_type, c_type=c_type, a_layout=a_layout,
        b_layout=b_layout, satfinite=satfinite, bit_op=bit_op, rounding=rounding, kind=kind,
        scale_vec=scale_vec, scale_type=scale_type, sparse=sparse,
    )  # fmt: skip
    return op(a, b, c, **operands)
