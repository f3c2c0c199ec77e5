"""PTX text to a syntax tree: a lark grammar (LALR) whose actions build the records of ``syntax``."""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import Any

from .constants import EXPRESSION, evaluate
from .constants import integer_literal as parse_integer
from .errors import PtxError
from .syntax import (
    Address,
    Float,
    Function,
    Group,
    Guard,
    Integer,
    Label,
    Location,
    Name,
    Negated,
    Pair,
    Registers,
    Scope,
    SourceFile,
    Statement,
    SyntaxTree,
    Targets,
    Variable,
    Vector,
)

# A table of numbers is one token, as tables of curand and the like have a hundred thousand of them.
# Nearly all instructions are of a plain form. One expression takes such an instruction whole, which is several times
# faster than rules for its parts; the rules of `instruction` take the others. Both make the same records.
_NAME = r"[A-Za-z_$%][\w$.]*"
_VALUE = (
    rf"(?:{_NAME}|0[fF][0-9a-fA-F]{{8}}|0[dD][0-9a-fA-F]{{16}}|-?0[xX][0-9a-fA-F]+|-?\d+)(?![\w.$:+(\[|<])"
)
_OPERAND = rf"(?:{_VALUE}|\[\s*{_NAME}(?:\s*\+?\s*-?\d+)?\s*\]|\{{\s*{_VALUE}(?:\s*,\s*{_VALUE})*\s*\}})"
_PLAIN = rf"(?:@!?{_NAME}\s+)?[a-z]\w*(?:(?:\.|::)\w+)*(?:\s+{_OPERAND}(?:\s*,\s*{_OPERAND})*)?\s*;"

GRAMMAR = r"""
start: item*
?item: VERSION | TARGET | ADDRESS_SIZE | FILE | SECTION | LOC | PRAGMA | alias | variable | function | ";"
alias: ".alias" WORD "," WORD ";"

variable: linkage* SPACE var_part* declarators ";"
?linkage: ".visible" | ".weak" | ".common" | EXTERN
declarators: declarator ("," declarator)*
declarator: WORD dim* ("=" initial)?
dim: "[" _count? "]"
_count: NUMBER | EXPRESSION
initial: number | braces | NUMBERS -> numbers | symbolic | NUMBER "(" (symbolic | number) ")" -> masked_initial
symbolic: WORD | WORD "+"? _count | "generic" "(" WORD ("+"? _count)? ")" ("+"? _count)?
braces: "{" (initial ("," initial)*)? "}"
var_part: DOTWORD | ".align" NUMBER -> var_align | ".attribute" "(" attribute_item ("," attribute_item)* ")" -> ignored
attribute_item: DOTWORD | DOTWORD "(" NUMBER "," NUMBER ")"

function: linkage* ".entry" WORD params? perf* body                 -> entry
        | linkage* ".func" perf* returns? WORD params? perf* body    -> func
?returns: params
params: "(" (param ("," param)*)? ")"
param: SPACE var_part* PTR? SPACE? (".align" NUMBER)? WORD dim*
     | ".reg" DOTWORD WORD -> reg_param
perf: DOTWORD (NUMBER ("," NUMBER)*)? | PRAGMA
body: ";" | "{" statement* "}" -> full_body

?statement: instruction | LOC | FILE | PRAGMA | registers | variable | label | scope | targets | ";" | SECTION
scope: "{" statement* "}"
registers: ".reg" DOTWORD+ reg_name ("," reg_name)* ";"
reg_name: WORD ("<" NUMBER ">")?
label: LABEL
targets: LABEL? BRANCHTARGETS WORD ("," WORD)* ";"
       | LABEL? ".callprototype" params? WORD params? perf* ";" -> prototype
instruction: guard? WORD (operand ("," operand)*)? ";"
           | PLAIN -> plain
guard: "@" WORD | "@" "!" WORD -> negative_guard

?operand: simple | pair | vector | address | group
?simple: name | number | "!" simple -> negated | "-" WORD -> negated_name
name: WORD | WORD "+" _count -> offset_name | WORD _count -> offset_name
pair: simple "|" simple
vector: "{" (operand ("," operand)*)? "}"
group: "(" (operand ("," operand)*)? ")"
address: "[" base ("," operand)* "]" | WORD "[" _count "]" -> indexed
base: WORD | _count -> absolute | WORD "+" _count -> base_plus | WORD _count -> base_plus
    | NUMBER "+" NUMBER -> absolute_plus
?number: NUMBER -> integer | FLOAT -> floating | EXPRESSION

PLAIN.6: /%PLAIN%/
NUMBERS.8: /\{\s*(0|-?[1-9]\d*)(\s*,\s*(0|-?[1-9]\d*)){16,}\s*\}/
EXPRESSION.7: /%EXPRESSION%/
PRAGMA.9: /\.pragma\s+"[^"]*"(\s*,\s*"[^"]*")*\s*;/
VERSION.9: /\.version\s+[\d.]+/
TARGET.9: /\.target\s+[\w]+(\s*,\s*[\w]+)*/
ADDRESS_SIZE.9: /\.address_size\s+\d+/
FILE.9: /\.file[^\n]*/
LOC.9: /\.loc\s[^\n;]*/
SECTION.9: /\.section\s+[^\s{]+\s*\{[^}]*\}/
EXTERN.9: ".extern"
SPACE.9: /\.(global|shared|local|param|const)(::[a-z]+)?\b/
PTR.9: /\.ptr\b/
BRANCHTARGETS.9: /\.(branchtargets|calltargets)\b/
DOTWORD: /\.[a-zA-Z_][\w:]*(\.[a-zA-Z_]\w*)*/
LABEL.4: /[A-Za-z_$%][\w$]*\s*:(?!:)/
FLOAT.5: /0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+/
NUMBER.3: /[+-]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?/
WORD: /[A-Za-z_$%](::|[\w$.])*/
COMMENT: /\/\/[^\n]*/ | /\/\*([^*]|\*(?!\/))*\*\//
%ignore COMMENT
%ignore /[ \t\r\f\n]+/
""".replace("%PLAIN%", _PLAIN).replace("%EXPRESSION%", EXPRESSION.replace("/", r"\/"))

