"""What a tuner chooses from: named values of constexpr parameters, and which combinations make sense."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tilus.errors import TilusError

Choice = dict[str, Any]
"""Values of constexpr parameters by name: one candidate."""
Constraint = Callable[..., Any]


@dataclass(frozen=True, init=False)
class Space:
    """Candidates: every combination of the values of some constexpr parameters, less those that a constraint refuses.

    Parameters
    ----------
    **choices : iterable
        For each constexpr parameter, its values.

    Examples
    --------
    >>> space = Space(block_m=[16, 64], block_n=[64, 128], stages=range(2, 5))
    >>> space = space.where(lambda block_m, block_n: block_m <= block_n)
    >>> len(list(space.candidates()))
    12
    """

    choices: tuple[tuple[str, tuple[Any, ...]], ...]
    constraints: tuple[Constraint, ...]
    listed: tuple[tuple[tuple[str, Any], ...], ...]

    def __init__(self, **choices: Iterable[Any]) -> None:
        fixed = []
        for name, values in choices.items():
            if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
                raise TilusError(
                    f"the values of {name} are {values!r}, expected a list", hint=f"{name}=[{values!r}]"
                )
            found = tuple(values)
            if not found:
                raise TilusError(f"{name} has no value to choose", hint=f"{name}=[...]")
            fixed.append((name, found))
        object.__setattr__(self, "choices", tuple(fixed))
        object.__setattr__(self, "constraints", ())
        object.__setattr__(self, "listed", ())

    @classmethod
    def of(cls, candidates: Iterable[Mapping[str, Any]]) -> Space:
        """Return a space of candidates that are listed one by one, all with the same names."""
        listed = tuple(tuple(candidate.items()) for candidate in candidates)
        if not listed:
            raise TilusError("a space has at least one candidate")
        names = set(dict(listed[0]))
        for candidate in listed:
            if set(dict(candidate)) != names:
                raise TilusError(
                    f"a candidate gives {', '.join(dict(candidate))}, expected values of {', '.join(dict(listed[0]))}"
                )
        space = cls()
        object.__setattr__(space, "listed", listed)
        return space

    def where(self, constraint: Constraint) -> Space:
        """Return the space of the candidates for which a function is true.

        Parameters
        ----------
        constraint : function
            Its parameters are named as constexpr parameters, or as dimensions of the kernel's tensors.
        """
        for parameter in inspect.signature(constraint).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TilusError(
                    f"a constraint names what it reads, but {parameter} has no name",
                    hint="lambda block_m, stages: ...",
                )
        return _changed(self, constraints=(*self.constraints, constraint))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are chosen."""
        if self.listed:
            return tuple(dict(self.listed[0]))
        return tuple(name for name, _ in self.choices)

    def candidates(self, sizes: Mapping[str, Any] | None = None) -> Iterator[Choice]:
        """Yield the candidates, in the order in which their values are listed.

        Parameters
        ----------
        sizes : mapping, optional
            Other values that constraints may name, such as the sizes of the tensors.
        """
        if self.listed:
            every: Iterable[Choice] = map(dict, self.listed)
        else:
            names = [name for name, _ in self.choices]
            every = (dict(zip(names, values)) for values in itertools.product(*(v for _, v in self.choices)))
        for candidate in every:
            known = {**(sizes or {}), **candidate}
            if all(_holds(constraint, known) for constraint in self.constraints):
                yield candidate


def _changed(space: Space, **changes: Any) -> Space:
    """Return a copy of a space; its initialiser takes other arguments than its fields."""
    copy = object.__new__(Space)
    for name in ("choices", "constraints", "listed"):
        object.__setattr__(copy, name, changes.get(name, getattr(space, name)))
    return copy


def _holds(constraint: Constraint, known: Mapping[str, Any]) -> bool:
    values = {}
    for name, parameter in inspect.signature(constraint).parameters.items():
        if name in known:
            values[name] = known[name]
        elif parameter.default is parameter.empty:
            raise TilusError(
                f"a constraint reads {name}, which is neither chosen nor a size",
                hint="one of " + ", ".join(known),
            )
    return bool(constraint(**values))
