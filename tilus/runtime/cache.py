"""Compiled kernels on disk: found by content, safe among processes, made anew when damaged.

An entry is one JSON file with a checksum, written beside its place and renamed into it, so that a reader sees a whole
file or none, and of two writers one wins. Nothing in an entry is executed as Python. The key covers whatever the
machine code depends on: the kernel's source and values, the types of the parameters, the target, and the compiler,
its own files and those of LLVM and of the assembler.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
import tempfile
import threading
import warnings
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from tilus.codegen.assemble import Resources, assemblers
from tilus.errors import LaunchError, TilusError
from tilus.runtime.binary import Binary
from tilus.runtime.signature import Signature

FORMAT = 1
DIRECTORY_VARIABLE = "TILUS_CACHE_DIR"
SWITCH_VARIABLE = "TILUS_CACHE"
COMPILER_FOLDERS = ("dtypes", "layout", "ir", "lang", "passes", "codegen")
"""Parts of the package that decide what is generated."""
ENTRY_FILES = ("binary", "host_expression", "signature")
"""Files of this folder that decide what an entry says beside the machine code."""

log = logging.getLogger("tilus.cache")


def directory() -> Path | None:
    """Return the folder of the cache, or None if `TILUS_CACHE=0` turns it off."""
    if not switched(SWITCH_VARIABLE, f"{DIRECTORY_VARIABLE}=... for another folder"):
        return None
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    from platformdirs import user_cache_path

    return user_cache_path("tilus", appauthor=False)


def switched(variable: str, hint: str | None = None) -> bool:
    """Tell whether an environment variable leaves something on, which is so unless it says 0."""
    value = os.environ.get(variable, "").strip()
    if value.lower() in ("", "1", "on", "true", "yes"):
        return True
    if value.lower() in ("0", "off", "false", "no"):
        return False
    raise LaunchError(f"the environment variable {variable} is {value!r}, expected 0 or 1", hint=hint)


@lru_cache(maxsize=1)
def compiler_digest() -> str:
    """Return a hash of the compiler: its files and the versions of what it calls."""
    from importlib.metadata import PackageNotFoundError, version

    import tilus

    root = Path(tilus.__file__).parent
    digest = hashlib.sha256(f"tilus {tilus.__version__}".encode())
    paths = [p for p in sorted((root / "runtime").glob("*.py*")) if p.stem in ENTRY_FILES]
    for folder in COMPILER_FOLDERS:
        found = (p for p in sorted((root / folder).rglob("*")) if p.suffix in (".py", ".pyc", ".lark"))
        paths += [p for p in found if p.parent.name != "__pycache__"]
    # Imported from an archive, the package has no files of its own.
    for path in paths or [parent for parent in root.parents if parent.is_file()]:
        digest.update(f"\n{path.relative_to(root).as_posix() if paths else path.name}\n".encode())
        digest.update(path.read_bytes())
    try:
        digest.update(f"\nllvmlite {version('llvmlite')}".encode())
    except PackageNotFoundError:
        digest.update(b"\nllvmlite of unknown version")
    digest.update(f"\n{assemblers()}".encode())
    return digest.hexdigest()


def key(*parts: str) -> str:
    """Return the key of an entry: a hash of the compiler and of all parts."""
    text = json.dumps([FORMAT, compiler_digest(), *parts])
    return hashlib.sha256(text.encode()).hexdigest()


def _path(folder: Path, entry_key: str) -> Path:
    return folder / "kernels" / entry_key[:2] / f"{entry_key}.json"


def read(entry_key: str) -> Binary | None:
    """Return an entry, or None if there is none that is whole."""
    folder = directory()
    # Whoever wants to see what the passes do wants them to run.
    if folder is None or os.environ.get("TILUS_DUMP"):
        return None
    path = _path(folder, entry_key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        log.debug("cannot read %s: %s", path, error)
        return None
    try:
        return _decode(text, entry_key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TilusError) as error:
        log.debug("%s is damaged and is made anew: %s", path, error)
        return None


def _decode(text: str, entry_key: str) -> Binary:
    checksum, _, body = text.partition("\n")
    if hashlib.sha256(body.encode()).hexdigest() != checksum:
        raise ValueError("the checksum does not fit")
    data = json.loads(body)
    if data["key"] != entry_key:
        raise ValueError("the entry is of another kernel")
    return binary_from_json(data["binary"])


def write(entry_key: str, binary: Binary) -> None:
    """Store an entry; a folder that cannot be written to costs a warning, once."""
    folder = directory()
    if folder is None:
        return
    body = json.dumps({"key": entry_key, "binary": binary_to_json(binary)}, sort_keys=True)
    text = f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}"
    path = _path(folder, entry_key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    except OSError as error:
        warn_once(str(folder), str(error))


@lru_cache(maxsize=1)
def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that others see the old one or the whole new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:16]}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # mkstemp makes private files; what is written here is for whoever the umask allows.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


@lru_cache(maxsize=64)
def _first_failure(folder: str) -> threading.Lock:
    """Return a lock that only the first failure for a folder gets."""
    return threading.Lock()


def warn_once(folder: str, error: str) -> None:
    """Warn that kernels are not kept."""
    if _first_failure(folder).acquire(blocking=False):
        warnings.warn(
            f"compiled kernels are not kept, because {folder} cannot be written to ({error}); "
            f"set {DIRECTORY_VARIABLE} to another folder, or {SWITCH_VARIABLE}=0",
            RuntimeWarning,
            stacklevel=2,
        )


def binary_to_json(binary: Binary) -> dict[str, Any]:
    """Return a compiled variant as JSON values."""
    return {
        "signature": binary.signature.to_json(),
        "target": binary.target,
        "ptx": binary.ptx,
        "cubin": None if binary.cubin is None else base64.b64encode(binary.cubin).decode(),
        "resources": None if binary.resources is None else asdict(binary.resources),
    }


def binary_from_json(data: dict[str, Any]) -> Binary:
    """Return the compiled variant that `binary_to_json` wrote."""
    try:
        cubin = None if data["cubin"] is None else base64.b64decode(data["cubin"], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return Binary(
        Signature.from_json(data["signature"]),
        str(data["target"]),
        str(data["ptx"]),
        cubin,
        resources_from_json(data["resources"]),
    )


def resources_from_json(data: dict[str, Any] | None) -> Resources | None:
    """Return the assembler's report that was kept as JSON values."""
    if data is None:
        return None
    return Resources(**{**data, "warnings": tuple(data["warnings"])})
