"""The C99 header and source of a kernel that is compiled ahead of time.

The C needs `cuda.h` alone and the driver's library API (CUDA 12), which loads code once for all contexts. It never
prints or exits, takes no locks after the first launch on a device, and computes grid, shared memory and sizes itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tilus.codegen.lower.hopper import TensorMap
from tilus.errors import TilusError
from tilus.ir import Extent, GlobalType, PointerType, Symbol
from tilus.runtime import aot_text
from tilus.runtime.arguments import Declared
from tilus.runtime.driver import DEFAULT_SHARED_BYTES, PORTABLE_CLUSTER
from tilus.runtime.host_expression import Expression, leaves, to_c
from tilus.runtime.signature import Signature, scalar_format
from tilus.runtime.tensor_maps import BYTES as MAP_BYTES
from tilus.runtime.tensor_maps import swizzle_name, type_names

ABI_VERSION = 1

_SCALARS = {
    "B": "uint8_t", "b": "int8_t", "H": "uint16_t", "h": "int16_t", "I": "uint32_t", "i": "int32_t", "Q": "uint64_t",
    "q": "int64_t", "e": "uint16_t", "f": "float", "d": "double",
}  # fmt: skip
_TAKEN = frozenset(
    # Keywords of C and C++.
    """auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    alignas alignof and_eq asm bitand bitor bool catch char16_t char32_t char8_t class co_await co_return co_yield compl
    concept const_cast consteval constexpr constinit decltype delete dynamic_cast explicit export false friend mutable
    namespace new noexcept not_eq nullptr operator or_eq private protected public reinterpret_cast requires
    static_assert static_cast template this thread_local throw true try typeid typename using virtual wchar_t xor xor_eq
    """
    # Functions of the C library, which compilers know and other libraries call.
    """abort abs accept acos asin atan atan2 atexit atof atoi bind bsearch calloc cbrt ceil clock close connect copysign
    cos cosh div dup erf erfc exit exp exp2 expm1 fabs fclose fdim floor fma fmax fmin fmod fopen fork fread free frexp
    fwrite gamma getc getenv gets hypot ilogb index j0 j1 jn kill labs ldexp lgamma link listen log log10 log1p log2
    logb lrint lround malloc memchr memcmp memcpy memmove memset modf nan nearbyint open pipe poll pow printf putc puts
    qsort rand random read realloc remainder remove rename rint round scalbn scanf select send signal sin sinh sleep
    snprintf socket sprintf sqrt srand stat strcat strchr strcmp strcpy strlen sync system tan tanh tgamma time trunc
    wait write y0 y1 yn
    """
    # Macros that compilers and the C library define.
    "assert errno i386 linux stderr stdin stdout unix "
    # What the generated code calls its own.
    "stream invalid problem arguments grid status chosen main NULL".split()
)
_LOCAL = re.compile(
    r"size_.*|tilus_.*|passed_.*|.*_strides|.*_pointer|TILUS_.*|FLAG_.*|.*_t|INT\d+_.*|cu[A-Z].*|CU.*",
    re.DOTALL,
)
"""Names that the generated code makes for itself, and those of the types and functions that it uses."""


@dataclass(frozen=True)
class Image:
    """Code of one variant for some devices.

    Attributes
    ----------
    data : bytes
        A cubin, or PTX that ends in a zero byte.
    first, last : int
        Compute capabilities that it runs on, as 10 times the major plus the minor version.
    signature : Signature
        What a launch needs.
    comment : str
        What it is.
    """

    data: bytes
    first: int
    last: int
    signature: Signature
    comment: str


@dataclass(frozen=True)
class CVariant:
    """A variant: when it is taken, what its code relies on, and its code, the best first."""

    condition: Expression
    comment: str
    signature: Signature
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Names:
    """What parameters and sizes are called in C."""

    parameters: tuple[str, ...]
    sizes: Mapping[tuple[str, str], str]


def c_identifier(name: str) -> str:
    """Return a parameter's name as C takes it."""
    return function_name(name) + "_" if _LOCAL.fullmatch(name) else function_name(name)


