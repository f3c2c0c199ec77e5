"""From a name, a torch type or a NumPy type to the scalar type with the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilus.errors import InvalidValue, TypeMismatch

from .catalog import SCALARS
from .scalar import DType
from .table import nf4, parse_table_type, ternary

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED: tuple[DType, ...] = (*SCALARS, nf4, ternary)


def _spellings(named: DType) -> Iterator[str]:
    """All names of one type: its own, the short one, and those of other projects."""
    yield named.name
    yield named.short
    if named.kind == "int":
        yield f"s{named.bits}"
    elif named.name in ("float16", "float32", "float64"):
        yield f"fp{named.bits}"
    elif named.kind in ("float", "scale") and named.bits <= 8:
        for prefix in ("fp", "f"):
            yield f"{prefix}{named.bits}_{named.short}"
        yield f"f{named.bits}{named.short}"


_OTHER_SPELLINGS = {
    "bool": "boolean",
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "float8_e4m3fn": "float8_e4m3",
    "float8_e8m0fnu": "float8_e8m0",
    "ue8m0": "float8_e8m0",
    "float6_e2m3fn": "float6_e2m3",
    "float6_e3m2fn": "float6_e3m2",
    "float4_e2m1fn": "float4_e2m1",
}

_BY_NAME = {spelling: named for named in NAMED for spelling in _spellings(named)}
_BY_NAME.update({spelling: _BY_NAME[name] for spelling, name in _OTHER_SPELLINGS.items()})

_FOREIGN_BIAS = (
    "is a float with another bias and no negative zero: decode it, and encode the values as float8_e4m3"
)
_REFUSED = {
    "float8_e4m3fnuz": _FOREIGN_BIAS,
    "float8_e4m3b11fnuz": _FOREIGN_BIAS,
    "float8_e5m2fnuz": _FOREIGN_BIAS.replace("e4m3", "e5m2"),
    "float4_e2m1fn_x2": "holds two elements a byte: view the tensor as torch.uint8 and say float4_e2m1",
    "quint8": "is a quantised type with a scale of its own: take its int_repr() and say uint8",
    "qint8": "is a quantised type with a scale of its own: take its int_repr() and say int8",
    "qint32": "is a quantised type with a scale of its own: take its int_repr() and say int32",
}
_IEEE_E4M3 = "is the variant of e4m3 with infinities, which tilus does not have: use ml_dtypes.float8_e4m3fn"


def dtype(named: object) -> DType:
    """Return the scalar type that `named` stands for.

    Parameters
    ----------
    named : DType, str, torch.dtype, numpy.dtype or NumPy scalar type
        A type of tilus; a name such as ``"float6_e3m2"``, ``"e3m2"``, ``"u4"`` or ``"bf16"``; or a type of
        torch, NumPy or ml_dtypes that has the same bits as one of tilus.

    Returns
    -------
    DType

    Raises
    ------
    InvalidValue
        If no type has that name; the error suggests the nearest one.
    TypeMismatch
        If `named` is none of the things above.
    """
    if isinstance(named, DType):
        return named
    if isinstance(named, str):
        return _by_name(named, named)
    module = type(named).__module__.partition(".")[0]
    if module == "torch" and type(named).__name__ == "dtype":
        return _by_name(str(named).removeprefix("torch."), str(named))
    if module == "numpy" and hasattr(named, "newbyteorder"):
        return _from_numpy(named)
    if isinstance(named, type) and named.__module__.partition(".")[0] in ("numpy", "ml_dtypes"):
        import numpy as np

        return _from_numpy(np.dtype(named))
    raise TypeMismatch(
        f"a dtype was expected, not {named!r} of type {type(named).__name__}: "
        "write a tilus type such as tilus.float16, its name, or a type of torch or NumPy"
    )


def _from_numpy(named: Any) -> DType:
    if not named.isnative:
        raise InvalidValue(
            f"numpy.{named!r} has the other byte order: convert the array with .astype(dtype.newbyteorder())"
        )
    if named.name == "float8_e4m3":
        raise InvalidValue(f"ml_dtypes.float8_e4m3 {_IEEE_E4M3}")
    return _by_name(named.name, f"numpy.{named!r}")


def _by_name(name: str, shown: str) -> DType:
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    if name.startswith("table") and name.endswith(")") and "(" in name:
        return parse_table_type(name)
    if name in _REFUSED:
        raise InvalidValue(f"{shown} {_REFUSED[name]}")
    import difflib

    # A word that someone wrote is meant to be one of ours; a type of another package may be like none of them.
    near = difflib.get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.0 if shown == name else 0.75)
    instead = (
        f"did you mean {near[0]!r}?"
        if near
        else "tilus has booleans, integers and real floats of 1 to 64 bits"
    )
    raise InvalidValue(f"there is no dtype named {shown!r}: {instead}")
