"""The documentation's code runs and prints what the documentation says.

Each page's ``python`` blocks run in order in one namespace, as a reader would type them. A ``text`` block titled
"Output" is what the block before it prints, to the letter; a ``console`` block holds ``$ tilus ...`` commands,
each followed by its output. A block whose first line is ``# not executed: <reason>`` is left out, and the reader
sees why.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL
)
NOT_EXECUTED = re.compile(r"# not executed: \S")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, whether it is titled as output, its text and the line where the text starts."""

    language: str
    is_output: bool
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found = []
    for match in FENCE.finditer(page):
        language, _, rest = match["info"].strip().partition(" ")
        indent = len(match["indent"])
        text = "".join(line[indent:] for line in match["body"].splitlines(keepends=True))
        line = page.count("\n", 0, match.start("body")) + 1
        found.append(Block(language, 'title="Output"' in rest, text, line))
    return found


def run_page(page: str, name: str) -> None:
    """Run a page's blocks; the file name and lines in a traceback are those of the page."""
    namespace: dict[str, object] = {"__name__": "documentation"}
    printed: str | None = None
    # The front end reads a kernel's source through linecache, as inspect does.
    linecache.cache[name] = (len(page), None, page.splitlines(keepends=True), name)
    for block in blocks(page):
        if block.is_output:
            assert printed is not None, f"{name}:{block.line}: there is no executed block before this output"
            assert printed.strip() == block.text.strip(), f"{name}:{block.line}: the code printed\n{printed}"
        elif block.language == "console":
            run_console(block, name)
        elif block.language == "python" and not NOT_EXECUTED.match(block.text):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(
                    compile("\n" * (block.line - 1) + block.text, name, "exec", dont_inherit=True), namespace
                )
            printed = output.getvalue()
        else:
            printed = None


def run_console(block: Block, name: str) -> None:
    """Run the ``$ tilus ...`` commands of a block and compare what each prints."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert program == "tilus", (
            f"{name}:{block.line}: only tilus commands run here; use a bash block for {program}"
        )
        code = "import sys; from tilus.cli import main; sys.exit(main())"
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
            timeout=300,
        )
        assert result.returncode == 0, f"{name}:{block.line}: {result.stderr}"
        assert result.stdout.strip() == expected.strip(), f"{name}:{block.line}: it printed\n{result.stdout}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs_and_prints_what_it_says(path: Path) -> None:
    run_page(path.read_text(encoding="utf-8"), str(path))


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (?:.*: )?([\w/-]+\.md)$", config, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:])


def page(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def failures(texts: Iterable[str]) -> list[bool]:
    """Return for each page whether running it fails."""
    failed = []
    for text in texts:
        try:
            run_page(text, "page.md")
        except (AssertionError, ZeroDivisionError):
            failed.append(True)
        else:
            failed.append(False)
    return failed


def test_runner_notices_wrong_code_and_wrong_output() -> None:
    right = page("```python", "x = 6", "print(x * 7)", "```", "", '```text title="Output"', "42", "```")
    assert failures(
        [right, right.replace("42", "41"), right.replace("x * 7", "x / 0"), right.replace("x = 6", "x = 5")]
    ) == [False, True, True, True]


def test_runner_leaves_out_only_blocks_that_say_why() -> None:
    block = page("```python", "# not executed: needs a GPU", "1 / 0", "```")
    assert failures([block, block.replace(": needs a GPU", "")]) == [False, True]


def test_runner_reports_the_line_of_the_page() -> None:
    text = page("# Title", "", "```python", "1 / 0", "```")
    with pytest.raises(ZeroDivisionError) as error:
        run_page(text, "page.md")
    last = error.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("page.md", 4)


def test_runner_gives_functions_their_source() -> None:
    run_page(
        page(
            "```python",
            "import inspect",
            "def f():",
            "    return 1",
            "print(inspect.getsource(f))",
            "```",
            "",
            '```text title="Output"',
            "def f():",
            "    return 1",
            "```",
        ),
        "page.md",
    )


def test_blocks_in_lists_lose_their_indent() -> None:
    (block,) = blocks(page("- item", "", "    ```python", "    if True:", "        pass", "    ```"))
    assert (block.text, block.line) == ("if True:\n    pass\n", 4)
