"""Small PTX programs for tests: one instruction over many values, or a body of one's own."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np

from tilus import simulator

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
REGISTERS = {8: "b16", 16: "b16", 32: "b32", 64: "b64"}


def load(body: str, parameters: str = "", before: str = "", directives: str = "") -> Any:
    """A kernel ``k`` with a body; ``parameters`` as ``.param`` declarations."""
    text = f"{HEADER}{before}\n.visible .entry k({parameters}) {directives}\n{{\n{body}\n}}\n"
    return simulator.load(text)["k"]


def line_of(text: str, kernel_body: str) -> int:
    """The PTX line on which a piece of a body passed to `load` (without ``before``) stands."""
    for number, line in enumerate(kernel_body.splitlines()):
        if text in line:
            # Three header lines, an empty one, the entry and the brace come before the body.
            return number + 7
    raise AssertionError(f"{text!r} is not in the body")


def bits_of(values: Any, bits: int) -> Any:
    """Any array as unsigned integers of a width."""
    array = np.ascontiguousarray(values)
    return array.view(f"u{bits // 8}") if array.dtype.itemsize * 8 == bits else array.astype(f"u{bits // 8}")


def apply(
    instruction: str,
    *operands: Any,
    result: int | str = 32,
    predicates: tuple[Any, ...] = (),
    launches: dict[str, Any] | None = None,
) -> Any:
    """Execute one instruction once per value and return the results as unsigned integers.

    ``instruction`` names its operands ``{d}``, ``{a}``, ``{b}``, ``{c}``, ``{e}`` and its predicates ``{p}``, ``{q}``;
    ``result`` is the width of ``{d}``, or ``"pred"``. Operands are arrays of 16, 32 or 64 bits; with one width
    their registers are untyped, so that every instruction type takes them.
    """
    count = len(operands[0])
    names = "abce"[: len(operands)]
    body = [".reg .b32 %t, %rp; .reg .b64 %x, %y; .reg .pred %p, %q, %d_pred;"]
    body.append("mov.u32 %t, %tid.x; mov.u32 %rp, %ctaid.x; mad.lo.u32 %t, %rp, 256, %t;")
    body.append(f"setp.ge.u32 %p, %t, {count}; @%p ret;")
    args: list[Any] = []
    for name, values in zip(names, operands):
        bits = np.asarray(values).dtype.itemsize * 8
        args.append(np.ascontiguousarray(values))
        body.append(f".reg .{REGISTERS[bits]} %{name};")
        body.append(
            f"ld.param.u64 %x, [p{len(args) - 1}]; mul.wide.u32 %y, %t, {bits // 8}; add.u64 %x, %x, %y;"
        )
        body.append(f"ld.global.b{bits} %{name}, [%x];")
    for name, values in zip("pq", predicates):
        args.append(np.asarray(values, np.uint32))
        body.append(f"ld.param.u64 %x, [p{len(args) - 1}]; mul.wide.u32 %y, %t, 4; add.u64 %x, %x, %y;")
        body.append(f"ld.global.b32 %rp, [%x]; setp.ne.u32 %{name}, %rp, 0;")
    width = 32 if result == "pred" else int(result)
    out = np.zeros(count, f"u{width // 8}")
    args.append(out)
    body.append(f".reg .{REGISTERS[width]} %d;")
    target = "%d_pred" if result == "pred" else "%d"
    body.append(instruction.format(d=target, p="%p", q="%q", **{n: f"%{n}" for n in names}))
    if result == "pred":
        body.append("selp.u32 %d, 1, 0, %d_pred;")
    body.append(
        f"ld.param.u64 %x, [p{len(args) - 1}]; mul.wide.u32 %y, %t, {width // 8}; add.u64 %x, %x, %y;"
    )
    body.append(f"st.global.b{width} [%x], %d;")
    parameters = ", ".join(f".param .u64 p{i}" for i in range(len(args)))
    report = load("\n".join(body), parameters).launch((count + 255) // 256, 256, args, **(launches or {}))
    report.raise_if_hazards()
    return out


def integers(bits: int, count: int = 300, seed: int = 0) -> Any:
    """Integers of a width: edge values and random ones, as unsigned."""
    rng = np.random.default_rng(seed)
    top = 1 << bits
    edges = [
        0,
        1,
        2,
        3,
        7,
        top - 1,
        top - 2,
        top // 2,
        top // 2 - 1,
        top // 2 + 1,
        31,
        32,
        33,
        63,
        64,
        255,
        256,
    ]
    small = rng.integers(0, min(top, 70), count // 3).tolist()
    wide = [int(rng.integers(0, 1 << 32)) | int(rng.integers(0, 1 << 32)) << 32 for _ in range(count)]
    values = [v % top for v in (edges + small + wide)[:count]]
    rng.shuffle(values)
    return np.array(values, f"u{bits // 8}")


def floats(bits: int, count: int = 300, seed: int = 0, special: bool = True) -> Any:
    """Floats of a width: every kind of special value, close neighbours, all magnitudes."""
    rng = np.random.default_rng(seed)
    dtype: Any = {16: np.float16, 32: np.float32, 64: np.float64}[bits]
    info = np.finfo(dtype)
    edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        3.0,
        1 / 3,
        float(info.max),
        -float(info.max),
        float(info.tiny),
        float(info.smallest_subnormal),
        -float(info.smallest_subnormal),
        1 + float(info.eps),
        2 - float(info.eps),
    ]
    if special:
        edges += [np.inf, -np.inf, np.nan]
    with np.errstate(over="ignore"):
        normal = rng.standard_normal(count).astype(dtype).tolist()
        scaled = (rng.standard_normal(count) * np.exp2(rng.integers(-20, 20, count))).astype(dtype).tolist()
    raw = rng.integers(0, 1 << 32, count, dtype=np.uint64) * (1 << 32 if bits == 64 else 1)
    anything = raw.astype(f"u{bits // 8}").view(dtype).tolist()
    values = edges + normal[: count // 3] + scaled[: count // 3] + anything
    if not special:
        values = [v for v in values if np.isfinite(v)]
    chosen = np.array(values[:count], dtype)
    rng.shuffle(chosen)
    return chosen


def signed(value: int, bits: int) -> int:
    """Two's complement."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def unsigned(value: int, bits: int) -> int:
    """Modulo the width."""
    return value & ((1 << bits) - 1)


