"""Clusters and launches that overlap on a GPU that has them: right numbers, launch after launch."""

from __future__ import annotations

import pytest
import torch

import tilus
from tests.codegen.test_clusters import allowed, cluster_sums, multicast_matmul, wide
from tilus import Tensor, constexpr, float32
from tilus.runtime import driver

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_clusters() -> None:
    if not driver.target(torch.cuda.current_device()).has("cluster"):
        pytest.skip("this GPU has no clusters")


@pytest.mark.parametrize("cluster", [2, 4])
@pytest.mark.parametrize("shape", [(512, 512, 4096), (1000, 200, 1000)])
def test_blocks_of_a_cluster_share_a_tile(shape: tuple[int, int, int], cluster: int) -> None:
    if not driver.target(torch.cuda.current_device()).has("wgmma"):
        pytest.skip("this GPU has no wgmma")
    m, n, k = shape
    a, b = torch.randn(m, k, device="cuda").half(), torch.randn(n, k, device="cuda").half()
    c = torch.zeros(m, n, device="cuda").half()
    for _ in range(20):
        multicast_matmul(a, b, c.zero_(), cluster=cluster)
        assert (c.double() - a.double() @ b.double().t()).abs().max() <= allowed(a, b)


@pytest.mark.parametrize("cluster", [2, 4, 8])
@pytest.mark.parametrize("how", ["load", "store", "atomic"])
def test_a_reduction_over_a_cluster(how: str, cluster: int) -> None:
    x, sums = torch.randn(2000, 64 * cluster, device="cuda"), torch.zeros(2000, device="cuda")
    for _ in range(20):
        cluster_sums(x, sums.zero_(), how=how, cluster=cluster)
        torch.testing.assert_close(sums.double(), x.double().sum(1), rtol=0, atol=16 * 64 * 2.0**-24)


def test_two_blocks_swap_their_tiles() -> None:
    x = torch.randn(128, 64, device="cuda").half()
    out = torch.zeros_like(x)
    wide(x, out)
    assert torch.equal(out, x.roll(64, 0))


@tilus.kernel
def step(x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, early: constexpr = True):
    """One more than the element that another block of the launch before wrote."""
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, 512), warps=4)
    start = tilus.block_id() * 512
    if early:
        tilus.launch_next()
    tilus.wait_for_previous()
    tilus.store(out, tilus.load(x, n - 512 - start, 512) + 1.0, start)


@pytest.mark.parametrize("early", [True, False])
def test_launches_that_overlap_see_what_the_one_before_wrote(early: bool) -> None:
    x, y = torch.zeros(512 * 1024, device="cuda"), torch.zeros(512 * 1024, device="cuda")
    for _ in range(200):
        step(x, y, early=early)
        step(y, x, early=early)
    assert torch.equal(x, torch.full_like(x, 400))


def test_launches_that_overlap_are_captured() -> None:
    x, y = torch.zeros(512 * 64, device="cuda"), torch.zeros(512 * 64, device="cuda")
    step.prepare(x, y)
    step.prepare(y, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(5):
            step(x, y)
            step(y, x)
    x.zero_()
    for _ in range(3):
        graph.replay()
    assert torch.equal(x, torch.full_like(x, 30))
