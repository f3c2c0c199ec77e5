"""Machine code for the few loops in which NumPy's cost for each call decides, written as LLVM IR.

`Code` writes the text of a function, `compiled` makes it callable. The code is compiled for this machine when it is
first needed. Floating-point operations are as strict as NumPy's unless a function says otherwise.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import CFUNCTYPE, c_int64
from functools import cache
from typing import Any

_lock = threading.Lock()


class Code:
    """A function from 64-bit integers (numbers and addresses) to one, written instruction by instruction."""

    def __init__(self, parameters: Sequence[str]) -> None:
        self.parameters = tuple(parameters)
        self.lines: list[str] = []
        self.declarations: list[str] = []
        self.count = 0
        self.block = "entry"

    def value(self, text: str) -> str:
        """Write ``%x = text`` and return ``%x``."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def do(self, text: str) -> None:
        """Write an instruction without a result."""
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self.lines.append(f"{name}:")
        self.block = name

    def fresh(self, name: str) -> str:
        """A name for a basic block."""
        self.count += 1
        return f"{name}.{self.count}"

    def pointer(self, base: str, index: str, bytes_: int | str) -> str:
        """The address ``base + index * bytes_`` of two integers."""
        offset = self.value(f"mul i64 {index}, {bytes_}")
        return self.at(base, offset)

    def at(self, base: str, offset: str | int) -> str:
        """A pointer to ``base + offset``, of two integers."""
        return self.value(f"inttoptr i64 {self.value(f'add i64 {base}, {offset}')} to ptr")

    def load(self, type: str, pointer: str, align: int) -> str:
        """Read memory."""
        return self.value(f"load {type}, ptr {pointer}, align {align}")

    def store(self, type: str, value: str, pointer: str, align: int) -> None:
        """Write memory."""
        self.do(f"store {type} {value}, ptr {pointer}, align {align}")

    @contextmanager
    def loop(self, start: str | int, stop: str | int) -> Iterator[str]:
        """A loop over ``range(start, stop)``, which may be empty."""
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        self.count += 1
        index, following, before = f"%i{self.count}", f"%n{self.count}", self.block
        self.do(f"br label %{head}")
        self.label(head)
        place = len(self.lines)
        more = self.value(f"icmp slt i64 {index}, {stop}")
        self.do(f"br i1 {more}, label %{body}, label %{done}")
        self.label(body)
        yield index
        self.do(f"{following} = add i64 {index}, 1")
        self.do(f"br label %{head}")
        self.lines.insert(place, f"  {index} = phi i64 [{start}, %{before}], [{following}, %{self.block}]")
        self.label(done)

    def text(self, name: str) -> str:
        """The function as LLVM IR; it returns 0 where no ``ret`` was written before its end."""
        parameters = ", ".join(f"i64 %{p}" for p in self.parameters)
        head = [*dict.fromkeys(self.declarations), f'define i64 @"{name}"({parameters}) {{', "entry:"]
        return "\n".join([*head, *self.lines, "  ret i64 0", "}", ""])


@cache
def _engine() -> tuple[Any, Any, Iterator[int]]:
    """LLVM, the compiler for this machine, and numbers for names."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:
        # Not known for every kind of machine; then the processor's name has to do.
        features = ""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )
    return llvm, llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine), itertools.count()


def compiled(code: Code) -> Callable[..., int]:
    """Compile a function."""
    with _lock:
        llvm, engine, numbers = _engine()
        name = f"simulator.{next(numbers)}"
        engine.add_module(llvm.parse_assembly(code.text(name)))
        engine.finalize_object()
        address = engine.get_function_address(name)
    return CFUNCTYPE(c_int64, *[c_int64] * len(code.parameters))(address)