def function_name(name: str) -> str:
    """Return a kernel's name as C takes it."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise TilusError(f"{name!r} cannot be a name in C", hint="letters of ASCII, digits and underscores")
    return name + "_" if name in _TAKEN else name


def dimension_name(parameter: Declared, axis: int) -> str | None:
    """Return the name of a dimension in expressions, or None if its size is fixed."""
    dim = parameter.dims[axis]
    return None if isinstance(dim, int) else dim or f"{parameter.name}_d{axis}"


def make_names(parameters: Sequence[Declared]) -> Names:
    """Choose the names in C."""
    names = tuple(c_identifier(parameter.name) for parameter in parameters)
    sizes: dict[tuple[str, str], str] = {}
    for parameter, name in zip(parameters, names, strict=True):
        if parameter.kind == "scalar":
            if parameter.dtype.is_integer or parameter.dtype.is_boolean:
                sizes["scalar", parameter.name] = f"(int64_t){name}"
        for axis in range(len(parameter.dims)):
            dim = dimension_name(parameter, axis)
            if dim is not None:
                sizes.setdefault(("size", dim), f"size_{c_identifier(dim)}")
            sizes["size", f"{parameter.name}_s{axis}"] = f"{name}_strides[{axis}]"
    return Names(names, sizes)


def argument_list(name: str, parameters: Sequence[Declared], names: Names) -> str:
    """Return the parameters of the launch function."""
    parts = ["CUstream stream"]
    for parameter, identifier in zip(parameters, names.parameters, strict=True):
        if parameter.kind == "tensor":
            parts.append(f"const {name}_tensor{len(parameter.dims)} *{identifier}")
        elif parameter.kind == "pointer":
            parts.append(f"void *{identifier}")
        else:
            parts.append(f"{_SCALARS[scalar_format(parameter.dtype)]} {identifier}")
    return ", ".join(parts)


def header(name: str, parameters: Sequence[Declared], variants: Sequence[CVariant], written_by: str) -> str:
    """Return the header."""
    upper = name.upper()
    names = make_names(parameters)
    ranks = sorted({len(parameter.dims) for parameter in parameters if parameter.kind == "tensor"})
    structs = "\n".join(
        f"typedef struct {name}_tensor{rank} {{\n    void *data;\n    int64_t shape[{rank}];\n"
        f"    int64_t strides[{rank}];\n}} {name}_tensor{rank};\n"
        for rank in ranks
    )
    described = "\n".join(f" *   {names.parameters[i]}: {_describe(p)}" for i, p in enumerate(parameters))
    listed = "\n".join(f" *   {number}: {variant.comment}" for number, variant in enumerate(variants))
    return f"""\
/* {name}, compiled ahead of time by {written_by}. Do not edit.
 *
 * Needs cuda.h and the CUDA driver (12.0 or later), and nothing else.
 *
 * Arguments; shapes and strides count elements, the last dimension first varies fastest where its stride is 1:
{described}
 *
 * Variants, of which a launch takes the first that fits:
{listed}
 */
#ifndef TILUS_{upper}_H
#define TILUS_{upper}_H

#include <cuda.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_ABI_VERSION {ABI_VERSION}

typedef enum {name}_status {{
    {upper}_OK = 0,
    {upper}_NULL_ARGUMENT = 1,
    {upper}_INVALID_SHAPE = 2,
    {upper}_SHAPE_MISMATCH = 3,
    {upper}_NO_VARIANT = 4,
    {upper}_INVALID_GRID = 5,
    {upper}_DEVICE_NOT_SUPPORTED = 6,
    {upper}_NOT_PREPARED = 7,
    /* {upper}_DRIVER_ERROR + CUresult: the driver reported an error. */
    {upper}_DRIVER_ERROR = 1000,
    {upper}_DRIVER_ERROR_LAST = 1999
}} {name}_status;

{structs}
/* Load the code for the device of the current context. Launches do that too, but not while a CUDA graph is being
 * captured. Safe from any thread, and cheap when there is nothing left to do. */
{name}_status {name}_prepare(void);

/* Launch on a stream of the current context. A grid without blocks is no launch, and succeeds. */
{name}_status {name}({argument_list(name, parameters, names)});

