"""What a scalar type is: its width, its kind and, for a float, the meaning of its fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from tilus.errors import InvalidValue

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["int", "uint", "float", "bool", "scale", "table"]
"""int (two's complement), uint, float (sign, exponent, mantissa), bool, scale (an unsigned power of two), and
table (a code is an index into a list of values)."""

Specials = Literal["none", "ieee", "all_ones"]
"""Which codes of a float are not finite: none; infinities and NaNs in the topmost exponent as in IEEE 754; or
one NaN of all ones (for each sign) and no infinity."""


@dataclass(frozen=True)
class DType:
    """A scalar type.

    Two types are equal if all their fields are.

    Parameters
    ----------
    name : str
        The name under which tilus exports the type, such as ``float6_e3m2``.
    bits : int
        Bits of an element in memory, where elements lie bit-compact.
    kind : str
        One of ``int``, ``uint``, ``float``, ``bool``, ``scale`` and ``table``.
    short : str
        The short name, such as ``e3m2``, ``u4`` or ``f16``; the textual IR writes this one.
    exponent_bits, mantissa_bits, bias : int
        The fields of a float, which lie below the sign bit in this order; zero for other kinds. A tfloat32
        has 13 unused bits below its mantissa, the other floats none.
    specials : str
        Which codes of a float are infinities and NaN.
    """

    name: str
    bits: int
    kind: Kind
    short: str
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    specials: Specials = "none"

    def __repr__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)

    # The named types are told apart by identity in places: copies of them are they.
    def __copy__(self) -> DType:
        return self

    def __deepcopy__(self, memo: object) -> DType:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        from . import lookup

        return (lookup.dtype, (self.name,)) if self in lookup.NAMED else super().__reduce_ex__(protocol)

    @property
    def nbytes(self) -> int:
        """Bytes of an element; a type that does not fill whole bytes has no such number."""
        if self.bits % 8:
            raise InvalidValue(
                f"{self.name} has {self.bits} bits, which are not whole bytes: "
                "use .bits, or .packed_nbytes(count)"
            )
        return self.bits // 8

    def packed_nbytes(self, count: int) -> int:
        """Bytes that `count` elements take when they lie bit-compact."""
        return (count * self.bits + 7) // 8

    @property
    def is_float(self) -> bool:
        """Whether the type is a float with a sign, an exponent and a mantissa."""
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """Whether the type is a signed or an unsigned integer; a boolean is neither."""
        return self.kind in ("int", "uint")

    @property
    def is_boolean(self) -> bool:
        """Whether the type is the boolean."""
        return self.kind == "bool"

    @property
    def is_table(self) -> bool:
        """Whether a code of the type is an index into a table of values."""
        return self.kind == "table"

    @property
    def is_signed(self) -> bool:
        """Whether the type has negative values."""
        return self.kind in ("int", "float")

    @property
    def is_subbyte(self) -> bool:
        """Whether several elements share a byte."""
        return self.bits < 8

    @property
    def has_inf(self) -> bool:
        """Whether some code is an infinity."""
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        """Whether some code is NaN."""
        return self.specials != "none"

    @property
    def code_bits(self) -> int:
        """Bits of the unsigned integer that holds one code: 8, 16, 32 or 64."""
        return max(8, self.bits)

    @property
    def code_mask(self) -> int:
        """The largest code, all of the type's bits set."""
        return (1 << self.bits) - 1

    @property
    def unused_bits(self) -> int:
        """Bits below the mantissa that carry nothing: 13 for tfloat32, which lies in 32 bits, or 0."""
        if self.kind != "float":
            return 0
        return self.bits - 1 - self.exponent_bits - self.mantissa_bits

    @property
    def sign_code(self) -> int:
        """The sign bit of a float."""
        self._require("float", what="sign bit")
        return 1 << (self.bits - 1)

    @property
    def max_code(self) -> int:
        """The code of the largest finite value of a float or a scale."""
        self._require("float", "scale", what="largest finite code")
        every = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.specials == "ieee":
            every -= 1 << self.mantissa_bits
        elif self.specials == "all_ones":
            every -= 1
        return every << self.unused_bits

    @property
    def inf_code(self) -> int:
        """The code of positive infinity."""
        if not self.has_inf:
            raise InvalidValue(f"{self.name} has no infinity; its largest finite value is {self.max}")
        return ((1 << self.exponent_bits) - 1) << (self.mantissa_bits + self.unused_bits)

    @property
    def nan_code(self) -> int:
        """The one code that `encode` writes for NaN: positive and quiet."""
        if not self.has_nan:
            raise InvalidValue(f"{self.name} has no NaN")
        if self.specials == "all_ones":
            return (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return self.inf_code | 1 << (self.mantissa_bits + self.unused_bits - 1)

    @property
    def max(self) -> int | float:
        """The largest finite value."""
        if self.kind in ("float", "scale"):
            return self.magnitude(self.max_code >> self.unused_bits)
        if self.kind == "bool":
            return 1
        return (1 << (self.bits - (self.kind == "int"))) - 1

    @property
    def min(self) -> int | float:
        """The smallest finite value: the most negative one, or zero, or the smallest scale."""
        if self.kind == "float":
            return -self.max
        if self.kind == "scale":
            return self.magnitude(0)
        return -(1 << (self.bits - 1)) if self.kind == "int" else 0

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with a full mantissa."""
        self._require("float", "scale", what="smallest normal value")
        return self.magnitude(0 if self.kind == "scale" else 1 << self.mantissa_bits)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value; a normal one where the type has no mantissa and so no subnormals."""
        self._require("float", "scale", what="smallest subnormal value")
        return self.magnitude(0 if self.kind == "scale" else 1)

    @property
    def epsilon(self) -> float:
        """The spacing of normal values, relative to the power of two below: ``2**-mantissa_bits``."""
        self._require("float", "scale", what="epsilon")
        return 2.0**-self.mantissa_bits

    @property
    def numpy(self) -> np.dtype[np.generic] | None:
        """NumPy's own type with the same bits, or None."""
        if self.name not in _NUMPY_NAMES:
            return None
        import numpy as np

        return np.dtype(_NUMPY_NAMES[self.name])

    @property
    def code_numpy(self) -> np.dtype[np.generic]:
        """NumPy's unsigned integer type that holds one code."""
        import numpy as np

        return np.dtype(f"uint{self.code_bits}")

    def magnitude(self, code: int) -> float:
        """Return the value of a finite code that has neither its sign nor its unused bits."""
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if self.kind == "scale" or exponent:
            mantissa |= 1 << self.mantissa_bits
        else:
            exponent = 1
        # A Python float holds every finite value of every type exactly.
        return math.ldexp(mantissa, exponent - self.bias - self.mantissa_bits)

    def _require(self, *kinds: Kind, what: str) -> None:
        if self.kind not in kinds:
            raise InvalidValue(f"{self.name} is not a float and has no {what}")


_NUMPY_NAMES = {
    "boolean": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
