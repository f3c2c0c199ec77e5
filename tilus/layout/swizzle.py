"""XOR swizzles of memory offsets."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.layout.errors import LayoutError


@dataclass(frozen=True)
class Swizzle:
    """The map ``offset ^ ((offset >> shift) & mask)`` with ``mask = ((1 << bits) - 1) << base``.

    Parameters
    ----------
    bits : int
        How many bits of the offset change.
    base : int
        The lowest bit that changes; runs of ``2 ** base`` offsets stay together.
    shift : int
        How far above them the bits lie that they are combined with; at least ``bits``, so that the map is its
        own inverse.
    """

    bits: int
    base: int
    shift: int

    def __post_init__(self) -> None:
        if self.bits < 1 or self.base < 0 or self.shift < self.bits:
            raise LayoutError(
                f"Swizzle(bits={self.bits}, base={self.base}, shift={self.shift}) is impossible: expected bits of at "
                f"least 1, base of at least 0, and shift of at least bits"
            )

    @property
    def mask(self) -> int:
        """The bits that change."""
        return ((1 << self.bits) - 1) << self.base

    @property
    def source(self) -> int:
        """The bits that they are combined with."""
        return self.mask << self.shift

    @property
    def run(self) -> int:
        """How many neighbouring offsets stay together."""
        return 1 << self.base

    @property
    def block(self) -> int:
        """The length of the aligned blocks of memory that the map permutes within."""
        return 1 << (self.base + self.bits)

    @property
    def period(self) -> int:
        """The distance after which the pattern repeats."""
        return 1 << (self.base + self.bits + self.shift)

    def __call__(self, offset: int) -> int:
        """Return the place of an offset."""
        return offset ^ ((offset >> self.shift) & self.mask)

    def rescaled(self, factor_log2: int) -> Swizzle:
        """Return the same swizzle for units that are ``2 ** factor_log2`` times smaller."""
        return Swizzle(self.bits, self.base + factor_log2, self.shift)

    def __str__(self) -> str:
        return f"Swizzle({self.bits}, {self.base}, {self.shift})"
