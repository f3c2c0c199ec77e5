"""Runs a program in every way there is, and compares what it stored: Python, the IR after each pass, and PTX."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tests.codegen import differential
from tests.fuzz import meaning
from tests.fuzz.draft import Argument, Program
from tilus import dtypes, simulator
from tilus.codegen.compiler import Compiled, compile_kernel
from tilus.codegen.selection import Mma
from tilus.codegen.target import target as find_target
from tilus.errors import HazardFound, TilusError
from tilus.ir import Kernel
from tilus.ir.interpreter import PackedRows, bind, launch_grid
from tilus.ir.interpreter import run as interpret
from tilus.ir.parser import parse_kernel
from tilus.ir.printer import print_kernel
from tilus.ir.verifier import verify
from tilus.passes.order import pipeline_passes

NUMBER = itertools.count()
Codes = list[np.ndarray]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a program.

    Attributes
    ----------
    stage : str
        Where it went wrong.
    text : str
        What was found.
    """

    stage: str
    text: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.text}"


class Refused(Exception):
    """The compiler does not take the program, and says why."""


def module_of(text: str, folder: Path) -> ModuleType:
    """Import a program's text from a file, whose lines the front end reads."""
    path = folder / f"program{next(NUMBER)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def by_python(program: Program) -> Codes:
    """Return what each tensor holds after Python ran the program."""
    text = program.text.replace("import tilus.lang as tilus", "from tests.fuzz import meaning as tilus")
    text = text.replace("RegisterLayout\n", "RegisterLayout\nfrom tests.fuzz.meaning import range\n", 1)
    names: dict[str, Any] = {}
    exec(compile(text, "<program>", "exec", dont_inherit=True), names)
    args = [
        meaning.Memory(meaning.wide(dtypes.decode(a.codes, a.dtype), a.dtype), a.dtype)
        for a in program.arguments
    ]
    meaning.run(names["kernel"], [*args, *(meaning.Value(n, dtypes.int32) for n in program.scalars)])
    return [codes(m.data, a) if a.output else a.codes for m, a in zip(args, program.arguments, strict=True)]


def codes(values: Any, argument: Argument) -> np.ndarray:
    """Return values as bit patterns."""
    return meaning.codes_of(meaning.Value(values, argument.dtype))


def packed(a: Argument) -> bool:
    return a.dtype.bits < 8 and not a.dtype.is_boolean


def rows(a: Argument) -> np.ndarray:
    """Return a tensor's elements as the bytes or elements that memory holds."""
    if packed(a):
        return np.array(dtypes.pack(a.codes, a.dtype))
    if a.dtype.numpy is None:
        return a.codes.copy()
    return np.ascontiguousarray(a.codes).view(a.dtype.numpy).reshape(a.codes.shape).copy()


def unrows(memory: np.ndarray, a: Argument) -> np.ndarray:
    if packed(a):
        return np.asarray(dtypes.unpack(memory, a.dtype, a.codes.shape[-1]))
    return memory.view(a.dtype.code_numpy).reshape(a.codes.shape)


def by_interpreter(kernel: Kernel, program: Program) -> Codes:
    """Return what each tensor holds after the interpreter ran the IR."""
    memory = [rows(a) for a in program.arguments]
    given = [
        PackedRows(m, a.codes.shape[-1]) if packed(a) else m
        for m, a in zip(memory, program.arguments, strict=True)
    ]
    interpret(kernel, [*given, *program.scalars])
    return [unrows(m, a) for m, a in zip(memory, program.arguments, strict=True)]


def by_simulator(kernel: Kernel, compiled: Compiled, program: Program) -> Codes:
    """Return what each tensor holds after the simulator ran the PTX with all checks."""
    memory = [rows(a) for a in program.arguments]
    shapes = [a.codes for a in program.arguments]
    given = [
        PackedRows(m, a.codes.shape[-1]) if packed(a) else m
        for m, a in zip(memory, program.arguments, strict=True)
    ]
    report = simulator.load(compiled.ptx)[compiled.name].launch(
        grid=launch_grid(kernel, bind(kernel, [*given, *program.scalars])),
        block=(compiled.threads, 1, 1),
        args=[
            *memory,
            *(np.int32(n).tobytes() for n in program.scalars),
            *differential.symbols(kernel, [*shapes, *program.scalars]),
        ],
        shared_bytes=compiled.shared_bytes,
    )
    report.raise_if_hazards()
    return [unrows(m, a) for m, a in zip(memory, program.arguments, strict=True)]


