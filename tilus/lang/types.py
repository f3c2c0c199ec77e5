"""The types of the language: annotations of kernel parameters, and what values look like inside a kernel.

The classes are stubs: an editor and the documentation read them, and so does the front end, which accepts exactly
the attributes and methods that are written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilus.dtypes import DType
from tilus.errors import TypeMismatch
from tilus.lang.stub import only_in_kernel
from tilus.layout import RegisterLayout


class MemoryAnnotation:
    """What the annotations of tensors and pointers have in common."""

    def __or__(self, other: object) -> EitherAnnotation:
        return EitherAnnotation((self, other))

    __ror__ = __or__


@dataclass(frozen=True)
class EitherAnnotation:
    """What `Tensor[...] | None` makes; the front end refuses it, where it knows the place."""

    parts: tuple[object, ...]


@dataclass(frozen=True)
class TensorAnnotation(MemoryAnnotation):
    """What `Tensor[...]` makes; the front end checks it, where it knows the place of a mistake."""

    subscript: object

    def read(self) -> tuple[DType | str, tuple[str | int | None, ...]]:
        """Return the dtype, or the name of a constexpr, and the dimensions."""
        item = self.subscript
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], str)):
            raise TypeMismatch("Tensor takes a dtype and dimensions", hint='Tensor[tilus.float16, "m k"]')
        return check_element("Tensor", item[0]), parse_dims(item[1])


@dataclass(frozen=True)
class PointerAnnotation(MemoryAnnotation):
    """What `Pointer[...]` makes; the front end checks it."""

    subscript: object

    def read(self) -> DType | str:
        """Return the dtype, or the name of a constexpr."""
        return check_element("Pointer", self.subscript)


def parse_dims(text: str) -> tuple[str | int | None, ...]:
    """Read the dimensions of an annotation: names, sizes, and `_` for a dimension without a name."""
    dims: list[str | int | None] = []
    for word in text.replace(",", " ").split():
        if word == "_":
            dims.append(None)
        elif word.isdecimal():
            dims.append(int(word))
        elif word.isidentifier():
            dims.append(word)
        else:
            raise TypeMismatch(
                f"{word!r} is not a dimension",
                hint='names, sizes and _ between blanks, as in Tensor[float16, "m 64 _"]',
            )
    if not dims:
        raise TypeMismatch("a tensor has at least one dimension", hint='Tensor[float16, "n"]')
    return tuple(dims)


def check_element(owner: str, dtype: object) -> DType | str:
    """Check that the first subscript of an annotation is a dtype or the name of a constexpr parameter."""
    if isinstance(dtype, DType) or (isinstance(dtype, str) and dtype.isidentifier()):
        return dtype
    raise TypeMismatch(
        f"{owner} takes a dtype or the name of a constexpr parameter, not {dtype!r}",
        hint=f'{owner}[tilus.float16, ...] or {owner}["a_dtype", ...]',
    )


class constexpr:
    """Annotation of a parameter that is known when the kernel is compiled.

    Its value is any Python object: a number, a dtype, a layout, a list, a function. Each value makes a kernel of
    its own.
    """

    def __class_getitem__(cls, item: object) -> type[constexpr]:
        return cls


class Scalar:
    """A number that is known at run time, equal in all threads of the group that computes it."""

    @property
    def dtype(self) -> DType:
        """The dtype, known at compile time."""
        raise only_in_kernel("Scalar.dtype")

    def to(self, dtype: DType) -> Scalar:
        """Convert to another dtype; see `tilus.cast`."""
        raise only_in_kernel("Scalar.to")

    def _operator(self, other: Any = None) -> Scalar:
        raise only_in_kernel("arithmetic on Scalar")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _operator
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _operator
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _operator
    __lt__ = __le__ = __gt__ = __ge__ = _operator

    def __neg__(self) -> Scalar:
        raise only_in_kernel("arithmetic on Scalar")

    def __invert__(self) -> Scalar:
        raise only_in_kernel("arithmetic on Scalar")

    def __index__(self) -> int:
        raise only_in_kernel("indexing with Scalar")


class Tile:
    """A tile of elements in the registers of a group of threads.

    Operators act on each element, with NumPy's broadcasting; `@` is `tilus.dot`. Slices with constant bounds and
    `None` mean what they mean in NumPy. A tile is a value: nothing changes it, operations make new ones.

    Operands of two dtypes meet in the wider one of two floats or two integers (float16 with bfloat16 in float32),
    and in the float of an integer and a float. Integers of different sign mix only where the signed one is wider. A
    Python number takes the dtype of the tile, but for a Python float with an integer tile, which gives float32; a
    number that the dtype does not hold is refused. Types of 8 bits and less are for storage: cast them before
    arithmetic. Bytes take comparisons and bit operations, too.
    """

    @property
    def dtype(self) -> DType:
        """The dtype of the elements, known at compile time."""
        raise only_in_kernel("Tile.dtype")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, known at compile time."""
        raise only_in_kernel("Tile.shape")

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        raise only_in_kernel("Tile.ndim")

    @property
    def T(self) -> Tile:
        """The tile with its dimensions reversed."""
        raise only_in_kernel("Tile.T")

    def to(self, dtype: DType) -> Tile:
        """Convert each element to another dtype; see `tilus.cast`."""
        raise only_in_kernel("Tile.to")

    def view(
        self, dtype: DType, shape: Sequence[int] | None = None, layout: RegisterLayout | None = None
    ) -> Tile:
        """Reinterpret the bits; see `tilus.view`."""
        raise only_in_kernel("Tile.view")

    def reshape(self, shape: Sequence[int]) -> Tile:
        """Return the elements in row-major order under another shape; see `tilus.reshape`."""
        raise only_in_kernel("Tile.reshape")

    def transpose(self, perm: Sequence[int] | None = None) -> Tile:
        """Permute the dimensions; see `tilus.transpose`."""
        raise only_in_kernel("Tile.transpose")

    def item(self) -> Scalar:
        """Return the only element of a tile as a scalar; see `tilus.item`."""
        raise only_in_kernel("Tile.item")

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Sum along an axis; see `tilus.sum`."""
        raise only_in_kernel("Tile.sum")

    def max(self, *, axis: int | None = None, keepdims: bool = False) -> Any:
        """Return the maximum along an axis; see `tilus.max`."""
        raise only_in_kernel("Tile.max")

    def min(self, *, axis: int | None = None, keepdims: bool = False) -> Any:
        """Return the minimum along an axis; see `tilus.min`."""
        raise only_in_kernel("Tile.min")

    def any(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Tell whether any element along an axis is true; see `tilus.any`."""
        raise only_in_kernel("Tile.any")

    def all(self, axis: int | None = None, keepdims: bool = False) -> Any:
        """Tell whether all elements along an axis are true; see `tilus.all`."""
        raise only_in_kernel("Tile.all")

    def _operator(self, other: Any = None) -> Tile:
        raise only_in_kernel("arithmetic on Tile")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __matmul__ = _operator
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _operator
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _operator
    __lt__ = __le__ = __gt__ = __ge__ = _operator

    def __neg__(self) -> Tile:
        raise only_in_kernel("arithmetic on Tile")

    def __invert__(self) -> Tile:
        raise only_in_kernel("arithmetic on Tile")

    def __getitem__(self, index: Any) -> Any:
        raise only_in_kernel("a slice of Tile")


