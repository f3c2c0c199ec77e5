"""What the compiler refuses after the front end: the whole message of each error is a golden."""

from __future__ import annotations

import os

import pytest

import tilus
from tilus import Tensor, constexpr, float8_e4m3, float16, float32, int32, uint3, uint4
from tilus.errors import TilusError

HERE = os.path.dirname(__file__) + os.sep


@tilus.kernel
def too_much_shared(x: Tensor[float16, "m n"]):
    tilus.grid(1, warps=4)
    tile = tilus.shared(float16, (512, 512))
    tilus.store(tile, tilus.load(x, (0, 0), (512, 512)))
    tilus.store(x, tilus.load(tile) + tilus.load(tile), (0, 0))


@tilus.kernel
def dot_of_odd_tiles(x: Tensor[float16, "m n"], y: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    tile = tilus.load(x, (0, 0), (20, 20))
    tilus.store(y, tilus.dot(tile, tile), (0, 0))


@tilus.kernel
def annotated_apart(x: Tensor[float16, "m n"], y: Tensor[float32, "m n"]):
    tilus.grid(1, warps=1)
    a = tilus.load(x, (0, 0), (16, 16))
    acc = tilus.zeros((16, 8), float32, layout=tilus.spatial(4, 8).local(4, 1))
    acc = tilus.dot(a, a[:, 0:8], acc)
    tilus.store(y, acc, (0, 0))


@tilus.kernel
def view_of_other_threads(x: Tensor[float16, "m"], y: Tensor[uint4, "m"]):
    tilus.grid(1, warps=1)
    tile = tilus.load(x, 0, 64, layout=tilus.spatial(32).local(2))
    codes = tilus.view(tile, uint4, (128,), layout=tilus.local(4).spatial(32))
    tilus.device_print("{}", codes.to(int32))


@tilus.kernel
def view_of_fewer_bits(x: Tensor[float16, "m"]):
    tilus.grid(1, warps=1)
    tile = tilus.load(x, 0, 64, layout=tilus.spatial(32).local(2))
    codes = tilus.view(tile, uint4, (256,), layout=tilus.spatial(32).local(8) * tilus.local(1))
    wrong = tilus.view(codes, uint3, (256,), layout=tilus.spatial(32).local(8))
    tilus.device_print("{}", wrong.to(int32))


@tilus.kernel
def fp8_dot(x: Tensor[float8_e4m3, "m n"], y: Tensor[float32, "m n"]):
    tilus.grid(1, warps=1)
    tile = tilus.load(x, (0, 0), (32, 32))
    tilus.store(y, tilus.dot(tile, tile), (0, 0))


@tilus.kernel
def read_before_wait(x: Tensor[float16, "m n"]):
    tilus.grid(1, warps=4)
    tile = tilus.shared(float16, (32, 32))
    tilus.copy_async(tile, x, (0, 0))
    tilus.copy_async_commit()
    tilus.store(x, tilus.load(tile), (0, 0))


@tilus.kernel
def pipeline_of_nothing(x: Tensor[float16, "m n"]):
    m, n = x.shape
    tilus.grid(1, warps=4)
    total = tilus.zeros((32, 32), float16)
    for i in tilus.pipeline(range(0, m, 32), stages=3):
        total = total + tilus.load(x, (i, 0), (32, 32))
    tilus.store(x, total, (0, 0))


@tilus.kernel
def pipeline_under_if(x: Tensor[float16, "m n"]):
    m, n = x.shape
    tilus.grid(1, warps=4)
    total = tilus.zeros((32, 32), float16)
    for i in tilus.pipeline(range(0, m, 32), stages=3):
        tile = tilus.shared(float16, (32, 32))
        if i > 0:
            tilus.copy_async(tile, x, (i, 0))
        total = total + tilus.load(tile)
    tilus.store(x, total, (0, 0))


@tilus.kernel
def scattered_nibbles(x: Tensor[uint4, "m n"], y: Tensor[int32, "m n"]):
    tilus.grid(1, warps=1)
    rows = tilus.arange(32)
    tilus.store(y, tilus.load(x, indices=(rows, rows)).to(int32), indices=(rows, rows))


@tilus.kernel
def cluster(x: Tensor[float32, "m"]):
    tilus.grid(2, warps=1, cluster=2)
    tilus.store(x, tilus.load(x, 0, 32), 0)


@tilus.kernel
def too_many_warps(x: Tensor[float32, "m"], *, warps: constexpr = 64):
    tilus.grid(1, warps=warps)
    tilus.store(x, tilus.load(x, 0, 32), 0)


CASES = {
    "too_much_shared": (too_much_shared, "sm_80"),
    "dot_of_odd_tiles": (dot_of_odd_tiles, "sm_80"),
    "view_of_other_threads": (view_of_other_threads, "sm_80"),
    "view_of_fewer_bits": (view_of_fewer_bits, "sm_80"),
    "fp8_dot": (fp8_dot, "sm_80"),
    "read_before_wait": (read_before_wait, "sm_80"),
    "pipeline_of_nothing": (pipeline_of_nothing, "sm_80"),
    "pipeline_under_if": (pipeline_under_if, "sm_80"),
    "scattered_nibbles": (scattered_nibbles, "sm_80"),
    "cluster": (cluster, "sm_80"),
    "too_many_warps": (too_many_warps, "sm_80"),
    "no_such_target": (fp8_dot, "sm_42"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_that_the_compiler_refuses(name, golden):
    kernel, target = CASES[name]
    source = kernel.source
    with pytest.raises(TilusError) as error:
        tilus.codegen.compile_kernel(source.trace({}, source.default_types({}, 16)), target, assemble=False)
    golden(f"{type(error.value).__name__}: {error.value}\n".replace(HERE, ""), f"{name}.txt")


def test_layouts_that_a_user_sets_apart_are_brought_together_by_conversions():
    source = annotated_apart.source
    made = tilus.codegen.compile_kernel(
        source.trace({}, source.default_types({}, 16)), "sm_80", assemble=False
    )
    assert "mma.sync" in made.ptx
