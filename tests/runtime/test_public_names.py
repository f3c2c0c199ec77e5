"""What `import tilus` offers, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

import tilus
import tilus.lang

ROOT = Path(__file__).resolve().parents[2]


def fresh(code: str) -> str:
    """Return what a new process prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_everything_of_the_language_is_a_name_of_tilus() -> None:
    for name in tilus.lang.__all__:
        assert getattr(tilus, name) is getattr(tilus.lang, name)
    assert set(tilus.lang.__all__) < set(tilus.__all__) <= set(dir(tilus))


def test_star_import_gives_all_names() -> None:
    names = fresh("from tilus import *; print(*globals())").split()
    assert set(tilus.__all__) <= set(names)


@pytest.mark.parametrize(
    "name", ["codegen", "dtypes", "errors", "ir", "lang", "layout", "passes", "runtime", "simulator"]
)
def test_packages_are_attributes_without_an_import(name: str) -> None:
    printed = fresh(f"import tilus; print(tilus.{name}.__name__)")
    assert printed == f"tilus.{name}\n"
    assert isinstance(getattr(tilus, name), types.ModuleType)


def test_names_that_do_not_exist_raise_attribute_errors() -> None:
    for name in ("flaot16", "__wrapped__", "KernelSource2"):
        with pytest.raises(AttributeError, match=f"module 'tilus' has no attribute '{name}'"):
            getattr(tilus, name)
    with pytest.raises(ImportError):
        from tilus import flaot16  # type: ignore[attr-defined]  # noqa: F401


def test_import_loads_no_part_of_the_compiler_nor_what_it_needs() -> None:
    code = "import sys, tilus; print(*(n for n in sys.modules if n.startswith('tilus')), '|', *sys.modules)"
    own, every = fresh(code).split("|")
    assert own.split() == ["tilus"]
    assert not {"numpy", "torch", "llvmlite", "lark", "cuda"} & set(every.split())


def test_decorating_and_calling_need_neither_torch_nor_cuda() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["cuda"] = None
import numpy as np
from tests.runtime import kernels
x, out = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
kernels.scale_add(x, x, out)
print(np.array_equal(out, x * 3))
"""
    assert fresh(code) == "True\n"