class Shared:
    """A tensor in the shared memory of a thread block.

    `s[i]` with an integer, known at run time or not, is the part at index `i` of the first dimension, such as a
    stage of a pipeline; slices have constant bounds. Both name memory and move nothing.
    """

    @property
    def dtype(self) -> DType:
        """The dtype of the elements, known at compile time."""
        raise only_in_kernel("Shared.dtype")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, known at compile time."""
        raise only_in_kernel("Shared.shape")

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        raise only_in_kernel("Shared.ndim")

    @property
    def T(self) -> Shared:
        """The same memory with its dimensions reversed."""
        raise only_in_kernel("Shared.T")

    def transpose(self, perm: Sequence[int] | None = None) -> Shared:
        """Permute the dimensions; no data moves."""
        raise only_in_kernel("Shared.transpose")

    def reshape(self, shape: Sequence[int]) -> Shared:
        """Return the elements in row-major order under another shape; no data moves."""
        raise only_in_kernel("Shared.reshape")

    def permute(self, *perm: int) -> Shared:
        """Permute the dimensions, dimension `i` of the result being `perm[i]`; no data moves."""
        raise only_in_kernel("Shared.permute")

    def __getitem__(self, index: Any) -> Shared:
        raise only_in_kernel("a part of Shared")


class Tensor:
    """A tensor in global memory.

    As an annotation, `Tensor[dtype, "m k"]` gives the dtype, or the name of the constexpr parameter that holds it,
    and names the dimensions. Dimensions of one name are equal at a launch; `_` is a dimension without a name; a
    number, or the name of an integer constexpr, is a size that is known at compile time.
    """

    def __class_getitem__(cls, item: object) -> TensorAnnotation:
        return TensorAnnotation(item)

    @property
    def dtype(self) -> DType:
        """The dtype of the elements, known at compile time."""
        raise only_in_kernel("Tensor.dtype")

    @property
    def shape(self) -> tuple[Any, ...]:
        """The extents: ints where they are known at compile time, else int32 scalars."""
        raise only_in_kernel("Tensor.shape")

    @property
    def strides(self) -> tuple[Any, ...]:
        """The strides in elements: ints where they are known at compile time, else int64 scalars."""
        raise only_in_kernel("Tensor.strides")

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        raise only_in_kernel("Tensor.ndim")

    @property
    def ptr(self) -> Pointer:
        """The pointer to the first element."""
        raise only_in_kernel("Tensor.ptr")


class Pointer:
    """A pointer to global memory; `Pointer[dtype]` annotates a parameter. `p + n` moves it by `n` elements."""

    def __class_getitem__(cls, item: object) -> PointerAnnotation:
        return PointerAnnotation(item)

    @property
    def dtype(self) -> DType:
        """The dtype of the elements, known at compile time."""
        raise only_in_kernel("Pointer.dtype")

    def __add__(self, offset: Any) -> Pointer:
        raise only_in_kernel("arithmetic on Pointer")

    def __sub__(self, offset: Any) -> Pointer:
        raise only_in_kernel("arithmetic on Pointer")


class Barrier:
    """An array of mbarriers in shared memory, made by `tilus.barrier`."""

    @property
    def count(self) -> int:
        """The number of barriers in the array."""
        raise only_in_kernel("Barrier.count")

    def arrive(self, index: Any = None, bytes: int = 0, rank: Any = None, scope: str = "") -> None:
        """Arrive once for each warp of the current group; see `tilus.arrive`."""
        raise only_in_kernel("Barrier.arrive")

    def wait(self, phase: Any, index: Any = None) -> None:
        """Wait until the phase of parity `phase` is complete; see `tilus.wait`."""
        raise only_in_kernel("Barrier.wait")