/* Say a status in words; the text is static. */
const char *{name}_strerror({name}_status status);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _describe(parameter: Declared) -> str:
    note = ""
    if parameter.kind == "scalar" and parameter.dtype.name in ("float16", "bfloat16"):
        note = ", passed as its bits"
    elif parameter.kind != "scalar" and parameter.dtype.is_subbyte:
        note = ", bit-compact, the first element in the lowest bits"
    return f"{parameter}{note}"


def source(name: str, parameters: Sequence[Declared], variants: Sequence[CVariant], written_by: str) -> str:
    """Return the source."""
    images = [image for variant in variants for image in variant.images]
    unique = list(dict.fromkeys(image.data for image in images))
    arrays = "\n".join(
        f"static const unsigned char tilus_image_{i}[{len(data)}] = {{\n{_bytes(data)}}};\n"
        for i, data in enumerate(unique)
    )
    rows = []
    for image in images:
        signature = image.signature
        rows.append(
            f"    {{tilus_image_{unique.index(image.data)}, {image.first}, {image.last}, {signature.threads}, "
            f"{signature.shared_bytes}, {prod(signature.cluster)}, {int(signature.overlaps)}}}, /* {image.comment} */"
        )
    firsts, total = [], 0
    for variant in variants:
        firsts.append(total)
        total += len(variant.images)
    firsts.append(total)
    launch = aot_text.LAUNCH_OVERLAPPING if any(i.signature.overlaps for i in images) else ""
    return "\n".join(
        [
            f"/* {name}, compiled ahead of time by {written_by}. Do not edit. */",
            f'#include "{name}.h"\n\n#include <stddef.h>\n#include <string.h>\n',
            aot_text.ATOMICS,
            arrays,
            aot_text.STATE.format(
                rows="\n".join(rows), images=total, variants=len(variants), firsts=", ".join(map(str, firsts)),
            ),
            aot_text.LOAD.format(
                name=name, upper=name.upper(), entry=variants[0].signature.name, shared=DEFAULT_SHARED_BYTES,
                portable=PORTABLE_CLUSTER,
            ),
            aot_text.LAUNCH.format(name=name, overlapping=launch),
            _helpers(variants),
            _launch(name, parameters, variants),
            aot_text.STRERROR.format(name=name, upper=name.upper()),
        ]
    )  # fmt: skip


def _bytes(data: bytes) -> str:
    return "".join(
        "    " + ", ".join(str(byte) for byte in data[start : start + 24]) + ",\n"
        for start in range(0, len(data), 24)
    )


def _operations(expression: Expression) -> Iterator[str]:
    if isinstance(expression, tuple) and expression[0] not in ("size", "scalar"):
        yield expression[0]
        for operand in expression[1:]:
            yield from _operations(operand)


def _helpers(variants: Sequence[CVariant]) -> str:
    """Return the helpers that expressions use, and no others, so that compilers do not warn."""
    used = {op for v in variants for e in (*v.signature.grid, v.condition) for op in _operations(e)}
    wanted = {aot_text.USES[op] for op in used if op in aot_text.USES}
    return "\n".join(text for helper, text in aot_text.HELPERS.items() if helper in wanted)


