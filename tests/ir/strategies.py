"""Random small kernels: scalar and tile arithmetic, branches and loops, whose every value reaches memory."""

from __future__ import annotations

from hypothesis import strategies as st

from tilus.dtypes import DType, boolean, float32, int8, int32, uint32
from tilus.ir import Builder, GlobalType, Kernel, Region, ScalarType, Value, ops

INTEGERS = (int32, uint32, int8)
DTYPES = (*INTEGERS, float32, boolean)
SHAPE = (2, 4)
KINDS = {
    "int": ("add", "sub", "mul", "min", "max", "mod", "floordiv", "shl", "shr", "mulhi", "and", "or", "xor"),
    "uint": ("add", "sub", "mul", "min", "max", "mod", "floordiv", "shl", "shr", "mulhi", "and", "or", "xor"),
    "float": ("add", "sub", "mul", "min", "max", "div"),
    "bool": ("and", "or", "xor"),
}
CONSTANTS = {
    "int": st.sampled_from([0, 1, -1, 2, 3, 16, 127, -128]),
    "uint": st.sampled_from([0, 1, 2, 3, 16, 255, 2**32 - 1]),
    "float": st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 3e38, 1e-40]),
    "bool": st.booleans(),
}


class Generator:
    """Draws operations on values that are in scope."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.builder = Builder()
        # Values in scope.
        self.scope: list[Value] = []
        self.depth = 0

    def pick(self, dtype: DType, tile: bool) -> Value:
        """Return a value of a dtype: one in scope, or a new constant."""
        found = [v for v in self.scope if v.type.dtype == dtype and isinstance(v.type, ScalarType) != tile]
        if found and self.draw(st.integers(0, 3)):
            return self.draw(st.sampled_from(found))
        value = self.draw(CONSTANTS[dtype.kind])
        made = self.builder.constant(value if dtype.bits > 8 or dtype == boolean else value % 128, dtype)
        return self.builder.emit(ops.Splat, made, SHAPE).result if tile else made

    def keep(self, operation: ops.Operation) -> None:
        self.scope += operation.results

    def step(self) -> None:
        """Emit one operation."""
        choices = [self.arithmetic] * 6 + [self.conversion, self.choice, self.reduction]
        if self.depth < 2:
            choices += [self.branch, self.loop]
        self.draw(st.sampled_from(choices))()

    def arithmetic(self) -> None:
        dtype, tile = self.draw(st.sampled_from(DTYPES)), self.draw(st.booleans())
        kind = self.draw(st.sampled_from((*KINDS[dtype.kind], "compare", "unary")))
        a = self.pick(dtype, tile)
        if kind == "unary":
            unary = "not" if dtype == boolean else self.draw(st.sampled_from(["neg", "abs"]))
            self.keep(self.builder.emit(ops.Unary, unary, a))
            return
        b = a if self.draw(st.integers(0, 5)) == 0 else self.pick(dtype, tile)
        if kind == "compare":
            comparison = "eq" if dtype == boolean else self.draw(st.sampled_from(["eq", "ne", "lt", "ge"]))
            self.keep(self.builder.emit(ops.Compare, comparison, a, b))
        else:
            self.keep(self.builder.emit(ops.Binary, kind, a, b))

    def conversion(self) -> None:
        source, target = self.draw(st.sampled_from(DTYPES)), self.draw(st.sampled_from(DTYPES))
        self.keep(self.builder.emit(ops.Cast, self.pick(source, self.draw(st.booleans())), target))

    def choice(self) -> None:
        dtype, tile = self.draw(st.sampled_from(DTYPES)), self.draw(st.booleans())
        cond, a, b = self.pick(boolean, tile), self.pick(dtype, tile), self.pick(dtype, tile)
        self.keep(self.builder.emit(ops.Select, cond, a, b))

    def reduction(self) -> None:
        x = self.pick(self.draw(st.sampled_from([int32, float32])), True)
        kind = self.draw(st.sampled_from(["max", "min"]))
        made = self.builder.emit(ops.Reduce, x, self.draw(st.integers(0, 1)), kind).result
        self.keep(self.builder.emit(ops.Broadcast, made, SHAPE))

    def carried(self) -> list[Value]:
        count = self.draw(st.integers(0, 2))
        return [self.pick(self.draw(st.sampled_from(DTYPES)), self.draw(st.booleans())) for _ in range(count)]

    def block(self, args: list[Value], like: list[Value], leave: bool) -> list[ops.Operation]:
        """Draw a region that yields values of the types of `like`, or leaves the loop around."""
        outer, self.scope = self.scope, self.scope + args
        self.depth += 1
        with self.builder.region() as made:
            for _ in range(self.draw(st.integers(0, 3))):
                self.step()
            values = tuple(
                v
                if self.draw(st.integers(0, 3)) == 0
                else self.pick(v.type.dtype, not isinstance(v.type, ScalarType))
                for v in like
            )
            last = self.draw(st.sampled_from([ops.Break, ops.Continue])) if leave else ops.Yield
            self.builder.emit(last, values)
        self.depth -= 1
        self.scope = outer
        return made

    def branch(self) -> None:
        cond, like = self.pick(boolean, False), self.carried()
        then, orelse = self.block([], like, False), self.block([], like, False)
        self.keep(self.builder.emit(ops.If, cond, Region((), tuple(then)), Region((), tuple(orelse))))

    def loop(self) -> None:
        start, stop = (self.builder.constant(self.draw(st.integers(-1, 3)), int32) for _ in range(2))
        step = self.builder.constant(self.draw(st.sampled_from([1, 2, -1])), int32)
        inits = self.carried()
        args = [Value(v.type) for v in inits]
        index = Value(ScalarType(int32), "i")
        outer, self.scope = self.scope, [*self.scope, index, *args]
        self.depth += 1
        with self.builder.region() as body:
            for _ in range(self.draw(st.integers(0, 2))):
                self.step()
            if self.draw(st.booleans()):
                cond = self.pick(boolean, False)
                leaving = self.block([], args, True)
                with self.builder.region() as staying:
                    self.builder.emit(ops.Yield)
                self.builder.emit(ops.If, cond, Region((), tuple(leaving)), Region((), tuple(staying)))
            values = tuple(
                v if self.draw(st.booleans()) else self.pick(v.type.dtype, not isinstance(v.type, ScalarType))
                for v in args
            )
            self.builder.emit(ops.Yield, values)
        self.depth -= 1
        self.scope = outer
        region = Region((index, *args), tuple(body))
        self.keep(self.builder.emit(ops.For, start, stop, step, tuple(inits), body=region))


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    """Return a kernel of parameters %x: i32, %y: f32, %flag: bool and an output [64, 2, 4] for each dtype."""
    generator = Generator(draw)
    builder = generator.builder
    scalars = tuple(Value(ScalarType(d), n) for d, n in ((int32, "x"), (float32, "y"), (boolean, "flag")))
    outputs = {d: Value(GlobalType(d, (64, *SHAPE), (8, 4, 1)), f"out_{d.short}") for d in DTYPES}
    generator.scope += scalars
    with builder.region() as grid:
        one = builder.constant(1)
        builder.emit(ops.Yield, (one, one, one))
    with builder.region() as body:
        for _ in range(draw(st.integers(1, 8))):
            generator.step()
        zero = builder.constant(0)
        for number, value in enumerate(generator.scope[-40:]):
            dtype = value.type.dtype
            tile = (
                builder.emit(ops.Splat, value, SHAPE).result if isinstance(value.type, ScalarType) else value
            )
            place = builder.constant(number)
            builder.emit(
                ops.StoreGlobal, outputs[dtype], tile, (place, zero, zero), None, checked=(True,) * 3
            )
        builder.emit(ops.Return)
    return Kernel(
        "random", (*scalars, *outputs.values()), Region((), tuple(grid)), Region((), tuple(body)), warps=1
    )
