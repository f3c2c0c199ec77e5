"""Runs one call of an op under every condition that a user may have, and tells what is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fuzz.bounds import Near
from tests.fuzz.operands import whole
from tilus.errors import TilusError
from tilus.runtime.simulate import TARGET_VARIABLE

MODULES = ("matmul", "quantized_matmul", "block_scaled", "grouped", "grouped_block_scaled")
"""Of `tilus.ops`: those that ask how many multiprocessors there are."""

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A call of an op.

    Attributes
    ----------
    text : str
        The call in words.
    run : callable
        Makes the call and returns its results.
    inputs : sequence of Tensor
        What the call may read, and must leave as it is.
    wrong : callable
        Says what is wrong with results; nothing if nothing is.
    target : str
    processors : int
        How many multiprocessors the op is told that there are.
    choices : tuple
        Functions of the library that choose schedules, as modules, names and what stands in for them.
    """

    text: str
    run: Callable[[], Outputs]
    inputs: Sequence[torch.Tensor]
    wrong: Callable[[Outputs], str]
    target: str = "sm_90a"
    processors: int = 1
    choices: tuple[tuple[str, str, Callable[..., Any]], ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.text}, {self.target}, {self.processors} processors" + (
            ", any schedule" if self.choices else ""
        )


class Recorder(TorchDispatchMode):
    """Keeps the calls of the library's ops, with what they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "tilus":
            self.calls.append((func, args, kwargs or {}, out))
        return out


@contextmanager
def conditions(case: Case) -> Iterator[None]:
    """Let ops see a case's target, processors and schedules, and let memory that nobody wrote to hold NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {TARGET_VARIABLE: case.target}))
        for name in MODULES:
            module = sys.modules[f"tilus.ops.{name}"]
            stack.enter_context(mock.patch.object(module, "processors", return_value=case.processors))
        for name, function, stand_in in case.choices:
            stack.enter_context(mock.patch.object(sys.modules[name], function, stand_in))
        # So torch fills what `empty` returns.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def check(case: Case) -> str:
    """Return what is wrong with a case, in words; nothing if nothing is."""
    before = [whole(x) for x in case.inputs]
    with conditions(case):
        try:
            with Recorder() as recorder:
                first = case.run()
            second = case.run()
        except TilusError as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            return f"not an error of this library: {type(error).__name__}: {error}"
    for x, memory in zip(case.inputs, before, strict=True):
        if not torch.equal(whole(x), memory):
            return f"an input of shape {tuple(x.shape)} was changed"
    for one, two in zip(first, second, strict=True):
        if not torch.equal(bits(one), bits(two)):
            return "the second run gave other bits"
        if one.numel() and any(
            one.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in case.inputs
        ):
            return "a result lies in the memory of an input"
    return case.wrong(first) or next(filter(None, map(unlike_fake, recorder.calls)), "")


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor's elements."""
    return x.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def unlike_fake(call: tuple[Any, Any, Any, Any]) -> str:
    """Say where what an op's fake implementation returns has other sizes, strides or types than the op's own."""
    function, args, kwargs, out = call
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs))
        fake = function(*given[0], **given[1])
    pairs = zip(*(torch.utils._pytree.tree_leaves(x) for x in (fake, out)), strict=True)
    for made, real in pairs:
        forms = [(x.dtype, tuple(x.shape), x.stride()) for x in (made, real)]
        if forms[0] != forms[1]:
            return f"{function} returns {forms[1]}, its fake implementation {forms[0]}"
    return ""


def compared(*wanted: Near, rows: torch.Tensor | None = None) -> Callable[[Outputs], str]:
    """Return a check of results; of some rows if they are said."""

    def wrong(found: Outputs) -> str:
        for got, near in zip(found, wanted, strict=True):
            if got.shape != near.value.shape:
                return f"the result has shape {tuple(got.shape)}, expected {tuple(near.value.shape)}"
            bad = near.wrong(got)
            if rows is not None:
                bad &= rows.reshape(rows.shape + (1,) * (bad.ndim - rows.ndim))
            if bad.any():
                place = tuple(int(i) for i in bad.nonzero()[0])
                return (
                    f"{int(bad.sum())} of {bad.numel()} results are wrong, such as {got[place].item()} at {place}, "
                    f"expected {near.value[place].item()} +- {near.error[place].item():.3g}"
                )
        return ""

    return wrong
