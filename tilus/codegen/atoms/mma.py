"""mma.sync: which instruction multiplies which types, and who holds which element (PTX ISA, warp-level matrix)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tilus import dtypes
from tilus.dtypes import DType
from tilus.layout import Digit, RegisterLayout, column_spatial, local, spatial


@dataclass(frozen=True)
class MmaAtom:
    """One instruction.

    Attributes
    ----------
    name : str
        Name in the IR.
    shape : tuple of int
        m, n, k.
    a_dtype, b_dtype, c_dtype : DType
        Operand and accumulator types.
    a, b, c : RegisterLayout
        Layouts of the m x k, k x n and m x n tiles over the 32 threads of a warp.
    feature : str
        What the target must have.
    text : str
        The mnemonic.
    """

    name: str
    shape: tuple[int, int, int]
    a_dtype: DType
    b_dtype: DType
    c_dtype: DType
    a: RegisterLayout
    b: RegisterLayout
    c: RegisterLayout
    feature: str
    text: str

    @property
    def cost(self) -> float:
        """Instructions for one multiply-add of the tile, to compare atoms."""
        m, n, k = self.shape
        return 1.0 / (m * n * k)


def _a_layout(m: int, k: int, per: int) -> RegisterLayout:
    """Rows by thread // 4, columns by thread % 4 in runs of `per`; row blocks before column blocks."""
    digits = []
    if k > 4 * per:
        digits.append(Digit(k // (4 * per), 1, 4 * per))
    if m > 8:
        digits.append(Digit(m // 8, 0, 8))
    digits.append(Digit(per, 1, 1))
    return RegisterLayout((m, k), (Digit(8, 0, 1), Digit(4, 1, per)), tuple(digits))


def _b_layout(k: int, per: int) -> RegisterLayout:
    return local(k // (4 * per), 1) * column_spatial(4, 8) * local(per, 1)


def _c_layout(m: int) -> RegisterLayout:
    return local(m // 8, 1) * spatial(8, 4) * local(1, 2)


def _atom(
    m: int,
    k: int,
    ab: tuple[DType, DType],
    c: DType,
    feature: str,
    names: tuple[str, str, str],
    extra: str = "",
) -> MmaAtom:
    # Elements of a thread that lie together: those of one 32-bit register, or one 64-bit element.
    per = max(1, 32 // ab[0].bits)
    d, a, b = names
    text = f"mma.sync.aligned.m{m}n8k{k}.row.col{extra}.{d}.{a}.{b}.{d}"
    return MmaAtom(
        f"m{m}n8k{k}.{a}.{b}.{d}", (m, 8, k), ab[0], ab[1], c, _a_layout(m, k, per), _b_layout(k, per), _c_layout(m),
        feature, text,
    )  # fmt: skip


_f16, _bf16, _f32 = dtypes.float16, dtypes.bfloat16, dtypes.float32
_8bit = {dtypes.int8: "s8", dtypes.uint8: "u8"}
_fp8 = {dtypes.float8_e4m3: "e4m3", dtypes.float8_e5m2: "e5m2"}


def _table() -> tuple[MmaAtom, ...]:
    rows = [
        _atom(16, 16, (_f16, _f16), _f32, "mma_m16n8k16_f16", ("f32", "f16", "f16")),
        _atom(16, 16, (_f16, _f16), _f16, "mma_m16n8k16_f16", ("f16", "f16", "f16")),
        _atom(16, 8, (_f16, _f16), _f32, "mma_m16n8k8_f16", ("f32", "f16", "f16")),
        _atom(16, 8, (_f16, _f16), _f16, "mma_m16n8k8_f16", ("f16", "f16", "f16")),
        _atom(16, 16, (_bf16, _bf16), _f32, "mma_bf16", ("f32", "bf16", "bf16")),
        _atom(16, 8, (_bf16, _bf16), _f32, "mma_bf16", ("f32", "bf16", "bf16")),
        _atom(16, 8, (dtypes.tfloat32, dtypes.tfloat32), _f32, "mma_tf32", ("f32", "tf32", "tf32")),
        _atom(16, 4, (dtypes.tfloat32, dtypes.tfloat32), _f32, "mma_tf32", ("f32", "tf32", "tf32")),
        _atom(8, 4, (dtypes.float64, dtypes.float64), dtypes.float64, "mma_f64", ("f64", "f64", "f64")),
    ]
    for a, a_name in _8bit.items():
        for b, b_name in _8bit.items():
            names = ("s32", a_name, b_name)
            rows.append(_atom(16, 32, (a, b), dtypes.int32, "mma_s8", names))
            rows.append(_atom(16, 16, (a, b), dtypes.int32, "mma_s8", names))
            rows.append(_atom(8, 16, (a, b), dtypes.int32, "mma_m8n8k16_s8", names))
    for a, a_name in _fp8.items():
        for b, b_name in _fp8.items():
            rows.append(_atom(16, 32, (a, b), _f32, "mma_fp8", ("f32", a_name, b_name)))
    return tuple(rows)


ATOMS: tuple[MmaAtom, ...] = _table()
BY_NAME: dict[str, MmaAtom] = {atom.name: atom for atom in ATOMS}


@lru_cache(maxsize=256)
def atoms_for(a: DType, b: DType, c: DType) -> tuple[MmaAtom, ...]:
    """Return the instructions for a combination of types, cheapest first."""
    found = [x for x in ATOMS if (x.a_dtype, x.b_dtype, x.c_dtype) == (a, b, c)]
    return tuple(sorted(found, key=lambda x: x.cost))
