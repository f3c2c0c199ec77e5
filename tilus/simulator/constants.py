"""Constant expressions of PTX, by the section "Constant Expressions" of the ISA: 64-bit integers and doubles."""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from .errors import PtxError
from .syntax import Float, Integer

_BITS = 64
_WARP_SIZE = 32

_LITERAL = r"(?:0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|"
_LITERAL += r"0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|0[0-7]*U?|[1-9]\d*U?|WARP_SZ)(?![\w.$])"
_CAST = r"\(\s*\.[su]64\s*\)"
_BINARY = r"<<|>>|[<>=!]=|&&|\|\||/(?![/*])|[-+*%<>&|^?:]"
_SPACE = r"(?:\s|//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*"
_NESTED = 8


def _pattern() -> str:
    """Numbers, operators and balanced parentheses; their order is left to the parser of expressions."""
    plain = r"[-+*<>=!&|^?:~\s]|%(?!\w)|/(?![/*])|//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|(?:[\d.][\w.]*|WARP_SZ)(?![\w.$])"
    found = f"(?:{plain})+"
    for _ in range(_NESTED):
        found = rf"(?:{plain}|\({found}\))+"
    return found


# A literal, with a sign or without, is no expression: the rules for numbers take it. Nor is an empty list.
_NO_EXPRESSION = rf"(?!(?:[-+]?[\d.][\w.]*|WARP_SZ){_SPACE}[,;\])}}(])(?!\({_SPACE}\))"
EXPRESSION = rf"(?=[-+~!(\d.W]){_NO_EXPRESSION}{_pattern()}(?=[,;\])}}])"
"""A regular expression for a constant expression, with parentheses up to some depth."""

# The last takes a word that is no literal whole.
_TOKEN = rf"{_SPACE}({_LITERAL}|{_CAST}|{_BINARY}|[~!()]|[\w.$]+)"


class Value(NamedTuple):
    """A value and its type: ``s64``, ``u64`` or ``f64``."""

    type: str
    value: int | float


def evaluate(text: str, line: int | None = None) -> Integer | Float:
    """Evaluate a constant expression.

    Parameters
    ----------
    text : str
        The expression.
    line : int, optional
        Where it stands, for errors.

    Returns
    -------
    Integer or Float
        What it is worth, as a literal.
    """
    try:
        found = _Expression(text).whole()
    except _Wrong as error:
        raise PtxError(f"{error} in the constant expression {text.strip()!r}", line) from None
    if isinstance(found.value, float):
        return Float(found.value, 64, struct.unpack("<Q", struct.pack("<d", found.value))[0])
    return Integer(found.value)


def integer_literal(text: str) -> int:
    """The value of an integer literal (decimal, octal, hexadecimal or binary, with an optional sign and U)."""
    text = text.rstrip("U")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    if digits[:2] in ("0x", "0X"):
        return sign * int(digits, 16)
    if digits[:2] in ("0b", "0B"):
        return sign * int(digits, 2)
    if len(digits) > 1 and digits[0] == "0":
        return sign * int(digits, 8)
    return sign * int(digits)


class _Wrong(Exception):
    """What is wrong with an expression."""


def _integer(value: int, type: str) -> Value:
    """An integer as a type holds it."""
    value &= (1 << _BITS) - 1
    if type == "s64" and value >> (_BITS - 1):
        value -= 1 << _BITS
    return Value(type, value)


def _literal(text: str) -> Value:
    if text == "WARP_SZ":
        return Value("s64", _WARP_SIZE)
    if text[:2] in ("0f", "0F"):
        raise _Wrong(f"a single-precision literal {text}, expected 0d and 16 digits")
    if text[:2] in ("0d", "0D"):
        return Value("f64", struct.unpack("<d", struct.pack("<Q", int(text[2:], 16)))[0])
    if text[:2] not in ("0x", "0X") and any(c in text for c in ".eE"):
        return Value("f64", float(text))
    value = integer_literal(text)
    if value >> _BITS:
        raise _Wrong(f"the literal {text} of more than {_BITS} bits")
    return Value("u64" if text.endswith("U") or value >> (_BITS - 1) else "s64", value)


def _converted(operator_: str, a: Value, b: Value) -> tuple[str, int | float, int | float]:
    """The usual arithmetic conversions."""
    if "f64" in (a.type, b.type):
        if a.type != b.type:
            raise _Wrong(f"an integer and a floating-point operand of {operator_}, expected two of a kind")
        return "f64", a.value, b.value
    type = "u64" if "u64" in (a.type, b.type) else "s64"
    return type, _integer(int(a.value), type).value, _integer(int(b.value), type).value


