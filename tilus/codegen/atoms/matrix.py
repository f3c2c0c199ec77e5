"""ldmatrix, stmatrix: 8 x 8 matrices of 16-bit elements, 16 bytes at each address (PTX ISA, ldmatrix, stmatrix)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from tilus.layout import Digit, RegisterLayout, SharedLayout, Tiling, contiguity, tile_by

ROW_BITS = 128


@dataclass(frozen=True)
class MatrixMove:
    """How a tile is loaded with ldmatrix, or stored with stmatrix.

    Attributes
    ----------
    transposed : bool
        Whether each matrix is transposed on the way.
    matrices : int
        Matrices of one instruction: 1, 2 or 4.
    rows : RegisterLayout
        Which row's address each thread gives: its element `firsts[i]` starts the row of instruction i.
    firsts : tuple of int
        For each instruction, the element of `rows`.
    elements : tuple
        For each instruction and each of its registers, the elements of the tile's layout that it holds.
    """

    transposed: bool
    matrices: int
    rows: RegisterLayout
    firsts: tuple[int, ...]
    elements: tuple[tuple[tuple[int, ...], ...], ...]


def matrix_atom(bits: int, along: int) -> RegisterLayout:
    """Return the layout of one matrix in registers: a thread's 32 bits lie along a dimension, and 4 threads in a row.

    Thread t holds part t % 4 of row t // 4 of the matrix, or with ``.trans`` of column t // 4.
    """
    per = 32 // bits
    last = RegisterLayout((8, 4 * per), (Digit(8, 0, 1), Digit(4, 1, per)), (Digit(per, 1, 1),))
    return last if along == 1 else last.transpose((1, 0))


@lru_cache(maxsize=512)
def plan_matrices(layout: RegisterLayout, shared: SharedLayout, bits: int, align: int) -> MatrixMove | None:
    """Return how ldmatrix or stmatrix moves a tile, or None if its layout or its place in memory does not allow it."""
    if layout.rank != 2 or bits not in (8, 16, 32) or align % 16:
        return None
    for along in (1, 0):
        atom = matrix_atom(bits, along)
        tiling = tile_by(layout, atom)
        for transposed in (False, True) if bits == 16 else (False,):
            plan = None if tiling is None else _plan(layout, shared, bits, along, transposed, atom, tiling)
            if plan is not None:
                return plan
    return None


def _plan(
    layout: RegisterLayout,
    shared: SharedLayout,
    bits: int,
    along: int,
    transposed: bool,
    atom: RegisterLayout,
    tiling: Tiling,
) -> MatrixMove | None:
    """Plan for a tile whose threads hold 32 bits along a dimension; transposed, memory runs along the other one."""
    quotient = tiling.quotient
    column_dim = 1 - along if transposed else along
    row_dim = 1 - column_dim
    length = ROW_BITS // bits
    scale = atom.shape
    # Split the instances of one warp into those of one instruction and the instructions.
    together: list[tuple[Digit, int]] = []
    apart: list[tuple[Digit, int]] = []
    needed = 4
    weight = 1
    for d in reversed(quotient.local_digits):
        take = gcd(d.size, needed)
        assert d.dim is not None
        if take > 1:
            together.insert(0, (Digit(take, d.dim, d.stride), weight))
            needed //= take
        if d.size // take > 1:
            apart.insert(0, (Digit(d.size // take, d.dim, d.stride * take), weight * take))
        weight *= d.size
    matrices = 4 // needed
    spatial = [
        Digit(d.size, d.dim, d.stride * scale[d.dim] if d.dim is not None else 0)
        for d in quotient.spatial_digits
    ]
    if matrices < 4:
        # Lanes beyond the matrices of the instruction give addresses that nobody reads.
        spatial.append(Digit(4 // matrices, None, 0))
    spatial += [Digit(d.size, d.dim, d.stride * scale[d.dim]) for d, _ in together if d.dim is not None]
    spatial.append(Digit(8, row_dim, 1))
    local = [Digit(d.size, d.dim, d.stride * scale[d.dim]) for d, _ in apart if d.dim is not None]
    rows = RegisterLayout(layout.shape, tuple(spatial), (*local, Digit(length, column_dim, 1)))
    if contiguity(rows, shared, length).vector != length:
        return None
    found = []
    for number in range(quotient.elements // matrices):
        first = _number(apart, number)
        found.append(tuple(tuple(tiling.elements(first + _number(together, m))) for m in range(matrices)))
    firsts = tuple(i * length for i in range(len(found)))
    return MatrixMove(transposed, matrices, rows, firsts, tuple(found))


def _number(digits: list[tuple[Digit, int]], number: int) -> int:
    """Return the instance number that a number over some of the digits stands for."""
    total = 0
    for d, weight in reversed(digits):
        number, value = divmod(number, d.size)
        total += value * weight
    return total
