"""Math functions of floats: PTX's own instructions where they are accurate, polynomials where they are not.

Errors of float32, in units in the last place of the exact result (tested on the simulator with exact ``ex2``; the ISA
allows that instruction 2 more, which are counted in):

============  =====  ===================================================================================
exp2          2      the instruction
exp           3      its argument in two parts; 12 units of the smallest subnormal below 2**-126
log, log2     2
sin, cos      2      for abs(x) <= 1e5; beyond, 1e-6 absolute up to 1e6, then within [-1, 1] but meaningless
tanh          4
erf           3
rsqrt         2      the instruction
sqrt, rcp     0.5    correctly rounded
fast_exp2     2      one instruction
fast_exp      70     one more, which rounds the argument: the error grows with it, and is 2 where abs(x) <= 1
fast_rcp      1      one instruction
============  =====  ===================================================================================

The fast ones take numbers below 2**-126, given or found, for zero.

16-bit floats are computed in float32 and rounded once; bfloat16 uses the instructions ``lg2.approx`` and
``tanh.approx``, whose errors its rounding hides.

Coefficients: weighted least squares at Chebyshev nodes, reweighted (Lawson) until the relative error is level,
rounded to float32 one after the other with those left fitted anew.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.codegen.registers import llvm_type
from tilus.codegen.target import Target
from tilus.dtypes import DType, bfloat16, float32
from tilus.errors import TypeMismatch

_ROUNDINGS = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint"}
_SUFFIX = {"half": "f16", "bfloat": "bf16", "float": "f32", "double": "f64"}


def float_function(w: Writer, target: Target, kind: str, dtype: DType, x: V) -> V:
    """Return a function of a float element.

    Parameters
    ----------
    w : Writer
    target : Target
    kind : str
        Such as ``exp``; see `tilus.ir.ops.Unary`.
    dtype : DType
        The element's type.
    x : V
        The element: half, bfloat, float or double.

    Raises
    ------
    TypeMismatch
        For a function that float64 does not have.
    """
    if kind in ("isnan", "isinf"):
        if kind == "isnan":
            return w.value("i1", f"fcmp uno {x}, {x.name}")
        size = w.call(x.type, f"llvm.fabs.{_SUFFIX[x.type]}", x)
        return w.value("i1", f"fcmp oeq {size}, {floating(math.inf, x.type).name}")
    if x.type in ("half", "bfloat"):
        single = w.convert("fpext", x, "float")
        short = _BFLOAT.get(kind) if dtype == bfloat16 else None
        wide = short(w, single) if short is not None else float_function(w, target, kind, float32, single)
        return w.convert("fptrunc", wide, x.type)
    if kind in _ROUNDINGS:
        return w.call(x.type, f"llvm.{_ROUNDINGS[kind]}.{_SUFFIX[x.type]}", x)
    if kind == "sqrt":
        return w.call(x.type, f"llvm.sqrt.{_SUFFIX[x.type]}", x)
    if kind == "rcp":
        return w.value(x.type, f"fdiv {floating(1.0, x.type)}, {x.name}")
    if x.type == "double":
        if kind == "rsqrt":
            root = w.call(x.type, "llvm.sqrt.f64", x)
            return w.value(x.type, f"fdiv {floating(1.0, x.type)}, {root.name}")
        raise TypeMismatch(
            f"{kind.replace('fast_', 'a fast ')} does not take {dtype}", hint="cast to float32 first"
        )
    function = _FUNCTIONS.get(kind)
    if function is None:
        raise TypeMismatch(f"{kind} does not take {dtype}")
    return function(w, x)


def float32_parts(value: float, parts: int) -> list[float]:
    """Return float32 numbers whose sum is a float64, each the rest that those before it leave."""
    made = []
    for _ in range(parts):
        part = struct.unpack("<f", struct.pack("<f", value))[0]
        made.append(part)
        value -= part
    return made


# log2(e), ln(2) and pi / 2 as sums; pi / 2 has more digits than a float64.
_LOG2E = float32_parts(math.log2(math.e), 2)
_LN2 = float32_parts(math.log(2.0), 2)
_HALF_PI = [*float32_parts(math.pi / 2, 2), -1.7151245100058819e-15]

_SIN = (-0.16666655242443085, 0.008332191035151482, -0.00019518619228620082)
_COS = (0.04166664555668831, -0.0013887310633435845, 2.4432563805021346e-05)
_TANH = (
    -0.33333298563957214,
    0.13331936299800873,
    -0.05378471687436104,
    0.02079862542450428,
    -0.005897966679185629,
)
_ERF = (
    0.12837916612625122, -0.3761262595653534, 0.11283578723669052, -0.026853347197175026, 0.005187162198126316,
    -0.0007997853099368513, 7.806903158780187e-05,
)  # fmt: skip
_LOG2_ERFC = (
    -0.0004927100380882621, -1.6260459423065186, -0.9206485748291016, -0.14875131845474243, 0.031505465507507324,
    -0.0042525045573711395, 0.00026887969579547644,
)  # fmt: skip
_LOG1P = (
    0.3333333134651184, -0.2500081956386566, 0.2000124156475067, -0.166234090924263, 0.14201579988002777,
    -0.13159610331058502, 0.12762217223644257, -0.07636439055204391,
)  # fmt: skip

_SQRT_HALF_BITS = 0x3F3504F3
_TANH_SPLIT, _ERF_SPLIT, _ERF_END = 0.6, 1.0, 4.0


def _constant(value: float) -> V:
    return floating(value, "float")


def _mul(w: Writer, a: V, b: V | float) -> V:
    other = b if isinstance(b, V) else _constant(b)
    return w.value("float", f"fmul {a}, {other.name}")


def _add(w: Writer, a: V, b: V | float) -> V:
    other = b if isinstance(b, V) else _constant(b)
    return w.value("float", f"fadd {a}, {other.name}")


def _fma(w: Writer, a: V, b: V | float, c: V | float) -> V:
    args = [v if isinstance(v, V) else _constant(v) for v in (a, b, c)]
    return w.call("float", "llvm.fma.f32", *args)


def _negate(w: Writer, x: V) -> V:
    return w.value("float", f"fneg {x}")


def _size(w: Writer, x: V) -> V:
    return w.call("float", "llvm.fabs.f32", x)


def _with_sign(w: Writer, size: V, sign: V) -> V:
    return w.call("float", "llvm.copysign.f32", size, sign)


def _less(w: Writer, a: V, b: float) -> V:
    """Tell whether a is less; false for NaN."""
    return w.value("i1", f"fcmp olt {a}, {_constant(b).name}")


def _polynomial(w: Writer, x: V, coefficients: Sequence[float]) -> V:
    """Return the sum of ``coefficients[i] * x**i`` by Horner's rule."""
    total: V | float = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = _fma(w, x, total, coefficient)
    assert isinstance(total, V)
    return total