_PARTS = re.compile(r"(?:@(!?)(\S+)\s+)?([\w.:]+)\s*(.*);", re.DOTALL)
_OPERANDS = re.compile(r"[^,\s{[]+|\{[^}]*\}|\[[^]]*\]")
_BASE = re.compile(rf"\[\s*({_NAME})\s*(?:\+?\s*(-?\d+))?\s*\]")


@lru_cache(maxsize=1 << 14)
def plain_operand(text: str) -> Any:
    """An operand of a plain instruction: a name, a number, a vector of such or an address."""
    first = text[0]
    if first == "{":
        return Vector(tuple(map(plain_operand, _OPERANDS.findall(text[1:-1]))))
    if first == "[":
        match = _BASE.fullmatch(text)
        assert match is not None
        return Address(Name(match[1]), parse_integer(match[2] or "0"))
    if first in "-0123456789":
        return parse_float(text) if text[:2] in ("0f", "0F", "0d", "0D") else Integer(parse_integer(text))
    return Name(text)


def plain_instruction(text: str, line: int) -> Statement:
    """An instruction of the plain form, whose text begins in a line."""
    match = _PARTS.match(text)
    assert match is not None
    negated, guard, opcode, operands = match.groups()
    if guard is not None:
        line += text.count("\n", 0, match.start(3))
    return Statement(
        opcode,
        tuple(map(plain_operand, _OPERANDS.findall(operands))),
        Guard(guard, bool(negated)) if guard is not None else None,
        line,
    )


