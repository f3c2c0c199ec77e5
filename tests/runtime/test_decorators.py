"""Decorators that are used in other ways than meant: one sentence that says what to write."""

from __future__ import annotations

import pytest

import tilus
from tilus import Space, Tensor, autotune, constexpr, float32


def called_without_function() -> None:
    @tilus.kernel()
    def k(out: Tensor[float32, "n"]):
        tilus.grid(1)


def called_with_options() -> None:
    @tilus.kernel(warps=4)
    def k(out: Tensor[float32, "n"]):
        tilus.grid(1)


def tuned_without_kernel() -> None:
    @autotune(Space(block=(1, 2)))
    def k(out: Tensor[float32, "n"], *, block: constexpr):
        tilus.grid(1)


def marked_twice() -> None:
    @tilus.kernel
    @tilus.inline
    def k(out: Tensor[float32, "n"]):
        tilus.grid(1)


def method() -> None:
    class Group:
        @tilus.kernel
        def k(self, out: Tensor[float32, "n"]):
            tilus.grid(1)


def quoted_dtype() -> None:
    @tilus.kernel
    def k(out: Tensor["float32", "n"]):
        tilus.grid(1)


@pytest.mark.parametrize(
    ("misuse", "message", "hint"),
    [
        (
            called_without_function,
            "takes a function and no options, but is written kernel()",
            "@tilus.kernel, and",
        ),
        (called_with_options, "but is written kernel(warps=...)", "tilus.grid(..., warps=4)"),
        (tuned_without_kernel, "tilus.autotune takes a kernel, not <function", "above @tilus.kernel"),
        (marked_twice, "made of a Python function, not of <inline function", "def with @tilus.kernel"),
        (method, "a kernel is no method, and has no self", "without self, called as"),
        (
            quoted_dtype,
            "'float32', which is no constexpr parameter",
            "Tensor[tilus.float32, ...], without quotes",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_misuse_says_what_to_write(misuse, message: str, hint: str) -> None:
    with pytest.raises(tilus.TilusError) as error:
        misuse()
    assert message in error.value.message
    assert hint in error.value.hint
