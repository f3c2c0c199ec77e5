"""Division of a register layout by an instruction's layout, which is how instructions are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.layout.errors import LayoutError
from tilus.layout.register import (
    Digit,
    Digits,
    RegisterLayout,
    check_same_rank,
    divide_shape,
    strip_inner,
    unscale,
)


@dataclass(frozen=True)
class Tiling:
    """How a layout is made of instances of an atom, up to the order of each thread's own elements.

    Parameters
    ----------
    quotient : RegisterLayout
        Which instances there are: its threads are the groups of threads that execute one instance together, its
        elements the instances that each group executes.
    atom : RegisterLayout
        The atom.
    table : tuple of tuple of int
        ``table[q][a]`` is the element number, in the layout that was divided, of element ``a`` of instance ``q``.
    """

    quotient: RegisterLayout
    atom: RegisterLayout
    table: tuple[tuple[int, ...], ...]

    def element(self, q_local: int, a_local: int) -> int:
        """Return the layout's element number of element ``a_local`` of instance ``q_local``."""
        return self.table[q_local][a_local]

    def elements(self, q_local: int) -> list[int]:
        """Return the layout's element numbers of an instance, in the atom's order."""
        return list(self.table[q_local])


def tile_by(layout: RegisterLayout, atom: RegisterLayout) -> Tiling | None:
    """Divide a layout by an instruction's layout, whatever the order of each thread's own elements.

    Parameters
    ----------
    layout : RegisterLayout
        The layout to be divided.
    atom : RegisterLayout
        The layout that the instruction fixes.

    Returns
    -------
    Tiling or None
        None where the layout is not made of instances of the atom. Otherwise, for every thread ``t`` and elements
        ``q`` of the quotient and ``a`` of the atom, ``layout.index(t, tiling.element(q, a))`` equals
        ``(tiling.quotient * atom).index(t, q * atom.elements + a)``.
    """
    try:
        return explain_tile_by(layout, atom)
    except LayoutError:
        return None


def explain_tile_by(layout: RegisterLayout, atom: RegisterLayout) -> Tiling:
    """Do what `tile_by` does, and raise a `LayoutError` that says why where there is no tiling."""
    check_same_rank("tile", layout, atom)
    shape = divide_shape(layout, atom)
    # What a thread holds is what its digits leave, so only the thread digits decide whether there is a tiling.
    spatial_digits = unscale(
        layout, atom, strip_inner("thread", layout, layout.spatial_digits, atom, atom.spatial_digits)
    )
    quotient = _in_the_layouts_order(layout, atom, shape, spatial_digits)
    if quotient is None:
        quotient = RegisterLayout(shape, spatial_digits, _complement(shape, spatial_digits))
    numbers = {layout.element_index(element): element for element in range(layout.elements)}
    inner = [atom.element_index(a) for a in range(atom.elements)]
    table = []
    for q in range(quotient.elements):
        first = tuple(i * n for i, n in zip(quotient.element_index(q), atom.shape, strict=True))
        table.append(
            tuple(numbers[tuple(i + j for i, j in zip(first, index, strict=True))] for index in inner)
        )
    return Tiling(quotient, atom, tuple(table))


def _in_the_layouts_order(
    layout: RegisterLayout, atom: RegisterLayout, shape: tuple[int, ...], spatial_digits: Digits
) -> RegisterLayout | None:
    """Return the quotient whose element digits are the layout's outer ones, in their order, if they can be cut."""
    digits = []
    for digit in layout.local_digits:
        assert digit.dim is not None
        extent = atom.shape[digit.dim]
        if digit.stride % extent == 0:
            digits.append(Digit(digit.size, digit.dim, digit.stride // extent))
        elif extent < digit.stride * digit.size:
            inside = extent // digit.stride
            if extent % digit.stride or digit.size % inside:
                return None
            digits.append(Digit(digit.size // inside, digit.dim, 1))
    try:
        return RegisterLayout(shape, spatial_digits, tuple(digits))
    except LayoutError:
        return None


def _complement(shape: tuple[int, ...], spatial_digits: Digits) -> Digits:
    """Return the element digits, in row-major order, that complete thread digits to a layout of a shape."""
    digits: list[Digit] = []
    for dim, extent in enumerate(shape):
        chain = sorted((d for d in spatial_digits if d.dim == dim), key=lambda d: d.stride)
        reach = 1
        gaps = []
        for stride, size in [*((d.stride, d.size) for d in chain), (extent, 1)]:
            if stride % reach:
                raise LayoutError(
                    f"the thread digits of dimension {dim} leave no whole digits for the elements"
                )
            gaps.append(Digit(stride // reach, dim, reach))
            reach = stride * size
        digits += reversed(gaps)
    return tuple(digits)