def _launch(name: str, parameters: Sequence[Declared], variants: Sequence[CVariant]) -> str:
    upper, names = name.upper(), make_names(parameters)
    tensors = [(p, n) for p, n in zip(parameters, names.parameters, strict=True) if p.kind == "tensor"]
    lines = [f"{name}_status {name}({argument_list(name, parameters, names)}) {{"]
    lines += [f"    int64_t {n}_strides[{len(p.dims)}];" for p, n in tensors]
    declared, checks = _sizes(upper, parameters, names)
    lines += [
        "    int64_t grid[3];",
        "    int invalid = 0;",
        "    long chosen;",
        f"    {name}_status status;",
        *([] if not tensors else ["    int problem;"]),
        *declared,
    ]
    used = _names_used(variants)
    for parameter, identifier in zip(parameters, names.parameters, strict=True):
        if parameter.kind == "pointer":
            lines.append(f"    if ({identifier} == NULL) return {upper}_NULL_ARGUMENT;")
    for parameter, n in tensors:
        lines += [
            f"    if ({n} == NULL) return {upper}_NULL_ARGUMENT;",
            f"    problem = tilus_check_tensor({n}->data, {len(parameter.dims)}, {n}->shape, {n}->strides,",
            f"                                 {n}_strides);",
            f"    if (problem) return problem == 1 ? {upper}_NULL_ARGUMENT : {upper}_INVALID_SHAPE;",
        ]
    lines += checks
    # A size that no variant reads is only compared.
    unread = [c for (_, size), c in names.sizes.items() if c.startswith("size_") and size not in used]
    lines += [f"    (void){identifier};" for identifier in unread]
    first_image = 0
    for number, variant in enumerate(variants):
        lines += _variant(number, first_image, variant, parameters, names)
        first_image += len(variant.images)
    lines += [f"    return {upper}_NO_VARIANT;", "}", ""]
    helpers = [aot_text.NORMALISE] if tensors else []
    if any(image.signature.tensor_maps for variant in variants for image in variant.images):
        helpers.append(aot_text.ENCODE)
    return "\n".join([*helpers, *lines])


def _names_used(variants: Sequence[CVariant]) -> set[str]:
    used = {leaf[1] for v in variants for e in (*v.signature.grid, v.condition) for leaf in leaves(e)}
    for variant in variants:
        used |= {size.name for size in variant.signature.sizes}
        for type in variant.signature.types:
            if isinstance(type, GlobalType):
                used |= {e.name for e in (*type.dims, *type.strides) if isinstance(e, Symbol)}
    return used


def _sizes(upper: str, parameters: Sequence[Declared], names: Names) -> tuple[list[str], list[str]]:
    """Return the declarations of named sizes, and the code that reads and compares them."""
    declarations, code = [], []
    seen: set[str] = set()
    for parameter, identifier in zip(parameters, names.parameters, strict=True):
        for axis, dim in enumerate(parameter.dims):
            here = f"{identifier}->shape[{axis}]"
            label = dimension_name(parameter, axis)
            if label is None:
                code.append(f"    if ({here} != {dim}) return {upper}_SHAPE_MISMATCH;")
                continue
            size = names.sizes["size", label]
            if label in seen:
                code.append(f"    if ({here} != {size}) return {upper}_SHAPE_MISMATCH;")
            else:
                declarations.append(f"    int64_t {size};")
                code.append(f"    {size} = {here};")
            seen.add(label)
    return declarations, code


def _variant(
    number: int, first_image: int, variant: CVariant, parameters: Sequence[Declared], names: Names
) -> list[str]:
    """Return the test and the launch of a variant whose first image has a number among all images."""
    signature = variant.signature
    tests = facts(variant, parameters, names)
    condition = " && ".join(tests) or "1"
    if len(condition) > 90:
        condition = " &&\n        ".join(tests)
    lines = [f"    /* {variant.comment} */", f"    if ({condition}) {{"]
    arguments = []
    for parameter, identifier in zip(parameters, names.parameters, strict=True):
        if parameter.kind == "tensor":
            lines.append(f"        uint64_t {identifier}_pointer = (uint64_t)(uintptr_t){identifier}->data;")
            arguments.append(f"&{identifier}_pointer")
        elif parameter.kind == "pointer":
            lines.append(f"        uint64_t {identifier}_pointer = (uint64_t)(uintptr_t){identifier};")
            arguments.append(f"&{identifier}_pointer")
        else:
            arguments.append(f"&{identifier}")
    for i, size in enumerate(signature.sizes):
        kind = "int32_t" if size.kind == "dim" else "int64_t"
        lines.append(f"        {kind} passed_{i} = ({kind}){names.sizes['size', size.name]};")
        arguments.append(f"&passed_{i}")
    # Tensor maps come last, so that code for a target that passes fewer ignores the others.
    most_maps = max(len(image.signature.tensor_maps) for image in variant.images)
    if most_maps:
        # C99 cannot align a variable; room is left for it.
        room = MAP_BYTES * (most_maps + 1)
        lines += [
            f"        unsigned char map_room[{room}];",
            f"        unsigned char *maps = map_room + ({MAP_BYTES}u - (uintptr_t)map_room % {MAP_BYTES}u);",
        ]
    arguments += [f"(maps + {MAP_BYTES * i})" for i in range(most_maps)]
    if not arguments:
        arguments.append("NULL")
    lines.append(f"        void *arguments[] = {{{', '.join(f'(void *){a}' for a in arguments)}}};")
    lines += [f"        grid[{i}] = {to_c(extent, names.sizes)};" for i, extent in enumerate(signature.grid)]
    lines += [
        f"        if (grid[{axis}] % {blocks} != 0) invalid = 1;"
        for axis, blocks in enumerate(signature.cluster)
        if blocks > 1
    ]
    lines += [
        f"        status = tilus_ready({number}, stream, grid, invalid, &chosen);",
        "        if (status != 0 || chosen == 0) return status;",
    ]
    users: dict[tuple[TensorMap, ...], list[int]] = {}
    for i, image in enumerate(variant.images):
        # Counted from 1, as in the table of loaded images.
        users.setdefault(image.signature.tensor_maps, []).append(first_image + i + 1)
    for wanted_maps, images in users.items():
        if wanted_maps:
            lines.append(f"        if ({' || '.join(f'chosen == {image}' for image in images)}) {{")
            for i, wanted in enumerate(wanted_maps):
                lines += _encode(i, wanted, names.parameters[wanted.param])
            lines.append("        }")
    lines += ["        return tilus_launch(chosen, stream, grid, arguments);", "    }"]
    return lines


