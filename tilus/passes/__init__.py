"""Passes from tile IR to tile IR, and the runner that verifies and dumps between them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tilus.errors import InvalidValue
from tilus.ir.kernel import Kernel
from tilus.ir.printer import print_kernel
from tilus.ir.verifier import InvalidIR, verify


@dataclass(frozen=True)
class Pass:
    """A named step from kernel to kernel.

    Attributes
    ----------
    name : str
        What dumps and errors call it, with its options if it has any.
    function : callable
        From a kernel to a kernel.
    layouts : bool
        Whether each register tile has a layout from here on, which the verifier then requires.
    """

    name: str
    function: Callable[[Kernel], Kernel]
    layouts: bool = False

    def __call__(self, kernel: Kernel) -> Kernel:
        """Return the kernel after this step."""
        return self.function(kernel)


def run(
    kernel: Kernel, passes: Iterable[Pass], check: bool = True, dump: str | os.PathLike[str] | None = None
) -> Kernel:
    """Run passes one after the other.

    Parameters
    ----------
    kernel : Kernel
        What to start with.
    passes : iterable of Pass
        In order.
    check : bool
        Verify the kernel at the start and after each pass.
    dump : path, optional
        A directory for the text before the first and after each pass; by default the one that the environment
        variable TILUS_DUMP names, if it is set. Each kernel gets a folder of its own.

    Raises
    ------
    InvalidIR
        If a pass breaks a rule of the IR; the message names the pass.
    """
    target = dump if dump is not None else os.environ.get("TILUS_DUMP") or None
    folder = None if target is None else _folder(Path(target), kernel)
    layouts = False
    _finish("input", 0, kernel, layouts, check, folder)
    for number, step in enumerate(passes, 1):
        kernel = step(kernel)
        layouts = layouts or step.layouts
        _finish(step.name, number, kernel, layouts, check, folder)
    return kernel


def _finish(name: str, number: int, kernel: Kernel, layouts: bool, check: bool, folder: Path | None) -> None:
    """Dump first, so that a kernel that the verifier refuses can be read."""
    if folder is not None:
        file = re.sub(r"[^A-Za-z0-9_.=-]+", "_", name).strip("_")
        text = print_kernel(kernel, locations=True)
        (folder / f"{number:02}-{file}.ir").write_text(text, encoding="utf-8", newline="\n")
    if check:
        try:
            verify(kernel, layouts, wishes=not layouts)
        except InvalidIR as error:
            where = "the input" if number == 0 else f"pass {name}"
            raise InvalidIR(f"after {where}: {error.message}", error.location, error.hint) from error


def _folder(target: Path, kernel: Kernel) -> Path:
    """Return the kernel's own folder; specialisations of one kernel differ in their text."""
    digest = hashlib.sha256(print_kernel(kernel).encode()).hexdigest()[:8]
    folder = target / f"{kernel.name}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidValue(
            f"the folder for dumps, {target}, cannot be written to: {error.strerror or error}"
        ) from None
    return folder


__all__ = ["Pass", "run"]
