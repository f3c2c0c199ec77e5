"""What was measured, kept on disk: one file for each device, kernel and shape class.

As in the cache of compiled kernels, an entry is JSON with a checksum, written beside its place and renamed into it; a
damaged one counts as none. Each candidate is kept on its own, so that a larger space measures only what is new, and
two processes that tune at once keep what both found. The key knows the kernel's source, its other constexpr
values, the dtypes and the shape class, and nothing of the driver's or the compiler's version: a time outlives both.
What failed is tried again by another compiler.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilus.runtime import cache

FORMAT = 1
LOCK_SECONDS = 10.0

log = logging.getLogger("tilus.tuning")


@dataclass(frozen=True)
class Entry:
    """What is known of one candidate.

    Attributes
    ----------
    values : dict
        Its constexpr values, as JSON values.
    status : str
        "ok", "failed", "wrong", "timeout", or "running": the process ended while this candidate was measured.
    seconds : float or None
        Its time, if it was measured.
    note : str
        Why it failed.
    compiler : str
        The compiler that made its code, as `compiler` names it.
    """

    values: dict[str, Any]
    status: str
    seconds: float | None = None
    note: str = ""
    compiler: str = ""

    @property
    def holds(self) -> bool:
        """Whether there is nothing to find out anew."""
        return self.status == "ok" or self.compiler == compiler()


def compiler() -> str:
    """Return a short name of this compiler."""
    return cache.compiler_digest()[:16]


def slug(name: str) -> str:
    """Return a device's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def as_json(value: Any) -> Any:
    """Return a constexpr value as a JSON value; what JSON has not is kept as its text."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return str(value)


def identity(values: Mapping[str, Any]) -> str:
    """Return the text that tells candidates apart."""
    return json.dumps({name: as_json(value) for name, value in values.items()}, sort_keys=True)


def bucket(size: int) -> int:
    """Return the shape class of a size: the next power of two."""
    return 1 << max(0, int(size) - 1).bit_length()


def key(*parts: str) -> str:
    """Return the key of an entry."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()


def path(device: str, name: str) -> Path | None:
    """Return where an entry lies, or None if the cache is turned off."""
    folder = cache.directory()
    return None if folder is None else folder / "tuning" / slug(device) / f"{name}.json"


def read(file: Path | None) -> dict[str, Any] | None:
    """Return what a file says, or None if there is none that is whole."""
    if file is None:
        return None
    try:
        checksum, _, body = file.read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(body.encode()).hexdigest() != checksum:
            raise ValueError("the checksum does not fit")
        data = json.loads(body)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("another format")
        return data
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.debug("%s is damaged and counts as none: %s", file, error)
        return None


def write(file: Path, data: Mapping[str, Any]) -> None:
    """Write a file by rename; a folder that cannot be written to costs a warning, once."""
    body = json.dumps({**data, "format": FORMAT}, sort_keys=True)
    text = f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        cache.write_file(file, text.encode())
    except OSError as error:
        cache.warn_once(str(file.parent), str(error))


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep other processes from changing a file; where no lock can be had, the last to write wins."""
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(file) + ".lock", timeout=LOCK_SECONDS)
        lock.acquire()
    except (OSError, Timeout) as error:
        log.debug("no lock for %s: %s", file, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def read_entries(file: Path | None) -> dict[str, Entry]:
    """Return the candidates of a file by identity."""
    data = read(file)
    if data is None:
        return {}
    try:
        entries = [
            Entry(
                dict(item["values"]),
                str(item["status"]),
                None if item["seconds"] is None else float(item["seconds"]),
                str(item["note"]),
                str(item.get("compiler", "")),
            )
            for item in data["entries"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        log.debug("%s is damaged and counts as none: %r", file, error)
        return {}
    return {identity(entry.values): entry for entry in entries}


def add_entry(file: Path | None, entry: Entry, about: Mapping[str, Any]) -> None:
    """Add a candidate to a file, or replace it.

    Parameters
    ----------
    file : Path or None
        None where nothing is kept.
    entry : Entry
        The candidate.
    about : mapping
        What the file is about, for people.
    """
    _change(file, identity(entry.values), entry, about)


def remove_entry(file: Path | None, values: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Remove a candidate, of which nothing is known; `file` and `about` as for `add_entry`."""
    _change(file, identity(values), None, about)


def _change(file: Path | None, name: str, entry: Entry | None, about: Mapping[str, Any]) -> None:
    if file is None:
        return
    with locked(file):
        entries = read_entries(file)
        entries.pop(name, None)
        if entry is not None:
            entries[name] = entry
        write(file, {"about": dict(about), "entries": [asdict(e) for e in entries.values()]})
