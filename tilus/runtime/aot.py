"""Ahead of time: a kernel's variants compiled for several targets, as files that need no Python.

`build` compiles, `Package.write` writes PTX, cubin, a C99 header and source, and a JSON manifest, which
`tilus.load_manifest` reads back. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tilus.codegen import target as find_target
from tilus.codegen.assemble import assemble, available
from tilus.errors import TilusError
from tilus.runtime import aot_c, host_expression
from tilus.runtime.arguments import Declared
from tilus.runtime.binary import Binary
from tilus.runtime.cache import write_file
from tilus.runtime.host_expression import Expression
from tilus.runtime.kernel import Kernel, compile_variant
from tilus.runtime.signature import ParameterType
from tilus.runtime.specialize import assumed_types, extent_name

ABI_VERSION = aot_c.ABI_VERSION


@dataclass(frozen=True)
class VariantRequest:
    """A variant to be made: constexpr values, and when it is taken.

    Attributes
    ----------
    constexprs : mapping
        Values that differ from those of the package.
    condition : str, optional
        An expression of sizes and scalars, such as ``m <= 16``; without it the variant is always taken.
    """

    constexprs: Mapping[str, object]
    condition: str | None = None


@dataclass(frozen=True)
class Variant:
    """A compiled variant: when it is taken, what it is for people, and its code by target."""

    condition: Expression
    comment: str
    binaries: tuple[Binary, ...]


@dataclass(frozen=True)
class Package:
    """A kernel compiled ahead of time.

    Attributes
    ----------
    name : str
        Name of the C function and of the files.
    parameters : tuple of Declared
        What a launch takes.
    variants : tuple of Variant
        What was compiled; a launch takes the first that fits.
    notes : tuple of str
        What could not be compiled, and why.
    """

    name: str
    parameters: tuple[Declared, ...]
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()

    def files(self) -> dict[str, bytes]:
        """Return the files by name."""
        from tilus import __version__

        written_by = f"tilus {__version__}"
        files: dict[str, bytes] = {}
        for number, variant in enumerate(self.variants):
            for binary in variant.binaries:
                stem = f"{self.name}.{number}.{binary.target}"
                files[f"{stem}.ptx"] = binary.ptx.encode()
                if binary.cubin is not None:
                    files[f"{stem}.cubin"] = binary.cubin
        c_variants = [self._c_variant(variant) for variant in self.variants]
        files[f"{self.name}.h"] = aot_c.header(self.name, self.parameters, c_variants, written_by).encode()
        files[f"{self.name}.c"] = aot_c.source(self.name, self.parameters, c_variants, written_by).encode()
        manifest = json.dumps(self.manifest(files, written_by), indent=1, sort_keys=True)
        files[f"{self.name}.json"] = manifest.encode() + b"\n"
        return files

    def write(self, directory: Path) -> list[Path]:
        """Write the files and return their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, data in self.files().items():
            write_file(directory / name, data)
            paths.append(directory / name)
        return paths

    def manifest(self, files: Mapping[str, bytes], written_by: str) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        return {
            "abi": ABI_VERSION,
            "written_by": written_by,
            "name": self.name,
            "parameters": [
                {"name": p.name, "kind": p.kind, "dtype": p.dtype.name, "dims": list(p.dims)}
                for p in self.parameters
            ],
            "variants": [
                {
                    "condition": host_expression.to_json(variant.condition),
                    "comment": variant.comment,
                    "images": [self._image_json(number, binary, files) for binary in variant.binaries],
                }
                for number, variant in enumerate(self.variants)
            ],
        }

    def _image_json(self, number: int, binary: Binary, files: Mapping[str, bytes]) -> dict[str, Any]:
        stem = f"{self.name}.{number}.{binary.target}"
        code = {
            kind: {"file": f"{stem}.{kind}", "sha256": hashlib.sha256(files[f"{stem}.{kind}"]).hexdigest()}
            for kind in ("ptx", "cubin")
            if f"{stem}.{kind}" in files
        }
        return {
            "target": binary.target,
            "signature": binary.signature.to_json(),
            "resources": None if binary.resources is None else asdict(binary.resources),
            **code,
        }

    def _c_variant(self, variant: Variant) -> aot_c.CVariant:
        images: list[aot_c.Image] = []
        newest_first = sorted(variant.binaries, key=lambda binary: capability_of(binary.target), reverse=True)
        for binary in newest_first:
            if binary.cubin is not None:
                images.append(self._image(binary, binary.cubin, is_ptx=False))
        for binary in newest_first:
            if not (binary.cubin is not None and is_specific(binary.target)):
                images.append(self._image(binary, binary.ptx.encode() + b"\0", is_ptx=True))
        return aot_c.CVariant(
            variant.condition, variant.comment, variant.binaries[0].signature, tuple(images)
        )

    def _image(self, binary: Binary, data: bytes, is_ptx: bool) -> aot_c.Image:
        first, last = capabilities(binary.target, is_ptx)
        comment = f"{binary.target}, {'PTX' if is_ptx else 'cubin'}"
        return aot_c.Image(data, first, last, binary.signature, comment)


