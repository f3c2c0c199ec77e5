"""The public objects: a loaded module, its kernels, and launching them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from .arguments import DEVICE, ArgumentPacker
from .engine import Engine
from .errors import LaunchError
from .kernel import Kernel as Code
from .kernel import Parameter
from .program import LoadedModule
from .report import Report, summarise

CHECKS = frozenset({"registers", "shared", "global", "async"})
"""Names for ``checks=``; bounds, alignment, barriers and deadlock are always checked."""

_MAX_SHARED = 228 * 1024
_MAX_THREADS = 1024
_RESERVED = 1024


class Kernel:
    """A kernel that can be launched.

    Attributes
    ----------
    name : str
    params : tuple of Parameter
        Name, type, size and offset of each parameter.
    shared_bytes : int
        Static shared memory.
    max_threads : int or None
        What ``.maxntid`` or ``.reqntid`` states.
    """

    def __init__(self, module: Module, code: Code) -> None:
        self._module = module
        self._code = code
        self.name: str = code.name
        self.params: tuple[Parameter, ...] = code.parameters
        self.shared_bytes: int = code.shared_bytes
        self.max_threads: int | None = code.max_threads

    @cached_property
    def _uses_reserved(self) -> bool:
        """Whether the kernel looks for the shared memory that is the system's."""
        return any("%reserved_smem_offset" in i.text for i in self._code.instructions)

    def __repr__(self) -> str:
        return f"<kernel {self.name} with {len(self.params)} parameters>"

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any] = (),
        *,
        cluster: int | Sequence[int] | None = None,
        shared_bytes: int = 0,
        checks: bool | Iterable[str] = True,
    ) -> Report:
        """Run the kernel to its end, or to the hazard that ends it.

        Parameters
        ----------
        grid, block : int or sequence of up to three int
            Blocks, and threads of a block.
        args : sequence
            One per parameter: NumPy arrays or CPU torch tensors for pointers (written in place), numbers by the
            parameter's type, bytes for structs, `TensorMap` for TMA descriptors.
        cluster : int or sequence of int, optional
            Blocks of a cluster; what ``.reqnctapercluster`` says if not given.
        shared_bytes : int
            Dynamic shared memory.
        checks : bool or iterable of str
            All checks, none, or those named (`CHECKS`).

        Returns
        -------
        Report
            Hazards and counters.
        """
        code = self._code
        grid3, block3 = _three(grid, "grid"), _three(block, "block")
        threads = block3[0] * block3[1] * block3[2]
        if threads > _MAX_THREADS:
            raise LaunchError(f"block {block3} has {threads} threads; at most {_MAX_THREADS} are possible")
        if self.max_threads is not None and threads > self.max_threads:
            raise LaunchError(
                f"block {block3} has {threads} threads; kernel {self.name} is built for at most {self.max_threads}"
            )
        if code.required_threads is not None:
            required = tuple(code.required_threads) + (1,) * (3 - len(code.required_threads))
            if required != block3:
                raise LaunchError(f"block {block3} differs from the kernel's required {required}")
        explicit = cluster is not None or code.required_cluster is not None
        declared = tuple(code.required_cluster) if code.required_cluster is not None else None
        cluster3 = _three(cluster if cluster is not None else (declared or 1), "cluster")
        if declared is not None and cluster3 != tuple(declared) + (1,) * (3 - len(declared)):
            raise LaunchError(f"cluster {cluster3} differs from the kernel's required {declared}")
        if any(g % c for g, c in zip(grid3, cluster3)):
            raise LaunchError(f"grid {grid3} is no multiple of cluster {cluster3}")
        if shared_bytes < 0 or code.shared_bytes + shared_bytes > _MAX_SHARED:
            raise LaunchError(
                f"{code.shared_bytes + shared_bytes} bytes of shared memory; at most {_MAX_SHARED} are possible"
            )
        names = _checks(checks)
        packer = ArgumentPacker(code, self._module.loaded.memory.allocations)
        parameters = packer.pack(args)
        engine = Engine(
            code,
            grid3,
            block3,
            cluster3,
            parameters,
            code.shared_bytes + shared_bytes,
            packer.memory,
            names,
            shared_bytes,
            explicit,
            _RESERVED if self._uses_reserved else 0,
        )
        engine.addresses = DEVICE.addresses
        try:
            engine.run()
        finally:
            packer.finish()
        totals, lines, instructions = summarise(engine)
        unchecked = engine.races.unchecked if engine.races is not None else []
        printed = "".join(engine.printed)
        report = Report(
            self.name, grid3, block3, engine.hazards, totals, lines, printed, unchecked, instructions
        )
        collected = _COLLECTED.get()
        if collected is not None:
            collected.append(report)
        return report


_COLLECTED: ContextVar[list[Report] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_reports() -> Iterator[list[Report]]:
    """Collect the reports of all launches in a `with` block, whoever makes them.

    Yields
    ------
    list of Report
        Empty at first, and longer by one with each launch.
    """
    reports: list[Report] = []
    token = _COLLECTED.set(reports)
    try:
        yield reports
    finally:
        _COLLECTED.reset(token)


def _checks(wanted: object) -> frozenset[str]:
    """Return the checks that are wanted, by name."""
    if isinstance(wanted, bool):
        return CHECKS if wanted else frozenset()
    if not isinstance(wanted, Iterable):
        raise LaunchError(
            f"checks is {wanted!r}, expected True, False, or some of {', '.join(sorted(CHECKS))}"
        )
    names = frozenset([wanted] if isinstance(wanted, str) else wanted)
    for name in names - CHECKS:
        raise LaunchError(f"unknown check {name!r}; use some of {', '.join(sorted(CHECKS))}")
    return names


def _three(value: int | Sequence[int], what: str) -> tuple[int, int, int]:
    items = [int(i) for i in value] if isinstance(value, Sequence) else [int(value)]
    if not 1 <= len(items) <= 3 or any(i < 1 for i in items):
        raise LaunchError(f"{what} {value!r} must be one to three positive integers")
    items += [1] * (3 - len(items))
    return items[0], items[1], items[2]


class Module(Mapping[str, Kernel]):
    """The kernels of a PTX module, by name; those with instructions that are not supported are left out."""

    def __init__(self, text: str) -> None:
        self.loaded = LoadedModule(text, DEVICE.addresses)
        self._kernels = {name: Kernel(self, code) for name, code in self.loaded.kernels.items()}

    def __getitem__(self, name: str) -> Kernel:
        refused = self.loaded.refused.get(name)
        if refused is not None:
            raise refused
        try:
            return self._kernels[name]
        except KeyError:
            raise LaunchError(
                f"no kernel {name!r} in this module; it has {', '.join(self._kernels) or 'none'}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)

    def variable(self, name: str) -> Any:
        """The bytes of a module variable, as a NumPy array that shares its memory."""
        place = self.loaded.memory.places.get(name)
        if place is None:
            raise LaunchError(f"no variable {name!r} in this module")
        return next(a.data for a in self.loaded.memory.allocations if a.base == place.address)


def load(ptx: str | bytes) -> Module:
    """Load a PTX module.

    Parameters
    ----------
    ptx : str
        The text of the module, made by any compiler.

    Returns
    -------
    Module
        Its kernels by name. Each load has module variables of its own; parsing is cached.

    Raises
    ------
    PtxError
        With the line, for text that is no PTX, and where an instruction of the only kernel is not supported. In a
        module of several kernels those that are supported can be launched; asking for another one raises the error.
    """
    text = ptx.decode() if isinstance(ptx, bytes) else ptx
    return Module(text)
