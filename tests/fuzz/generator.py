"""Draws random kernels: statements, control flow around them, and the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.draft import Argument, Exact, Program, Var
from tests.fuzz.memory import Memory
from tilus import dtypes


class Generator(Memory):
    """Draws one program; programs of one seed are equal."""

    def nested(self, steps: int, then: Callable[[], None] | None = None) -> None:
        """Write a block whose names do not leave it."""
        scope, shared = list(self.scope), list(self.shared)
        self.indent += 1
        self.depth += 1
        for _ in range(steps):
            self.statement()
        if then is not None:
            then()
        self.depth -= 1
        self.indent -= 1
        self.scope, self.shared = scope, shared

    def mutable(self, before: list[Var]) -> Var | None:
        """Return a tile or scalar from before a loop that may change in it."""
        found = [
            v for v in before
            if (v.dtype.is_integer or v.dtype.is_boolean or (v.exact and Exact(8).fits(v.dtype))) and v.dtype.bits != 1
            and v.name not in self.frozen
        ]  # fmt: skip
        return self.rng.choice(found) if found else None

    def change(self, v: Var) -> None:
        """Assign a new value to a name of before; floats stay small."""
        if v.shape is None:
            if v.dtype.name == "int32":
                self.line(f"{v.name} = {v.name} {self.rng.choice(('+', '-', '^'))} {self.a_scalar()}")
            return
        if v.dtype.bits < 8 or v.dtype.name in ("float8_e4m3", "float8_e5m2"):
            other = [
                o
                for o in self.scope
                if o.dtype == v.dtype and o.shape == v.shape and (o.exact or not v.dtype.is_float)
            ]
            self.line(f"{v.name} = {self.rng.choice(other).name}")
            return
        if self.chance(3) and len(v.shape) == 2:
            self.line(f"{v.name} = tilus.reshape({v.name}.T, {v.shape})")
        text, d, shape, exact = self.binary_of(v)
        assert d == v.dtype
        assert shape == v.shape
        if d.is_float:
            if exact is None:
                return
            text = f"tilus.minimum(tilus.maximum(tilus.trunc({text}), -8.0), 8.0)"
        self.line(f"{v.name} = {text}")

    def widen(self, names: list[Var]) -> None:
        """Note that floats that a loop or branch changes are small and whole, or what they were."""
        for v in names:
            if v.exact is not None:
                wide = replace(v, exact=Exact(max(v.exact.bound, 8), v.exact.places))
                if not wide.exact.fits(v.dtype):  # type: ignore[union-attr]
                    wide = replace(v, exact=None)
                self.scope = [wide if o.name == v.name else o for o in self.scope]

    def control(self) -> None:
        if self.depth > 2:
            return
        kind = self.rng.choice(("for", "for", "while", "if", "if", "static", "pipeline"))
        chosen = [v for v in (self.mutable(self.scope) for _ in range(self.rng.randint(1, 3))) if v]
        changed = list({v.name: v for v in chosen}.values())
        self.widen(changed)
        changed = [v for c in changed for v in self.scope if v.name == c.name]
        changed = [v for v in changed if v.exact or not v.dtype.is_float]

        def body() -> None:
            for v in changed:
                self.change(v)

        steps = self.rng.randint(0, 3)
        if kind == "if":
            self.line(f"if {self.condition()}:")
            self.nested(steps, lambda: (body(), self.line("pass")) and None)
            if self.chance(2):
                self.line("else:")
                self.nested(self.rng.randint(0, 2), lambda: (body(), self.line("pass")) and None)
            return
        leave = ""
        if kind in ("for", "while") and self.chance(3):
            leave = (
                f"if {self.condition()}:\n"
                + "    " * (self.indent + 2)
                + self.rng.choice(("break", "continue"))
            )
        if kind == "while":
            fuel = self.fresh("fuel")
            self.line(f"{fuel} = n0 * 0")
            self.line(f"while {fuel} < {self.rng.randint(1, 4)} and ({self.condition()}):")
            self.indent += 1
            self.line(f"{fuel} += 1")
            self.indent -= 1
        elif kind == "static":
            index = self.fresh("i")
            self.line(f"for {index} in tilus.static_range({self.rng.randint(1, 3)}):")
        else:
            index = self.fresh("i")
            bounds = self.rng.choice(("3", "n1", "1, 4", "0, 8, 3", "3, 0, -1", "n1, 4", "0"))
            if kind == "pipeline":
                self.pipeline(index, body)
                return
            loop = f"range({bounds})"
            if self.chance(5):
                loop = f"tilus.unroll({loop}, {self.rng.choice((2, 3))})"
            self.line(f"for {index} in {loop}:")
            self.scope.append(Var(index, dtypes.int32, None))
        if leave:
            scope = list(self.scope)
            self.indent += 1
            if self.chance(2):
                body()
            self.line(leave)
            self.indent -= 1
            self.scope = scope
        self.nested(steps, lambda: (body(), self.line("pass")) and None)
        self.scope = [v for v in self.scope if not v.name.startswith("i")]

    def pipeline(self, index: str, body: Callable[[], None]) -> None:
        d = dtypes.dtype(self.rng.choice(("int32", "float32", "float16", "int8", "int64")))
        shape = self.shape(512, (1, 2))
        exact = Exact(4) if d.is_float else None
        turns = self.rng.randint(0, 5)
        source = self.input(
            d, (max(turns, 1) * shape[0] + self.rng.choice((0, 0, 5, -1)) or 1, *shape[1:]), exact
        )
        total = self.fresh()
        wide = dtypes.int32 if d.is_integer else dtypes.float32
        self.line(f"{total} = tilus.zeros({shape}, tilus.{wide})")
        start, step = self.rng.choice((("0", 1), ("0", shape[0])))
        end = turns * step
        loop = f"tilus.pipeline(range({start}, {end}, {step}), stages={self.rng.randint(2, 4)})"
        self.line(f"for {index} in {loop}:")
        self.indent += 1
        place = index if step > 1 else f"{index} * {shape[0]}"
        rest = ", 0" * (len(shape) - 1)
        part, held = self.fresh(), self.fresh("s")
        self.line(f"{held} = tilus.shared(tilus.{d}, {shape})")
        self.line(f"tilus.copy_async({held}, {source.name}, ({place}{rest},))")
        self.line(f"{part} = tilus.load({held})")
        self.line(f"{total} += {part}.to(tilus.{wide})")
        self.indent -= 1
        self.depth += 1
        self.indent += 1
        scope = list(self.scope)
        self.scope.append(Var(part, d, shape, exact))
        body()
        self.scope = scope
        self.indent -= 1
        self.depth -= 1
        self.scope.append(Var(total, wide, shape, None if wide.is_integer else Exact(4 * 6)))

    def groups(self) -> None:
        """Let groups of warps compute for themselves, from memory and to memory."""
        if self.depth or self.warps < 2:
            return
        split = self.rng.randint(1, self.warps - 1)
        self.line("tilus.sync()")
        for first, count in ((0, split), (split, self.warps - split)):
            if self.chance(5):
                continue
            self.line(f"with tilus.warps({first}, {count}):")
            scope, self.scope = self.scope, [v for v in self.scope if v.shape is None]
            self.group, self.frozen = count, frozenset(v.name for v in self.scope)
            self.nested(self.rng.randint(1, 4), lambda: (self.leaves(2), self.line("pass")) and None)
            self.group, self.frozen = self.warps, frozenset()
            self.scope = scope
        self.line("tilus.sync()")

    def leave(self) -> None:
        """Return early in some blocks, perhaps after a store."""
        self.line(f"if {self.condition()}:")
        self.nested(self.rng.randint(0, 1), lambda: (self.leaves(1), self.line("return")) and None)

    def leaves(self, count: int) -> None:
        for v in self.rng.sample(self.scope, min(count, len(self.scope))):
            self.finish(v)

    # The program.

    def statement(self) -> None:
        choices: list[tuple[int, Callable[[], object]]] = [
            (3, self.load), (2, self.make), (6, self.binary), (3, self.unary), (1, self.bits), (3, self.compare),
            (3, self.where), (5, self.cast), (4, self.reduction), (2, self.scan), (1, self.combine), (2, self.order),
            (6, self.reshaping), (2, self.view), (2, self.product), (4, self.through_shared), (2, self.read_again),
            (2, self.indexed), (2, self.atomic), (1, self.copy), (2, self.scalar), (4, self.control), (1, self.groups),
        ]  # fmt: skip
        if self.depth == 0 and self.group == self.warps:
            choices.append((1, self.leave))
        weights = [w for w, _ in choices]
        self.rng.choices([f for _, f in choices], weights)[0]()

    def program(self) -> Program:
        """Draw a program."""
        for _ in range(self.rng.randint(3, self.size)):
            self.statement()
            if len(self.scope) > 3 and self.chance(3):
                self.leaves(1)
        for v in self.scope[-6:]:
            self.finish(v)
        head = [
            "import tilus.lang as tilus",
            "from tilus.layout import Digit, RegisterLayout",
            "",
            *self.layouts,
            "",
        ]
        head += ["", "@tilus.inline", "def later(a, b):", "    return tilus.where(b % 3 != 0, b, a)", ""]
        head += [
            "",
            "@tilus.inline",
            "def affine(a, b):",
            "    return a[0] * b[0], b[0] * a[1] + b[1]",
            "",
            "",
        ]
        params = [f"{a.name}: tilus.Tensor[tilus.{a.dtype}, {self.dims(a)!r}]" for a in self.arguments]
        head += [f"def kernel({', '.join([*params, 'n0: tilus.int32', 'n1: tilus.int32'])}):"]
        head += [f"    tilus.grid({self.blocks}, warps={self.warps})"]
        scalars = [self.rng.choice((0, 1, 2, 5, -1)), self.rng.choice((0, 1, 2, 3))]
        return Program("\n".join([*head, *self.lines]) + "\n", self.arguments, scalars)

    def dims(self, a: Argument) -> str:
        return " ".join(f"{a.name}_{i}" if a.named else str(n) for i, n in enumerate(a.codes.shape))
