"""The tutorial on Hopper shows the kernels of its example, to the letter."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_shows_the_example_s_kernels() -> None:
    source = (ROOT / "examples" / "hopper_matmul.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "hopper.md").read_text(encoding="utf-8")
    lines = source.splitlines()
    kernels = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef) and x.name[:1] == "v"]
    assert len(kernels) == 6
    for kernel in kernels:
        text = "\n".join(lines[kernel.decorator_list[0].lineno - 1 : kernel.end_lineno])
        assert f"```python\n{text}\n```" in page, f"{kernel.name} differs between the example and the page"
