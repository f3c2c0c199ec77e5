"""Floating-point arithmetic: binary32 and binary64 in every rounding mode, half and bfloat16, packed pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import rounding
from .decoder import Decoder
from .operations import Map, Operation
from .types import TYPES, ScalarType

FLOAT_TYPES = ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2", "f32x2")
_MODES = ("rn", "rz", "rm", "rp")


_NAN32 = np.array(rounding.CANONICAL_NAN[32], np.uint32).view(np.float32)[()]
_NAN64 = np.array(rounding.CANONICAL_NAN[64], np.uint64).view(np.float64)[()]
_NAN16 = np.array(rounding.CANONICAL_NAN[16], np.uint16).view(np.float16)[()]
_NANS: dict[int, Any] = {2: _NAN16, 4: _NAN32, 8: _NAN64}


def canonical(result: Any) -> Any:
    """NaNs replaced by the canonical one."""
    nan = result != result
    if np.any(nan):
        result = np.asarray(result)
        return np.where(nan, _NANS[result.dtype.itemsize], result)
    return result


def saturated(result: Any) -> Any:
    """Clamped to [0, 1]; NaN becomes +0."""
    result = np.asarray(result)
    one, zero = result.dtype.type(1), result.dtype.type(0)
    return np.where(result > zero, np.minimum(result, one), zero)


def finish(function: Callable[..., Any], ftz: bool, sat: bool, relu: bool = False) -> Callable[..., Any]:
    """Wrap a function of values with flushing, saturation and canonical NaNs."""
    if not ftz and not sat and not relu:
        return lambda *v: canonical(function(*v))

    def apply(*values: Any) -> Any:
        if ftz:
            values = tuple(rounding.flush(v) if np.asarray(v).dtype == np.float32 else v for v in values)
        result = function(*values)
        if ftz and np.asarray(result).dtype == np.float32:
            result = rounding.flush(result)
        if sat:
            return saturated(result)
        if relu:
            result = np.where(
                np.asarray(result) > 0, result, np.where(np.isnan(result), result, result.dtype.type(0))
            )
        return canonical(result)

    return apply


def half_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of binary16 arrays to packed pairs."""

    def apply(*words: Any) -> Any:
        parts = [split_pair(w, np.float16) for w in words]
        return join_pair(np.asarray(function(*parts), np.float16))

    return apply


def split_pair(word: Any, dtype: Any) -> Any:
    """32-bit words to ``[..., 2]`` 16-bit values."""
    word = np.ascontiguousarray(word)
    return word.view(dtype).reshape((*word.shape[:-1], word.shape[-1], 2) if np.ndim(word) else (2,))


def join_pair(values: Any) -> Any:
    """``[..., 2]`` 16-bit values to 32-bit words."""
    return np.ascontiguousarray(values).view(np.uint32)[..., 0]


