"""Random control flow around pipelined loops: producer and consumers agree with the same source pipelined on sm_80."""

from __future__ import annotations

import importlib.util
import random

import pytest
import torch

PROLOGUE = """
import tilus
from tilus import Tensor, float16, float32, int32

@tilus.inline
def part(a, b, i, first, last, acc, stages):
    for k0 in tilus.pipeline(range(first, last, 32), stages=stages):
        sa, sb = tilus.shared(float16, (64, 32)), tilus.shared(float16, (16, 32))
        tilus.copy_async(sa, a, (i, k0))
        tilus.copy_async(sb, b, (0, k0))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    return acc

@tilus.kernel
def kernel(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float32, "m n"], table: Tensor[int32, "z"], n: int32
):
    tilus.grid(2, warps=4)
    x = tilus.block_id(0)
    acc = tilus.zeros((64, 16), float32)
"""
EPILOGUE = "    tilus.store(c, acc, (tilus.block_id(0) * 64, 0))\n"


class Program:
    """Writes the lines of a random kernel, with a few pipelined loops in it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loops = self.names = 0

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def condition(self) -> str:
        return self.pick(
            "x % 2 == 0", "x % 3 == 1", "x > n", "tilus.load(table, x % 8) > 2", "(x + n) % 4 != 2"
        )

    def pipelined(self) -> list[str]:
        self.loops += 1
        first = self.pick("0", "32 * (x % 3)")
        last = self.pick("64", "96", "32 * (x % 4)", "32 * tilus.load(table, x % 8)")
        return [f"acc = part(a, b, (x % 2) * 64, {first}, {last}, acc, {self.pick('2', '3', '4')})"]

    def inside(self, depth: int, in_loop: bool) -> list[str]:
        return ["    " + line for line in self.block(depth - 1, in_loop)]

    def statement(self, depth: int, in_loop: bool) -> list[str]:
        kind = self.random.random()
        if kind < 0.4 or depth == 0:
            return self.pipelined() if self.loops < 4 else ["acc = acc * 0.5"]
        self.names += 1
        if kind < 0.55:
            orelse = ["else:", *self.inside(depth, in_loop)] if self.random.random() < 0.5 else []
            return [f"if {self.condition()}:", *self.inside(depth, in_loop), *orelse]
        if kind < 0.7:
            turns = self.pick("2", "3", "n", "x % 3")
            return [f"for i{self.names} in range({turns}):", *self.inside(depth, True)]
        if kind < 0.8:
            name = f"w{self.names}"
            head = [f"{name} = 0", f"while {name} < {self.pick('2', 'x % 4')}:", f"    {name} += 1"]
            return [*head, *self.inside(depth, True)]
        if kind < 0.9 and in_loop:
            return [f"if {self.condition()}:", "    x += 1", "    " + self.pick("break", "continue")]
        if kind < 0.94:
            return [f"if {self.condition()}:", "    tilus.store(c, acc, ((x % 2) * 64, 0))", "    return"]
        return ["acc = acc + 1.0"]

    def block(self, depth: int, in_loop: bool) -> list[str]:
        lines: list[str] = []
        for _ in range(self.random.randint(1, 3)):
            lines += self.statement(depth, in_loop)
            if self.random.random() < 0.4:
                lines.append("x += 1")
        return lines


# Programs with two loops and more, at different depths.
@pytest.mark.parametrize("seed", [6, 10, 14, 19, 27, 33, 48, 53])
def test_two_programs_take_the_same_course_as_one(seed, tmp_path):
    program = Program(seed)
    body = "".join(f"    {line}\n" for line in program.block(3, False))
    assert program.loops > 1
    path = tmp_path / f"random_{seed}.py"
    path.write_text(PROLOGUE + body + EPILOGUE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(128, 128, generator=generator).half() / 8
    b = torch.randn(16, 128, generator=generator).half()
    table = torch.randint(0, 5, (8,), generator=generator, dtype=torch.int32)
    found = {}
    for target in ("sm_80", "sm_90a"):
        found[target] = torch.zeros(128, 16)
        report = module.kernel.simulate(a, b, found[target], table, 3, target=target)
        report.raise_if_hazards()
    torch.testing.assert_close(found["sm_90a"], found["sm_80"], rtol=1e-4, atol=1e-4)
    assert "cp.async.bulk" in module.kernel.compile(a, b, found["sm_80"], table, target="sm_90a").ptx