def parse_float(text: str) -> Float:
    """The value of a PTX floating literal."""
    if text[:2] in ("0f", "0F"):
        raw = int(text[2:], 16)
        return Float(struct.unpack("<f", struct.pack("<I", raw))[0], 32, raw)
    if text[:2] in ("0d", "0D"):
        raw = int(text[2:], 16)
        return Float(struct.unpack("<d", struct.pack("<Q", raw))[0], 64, raw)
    value = float(text)
    return Float(value, 64, struct.unpack("<Q", struct.pack("<d", value))[0])


_EXTERN = "extern"


@lru_cache(maxsize=1)
def _lark() -> Any:
    from lark import Lark, Transformer
    from lark.visitors import Discard

    class Actions(Transformer):
        """Turns each rule into its record while parsing, so that no parse tree is built."""

        def EXTERN(self, token: Any) -> str:
            return _EXTERN

        def LOC(self, token: Any) -> Any:
            words = token.split(None, 4)
            return Location(int(words[1]), int(words[2]), int(words[3].rstrip(",")) if len(words) > 3 else 0)

        def FILE(self, token: Any) -> Any:
            words = token.split(None, 2)
            return SourceFile(int(words[1]), _file_name(words[2]))

        def PRAGMA(self, token: Any) -> Any:
            return ";"

        def SECTION(self, token: Any) -> Any:
            return ";"

        def EXPRESSION(self, token: Any) -> Integer | Float:
            return evaluate(str(token), token.line)

        def integer(self, items: list[Any]) -> Integer:
            return Integer(parse_integer(items[0]))

        def floating(self, items: list[Any]) -> Float:
            return parse_float(items[0])

        def name(self, items: list[Any]) -> Name:
            return Name(str(items[0]))

        def offset_name(self, items: list[Any]) -> Name:
            return Name(str(items[0]), _count(items[1]))

        def negated(self, items: list[Any]) -> Negated:
            return Negated(items[0])

        def negated_name(self, items: list[Any]) -> Negated:
            return Negated(Name(str(items[0])))

        def pair(self, items: list[Any]) -> Pair:
            return Pair(items[0], items[1])

        def vector(self, items: list[Any]) -> Vector:
            return Vector(tuple(items))

        def group(self, items: list[Any]) -> Group:
            return Group(tuple(items))

        def base(self, items: list[Any]) -> Address:
            return Address(Name(str(items[0])), 0)

        def absolute(self, items: list[Any]) -> Address:
            return Address(Integer(_count(items[0])), 0)

        def absolute_plus(self, items: list[Any]) -> Address:
            return Address(Integer(parse_integer(items[0])), parse_integer(items[1]))

        def base_plus(self, items: list[Any]) -> Address:
            return Address(Name(str(items[0])), _count(items[1]))

        def address(self, items: list[Any]) -> Address:
            return items[0]._replace(extra=tuple(items[1:])) if len(items) > 1 else items[0]

        def indexed(self, items: list[Any]) -> Address:
            return Address(Name(str(items[0])), _count(items[1]))

        def guard(self, items: list[Any]) -> Guard:
            return Guard(str(items[0]), False)

        def negative_guard(self, items: list[Any]) -> Guard:
            return Guard(str(items[0]), True)

        def instruction(self, items: list[Any]) -> Statement:
            if type(items[0]) is Guard:
                opcode = items[1]
                return Statement(str(opcode), tuple(items[2:]), items[0], opcode.line)
            opcode = items[0]
            return Statement(str(opcode), tuple(items[1:]), None, opcode.line)

        def plain(self, items: list[Any]) -> Statement:
            return plain_instruction(items[0], items[0].line)

        def label(self, items: list[Any]) -> Label:
            return Label(items[0].rstrip(": \t\r\n"), items[0].line)

        def targets(self, items: list[Any]) -> Any:
            names, kind, line = [], "", 0
            label = None
            for item in items:
                if item.type == "LABEL":
                    label, line = item.rstrip(": \t\r\n"), item.line
                elif item.type == "BRANCHTARGETS":
                    kind, line = item[1:], item.line
                else:
                    names.append(str(item))
            return Targets(kind, label or "", tuple(names), line)

        def prototype(self, items: list[Any]) -> Any:
            label = items[0]
            return Targets("callprototype", label.rstrip(": \t\r\n"), (), label.line)

        def reg_name(self, items: list[Any]) -> tuple[str, int | None]:
            return str(items[0]), parse_integer(items[1]) if len(items) > 1 else None

        def registers(self, items: list[Any]) -> Registers:
            kinds = [str(i)[1:] for i in items if not isinstance(i, tuple)]
            names = tuple(i for i in items if isinstance(i, tuple))
            return Registers(kinds[-1], names, int(kinds[0][1:]) if kinds[0] in ("v2", "v4") else 0)

        def scope(self, items: list[Any]) -> Scope:
            return Scope(tuple(items))

        def dim(self, items: list[Any]) -> Any:
            return ("dim", _count(items[0]) if items else 0)

        def var_part(self, items: list[Any]) -> Any:
            return ("part", str(items[0])[1:])

        def var_align(self, items: list[Any]) -> Any:
            return ("align", parse_integer(items[0]))

        def ignored(self, items: list[Any]) -> Any:
            return Discard

        def attribute_item(self, items: list[Any]) -> Any:
            return Discard

        def initial(self, items: list[Any]) -> Any:
            return items[0]

        def symbolic(self, items: list[Any]) -> Name:
            return Name(str(items[0]), sum(map(_count, items[1:])))

        def masked_initial(self, items: list[Any]) -> Any:
            return ("mask", parse_integer(items[0]), items[1])

        def braces(self, items: list[Any]) -> Any:
            return list(items)

        def numbers(self, items: list[Any]) -> Any:
            return [Integer(int(word)) for word in items[0].strip("{}").split(",")]

        def declarator(self, items: list[Any]) -> Any:
            shape = tuple(i[1] for i in items[1:] if isinstance(i, tuple) and i and i[0] == "dim")
            rest = [i for i in items[1:] if not (isinstance(i, tuple) and i and i[0] == "dim")]
            return ("var", items[0], shape, rest[0] if rest else None)

        def declarators(self, items: list[Any]) -> list[Any]:
            return items

        def variable(self, items: list[Any]) -> Any:
            external = any(i == _EXTERN for i in items if isinstance(i, str))
            space = next(i for i in items if getattr(i, "type", "") == "SPACE")
            return [
                _variable(str(space)[1:], items, name, shape, initial, external)
                for _, name, shape, initial in items[-1]
            ]

        def param(self, items: list[Any]) -> Variable:
            name = next(i for i in items if getattr(i, "type", "") == "WORD")
            # A pointer's own alignment (.ptr .align n) says nothing about the parameter's.
            pointer = any(getattr(i, "type", "") == "PTR" for i in items)
            parts = [i for i in items if isinstance(i, tuple) and not (pointer and i[0] == "align")]
            shape = tuple(i[1] for i in items if isinstance(i, tuple) and i[0] == "dim")
            return _variable(str(items[0])[1:], parts, name, shape, None, False)

        def reg_param(self, items: list[Any]) -> Variable:
            return Variable("reg", str(items[0])[1:], str(items[1]), (), 0, None, False, 1, items[1].line)

        def params(self, items: list[Any]) -> Any:
            return ("params", tuple(items))

        def perf(self, items: list[Any]) -> Any:
            if items[0] == ";":
                return Discard
            return ("perf", str(items[0])[1:], tuple(parse_integer(i) for i in items[1:]))

        def body(self, items: list[Any]) -> Any:
            return ("body", None)

        def full_body(self, items: list[Any]) -> Any:
            return ("body", tuple(items))

        def alias(self, items: list[Any]) -> Any:
            return ("alias", str(items[0]), str(items[1]))

        def entry(self, items: list[Any]) -> Function:
            return _function(items, True)

        def func(self, items: list[Any]) -> Function:
            return _function(items, False)

    return Lark(
        GRAMMAR,
        parser="lalr",
        lexer="contextual",
        transformer=Actions(),
        maybe_placeholders=False,
        cache=False,
    )