def difference(made: Codes, wanted: Codes, program: Program) -> str:
    """Return the first difference of values in words, or nothing."""
    for x, y, a in zip(made, wanted, program.arguments, strict=True):
        u, v = (dtypes.decode(c, a.dtype) if not a.dtype.is_boolean else c for c in (x, y))
        wrong = (u != v) & ((u == u) | (v == v))
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            return f"{a.name}{list(place)} is {u[place]}, expected {v[place]} ({int(wrong.sum())} of {wrong.size} differ)"
    return ""


def trace(program: Program, folder: Path) -> Kernel:
    """Return the program's IR."""
    from tilus.lang import KernelSource

    source = KernelSource(module_of(program.text, folder).kernel)
    args = [*(rows(replaced(a)) for a in program.arguments), *program.scalars]
    return source.trace({}, differential.specialise(source, args, {}))


def replaced(a: Argument) -> Argument:
    """Return an argument whose memory has one element for each of its own."""
    return a if not packed(a) else Argument(a.name, dtypes.uint8, a.codes.astype(np.uint8), a.output)


OTHER_TEXT = "the text form is another one after a round trip"


def same_as_text(kernel: Kernel) -> bool:
    """Tell whether the text form of a kernel is read as it was written."""
    text = print_kernel(kernel, locations=True)
    return print_kernel(parse_kernel(text), locations=True) == text


def check(
    program: Program,
    targets: Sequence[str] = ("sm_80",),
    passes: bool = True,
    text: bool = True,
    folder: Path | None = None,
) -> Finding | None:
    """Return what is wrong with a program; Refused where the compiler says that it does not take it."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return check(program, targets, passes, text, Path(made))
    expected = by_python(program)
    stage = "trace"
    try:
        kernel = trace(program, folder)
        verify(kernel, wishes=True)
        stage = "text"
        if text and not same_as_text(kernel):
            return Finding(stage, OTHER_TEXT)
        stage = "interpreter"
        # Some views have no meaning before layouts are there.
        views = ".view(" in program.text and ", layout=" in program.text
        if not views:
            found = difference(by_interpreter(kernel, program), expected, program)
            if found:
                return Finding(stage, found)
        for number, name in enumerate(targets):
            machine = find_target(name)
            if passes and number == 0:
                step_kernel, layouts = kernel, False
                for step in pipeline_passes(Mma(machine)):
                    stage = f"pass {step.name} ({name})"
                    step_kernel = step(step_kernel)
                    layouts = layouts or step.layouts
                    verify(step_kernel, layouts, wishes=not layouts)
                    views = views and not step.layouts
                    if views or step.name in ("canonicalise-again",):
                        continue
                    found = difference(by_interpreter(step_kernel, program), expected, program)
                    if found:
                        return Finding(stage, found)
                    if text and layouts and not same_as_text(step_kernel):
                        return Finding(stage, OTHER_TEXT)
            stage = f"compile ({name})"
            compiled = compile_kernel(kernel, name, assemble=False)
            stage = f"simulator ({name})"
            found = difference(by_simulator(kernel, compiled, program), expected, program)
            if found:
                return Finding(stage, found)
    except HazardFound as error:
        return Finding(stage, f"HazardFound: {error}")
    except TilusError as error:
        if type(error).__name__ in ("InvalidIR", "InterpreterError", "LaunchError"):
            return Finding(stage, f"{type(error).__name__}: {error}")
        raise Refused(f"{stage}: {type(error).__name__}: {error}") from error
    except Exception as error:
        return Finding(stage, f"{type(error).__name__}: {error}")
    return None


sys.setrecursionlimit(max(sys.getrecursionlimit(), 5000))