def _encode(number: int, wanted: TensorMap, identifier: str) -> list[str]:
    """Return the code that makes a tensor map."""
    axes = ", ".join(map(str, wanted.axes))
    box = ", ".join(f"{extent}u" for extent in wanted.box)
    kind, swizzle = type_names(wanted.dtype)[0], swizzle_name(wanted)
    element = f"CU_TENSOR_MAP_DATA_TYPE_{kind}, {len(wanted.axes)}u, {wanted.dtype.bits // 8}"
    tensor = f"{identifier}->data, {identifier}->shape, {identifier}_strides"
    return [
        "            {",
        f"            static const int tilus_axes[] = {{{axes}}};",
        f"            static const cuuint32_t tilus_box[] = {{{box}}};",
        f"            problem = tilus_encode((CUtensorMap *)(void *)(maps + {MAP_BYTES * number}), {element},",
        f"                                   {tensor},",
        f"                                   tilus_axes, tilus_box, CU_TENSOR_MAP_SWIZZLE_{swizzle});",
        "            if (problem) return tilus_driver_status((CUresult)problem);",
        "            }",
    ]


def facts(variant: CVariant, parameters: Sequence[Declared], names: Names) -> list[str]:
    """Return the tests for all that a variant's code relies on, and for its condition."""
    tests: list[str] = []
    for parameter, identifier, type in zip(
        parameters, names.parameters, variant.signature.types, strict=True
    ):
        if isinstance(type, PointerType) and type.align > 1:
            tests.append(f"(uintptr_t){identifier} % {type.align} == 0")
        if isinstance(type, GlobalType):
            if type.align > 1:
                tests.append(f"(uintptr_t){identifier}->data % {type.align} == 0")
            for axis, extent in enumerate(type.dims):
                here = f"{identifier}->shape[{axis}]"
                tests += _extent_test(here, extent, names, dimension_name(parameter, axis))
            for axis, extent in enumerate(type.strides):
                here = f"{identifier}_strides[{axis}]"
                tests += _extent_test(here, extent, names, f"{parameter.name}_s{axis}")
    if variant.condition != 1:
        tests.append(to_c(variant.condition, names.sizes))
    return list(dict.fromkeys(tests))


def _extent_test(here: str, extent: Extent, names: Names, axis_name: str | None) -> list[str]:
    if not isinstance(extent, Symbol):
        # A size that is declared as fixed was compared before.
        return [] if axis_name is None else [f"{here} == {extent}"]
    known = names.sizes["size", extent.name]
    tests = [] if extent.name == axis_name else [f"{here} == {known}"]
    if extent.divisor > 1:
        tests.append(f"{known} % {extent.divisor} == 0")
    return tests