def _exp2(w: Writer, x: V) -> V:
    return w.call("float", "llvm.nvvm.ex2.approx.f32", x)


def _fast_exp2(w: Writer, x: V) -> V:
    return w.asm("float", "ex2.approx.ftz.f32 $0, $1;", "=f,f", x)


def _fast_exp(w: Writer, x: V) -> V:
    return _fast_exp2(w, _mul(w, x, math.log2(math.e)))


def _fast_rcp(w: Writer, x: V) -> V:
    return w.asm("float", "rcp.approx.ftz.f32 $0, $1;", "=f,f", x)


def _log2_short(w: Writer, x: V) -> V:
    return w.call("float", "llvm.nvvm.lg2.approx.f", x)


def _log_short(w: Writer, x: V) -> V:
    return _mul(w, _log2_short(w, x), math.log(2.0))


def _exp_short(w: Writer, x: V) -> V:
    return _exp2(w, _mul(w, x, math.log2(math.e)))


def _tanh_short(w: Writer, x: V) -> V:
    return w.asm("float", "tanh.approx.f32 $0, $1;", "=f,f", x)


def _rsqrt(w: Writer, x: V) -> V:
    return w.call("float", "llvm.nvvm.rsqrt.approx.f", x)


def _reciprocal_short(w: Writer, x: V) -> V:
    return w.asm("float", "rcp.approx.f32 $0, $1;", "=f,f", x)


def _exp(w: Writer, x: V) -> V:
    """``2**t * (1 + rest * ln(2))``, where t + rest is x * log2(e) to twice the digits."""
    t = _mul(w, x, _LOG2E[0])
    rest = _fma(w, x, _LOG2E[1], _fma(w, x, _LOG2E[0], _negate(w, t)))
    power = _exp2(w, t)
    exact = _fma(w, power, _mul(w, rest, math.log(2.0)), power)
    # Where 2**t is infinite or zero for good the rest may be NaN. The results lie at -150 < t < 128.
    inside = _less(w, _size(w, _add(w, t, 11.0)), 139.0)
    return w.select(inside, exact, power)


def _split_log(w: Writer, x: V) -> tuple[V, V, V]:
    """Return e, f and log(1 + f) - f, where x is ``2**e * (1 + f)`` and 1 + f lies between sqrt(1/2) and sqrt(2)."""
    tiny = _less(w, x, 2.0**-126)
    scaled = w.select(tiny, _mul(w, x, 2.0**23), x)
    bits = w.convert("bitcast", scaled, "i32")
    from_root = w.binary("sub", bits, integer(_SQRT_HALF_BITS))
    mantissa = w.add(w.binary("and", from_root, integer(0x7FFFFF)), integer(_SQRT_HALF_BITS))
    exponent = w.convert("sitofp", w.binary("ashr", from_root, integer(23)), "float")
    exponent = _add(w, exponent, w.select(tiny, _constant(-23.0), _constant(0.0)))
    f = _add(w, w.convert("bitcast", mantissa, "float"), -1.0)
    square = _mul(w, f, f)
    tail = _fma(w, _mul(w, square, f), _polynomial(w, f, _LOG1P), _mul(w, square, -0.5))
    return exponent, f, tail


