"""Operations that act on each element alone, on scalars and on tiles alike."""

from __future__ import annotations

from dataclasses import replace

from tilus.dtypes import DType, boolean, int32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir.core import Operation, Value, attribute, op, operand, operands
from tilus.ir.types import PointerType, RegisterType, ScalarType, Type
from tilus.layout import RegisterLayout

UNARY_ANY = ("neg", "abs")
UNARY_INTEGER = ("popcount", "clz", "ctz", "brev")
UNARY_FLOAT = (
    "exp", "exp2", "log", "log2", "sin", "cos", "tanh", "sqrt", "rsqrt", "rcp", "erf", "floor", "ceil", "round",
    "trunc", "isnan", "isinf", "fast_exp", "fast_exp2", "fast_rcp",
)  # fmt: skip
UNARY_LOGIC = ("not",)
BINARY_ARITHMETIC = ("add", "sub", "mul", "min", "max", "mod", "pow")
BINARY_FLOAT = ("div",)
BINARY_INTEGER = ("floordiv", "shl", "shr", "mulhi")
BINARY_LOGIC = ("and", "or", "xor")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
Elementwise = ScalarType | RegisterType


def element_type(value: Value) -> DType:
    """Return the dtype of a scalar or a tile."""
    if not isinstance(value.type, (ScalarType, RegisterType)):
        raise TypeMismatch(f"arithmetic takes scalars and register tiles, not {value.type}")
    return value.type.dtype


def with_dtype(type: Type, dtype: DType) -> Type:
    """Return the scalar or tile type with another dtype."""
    assert isinstance(type, (ScalarType, RegisterType))
    return replace(type, dtype=dtype)


def same_type(opcode: str, a: Value, b: Value) -> Type:
    """Check that two operands agree in kind, dtype and shape; return the type, with a layout if either has one."""
    if element_type(a) != element_type(b):
        raise TypeMismatch(
            f"{opcode} takes two operands of one dtype, not {element_type(a)} and {element_type(b)}"
        )
    if type(a.type) is not type(b.type):
        raise TypeMismatch(f"{opcode} takes two scalars or two tiles, not {a.type} and {b.type}")
    if isinstance(a.type, RegisterType) and isinstance(b.type, RegisterType):
        if a.type.shape != b.type.shape:
            raise ShapeMismatch(f"{opcode} takes tiles of one shape, not {a.type.shape} and {b.type.shape}")
        return a.type if a.type.layout is not None else b.type
    return a.type


@op("unary", pure=True)
class Unary(Operation):
    """A function of one element; `kind` is one of the UNARY names."""

    kind: str = attribute()
    x: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        dtype = element_type(self.x)
        allowed = (
            self.kind in UNARY_ANY and dtype is not boolean
            or self.kind in UNARY_FLOAT and dtype.is_float
            or self.kind in UNARY_INTEGER and dtype.is_integer
            or self.kind in UNARY_LOGIC and not dtype.is_float
        )  # fmt: skip
        if not allowed:
            raise TypeMismatch(f"{self.kind} does not take {dtype}")
        if self.kind in ("isnan", "isinf"):
            return (with_dtype(self.x.type, boolean),)
        if self.kind in ("popcount", "clz", "ctz"):
            return (with_dtype(self.x.type, int32),)
        return (self.x.type,)


@op("binary", pure=True)
class Binary(Operation):
    """A function of two elements; `kind` is one of the BINARY names.

    Integer division and mod round to minus infinity. A shift by the width or more leaves 0, or the sign.
    The minimum and the maximum with NaN are NaN, and -0 is less than 0.
    """

    kind: str = attribute()
    a: Value = operand()
    b: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        type = same_type(self.kind, self.a, self.b)
        dtype = element_type(self.a)
        allowed = (
            self.kind in BINARY_ARITHMETIC and dtype is not boolean
            or self.kind in BINARY_FLOAT and dtype.is_float
            or self.kind in BINARY_INTEGER and dtype.is_integer
            or self.kind in BINARY_LOGIC and not dtype.is_float
        )  # fmt: skip
        if not allowed:
            raise TypeMismatch(f"{self.kind} does not take {dtype}")
        return (type,)


@op("compare", pure=True)
class Compare(Operation):
    """A comparison; `kind` is one of eq, ne, lt, le, gt, ge. Comparisons with NaN are false, but for ne."""

    kind: str = attribute()
    a: Value = operand()
    b: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        if self.kind not in COMPARISONS:
            raise TypeMismatch(f"no comparison named {self.kind}; there are {', '.join(COMPARISONS)}")
        return (with_dtype(same_type(self.kind, self.a, self.b), boolean),)


@op("select", pure=True)
class Select(Operation):
    """Element of `a` where `cond` is true, else of `b`."""

    cond: Value = operand()
    a: Value = operand()
    b: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        type = same_type("where", self.a, self.b)
        if element_type(self.cond) is not boolean:
            raise TypeMismatch(f"where takes a boolean condition, not {element_type(self.cond)}")
        if isinstance(type, RegisterType):
            if not isinstance(self.cond.type, RegisterType) or self.cond.type.shape != type.shape:
                raise ShapeMismatch(f"where takes a condition of shape {type.shape}, not {self.cond.type}")
        elif not isinstance(self.cond.type, ScalarType):
            raise TypeMismatch(f"where with scalar branches takes a scalar condition, not {self.cond.type}")
        return (type,)


@op("cast", pure=True)
class Cast(Operation):
    """Conversion by value: to nearest even, saturating for types without infinity; float to integer truncates.

    Integer to integer keeps the low bits. A boolean is what is not zero.

    With `arranged`, each thread's codes lie in the order of bits that the cast to `dtype` prefers, as weights are
    prepacked, and none is infinite or NaN; the result is then the value divided by ``2**exponent``. With `biased`, too,
    it is the value plus what the code of zero becomes, which depends on the place among the thread's codes.
    """

    x: Value = operand()
    dtype: DType = attribute()
    arranged: bool = attribute(default=False)
    exponent: int = attribute(default=0)
    biased: bool = attribute(default=False)

    def infer(self) -> tuple[Type, ...]:
        element_type(self.x)
        if self.exponent and not self.arranged:
            raise TypeMismatch("only a cast of arranged codes leaves a power of two out")
        if self.biased and not self.arranged:
            raise TypeMismatch("only a cast of arranged codes leaves an offset")
        if self.arranged and not isinstance(self.x.type, RegisterType):
            raise TypeMismatch(f"only a tile's codes may lie arranged, not those of {self.x.type}")
        return (with_dtype(self.x.type, self.dtype),)


@op("cast_random", pure=True)
class CastRandom(Operation):
    """Conversion with 32 random bits for each element, so that rounding is right on average.

    A value a fraction f of the way from one number of `dtype` to the next becomes that one with probability f: away
    from zero for floats, up for integers. Beyond the ends of the range it saturates.
    """

    x: Value = operand()
    random: Value = operand()
    dtype: DType = attribute()

    def infer(self) -> tuple[Type, ...]:
        source, bits = self.x.type, self.random.type
        fits = (
            isinstance(source, RegisterType) and isinstance(bits, RegisterType) and bits.shape == source.shape
        )
        if not fits or element_type(self.random).name != "uint32":
            raise TypeMismatch(f"a cast of {source} takes random bits of its shape in uint32, not {bits}")
        own = element_type(self.x)
        narrow = self.dtype.is_integer or (self.dtype.kind == "float" and self.dtype.bits <= 8)
        if own.kind != "float" or not 16 <= own.bits <= 32 or not narrow:
            raise TypeMismatch(
                "a cast at random is from float16, bfloat16 or float32 to an integer or a float of at most 8 bits, not "
                f"from {own} to {self.dtype}"
            )
        return (with_dtype(source, self.dtype),)


@op("view", pure=True)
class View(Operation):
    """The same bits of each thread as another dtype, shape and layout; costs nothing.

    Each thread's bits are the little-endian concatenation of its local elements.
    """

    x: Value = operand()
    dtype: DType = attribute()
    shape: tuple[int, ...] = attribute()
    layout: RegisterLayout | None = attribute(default=None)

    def infer(self) -> tuple[Type, ...]:
        if not isinstance(self.x.type, RegisterType):
            raise TypeMismatch(f"view takes a register tile, not {self.x.type}")
        made = RegisterType(self.dtype, self.shape, self.layout)
        old = self.x.type
        if self.layout is not None and self.layout.shape != self.shape:
            raise ShapeMismatch(f"view to shape {self.shape} with a layout of shape {self.layout.shape}")
        if self.layout is None and made.size * self.dtype.bits != old.size * old.dtype.bits:
            raise ShapeMismatch(
                f"view keeps the number of bits: {old.dtype}{list(old.shape)} has {old.size * old.dtype.bits}, "
                f"{self.dtype}{list(self.shape)} has {made.size * self.dtype.bits}"
            )
        return (made,)


@op("inline_ptx", pure=False)
class InlinePtx(Operation):
    """PTX written by the user, once for each element.

    `template` names operands $0, $1, ...: results first, then inputs. Inputs are scalars or tiles of one shape.
    """

    template: str = attribute()
    args: tuple[Value, ...] = operands()
    dtypes: tuple[DType, ...] = attribute()
    shape: tuple[int, ...] | None = attribute(default=None)
    volatile: bool = attribute(default=False)

    def infer(self) -> tuple[Type, ...]:
        layout = None
        for value in self.args:
            element_type(value)
            if isinstance(value.type, RegisterType):
                if self.shape is None or value.type.shape != self.shape:
                    raise ShapeMismatch(
                        f"inline PTX takes tiles of shape {self.shape}, not {value.type.shape}"
                    )
                layout = value.type.layout or layout
        if self.shape is None:
            return tuple(ScalarType(d) for d in self.dtypes)
        return tuple(RegisterType(d, self.shape, layout) for d in self.dtypes)


@op("pointer_of", pure=True)
class PointerOf(Operation):
    """The pointer of a global tensor."""

    tensor: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        from tilus.ir.types import GlobalType

        if not isinstance(self.tensor.type, GlobalType):
            raise TypeMismatch(f"pointer_of takes a global tensor, not {self.tensor.type}")
        return (PointerType(self.tensor.type.dtype, self.tensor.type.align),)
