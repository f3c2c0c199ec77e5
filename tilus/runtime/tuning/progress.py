"""The progress of a search: a bar by rich on a terminal, else silence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Says nothing; `shown` returns one that does where that makes sense."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of so many steps."""

    def step(self, words: str = "") -> None:
        """One step is done; `words` say what stands best."""


class _Bar(Progress):
    def __init__(self, bar: object, title: str) -> None:
        self._bar, self._title = bar, title
        self._task: object = None

    def stage(self, name: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)  # type: ignore[attr-defined]
        self._task = self._bar.add_task(f"{self._title}: {name}", total=total, best="")  # type: ignore[attr-defined]

    def step(self, words: str = "") -> None:
        self._bar.update(self._task, advance=1, best=words)  # type: ignore[attr-defined]


@contextmanager
def shown(title: str, wanted: bool) -> Iterator[Progress]:
    """Yield a progress bar on standard error, or a silent one: not wanted, not a terminal, or rich not installed."""
    if not wanted or not sys.stderr.isatty():
        yield Progress()
        return
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        yield Progress()
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[best]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, title)
