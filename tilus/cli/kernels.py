"""What commands share: finding the kernel that FILE::KERNEL names, and reading values from the command line."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilus.cli import UsageError
from tilus.errors import TilusError

if TYPE_CHECKING:
    from tilus.runtime.kernel import Kernel


def add_kernel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which kernel is meant, and for which values."""
    parser.add_argument(
        "kernel", metavar="FILE::KERNEL", help="a Python file or module, and the kernel in it"
    )
    parser.add_argument(
        "--set",
        dest="constexprs",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="value of a constexpr parameter: a Python literal, a dtype or a layout; may be repeated",
    )
    parser.add_argument(
        "--arg",
        dest="dtypes",
        metavar="NAME=DTYPE",
        action="append",
        default=[],
        help="dtype of a run-time parameter whose annotation leaves it open; may be repeated",
    )
    parser.add_argument(
        "--size",
        dest="sizes",
        metavar="NAME=SIZE",
        action="append",
        default=[],
        help="a named dimension whose size is fixed when compiling; may be repeated",
    )


def find_kernel(name: str) -> Kernel:
    """Return the kernel that FILE::KERNEL names.

    The part before the colons is a path, or the name of a module; the part after them may be left out where there is
    one kernel only.
    """
    place, colons, kernel_name = name.partition("::")
    if not place or (colons and not kernel_name):
        raise UsageError(f"{name!r} names no kernel, expected FILE::KERNEL")
    module = load_module(place)
    kernels = {key: made for key, value in vars(module).items() if (made := _kernel_of(value)) is not None}
    found = ", ".join(kernels) or "none"
    if not colons:
        own = {
            key: value
            for key, value in kernels.items()
            if value.source.file == getattr(module, "__file__", None)
        }
        if len(own) != 1:
            raise UsageError(f"{place} has several kernels or none ({found}), expected {place}::KERNEL")
        return next(iter(own.values()))
    value: Any = module
    for part in kernel_name.split("."):
        value = getattr(value, part, None)
    kernel = _kernel_of(value)
    if kernel is None:
        raise UsageError(f"{place} has no kernel {kernel_name!r}; its kernels are: {found}")
    return kernel


def _kernel_of(value: Any) -> Kernel | None:
    """Return a kernel, also the one that tunes itself, or None for anything else."""
    from tilus.runtime.kernel import Kernel
    from tilus.runtime.tuning import Autotuned

    found = value.kernel if isinstance(value, Autotuned) else value
    return found if isinstance(found, Kernel) else None


def check_constexprs(kernel: Kernel, constexprs: Mapping[str, object], dtypes: Mapping[str, object]) -> None:
    """Check that each constexpr parameter without a default has a value, or is the dtype of a tensor that has one."""
    typed = {param.dtype for param in kernel.source.runtime_params if param.name in dtypes}
    for param in kernel.source.params:
        known = param.name in constexprs or param.name in kernel.bound or param.name in typed
        if param.kind == "constexpr" and param.required and not known:
            tensors = [p.name for p in kernel.source.runtime_params if p.dtype == param.name]
            more = f" or --arg {tensors[0]}=DTYPE" if tensors else ""
            raise UsageError(
                f"{kernel.source.name} needs a value of its constexpr parameter {param.name}, "
                f"expected --set {param.name}={'DTYPE' if tensors else 'VALUE'}{more}"
            )


def load_module(place: str) -> Any:
    """Import a file or a module by name."""
    file, colon, rest = place.rpartition(":")
    if colon and file.endswith(".py"):
        raise UsageError(f"{place} has one colon, expected {file}::{rest}")
    path = Path(place)
    is_file = place.endswith(".py") or path.is_file()
    if is_file and not path.is_file():
        raise UsageError(f"there is no file {place}")
    try:
        if not is_file:
            return importlib.import_module(place)
        path = path.resolve()
        specification = importlib.util.spec_from_file_location(path.stem, path)
        if specification is None or specification.loader is None:
            raise UsageError(f"{place} is no Python file")
        module = importlib.util.module_from_spec(specification)
        # As when Python runs a file: what lies beside it can be imported.
        sys.path.insert(0, str(path.parent))
        sys.modules.setdefault(path.stem, module)
        specification.loader.exec_module(module)
        return module
    except (TilusError, UsageError):
        raise
    except ModuleNotFoundError as error:
        if (
            not is_file
            and error.name is not None
            and (place == error.name or place.startswith(error.name + "."))
        ):
            raise UsageError(f"there is no file and no module {place}") from None
        raise UsageError(f"{place} cannot be imported: {error}") from None
    except Exception as error:
        raise UsageError(f"{place} cannot be imported: {type(error).__name__}: {error}") from None


def read_pairs(pairs: list[str], option: str) -> dict[str, str]:
    """Split NAME=VALUE."""
    read: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip() or not text.strip():
            raise UsageError(f"{option} {pair!r}: expected NAME=VALUE")
        if name.strip() in read:
            raise UsageError(f"{option} {pair!r}: {name.strip()} is given twice")
        read[name.strip()] = text.strip()
    return read


def read_value(text: str, option: str) -> object:
    """Return the value of a constexpr: a Python literal, a dtype, or a layout."""
    from tilus import layout
    from tilus.dtypes import dtype

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return dtype(text)
    except ValueError:
        pass
    try:
        return layout.parse(text)
    except Exception:
        raise UsageError(
            f"{option}: {text!r} is no Python literal, dtype or layout; a string is written in quotes, as in '\"fast\"'"
        ) from None


def read_constexprs(pairs: list[str], option: str = "--set") -> dict[str, object]:
    """Return constexpr values by name."""
    return {name: read_value(text, f"{option} {name}") for name, text in read_pairs(pairs, option).items()}


def read_sizes(pairs: list[str]) -> dict[str, int]:
    """Return sizes by name."""
    sizes: dict[str, int] = {}
    for name, text in read_pairs(pairs, "--size").items():
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"--size {name}={text}: expected a positive integer")
        sizes[name] = int(text)
    return sizes