def round_fraction(value: Fraction, bits: int, mode: str = "rn") -> float:
    """A rational rounded to a binary format, in any direction, by integer arithmetic alone."""
    precision, minimum, maximum = {
        16: (11, -24, 65504.0),
        32: (24, -149, float(np.finfo(np.float32).max)),
        64: (53, -1074, float(np.finfo(np.float64).max)),
    }[bits]
    if value == 0:
        return 0.0
    negative, size = value < 0, abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = max(exponent - precision + 1, minimum)
    scaled = size / Fraction(2) ** unit
    whole, rest = divmod(scaled.numerator, scaled.denominator)
    half = Fraction(rest, scaled.denominator)
    up = {
        "rn": half > Fraction(1, 2) or (half == Fraction(1, 2) and whole & 1 == 1),
        "rz": False,
        "rm": negative and rest != 0,
        "rp": not negative and rest != 0,
    }[mode]
    result = Fraction(whole + int(up)) * Fraction(2) ** unit
    if result > Fraction(maximum):
        toward_zero = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        return (-1 if negative else 1) * (maximum if toward_zero else float("inf"))
    return float(-result if negative else result)


def float_bits(value: float, bits: int) -> int:
    """The bit pattern of a float; NaN is PTX's canonical one."""
    if value != value:
        return {16: 0x7FFF, 32: 0x7FFFFFFF, 64: 0x7FFFFFFFFFFFFFFF}[bits]
    code, size = {16: ("<e", "<H"), 32: ("<f", "<I"), 64: ("<d", "<Q")}[bits]
    return int(struct.unpack(size, struct.pack(code, value))[0])
