"""What a kernel says about itself: its parameters, its default types, its fingerprint, and places in its source."""

import collections
import functools
import importlib.util
import inspect
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import tilus.lang as tilus
from tests.lang.support import operations, trace
from tilus.errors import NameNotFound, TypeMismatch
from tilus.ir import GlobalType, PointerType, ScalarType, Symbol, ops, walk
from tilus.lang import (
    KernelSource,
    ParamSpec,
    Pointer,
    Tensor,
    constexpr,
    float16,
    float32,
    int32,
    int64,
    uint4,
)
from tilus.lang.fingerprint import Fingerprint


def documented(
    a: Tensor[float16, "batch m k"],
    b: Tensor["b_dtype", "k 64"],
    c: Tensor[float32, "_ d"],
    p: Pointer["b_dtype"],
    n: int64,
    count: int = 3,
    scale: float = 1.0,
    flag: bool = False,
    *,
    b_dtype: constexpr,
    d: constexpr = 32,
):
    tilus.grid(count, warps=8, cluster=2)


def test_parameters_are_read_from_annotations():
    source = KernelSource(documented)
    assert source.name == "documented"
    assert source.file == __file__
    assert inspect.getsource(documented).startswith("def documented(")
    assert source.line == documented.__code__.co_firstlineno
    assert source.params == (
        ParamSpec("a", "tensor", float16, ("batch", "m", "k")),
        ParamSpec("b", "tensor", "b_dtype", ("k", 64)),
        ParamSpec("c", "tensor", float32, (None, "d")),
        ParamSpec("p", "pointer", "b_dtype"),
        ParamSpec("n", "scalar", int64),
        ParamSpec("count", "scalar", int32, default=3),
        ParamSpec("scale", "scalar", float32, default=1.0),
        ParamSpec("flag", "scalar", tilus.boolean, default=False),
        ParamSpec("b_dtype", "constexpr"),
        ParamSpec("d", "constexpr", default=32),
    )
    assert [p.name for p in source.params if not p.required] == ["count", "scale", "flag", "d"]


def test_default_types_are_dense_and_row_major():
    types = KernelSource(documented).default_types({"b_dtype": uint4}, divisor=8)
    m, k, batch = (Symbol(name, 8) for name in ("m", "k", "batch"))
    assert types["a"] == GlobalType(float16, (batch, m, k), (Symbol("a_s0", 64), k, 1), 16)
    assert types["b"] == GlobalType(uint4, (k, 64), (64, 1), 16)
    assert types["c"] == GlobalType(float32, (Symbol("c_d0", 8), 32), (32, 1), 16)
    assert types["p"] == PointerType(uint4, 16)
    assert types["n"] == ScalarType(int64)
    assert types["flag"] == ScalarType(tilus.boolean)


def test_a_kernel_has_its_parameters_grid_and_place():
    kernel = trace(documented, b_dtype=uint4)
    assert [p.name for p in kernel.params] == ["a", "b", "c", "p", "n", "count", "scale", "flag"]
    assert (kernel.name, kernel.warps, kernel.cluster) == ("documented", 8, (2, 1, 1))
    assert kernel.loc.line == documented.__code__.co_firstlineno
    source = KernelSource(documented)
    types = source.default_types({"b_dtype": uint4})
    assert source.trace({"b_dtype": uint4}, types, name="other").name == "other"


def test_the_grid_holds_only_what_the_host_computes():
    kernel = trace(grid_of_shapes, block=48)
    opcodes = [made.opcode for made in kernel.grid.ops]
    assert set(opcodes) == {"dim", "constant", "binary", "cast", "yield"}
    assert len(kernel.grid.terminator.values) == 3


