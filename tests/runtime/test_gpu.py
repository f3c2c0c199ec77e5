"""Launches on a real GPU: streams, devices, CUDA graphs, threads, and packages that were compiled ahead of time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import tilus
from tests.runtime import kernels
from tilus.errors import LaunchError
from tilus.runtime import driver
from tilus.runtime.aot import VariantRequest, build

pytestmark = pytest.mark.gpu


def fresh(kernel: tilus.Kernel) -> tilus.Kernel:
    return tilus.Kernel(kernel.source)


def values(count: int) -> torch.Tensor:
    return torch.randint(-99, 99, (count,), device="cuda").float()


def test_launch_gives_what_torch_gives() -> None:
    for count in (1, 1000, 4096):
        x, y, out = values(count), values(count), torch.full((count,), torch.nan, device="cuda")
        for _ in range(3):
            kernels.scale_add(x, y, out, factor=3.0)
        assert torch.equal(out, x * 3 + y)


def test_any_strides_and_alignment() -> None:
    backing = torch.randn(40 * 100 + 7, device="cuda")
    target = torch.zeros(40, 90, device="cuda")
    for offset in (0, 1, 2, 4):
        source = backing[offset : offset + 4000].view(40, 100)[:, :90]
        for _ in range(2):
            kernels.copy_rows(source, target.zero_())
            assert torch.equal(source, target)


def test_scalars_and_pointers() -> None:
    out = torch.zeros(96, device="cuda")
    for flag in (True, False):
        kernels.scalars(out, 3, 0.5, 1.0078125, 2.25, flag)
        assert out.tolist() == [0.5 + 1.0078125 + 2.25 + 7 * flag] * 96
    source, target = torch.randn(100, device="cuda"), torch.zeros(100, device="cuda")
    kernels.through_pointer(source, target)
    assert torch.equal(source, target)


def test_tensor_maps() -> None:
    if not driver.target(torch.cuda.current_device()).has("tma"):
        pytest.skip("this GPU has no TMA")
    for shape in ((64, 64), (100, 128), (300, 72)):
        source = torch.randn(shape, device="cuda").half()
        target = torch.zeros_like(source)
        kernels.tma_copy(source, target)
        assert torch.equal(source, target)


def test_launch_is_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    x = torch.zeros(1 << 20, device="cuda")
    out = torch.zeros_like(x)
    kernels.scale_add.prepare(x, x, out)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(1.0)
        kernels.scale_add(x, x, out)
    stream.synchronize()
    assert torch.equal(out, torch.full_like(out, 3.0))


def test_cuda_graph_after_preparation() -> None:
    kernel = fresh(kernels.scale_add)
    x, out = values(500), torch.zeros(500, device="cuda")
    kernel.prepare(x, x, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(x, x, out)
    for _ in range(2):
        x.copy_(values(500))
        graph.replay()
        assert torch.equal(out, x * 2 + x)


def test_cuda_graph_without_preparation_is_an_error_that_leaves_the_driver_alone() -> None:
    kernel = fresh(kernels.scale_add)
    x, out = values(500), torch.zeros(500, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(LaunchError, match="a CUDA graph is being captured"):
            kernel(x, x, out)
        out.fill_(5.0)
    graph.replay()
    assert torch.equal(out, torch.full_like(out, 5.0))


def test_threads_without_a_context_of_their_own() -> None:
    kernel = fresh(kernels.scale_add)
    x = values(700)
    outs = [torch.zeros(700, device="cuda") for _ in range(8)]
    errors: list[BaseException] = []

    def work(out: torch.Tensor) -> None:
        try:
            for _ in range(20):
                kernel(x, x, out)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(out, x * 3) for out in outs)


def test_launch_allocates_nothing_on_the_gpu() -> None:
    x, out = values(500), torch.zeros(500, device="cuda")
    kernels.scale_add(x, x, out)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        kernels.scale_add(x, x, out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_other_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, out = values(500).to("cuda:1"), torch.zeros(500, device="cuda:1")
    with torch.cuda.device(0):
        for _ in range(3):
            kernels.scale_add(x, x, out)
    assert torch.equal(out, x * 3)
    with pytest.raises(LaunchError, match="out is on cuda:0 and x on cuda:1"):
        kernels.scale_add(x, x, out.to("cuda:0"))


def test_gpu_and_simulator_agree() -> None:
    x, y = torch.randn(777), torch.randn(777)
    on_cpu, on_gpu = torch.zeros(777), torch.zeros(777, device="cuda")
    kernels.scale_add(x, y, on_cpu, factor=1.1)
    kernels.scale_add(x.cuda(), y.cuda(), on_gpu, factor=1.1)
    assert torch.equal(on_cpu, on_gpu.cpu())


def test_package_compiled_ahead_of_time(tmp_path: Path) -> None:
    target = driver.target(torch.cuda.current_device()).name
    build(kernels.scale_add, [target]).write(tmp_path)
    kernel = tilus.load_manifest(tmp_path / "scale_add.json")
    for count in (512, 77):
        x, out = values(count), torch.zeros(count, device="cuda")
        for _ in range(2):
            kernel(x, x, out)
        assert torch.equal(out, x * 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(x, x, out)
    x.copy_(values(77))
    graph.replay()
    assert torch.equal(out, x * 3)


def test_package_chooses_its_variant_by_each_calls_scalars(tmp_path: Path) -> None:
    target = driver.target(torch.cuda.current_device()).name
    build(kernels.shifted, [target], variants=[VariantRequest({"shift": 100}, "count == 1")]).write(tmp_path)
    kernel = tilus.load_manifest(tmp_path / "shifted.json")
    out = torch.zeros(32, device="cuda")
    for count, expected in ((1, 101), (2, 2), (1, 101), (3, 3)):
        kernel(out, count)
        assert out.tolist() == [expected] * 32


def test_a_global_that_is_bound_anew_counts_from_the_next_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, out = fresh(kernels.shifted), torch.zeros(32, device="cuda")
    for offset in (0, 0, 5, 0):
        monkeypatch.setattr(kernels, "OFFSET", offset)
        kernel(out, 1)
        assert out.tolist() == [1 + offset] * 32
