"""Math functions of floats, from PTX's approximate instructions.

Errors (float32, relative unless said): exp2 2 ulp; exp about 2 ulp + |x| * 2**-23; log2 and log 2**-22 absolute
near 1, else 2 ulp; rsqrt 2 ulp; rcp, sqrt correctly rounded. 16-bit floats are computed in float32.
"""

from __future__ import annotations

import math

from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.codegen.registers import llvm_type
from tilus.codegen.target import Target
from tilus.dtypes import DType, float32
from tilus.errors import TypeMismatch

_ROUNDINGS = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint"}
_SUFFIX = {"half": "f16", "bfloat": "bf16", "float": "f32", "double": "f64"}


def float_function(w: Writer, target: Target, kind: str, dtype: DType, x: V) -> V:
    """Return a function of a float element."""
    if kind in ("isnan", "isinf"):
        if kind == "isnan":
            return w.value("i1", f"fcmp uno {x}, {x.name}")
        size = w.call(x.type, f"llvm.fabs.{_SUFFIX[x.type]}", x)
        return w.value("i1", f"fcmp oeq {size}, {floating(math.inf, x.type).name}")
    if x.type in ("half", "bfloat"):
        wide = float_function(w, target, kind, float32, w.convert("fpext", x, "float"))
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
        raise TypeMismatch(f"{kind} does not take {dtype}", hint="cast to float32 first")
    function = _FUNCTIONS.get(kind)
    if function is None:
        raise TypeMismatch(f"{kind} does not take {dtype}")
    return function(w, x)


def _mul(w: Writer, a: V, b: float) -> V:
    return w.value(a.type, f"fmul {a}, {floating(b, a.type).name}")


def _exp2(w: Writer, x: V) -> V:
    return w.call("float", "llvm.nvvm.ex2.approx.f32", x)


def _exp(w: Writer, x: V) -> V:
    return _exp2(w, _mul(w, x, math.log2(math.e)))


def _log2(w: Writer, x: V) -> V:
    return w.call("float", "llvm.nvvm.lg2.approx.f", x)


def _log(w: Writer, x: V) -> V:
    return _mul(w, _log2(w, x), math.log(2.0))


def _rsqrt(w: Writer, x: V) -> V:
    return w.call("float", "llvm.nvvm.rsqrt.approx.f", x)


_FUNCTIONS = {"exp2": _exp2, "exp": _exp, "log2": _log2, "log": _log, "rsqrt": _rsqrt}

__all__ = ["float_function", "integer", "llvm_type"]
