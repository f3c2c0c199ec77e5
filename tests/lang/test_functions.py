"""The stubs of the language: each is documented, translated under the same parameters, and refuses plain Python."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tilus.lang as tilus
from tilus.errors import TilusError
from tilus.lang import functions, types
from tilus.lang.frontend.attributes import METHODS
from tilus.lang.semantics.registry import FUNCTIONS

STUBS = [getattr(functions, name) for name in functions.__all__]
# What has a meaning in plain Python too, by arguments that give one.
PLAIN = {
    "cdiv": ((7, 2), 4), "next_power_of_2": ((33,), 64), "static_range": ((1, 4), range(1, 4)), "maximum": ((1, 2), 2),
    "minimum": ((1, 2), 1), "max": ((1, 2, 3), 3), "min": ((3, 1, 2), 1), "abs": ((-2,), 2), "sqrt": ((16.0,), 4.0),
    "rsqrt": ((4.0,), 0.5), "exp": ((0.0,), 1.0), "exp2": ((3.0,), 8.0), "log": ((1.0,), 0.0), "log2": ((8.0,), 3.0),
    "sin": ((0.0,), 0.0), "cos": ((0.0,), 1.0), "tanh": ((0.0,), 0.0), "erf": ((0.0,), 0.0), "rcp": ((4.0,), 0.25),
    "floor": ((1.5,), 1.0), "ceil": ((1.5,), 2.0), "round": ((2.5,), 2.0), "trunc": ((-1.5,), -1.0),
    "clamp": ((5, 0, 3), 3), "sigmoid": ((0.0,), 0.5),
    "isnan": ((1.0,), False), "isinf": ((1.0,), False), "static_assert": ((True,), None),
}  # fmt: skip


@pytest.mark.parametrize("stub", STUBS, ids=lambda f: f.__name__)
def test_a_stub_and_its_translation_have_the_same_parameters(stub):
    translation = FUNCTIONS[stub].implementation
    assert list(inspect.signature(translation).parameters)[1:] == list(inspect.signature(stub).parameters)


@pytest.mark.parametrize("stub", STUBS, ids=lambda f: f.__name__)
def test_a_stub_documents_its_parameters_and_results(stub):
    signature = inspect.signature(stub)
    text = inspect.getdoc(stub)
    assert text.splitlines()[0].endswith((".", "`."))
    for name in signature.parameters:
        assert f"{name}" in text, name
    if signature.parameters:
        assert "Parameters\n----------" in text
    if signature.return_annotation not in ("None", "AbstractContextManager[None]"):
        assert "Returns\n-------" in text


@pytest.mark.parametrize("name", sorted(set(functions.__all__) - set(PLAIN)))
def test_a_function_of_the_language_refuses_plain_python(name):
    stub = getattr(tilus, name)
    parameters = inspect.signature(stub).parameters.values()
    args = [None for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    kwargs = {p.name: None for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY}
    with pytest.raises(TilusError, match="inside a kernel") as caught:
        stub(*args, **kwargs)
    assert "@tilus.kernel" in str(caught.value)


@pytest.mark.parametrize("name", PLAIN)
def test_a_function_of_numbers_computes_in_plain_python(name):
    args, expected = PLAIN[name]
    result = getattr(tilus, name)(*args)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
def test_a_class_of_run_time_values_has_the_methods_that_are_translated(cls):
    public = {
        name for name, value in vars(cls).items() if not name.startswith("_") and inspect.isfunction(value)
    }
    assert public == set(METHODS[cls])
    for name, stub in METHODS[cls].items():
        assert stub in FUNCTIONS
        # The first parameter is the value itself, and those of the method come next under the same names.
        own = list(inspect.signature(getattr(cls, name)).parameters)[1:]
        translated = list(inspect.signature(stub).parameters)[1:]
        assert own == translated[: len(own)], name


def test_the_classes_of_run_time_values_refuse_plain_python():
    for cls in (types.Tile, types.Scalar):
        for expression in (
            lambda v: v + 1,
            lambda v: 2 * v,
            lambda v: -v,
            lambda v: v < 3,
            lambda v: v.dtype,
        ):
            with pytest.raises(TilusError, match="inside a kernel"):
                expression(cls())


def test_a_star_import_leaves_pythons_own_functions_usable():
    namespace = {}
    exec("from tilus.lang import *", namespace)
    for name, args, expected in (
        ("sum", ([1, 2],), 3), ("max", ([1, 2],), 2), ("min", ((3, 2),), 2), ("any", ([False],), False),
        ("all", ([],), True), ("abs", (-1,), 1), ("max", (1, 2), 2),
    ):  # fmt: skip
        assert namespace[name](*args) == expected


def test_everything_is_exported():
    assert len(set(tilus.__all__)) == len(tilus.__all__)
    assert set(functions.__all__) <= set(tilus.__all__)
    for name in tilus.__all__:
        assert hasattr(tilus, name), name


def test_importing_the_language_loads_nothing_heavy():
    script = (
        "import sys, tilus.lang\n"
        "print([m for m in ('torch', 'numpy', 'llvmlite', 'lark') if m in sys.modules])"
    )
    root = str(Path(tilus.__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