def _count(item: Any) -> int:
    """A number or an integer expression, as an offset or a size."""
    if isinstance(item, Float):
        raise PtxError(f"a floating-point expression of value {item.value}, expected an integer one")
    return item.value if isinstance(item, Integer) else parse_integer(item)


def _variable(
    space: str, parts: list[Any], name: Any, shape: tuple[int, ...], initial: Any, external: bool
) -> Variable:
    kind, vector, alignment = "", 1, 0
    for part in parts:
        if not isinstance(part, tuple):
            continue
        if part[0] == "align":
            alignment = part[1]
        elif part[0] == "part":
            for word in part[1].split("."):
                if word in ("v2", "v4"):
                    vector = int(word[1])
                elif word not in ("unified",):
                    kind = word
    if initial is not None and not isinstance(initial, list):
        initial = [initial]
    return Variable(
        space,
        kind,
        str(name),
        shape,
        alignment,
        None if initial is None else tuple(initial),
        external,
        vector,
        name.line,
    )


def _function(items: list[Any], entry: bool) -> Function:
    name = next(i for i in items if getattr(i, "type", "") == "WORD")
    before: tuple[Variable, ...] = ()
    after: tuple[Variable, ...] = ()
    seen_name = False
    directives, body = [], None
    for item in items:
        if item is name:
            seen_name = True
        elif isinstance(item, tuple) and item and item[0] == "params":
            if seen_name:
                after = item[1]
            else:
                before = item[1]
        elif isinstance(item, tuple) and item and item[0] == "perf":
            directives.append((item[1], item[2]))
        elif isinstance(item, tuple) and item and item[0] == "body":
            body = item[1]
    return Function(str(name), entry, before, after, tuple(directives), body, name.line)


