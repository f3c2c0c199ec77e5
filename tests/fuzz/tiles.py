"""Random statements that make tiles out of tiles."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tests.fuzz.draft import BYTES, FLOATS, INTEGERS, NARROW, PRECISION, Draft, Exact, Var
from tilus import dtypes
from tilus.dtypes import DType


class Tiles(Draft):
    """Draws operations on tiles in registers."""

    def a_tile(
        self, names: tuple[str, ...] = (), shape: tuple[int, ...] | None = None, exact: bool = False
    ) -> Var:
        """Return a tile in scope of one of some types, or load one."""
        found = [
            v
            for v in self.scope
            if v.shape is not None
            and (not names or v.dtype.name in names)
            and (shape is None or v.shape == shape)
            and (not exact or not v.dtype.is_float or v.exact is not None)
        ]
        if found and not self.chance(6):
            return self.rng.choice(found[-8:])
        return self.load(names, shape, exact)

    def load(
        self, names: tuple[str, ...] = (), shape: tuple[int, ...] | None = None, exact: bool = False
    ) -> Var:
        dtype = dtypes.dtype(self.rng.choice(names or (*INTEGERS, *FLOATS, *FLOATS, *NARROW, "boolean")))
        tile = shape or self.shape()
        if dtype.bits < 8 and not dtype.is_boolean and (8 % dtype.bits or not self.chance(3)):
            return self.narrow(dtype, tile)
        known: Exact | None = None
        if dtype.is_float and dtype.name in PRECISION and (exact or not self.chance(4)):
            known = (
                Exact(8) if dtype.bits == 8 else Exact(*self.rng.choice(((8, 0), (4, 1), (100, 0), (3, 2))))
            )
        if dtype.bits < 8 or dtype.bits % 8:
            # Rows of packed elements begin at whole bytes.
            outer = tuple(n + self.rng.choice((0, 0, 1)) for n in tile[:-1])
            whole = (*outer, -(-tile[-1] // 8) * 8)
            offsets = ["0"] * len(tile)
        else:
            whole = tuple(max(1, n + self.rng.choice((0, 0, 0, 1, 5, -1, 16))) for n in tile)
            offsets = [self.rng.choice(("0", "0", "0", "1", "-2", "n0", "tilus.block_id()")) for _ in tile]
        if self.chance(5):
            whole, offsets = (3, *whole), [self.rng.choice(("0", "2", "n1", "tilus.block_id()")), *offsets]
        source = self.input(dtype, whole, known)
        extra = self.maybe_layout(tile)
        if self.chance(6) and not (dtype.is_float and dtype.bits <= 8):
            extra += f", other={self.number(dtype)}"
        extra += self.maybe_mask(tile)
        return self.keep(
            f"tilus.load({source.name}, ({', '.join(offsets)},), {tile}{extra})", dtype, tile,
            Exact(max(known.bound, 3.0), max(known.places, 1)) if known and "other" in extra else known,
        )  # fmt: skip

    def maybe_mask(self, shape: tuple[int, ...]) -> str:
        """Return a mask as an argument, or nothing: one in scope, or one that is equal for some neighbours."""
        found = [v.name for v in self.scope if v.shape == shape and v.dtype.is_boolean]
        if found and self.chance(2):
            return f", mask={self.rng.choice(found)}"
        if not self.chance(6):
            return ""
        index = f"tilus.iota({shape}, {self.rng.randrange(len(shape))})"
        run = self.rng.choice((1, 2, 4, 8, 16))
        made = self.rng.choice((
            f"{index} < n1 * {run}", f"{index} // {run} % 2 == n0 % 2", f"({index} & {run}) != 0",
            f"{index} + {run} < {shape[-1]}", f"{index} >= tilus.block_id() * {run}", f"n1 * {run} > {index}",
        ))  # fmt: skip
        if self.chance(3):
            made = f"({made}) & ({index} < {self.rng.choice((8, 12, 30, 64))})"
        return f", mask={made}"

    def narrow(self, dtype: DType, shape: tuple[int, ...]) -> Var:
        """Make a tile of a type of less than a byte of the bits of integers."""
        source = self.load((self.rng.choice(("int32", "uint8", "int16")),), shape)
        whole = dtype if dtype.is_integer else dtypes.dtype(f"uint{dtype.bits}")
        made = self.keep(f"{source.name}.to(tilus.{whole})", whole, shape)
        return (
            made if dtype.is_integer else self.keep(f"tilus.view({made.name}, tilus.{dtype})", dtype, shape)
        )

    def make(self) -> None:
        dtype = dtypes.dtype(self.rng.choice((*INTEGERS, *FLOATS)))
        shape = self.shape()
        kind = self.rng.randrange(4)
        if kind == 0:
            number = self.number(dtype)
            exact = self.bound_of(number) if dtype.is_float else None
            self.keep(
                f"tilus.full({shape}, {number}, tilus.{dtype}{self.maybe_layout(shape)})", dtype, shape, exact
            )
        elif kind == 1 and dtype.is_integer:
            axis = self.rng.randrange(len(shape))
            self.keep(
                f"tilus.iota({shape}, {axis}, dtype=tilus.{dtype}{self.maybe_layout(shape)})", dtype, shape
            )
        elif kind == 2 and dtype.is_integer:
            start = self.rng.choice((0, 0, 3))
            self.keep(
                f"tilus.arange({start}, {start + prod(shape)}, dtype=tilus.{dtype})", dtype, (prod(shape),)
            )
        else:
            scalar = f"tilus.cast({self.a_scalar()}, tilus.int32)"
            self.keep(f"tilus.full({shape}, {scalar})", dtypes.int32, shape)

    def binary(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, *BYTES, "boolean"))
        self.keep(*self.binary_of(a))

    def partner(self, a: Var) -> tuple[str, Exact | None, tuple[int, ...]]:
        """Return a second operand of a tile's type: a number, the tile itself, a tile that broadcasts, or another."""
        assert a.shape is not None
        if self.chance(4):
            number = self.number(a.dtype)
            return number, self.bound_of(number) if a.dtype.is_float else None, a.shape
        if self.chance(5) and len(a.shape) > 1:
            axis = self.rng.randrange(len(a.shape))
            shape = tuple(1 if i == axis else n for i, n in enumerate(a.shape))
            b = self.a_tile((a.dtype.name,), shape)
            return b.name, b.exact, a.shape
        b = self.a_tile((a.dtype.name,), a.shape)
        return b.name, b.exact, a.shape

    def binary_of(self, a: Var) -> tuple[str, DType, tuple[int, ...], Exact | None]:
        """Return an expression of a tile and a partner, and its type."""
        b, eb, shape = self.partner(a)
        x, y = (a.name, b) if self.chance(2) or not b[0].isalpha() else (b, a.name)
        d, text = a.dtype, None
        if d.is_boolean:
            return f"{x} {self.rng.choice('&|^')} {y}", d, shape, None
        if d.name in BYTES:
            return f"{x} {self.rng.choice('&|^')} {y}", d, shape, None
        if d.is_integer:
            kind = self.rng.randrange(9)
            if kind < 4:
                text = f"{x} {self.rng.choice(('+', '-', '*', '&', '|', '^'))} {y}"
            elif kind == 4:
                divisor = self.rng.choice(("3", "7", "16", "10", f"({b} | 1)"))
                text = f"{a.name} {self.rng.choice(('//', '%'))} {divisor}"
            elif kind == 5:
                amount = self.rng.choice((str(self.rng.randrange(d.bits)), b, f"({b} & {d.bits - 1})"))
                if not b[0].isalpha():
                    amount = str(self.rng.randrange(d.bits))
                text = f"{a.name} {self.rng.choice(('<<', '>>'))} {amount}"
            elif kind == 6 and d.bits >= 32:
                text = f"tilus.mulhi({x}, {y})"
            else:
                text = f"tilus.{self.rng.choice(('minimum', 'maximum'))}({x}, {y})"
            return text, d, shape, None
        kind = self.rng.choice(("+", "-", "*", "min", "max"))
        made: Exact | None = None
        if a.exact and eb:
            places = max(a.exact.places, eb.places)
            if kind in "+-":
                made = Exact(a.exact.bound + eb.bound, places)
            elif kind == "*":
                made = Exact(a.exact.bound * eb.bound, a.exact.places + eb.places)
            if made is not None and made.fits(d):
                return f"{x} {kind} {y}", d, shape, made
            made = Exact(max(a.exact.bound, eb.bound), places)
            if not made.fits(d):
                made = None
        return f"tilus.{'maximum' if kind in ('max', '+') else 'minimum'}({x}, {y})", d, shape, made

    def unary(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, *BYTES, "boolean"))
        text, exact = self.unary_of(a)
        self.keep(text, a.dtype, a.shape, exact)

    def unary_of(self, a: Var) -> tuple[str, Exact | None]:
        """Return an expression of one tile, of its type."""
        if a.dtype.is_boolean or a.dtype.name in BYTES:
            return f"~{a.name}", None
        if a.dtype.is_integer:
            forms = ["-{}", "~{}", "tilus.abs({})"] + (["tilus.brev({})"] if a.dtype.bits >= 32 else [])
            return self.rng.choice(forms).format(a.name), None
        if self.chance(2):
            return self.rng.choice(("-{}", "tilus.abs({})")).format(a.name), a.exact
        exact = Exact(a.exact.bound + 1) if a.exact else None
        if exact is not None and not exact.fits(a.dtype):
            return f"-{a.name}", a.exact
        return f"tilus.{self.rng.choice(('floor', 'ceil', 'round', 'trunc'))}({a.name})", exact

    def bits(self) -> None:
        a = self.a_tile(("int32", "uint32", "int64", "uint64"))
        self.keep(f"tilus.{self.rng.choice(('popcount', 'clz', 'ctz'))}({a.name})", dtypes.int32, a.shape)

    def compare(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, *BYTES))
        b, _, shape = self.partner(a)
        sign = self.rng.choice(("<", "<=", "==", "!=", ">", ">="))
        self.keep(f"{a.name} {sign} {b}", dtypes.boolean, shape)

    def where(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, *BYTES, "boolean"))
        c = self.a_tile(("boolean",), a.shape)
        b, eb, shape = self.partner(a)
        exact = None
        if a.exact and eb:
            exact = Exact(max(a.exact.bound, eb.bound), max(a.exact.places, eb.places))
            exact = exact if exact.fits(a.dtype) else None
        self.keep(f"tilus.where({c.name}, {a.name}, {b})", a.dtype, shape, exact)

    def cast(self) -> None:
        a = self.a_tile()
        d = dtypes.dtype(self.rng.choice((*INTEGERS, *FLOATS, *NARROW)))
        exact = None
        if d.is_float and d.name in PRECISION:
            if a.exact is not None and a.exact.fits(d):
                exact = a.exact
            elif a.dtype.is_boolean:
                exact = Exact(1)
            elif a.dtype.is_integer and Exact(2.0**a.dtype.bits).fits(d):
                exact = Exact(2.0**a.dtype.bits)
        self.keep(
            self.rng.choice(("{}.to(tilus.{})", "tilus.cast({}, tilus.{})")).format(a.name, d),
            d,
            a.shape,
            exact,
        )

    def reduction(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, "boolean"))
        assert a.shape is not None
        axis = self.rng.randrange(len(a.shape))
        keepdims = self.chance(2)
        shape = tuple(1 if i == axis else n for i, n in enumerate(a.shape) if keepdims or i != axis) or None
        d, exact = a.dtype, a.exact
        if d.is_boolean:
            kind = self.rng.choice(("any", "all"))
        elif d.is_integer:
            kind = self.rng.choice(
                ("sum", "sum", "prod", "max", "min", "and", "or", "xor", "argmax", "argmin")
            )
        else:
            kind = self.rng.choice(("sum", "sum", "max", "min", "argmax", "argmin"))
            if kind == "sum":
                exact = Exact(exact.bound * a.shape[axis], exact.places) if exact else None
                if exact is None or not exact.fits(d):
                    kind, exact = "max", a.exact
            if kind[:3] == "arg" and a.exact is None:
                kind = "min"
        if kind[:3] == "arg":
            d, exact = dtypes.int32, None
        if kind in ("and", "or", "xor") or self.chance(3):
            text = f"tilus.reduce({a.name}, {axis}, {kind!r}, keepdims={keepdims})"
        else:
            text = f"tilus.{kind}({a.name}, axis={axis}, keepdims={keepdims})"
        self.keep(text, d, shape, exact)

    def scan(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS), exact=True)
        assert a.shape is not None
        axis = self.rng.randrange(len(a.shape))
        kind, exact = self.rng.choice(("sum", "max", "min")), a.exact
        if a.dtype.is_integer:
            kind = self.rng.choice(("sum", "prod", "max", "min", "and", "or", "xor"))
        elif kind == "sum":
            assert a.exact is not None
            exact = Exact(a.exact.bound * a.shape[axis], a.exact.places)
            if not exact.fits(a.dtype):
                kind, exact = "max", a.exact
        exclusive = self.chance(3)
        if exclusive and kind in ("max", "min"):
            exact = None
        self.keep(f"tilus.scan({a.name}, {axis}, {kind!r}, exclusive={exclusive})", a.dtype, a.shape, exact)

    def combine(self) -> None:
        a = self.a_tile(("int32", "uint32", "int64"))
        assert a.shape is not None
        axis = self.rng.randrange(len(a.shape))
        if self.chance(2):
            self.keep(f"tilus.scan({a.name}, {axis}, later)", a.dtype, a.shape)
            return
        shape = tuple(n for i, n in enumerate(a.shape) if i != axis) or None
        first, second = self.fresh(), self.fresh()
        b = self.a_tile((a.dtype.name,), a.shape)
        self.line(f"{first}, {second} = tilus.reduce(({a.name}, {b.name}), {axis}, affine)")
        self.scope += [Var(first, a.dtype, shape), Var(second, a.dtype, shape)]

    def order(self) -> None:
        a = self.a_tile((*INTEGERS, *FLOATS, *BYTES), self.shape(256, (1, 2)))
        assert a.shape is not None
        axis = self.rng.randrange(len(a.shape))
        if a.shape[axis] > 64:
            return
        kind, down = self.rng.choice(("sort", "argsort", "topk", "flip")), self.chance(2)
        if kind == "flip":
            self.keep(f"tilus.flip({a.name}, {axis})", a.dtype, a.shape, a.exact)
        elif kind == "sort" or a.dtype.bits > 32:
            self.keep(f"tilus.sort({a.name}, {axis}, descending={down})", a.dtype, a.shape, a.exact)
        elif kind == "argsort":
            self.keep(f"tilus.argsort({a.name}, {axis}, descending={down})", dtypes.int32, a.shape)
        else:
            k = self.rng.randint(1, a.shape[axis])
            shape = tuple(k if i == axis else n for i, n in enumerate(a.shape))
            values, places = self.fresh(), self.fresh()
            self.line(f"{values}, {places} = tilus.topk({a.name}, {k}, {axis}, largest={down})")
            self.scope += [Var(values, a.dtype, shape, a.exact), Var(places, dtypes.int32, shape)]

    def reshaping(self) -> None:
        a = self.a_tile()
        assert a.shape is not None
        s, rank = a.shape, len(a.shape)
        kind = self.rng.choice(
            ("transpose", "reshape", "concat", "slice", "expand", "squeeze", "broadcast", "layout")
        )
        if kind == "transpose":
            perm = self.rng.sample(range(rank), rank)
            text, shape = f"tilus.transpose({a.name}, {tuple(perm)})", tuple(s[p] for p in perm)
        elif kind == "reshape":
            extents = [1] * self.rng.randint(1, 3)
            left = prod(s)
            for p in (2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 5, 5, 7, 7):
                if left % p == 0:
                    extents[self.rng.randrange(len(extents))] *= p
                    left //= p
            shape = (extents[0] * left, *extents[1:])
            text = f"tilus.reshape({a.name}, {shape})"
        elif kind == "concat" and prod(s) <= 512:
            axis, n = self.rng.randrange(rank), self.rng.randint(2, 3)
            parts = [a, *(self.a_tile((a.dtype.name,), s) for _ in range(n - 1))]
            exact = None
            if all(p.exact for p in parts):
                exact = Exact(max(p.exact.bound for p in parts), max(p.exact.places for p in parts))  # type: ignore[union-attr]
                exact = exact if exact.fits(a.dtype) else None
            shape = tuple(x * n if i == axis else x for i, x in enumerate(s))
            self.keep(f"tilus.concat([{', '.join(p.name for p in parts)}], {axis})", a.dtype, shape, exact)
            return
        elif kind == "slice":
            sizes = [self.rng.choice([n for n in range(1, e + 1) if e % n == 0]) for e in s]
            starts = [n * self.rng.randrange(e // n) for e, n in zip(s, sizes, strict=True)]
            cut = ", ".join(f"{b}:{b + n}" for b, n in zip(starts, sizes, strict=True))
            text, shape = f"{a.name}[{cut}]", tuple(sizes)
        elif kind == "expand" and rank < 4:
            axis = self.rng.randint(0, rank)
            text, shape = f"tilus.expand_dims({a.name}, {axis})", (*s[:axis], 1, *s[axis:])
        elif kind == "squeeze" and rank > 1 and 1 in s:
            axis = self.rng.choice([i for i, n in enumerate(s) if n == 1])
            text, shape = f"tilus.squeeze({a.name}, {axis})", (*s[:axis], *s[axis + 1 :])
        elif kind == "broadcast":
            shape = tuple(self.rng.choice((1, 2, 3, 8, 16)) if n == 1 else n for n in s)
            if prod(shape) > 1024:
                return
            text = f"tilus.broadcast_to({a.name}, {shape})"
        elif kind == "layout":
            text, shape = f"tilus.annotate_layout({a.name}, {self.layout(s)})", s
        else:
            return
        self.keep(text, a.dtype, shape, a.exact)

    def view(self) -> None:
        """See the bits of integers, in rows or in what each thread holds, as integers of another width."""
        if self.chance(2):
            self.rows()
            return
        threads = 32 * self.group
        width, other = self.rng.sample((1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 16, 32), 2)
        word = 8 * self.rng.choice(
            [n for n in (1, 2, 3, 4, 5, 6, 7, 12, 15) if n * 8 % width == 0 and n * 8 % other == 0] or [0]
        )
        if not word or word // width * threads > 4096 or word // other * threads > 4096:
            return
        old = self.rng.choice(
            ((threads, word // width), (word // width, threads), (threads * (word // width),))
        )
        kind = f"{self.rng.choice(('int', 'uint'))}{width}"
        before = [
            v
            for v in self.scope
            if v.said and v.shape and v.dtype.is_integer and prod(v.shape) % threads == 0
        ]
        before = [v for v in before if prod(v.shape or ()) // threads * v.dtype.bits % other == 0]
        if before and self.chance(2):
            x = self.rng.choice(before)
            assert x.shape is not None
            word = prod(x.shape) // threads * x.dtype.bits
            name = x.name
        else:
            x = self.a_tile((kind,), old)
            said = self.layout(old, copies=False)
            name = f"tilus.annotate_layout({x.name}, {said})"
            if self.chance(2):
                name = self.keep(name, x.dtype, old).name
                self.scope[-1] = replace(self.scope[-1], said=said)
                if x.dtype.bits >= 8 and not self.chance(3):
                    # A use that wants another layout.
                    met = f"tilus.annotate_layout({x.name}, {self.layout(old)})"
                    self.keep(f"{met} ^ {name}", x.dtype, old)
        if word // other * threads > 4096:
            return
        new = self.rng.choice(((threads, word // other), (threads * (word // other),)))
        d = dtypes.dtype(f"{self.rng.choice(('int', 'uint'))}{other}")
        target = self.layout(new, copies=False)
        made = self.keep(f"tilus.view({name}, tilus.{d}, {new}, layout={target})", d, new)
        if d.bits < 16:
            self.keep(f"{made.name}.to(tilus.int32)", dtypes.int32, new)

    def rows(self) -> None:
        """See the bits of each row as integers of another width."""
        x = self.a_tile((*INTEGERS, *BYTES, *(f"uint{n}" for n in range(1, 8))))
        assert x.shape is not None
        bits = x.shape[-1] * x.dtype.bits
        found = [n for n in (1, 2, 3, 4, 5, 6, 7, 8, 8, 16, 32, 64) if bits % n == 0 and n != x.dtype.bits]
        if not found:
            return
        d = dtypes.dtype(f"{self.rng.choice(('int', 'uint'))}{self.rng.choice(found)}")
        shape = (*x.shape[:-1], bits // d.bits)
        if prod(shape) > 4096:
            return
        seen, extra = shape, ""
        if self.chance(4):
            seen = (prod(shape),)
            extra = f", {seen}"
        made = self.keep(f"tilus.view({x.name}, tilus.{d}{extra})", d, seen)
        if d.bits < 16:
            self.keep(f"{made.name}.to(tilus.int32)", dtypes.int32, seen)

    def product(self) -> None:
        m, n, k = (self.rng.choice(c) for c in ((16, 32, 48, 64), (8, 16, 24, 32, 64), (16, 32, 64)))
        names: list[tuple[str, ...]] = [
            ("float16",) * 2,
            ("bfloat16",) * 2,
            ("tfloat32",) * 2,
            ("int8", "uint8"),
        ]
        names += [("int8", "int8"), ("uint8", "uint8"), ("float64",) * 2]
        names += [("float8_e4m3", "float8_e5m2")] if self.chance(3) else []
        left, right = self.rng.choice(names)
        operands = []
        for name, shape in ((left, (m, k)), (right, (k, n))):
            name = "float32" if name == "tfloat32" else name
            turned = self.chance(2)
            known = None if name in BYTES else Exact(8)
            source = self.input(dtypes.dtype(name), shape[::-1] if turned else shape, known)
            text = f"tilus.load({source.name}, (0, 0), {source.codes.shape})"
            if self.chance(2):
                stage = self.fresh("s")
                self.line(f"{stage} = tilus.shared(tilus.{name}, {source.codes.shape})")
                self.line(f"tilus.store({stage}, {text})")
                text = f"tilus.load({stage}{'.T' if turned else ''})"
                turned = False
            text += ".T" if turned else ""
            operands.append(f"{text}.to(tilus.tfloat32)" if left == "tfloat32" else text)
        d = dtypes.int32 if left in BYTES else dtypes.float64 if left == "float64" else dtypes.float32
        exact = None if left in BYTES else Exact(64.0 * k)
        acc = [v for v in self.scope if v.shape == (m, n) and v.dtype == d and (d.is_integer or v.exact)]
        extra = ""
        if acc and self.chance(2):
            c = self.rng.choice(acc)
            extra = f", {c.name}"
            exact = Exact(64.0 * k + c.exact.bound, c.exact.places) if c.exact else None
        if exact is not None and not exact.fits(d):
            return
        self.keep(f"tilus.dot({operands[0]}, {operands[1]}{extra})", d, (m, n), exact)
