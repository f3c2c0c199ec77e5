"""``cvt`` among all types, ``cvt.pack``, and ``cvta``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import formats, rounding
from .decoder import Decoder
from .floating import canonical, saturated
from .operations import Map, Operation
from .spaces import WINDOWS
from .syntax import Vector
from .types import TYPES, ScalarType

_INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_FLOAT_ROUNDING = ("rn", "rz", "rm", "rp", "rna", "rs")
_PLAIN = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f16", "f32", "f64", "bf16")
_NARROW_PAIRS = {
    "e4m3x2": "e4m3",
    "e5m2x2": "e5m2",
    "e2m3x2": "e2m3",
    "e3m2x2": "e3m2",
    "e2m1x2": "e2m1",
    "ue8m0x2": "ue8m0",
}
_NARROW_QUADS = {"e4m3x4": "e4m3", "e5m2x4": "e5m2", "e2m3x4": "e2m3", "e3m2x4": "e3m2", "e2m1x4": "e2m1"}
_HALVES = ("f16", "bf16")


def _decode_cvt(d: Decoder) -> Operation:
    if d.flag("pack"):
        return _decode_pack(d)
    if len(d.mods) < 2:
        raise d.fail("cvt needs a destination and a source type")
    source_name, target_name = d.mods.pop(), d.mods.pop()
    mode = d.take(*_INTEGER_ROUNDING, *_FLOAT_ROUNDING)
    scaled = d.take("scaled::n2::ue8m0")
    ftz, relu, satfinite, sat = d.flag("ftz"), d.flag("relu"), d.flag("satfinite"), d.flag("sat")
    if scaled:
        raise d.fail("cvt with a scale factor is not supported")
    if source_name in _PLAIN and target_name in _PLAIN and not relu and not satfinite:
        return _plain(d, TYPES[target_name], TYPES[source_name], mode, ftz, sat)
    return _special(d, target_name, source_name, mode or "rn", relu, satfinite, ftz)


# -- plain types -----------------------------------------------------------------------------------------------


def _plain(
    d: Decoder, target: ScalarType, source: ScalarType, mode: str | None, ftz: bool, sat: bool
) -> Operation:
    d.count(2)
    a = d.source(d.operands[1], source, relaxed=True)
    to_float, from_float = _is_float(target), _is_float(source)
    if from_float and to_float:
        function = _float_to_float(target, source, mode, ftz, sat)
    elif from_float:
        if mode not in _INTEGER_ROUNDING:
            raise d.fail("a conversion from float to integer needs .rni, .rzi, .rmi or .rpi")
        function = _float_to_integer(target, source, mode, ftz)
    elif to_float:
        function = _integer_to_float(target, source, mode or "rn", sat)
    else:
        function = _integer_to_integer(target, source, sat)
    operation = Map(function, [d.target(d.operands[0], target, relaxed=True)], [a])
    operation.moves = int(not (from_float or to_float or sat))
    return operation


def _is_float(type: ScalarType) -> bool:
    return type.name in ("f16", "f32", "f64", "bf16")


def _integer_to_integer(target: ScalarType, source: ScalarType, sat: bool) -> Callable[[Any], Any]:
    if not sat:
        return lambda a: np.asarray(a).astype(target.dtype)
    info = np.iinfo(target.dtype)

    def clamp(a: Any) -> Any:
        low, high = (
            max(info.min, int(np.iinfo(source.dtype).min)),
            min(info.max, int(np.iinfo(source.dtype).max)),
        )
        return np.clip(a, source.dtype.type(low), source.dtype.type(high)).astype(target.dtype)

    return clamp


def _wide(a: Any, source: ScalarType) -> Any:
    """A float operand as binary64 (exact)."""
    if source.name == "bf16":
        return rounding.bfloat_to_single(a).astype(np.float64)
    return np.asarray(a).astype(np.float64)


def _float_to_integer(target: ScalarType, source: ScalarType, mode: str, ftz: bool) -> Callable[[Any], Any]:
    info = np.iinfo(target.dtype)
    round_ = _INTEGER_ROUNDING[mode]
    # NaN converts to zero, but to the highest bit alone where either type has 64 bits.
    wide = target.bits == 64 or source.name == "f64"
    nan_value = np.array(1 << (target.bits - 1) if wide else 0, f"u{target.bits // 8}").view(target.dtype)[()]

    def apply(a: Any) -> Any:
        if ftz and source.name == "f32":
            a = rounding.flush(a)
        value = round_(_wide(a, source))
        low, high = value <= float(info.min), value >= float(info.max)
        nan = np.isnan(value)
        inside = np.where(low | high | nan, 0.0, value).astype(target.dtype)
        result = np.where(
            low, target.dtype.type(info.min), np.where(high, target.dtype.type(info.max), inside)
        )
        return np.where(nan, nan_value, result)

    return apply


def _integer_to_float(target: ScalarType, source: ScalarType, mode: str, sat: bool) -> Callable[[Any], Any]:
    def apply(a: Any) -> Any:
        a = np.asarray(a)
        if target.name == "f64":
            result = _integer_to_double(a, mode)
        elif target.name == "f32" and mode == "rn":
            result = a.astype(np.float32)
        else:
            high, low = _two_doubles(a)
            if target.name == "f32":
                result = rounding.to_single(*rounding.two_sum(high, low), mode)
            else:
                bits = formats.encode(rounding.to_odd(*rounding.two_sum(high, low)), target.name, mode)
                result = bits if target.name == "bf16" else bits.view(np.float16)
        return saturated(result) if sat and target.name != "bf16" else result

    return apply


def _two_doubles(a: Any) -> tuple[Any, Any]:
    """A 64-bit integer as an exact sum of two binary64 numbers."""
    if a.dtype.itemsize < 8:
        return a.astype(np.float64), np.float64(0)
    low = (a & a.dtype.type(0xFFFFFFFF)).astype(np.float64)
    return (a >> a.dtype.type(32)).astype(np.float64) * 2.0**32, low


def _integer_to_double(a: Any, mode: str) -> Any:
    if mode == "rn" or a.dtype.itemsize < 8:
        return a.astype(np.float64)
    s, e = rounding.two_sum(*_two_doubles(a))
    return rounding.directed(s, e > 0, e < 0, mode, np.bool_(True))


def _float_to_float(
    target: ScalarType, source: ScalarType, mode: str | None, ftz: bool, sat: bool
) -> Callable[[Any], Any]:
    def convert(a: Any) -> Any:
        if ftz and source.name == "f32":
            a = rounding.flush(a)
        if mode in _INTEGER_ROUNDING:
            rounded = _INTEGER_ROUNDING[mode](_wide(a, source))
            return _narrow(rounded, target, "rn")
        if source.name == target.name:
            return a
        if source.name == "f16" and target.name == "f32":
            return np.asarray(a).astype(np.float32)
        if source.name == "f32" and target.name == "f64":
            return np.asarray(a).astype(np.float64)
        if source.name == "bf16" and target.name == "f32":
            return rounding.bfloat_to_single(a)
        if source.name == "f32" and target.name == "f16" and mode in (None, "rn"):
            return np.asarray(a).astype(np.float16)
        return _narrow(_wide(a, source), target, mode or "rn")

    def apply(a: Any) -> Any:
        result = convert(a)
        if target.name == "bf16":
            if sat:
                return rounding.single_to_bfloat(saturated(rounding.bfloat_to_single(result)))
            return result
        if ftz and target.name == "f32":
            result = rounding.flush(result)
        return saturated(result) if sat else canonical(result)

    return apply


def _narrow(value: Any, target: ScalarType, mode: str) -> Any:
    if target.name == "f64":
        return value
    if target.name == "f32":
        return rounding.to_single(value, np.float64(0), mode)
    bits = formats.encode(value, target.name, mode)
    return bits if target.name == "bf16" else bits.view(np.float16)


# -- packed and narrow formats ---------------------------------------------------------------------------------


def _special(
    d: Decoder, target: str, source: str, mode: str, relu: bool, satfinite: bool, ftz: bool
) -> Operation:
    if ftz:
        raise d.fail(f".ftz is not for cvt.{target}.{source}")
    if source == "f32" and target in (
        "f16",
        "bf16",
        "tf32",
        "f16x2",
        "bf16x2",
        *_NARROW_PAIRS,
        *_NARROW_QUADS,
    ):
        return _from_single(d, target, mode, relu, satfinite)
    if target in _NARROW_PAIRS and source in ("f16x2", "bf16x2"):
        return _pair_to_narrow(d, target, source, mode, relu, satfinite)
    if source in _NARROW_PAIRS and target in ("f16x2", "bf16x2"):
        return _narrow_to_pair(d, target, source, mode, relu)
    if source in _PLAIN and target in _PLAIN and satfinite and not relu:
        return _plain(d, TYPES[target], TYPES[source], mode, ftz, False)
    raise d.fail(f"unsupported conversion from .{source} to .{target}")


def _pack_codes(codes: list[Any], format_name: str) -> Any:
    """Codes to a word, the first in the most significant place."""
    width = 4 if format_name == "e2m1" else 16 if format_name in _HALVES else 8
    total: Any = np.uint64(0)
    for code in codes:
        total = (total << np.uint64(width)) | np.asarray(code).astype(np.uint64)
    return total


def _from_single(d: Decoder, target: str, mode: str, relu: bool, satfinite: bool) -> Operation:
    format_name = {**_NARROW_PAIRS, **_NARROW_QUADS}.get(target, target.replace("x2", ""))
    f32 = TYPES["f32"]
    count = 4 if target in _NARROW_QUADS else 2 if target.endswith("x2") else 1
    width = 4 if format_name == "e2m1" else {"tf32": 32, "f16": 16, "bf16": 16}.get(format_name, 8)
    bits = count * width
    if count == 4:
        if not isinstance(d.operands[1], Vector) or len(d.operands[1].items) != 4:
            raise d.fail("four source registers in braces are expected")
        sources = [d.source(o, f32) for o in d.operands[1].items]
        rest = d.operands[2:]
    else:
        sources = [d.source(o, f32) for o in d.operands[1 : 1 + count]]
        rest = d.operands[1 + count :]
    if mode == "rs":
        if len(rest) != 1:
            raise d.fail("stochastic rounding needs the random bits as last operand")
        sources.append(d.source(rest[0], TYPES["b32"]))
    elif rest:
        raise d.fail("too many operands")

    def apply(*values: Any) -> Any:
        codes = []
        for index, value in enumerate(values[:count]):
            extra = {}
            if mode == "rs":
                extra = stochastic_bits(values[-1], format_name, index, count)
            value = np.atleast_1d(np.asarray(value))
            codes.append(formats.encode(value, format_name, mode, satfinite=satfinite, relu=relu, **extra))
        return _pack_codes(codes, format_name)

    # An 8-bit pair (e2m1x2) is written to a .b8 register; every wider result fills its register.
    target_register = d.target(d.operands[0], TYPES[f"b{bits}"], relaxed=bits == 8)
    operation = Map(_as_bits(apply, bits), [target_register], sources)
    operation.converts = count if count == len(sources) else 0
    return operation


def _as_bits(function: Callable[..., Any], bits: int) -> Callable[..., Any]:
    dtype = np.dtype(f"u{bits // 8}")
    return lambda *v: function(*v).astype(dtype)


def stochastic_bits(random: Any, format_name: str, index: int, count: int) -> dict[str, Any]:
    """The random bits of one converted value.

    Four values share ``rbits`` by halves: the first two take the upper 16 bits, the last two the lower. Two
    values take 13 bits each for f16 and 16 bits each for bf16, the first the upper half.
    """
    random = np.asarray(random)
    if count == 4:
        bits = (random >> np.uint32(16)) if index < 2 else (random & np.uint32(0xFFFF))
        return {"random_bits": bits, "random_width": 16}
    width = 13 if format_name == "f16" else 16
    half = (random >> np.uint32(16)) if index == 0 else (random & np.uint32(0xFFFF))
    return {"random_bits": half & np.uint32((1 << width) - 1), "random_width": width}


def _pair_to_narrow(
    d: Decoder, target: str, source: str, mode: str, relu: bool, satfinite: bool
) -> Operation:
    d.count(2)
    format_name = _NARROW_PAIRS[target]
    bits = 8 if format_name == "e2m1" else 16
    half = source[:-2]

    def apply(word: Any) -> Any:
        word = np.asarray(word)
        parts = [(word >> np.uint32(16)).astype(np.uint16), (word & np.uint32(0xFFFF)).astype(np.uint16)]
        codes = [
            formats.encode(formats.decode(p, half), format_name, mode, satfinite=satfinite, relu=relu)
            for p in parts
        ]
        return _pack_codes(codes, format_name)

    source_value = d.source(d.operands[1], TYPES["b32"])
    target_register = d.target(d.operands[0], TYPES[f"b{bits}"], relaxed=bits == 8)
    operation = Map(_as_bits(apply, bits), [target_register], [source_value])
    operation.converts = 2
    return operation


def _narrow_to_pair(d: Decoder, target: str, source: str, mode: str, relu: bool) -> Operation:
    d.count(2)
    format_name = _NARROW_PAIRS[source]
    half = target[:-2]
    bits = 8 if format_name == "e2m1" else 16
    shift = bits // 2

    def apply(word: Any) -> Any:
        word = np.atleast_1d(np.asarray(word))
        mask = word.dtype.type((1 << shift) - 1)
        parts = [word >> word.dtype.type(shift), word & mask]
        codes = [formats.encode(formats.decode(p, format_name), half, mode, relu=relu) for p in parts]
        return _pack_codes(codes, half)

    source_value = d.source(d.operands[1], TYPES[f"b{bits}"], relaxed=bits == 8)
    operation = Map(_as_bits(apply, 32), [d.target(d.operands[0], TYPES["b32"])], [source_value])
    operation.converts = 2
    return operation


def _decode_pack(d: Decoder) -> Operation:
    """``cvt.pack.sat.dtype.s32{.b32} d, a, b{, c}``: saturate a and b and pack them, a above b, below c."""
    with_c = d.flag("b32")
    source = d.type("s32")
    target_name = d.mods.pop() if d.mods else ""
    d.flag("sat")
    sizes = {"u16": 16, "s16": 16, "u8": 8, "s8": 8, "u4": 4, "s4": 4, "u2": 2, "s2": 2}
    if target_name not in sizes:
        raise d.fail(f"unsupported pack type .{target_name}")
    bits = sizes[target_name]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if target_name[0] == "s" else (0, (1 << bits) - 1)

    def apply(a: Any, b: Any, c: Any = 0) -> Any:
        parts = [(np.clip(np.asarray(v).astype(np.int64), low, high) & ((1 << bits) - 1)) for v in (a, b)]
        packed = (parts[0] << bits) | parts[1]
        if bits < 16:
            packed = packed | (np.asarray(c).astype(np.int64) << (2 * bits))
        return (packed & 0xFFFFFFFF).astype(np.uint32)

    sources = [d.source(d.operands[1], source), d.source(d.operands[2], source)]
    if with_c or len(d.operands) == 4:
        sources.append(d.source(d.operands[3], TYPES["b32"]))
    return Map(apply, [d.target(d.operands[0], TYPES["b32"])], sources)


# -- addresses ----------------------------------------------------------------------------------------------------


def _decode_cvta(d: Decoder) -> Operation:
    type = d.type("u32", "u64")
    to = d.flag("to")
    space = d.take(
        "global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry"
    )
    if space is None:
        raise d.fail("cvta needs a state space")
    if type.bits != 64:
        raise d.fail("addresses have 64 bits")
    window = np.uint64(WINDOWS[space.split("::")[0]])
    source = d.source(d.operands[1], type)
    if window == 0:
        return Map(lambda a: a, [d.target(d.operands[0], type)], [source])
    if to:
        return Map(lambda a: a - window, [d.target(d.operands[0], type)], [source])
    return Map(lambda a: a + window, [d.target(d.operands[0], type)], [source])


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"cvt": _decode_cvt, "cvta": _decode_cvta}