def capability_of(target: str) -> int:
    """Return 10 times the major plus the minor compute capability that a target is named after."""
    return int(target.removeprefix("sm_").rstrip("af"))


def is_specific(target: str) -> bool:
    """Tell whether code for a target runs on that one architecture only."""
    return target.endswith("a")


def capabilities(target: str, is_ptx: bool) -> tuple[int, int]:
    """Return the first and last compute capability on which a target's code runs.

    A cubin runs on its own major version from its minor version on, PTX on all that is newer, and both for a target
    whose name ends in `a` on that architecture alone (CUDA programming guide, binary and PTX compatibility).
    """
    own = capability_of(target)
    if is_specific(target):
        return own, own
    return own, 9999 if is_ptx else own // 10 * 10 + 9


def build(
    kernel: Kernel,
    targets: Sequence[str],
    *,
    constexprs: Mapping[str, object] | None = None,
    dtypes: Mapping[str, object] | None = None,
    sizes: Mapping[str, int] | None = None,
    variants: Sequence[VariantRequest] = (),
    name: str | None = None,
) -> Package:
    """Compile a kernel ahead of time.

    Each request gives two variants: one for tensors that begin, and have rows and last extents, at multiples of 16
    bytes, and one for all others, unless the kernel needs such tensors; both need a last stride of 1.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    targets : sequence of str
        Such as ``["sm_80", "sm_90a"]``.
    constexprs : mapping, optional
        Values of constexpr parameters.
    dtypes : mapping, optional
        Dtypes of parameters whose annotation names a constexpr.
    sizes : mapping, optional
        Named dimensions whose sizes are fixed.
    variants : sequence of VariantRequest
        Further variants, which are tried first, in order.
    name : str, optional
        Name of the C function and of the files; the kernel's unless given.

    Returns
    -------
    Package
    """
    if not targets:
        raise TilusError("nothing to compile for", hint="--target sm_90a")
    names = list(dict.fromkeys(find_target(target).name for target in targets))
    requests = [*variants, VariantRequest({})]
    made: list[Variant] = []
    parameters: tuple[Declared, ...] | None = None
    title = aot_c.function_name(name or kernel.source.name)
    notes: list[str] = []
    for request in requests:
        chosen = {**(constexprs or {}), **request.constexprs}
        values, declared = parameters_for(kernel, chosen, dtypes or {}, sizes or {})
        if parameters is not None and declared != parameters:
            raise TilusError(
                f"a variant of {title} has other parameters than the first: constexprs that decide dtypes and sizes "
                "are the same in all variants",
                hint="another package, with a name of its own",
            )
        parameters = declared
        condition: Expression = 1
        if request.condition is not None:
            condition = host_expression.parse(request.condition, _names(declared))
        seen: set[tuple[ParameterType, ...]] = set()
        for aligned in (True, False):
            types = assumed_types(declared, aligned=aligned)
            if types in seen:
                continue
            seen.add(types)
            comment = _comment(request, aligned)
            try:
                binaries = tuple(_compile(kernel, values, types, target) for target in names)
            except TilusError as error:
                if aligned:
                    raise
                # Some kernels are for aligned tensors only, such as those with bulk copies.
                notes.append(f"no variant for {comment}: {error.message}")
                continue
            _check_same_arguments(binaries)
            made.append(Variant(condition, comment, binaries))
    assert parameters is not None
    return Package(title, parameters, tuple(made), tuple(notes))