def _as_integer(operator_: str, value: Value, type: str = "u64") -> int:
    if value.type == "f64":
        raise _Wrong(f"a floating-point operand of {operator_}, expected an integer")
    return int(_integer(int(value.value), type).value)


_ARITHMETIC: dict[str, Callable[[int | float, int | float], int | float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[int | float, int | float], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_LOGIC: dict[str, Callable[[int, int], int]] = {"&": operator.and_, "|": operator.or_, "^": operator.xor}
_PRECEDENCE = {
    name: level
    for level, names in enumerate(
        (("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"), ("+", "-"),
         ("*", "/", "%"))
    )
    for name in names
}  # fmt: skip


def _binary(name: str, a: Value, b: Value) -> Value:
    if name in ("&&", "||"):
        left, right = bool(_as_integer(name, a)), bool(_as_integer(name, b))
        return Value("s64", int(left and right if name == "&&" else left or right))
    if name in ("<<", ">>"):
        # The ISA names no bound of the count; the assembler takes its low six bits.
        count = _as_integer(name, b) % _BITS
        value = _as_integer(name, a, a.type)
        return _integer(value << count if name == "<<" else value >> count, a.type)
    if name == "%":
        divisor = _as_integer(name, b)
        if not divisor:
            raise _Wrong("a remainder of a division by zero")
        # Signed by the table of the ISA, unsigned by its text and by the assembler.
        return _integer(_as_integer(name, a) % divisor, "u64")
    if name in _LOGIC:
        _as_integer(name, a)
        _as_integer(name, b)
    type, x, y = _converted(name, a, b)
    if name in _LOGIC:
        # Unsigned by the table of the ISA, of the converted type by its text and by the assembler.
        return _integer(_LOGIC[name](int(x), int(y)), type)
    if name in _COMPARISONS:
        return Value("s64", int(_COMPARISONS[name](x, y)))
    if name == "/" and not y:
        raise _Wrong("a division by zero")
    if type == "f64":
        return Value(type, x / y if name == "/" else float(_ARITHMETIC[name](x, y)))
    if name == "/":
        magnitude = abs(int(x)) // abs(int(y))
        return _integer(magnitude if (x < 0) == (y < 0) else -magnitude, type)
    return _integer(int(_ARITHMETIC[name](x, y)), type)


def _unary(name: str, item: Value) -> Value:
    if name[0] == "(":
        type = name.strip("()").strip()[1:]
        return _integer(_as_integer(f"({type})", item), type)
    if name == "~":
        return _integer(~_as_integer(name, item), "u64")
    if name == "!":
        return Value("s64", int(not _as_integer(name, item)))
    if name == "+" or item.type == "f64":
        return item if name == "+" else Value("f64", -item.value)
    return _integer(-int(item.value), item.type)


class _Expression:
    """The words of an expression, taken one after the other."""

    def __init__(self, text: str) -> None:
        self.words = re.findall(_TOKEN, text)[::-1]

    def next(self) -> str:
        """The word that comes next, or nothing at the end."""
        return self.words[-1] if self.words else ""

    def whole(self) -> Value:
        """The value of all words."""
        found = self.conditional()
        if self.words:
            raise _Wrong(f"a stray {self.next()!r}")
        return found

    def conditional(self) -> Value:
        """``a ? b : c`` or less."""
        found = self.binary(0)
        if self.next() != "?":
            return found
        self.words.pop()
        chosen = _as_integer("?", found) != 0
        first = self.conditional()
        if self.next() != ":":
            raise _Wrong("a ? without its :")
        self.words.pop()
        type, x, y = _converted("?:", first, self.conditional())
        return Value(type, x if chosen else y)

    def binary(self, level: int) -> Value:
        """Operations that bind at least as firmly as a level."""
        found = self.unary()
        while _PRECEDENCE.get(self.next(), -1) >= level:
            name = self.words.pop()
            found = _binary(name, found, self.binary(_PRECEDENCE[name] + 1))
        return found

    def unary(self) -> Value:
        """A literal, an expression in parentheses, or an operation on one."""
        if not self.words:
            raise _Wrong("nothing where a number is expected")
        word = self.words.pop()
        if word == "(":
            found = self.conditional()
            if self.next() != ")":
                raise _Wrong("a parenthesis that is not closed")
            self.words.pop()
            return found
        if word in ("+", "-", "~", "!") or word.startswith("("):
            return _unary(word, self.unary())
        if not re.fullmatch(_LITERAL, word):
            raise _Wrong(f"{word!r} where a number is expected")
        return _literal(word)