def grid_of_shapes(a: Tensor[float16, "m n"], split: int64, *, block: constexpr):
    m, n = a.shape
    blocks = (tilus.cdiv(m, block), max(n // block, 1) + n % 7)
    tilus.grid(*blocks, tilus.min(split, 65535))


def grid_of_shapes_inline(a: Tensor[float16, "m n"], split: int64, *, block: constexpr):
    m, n = a.shape
    tilus.grid(tilus.cdiv(m, block), max(n // block, 1) + n % 7, tilus.min(split, 65535))


def test_a_grid_written_in_one_call_leaves_nothing_in_the_kernel():
    kernel = trace(grid_of_shapes_inline, block=48)
    assert [made.opcode for made in kernel.body.ops] == ["dim", "dim", "return"]
    assert len(kernel.grid.terminator.values) == 3


@pytest.mark.parametrize(
    ("constexprs", "error", "text"),
    [
        ({}, TypeMismatch, "takes a value for its constexpr parameter b_dtype"),
        ({"b_dtype": 4}, TypeMismatch, "b_dtype is the dtype of b, but is given the int 4"),
        ({"b_dtype": uint4, "dd": 4}, NameNotFound, "has no constexpr parameter 'dd'"),
        ({"b_dtype": uint4, "d": 0.5}, TypeMismatch, "d is a dimension of c, but is given the float 0.5"),
    ],
)
def test_wrong_constexprs_are_refused(constexprs, error, text):
    with pytest.raises(error, match=text):
        KernelSource(documented).default_types(constexprs)


# Places.


@tilus.inline
def doubled(x):
    return x + x


def places(f: float32, i: int32):
    tilus.grid(1)
    for _ in range(i):
        doubled(f * 0.5)


def test_operations_stand_where_they_are_written():
    kernel = trace(places)
    (product,) = [made for made in walk(kernel.body) if isinstance(made, ops.Binary) and made.kind == "mul"]
    (addition,) = [made for made in walk(kernel.body) if isinstance(made, ops.Binary) and made.kind == "add"]
    first = places.__code__.co_firstlineno
    line = "        doubled(f * 0.5)"
    assert (product.loc.file, product.loc.line) == (__file__, first + 3)
    assert (product.loc.column, product.loc.end_column) == (line.index("f *"), line.index("0.5") + 3)
    assert product.loc.caller is None
    assert addition.loc.line == doubled.function.__code__.co_firstlineno + 2
    assert (addition.loc.caller.line, addition.loc.caller.column) == (first + 3, 8)
    assert all(made.loc is not None for made in walk(kernel.body))


def test_a_kernel_inside_of_a_function_keeps_its_columns():
    width = 32

    def inner(i: int32):
        tilus.grid(1)
        x = i * width
        tilus.device_assert(x > 0)

    kernel = trace(inner)
    (product,) = operations(kernel, ops.Binary)
    assert product.loc.line == inner.__code__.co_firstlineno + 2
    assert (product.loc.column, product.loc.end_column) == (12, 21)


# Fingerprints.

MODULE = """
import tilus.lang as tilus
from tilus.lang import Tensor, constexpr, float32
import {helper} as helper

SCALE = {scale}
UNUSED = {unused}


class Config:
    width = {width}


@tilus.inline
def leaf(x):
    return x * {factor}


@tilus.inline
def middle(x):
    return leaf(x) + helper.OFFSET


def plain(n):
    return n + {plain}


def kernel(a: Tensor[float32, "n"], *, block: constexpr = {default}):
    tilus.grid(1)
    x = tilus.load(a, 0, plain(block) * Config.width)
    tilus.store(a, middle(x) * SCALE, 0)
"""
VALUES = {
    "scale": "2.0", "unused": "1", "width": "1", "factor": "3.0", "plain": "0", "default": "16", "helper": "helper_a",
}  # fmt: skip


def fingerprint(folder: Path, **changes: str) -> str:
    """Return the fingerprint of the module with some values changed, always in the same file."""
    folder.mkdir(exist_ok=True)
    values = {**VALUES, **changes}
    for name, offset in (("helper_a", 1.0), ("helper_b", 2.0)):
        (folder / f"{name}.py").write_text(f"OFFSET = {offset}\n")
    path = folder / "module.py"
    path.write_text(MODULE.format(**values))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import module\nfrom tilus.lang import KernelSource\nprint(KernelSource(module.kernel).fingerprint({}))"
    )
    root = str(Path(tilus.__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-B", "-c", script, str(folder)], env={"PYTHONPATH": root, "PYTHONHASHSEED": "random"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.strip()


def test_a_fingerprint_changes_with_all_that_the_kernel_reads_and_nothing_else(tmp_path):
    base = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == base
    assert fingerprint(tmp_path, unused="2") == base
    changed = {
        name: fingerprint(tmp_path, **{name: value})
        for name, value in {
            "scale": "2.5", "factor": "4.0", "plain": "1", "default": "32", "width": "2", "helper": "helper_b",
        }.items()
    }  # fmt: skip
    assert base not in changed.values()
    assert len(set(changed.values())) == len(changed)


class Settings:
    width = 1

    def __init__(self, depth):
        self.depth = depth


SETTINGS = Settings(1)


def reads_objects(i: int32, *, f: constexpr = None):
    tilus.grid(1)
    x = i * Settings.width + SETTINGS.depth
    tilus.device_assert(x > np.prod((1, 2)) + math.pi)


def test_a_fingerprint_follows_what_classes_and_objects_hold(monkeypatch):
    source = KernelSource(reads_objects)
    found = [source.fingerprint({})]
    monkeypatch.setattr(Settings, "width", 2)
    found.append(source.fingerprint({}))
    monkeypatch.setattr(SETTINGS, "depth", 2)
    found.append(source.fingerprint({}))
    partials = (functools.partial(Settings, 1), functools.partial(Settings, 2))
    for value in (*partials, np.zeros(5000), np.eye(1, 5000, 2500)):
        found.append(source.fingerprint({"f": value}))
    assert len(set(found)) == len(found)
    # An installed package counts by its version: its source is not read.
    assert len("\n".join(collected_lines(source))) < 5000


def collected_lines(source: KernelSource) -> list[str]:
    collected = Fingerprint(__name__)
    return [collected.function(source.source)]


def test_a_fingerprint_tells_constexpr_values_apart():
    source = KernelSource(documented)
    layout = tilus.spatial(8, 4)
    values = [
        1, 1.0, True, "1", None, float16, uint4, (1, 2), [1, 2], (1, (2,)), {"a": 1}, layout, layout.local(1, 2),
        doubled, tilus.cdiv, tilus.table_type([0.0, 1.0]), tilus.table_type([0.0, 2.0]),
    ]  # fmt: skip
    found = [source.fingerprint({"d": value}) for value in values]
    assert len(set(found)) == len(values)
    assert found == [source.fingerprint({"d": value}) for value in values]


def returning(number: int):
    return lambda: number


def test_a_fingerprint_tells_objects_apart_that_python_shows_alike():
    torch = pytest.importorskip("torch")
    pairs = [
        (torch.tensor([1.00001]), torch.tensor([1.00002])),
        (torch.arange(3000), torch.arange(3000) * (torch.arange(3000) != 1500)),
        (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0078125, dtype=torch.bfloat16)),
        (collections.deque([returning(1)]), collections.deque([returning(2)])),
        (types.MappingProxyType({"f": returning(1)}), types.MappingProxyType({"f": returning(2)})),
        (re.compile("a" * 300 + "b"), re.compile("a" * 300 + "c")),
    ]
    source = KernelSource(documented)
    found = [source.fingerprint({"d": value}) for pair in pairs for value in pair]
    assert len(set(found)) == len(found)
    assert found == [source.fingerprint({"d": value}) for pair in pairs for value in pair]
    # Of a tensor counts what it shows of its memory.
    part = torch.arange(8.0)[:3]
    assert source.fingerprint({"d": part}) == source.fingerprint({"d": part.clone()})


POSTPONED = """
from __future__ import annotations

import tilus.lang as tilus
from tilus.lang import KernelSource


def make(read):
    from tilus.lang import Tensor, constexpr, float16, int32

    def kernel(a: Tensor[float16, "m n"], i: int32, *, block: constexpr = 16):
        tilus.grid(1)

    return KernelSource(kernel) if read else kernel


def outside(a: tilus.Tensor[tilus.float16, "m n"], i: tilus.int32, *, block: tilus.constexpr = 16):
    tilus.grid(1)
"""


def load(folder: Path, text: str):
    path = folder / "postponed.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("postponed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_postponed_annotations_are_read(tmp_path):
    module = load(tmp_path, POSTPONED)
    expected = (
        ParamSpec("a", "tensor", float16, ("m", "n")),
        ParamSpec("i", "scalar", int32),
        ParamSpec("block", "constexpr", default=16),
    )
    assert KernelSource(module.outside).params == expected
    assert module.make(read=True).params == expected


def test_postponed_annotations_whose_names_are_gone_are_refused(tmp_path):
    function = load(tmp_path, POSTPONED).make(read=False)
    with pytest.raises(TypeMismatch, match=r"the annotation .* raised NameError"):
        KernelSource(function)


def test_a_kernel_without_source_is_refused():
    namespace = {"tilus": tilus}
    exec("def kernel(i: tilus.int32):\n    tilus.grid(1)\n", namespace)
    with pytest.raises(tilus_errors().SyntaxNotSupported, match="the source of kernel cannot be read"):
        KernelSource(namespace["kernel"])


def tilus_errors():
    import tilus.errors

    return tilus.errors
