"""Which schedule an op gets: what was tuned on this machine, else what ships with tilus, else nothing.

A schedule is plain data, by an op's name, a target, and a key: fields that must agree (such as the bits of a type) and
sizes, which count by their class. A heuristic of the op decides where nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields
from functools import lru_cache
from math import log2
from pathlib import Path
from typing import Any, TypeVar

from tilus.codegen import Target
from tilus.runtime.tuning import store

DEFAULTS = Path(__file__).parent / "defaults"
SIZES = ("m", "n", "k")
FARTHEST = 1.0
"""Classes of sizes farther than so many powers of two from a problem's say nothing of it."""
ROWS_WEIGHT = 4.0
"""How much more a difference of m matters than one of n or k."""
EXACT_ROWS = 16
"""Up to so many rows one class serves all: a tensor core's tile has no fewer."""

T = TypeVar("T")
_Key = tuple[tuple[str, Any], ...]
_forced: ContextVar[Mapping[str, Mapping[str, Any]] | None] = ContextVar(
    "tilus_forced_schedules", default=None
)


def lookup(op: str, target: Target | str, key: Mapping[str, Any], device: str = "") -> dict[str, Any] | None:
    """Return the schedule that is known for a problem.

    Parameters
    ----------
    op : str
        Such as ``"matmul"``.
    target : Target or str
        Such as ``"sm_90a"``.
    key : mapping
        The problem: `m`, `n` and `k`, and fields that must agree.
    device : str
        The device's name, for what was tuned on it.

    Returns
    -------
    dict or None
        The schedule's fields, a copy; None where nothing is known of such a problem.
    """
    forced = (_forced.get() or {}).get(op)
    if forced is not None:
        return dict(forced)
    name = target if isinstance(target, str) else target.name
    found = _known(op, name, device, tuple(sorted(key.items())))
    return None if found is None else dict(found)


@contextmanager
def forced(op: str, schedule: Mapping[str, Any]) -> Iterator[None]:
    """Let an op use a schedule, whatever is known: so it is measured."""
    token = _forced.set({**(_forced.get() or {}), op: dict(schedule)})
    try:
        yield
    finally:
        _forced.reset(token)


def keep(
    op: str,
    target: Target | str,
    key: Mapping[str, Any],
    schedule: Mapping[str, Any],
    seconds: float,
    device: str = "",
) -> None:
    """Keep a schedule that was found on this machine; it precedes what ships."""
    name = target if isinstance(target, str) else target.name
    file = _user_file(op, name, device)
    if file is None:
        return
    with store.locked(file):
        data = store.read(file) or {}
        entries = [e for e in _entries(data) if _classes(e["key"]) != _classes(key)]
        entries.append({"key": dict(key), "schedule": dict(schedule), "seconds": seconds})
        store.write(file, {"op": op, "target": name, "entries": entries})
    forget()


def forget() -> None:
    """Read what is known anew at the next lookup."""
    _known.cache_clear()
    _shipped.cache_clear()


@lru_cache(maxsize=4096)
def _known(op: str, target: str, device: str, key: _Key) -> dict[str, Any] | None:
    problem = dict(key)
    tuned = _entries(store.read(_user_file(op, target, device)) or {})
    # What was tuned for another class of sizes is no better than what ships for this one.
    for entry in tuned:
        if _classes(entry["key"]) == _classes(problem):
            return dict(entry["schedule"])
    return nearest(_shipped(op, target), problem)


def _user_file(op: str, target: str, device: str) -> Path | None:
    return store.path(device or target, f"op-{op}-{target}")


def _entries(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries that are whole."""
    entries = data.get("entries")
    if not isinstance(entries, list):
        return []
    whole = [e for e in entries if isinstance(e, dict)]
    return [e for e in whole if isinstance(e.get("key"), dict) and isinstance(e.get("schedule"), dict)]


@lru_cache(maxsize=64)
def _shipped(op: str, target: str) -> tuple[dict[str, Any], ...]:
    """Return the entries that ship with tilus."""
    file = DEFAULTS / f"{op}-{target}.json"
    if not file.is_file():
        return ()
    data = json.loads(file.read_text(encoding="utf-8"))
    return tuple(
        {
            "key": {**dict(zip(data["fields"], fields)), **dict(zip(SIZES, sizes))},
            "schedule": None if which is None else data["schedules"][which],
        }
        for *fields, sizes, which in data["entries"]
    )


def made_of(found: Mapping[str, Any], kind: type[T]) -> T | None:
    """Return what was found as a schedule of a dataclass.

    None where its fields are others: the schedule was kept for a kernel of another version.
    """
    known = {field.name: field.default is MISSING for field in fields(kind)}
    needed = {name for name, required in known.items() if required}
    fits = needed <= set(found) <= set(known) and all(isinstance(value, int) for value in found.values())
    return kind(**found) if fits else None


def size_class(name: str, size: int) -> int:
    """Return the class of a size: the next power of two, and one class for few rows."""
    found = store.bucket(size)
    return max(found, EXACT_ROWS) if name == "m" else found


def _classes(key: Mapping[str, Any]) -> dict[str, Any]:
    return {name: size_class(name, value) if name in SIZES else value for name, value in key.items()}


def nearest(entries: tuple[dict[str, Any], ...], problem: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the schedule of the entry nearest to a problem, None if none is near.

    Parameters
    ----------
    entries : tuple of dict
        Each with a key and a schedule, None where that of the op's heuristic is the best that is known.
    problem : mapping
        Sizes and other fields.
    """
    wanted = _classes(problem)
    best, least = None, float("inf")
    for entry in entries:
        key = _classes(entry["key"])
        if any(key.get(name) != value for name, value in wanted.items() if name not in SIZES):
            continue
        away = [abs(log2(key[name] / wanted[name])) for name in SIZES]
        distance = ROWS_WEIGHT * away[0] + away[1] + away[2]
        if max(away) <= FARTHEST and distance < least:
            best, least = entry["schedule"], distance
    return None if best is None else dict(best)
