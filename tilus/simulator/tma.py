"""Tensor maps and the copies that use them: which bytes of global and shared memory a box covers.

PTX ISA, "Tensors" (bounding boxes, out of boundary access, swizzling modes, tensor-map) and
``tensormap.replace``. A tensor map is opaque to PTX, so its 128 bytes have an encoding of our own here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TENSOR_MAP_BYTES = 128
CHUNK_BYTES = 16

# Element types in the order of `tensormap.replace.elemtype`.
ELEMENT_TYPES = (
    "u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32.ftz", "f64", "bf16", "tf32", "tf32.ftz",
    "b4x16", "b4x16_p64", "b6x16_p32",
)  # fmt: skip
SWIZZLE_MODES = (0, 32, 64, 128, 96)
SWIZZLE_ATOMICITIES = ("16B", "32B", "32B+8B flip", "64B")
FILLS = ("zero", "nan")
_ELEMENT_BYTES = {
    "u8": 1, "u16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8, "f16": 2, "f32": 4, "f32.ftz": 4, "f64": 8,
    "bf16": 2, "tf32": 4, "tf32.ftz": 4,
}  # fmt: skip
_NAN_PATTERNS = {
    "f16": b"\xff\x7f", "bf16": b"\xff\x7f", "f32": b"\xff\xff\xff\x7f", "f32.ftz": b"\xff\xff\xff\x7f",
    "tf32": b"\xff\xff\xff\x7f", "tf32.ftz": b"\xff\xff\xff\x7f", "f64": b"\xff" * 7 + b"\x7f",
}  # fmt: skip
_NUMPY_NAMES = {
    "uint8": "u8", "int8": "u8", "uint16": "u16", "int16": "u16", "uint32": "u32", "int32": "s32",
    "uint64": "u64", "int64": "s64", "float16": "f16", "float32": "f32", "float64": "f64", "bfloat16": "bf16",
    "float8_e4m3fn": "u8", "float8_e5m2": "u8",
}  # fmt: skip
# marker, rank - 1, element type, interleave, swizzle mode, atomicity, fill; address; dims; strides; box;
# element strides
_LAYOUT = struct.Struct("<4s6B2xQ5I4Q5H5B")
_MARKER = b"TMAP"


def swizzle_address(address: Array, swizzle: int) -> Array:
    """Where the swizzle puts the bytes that would otherwise lie at `address`.

    The 16-byte unit within 128 bytes is exchanged by the row of 128 bytes it lies in, as the tables of
    "Swizzling Modes" show: address bits 4-6 (128-byte mode), 4-5 (64) or 4 (32) are combined by exclusive
    or with the bits 7 and up. The pattern is anchored at addresses, so it repeats at multiples of 1024, 512
    or 256 bytes wherever a tile begins. The function is its own inverse.

    Parameters
    ----------
    address : array
        Shared memory addresses, any integers.
    swizzle : int
        0, 32, 64 or 128.
    """
    if swizzle == 0:
        return address
    swizzled: Array = address ^ ((address >> 3) & (swizzle - 16))
    return swizzled


def _swizzle_atoms(address: Array, atomicity: int) -> Array:
    """The 128-byte mode that keeps 32 or 64 bytes together: bits 5-6 (or 6) by bits 7-8 (or 7)."""
    shift, mask = (2, 0x60) if atomicity == 32 else (1, 0x40)
    swizzled: Array = address ^ ((address >> shift) & mask)
    return swizzled


@dataclass(frozen=True)
class TensorMap:
    """What a tensor copy knows of a tensor in global memory. Dimensions are innermost first, as in CUDA.

    Attributes
    ----------
    element_type : str
        One of `ELEMENT_TYPES`; sub-byte types are refused.
    global_dims : tuple of int
        Elements per dimension, 1 to 5 of them.
    global_strides : tuple of int
        Bytes from one index to the next, for every dimension but the innermost.
    box : tuple of int
        Elements of the bounding box per dimension.
    element_strides : tuple of int
        Traversal strides; empty means 1 everywhere.
    swizzle : int
        0, 32, 64 or 128 bytes.
    atomicity : str
        ``"16B"``, or for the 128-byte swizzle also ``"32B"`` and ``"64B"``.
    fill : str
        ``"zero"`` or ``"nan"`` for elements out of bounds.
    address : int
        Global address of the tensor; a launch sets it where `array` is given.
    array : object
        The array that holds the tensor (NumPy array, CPU torch tensor or device memory), or None.
    """

    element_type: str
    global_dims: tuple[int, ...]
    global_strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()
    swizzle: int = 0
    atomicity: str = "16B"
    fill: str = "zero"
    address: int = 0
    array: Any = None

    def __post_init__(self) -> None:
        rank = len(self.global_dims)
        for name in ("global_dims", "global_strides", "box", "element_strides"):
            object.__setattr__(self, name, tuple(int(x) for x in getattr(self, name)))
        if not self.element_strides:
            object.__setattr__(self, "element_strides", (1,) * rank)
        self._check()

    def __hash__(self) -> int:
        return hash(self._geometry)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TensorMap)
            and self._geometry == other._geometry
            and self.address == other.address
            and self.array is other.array
        )

    @property
    def _geometry(self) -> tuple[Any, ...]:
        return (
            self.element_type, self.global_dims, self.global_strides, self.box, self.element_strides,
            self.swizzle, self.atomicity, self.fill,
        )  # fmt: skip

    def _check(self) -> None:
        rank = len(self.global_dims)
        if not 1 <= rank <= 5:
            raise ValueError(f"a tensor map has 1 to 5 dimensions, found {rank}")
        if self.element_type not in ELEMENT_TYPES:
            raise ValueError(
                f"unknown element type {self.element_type!r}; use one of {', '.join(_ELEMENT_BYTES)}"
            )
        if self.element_type not in _ELEMENT_BYTES:
            raise ValueError(f"tensor maps of sub-byte type {self.element_type} are not simulated; use u8")
        for name, expected in (("global_strides", rank - 1), ("box", rank), ("element_strides", rank)):
            if len(getattr(self, name)) != expected:
                raise ValueError(
                    f"a tensor map of rank {rank} needs {expected} {name}, found {len(getattr(self, name))}"
                )
        if any(not 1 <= d <= 2**32 for d in self.global_dims):
            raise ValueError(f"global_dims are 1 to 2**32, found {self.global_dims}")
        if any(s % 16 or not 0 <= s < 2**40 for s in self.global_strides):
            raise ValueError(
                f"global_strides are multiples of 16 bytes below 2**40, found {self.global_strides}"
            )
        if any(not 1 <= b <= 256 for b in self.box):
            raise ValueError(f"box dimensions are 1 to 256, found {self.box}")
        if any(not 1 <= s <= 8 for s in self.element_strides):
            raise ValueError(f"element_strides are 1 to 8, found {self.element_strides}")
        if self.element_strides[0] != 1:
            raise ValueError(
                f"the innermost element stride is 1 without interleaving, found {self.element_strides[0]}"
            )
        if self.row_bytes % CHUNK_BYTES:
            raise ValueError(
                f"the innermost box dimension is a multiple of 16 bytes, found {self.row_bytes} bytes"
            )
        if self.swizzle not in (0, 32, 64, 128):
            raise ValueError(f"a swizzle of 0, 32, 64 or 128 bytes is simulated, found {self.swizzle}")
        if self.swizzle and self.row_bytes > self.swizzle:
            raise ValueError(
                f"the innermost box dimension has {self.row_bytes} bytes, more than the {self.swizzle}-byte "
                f"swizzle; make the box narrower or the swizzle wider"
            )
        if self.atomicity not in ("16B", "32B", "64B") or (self.atomicity != "16B" and self.swizzle != 128):
            raise ValueError(
                "the swizzle atomicity is 16B, or with a 128-byte swizzle 32B or 64B, found "
                f"{self.atomicity} with {self.swizzle}"
            )
        if self.fill not in FILLS:
            raise ValueError(f"fill is 'zero' or 'nan', found {self.fill!r}")
        if self.fill == "nan" and self.element_type not in _NAN_PATTERNS:
            raise ValueError(f"fill 'nan' needs a floating-point type, found {self.element_type}")

    @classmethod
    def of(
        cls,
        array: Any,
        box: tuple[int, ...],
        *,
        swizzle: int = 0,
        element_strides: tuple[int, ...] = (),
        fill: str = "zero",
        element_type: str | None = None,
    ) -> TensorMap:
        """Describe a NumPy array or CPU torch tensor.

        Parameters
        ----------
        array : array
            1 to 5 dimensions, the last one contiguous.
        box : tuple of int
            Box in the array's order: the last entry is the innermost.
        swizzle, element_strides, fill
            As in `TensorMap`; element_strides in the array's order.
        element_type : str, optional
            Default: by the array's dtype (8-bit floats as ``u8``).
        """
        torch_like = hasattr(array, "stride") and hasattr(array, "element_size")
        size = int(array.element_size() if torch_like else array.itemsize)
        strides = [int(s) * size for s in array.stride()] if torch_like else [int(s) for s in array.strides]
        name = str(array.dtype).rpartition(".")[2]
        chosen = element_type or _NUMPY_NAMES.get(name)
        if chosen is None:
            raise ValueError(f"no tensor-map element type for dtype {array.dtype}; pass element_type=")
        if strides and strides[-1] != size:
            raise ValueError(f"the last dimension of the array must be contiguous, found strides {strides}")
        return cls(
            element_type=chosen,
            global_dims=tuple(reversed(array.shape)),
            global_strides=tuple(reversed(strides[:-1])),
            box=tuple(reversed(box)),
            element_strides=tuple(reversed(element_strides)),
            swizzle=swizzle,
            fill=fill,
            array=array,
        )

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.global_dims)

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return _ELEMENT_BYTES[self.element_type]

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Elements copied per dimension, innermost first: the box divided by the traversal strides."""
        return tuple(-(-b // s) for b, s in zip(self.box, self.element_strides, strict=True))

    @property
    def row_bytes(self) -> int:
        """Bytes of the innermost dimension of a tile in shared memory."""
        return self.box[0] * self.element_bytes

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile in shared memory, which a load counts at its mbarrier (out of bounds too)."""
        total = self.element_bytes
        for extent in self.tile_shape:
            total *= extent
        return total

    @property
    def shared_alignment(self) -> int:
        """Required alignment of a tile's shared address."""
        return 128

    def at(self, address: int) -> TensorMap:
        """The same map for a tensor at another global address."""
        return replace(self, address=address)

    def encode(self) -> bytes:
        """The 128 bytes that a kernel receives."""
        padding = 5 - self.rank
        packed = _LAYOUT.pack(
            _MARKER,
            self.rank - 1,
            ELEMENT_TYPES.index(self.element_type),
            0,
            SWIZZLE_MODES.index(self.swizzle),
            SWIZZLE_ATOMICITIES.index(self.atomicity),
            FILLS.index(self.fill),
            self.address,
            *(d % 2**32 for d in self.global_dims),
            *([0] * padding),
            *self.global_strides,
            *([0] * padding),
            *self.box,
            *([0] * padding),
            *self.element_strides,
            *([0] * padding),
        )
        return packed.ljust(TENSOR_MAP_BYTES, b"\0")

    @classmethod
    def decode(cls, blob: bytes) -> TensorMap:
        """Read the 128 bytes back, also after ``tensormap.replace``."""
        return _decode(bytes(blob))

    def fill_pattern(self) -> bytes:
        """16 bytes to put where a chunk is out of bounds."""
        if self.fill == "zero":
            return bytes(CHUNK_BYTES)
        return _NAN_PATTERNS[self.element_type] * (CHUNK_BYTES // self.element_bytes)

    def convert_loaded(self, chunks: Array) -> Array:
        """What arrives in shared memory for bytes read from global memory, uint8 ``[..., 16]``.

        ``tf32`` elements are rounded to nearest even and the ``.ftz`` types lose subnormal numbers.
        """
        if self.element_type not in ("tf32", "tf32.ftz", "f32.ftz"):
            return chunks
        words = np.ascontiguousarray(chunks).view(np.uint32)
        magnitude = words & np.uint32(0x7FFFFFFF)
        if self.element_type.endswith(".ftz"):
            subnormal = (magnitude != 0) & (magnitude < 0x00800000)
            words = np.where(subnormal, words & np.uint32(0x80000000), words)
        if self.element_type.startswith("tf32"):
            half = np.uint32(0x0FFF) + ((words >> np.uint32(13)) & np.uint32(1))
            rounded = (words + half) & np.uint32(0xFFFFE000)
            words = np.where(magnitude < 0x7F800000, rounded, words)
        return words.view(np.uint8)


@lru_cache(maxsize=256)
def _decode(blob: bytes) -> TensorMap:
    if len(blob) != TENSOR_MAP_BYTES:
        raise ValueError(f"a tensor map has {TENSOR_MAP_BYTES} bytes, found {len(blob)}")
    fields = _LAYOUT.unpack_from(blob)
    if fields[0] != _MARKER:
        raise ValueError(
            "these 128 bytes are no tensor map: pass a simulator.TensorMap, or build one in the kernel with "
            "tensormap.replace"
        )
    rank = fields[1] + 1
    if rank > 5:
        raise ValueError(f"a tensor map has 1 to 5 dimensions, found {rank}")
    if fields[3]:
        raise ValueError("interleaved tensor maps are not simulated; use no interleave")
    if fields[2] >= len(ELEMENT_TYPES) or fields[4] >= len(SWIZZLE_MODES):
        raise ValueError(f"illegal element type {fields[2]} or swizzle mode {fields[4]} in a tensor map")
    return TensorMap(
        element_type=ELEMENT_TYPES[fields[2]],
        swizzle=SWIZZLE_MODES[fields[4]],
        atomicity=SWIZZLE_ATOMICITIES[fields[5] % 4],
        fill=FILLS[fields[6] % 2],
        address=fields[7],
        global_dims=tuple(d or 2**32 for d in fields[8 : 8 + rank]),
        global_strides=fields[13 : 13 + rank - 1],
        box=fields[17 : 17 + rank],
        element_strides=fields[22 : 22 + rank],
    )


# field of tensormap.replace -> (position among the packed fields, whether it has an ordinal)
_FIELDS = {
    "rank": (1, False), "elemtype": (2, False), "interleave_layout": (3, False), "swizzle_mode": (4, False),
    "swizzle_atomicity": (5, False), "fill_mode": (6, False), "global_address": (7, False),
    "global_dim": (8, True), "global_stride": (13, True), "box_dim": (17, True), "element_stride": (22, True),
}  # fmt: skip


def replace_field(blob: bytes, field: str, value: int, ordinal: int = 0) -> bytes:
    """``tensormap.replace``: the 128 bytes with one field changed.

    Parameters
    ----------
    blob : bytes
        A tensor map, or zeroed memory that becomes one.
    field : str
        The qualifier, for example ``"box_dim"``.
    value : int
        ``new_val``: for ``rank`` one less than the rank, for enumerations the code of the ISA's table.
    ordinal : int
        Dimension of the fields that have one.
    """
    try:
        at, has_ordinal = _FIELDS[field]
    except KeyError:
        raise ValueError(
            f"tensormap.replace has no field .{field}; use one of {', '.join(_FIELDS)}"
        ) from None
    limit = 4 if field == "global_stride" else 5
    if has_ordinal and not 0 <= ordinal < limit:
        raise ValueError(f"the ordinal of .{field} is 0 to {limit - 1}, found {ordinal}")
    fields = list(_LAYOUT.unpack_from(bytes(blob)))
    fields[0] = _MARKER
    width = {"global_address": 64, "global_stride": 64, "global_dim": 32, "box_dim": 16}.get(field, 8)
    fields[at + (ordinal if has_ordinal else 0)] = int(value) & ((1 << width) - 1)
    return _LAYOUT.pack(*fields).ljust(TENSOR_MAP_BYTES, b"\0")


@dataclass(frozen=True)
class TileAccess:
    """Memory that tile copies touch, in chunks of 16 bytes: arrays ``[G, n]`` for G copies.

    Attributes
    ----------
    global_address : array
        int64 address of the chunk's first byte; byte i of the chunk lies at ``global_address + i``.
    shared_address : array
        int64 address of the chunk in shared memory, swizzled; always a multiple of 16.
    first, last : array
        int64; bytes ``first <= i < last`` are within the tensor, the others are out of bounds.
    """

    global_address: Array
    shared_address: Array
    first: Array
    last: Array

    @property
    def whole(self) -> bool:
        """Whether no byte is out of bounds."""
        return bool((self.first == 0).all() and (self.last == CHUNK_BYTES).all())

    def byte_mask(self) -> Array:
        """Whether each byte is within the tensor, bool ``[G, n, 16]``."""
        at = np.arange(CHUNK_BYTES)
        mask: Array = (at >= self.first[..., None]) & (at < self.last[..., None])
        return mask

    def global_bytes(self) -> Array:
        """Global address of every byte, int64 ``[G, n, 16]``; look at `byte_mask` before use."""
        return self.global_address[..., None] + np.arange(CHUNK_BYTES)

    def shared_bytes(self) -> Array:
        """Shared address of every byte, int64 ``[G, n, 16]``."""
        return self.shared_address[..., None] + np.arange(CHUNK_BYTES)


def tile_access(tensor_map: TensorMap, coordinates: Array, shared: Array) -> TileAccess:
    """Addresses of tiles, for loads and stores alike.

    Parameters
    ----------
    tensor_map : TensorMap
    coordinates : array
        int64 ``[G, rank]``: first element of each box, innermost dimension first; may be negative.
    shared : array
        int64 ``[G]``: shared addresses of the tiles, multiples of 128.
    """
    starts = np.asarray(coordinates, dtype=np.int64)
    if starts.ndim != 2 or starts.shape[1] != tensor_map.rank:
        raise ValueError(
            f"a tensor map of rank {tensor_map.rank} needs coordinates [copies, {tensor_map.rank}], found shape "
            f"{starts.shape}"
        )
    offsets, indices, inner = _tile(tensor_map._geometry)
    strides = np.array((0, *tensor_map.global_strides), dtype=np.int64)
    size = tensor_map.element_bytes
    # Position of the chunk in its row of the tensor, in bytes from the row's first element.
    column = starts[:, :1] * size + inner
    inside = np.ones(column.shape, dtype=bool)
    address = tensor_map.address + column
    for d in range(1, tensor_map.rank):
        position = starts[:, d : d + 1] + indices[d]
        inside &= (position >= 0) & (position < tensor_map.global_dims[d])
        address = address + position * strides[d]
    first = np.clip(-column, 0, CHUNK_BYTES)
    last = np.clip(tensor_map.global_dims[0] * size - column, 0, CHUNK_BYTES)
    last = np.where(inside & (last > first), last, first)
    target = np.asarray(shared, dtype=np.int64).reshape(-1, 1) + offsets
    if tensor_map.atomicity == "16B":
        target = swizzle_address(target, tensor_map.swizzle)
    else:
        target = _swizzle_atoms(target, int(tensor_map.atomicity[:2]))
    return TileAccess(address, target, first, last)


@lru_cache(maxsize=256)
def _tile(geometry: tuple[Any, ...]) -> tuple[Array, list[Array], Array]:
    """Packed shared offset, element index per dimension and inner byte offset of every chunk of a tile."""
    tensor_map = TensorMap(*geometry)
    shape = tensor_map.tile_shape
    per_row = tensor_map.row_bytes // CHUNK_BYTES
    chunks = np.indices((*reversed(shape[1:]), per_row)).reshape(tensor_map.rank, -1)
    inner = chunks[-1].astype(np.int64) * CHUNK_BYTES
    indices = [np.zeros(1, dtype=np.int64)]
    for d in range(1, tensor_map.rank):
        indices.append(chunks[-1 - d].astype(np.int64) * tensor_map.element_strides[d])
    offsets = np.arange(chunks.shape[1], dtype=np.int64) * CHUNK_BYTES
    return offsets, indices, inner
