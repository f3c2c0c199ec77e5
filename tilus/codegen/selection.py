"""Instruction selection: divides layouts by the target's instructions and takes the cheapest that fits."""

from __future__ import annotations

from functools import lru_cache

from tilus.codegen.atoms.matrix import plan_matrices
from tilus.codegen.atoms.mma import MmaAtom, atoms_for
from tilus.codegen.atoms.wgmma import (
    WARP_ROWS,
    WARPS,
    columns,
    rows_in_order,
    rows_of,
    warp_a_atom,
    warp_c_atom,
    wgmma_type,
)
from tilus.codegen.lower.dot import fits
from tilus.codegen.lower.shared_memory import copy_layout
from tilus.codegen.target import Target
from tilus.dtypes import DType
from tilus.errors import ShapeMismatch, TargetNotSupported, TypeMismatch
from tilus.layout import Digit, LayoutError, RegisterLayout, SharedLayout, bank_conflicts, contiguity, local
from tilus.passes.select import DotChoice


class Mma:
    """Selection for one target."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def choose_dot(
        self,
        shape: tuple[int, int, int],
        dtypes: tuple[DType, DType, DType],
        warps: int,
        a: RegisterLayout | None,
        b: RegisterLayout | None,
        c: RegisterLayout | None,
        by_rows: bool = False,
    ) -> DotChoice:
        """Return the cheapest instruction and arrangement of warps that keep most of the layouts given.

        With `by_rows` the warps are spread over the rows of the result as far as they can be.
        """
        atoms = self._atoms(dtypes)
        found: list[tuple[tuple[float, ...], DotChoice]] = []

        def rank(kept: int, atom: MmaAtom, choice: DotChoice) -> tuple[float, ...]:
            return -kept, atom.cost, choice.a.replication if by_rows else 0, _traffic(choice, shape)

        for atom in atoms:
            for choice in arrangements(shape, warps, atom):
                kept = sum(x is not None and x == y for x, y in ((c, choice.c), (a, choice.a), (b, choice.b)))
                found.append((rank(kept, atom, choice), choice))
            given = complete(shape, warps, atom, a, b, c)
            if given is not None:
                found.append((rank(sum(x is not None for x in (a, b, c)), atom, given), given))
        if not found:
            m, n, k = shape
            sizes = ", ".join(sorted({"m{}n{}k{}".format(*x.shape) for x in atoms}))
            raise ShapeMismatch(
                f"dot of {m} x {k} by {k} x {n} over {warps} warps is not made of this target's instructions for "
                f"{dtypes[0]} ({sizes})",
                hint="use tile sizes that are multiples of one of these",
            )
        return min(found, key=lambda entry: entry[0])[1]

    def _atoms(self, dtypes: tuple[DType, DType, DType]) -> list[MmaAtom]:
        known = atoms_for(*dtypes)
        if not known:
            raise TypeMismatch(
                f"no tensor-core instruction multiplies {dtypes[0]} by {dtypes[1]} into {dtypes[2]}",
                hint="cast both operands to float16, bfloat16, tfloat32, int8 or float8 and accumulate in float32 "
                "(int32 for int8)",
            )
        atoms = [x for x in known if self.target.has(x.feature)]
        if not atoms:
            raise TypeMismatch(
                f"{self.target.name} has no tensor-core instruction for {dtypes[0]} by {dtypes[1]} into {dtypes[2]}",
                hint="cast both operands to float16",
            )
        return atoms

    def choose_dot_async(
        self,
        shape: tuple[int, int, int],
        dtypes: tuple[DType, DType, DType],
        warps: int,
        a: RegisterLayout | None = None,
        c: RegisterLayout | None = None,
    ) -> DotChoice:
        """Return the wgmma instruction for a dot, and the rows that each warp has.

        The layouts given, of a first operand and an accumulator in registers, are kept where they fit; without any the
        warpgroups lie one below the other.
        """
        m, n, k = shape
        if not self.target.has("wgmma"):
            raise TargetNotSupported(
                f"{self.target.name} has no warpgroup matrix instructions", hint="use tilus.dot"
            )
        kind = wgmma_type(*dtypes)
        if kind is None:
            raise TypeMismatch(
                f"no warpgroup instruction multiplies {dtypes[0]} by {dtypes[1]} into {dtypes[2]}",
                hint="use float16, bfloat16, tfloat32, float8 or int8 operands and accumulate in float32 (int32)",
            )
        if warps % WARPS or m % (WARP_ROWS * warps):
            raise ShapeMismatch(
                f"dot_async of {m} rows over {warps} warps",
                hint="use 64 rows, or a multiple, for each 4 warps",
            )
        width = columns(n, kind)
        if not width or k % kind.k:
            raise ShapeMismatch(
                f"dot_async of {n} columns and depth {k}",
                hint=f"use a multiple of 8 columns (16 beyond 32 for int8) and a depth that is a multiple of {kind.k}",
            )
        left, right = warp_a_atom(kind.k, kind.a_dtype.bits), warp_c_atom(width)
        rows_a, rows_c = attempt_rows(a, left), attempt_rows(c, right)
        # The accumulator decides: it stays where it is from one product to the next.
        rows = rows_c or rows_a or rows_in_order(m, warps)
        fits_a = a is not None and rows_a is not None and rows_a.spatial_digits == rows.spatial_digits
        operand = a if a is not None and fits_a else rows * local(1, k // kind.k) * left
        result = c if c is not None and rows_c is not None else rows * local(1, n // width) * right
        return DotChoice(kind.name(width), operand, operand, result)

    def shared_cost(self, layout: RegisterLayout, shared: SharedLayout, bits: int, load: bool) -> float:
        """Return the wavefronts of moving a tile between registers and shared memory."""
        return _shared_cost(layout, shared, bits, self.target.has("ldmatrix" if load else "stmatrix"))

    def copy_cost(self, shared: SharedLayout, threads: int, bits: int, along: int | None = None) -> float:
        """Return the wavefronts of an asynchronous copy, in pieces along a dimension, into shared memory."""
        return _shared_cost(copy_layout(shared.shape, threads, bits, along), shared, bits, False)


def attempt_rows(layout: RegisterLayout | None, atom: RegisterLayout) -> RegisterLayout | None:
    """Return which rows each warp holds in a layout, if it is made of a warp's part of a wgmma instruction."""
    if layout is None:
        return None
    try:
        return rows_of(layout, atom)
    except LayoutError:
        return None


