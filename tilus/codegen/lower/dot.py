"""Lowering of dot: the operands' layouts are divided by an instruction's, which says what to multiply with what."""

from __future__ import annotations

from tilus.codegen.atoms.mma import BY_NAME, MmaAtom
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.lower.context import Context, lowers
from tilus.codegen.registers import Tile, container_type, elements_of, tile_of
from tilus.errors import LayoutConflict
from tilus.ir import ops
from tilus.layout import LayoutError, RegisterLayout, tile_by
from tilus.layout.tiling import Tiling, explain_tile_by


@lowers(ops.Dot)
def lower_dot(ctx: Context, op: ops.Dot) -> None:
    if op.atom is None:
        raise LayoutConflict("a dot has no instruction after layout inference")
    atom = BY_NAME[op.atom]
    a, b, c = ctx.tile(op.a), ctx.tile(op.b), ctx.tile(op.c)
    pairing = pair(a.layout, b.layout, c.layout, atom)
    w = ctx.w
    fragments_a = Fragments(w, a, pairing.a)
    fragments_b = Fragments(w, b, pairing.b)
    accumulators = Fragments(w, c, pairing.c)
    for k in range(pairing.k_steps):
        for (row, column), qc in pairing.outputs.items():
            qa, qb = pairing.a_of[row, k], pairing.b_of[k, column]
            accumulators.set(
                qc, multiply(w, atom, fragments_a.get(qa), fragments_b.get(qb), accumulators.get(qc))
            )
    ctx.values[op.result] = accumulators.tile()


class Pairing:
    """Which instances of the operands' tiles meet in each thread."""

    def __init__(self, a: Tiling, b: Tiling, c: Tiling) -> None:
        self.a, self.b, self.c = a, b, c
        self.k_steps = a.quotient.shape[1]
        self.outputs = {c.quotient.element_index(q): q for q in range(c.quotient.elements)}
        self.a_of = {a.quotient.element_index(q): q for q in range(a.quotient.elements)}
        self.b_of = {b.quotient.element_index(q): q for q in range(b.quotient.elements)}


def pair(a: RegisterLayout, b: RegisterLayout, c: RegisterLayout, atom: MmaAtom) -> Pairing:
    """Check that three layouts fit an instruction and one another; say why where they don't."""
    try:
        tilings = [explain_tile_by(x, y) for x, y in ((a, atom.a), (b, atom.b), (c, atom.c))]
    except LayoutError as error:
        raise LayoutConflict(f"dot with {atom.name}: {error}") from None
    made = Pairing(*tilings)
    qa, qb, qc = (t.quotient for t in tilings)
    for group in range(qc.threads):
        row, column = qc.thread_index(group)
        if qa.thread_index(group) != (row, 0):
            raise LayoutConflict(
                f"dot: the rows of a, {a}, are not with the threads that hold them in c, {c}"
            )
        if qb.thread_index(group) != (0, column):
            raise LayoutConflict(
                f"dot: the columns of b, {b}, are not with the threads that hold them in c, {c}"
            )
    for row, column in made.outputs:
        for k in range(made.k_steps):
            if (row, k) not in made.a_of or (k, column) not in made.b_of:
                raise LayoutConflict(f"dot: a thread that holds a part of c, {c}, lacks the operands for it")
    return made


def fits(a: RegisterLayout, b: RegisterLayout, c: RegisterLayout, atom: MmaAtom) -> bool:
    """Tell whether three layouts fit an instruction and one another."""
    if any(tile_by(x, y) is None for x, y in ((a, atom.a), (b, atom.b), (c, atom.c))):
        return False
    try:
        pair(a, b, c, atom)
    except LayoutConflict:
        return False
    return True


class Fragments:
    """The registers of each instance of an instruction's operand in a tile."""

    def __init__(self, w: Writer, tile: Tile, tiling: Tiling) -> None:
        self.w, self.source, self.tiling = w, tile, tiling
        self._cache: dict[int, list[V]] = {}
        self._elements: list[V] | None = None

    def get(self, q: int) -> list[V]:
        """Return the containers of instance `q`, in the instruction's order."""
        if q in self._cache:
            return self._cache[q]
        order = self.tiling.elements(q)
        dtype = self.source.dtype
        per = max(1, 32 // dtype.bits)
        parts = [order[i : i + per] for i in range(0, len(order), per)]
        if all(p[0] % per == 0 and p == list(range(p[0], p[0] + per)) for p in parts):
            made = [self.source.regs[p[0] // per] for p in parts]
        else:
            if self._elements is None:
                self._elements = elements_of(self.w, self.source)
            atom = self.tiling.atom
            made = list(tile_of(self.w, dtype, atom, [self._elements[e] for e in order]).regs)
        self._cache[q] = made
        return made

    def set(self, q: int, regs: list[V]) -> None:
        """Give an instance new registers."""
        self._cache[q] = regs

    def tile(self) -> Tile:
        """Return the tile made of all instances."""
        dtype, layout = self.source.dtype, self.source.layout
        per = max(1, 32 // dtype.bits)
        regs: list[V | None] = [None] * len(self.source.regs)
        for q in range(self.tiling.quotient.elements):
            order, have = self.tiling.elements(q), self.get(q)
            for i, reg in enumerate(have):
                part = order[i * per : (i + 1) * per]
                if part[0] % per or part != list(range(part[0], part[0] + per)):
                    return self._by_elements()
                regs[part[0] // per] = reg
        return Tile(dtype, layout, tuple(r for r in regs if r is not None))

    def _by_elements(self) -> Tile:
        elements: list[V | None] = [None] * self.source.count
        for q in range(self.tiling.quotient.elements):
            piece = Tile(self.source.dtype, self.tiling.atom, tuple(self.get(q)))
            for element, value in zip(self.tiling.elements(q), elements_of(self.w, piece), strict=True):
                elements[element] = value
        return tile_of(self.w, self.source.dtype, self.source.layout, [e for e in elements if e is not None])


def multiply(w: Writer, atom: MmaAtom, a: list[V], b: list[V], c: list[V]) -> list[V]:
    """Emit one instruction and return the new accumulators."""
    letters = {"i32": "r", "float": "f", "double": "d"}
    out = container_type(atom.c_dtype)
    # tf32 operands travel as untyped 32-bit registers.
    ab = [w.convert("bitcast", r, "i32") if r.type == "float" else r for r in (*a, *b)]
    count = len(c)
    names = [f"${i}" for i in range(count + len(ab) + count)]
    groups, at = [], 0
    for size in (count, len(a), len(b), count):
        groups.append("{" + ", ".join(names[at : at + size]) + "}")
        at += size
    constraints = [f"={letters[out]}"] * count + [letters[r.type] for r in ab] + [letters[out]] * count
    result = out if count == 1 else "{ " + ", ".join([out] * count) + " }"
    made = w.asm(result, f"{atom.text} {', '.join(groups)};", ",".join(constraints), *ab, *c, convergent=True)
    return [made] if count == 1 else [w.member(made, i, out) for i in range(count)]
