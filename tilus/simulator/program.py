"""A loaded module: its functions, its memory, and its kernels, or why one is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import PtxError
from .flattening import Builder
from .kernel import Kernel
from .parser import cached_parse, flatten
from .spaces import AddressSpace
from .syntax import Function, Name, Scope, Statement
from .variables import ModuleMemory, SymbolPlace


def _recursive(functions: dict[str, Function]) -> set[str]:
    """The functions that can reach themselves by direct calls."""
    calls: dict[str, set[str]] = {}
    for name, function in functions.items():
        found: set[str] = set()
        pending = list(flatten(function.body or ()))
        while pending:
            item = pending.pop()
            if isinstance(item, Scope):
                pending.extend(flatten(item.body))
            elif isinstance(item, Statement) and item.opcode.split(".", 1)[0] == "call":
                found.update(o.text for o in item.operands if isinstance(o, Name) and o.text in functions)
        calls[name] = found
    result = set()
    for name in functions:
        reached: set[str] = set()
        pending_names = list(calls[name])
        while pending_names:
            other = pending_names.pop()
            if other not in reached:
                reached.add(other)
                pending_names.extend(calls[other])
        if name in reached:
            result.add(name)
    return result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Loading makes many objects that all stay, among which collections would search again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class LoadedModule:
    """A parsed module; kernels are decoded when first asked for, and all of them when the module is checked."""

    def __init__(self, text: str, addresses: AddressSpace) -> None:
        with _no_garbage_collection():
            self._load(text, addresses)

    def _load(self, text: str, addresses: AddressSpace) -> None:
        self.tree = cached_parse(text)
        self.functions: dict[str, Function] = {}
        for function in self.tree.functions:
            if function.name not in self.functions or function.body is not None:
                self.functions[function.name] = function
        self.function_addresses = {name: 0x100 + 16 * i for i, name in enumerate(self.functions)}
        self.recursive = _recursive(self.functions)
        self.memory = ModuleMemory(self.tree, addresses, self.function_addresses)
        self.places: dict[str, SymbolPlace] = dict(self.memory.places)
        for name, address in self.function_addresses.items():
            self.places[name] = SymbolPlace("function", address, 0, name)
        self.kernels: dict[str, Kernel] = {}
        self.refused: dict[str, PtxError] = {}
        for f in self.functions.values():
            if f.entry and f.body is not None:
                try:
                    self.kernels[f.name] = Builder(self, f).build()
                except PtxError as error:
                    self.refused[f.name] = error
        if self.refused and not self.kernels:
            raise next(iter(self.refused.values()))
