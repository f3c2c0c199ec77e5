"""The launches that a kernel has made: how a call that is like an earlier one is recognised at the least cost.

The quickest way is torch's own comparison of a list of tensors with what an earlier list was, one call for all of them.
A few recent plans are tried like that; the others are in a table by dtype, device, shape, strides and alignment of the
tensors and by the constexpr arguments.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from tilus.dtypes import DType, TableType
from tilus.layout import RegisterLayout, SharedLayout
from tilus.runtime.arguments import is_torch_tensor
from tilus.runtime.launch import Plan

PLANS = 4096
"""Plans that are kept; beyond them the table begins anew."""
RECENT = 4
"""Plans that are tried before the table."""
_VALUE_TYPES = frozenset({int, bool, str, type(None), float, DType, TableType, RegisterLayout, SharedLayout})
Quick = Callable[[tuple[Any, ...], Mapping[str, Any]], bool]
Picker = Callable[[Sequence[Any]], tuple[Any, ...]]


def is_plain(value: object) -> bool:
    """Tell whether type and equality identify a constexpr value."""
    return type(value) in _VALUE_TYPES and not (type(value) is float and (value == 0 or value != value))


def picker(positions: Sequence[int]) -> Picker:
    """Return a function that picks some items as a tuple."""
    if len(positions) == 1:
        (only,) = positions
        return lambda items: (items[only],)
    if not positions:
        return lambda items: ()
    return operator.itemgetter(*positions)


class PlanTable:
    """The plans of one kernel.

    Parameters
    ----------
    tensors, scalars : sequence of int
        Positions of the tensors and of the scalars among the arguments.
    """

    def __init__(self, tensors: Sequence[int], scalars: Sequence[int]) -> None:
        self.arity = len(tensors) + len(scalars)
        self.tensors_of = picker(tensors)
        self.scalars_of = picker(scalars)
        self.has_scalars = bool(scalars)
        self._lock = threading.Lock()
        self._plans: dict[tuple[Any, ...], tuple[Plan, Quick]] = {}
        self._recent: tuple[Quick, ...] = ()

    def __len__(self) -> int:
        return len(self._plans)

    def clear(self) -> None:
        """Forget all plans."""
        with self._lock:
            self._plans.clear()
            self._recent = ()

    def launch(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
        """Launch if the call is like an earlier one, and tell whether it was.

        Whatever is wrong with an argument may raise struct.error, OverflowError, TypeError, ValueError or
        AttributeError; nothing was launched then.
        """
        for quick in self._recent:
            if quick(args, options):
                return True
        if not self._plans or len(args) != self.arity:
            return False
        key, pointers = self._key(self.tensors_of(args), options)
        found = self._plans.get(key)
        if found is None:
            return False
        plan, quick = found
        plan.run(pointers, self.scalars_of(args))
        self._prefer(quick)
        return True

    def keep(self, plan: Plan, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Keep a plan, if calls like this one can be recognised."""
        if len(args) != self.arity or not all(map(is_plain, options.values())):
            return
        tensors = self.tensors_of(args)
        if not all(map(is_torch_tensor, tensors)):
            return
        key, pointers = self._key(tensors, options)
        quick = self._quick(plan, tensors, options, pointers)
        with self._lock:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[key] = plan, quick
        self._prefer(quick)

    def _prefer(self, quick: Quick) -> None:
        self._recent = (quick, *[other for other in self._recent if other is not quick][: RECENT - 1])

    @staticmethod
    def _key(tensors: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], list[int]]:
        """Return what recognises a plan in the table, and the tensors' addresses."""
        pointers = [tensor.data_ptr() for tensor in tensors]
        values = tuple(options.values())
        key = (
            tuple(options),
            # 1 == True == 1.0.
            tuple(map(type, values)),
            values,
            # A tensor of another class, such as one that is traced, may have no memory.
            tuple(
                [(type(t), t.dtype, t.device, t.shape, t.stride(), t.is_conj(), t.is_neg()) for t in tensors]
            ),
            alignments(pointers),
        )
        return key, pointers

    def _quick(
        self, plan: Plan, tensors: tuple[Any, ...], options: Mapping[str, Any], pointers: Sequence[int]
    ) -> Quick:
        """Return a function that launches if a call is like the one that made the plan, and tells whether it was."""
        names, values = tuple(options), tuple(options.values())
        run, arity, last = plan.run, self.arity, list(pointers)
        low, lows = misalignment(pointers), alignments(pointers)
        identical, either = operator.is_, operator.or_
        same_tensors = comparison(tensors)
        tensors_of = self.tensors_of if self.has_scalars else None
        scalars_of = self.scalars_of if self.has_scalars else None
        address: Callable[[Any], int] = type(tensors[0]).data_ptr if tensors else int

        def launch(args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
            if len(args) != arity:
                return False
            if options:
                # The same objects; calls from one place in a program pass the same ones.
                if tuple(options) != names or not all(map(identical, options.values(), values)):
                    return False
            elif names:
                return False
            tensors = args if tensors_of is None else tensors_of(args)
            if not same_tensors(*tensors):
                return False
            pointers = list(map(address, tensors))
            if pointers != last:
                bits = reduce(either, pointers, 0) & 15
                if bits != low or (bits and alignments(pointers) != lows):
                    return False
            if scalars_of is None:
                run(pointers)
            else:
                run(pointers, scalars_of(args))
            return True

        return launch


def comparison(tensors: tuple[Any, ...]) -> Callable[..., bool]:
    """Return a function that tells whether tensors have the type, dtype, device, shape and strides of these."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        if guards.check(*tensors):
            check: Callable[..., bool] = guards.check
            return check
    except (ImportError, TypeError, ValueError, RuntimeError):
        pass
    # A torch without it: all calls go through the table.
    return lambda *tensors: False


def misalignment(pointers: Sequence[int]) -> int:
    """Return the low four bits of all pointers, or-ed."""
    return reduce(operator.or_, pointers, 0) & 15


def alignments(pointers: Sequence[int]) -> tuple[int, ...]:
    """Return the low four bits of each pointer."""
    return tuple([pointer & 15 for pointer in pointers])
