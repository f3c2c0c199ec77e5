"""`tilus compile`: a kernel ahead of time, to files that need no Python."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilus.cli import UsageError, kernels

if TYPE_CHECKING:
    from tilus.runtime.aot import Package, VariantRequest

_EXAMPLES = """\
examples:
  tilus compile matmul.py::matmul --target sm_80 --target sm_90a -o build
  tilus compile matmul.py::matmul --target sm_90a --set block_m=128 --variant 'm <= 16: block_m=16' -o build
"""


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "compile",
        help="compile a kernel ahead of time: PTX, cubin, C and a manifest",
        description="Compile a kernel ahead of time to PTX, cubin, a C99 header and source, and a JSON manifest.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kernels.add_kernel_arguments(parser)
    parser.add_argument(
        "--target", action="append", required=True, metavar="TARGET", help="such as sm_90a; may be repeated"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="CONDITION: NAME=VALUE, ...",
        help="other constexpr values where a condition on sizes and scalars holds; the first that fits is taken",
    )
    parser.add_argument("--name", help="name of the C function and of the files (default: the kernel's)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("."), metavar="DIR", help="folder for the files"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compile, write, and list what was written."""
    from tilus.runtime.aot import build

    constexprs = kernels.read_constexprs(options.constexprs)
    dtypes = kernels.read_pairs(options.dtypes, "--arg")
    sizes = kernels.read_sizes(options.sizes)
    variants = [read_variant(text) for text in options.variant]
    kernel = kernels.find_kernel(options.kernel)
    kernels.check_constexprs(kernel, constexprs, dtypes)
    package = build(
        kernel,
        options.target,
        constexprs=constexprs,
        dtypes=dtypes,
        sizes=sizes,
        variants=variants,
        name=options.name,
    )
    try:
        paths = package.write(options.output)
    except OSError as error:
        raise UsageError(f"{options.output} cannot be written to: {error.strerror or error}") from None
    print(table(package))
    for note in package.notes:
        print(note)
    print(f"\n{len(paths)} files in {options.output}:")
    print("  " + " ".join(path.name for path in paths))
    return 0


def read_variant(text: str) -> VariantRequest:
    """Read `CONDITION: NAME=VALUE, ...`."""
    from tilus.runtime.aot import VariantRequest

    condition, colon, values = text.partition(":")
    if not colon or not condition.strip() or not values.strip():
        raise UsageError(f"--variant {text!r}: expected CONDITION: NAME=VALUE, such as 'm <= 16: block_m=16'")
    return VariantRequest(kernels.read_constexprs(_split(values), "--variant"), condition.strip())


def _split(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def table(package: Package) -> str:
    """Return what was compiled and what it takes, as text."""
    rows = [("variant", "target", "registers", "spills", "shared", "cubin")]
    for number, variant in enumerate(package.variants):
        for binary in variant.binaries:
            resources = binary.resources
            rows.append(
                (
                    f"{number}: {variant.comment}",
                    binary.target,
                    "-" if resources is None else str(resources.registers),
                    "-" if resources is None else str(resources.spill_stores + resources.spill_loads),
                    str(
                        binary.signature.shared_bytes
                        + (resources.shared_static if resources is not None else 0)
                    ),
                    "none" if binary.cubin is None else f"{len(binary.cubin)} bytes",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )
