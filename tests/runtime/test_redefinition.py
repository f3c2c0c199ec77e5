"""Names outside of a kernel that are bound anew, values that look alike, and kernels that are copied and pickled."""

from __future__ import annotations

import copy
import functools
import linecache
import pickle
import re
import subprocess
import sys
import threading
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import tilus
from tilus import Space, Tensor, autotune, constexpr, float32
from tilus.lang.fingerprint import Fingerprint
from tilus.runtime import kernel as kernel_module

ROOT = Path(tilus.__file__).parents[1]
FACTOR = 2.0
SETTINGS = types.SimpleNamespace(offset=1.0)


@tilus.inline
def step(x):
    return x + 1.0


def plain(x):
    return x * FACTOR


@tilus.kernel
def reads_globals(out: Tensor[float32, "n"]):
    tilus.grid(1, warps=1)
    tilus.store(out, step(tilus.zeros(32)) + plain(3.0) + SETTINGS.offset + tuned_offset.value, 0)


class tuned_offset:
    value = 0.0


@tilus.kernel
def writes(out: Tensor[float32, "n"], *, value: constexpr):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.zeros(32) + float(value.number if hasattr(value, "number") else value()), 0)


def result(kernel, **options) -> float:
    out = np.zeros(32, np.float32)
    kernel(out, **options)
    assert (out == out[0]).all()
    return float(out[0])


@tilus.inline
def other_step(x):
    return x + 10.0


def test_a_global_that_is_bound_anew_counts_from_the_next_launch(monkeypatch):
    assert result(reads_globals) == 1 + 6 + 1
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert result(reads_globals) == 1 + 9 + 1
    monkeypatch.setitem(globals(), "step", other_step)
    assert result(reads_globals) == 10 + 9 + 1
    monkeypatch.setattr(SETTINGS, "offset", 5.0)
    assert result(reads_globals) == 10 + 9 + 5
    monkeypatch.setattr(tuned_offset, "value", 100.0)
    assert result(reads_globals) == 10 + 9 + 5 + 100
    assert reads_globals.simulate(np.zeros(32, np.float32)).hazards == []
    monkeypatch.undo()
    assert result(reads_globals) == 8


def test_nothing_is_compiled_or_read_again_while_globals_stay(monkeypatch):
    result(reads_globals)
    monkeypatch.setattr(kernel_module.cache, "key", None)
    assert result(reads_globals) == 8


def test_kernels_of_the_package_watch_no_names():
    from tilus.ops.matmul_kernel import matmul_kernel

    assert matmul_kernel.source.watched() == ()


def test_a_function_that_is_defined_after_the_kernel_around_it_is_found():
    @tilus.kernel
    def early(out: Tensor[float32, "n"]):
        tilus.grid(1, warps=1)
        tilus.store(out, late(tilus.zeros(32)) + number, 0)

    @tilus.inline
    def late(x):
        return x + 2.0

    number = 1.0
    assert result(early) == 3
    number = 7.0
    assert result(early) == 9


class Slots:
    __slots__ = ("__private", "number")

    def __init__(self, number):
        self.number, self.__private = number, 0


class SilentSlots(Slots):
    def __repr__(self):
        return "the same for all"


def class_with(number):
    class Made:
        def read():
            return number

    Made.number = number
    return Made


def function_without_source(number):
    code = "def f(x=None):\n    return [n + OFFSET for n in (1,)][0] + inner()\n"
    names = {"OFFSET": number, "inner": lambda: number}
    exec(code, names)
    return names["f"]


def base_with(number):
    class Base:
        @property
        def number(self):
            return self.of()

        def of(self):
            return number

    return type("Child", (Base,), {})()


@pytest.mark.parametrize(
    "make", [Slots, SilentSlots, class_with, base_with, lambda n: functools.partial(class_with(n).read)],
    ids=["slots", "slots and a text", "class", "inherited", "method"],
)  # fmt: skip
def test_constexpr_values_that_only_look_alike_make_kernels_of_their_own(make):
    assert [result(writes, value=make(number)) for number in (1, 2, 3, 1)] == [1, 2, 3, 1]


def test_functions_without_source_are_told_apart_by_what_they_read():
    texts = [Fingerprint().text(function_without_source(number)) for number in (1, 2, 1)]
    assert texts[0] != texts[1]
    assert texts[0] == texts[2]


@dataclass
class Options:
    lock = threading.Lock()
    number: float = 4.0
    names: list = field(default_factory=list)

    def doubled(self):
        return self.number * 2 if self.number in {1.0, 2.0, 3.0} else 0


PRINT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from tests.runtime.test_redefinition import Options, Slots, class_with
from tilus.lang.fingerprint import Fingerprint
print([Fingerprint().text(v) for v in (Options(), Options, Slots(1), class_with(2), object(), np.prod)])
"""


def test_the_text_of_a_value_is_the_same_in_every_process():
    texts = {
        subprocess.run(
            [sys.executable, "-c", PRINT, str(ROOT)], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(texts) == 1
    assert " at 0x" not in texts.pop()


def test_functions_of_a_notebook_are_told_apart(monkeypatch):
    # In a notebook, __main__ has no file, and each cell's source is in linecache.
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    found = []
    for number, cell in enumerate(("return 1.0", "return 2.0")):
        name, source = f"<cell {number}>", f"def value():\n    {cell}\n"
        monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(True), name))
        exec(compile(source, name, "exec"), notebook.__dict__)
        found.append(result(writes, value=notebook.value))
    assert found == [1, 2]


class Namespace:
    @tilus.kernel
    def inside(out: Tensor[float32, "n"], *, value: constexpr = 1.0):
        tilus.grid(1, warps=1)
        tilus.store(out, tilus.zeros(32) + value, 0)


@autotune(Space(value=(1.0, 2.0)))
@tilus.kernel
def searched(out: Tensor[float32, "n"], *, value: constexpr):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.zeros(32) + value, 0)


def test_kernels_are_pickled_by_name():
    for value in (Namespace.inside, searched, step):
        assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301
    bound = pickle.loads(pickle.dumps(Namespace.inside.bind(value=3.0)))  # noqa: S301
    assert result(bound) == 3


def test_a_copy_of_what_holds_kernels_holds_the_same_kernels():
    @tilus.kernel
    def local(out: Tensor[float32, "n"]):
        tilus.grid(1, warps=1)
        tilus.store(out, tilus.zeros(32), 0)

    held = {"kernels": [local, Namespace.inside.bind(value=2.0), searched, step]}
    assert copy.deepcopy(held)["kernels"] == held["kernels"]
    assert copy.copy(local) is local


def test_code_without_source_is_refused_with_its_place():
    names = {}
    exec("def f(x):\n    return x\n", names)
    with pytest.raises(tilus.TilusError, match="cannot be read: Python keeps none") as error:
        tilus.inline(names["f"])
    assert str(error.value.location) == "<string>:1"


def test_code_whose_file_is_gone_is_refused_with_the_file(tmp_path):
    gone = str(tmp_path / "gone.py")
    names = {}
    exec(compile("def f(x):\n    return x\n", gone, "exec"), names)
    with pytest.raises(tilus.TilusError, match=f"no such file as {re.escape(gone)}"):
        tilus.inline(names["f"])