def _log_ends(w: Writer, x: V, value: V) -> V:
    """Put in what a logarithm is at zero, below it, at infinity and NaN."""
    positive = w.value("i1", f"fcmp ogt {x}, {_constant(0.0).name}")
    finite = _less(w, x, math.inf)
    zero = w.value("i1", f"fcmp oeq {x}, {_constant(0.0).name}")
    ends = w.select(zero, _constant(-math.inf), w.select(positive, x, _constant(math.nan)))
    return w.select(w.binary("and", positive, finite), value, ends)


def _log(w: Writer, x: V) -> V:
    exponent, f, tail = _split_log(w, x)
    low = _fma(w, exponent, _LN2[1], tail)
    return _log_ends(w, x, _fma(w, exponent, _LN2[0], _add(w, f, low)))


def _log2(w: Writer, x: V) -> V:
    exponent, f, tail = _split_log(w, x)
    # (f + tail) * log2(e) with the product of the leading parts exact.
    product = _mul(w, f, _LOG2E[0])
    rest = _fma(w, f, _LOG2E[0], _negate(w, product))
    rest = _fma(w, tail, _LOG2E[0], _fma(w, f, _LOG2E[1], rest))
    return _log_ends(w, x, _add(w, exponent, _add(w, product, rest)))


def _turns(w: Writer, x: V) -> tuple[V, V]:
    """Return how many quarter turns x is from the nearest multiple of pi / 2, as an i32, and what is left."""
    count = w.call("float", "llvm.rint.f32", _mul(w, x, 2.0 / math.pi))
    left = x
    for part in _HALF_PI:
        left = _fma(w, count, -part, left)
    # Far beyond the range that the three parts serve, what is left is noise: keep it where the polynomials are bounded.
    near = _less(w, _size(w, left), 1.0)
    bounded = w.select(near, left, _constant(0.0))
    finite = _less(w, _size(w, x), math.inf)
    left = w.select(finite, bounded, _constant(math.nan))
    return w.call("i32", "llvm.fptosi.sat.i32.f32", count), left


def _sine_of(w: Writer, x: V, quarter: int) -> V:
    """Return sin(x + quarter * pi / 2)."""
    turns, r = _turns(w, x)
    if quarter:
        turns = w.add(turns, integer(quarter))
    square = _mul(w, r, r)
    sine = _fma(w, _mul(w, square, r), _polynomial(w, square, _SIN), r)
    cosine = _fma(w, _mul(w, square, square), _polynomial(w, square, _COS), _fma(w, square, -0.5, 1.0))
    odd = w.icmp("ne", w.binary("and", turns, integer(1)), integer(0))
    value = w.convert("bitcast", w.select(odd, cosine, sine), "i32")
    sign = w.binary("shl", w.binary("and", turns, integer(2)), integer(30))
    return w.convert("bitcast", w.binary("xor", value, sign), "float")


def _sin(w: Writer, x: V) -> V:
    # Sums lose the sign of zero.
    return w.select(_less(w, _size(w, x), 2.0**-14), x, _sine_of(w, x, 0))


def _cos(w: Writer, x: V) -> V:
    return _sine_of(w, x, 1)


def _tanh(w: Writer, x: V) -> V:
    """A polynomial near zero, ``1 - 2 / (exp(2 * x) + 1)`` elsewhere."""
    size = _size(w, x)
    square = _mul(w, x, x)
    near = _fma(w, _mul(w, square, x), _polynomial(w, square, _TANH), x)
    power = _exp2(w, _mul(w, size, 2.0 * math.log2(math.e)))
    far = _fma(w, _reciprocal_short(w, _add(w, power, 1.0)), -2.0, 1.0)
    return _with_sign(w, w.select(_less(w, size, _TANH_SPLIT), near, far), x)


def _erf(w: Writer, x: V) -> V:
    """A polynomial near zero, one minus two to the polynomial of log2(erfc(abs(x))) elsewhere."""
    size = _size(w, x)
    square = _mul(w, x, x)
    near = _fma(w, x, _polynomial(w, square, _ERF), x)
    # From 4 on the result rounds to 1. (The comparison keeps NaN.)
    bounded = w.select(
        w.value("i1", f"fcmp ogt {size}, {_constant(_ERF_END).name}"), _constant(_ERF_END), size
    )
    far = _add(w, _negate(w, _exp2(w, _polynomial(w, bounded, _LOG2_ERFC))), 1.0)
    return w.select(_less(w, size, _ERF_SPLIT), near, _with_sign(w, far, x))


_FUNCTIONS: dict[str, Callable[[Writer, V], V]] = {
    "exp2": _exp2, "exp": _exp, "log2": _log2, "log": _log, "rsqrt": _rsqrt, "sin": _sin, "cos": _cos, "tanh": _tanh,
    "erf": _erf, "fast_exp": _fast_exp, "fast_exp2": _fast_exp2, "fast_rcp": _fast_rcp,
}  # fmt: skip
_BFLOAT: dict[str, Callable[[Writer, V], V]] = {
    "exp": _exp_short, "log": _log_short, "log2": _log2_short, "tanh": _tanh_short,
}  # fmt: skip

__all__ = ["float32_parts", "float_function", "integer", "llvm_type"]
