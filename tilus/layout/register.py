"""Register layouts: which elements of a tile each thread holds, as a mixed-radix digit map.

A thread number is read as a mixed-radix number over the spatial digits and an element number (an index into
the thread's own registers) over the local digits, most significant digit first. Each digit moves along one
dimension of the tile with a stride, or, with ``dim is None``, along none: those threads hold copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd, isqrt, prod

from tilus.layout.errors import LayoutError


@dataclass(frozen=True)
class Digit:
    """One digit of a mixed-radix number.

    Parameters
    ----------
    size : int
        How many values the digit takes.
    dim : int or None
        The dimension that it belongs to; None for a replication digit.
    stride : int
        What one step of the digit adds: to the index along ``dim`` in a register layout, to the memory offset
        in a shared layout. 0 for a replication digit.
    """

    size: int
    dim: int | None
    stride: int

    def __str__(self) -> str:
        return f"{self.size}r" if self.dim is None else f"{self.size}@{self.dim}:{self.stride}"


Digits = tuple[Digit, ...]


def format_digits(digits: Iterable[Digit]) -> str:
    """Return the digits as text: ``size@dim:stride``, or ``size`` and ``r`` for a replication digit."""
    return "[" + ", ".join(str(digit) for digit in digits) + "]"


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as text, ``64x32``."""
    return "x".join(str(extent) for extent in shape) if shape else "scalar"


def canonical_digits(digits: Iterable[Digit]) -> Digits:
    """Drop digits of size one and merge neighbours that make one longer digit."""
    result: list[Digit] = []
    for digit in digits:
        if digit.size == 1:
            continue
        if result:
            outer = result[-1]
            if outer.dim == digit.dim and outer.stride == digit.size * digit.stride:
                result[-1] = Digit(outer.size * digit.size, digit.dim, digit.stride)
                continue
        result.append(digit)
    return tuple(result)


def digits_value(digits: Digits, number: int, rank: int) -> tuple[int, ...]:
    """Return what ``number``, read over the digits, adds to the index along each dimension."""
    index = [0] * rank
    for digit in reversed(digits):
        number, value = divmod(number, digit.size)
        if digit.dim is not None:
            index[digit.dim] += value * digit.stride
    return tuple(index)


