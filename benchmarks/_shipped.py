"""What the library compiles: each schedule that ships and each that a heuristic chooses, for every type and model size.

An op's launches are recorded on torch's meta device, so what is found is what the op itself would launch. Variants that
differ by nothing but what divides the number of rows count as one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from tilus import dtypes
from tilus.codegen import Target
from tilus.codegen import target as find_target
from tilus.codegen.figures import figures
from tilus.errors import TypeMismatch
from tilus.ops.defaults.generate import CARDS
from tilus.ops.defaults.problems import BYTES, HALF, HALVES, PROBLEMS, Key, Problem, Schedule
from tilus.ops.defaults.tuning import Workshop
from tilus.ops.tuned import DEFAULTS, SIZES
from tilus.ops.weights import operand_type
from tilus.runtime.kernel import Kernel, Prepared

ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
# (n, k) of Llama-3 8B and 70B and of Qwen2.5-32B, and the matrix of the published figures.
LAYERS = (
    (57344, 8192), (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (8192, 8192),
    (8192, 28672), (7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648),
)  # fmt: skip
GROUPS = (16, 32, 64, 128, 256, -1)
WEIGHTS = tuple(t for t in dtypes.NAMED if t.bits <= 8 and t.kind not in ("bool", "scale"))
OPERANDS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8,
            "float8_e4m3": torch.float8_e4m3fn}  # fmt: skip
EPILOGUES = ("", "bias", "residual", "scales")


@dataclass(frozen=True)
class Specialisation:
    """A kernel with the values and types of one launch.

    Attributes
    ----------
    identity : str
        Tells specialisations apart, in this process and in others.
    target : str
    kernel, call
        What the runtime compiles.
    problem, key, schedule
        An op's problem of which this is a launch.
    ships : bool
        Whether the schedule is in a file that ships, or a heuristic chose it.
    """

    identity: str
    target: str
    kernel: Kernel
    call: Prepared
    problem: Problem
    key: Key
    schedule: Schedule
    ships: bool

    @property
    def form(self) -> str:
        """The problem without its sizes, as text."""
        return form_of(self.key)


def form_of(key: Key) -> str:
    """Return a problem without its sizes, as text."""
    return " ".join(f"{v}" if k == "dtype" else f"{k}={v}" for k, v in key.items() if k not in SIZES)


def taken(problem: Problem, key: Key, every: int) -> bool:
    """Tell whether a problem is one of about each so-many, the same ones each time."""
    text = f"{problem.name} {form_of(key)} {[key[name] for name in SIZES]}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % every == 0


Case = tuple[Problem, Key, "Schedule | None"]
"""A problem, and the schedule that ships for it; None where a heuristic chooses."""


def cases(name: str) -> Iterator[Case]:
    """Yield the problems of a target."""
    yield from shipped(name)
    for problem, key in (*quantized_problems(), *matmul_problems(find_target(name))):
        yield problem, key, None


def shipped(name: str) -> Iterator[Case]:
    """Yield what the files for a target say; a weight's form stands for both types of 16 bits, and a sign or none."""
    for problem in PROBLEMS.values():
        file = DEFAULTS / f"{problem.name}-{name}.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        for *values, sizes, which in data["entries"]:
            if which is None:
                continue
            key = {**dict(zip(data["fields"], values)), **dict(zip(SIZES, sizes))}
            for more in variations(problem, key):
                yield problem, {**key, **more}, data["schedules"][which]


def variations(problem: Problem, key: Key) -> Iterator[dict[str, Any]]:
    """Yield what a key leaves open."""
    if problem.name == "matmul":
        names = ("float16", "bfloat16") if key["bits"] == 16 else ("int8",)
        yield from ({"dtype": OPERANDS[name]} for name in names)
        return
    code = str(key["code"])
    names = (code, f"u{code}") if code.startswith("int") else (code,)
    for name, half in product(names, HALVES):
        if not key["zero"] or name.startswith("u"):
            yield {"dtype": name, "half": half}


def quantized_problems() -> Iterator[tuple[Problem, Key]]:
    """Yield products with weights of every type and form."""
    problem = PROBLEMS["quantized_matmul"]
    for dtype, group, zero in product(WEIGHTS, GROUPS, (False, True)):
        if zero and dtype.kind != "uint":
            continue
        code = f"int{dtype.bits}" if dtype.kind in ("int", "uint") else dtype.name
        operands: list[Key] = [{"activations": HALF, "half": half} for half in HALVES]
        for name, activations in BYTES.items():
            if group != 16 and multiplies(dtype, activations):
                operands += [{"activations": name, "by_block": by_block} for by_block in (False, True)]
        form: Key = {"code": code, "dtype": dtype.name, "group": group, "zero": zero}
        for operand, (n, k), m in product(operands, LAYERS, ROWS):
            yield problem, {**form, **operand, "m": m, "n": n, "k": k}


def multiplies(dtype: dtypes.DType, activations: torch.dtype) -> bool:
    """Tell whether weights of a type go with activations of 8 bits."""
    try:
        operand_type(dtype, activations)
    except TypeMismatch:
        return False
    return True


def matmul_problems(machine: Target) -> Iterator[tuple[Problem, Key]]:
    """Yield products of two matrices of every type, orientation and kind of epilogue."""
    problem = PROBLEMS["matmul"]
    for (name, dtype), epilogue, (n, k), m in product(OPERANDS.items(), EPILOGUES, LAYERS, ROWS):
        if name == "float8_e4m3" and not machine.has("mma_fp8"):
            continue
        bits = 8 * dtype.itemsize
        for turned in (False, True) if bits == 16 else (True,):
            key = {"bits": bits, "m": m, "n": n, "k": k, "dtype": dtype, "turned": turned}
            yield problem, {**key, "epilogue": epilogue}


def specialisations(name: str, problems: Iterable[Case]) -> Iterator[Specialisation]:
    """Yield the distinct specialisations of a target, such as ``"sm_90a"``, in which problems result."""
    machine, card = find_target(name), figures(CARDS[name])
    workshop = Workshop(card, assembles=False)
    seen: set[str] = set()
    made: set[Any] = set()
    for problem, key, known in problems:
        schedule = known or problem.heuristic(key, machine, card)
        # Launches follow from the form, the schedule and what divides the sizes, which are those of whole tiles.
        depth = key["k"] if key.get("group") == -1 else 0
        shape = (problem.name, form_of(key), depth, *schedule.items())
        if shape not in made:
            made.add(shape)
            for found in launched(workshop, problem, key, schedule, known is not None):
                if found.identity not in seen:
                    seen.add(found.identity)
                    yield found


def launched(
    workshop: Workshop, problem: Problem, key: Key, schedule: Schedule, ships: bool = False
) -> Iterator[Specialisation]:
    """Yield what an op launches for a problem with a schedule on a card."""
    target = workshop.card.target
    for launch in problem.launches(key, schedule, workshop.card):
        kernel, call = workshop.call(launch)
        identity = identity_of(kernel, call, target)
        yield Specialisation(identity, target, kernel, call, problem, key, schedule, ships)


def identity_of(kernel: Kernel, call: Prepared, target: str) -> str:
    """Return a digest of what is compiled."""
    values = {name: str(value) for name, value in sorted(call.constexprs.items())}
    # Rows are any number; kernels do not ask what divides it.
    types = [
        str(type).replace("m:16", "m:1").replace("m:4", "m:1").replace("m:8", "m:1") for type in call.types
    ]
    text = json.dumps([kernel.source.name, values, types, target])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
