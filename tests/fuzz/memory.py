"""Random statements that move tiles through memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tests.fuzz.draft import BYTES, EXTENTS, FLOATS, INTEGERS, Exact, SharedVar
from tests.fuzz.tiles import Tiles
from tilus import dtypes


class Memory(Tiles):
    """Draws accesses to shared and global memory."""

    def through_shared(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, *BYTES, "boolean", "float8_e4m3", "uint4", "int2", "uint1"))
        assert a.shape is not None
        room = [s for s in self.shared if s.dtype == a.dtype and s.shape == a.shape]
        if room and self.chance(2):
            held = replace(self.rng.choice(room), exact=None)
        else:
            held = SharedVar(self.fresh("s"), a.dtype, a.shape)
            self.line(f"{held.name} = tilus.shared(tilus.{a.dtype}, {a.shape})")
            if self.depth == 0 and self.group == self.warps:
                self.shared.append(held)
        self.line(f"tilus.store({held.name}, {a.name})")
        if self.chance(3):
            b = self.a_tile((a.dtype.name,), a.shape)
            if b.exact is not None or a.exact is None:
                self.line(f"tilus.store({held.name}, {b.name})")
                a = b
        self.read(held, a.exact)

    def read_again(self) -> None:
        if self.shared and self.group == self.warps:
            self.read(self.rng.choice(self.shared), None)

    def read(self, held: SharedVar, exact: Exact | None) -> None:
        kind, s = self.rng.randrange(6), held.shape
        if kind == 0:
            text, shape = f"{held.name}.T", s[::-1]
        elif kind == 1:
            shape = (prod(s),) if self.chance(2) else (*s, 1)
            text = f"{held.name}.reshape({shape})"
        elif kind == 2 and len(s) > 1:
            text, shape = (
                f"{held.name}[{self.rng.choice((f'n1 % {s[0]}', str(self.rng.randrange(s[0]))))}]",
                s[1:],
            )
        elif kind == 3:
            starts = [self.rng.randrange(n) for n in s]
            sizes = [self.rng.randint(1, n - b) for n, b in zip(s, starts, strict=True)]
            cut = ", ".join(f"{b}:{b + n}" for b, n in zip(starts, sizes, strict=True))
            text, shape = f"{held.name}[{cut}]", tuple(sizes)
        elif kind == 4 and held.dtype.bits >= 8:
            shape = self.shape(256, (1, 2))
            tiles = [self.a_tile(("int32", "int16", "int64"), shape).name for _ in s]
            if self.chance(2):
                tiles = [f"{t} % {n}" for t, n in zip(tiles, s, strict=True)]
            self.keep(f"tilus.load({held.name}, indices=({', '.join(tiles)},))", held.dtype, shape, exact)
            return
        else:
            text, shape = held.name, s
        self.keep(f"tilus.load({text}{self.maybe_layout(shape)})", held.dtype, shape, exact)

    def indexed(self) -> None:
        """Gather from global memory, or scatter to distinct places of it."""
        index = self.a_tile(("int16", "int32", "int64", "uint32"))
        assert index.shape is not None
        d = dtypes.dtype(self.rng.choice((*INTEGERS, *FLOATS, *BYTES)))
        exact = Exact(8) if d.is_float else None
        if self.chance(2):
            source = self.input(d, (self.rng.choice(EXTENTS), self.rng.choice(EXTENTS)), exact)
            other = self.a_tile(("int16", "int32", "int64"), index.shape)
            masks = [v for v in self.scope if v.shape == index.shape and v.dtype.is_boolean]
            mask = f", mask={self.rng.choice(masks).name}" if masks and self.chance(2) else ""
            fill = ", other=1" if self.chance(4) and not d.is_float else ""
            text = f"tilus.load({source.name}, indices=({index.name}, {other.name}){mask}{fill})"
            self.keep(text, d, index.shape, exact)
        elif len(index.shape) <= 2:
            a = self.a_tile((*INTEGERS, *FLOATS, *BYTES), index.shape)
            out = self.output(a.dtype, (self.blocks, prod(index.shape) + self.rng.choice((0, 3, -1))))
            flat = f"tilus.iota({index.shape}, 0)"
            if len(index.shape) == 2:
                flat = f"({flat} * {index.shape[1]} + tilus.iota({index.shape}, 1))"
            place = self.rng.choice((flat, f"{prod(index.shape)} - 1 - {flat}", f"{flat} - 2"))
            self.line(f"tilus.store({out}, {a.name}, indices=(tilus.block_id(), {place}))")

    def atomic(self) -> None:
        a = self.a_tile(("int32", "uint32", "int64", "uint64"), self.shape(256, (1, 2)))
        assert a.shape is not None
        bins = self.rng.choice((1, 4, 16, 64))
        index = self.a_tile(("int32", "int64"), a.shape).name
        kinds = ("add", "min", "max", "and", "or", "xor")
        if self.chance(3):
            x = self.a_tile((*INTEGERS, *BYTES), self.shape(512, (1, 2)))
            self.keep(f"tilus.histogram({x.name}, {bins})", dtypes.int32, (bins,))
        elif self.chance(2):
            held = self.fresh("s")
            self.line(f"{held} = tilus.shared(tilus.{a.dtype}, {bins})")
            self.line(f"tilus.store({held}, tilus.full({bins}, {self.number(a.dtype)}, tilus.{a.dtype}))")
            self.line(f"tilus.atomic_{self.rng.choice(kinds)}({held}, {a.name}, indices=({index} % {bins},))")
            self.keep(f"tilus.load({held})", a.dtype, (bins,))
        else:
            out = self.output(a.dtype, (self.blocks, bins))
            places = f"(tilus.block_id(), {index}{self.rng.choice(('', f' % {bins}'))})"
            self.line(f"tilus.atomic_{self.rng.choice(kinds)}({out}, {a.name}, indices={places})")

    def copy(self) -> None:
        d = dtypes.dtype(self.rng.choice(("int8", "float16", "float32", "int32", "int64")))
        shape = self.shape(1024, (1, 2))
        exact = Exact(8) if d.is_float else None
        source = self.input(d, tuple(n + self.rng.choice((0, 0, 8, -1)) or 1 for n in shape), exact)
        held = self.fresh("s")
        offsets = ", ".join(self.rng.choice(("0", "0", "n0", "8", "-1")) for _ in shape)
        self.line(f"{held} = tilus.shared(tilus.{d}, {shape})")
        self.line(f"tilus.copy_async({held}, {source.name}, ({offsets},))")
        self.line("tilus.copy_async_commit()")
        self.line("tilus.copy_async_wait()")
        self.line("tilus.sync()")
        self.keep(f"tilus.load({held}{self.maybe_layout(shape)})", d, shape, exact)

    def scalar(self) -> None:
        kind = self.rng.randrange(4)
        if kind == 0:
            a = self.a_tile(("int32",))
            self.keep(f"tilus.{self.rng.choice(('sum', 'max', 'min'))}({a.name})", dtypes.int32, None)
        elif kind == 1:
            source = self.input(dtypes.int32, (9,), None)
            self.keep(
                f"tilus.load({source.name}, {self.rng.choice(('n1', '0', 'n0', 'tilus.block_id()'))})",
                dtypes.int32,
                None,
            )
        else:
            x, y = self.a_scalar(), self.rng.choice((self.a_scalar(), "3", "-1"))
            self.keep(f"{x} {self.rng.choice(('+', '-', '*'))} {y}", dtypes.int32, None)
