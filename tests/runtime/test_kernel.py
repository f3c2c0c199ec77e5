"""Launches on CPU tensors: what kinds of arguments work, and which calls make variants."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tilus
from tests.runtime import kernels
from tilus import Tensor, constexpr, float32
from tilus.dtypes import pack
from tilus.errors import HazardFound, LaunchError, TargetNotSupported
from tilus.ir import GlobalType, Symbol
from tilus.runtime import kernel as kernel_module


def variants(kernel: tilus.Kernel) -> int:
    return len(kernel._variants)


def integers(count: int) -> torch.Tensor:
    """Return floats on which a product and a sum are exact, fused or not."""
    return torch.randint(-99, 99, (count,)).float()


def fresh(kernel: tilus.Kernel) -> tilus.Kernel:
    """Return the same kernel without what it has compiled."""
    return tilus.Kernel(kernel.source)


def test_torch_tensors_are_written_in_place() -> None:
    x, y, out = integers(1000), integers(1000), torch.full((1000,), torch.nan)
    assert kernels.scale_add(x, y, out, factor=3.0) is None
    assert torch.equal(out, x * 3.0 + y)


def test_numpy_arrays_are_written_in_place() -> None:
    x, y = (integers(77).numpy() for _ in range(2))
    out = np.full(77, np.nan, np.float32)
    kernels.scale_add(x, y, out=out)
    assert np.array_equal(out, x * 2 + y)


@pytest.mark.parametrize(
    "source",
    [
        torch.randn(9, 70),
        torch.randn(70, 9).t(),
        torch.randn(9, 200)[:, 3:73],
        torch.randn(18, 140)[::2, ::2],
        torch.randn(1, 70).expand(9, 70),
        torch.randn(9, 1).expand(9, 70),
        torch.randn(1, 1),
        torch.randn(0, 5),
        torch.randn(5, 0),
    ],
    ids=lambda t: f"{tuple(t.shape)}-{t.stride()}-{t.storage_offset()}",
)
def test_any_strides_and_offsets(source: torch.Tensor) -> None:
    target = torch.full(source.shape, torch.nan)
    kernels.copy_rows(source, target)
    assert torch.equal(source, target)
    transposed = torch.full(source.shape[::-1], torch.nan).t()
    kernels.copy_rows(source, transposed)
    assert torch.equal(source, transposed)


@pytest.mark.parametrize("offset", range(5))
def test_numpy_views_at_any_offset(offset: int) -> None:
    backing = np.arange(400, dtype=np.int16)
    source = backing[offset : offset + 300].reshape(10, 30)
    target = np.zeros((10, 30), np.int16)
    kernels.copy_rows(source, target)
    assert np.array_equal(source, target)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8,
        torch.int16, torch.int32, torch.int64, torch.bool, torch.uint16, torch.uint32,
    ],
)  # fmt: skip
def test_dtype_is_taken_from_the_tensor_that_it_types(dtype: torch.dtype) -> None:
    source = torch.randint(0, 2, (6, 40)).to(dtype)
    target = torch.zeros_like(source)
    kernels.copy_rows(source, target)
    assert torch.equal(source.view(torch.uint8), target.view(torch.uint8))


def test_ml_dtypes_are_known() -> None:
    source = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    target = np.zeros_like(source)
    kernels.copy_rows(source, target)
    assert np.array_equal(source, target)


def test_dtype_that_is_given_must_fit() -> None:
    with pytest.raises(LaunchError, match="source has dtype float32, expected float16"):
        kernels.copy_rows(torch.zeros(2, 2), torch.zeros(2, 2), dtype=tilus.float16)


@pytest.mark.parametrize("k", [128, 6])
def test_packed_types_are_bytes(k: int) -> None:
    codes = np.random.default_rng(k).integers(0, 16, (3, k), dtype=np.uint8)
    out = np.zeros((3, k), np.uint8)
    kernels.unpack_codes(pack(codes, tilus.uint4), out)
    assert np.array_equal(out, codes)


def test_pointers() -> None:
    source, target = torch.randn(100), torch.zeros(100)
    kernels.through_pointer(source, target)
    assert torch.equal(source, target)


def test_scalars_of_every_type() -> None:
    out = torch.zeros(96)
    kernels.scalars(out, 3, 0.5, 1.0078125, 2.25, True)
    assert out.tolist() == [0.5 + 1.0078125 + 2.25 + 7] * 96
    kernels.scalars(out, a=3, b=-0.5, c=0, d=0, e=False, f=2**40)
    assert out.tolist() == [-0.5] * 96


def test_tma_reads_what_the_tensor_map_says() -> None:
    source = torch.randn(100, 128).to(torch.float16)
    target = torch.zeros_like(source)
    kernels.tma_copy(source, target)
    assert torch.equal(source, target)


def test_number_of_rows_makes_no_variants() -> None:
    kernel = fresh(kernels.copy_rows)
    for m in (1, 2, 3, 16, 17, 48):
        kernel(torch.zeros(m, 64), torch.zeros(m, 64))
    assert variants(kernel) == 1
    kernel(torch.zeros(4, 60), torch.zeros(4, 60))
    kernel(torch.zeros(4, 44), torch.zeros(4, 44))
    assert variants(kernel) == 2


def test_constexprs_are_told_apart_by_type_and_value() -> None:
    @tilus.kernel
    def program(out: Tensor[float32, "n"], *, value: constexpr):
        tilus.grid(1, warps=1)
        tilus.store(out, tilus.full([32], float32.bits if value is True else value, float32), [0])

    out = torch.zeros(32)
    seen = []
    for value in (1, True, 1.0, 0.0, -0.0, 1):
        program(out, value=value)
        seen.append(out[0].item())
    assert [str(v) for v in seen] == ["1.0", "32.0", "1.0", "0.0", "-0.0", "1.0"]


def test_constexpr_that_was_changed_in_place_makes_a_new_variant() -> None:
    @tilus.kernel
    def program(out: Tensor[float32, "n"], *, values: constexpr):
        tilus.grid(1, warps=1)
        tilus.store(out, tilus.full([32], values[0], float32), [0])

    out, values = torch.zeros(32), [1.5]
    program(out, values=values)
    values[0] = 2.5
    program(out, values=values)
    assert out[0] == 2.5


def test_bind_gives_defaults() -> None:
    bound = kernels.scale_add.bind(factor=5.0)
    x = integers(10)
    out = torch.zeros(10)
    bound(x, x, out)
    assert torch.equal(out, x * 5 + x)
    bound(x, x, out, factor=1.0)
    assert torch.equal(out, x + x)
    assert repr(bound) == "<kernel scale_add, factor=5.0>"
    assert bound.__name__ == "scale_add"


def test_compile_needs_no_tensors() -> None:
    compiled = kernels.scale_add.compile(target="sm_80", block=256)
    assert (compiled.name, compiled.target, compiled.threads) == ("scale_add", "sm_80", 128)
    assert ".target sm_80" in compiled.ptx
    # Sizes and alignment of 16 bytes: accesses are vectors.
    assert "ld.global.v2" in compiled.ptx or "ld.global.v4" in compiled.ptx


def test_compile_takes_types_and_tensors() -> None:
    def strides(compiled: Any) -> Any:
        return compiled.kernel.params[0].type.strides

    compiled = kernels.copy_rows.compile(torch.zeros(7, 33), torch.zeros(7, 33), target="sm_80")
    assert compiled.kernel.params[0].type == GlobalType(
        float32, (Symbol("m"), Symbol("n")), (Symbol("n"), 1), 16
    )
    assert strides(kernels.copy_rows.compile(target="sm_80", dtype=float32)) == (Symbol("source_s0", 16), 1)
    loose = GlobalType(float32, (Symbol("m"), Symbol("n")), (Symbol("n"), 1), 4)
    compiled = kernels.copy_rows.compile(loose, loose, target="sm_80", dtype=float32)
    assert ".v2" not in compiled.ptx
    assert ".v4" not in compiled.ptx
    with pytest.raises(LaunchError, match=r"source is given the type .*float16|source is given the type"):
        kernels.copy_rows.compile(loose, loose, target="sm_80", dtype=tilus.float16)


def test_simulate_returns_the_report() -> None:
    x = torch.zeros(128)
    report = kernels.scale_add.simulate(x, x.clone(), torch.zeros(128), target="sm_80")
    assert report.hazards == []
    assert report.counters["global_bytes_read"] == 2 * 128 * 4
    assert report.counters["global_load_sectors"] == report.counters["global_load_sectors_ideal"] == 2 * 16


def test_hazard_is_an_error_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HazardFound, match="global-race") as error:
        kernels.same_place(torch.zeros(32))
    assert error.value.location is not None
    assert error.value.location.file == kernels.__file__
    assert "tilus.store(out" in str(error.value)
    report = kernels.same_place.simulate(torch.zeros(32))
    assert {hazard.kind for hazard in report.hazards} == {"global-race"}
    monkeypatch.setenv("TILUS_SIMULATOR_CHECKS", "0")
    kernels.same_place(torch.zeros(32))
    monkeypatch.setenv("TILUS_SIMULATOR_CHECKS", "some")
    with pytest.raises(LaunchError, match="TILUS_SIMULATOR_CHECKS is 'some', expected 0 or 1"):
        kernels.same_place(torch.zeros(32))


def test_target_of_the_simulator_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = fresh(kernels.scale_add)
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_75")
    kernel(torch.zeros(8), torch.zeros(8), torch.zeros(8))
    assert [binary.target for binary in kernel._variants.values()] == ["sm_75"]
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm75")
    with pytest.raises(TargetNotSupported, match="TILUS_SIMULATOR_TARGET is 'sm75'"):
        kernel(torch.zeros(8), torch.zeros(8), torch.zeros(8))


@tilus.kernel
def größe(länge: Tensor[float32, "é"], *, α: constexpr = 2.0):
    tilus.grid(1, warps=1)
    tilus.store(länge, tilus.load(länge, 0, 32) * α, 0)


@tilus.kernel
def _(x: Tensor[float32, "n"]):
    tilus.grid(1, warps=1)
    tilus.store(x, tilus.load(x, 0, 32) * 2.0, 0)


@pytest.mark.parametrize("kernel", [größe, _], ids=["letters", "underscore"])
def test_names_of_python_become_names_of_ptx(kernel: tilus.Kernel) -> None:
    kernel.compile(target="sm_80")
    x = torch.ones(32)
    kernel(x)
    assert x.eq(2).all()


@pytest.mark.parametrize("wrong", [90, None, "sm_91"])
def test_a_target_that_is_none_is_named(wrong: object) -> None:
    with pytest.raises(TargetNotSupported, match=f"no target named {wrong!r}"):
        kernels.scale_add.compile(target=wrong)


def test_prepare_compiles_and_launches_nothing() -> None:
    kernel = fresh(kernels.scale_add)
    x, out = torch.ones(64), torch.zeros(64)
    kernel.prepare(x, x, out)
    assert variants(kernel) == 1
    assert torch.equal(out, torch.zeros(64))
    kernel(x, x, out)
    assert variants(kernel) == 1
    meta = torch.empty(64, device="meta")
    kernel.prepare(meta, meta, meta)
    assert variants(kernel) == 1
    kernel.prepare(meta, meta, meta, target="sm_80")
    assert variants(kernel) == 2


def test_threads_compile_a_variant_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = fresh(kernels.scale_add)
    made = []
    original = kernel_module.compile_variant

    def counting(*args: Any, **kwargs: Any) -> Any:
        made.append(threading.get_ident())
        return original(*args, **kwargs)

    monkeypatch.setattr(kernel_module, "compile_variant", counting)
    monkeypatch.setenv("TILUS_CACHE", "0")
    x = integers(300)
    outs = [torch.zeros(300) for _ in range(6)]
    threads = [threading.Thread(target=kernel, args=(x, x, out), kwargs={"factor": 9.0}) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(torch.equal(out, x * 9 + x) for out in outs)


def test_device_print_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    @tilus.kernel
    def program(x: Tensor[float32, "n"]):
        tilus.grid(1, warps=1)
        tilus.device_print("n is {}", x.shape[0])

    program(torch.zeros(5))
    assert "n is 5" in capsys.readouterr().out


@tilus.kernel
def row_sums(
    x: Tensor["dtype", "rows d"], out: Tensor[float32, "rows"], *, dtype: constexpr, d: constexpr
) -> None:
    tilus.grid(x.shape[0], warps=1)
    i = tilus.block_id()
    total = tilus.sum(tilus.cast(tilus.load(x, (i, 0), (1, d)), float32), axis=1)
    tilus.store(out, total, i)


def test_sizes_and_dtypes_that_are_constexprs_come_from_the_tensors() -> None:
    kernel = fresh(row_sums)
    for shape, dtype in (((3, 64), torch.float16), ((3, 32), torch.float16), ((2, 32), torch.float32)):
        x, out = torch.randint(-9, 9, shape).to(dtype), torch.full(shape[:1], torch.nan)
        kernel(x, out)
        assert torch.equal(out, x.float().sum(1))
    assert variants(kernel) == 3
    x = torch.ones(3, 64)
    with pytest.raises(LaunchError, match="expected 32"):
        kernel(x, torch.empty(3), d=32)
    assert kernel.specialize(x, torch.empty(3))[0] == {"dtype": tilus.float32, "d": 64}


def test_a_packed_tensor_does_not_say_its_last_size() -> None:
    @tilus.kernel
    def codes(x: Tensor[tilus.uint4, "rows d"], out: Tensor[float32, "rows"], *, d: constexpr) -> None:
        tilus.grid(x.shape[0], warps=1)
        tilus.store(out, tilus.full(1, float(d)), tilus.block_id())

    packed, out = torch.zeros(3, 32, dtype=torch.uint8), torch.empty(3)
    with pytest.raises(tilus.TilusError, match="takes a value for its constexpr parameter d"):
        codes(packed, out)
    codes(packed, out, d=64)
    assert out.eq(64).all()
