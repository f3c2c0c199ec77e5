"""The progress of a search: one line on a terminal, else silence."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

BAR = 20
"""Characters of the bar."""


class Progress:
    """Says nothing; `shown` yields one that does where that makes sense."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of so many steps."""

    def step(self, words: str = "") -> None:
        """One step is done; `words` say what stands best."""


class _Line(Progress):
    """Rewrites one line: the stage, a bar, steps, seconds, and what stands best."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title, self._stream = title, stream
        self._name, self._done, self._total = "", 0, 0
        self._start = time.monotonic()

    def stage(self, name: str, total: int) -> None:
        self._name, self._done, self._total = name, 0, total
        self._show("")

    def step(self, words: str = "") -> None:
        self._done += 1
        self._show(words)

    def _show(self, words: str) -> None:
        full = BAR * self._done // max(self._total, 1)
        seconds = time.monotonic() - self._start
        text = f"{self._title}: {self._name} [{'#' * full}{' ' * (BAR - full)}] {self._done}/{self._total}"
        self._write(f"{text} {seconds:.0f} s {words}".rstrip())

    def _write(self, text: str) -> None:
        # A line that wraps could not be rewritten.
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + text[:width].ljust(width))
        self._stream.flush()

    def clear(self) -> None:
        """Leave the line empty."""
        self._write("")
        self._stream.write("\r")
        self._stream.flush()


@contextmanager
def shown(title: str, wanted: bool) -> Iterator[Progress]:
    """Yield a progress line on standard error, or a silent one where it is not wanted or no terminal."""
    if not wanted or not sys.stderr.isatty():
        yield Progress()
        return
    line = _Line(title, sys.stderr)
    try:
        yield line
    finally:
        line.clear()
