"""The page on the IR lists every operation as it is declared."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tilus.ir import OPCODES, Operation, schema
from tilus.ir.core import is_required

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ir.md"
BEGIN, END = "<!-- operations: written by `make goldens` -->\n", "<!-- end of operations -->\n"
MARKS = {"operand": "{}", "optional": "{}?", "operands": "[{}]"}


def row(opcode: str, cls: type[Operation]) -> str:
    """Return the line of the table for an operation."""
    fields = schema(cls)
    operands = ", ".join(MARKS[role].format(name) for name, role in fields if role in MARKS)
    attributes = ", ".join(
        name if is_required(cls, name) else f"{name}=" for name, role in fields if role == "attribute"
    )
    regions = ", ".join(name for name, role in fields if role == "region")
    meaning = " ".join(inspect.getdoc(cls).split("\n\n")[0].split()).replace("|", "\\|")
    return f"| `{opcode}` | {operands} | {attributes} | {regions} | {meaning} |"


def table() -> str:
    """Return the table of all operations."""
    lines = [
        "",
        "| operation | operands | attributes | regions | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(row(*item) for item in sorted(OPCODES.items())), "", ""])


@pytest.mark.golden
def test_the_table_of_operations_is_what_is_declared(request: pytest.FixtureRequest):
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    found, after = rest.split(END)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8", newline="\n")
        return
    assert found == table(), "run `make goldens` and read what changes in docs/ir.md"