def parameters_for(
    kernel: Kernel, constexprs: Mapping[str, object], dtypes: Mapping[str, object], sizes: Mapping[str, int]
) -> tuple[dict[str, object], tuple[Declared, ...]]:
    """Return all constexpr values, and the run-time parameters for them.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    constexprs, dtypes, sizes : mapping
        As for `build`.
    """
    chosen = {**kernel.bound, **constexprs}
    _take_dtypes(kernel, chosen, dtypes)
    values = kernel.source.complete(chosen)
    return values, _with_sizes(kernel, kernel.declared(values), sizes)


def _take_dtypes(kernel: Kernel, chosen: dict[str, object], given: Mapping[str, object]) -> None:
    from tilus.dtypes import dtype

    specs = {param.name: param for param in kernel.source.runtime_params}
    for name, value in given.items():
        if name not in specs:
            raise TilusError(
                f"{kernel.source.name} has no run-time parameter {name!r}", hint="one of " + ", ".join(specs)
            )
        try:
            wanted = dtype(value)
        except (TypeError, ValueError) as error:
            raise TilusError(f"the dtype of {name}: {error}") from None
        declared = specs[name].dtype
        if isinstance(declared, str):
            if chosen.setdefault(declared, wanted) != wanted:
                raise TilusError(
                    f"{declared}, the dtype of {name}, is given as {chosen[declared]} and as {wanted}"
                )
        elif declared != wanted:
            raise TilusError(f"{name} is declared as {declared}, but is given the dtype {wanted}")


def _with_sizes(
    kernel: Kernel, declared: tuple[Declared, ...], sizes: Mapping[str, int]
) -> tuple[Declared, ...]:
    known = {dim for parameter in declared for dim in parameter.dims if isinstance(dim, str)}
    for name in sizes:
        if name not in known:
            raise TilusError(
                f"{kernel.source.name} has no dimension {name!r}", hint="one of " + ", ".join(sorted(known))
            )
    return tuple(
        replace(
            parameter,
            dims=tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in parameter.dims),
        )
        for parameter in declared
    )


def _names(declared: Sequence[Declared]) -> dict[str, tuple[str, str]]:
    names: dict[str, tuple[str, str]] = {}
    for parameter in declared:
        if parameter.kind == "scalar" and (parameter.dtype.is_integer or parameter.dtype.is_boolean):
            names[parameter.name] = ("scalar", parameter.name)
    for parameter in declared:
        for axis, dim in enumerate(parameter.dims):
            if not isinstance(dim, int):
                label = dim or extent_name(parameter.name, axis)
                names[label] = ("size", label)
    return names


def _compile(
    kernel: Kernel, values: dict[str, object], types: tuple[ParameterType, ...], target: str
) -> Binary:
    binary = Binary.of(compile_variant(kernel.source, values, types, target, assemble=False))
    # The names of folders are nobody's business, and would make the output depend on them.
    ptx = re.sub(r'^(\s*\.file\s+\d+\s+")[^"]*[/\\]([^"/\\]*")', r"\1\2", binary.ptx, flags=re.MULTILINE)
    if available() is not None:
        return replace(binary, ptx=ptx)
    cubin, resources = assemble(ptx, find_target(target), binary.signature.name)
    return replace(binary, ptx=ptx, cubin=cubin, resources=resources)


def _check_same_arguments(binaries: Sequence[Binary]) -> None:
    """Check that code for all targets takes the same arguments but for tensor maps, as the C passes them."""
    first = binaries[0].signature
    for binary in binaries[1:]:
        other = binary.signature
        if (other.types, other.sizes, other.grid) != (first.types, first.sizes, first.grid):
            raise TilusError(
                f"{first.name} takes other arguments on {binary.target} than on {binaries[0].target}",
                hint="a package for each of these targets",
            )


def _comment(request: VariantRequest, aligned: bool) -> str:
    values = ", ".join(f"{name}={value}" for name, value in request.constexprs.items())
    when = f"if {request.condition}" if request.condition else "always"
    facts = "16-byte aligned" if aligned else "any alignment"
    text = "; ".join(part for part in (facts, values, when) if part)
    # It stands in C comments.
    return text.replace("*/", "* /").replace("\n", " ")