def parse(text: str) -> SyntaxTree:
    """Parse a PTX module.

    Parameters
    ----------
    text : str
        The module as text.

    Returns
    -------
    SyntaxTree
        Its variables, functions and source files.
    """
    from lark.exceptions import UnexpectedInput

    text = text.rstrip("\0 \n\t")
    try:
        tree = _lark().parse(text)
    except UnexpectedInput as error:
        lines = text.splitlines()
        line = error.line if isinstance(error.line, int) and error.line > 0 else len(lines)
        shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        raise PtxError(f"cannot parse {shown!r} (column {error.column}) as PTX", line) from None
    version, target = "", ""
    files: dict[int, str] = {}
    variables: list[Variable] = []
    functions: list[Function] = []
    aliases: dict[str, str] = {}
    for item in tree.children:
        kind = getattr(item, "type", "")
        if isinstance(item, Function):
            functions.append(item)
        elif isinstance(item, list):
            variables.extend(item)
        elif kind == "VERSION":
            version = item.split()[1]
        elif kind == "TARGET":
            target = item.split(None, 1)[1].replace(" ", "")
        elif isinstance(item, SourceFile):
            files[item.number] = item.name
        elif isinstance(item, tuple) and item and item[0] == "alias":
            aliases[item[1]] = item[2]
    for function in functions:
        files.update((i.number, i.name) for i in function.body or () if isinstance(i, SourceFile))
    return SyntaxTree(version, target, files, tuple(variables), tuple(functions), aliases)


@lru_cache(maxsize=32)
def cached_parse(text: str) -> SyntaxTree:
    """`parse`, remembering the trees of the modules parsed last; a tree is never changed."""
    return parse(text)


def _file_name(text: str) -> str:
    quoted = text.split('"')[1::2]
    if len(quoted) > 1 and not quoted[1].startswith("/"):
        return quoted[0].rstrip("/") + "/" + quoted[1]
    return quoted[-1] if quoted else text.split(",")[0].strip()


def flatten(body: tuple[object, ...]) -> list[object]:
    """The statements of a body with variable lists unpacked; scopes stay nested."""
    result: list[object] = []
    for item in body:
        if isinstance(item, list):
            result.extend(item)
        else:
            result.append(item)
    return result
