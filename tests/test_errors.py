"""Every error that tilus raises on purpose is a TilusError, and of the kind that Python's own functions would raise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilus
from tilus import dtypes, errors, layout
from tilus.errors import TilusError

CALLS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "no such dtype": (lambda: dtypes.dtype("uint9"), ValueError),
    "no dtype": (lambda: dtypes.dtype(None), TypeError),
    "codes that are floats": (lambda: dtypes.pack(np.zeros(4), tilus.uint4), TypeError),
    "codes that are too large": (lambda: dtypes.pack(np.full(4, 16), tilus.uint4), ValueError),
    "a table of three": (lambda: dtypes.table_type([1.0, 2.0, 3.0]), ValueError),
    "a table of words": (lambda: dtypes.table_type(["a", "b"]), TypeError),  # type: ignore[list-item]
    "a layout over no threads": (lambda: layout.spatial(0), ValueError),
    "a layout in pieces": (lambda: layout.parse("spatial(8"), ValueError),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_error_is_of_both_kinds(name: str) -> None:
    call, kind = CALLS[name]
    with pytest.raises(TilusError) as caught:
        call()
    assert isinstance(caught.value, kind)


def test_every_class_of_errors_has_one_base_and_a_meaning() -> None:
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    assert len(classes) > 10
    for cls in classes:
        assert issubclass(cls, TilusError)
        assert inspect.getdoc(cls)
        assert str(cls("found this", hint="that")) == "found this\n  write instead: that"