def bfloat(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of binary32 arrays to bfloat16 bits, rounding the result to nearest."""
    return lambda *bits: rounding.single_to_bfloat(function(*[rounding.bfloat_to_single(b) for b in bits]))


def bfloat_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of bfloat16 bits to packed pairs."""
    return lambda *words: join_pair(function(*[split_pair(w, np.uint16) for w in words]))


def single_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of binary32 arrays to 64-bit pairs."""

    def apply(*words: Any) -> Any:
        parts = []
        for word in words:
            word = np.ascontiguousarray(word)
            parts.append(word.view(np.float32).reshape((*word.shape[:-1], word.shape[-1], 2)))
        return np.ascontiguousarray(np.asarray(function(*parts), np.float32)).view(np.uint64)[..., 0]

    return apply


def by_type(
    type: ScalarType,
    single: Any,
    double: Any,
    half: Any,
    ftz: bool,
    sat: bool,
    relu: bool = False,
    bf: Any = None,
) -> Callable[..., Any]:
    """Choose the function for a type: ``half`` takes binary16 arrays, ``bf`` takes bfloat16 bits."""
    if type.name == "f32":
        return finish(single, ftz, sat, relu)
    if type.name == "f64":
        return finish(double, False, False)
    if type.name == "f32x2":
        return single_pairs(finish(single, ftz, sat))
    if type.name in ("f16", "f16x2"):
        function = finish(_flush_half(half) if ftz else half, False, sat, relu)
        return half_pairs(function) if type.name == "f16x2" else function
    bits = bf if bf is not None else bfloat(single)
    if relu or sat:
        inner = bits

        def bits(*values: Any) -> Any:
            result = rounding.bfloat_to_single(inner(*values))
            limited = (
                saturated(result)
                if sat
                else np.where(result > 0, result, np.where(np.isnan(result), result, 0))
            )
            return rounding.single_to_bfloat(np.asarray(limited, np.float32))

    return bfloat_pairs(bits) if type.name == "bf16x2" else bits


def _flush_half(function: Callable[..., Any]) -> Callable[..., Any]:
    tiny = np.float16(2.0**-14)

    def flush(value: Any) -> Any:
        return np.where(np.abs(value) < tiny, np.copysign(np.float16(0), value), value)

    return lambda *v: flush(function(*[flush(x) for x in v]))


def _modifiers(d: Decoder) -> tuple[ScalarType, str, bool, bool]:
    type = d.type(*FLOAT_TYPES)
    mode = d.take(*_MODES, default="rn")
    if mode != "rn" and type.name not in ("f32", "f64", "f32x2"):
        raise d.fail(f"rounding .{mode} is for f32 and f64")
    return type, mode, d.flag("ftz"), d.flag("sat")


def _mixed_source(d: Decoder, operand: Any, wide: ScalarType, narrow: ScalarType | None) -> Any:
    return d.source(operand, narrow if narrow is not None else wide)


def _decode_add(d: Decoder) -> Operation:
    mixed = _mixed_type(d)
    type, mode, ftz, sat = _modifiers(d)
    d.count(3)
    sign = -1 if d.name == "sub" else 1
    plain = np.add if sign == 1 else np.subtract

    def single(a: Any, b: Any) -> Any:
        return plain(a, b) if mode == "rn" else rounding.add32(a, b if sign == 1 else -np.asarray(b), mode)

    def double(a: Any, b: Any) -> Any:
        return plain(a, b) if mode == "rn" else rounding.add64(a, b if sign == 1 else -np.asarray(b), mode)

    function = by_type(type, single, double, plain, ftz, sat)
    sources = [d.source(d.operands[1], mixed or type), d.source(d.operands[2], type)]
    if mixed is not None:
        function = _widen_first(function, mixed, 1)
    return Map(function, [d.target(d.operands[0], type)], sources)


def _mixed_type(d: Decoder) -> ScalarType | None:
    """The narrow operand type of mixed-precision add, sub and fma (``add.f32.f16``)."""
    if len(d.mods) >= 2 and d.mods[-2] == "f32" and d.mods[-1] in ("f16", "bf16"):
        return TYPES[d.mods.pop()]
    return None


def _widen_first(function: Callable[..., Any], narrow: ScalarType, count: int) -> Callable[..., Any]:
    def widen(value: Any) -> Any:
        return (
            rounding.bfloat_to_single(value)
            if narrow.name == "bf16"
            else np.asarray(value).astype(np.float32)
        )

    return lambda *v: function(*[widen(x) if i < count else x for i, x in enumerate(v)])


def _decode_mul(d: Decoder) -> Operation:
    type, mode, ftz, sat = _modifiers(d)
    d.count(3)
    function = by_type(
        type,
        np.multiply if mode == "rn" else partial(rounding.mul32, mode=mode),
        np.multiply if mode == "rn" else partial(rounding.mul64, mode=mode),
        np.multiply,
        ftz,
        sat,
    )
    return Map(function, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _fma_bits(a: Any, b: Any, c: Any) -> Any:
    return rounding.fma_bfloat(*[rounding.bfloat_to_single(v) for v in (a, b, c)])


def _decode_fma(d: Decoder) -> Operation:
    mixed = _mixed_type(d)
    type, mode, ftz, sat = _modifiers(d)
    relu = d.flag("relu")
    oob = d.flag("oob")
    d.count(4)
    function = by_type(
        type,
        partial(rounding.fma32, mode=mode),
        partial(rounding.fma64, mode=mode),
        rounding.fma_half,
        ftz,
        sat,
        relu,
        _fma_bits,
    )
    if oob:
        function = _out_of_bounds_nan(function, type)
    narrow = mixed or type
    sources = [
        d.source(d.operands[1], narrow),
        d.source(d.operands[2], narrow),
        d.source(d.operands[3], type),
    ]
    if mixed is not None:
        function = _widen_first(function, mixed, 2)
    return Map(function, [d.target(d.operands[0], type)], sources)


def _out_of_bounds_nan(function: Callable[..., Any], type: ScalarType) -> Callable[..., Any]:
    """``fma.oob``: the result is zero where an input is the out-of-bounds NaN 0xffff."""

    def apply(*values: Any) -> Any:
        result = np.ascontiguousarray(function(*values)).view(np.uint16)
        for value in values:
            bits = np.ascontiguousarray(np.broadcast_to(value, np.shape(values[0]))).view(np.uint16)
            result = np.where(bits.reshape(result.shape) == 0xFFFF, np.uint16(0), result)
        return np.ascontiguousarray(result).view(type.dtype)

    return apply


def _decode_div(d: Decoder) -> Operation:
    type = d.type("f32", "f64")
    mode = d.take(*_MODES, "approx", "full")
    ftz = d.flag("ftz")
    d.count(3)
    if mode in ("approx", "full", None):
        function = finish(_approximate_division if mode == "approx" else np.divide, ftz, False)
    else:
        function = by_type(
            type, partial(rounding.div32, mode=mode), partial(rounding.div64, mode=mode), None, ftz, False
        )
    return Map(function, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _approximate_division(a: Any, b: Any) -> Any:
    """Divisors from 2**126 on give 0 (NaN for an infinite dividend), as the ISA says."""
    huge = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    result = np.divide(a, b)
    if not np.any(huge):
        return result
    flushed = np.where(np.isinf(a), np.float32(np.nan), np.float32(0))
    return np.where(huge, flushed, result)


def _unary_float(single: Any, double: Any = None, half: Any = None) -> Callable[[Decoder], Operation]:
    """Approximations are computed in binary64 and rounded once, which is within the error the ISA allows."""

    def decode(d: Decoder) -> Operation:
        type = d.type(*FLOAT_TYPES)
        mode = d.take(*_MODES, "approx")
        ftz = d.flag("ftz")
        d.count(2)
        via = _through_double(single)
        if type.name == "f64":
            # With .ftz only the upper half of the result is given, to start an iteration from.
            gross = ftz and mode == "approx"
            function = finish(_gross64(double or single) if gross else (double or single), False, False)
        else:
            function = by_type(
                type,
                via,
                None,
                half or (lambda a: via(np.asarray(a, np.float32)).astype(np.float16)),
                ftz,
                False,
            )
        if mode in ("rz", "rm", "rp", "rn") and d.name in ("rcp", "sqrt"):
            function = _directed_unary(d.name, type, mode, ftz)
        return Map(function, [d.target(d.operands[0], type)], [d.source(d.operands[1], type)])

    return decode


def _through_double(function: Any) -> Callable[[Any], Any]:
    return lambda a: np.asarray(function(np.asarray(a).astype(np.float64))).astype(np.float32)


def _directed_unary(name: str, type: ScalarType, mode: str, ftz: bool) -> Callable[..., Any]:
    if name == "rcp":
        return by_type(
            type,
            lambda a: rounding.div32(np.float32(1), a, mode),
            lambda a: rounding.div64(np.float64(1), a, mode),
            None,
            ftz,
            False,
        )
    return by_type(
        type, partial(rounding.sqrt32, mode=mode), partial(rounding.sqrt64, mode=mode), None, ftz, False
    )


def _rsqrt(a: Any) -> Any:
    return 1.0 / np.sqrt(a)


def _finite_only(function: Any) -> Any:
    return lambda a: np.where(np.isfinite(a), function(np.where(np.isfinite(a), a, 0.0)), np.nan)


def _gross64(function: Any) -> Any:
    """rcp.approx.ftz.f64 and rsqrt.approx.f64: only the upper 32 bits of the result are meaningful."""

    def apply(a: Any) -> Any:
        a = np.asarray(a)
        a = np.where(np.abs(a) < 2.0**-1022, np.copysign(0.0, a), a)
        upper = np.ascontiguousarray(function(a)).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)
        result = upper.view(np.float64)
        return np.where(np.abs(result) < 2.0**-1022, np.copysign(0.0, result), result)

    return apply


def _decode_abs_neg(d: Decoder) -> Operation:
    type = d.type(*FLOAT_TYPES)
    ftz = d.flag("ftz")
    d.count(2)
    bits = np.dtype(f"u{type.bits // 8}")
    sign = {16: 0x8000, 32: 0x80000000, 64: 0x8000000000000000}[type.bits]
    if type.name in ("f16x2", "bf16x2"):
        sign = 0x80008000
    mask = bits.type(sign if d.name == "neg" else ~sign & (2**type.bits - 1))
    operation = np.bitwise_xor if d.name == "neg" else np.bitwise_and
    raw = TYPES[f"b{type.bits}"]
    source, target = d.source(d.operands[1], raw), d.target(d.operands[0], raw)
    if ftz and type.name == "f32":

        def apply(a: Any) -> Any:
            return operation(rounding.flush(np.asarray(a).view(np.float32)).view(np.uint32), mask)

        return Map(apply, [target], [source])
    return Map(lambda a: operation(a, mask), [target], [source])


def _decode_minmax(d: Decoder) -> Operation:
    type = d.type(*FLOAT_TYPES)
    ftz, nan, xorsign = d.flag("ftz"), d.flag("NaN"), d.flag("xorsign")
    absolute = d.flag("abs")
    if xorsign and not absolute:
        raise d.fail(".xorsign needs .abs")
    d.count(3, 4)
    smaller = d.name == "min"

    def pick(*values: Any) -> Any:
        result = values[0]
        for other in values[1:]:
            result = _pick_two(result, other, smaller, nan, absolute)
        if xorsign:
            sign = np.signbit(values[0]) ^ np.signbit(values[1])
            result = np.where(
                np.isnan(result), result, np.copysign(result, np.where(sign, -1, 1).astype(result.dtype))
            )
        return result

    function = by_type(type, pick, pick, pick, ftz, False)
    return Map(function, [d.target(d.operands[0], type)], [d.source(o, type) for o in d.operands[1:]])


def _pick_two(a: Any, b: Any, smaller: bool, nan: bool, absolute: bool) -> Any:
    a, b = np.asarray(a), np.asarray(b)
    if absolute:
        a, b = np.abs(a), np.abs(b)
    result = (np.minimum if nan else np.fmin)(a, b) if smaller else (np.maximum if nan else np.fmax)(a, b)
    zero = (a == 0) & (b == 0)
    if zero.any():
        # -0 is smaller than +0.
        sign = (np.signbit(a) | np.signbit(b)) if smaller else (np.signbit(a) & np.signbit(b))
        result = np.where(zero, np.where(sign, a.dtype.type(-0.0), a.dtype.type(0.0)), result)
    return result


def _decode_copysign(d: Decoder) -> Operation:
    type = d.type("f32", "f64")
    d.count(3)
    # copysign d, a, b: the sign of a with the magnitude of b.
    return Map(
        lambda a, b: np.copysign(b, a),
        [d.target(d.operands[0], type)],
        [d.source(o, type) for o in d.operands[1:]],
    )


def _decode_testp(d: Decoder) -> Operation:
    type = d.type("f32", "f64")
    kind = d.take("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    d.count(2)
    tiny = np.finfo(type.dtype).tiny
    tests: dict[str, Any] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    if kind is None:
        raise d.fail("testp needs a test")
    return Map(tests[kind], [d.target(d.operands[0], TYPES["pred"])], [d.source(d.operands[1], type)])


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "add": _decode_add,
    "sub": _decode_add,
    "mul": _decode_mul,
    "mad": _decode_fma,
    "fma": _decode_fma,
    "div": _decode_div,
    "abs": _decode_abs_neg,
    "neg": _decode_abs_neg,
    "min": _decode_minmax,
    "max": _decode_minmax,
    "copysign": _decode_copysign,
    "testp": _decode_testp,
    "rcp": _unary_float(lambda a: 1.0 / a),
    "rsqrt": _unary_float(_rsqrt),
    "sqrt": _unary_float(np.sqrt, np.sqrt),
    "sin": _unary_float(_finite_only(np.sin)),
    "cos": _unary_float(_finite_only(np.cos)),
    "lg2": _unary_float(np.log2),
    "ex2": _unary_float(np.exp2),
    "tanh": _unary_float(np.tanh),
}
