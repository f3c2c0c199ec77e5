"""Finds the main loop of a kernel's machine code and counts its instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LABEL = re.compile(r"^(\.L_\w+):")
LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?\w+)\s+)?([A-Z][\w.]*)([^;]*);")
TENSOR_CORE = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "IMMA", "QMMA")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode with modifiers, and the label that it branches to, if it does."""

    opcode: str
    target: str | None
    predicated: bool

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]


def disassemble(cubin: bytes, program: str) -> str:
    """Return the machine code as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run(
            [program, "--print-code", str(path)], capture_output=True, text=True, check=True
        ).stdout


def instructions(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return a kernel's instructions, and where each label stands among them."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        label = LABEL.match(line)
        if label:
            labels[label.group(1)] = len(found)
            continue
        match = LINE.match(line)
        if match:
            target = re.search(r"`\((\.L_\w+)\)", match.group(4))
            branch = target.group(1) if target and match.group(3).startswith("BRA") else None
            found.append(Instruction(match.group(3), branch, match.group(2) is not None))
    return found, labels


def main_loop(sass: str) -> list[Instruction]:
    """Return the shortest loop with tensor-core instructions, from its label to its branch back."""
    found, labels = instructions(sass)
    loops = []
    for end, instruction in enumerate(found):
        start = labels.get(instruction.target or "")
        if start is not None and start <= end:
            loops.append(found[start : end + 1])
    return min((x for x in loops if any(i.base in TENSOR_CORE for i in x)), key=len, default=[])


def counts(loop: list[Instruction]) -> dict[str, int]:
    """Return how many instructions of each kind a loop has."""
    kinds = Counter(i.base for i in loop)
    tensor = sum(kinds[name] for name in TENSOR_CORE)
    return {
        "instructions": len(loop),
        "tensor_core": tensor,
        "others": len(loop) - tensor,
        "to_uniform": kinds["R2UR"],
        "moves": kinds["MOV"] + kinds["UMOV"] + sum(i.opcode.startswith("IMAD.MOV") for i in loop),
        "barriers": kinds["SYNCS"] + kinds["WARPSYNC"] + kinds["BAR"],
    }