@lru_cache(maxsize=1024)
def _shared_cost(layout: RegisterLayout, shared: SharedLayout, bits: int, matrices: bool) -> float:
    if matrices:
        plan = plan_matrices(layout, shared, bits, 128)
        if plan is not None:
            length = 128 // bits
            cost = bank_conflicts(plan.rows, shared, bits, length, sample=2)
            return cost.count / max(1, cost.accesses) * len(plan.firsts)
    vector = contiguity(layout, shared, max(1, 128 // bits)).vector
    while vector > 1 and vector * bits not in (8, 16, 32, 64, 128):
        vector //= 2
    cost = bank_conflicts(layout, shared, bits, vector, sample=2)
    return cost.count / max(1, cost.accesses) * (layout.elements / vector)


def arrangements(shape: tuple[int, int, int], warps: int, atom: MmaAtom) -> list[DotChoice]:
    """Return the choices for each way of spreading warps over the rows and columns of the result."""
    m, n, k = shape
    am, an, ak = atom.shape
    if m % am or n % an or k % ak:
        return []
    out = []
    for used in [w for w in range(warps, 0, -1) if warps % w == 0]:
        for rows in range(1, used + 1):
            if used % rows:
                continue
            columns = used // rows
            if (m // am) % rows or (n // an) % columns:
                continue
            out.append(arrange(shape, rows, columns, warps // used, atom))
        if out:
            break
    return out


def arrange(shape: tuple[int, int, int], rows: int, columns: int, copies: int, atom: MmaAtom) -> DotChoice:
    """Return the layouts for `rows` x `columns` warps, the whole `copies` times."""
    m, n, k = shape
    am, an, ak = atom.shape
    rm, rn, rk = m // am // rows, n // an // columns, k // ak
    again = Digit(copies, None, 0)

    def warps(dims: tuple[int | None, int | None], extent: tuple[int, int]) -> RegisterLayout:
        digits = (
            again,
            Digit(rows, dims[0], 1 if dims[0] is not None else 0),
            Digit(columns, dims[1], 1 if dims[1] is not None else 0),
        )
        return RegisterLayout(extent, digits, ())

    a = warps((0, None), (rows, 1)) * local(rm, rk) * atom.a
    b = warps((None, 1), (1, columns)) * local(rk, rn) * atom.b
    c = warps((0, 1), (rows, columns)) * local(rm, rn) * atom.c
    return DotChoice(atom.name, a, b, c)


def complete(
    shape: tuple[int, int, int],
    warps: int,
    atom: MmaAtom,
    a: RegisterLayout | None,
    b: RegisterLayout | None,
    c: RegisterLayout | None,
) -> DotChoice | None:
    """Return a choice that keeps the layouts given, if they fit the instruction."""
    if a is None and b is None and c is None:
        return None
    for choice in arrangements(shape, warps, atom):
        made = DotChoice(atom.name, a or choice.a, b or choice.b, c or choice.c)
        if fits(made.a, made.b, made.c, atom):
            return made
    return None


def _traffic(choice: DotChoice, shape: tuple[int, int, int]) -> float:
    """Elements of operands that a thread holds: fewer is better, and copies among warps count double."""
    return choice.a.elements + choice.b.elements + 4 * (choice.c.replication - 1) * choice.c.elements
