"""A kernel's code, and what a launch must know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .operations import Operation
from .variables import SymbolPlace


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: its name, PTX type, size and offset in the parameter buffer."""

    name: str
    type: str
    size: int
    offset: int
    alignment: int


@dataclass
class Instruction:
    """A decoded instruction and where it came from."""

    index: int
    text: str
    opcode: str
    line: int
    source: tuple[str, int] | None
    operation: Operation
    memory: bool = False


@dataclass
class Kernel:
    """A kernel's code and what a launch must know of it."""

    name: str
    parameters: tuple[Parameter, ...]
    parameter_bytes: int
    shared_bytes: int
    local_bytes: int
    max_threads: int | None
    required_threads: tuple[int, ...] | None
    required_cluster: tuple[int, ...] | None
    instructions: list[Instruction]
    symbols: dict[str, SymbolPlace]
    bank_rows: dict[int, int]
    leaders: set[int]
    register_names: dict[tuple[int, int], str]
    tainted: set[tuple[int, int]] = field(default_factory=set)
    touching: set[int] = field(default_factory=set)
    files: dict[int, str] = field(default_factory=dict)
    segments: dict[int, Any] = field(default_factory=dict)
    watched: set[tuple[int, int]] = field(default_factory=set)
    wgmma_registers: set[tuple[int, int]] = field(default_factory=set)
    tracked: set[int] = field(default_factory=set)
    shared_grain: int = 16
    global_grain: int = 16
    uses_async_proxy: bool = False
    has_cas: bool = False
    swaps_words: bool = False
    max_registers: int | None = None