@dataclass(frozen=True)
class RegisterLayout:
    """A map from (thread, element) to an index of a tile.

    Parameters
    ----------
    shape : tuple of int
        The tile's shape.
    spatial_digits : tuple of Digit
        The digits of the thread number, most significant first. Their sizes multiply to the number of
        threads.
    local_digits : tuple of Digit
        The digits of the element number, most significant first. Their sizes multiply to the number of
        elements that each thread holds.

    Notes
    -----
    The digits are brought into a canonical form on construction, in which two layouts that are the same
    function are equal and have the same hash.
    """

    shape: tuple[int, ...]
    spatial_digits: Digits
    local_digits: Digits

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        for dim, extent in enumerate(shape):
            if extent < 1:
                raise LayoutError(f"dimension {dim} of a layout has size {extent}, but sizes are at least 1")
        spatial = tuple(self.spatial_digits)
        local = tuple(self.local_digits)
        _check_digits(shape, spatial, local)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spatial_digits", canonical_digits(spatial))
        object.__setattr__(self, "local_digits", canonical_digits(local))

    # What the layout is.

    @property
    def rank(self) -> int:
        """The number of dimensions of the tile."""
        return len(self.shape)

    @cached_property
    def size(self) -> int:
        """The number of elements of the tile."""
        return prod(self.shape)

    @cached_property
    def threads(self) -> int:
        """The number of threads."""
        return prod(digit.size for digit in self.spatial_digits)

    @cached_property
    def elements(self) -> int:
        """The number of elements that each thread holds."""
        return prod(digit.size for digit in self.local_digits)

    @cached_property
    def replication(self) -> int:
        """The number of threads that hold a copy of each element."""
        return prod(digit.size for digit in self.spatial_digits if digit.dim is None)

    @cached_property
    def spatial_weights(self) -> tuple[int, ...]:
        """For each thread digit, what one step of it adds to the thread number."""
        return _weights(self.spatial_digits)

    @cached_property
    def local_weights(self) -> tuple[int, ...]:
        """For each element digit, what one step of it adds to the element number."""
        return _weights(self.local_digits)

    def is_first_copy(self, thread: int) -> bool:
        """Return whether, of the threads that hold the same elements, this is the first."""
        pairs = zip(self.spatial_digits, self.spatial_weights, strict=True)
        return all(thread // weight % digit.size == 0 for digit, weight in pairs if digit.dim is None)

    def chain(self, dim: int) -> Digits:
        """Return the digits of a dimension, spatial and local, by increasing stride."""
        found = [digit for digit in self.spatial_digits + self.local_digits if digit.dim == dim]
        return tuple(sorted(found, key=lambda digit: digit.stride))

    def thread_index(self, thread: int) -> tuple[int, ...]:
        """Return the index of the first element of a thread."""
        if not 0 <= thread < self.threads:
            raise LayoutError(f"thread {thread} is outside a layout over {self.threads} threads")
        return digits_value(self.spatial_digits, thread, self.rank)

    def element_index(self, element: int) -> tuple[int, ...]:
        """Return what an element number adds to the index of its thread's first element."""
        if not 0 <= element < self.elements:
            raise LayoutError(
                f"element {element} is outside a layout with {self.elements} elements per thread"
            )
        return digits_value(self.local_digits, element, self.rank)

    def index(self, thread: int, element: int) -> tuple[int, ...]:
        """Return the index in the tile of an element of a thread."""
        return tuple(
            a + b for a, b in zip(self.thread_index(thread), self.element_index(element), strict=True)
        )

    def locate(self, index: Sequence[int]) -> list[tuple[int, int]]:
        """Return the (thread, element) pairs that hold an index of the tile, by increasing thread."""
        _check_index(self.shape, index)
        element = 0
        for digit in self.local_digits:
            assert digit.dim is not None
            element = element * digit.size + index[digit.dim] // digit.stride % digit.size
        threads = [0]
        for digit in self.spatial_digits:
            if digit.dim is None:
                threads = [thread * digit.size + copy for thread in threads for copy in range(digit.size)]
            else:
                value = index[digit.dim] // digit.stride % digit.size
                threads = [thread * digit.size + value for thread in threads]
        return [(thread, element) for thread in threads]

    def items(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Yield (thread, element, index) for every thread and element."""
        locals_ = [self.element_index(element) for element in range(self.elements)]
        for thread in range(self.threads):
            first = self.thread_index(thread)
            for element, offset in enumerate(locals_):
                yield thread, element, tuple(a + b for a, b in zip(first, offset, strict=True))

    def __str__(self) -> str:
        return (
            f"RegisterLayout({format_shape(self.shape)}, threads {format_digits(self.spatial_digits)}, "
            f"elements {format_digits(self.local_digits)})"
        )

    # Products.

    def __mul__(self, inner: RegisterLayout) -> RegisterLayout:
        """Return the Kronecker product: a tile of ``self`` whose every element is a tile of ``inner``."""
        check_same_rank("multiply", self, inner)
        return RegisterLayout(
            tuple(a * b for a, b in zip(self.shape, inner.shape, strict=True)),
            _scale(self.spatial_digits, inner.shape) + inner.spatial_digits,
            _scale(self.local_digits, inner.shape) + inner.local_digits,
        )

    def spatial(self, *shape: int) -> RegisterLayout:
        """Return ``self * spatial(*shape)``."""
        return self * spatial(*shape)

    def local(self, *shape: int) -> RegisterLayout:
        """Return ``self * local(*shape)``."""
        return self * local(*shape)

    def column_spatial(self, *shape: int) -> RegisterLayout:
        """Return ``self * column_spatial(*shape)``."""
        return self * column_spatial(*shape)

    def column_local(self, *shape: int) -> RegisterLayout:
        """Return ``self * column_local(*shape)``."""
        return self * column_local(*shape)

    def replicated(self, count: int) -> RegisterLayout:
        """Return ``self * replicated(count)``: each thread becomes ``count`` neighbours with equal contents."""
        return self * replicated(count, rank=self.rank)

    def with_replication(self, count: int) -> RegisterLayout:
        """Return ``replicated(count) * self``: ``count`` groups of threads, each with a copy of the tile."""
        return replicated(count, rank=self.rank) * self

    def __truediv__(self, inner: RegisterLayout) -> RegisterLayout:
        """Return the layout ``q`` with ``q * inner == self``."""
        check_same_rank("divide", self, inner)
        shape = divide_shape(self, inner)
        spatial_rest = strip_inner("thread", self, self.spatial_digits, inner, inner.spatial_digits)
        local_rest = strip_inner("element", self, self.local_digits, inner, inner.local_digits)
        return RegisterLayout(
            shape,
            unscale(self, inner, spatial_rest),
            unscale(self, inner, local_rest),
        )

    def left_divide(self, outer: RegisterLayout) -> RegisterLayout:
        """Return the layout ``q`` with ``outer * q == self``."""
        check_same_rank("divide", self, outer)
        shape = divide_shape(self, outer)
        return RegisterLayout(
            shape,
            _strip_outer("thread", self, self.spatial_digits, _scale(outer.spatial_digits, shape)),
            _strip_outer("element", self, self.local_digits, _scale(outer.local_digits, shape)),
        )

    # Changes of shape.

    def transpose(self, perm: Sequence[int] | None = None) -> RegisterLayout:
        """Return the layout whose dimension ``i`` is dimension ``perm[i]`` of this one; by default, reversed."""
        order = tuple(reversed(range(self.rank))) if perm is None else tuple(perm)
        if sorted(order) != list(range(self.rank)):
            raise LayoutError(f"{order} does not name each of the {self.rank} dimensions once")
        place = {old: new for new, old in enumerate(order)}
        return RegisterLayout(
            tuple(self.shape[old] for old in order),
            _rename(self.spatial_digits, place),
            _rename(self.local_digits, place),
        )

    def reshape(self, shape: Sequence[int]) -> RegisterLayout:
        """Return the layout of the same elements under another shape, both counted in row-major order."""
        new = tuple(shape)
        if prod(new) != self.size or min(new, default=1) < 1:
            raise LayoutError(
                f"a {format_shape(self.shape)} tile has {self.size} elements and cannot be reshaped to "
                f"{format_shape(new)}, which has {prod(new)}"
            )
        return RegisterLayout(
            new,
            _reshape_digits(self.spatial_digits, self.shape, new),
            _reshape_digits(self.local_digits, self.shape, new),
        )

    def flatten(self) -> RegisterLayout:
        """Return the layout of the same elements in one dimension, in row-major order."""
        return self.reshape((self.size,))

    def unsqueeze(self, dim: int) -> RegisterLayout:
        """Return the layout with a dimension of size one inserted before ``dim``."""
        if not 0 <= dim <= self.rank:
            raise LayoutError(f"cannot insert a dimension at {dim} in a layout of rank {self.rank}")
        place = {old: old + (old >= dim) for old in range(self.rank)}
        return RegisterLayout(
            self.shape[:dim] + (1,) + self.shape[dim:],
            _rename(self.spatial_digits, place),
            _rename(self.local_digits, place),
        )

    def squeeze(self, dim: int) -> RegisterLayout:
        """Return the layout without a dimension of size one."""
        self._check_dim(dim)
        if self.shape[dim] != 1:
            raise LayoutError(
                f"dimension {dim} has size {self.shape[dim]}; only a dimension of size 1 can be squeezed"
            )
        place = {old: old - (old > dim) for old in range(self.rank)}
        return RegisterLayout(
            self.shape[:dim] + self.shape[dim + 1 :],
            _rename(self.spatial_digits, place),
            _rename(self.local_digits, place),
        )

    def reduce(self, dim: int, keepdim: bool = False) -> RegisterLayout:
        """Return the layout of the result of a reduction along ``dim``.

        Threads that differ only along ``dim`` hold copies of the result, and a thread's elements that differ
        only along ``dim`` become one.
        """
        self._check_dim(dim)
        kept = RegisterLayout(
            self.shape[:dim] + (1,) + self.shape[dim + 1 :],
            tuple(Digit(d.size, None, 0) if d.dim == dim else d for d in self.spatial_digits),
            tuple(d for d in self.local_digits if d.dim != dim),
        )
        return kept if keepdim else kept.squeeze(dim)

    def slice(self, dim: int) -> RegisterLayout:
        """Return the layout of the tile with the index along ``dim`` fixed, held by every thread that could hold it."""
        return self.reduce(dim)

    def expand(self, dim: int, extent: int) -> RegisterLayout:
        """Return the layout with a dimension of size one grown to ``extent``, each thread holding all of it."""
        self._check_dim(dim)
        if self.shape[dim] != 1:
            raise LayoutError(
                f"dimension {dim} has size {self.shape[dim]}; only a dimension of size 1 can be expanded"
            )
        return self.concat(dim, extent)

    def concat(self, dim: int, count: int) -> RegisterLayout:
        """Return the layout of ``count`` such tiles laid one after another along ``dim``."""
        self._check_dim(dim)
        if count < 1:
            raise LayoutError(f"cannot concatenate {count} tiles; the count is at least 1")
        extent = self.shape[dim]
        return RegisterLayout(
            self.shape[:dim] + (extent * count,) + self.shape[dim + 1 :],
            self.spatial_digits,
            (Digit(count, dim, extent), *self.local_digits),
        )

    def _check_dim(self, dim: int) -> None:
        if not 0 <= dim < self.rank:
            raise LayoutError(f"dimension {dim} is outside a layout of rank {self.rank}")


# Atoms.


def spatial(*shape: int) -> RegisterLayout:
    """Return the layout with one thread for each element, threads counted in row-major order."""
    return RegisterLayout(shape, tuple(Digit(n, dim, 1) for dim, n in enumerate(shape)), ())


def local(*shape: int) -> RegisterLayout:
    """Return the layout of a tile held by one thread, its elements in row-major order."""
    return RegisterLayout(shape, (), tuple(Digit(n, dim, 1) for dim, n in enumerate(shape)))


def column_spatial(*shape: int) -> RegisterLayout:
    """Return the layout with one thread for each element, threads counted in column-major order."""
    return RegisterLayout(shape, tuple(Digit(n, dim, 1) for dim, n in enumerate(shape))[::-1], ())


def column_local(*shape: int) -> RegisterLayout:
    """Return the layout of a tile held by one thread, its elements in column-major order."""
    return RegisterLayout(shape, (), tuple(Digit(n, dim, 1) for dim, n in enumerate(shape))[::-1])


def replicated(count: int, rank: int = 2) -> RegisterLayout:
    """Return the layout of a tile of one element of which ``count`` threads hold copies."""
    if count < 1:
        raise LayoutError(f"a replication over {count} threads is impossible; the count is at least 1")
    return RegisterLayout((1,) * rank, (Digit(count, None, 0),), ())


def coalesced(
    shape: Sequence[int], threads: int, vector: int = 1, order: Sequence[int] | None = None
) -> RegisterLayout:
    """Return a good layout for moving a tile between memory and registers.

    Parameters
    ----------
    shape : sequence of int
        The tile's shape.
    threads : int
        The number of threads that share the tile.
    vector : int
        The most elements that one access of one thread should move. They lie along the fastest dimension.
    order : sequence of int, optional
        The dimensions from the fastest in memory to the slowest; by default the last one is the fastest.

    Returns
    -------
    RegisterLayout
        Neighbouring threads hold neighbouring vectors, first along the fastest dimension. Threads that the
        shape has no use for hold copies. The vector is made shorter where that puts more threads to work.
    """
    extents = tuple(shape)
    rank = len(extents)
    fastest_first = tuple(reversed(range(rank))) if order is None else tuple(order)
    if sorted(fastest_first) != list(range(rank)):
        raise LayoutError(f"the order {fastest_first} does not name each of the {rank} dimensions once")
    if threads < 1 or vector < 1:
        raise LayoutError(
            f"expected at least one thread and a vector of at least 1, found {threads} and {vector}"
        )
    if rank == 0:
        return replicated(threads, rank=0)
    fast = fastest_first[0]
    best: tuple[int, int, list[int]] | None = None
    for width in reversed(_divisors(gcd(vector, extents[fast]))):
        used, counts = _share_threads(extents, threads, width, fastest_first)
        if best is None or used > best[0]:
            best = used, width, counts
    assert best is not None
    used, width, counts = best
    spatial_digits = [Digit(threads // used, None, 0)]
    local_digits = []
    for dim in reversed(fastest_first):
        unit = width if dim == fast else 1
        spatial_digits.append(Digit(counts[dim], dim, unit))
        local_digits.append(Digit(extents[dim] // (unit * counts[dim]), dim, unit * counts[dim]))
    local_digits.append(Digit(width, fast, 1))
    return RegisterLayout(extents, tuple(spatial_digits), tuple(local_digits))


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _share_threads(
    shape: tuple[int, ...], threads: int, width: int, fastest_first: tuple[int, ...]
) -> tuple[int, list[int]]:
    counts = [1] * len(shape)
    left = threads
    for dim in fastest_first:
        chunks = shape[dim] // width if dim == fastest_first[0] else shape[dim]
        counts[dim] = gcd(left, chunks)
        left //= counts[dim]
    return threads // left, counts


# Helpers on digits.


def _check_digits(shape: tuple[int, ...], spatial_digits: Digits, local_digits: Digits) -> None:
    rank = len(shape)
    chains: list[list[Digit]] = [[] for _ in range(rank)]
    for kind, digits in (("thread", spatial_digits), ("element", local_digits)):
        for digit in digits:
            if digit.size < 1:
                raise LayoutError(f"{kind} digit {digit} has size {digit.size}, but sizes are at least 1")
            if digit.dim is None:
                if kind == "element":
                    raise LayoutError(
                        f"element digit {digit} has no dimension; only thread digits can replicate"
                    )
                if digit.stride != 0:
                    raise LayoutError(
                        f"a replication digit has stride {digit.stride}, but replication has stride 0"
                    )
            elif not 0 <= digit.dim < rank:
                raise LayoutError(
                    f"{kind} digit {digit} is of dimension {digit.dim}, but the layout has {rank}"
                )
            elif digit.size > 1:
                chains[digit.dim].append(digit)
    for dim, chain in enumerate(chains):
        chain.sort(key=lambda digit: digit.stride)
        reach = 1
        for digit in chain:
            if digit.stride != reach:
                raise LayoutError(
                    f"the digits {format_digits(chain)} of dimension {dim} do not cover 0..{shape[dim] - 1} exactly "
                    f"once: {digit} has stride {digit.stride} where {reach} was expected"
                )
            reach *= digit.size
        if reach != shape[dim]:
            raise LayoutError(
                f"the digits {format_digits(chain)} of dimension {dim} cover {reach} indices, "
                f"but its size is {shape[dim]}"
            )


def _check_index(shape: tuple[int, ...], index: Sequence[int]) -> None:
    if len(index) != len(shape) or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
        raise LayoutError(f"index {tuple(index)} is outside a {format_shape(shape)} tile")


def check_same_rank(verb: str, a: RegisterLayout, b: RegisterLayout) -> None:
    if a.rank != b.rank:
        raise LayoutError(
            f"cannot {verb} a layout of rank {a.rank} and one of rank {b.rank}; give both the same rank with unsqueeze"
        )


def divide_shape(a: RegisterLayout, b: RegisterLayout) -> tuple[int, ...]:
    for dim, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)):
        if n % m:
            raise LayoutError(
                f"a {format_shape(a.shape)} tile is not made of {format_shape(b.shape)} tiles: "
                f"dimension {dim} of size {n} is not divisible by {m}"
            )
    return tuple(n // m for n, m in zip(a.shape, b.shape, strict=True))


def _weights(digits: Digits) -> tuple[int, ...]:
    return row_strides([digit.size for digit in digits])


def _scale(digits: Digits, factors: tuple[int, ...]) -> Digits:
    return tuple(d if d.dim is None else Digit(d.size, d.dim, d.stride * factors[d.dim]) for d in digits)


def unscale(layout: RegisterLayout, inner: RegisterLayout, digits: Digits) -> Digits:
    result = []
    for digit in digits:
        if digit.dim is None:
            result.append(digit)
            continue
        extent = inner.shape[digit.dim]
        if digit.stride % extent:
            raise LayoutError(
                f"{layout} is not a product with {inner} on the right: digit {digit} of the layout steps inside the "
                f"{extent} indices of dimension {digit.dim} that one {format_shape(inner.shape)} tile covers"
            )
        result.append(Digit(digit.size, digit.dim, digit.stride // extent))
    return tuple(result)


def _rename(digits: Digits, place: dict[int, int]) -> Digits:
    return tuple(d if d.dim is None else Digit(d.size, place[d.dim], d.stride) for d in digits)


def strip_inner(
    kind: str, layout: RegisterLayout, digits: Digits, inner: RegisterLayout, suffix: Digits
) -> Digits:
    """Remove ``suffix`` from the least significant end of ``digits``."""
    rest = list(digits)
    for wanted in reversed(suffix):
        found = rest.pop() if rest else None
        if (
            found is None
            or found.dim != wanted.dim
            or found.stride != wanted.stride
            or found.size % wanted.size
        ):
            here = "there is none" if found is None else f"the layout has {found}"
            raise LayoutError(
                f"{layout} is not a product with {inner} on the right: {kind} digit {wanted} of the divisor is "
                f"expected at this place, but {here}"
            )
        if found.size > wanted.size:
            rest.append(Digit(found.size // wanted.size, found.dim, found.stride * wanted.size))
    return tuple(rest)


def _strip_outer(kind: str, layout: RegisterLayout, digits: Digits, prefix: Digits) -> Digits:
    """Remove ``prefix`` from the most significant end of ``digits``."""
    rest = list(digits)
    for wanted in prefix:
        found = rest.pop(0) if rest else None
        matches = found is not None and found.dim == wanted.dim and found.size % wanted.size == 0
        if found is None or not matches or found.stride * (found.size // wanted.size) != wanted.stride:
            here = "there is none" if found is None else f"the layout has {found}"
            raise LayoutError(
                f"{layout} has no such left divisor: {kind} digit {wanted} is expected at this place, but {here}"
            )
        if found.size > wanted.size:
            rest.insert(0, Digit(found.size // wanted.size, found.dim, found.stride))
    return tuple(rest)


def row_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a row-major tile."""
    strides = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _reshape_digits(digits: Digits, old: tuple[int, ...], new: tuple[int, ...]) -> Digits:
    old_steps = row_strides(old)
    flat = canonical_digits(
        digit if digit.dim is None else Digit(digit.size, 0, digit.stride * old_steps[digit.dim])
        for digit in digits
    )
    result: list[Digit] = []
    for digit in flat:
        result.extend([digit] if digit.dim is None else _spread(digit.size, digit.stride, old, new))
    return tuple(result)


def _spread(size: int, step: int, old: tuple[int, ...], new: tuple[int, ...]) -> list[Digit]:
    """Return the digits, in ``new``, of a digit that counts ``size`` times ``step`` in row-major order."""
    pieces: list[Digit] = []
    for dim, unit in reversed(list(enumerate(row_strides(new)))):
        if size == 1:
            break
        end = unit * new[dim]
        if step >= end:
            continue
        here = min(size, end // step)
        if step % unit or end % step or size % here:
            break
        pieces.insert(0, Digit(here, dim, step // unit))
        size //= here
        step *= here
    if size > 1:
        raise LayoutError(
            f"cannot reshape {format_shape(old)} to {format_shape(new)}: a digit that takes {size} steps of {step} "
            f"elements would be split across a boundary of the new shape"
        )
    return pieces
