"""Tilus: thread-block programs over tiles, in Python, for NVIDIA GPUs.

Everything that a kernel may write is here, as `tilus.load` or `from tilus import Tensor, float16`. Importing tilus
loads nothing else: each name is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilus.errors import TilusError as TilusError
    from tilus.lang import *  # noqa: F403
    from tilus.runtime.kernel import Kernel as Kernel
    from tilus.runtime.kernel import kernel as kernel
    from tilus.runtime.manifest import load_manifest as load_manifest
    from tilus.runtime.tuning import Space as Space
    from tilus.runtime.tuning import autotune as autotune
    from tilus.runtime.tuning import tune as tune

__version__ = "0.1.0"

_HOMES = {
    "Kernel": "tilus.runtime.kernel",
    "Space": "tilus.runtime.tuning",
    "TilusError": "tilus.errors",
    "autotune": "tilus.runtime.tuning",
    "kernel": "tilus.runtime.kernel",
    "load_manifest": "tilus.runtime.manifest",
    "tune": "tilus.runtime.tuning",
}
_PACKAGES = (
    "codegen", "dtypes", "errors", "ir", "lang", "layout", "ops", "passes", "runtime", "simulator", "torch",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__all__":
        return [*_HOMES, *import_module("tilus.lang").__all__]
    if name.startswith("__"):
        raise AttributeError(f"module 'tilus' has no attribute {name!r}")
    if name in _PACKAGES:
        return import_module(f"tilus.{name}")
    home = import_module(_HOMES.get(name, "tilus.lang"))
    if name not in _HOMES and name not in home.__all__:
        raise AttributeError(f"module 'tilus' has no attribute {name!r}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *__getattr__("__all__")})
