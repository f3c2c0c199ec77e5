"""Clusters in the tile IR: what blocks of a cluster do together in NumPy, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.ir.kernels import kernel_text, make
from tilus.errors import HazardFound, LaunchError
from tilus.ir.interpreter import run
from tilus.ir.kernel import Kernel
from tilus.ir.parser import ParseError, parse_kernel
from tilus.ir.printer import print_kernel

PARAMS = "%x: global<i32, [n:1], [1]>"


def cluster_of(body: str, blocks: int = 2, warps: int = 1) -> Kernel:
    return dataclasses.replace(make(body, PARAMS, warps), cluster=(blocks, 1, 1))


def execute(body: str, blocks: int = 2, grid: int = 2, warps: int = 1) -> list[str]:
    """Run a body in clusters, whose shared tile `%own` holds 100 times the rank at first; returns what it printed."""
    start = """
    %rank = cluster_rank
    %zero = constant {value = 0, dtype = i32}
    %one = constant {value = 1, dtype = i32}
    %two = constant {value = 2, dtype = i32}
    %hundred = constant {value = 100, dtype = i32}
    %other = binary %one, %rank {kind = "sub"}
    %base = binary %rank, %hundred {kind = "mul"}
    %first = splat %base {shape = [2, 4]}
    %own = alloc_shared {dtype = i32, shape = [2, 4]}
    %ready = barrier_alloc {count = 2, arrivals = 1}
    store_shared %own, %first
    """
    printed: list[str] = []
    run(
        cluster_of(start + body, blocks, warps),
        [np.arange(64, dtype=np.int32)],
        (grid,),
        output=printed.append,
    )
    return printed


def test_a_part_of_the_memory_of_another_block():
    body = """
    cluster_arrive
    cluster_wait
    %far = remote %own, %other
    %row = shared_index %far, %one
    %tile = load_shared %row
    %part = slice_tile %tile {offsets = [3], shape = [1]}
    %number = extract %part
    print [%rank, %number] {format = "{} sees {}"}
    """
    assert sorted(execute(body)) == ["0 sees 100", "1 sees 0"]
    assert sorted(execute(body, grid=4)) == ["0 sees 100"] * 2 + ["1 sees 0"] * 2


def test_the_place_of_a_part_is_the_same_in_another_block():
    body = """
    %row = shared_index %own, %one
    %corner = shared_slice %row {offsets = [2], shape = [2]}
    %far = remote %corner, %other
    %mark = splat %rank {shape = [2]}
    cluster_arrive
    cluster_wait
    store_shared %far, %mark
    cluster_arrive
    cluster_wait
    %all = load_shared %own
    print [%all] {format = "{}"}
    """
    shown = [[int(n) for n in line.replace("[", " ").replace("]", " ").split()] for line in execute(body)]
    assert sorted(shown) == [[0, 0, 0, 0, 0, 0, 1, 1], [100, 100, 100, 100, 100, 100, 0, 0]]


def test_a_barrier_of_another_block_and_a_copy_to_several():
    body = """
    %three = constant {value = 3, dtype = i32}
    barrier_arrive %ready, %one {bytes = 32}
    %is_first = compare %rank, %zero {kind = "eq"}
    if %is_first () {
      copy_bulk %own, %wide, [%zero, %zero], %ready, %one, %three
      yield []
    } () {
      yield []
    }
    barrier_wait %ready, %zero, %one
    %all = load_shared %own
    %sum = reduce %all {axis = 0, kind = "sum"}
    %corner = slice_tile %sum {offsets = [0, 0], shape = [1, 1]}
    %number = extract %corner
    print [%rank, %number] {format = "{} has {}"}
    barrier_arrive %ready, %zero, %other
    barrier_wait %ready, %zero, %zero
    """
    view = """
    %pointer = pointer_of %x
    %sixteen = constant {value = 16, dtype = i32}
    %four = constant {value = 4, dtype = i32}
    %wide = global_view %pointer, [%sixteen, %four], [%four, %one] {dims = [16, 4], steps = [4, 1]}
    """
    assert sorted(execute(view + body)) == ["0 has 4", "1 has 4"]


def test_warps_that_have_ended_do_not_hold_up_the_cluster():
    body = """
    warps {first = 0, count = 1} () {
      return
    }
    warps {first = 1, count = 1} () {
      cluster_arrive
      cluster_wait
      print [%rank] {format = "{}"}
      yield []
    }
    """
    assert sorted(execute(body, warps=2)) == ["0", "1"]


def test_arrivals_in_groups_of_warps_count_for_a_wait_after_them():
    body = """
    warps {first = 0, count = 1} () {
      cluster_arrive
      yield []
    }
    warps {first = 1, count = 1} () {
      cluster_arrive
      yield []
    }
    cluster_wait
    print [%rank] {format = "{}"}
    """
    assert sorted(execute(body, warps=2)) == ["0", "1"]


def test_an_arrival_before_groups_of_warps_counts_for_their_waits():
    body = """
    cluster_arrive
    warps {first = 0, count = 1} () {
      cluster_wait
      yield []
    }
    warps {first = 1, count = 1} () {
      cluster_wait
      yield []
    }
    cluster_arrive {relaxed = true}
    cluster_wait
    print [%rank] {format = "{}"}
    """
    assert sorted(execute(body, warps=2)) == ["0", "1"]


ONE_ONLY = """
%first_only = compare %rank, %zero {kind = "eq"}
if %first_only () {
  cluster_arrive
  cluster_wait
  yield []
} () {
  barrier_wait %ready, %zero, %zero
  yield []
}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("cluster_wait", "cluster_wait without a cluster_arrive"),
        ("cluster_arrive\ncluster_arrive", "arrives twice"),
        ("%far = remote %own, %two", "rank 2 in a cluster of 2 blocks"),
        ("barrier_arrive %ready, %zero, %hundred", "rank 100 in a cluster of 2 blocks"),
        ("barrier_wait %ready, %zero, %zero", "deadlock"),
        (ONE_ONLY, "deadlock"),
    ],
)
def test_misuse_is_reported(body, words):
    with pytest.raises(HazardFound, match=words):
        execute(body)


@pytest.mark.parametrize("mask", [0, 4, -1])
def test_a_mask_names_blocks_of_the_cluster(mask):
    body = f"""
    %mask = constant {{value = {mask}, dtype = i32}}
    %line = shared_index %own, %zero
    copy_bulk %line, %x, [%zero], %ready, %zero, %mask
    """
    with pytest.raises(HazardFound, match="names no blocks of a cluster of 2"):
        execute(body)


def test_a_grid_is_made_of_clusters():
    with pytest.raises(LaunchError, match=r"grid \(3, 1, 1\), no multiple of its cluster \(2, 1, 1\)"):
        execute("", grid=3)


REMOTE = "%s = alloc_shared {dtype = i32, shape = [4]}\n%i = cluster_rank\n%far = remote %s, %i\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "%again = remote %far, %i",
            "remote takes a tensor in the block's own shared memory, not remote<i32, [4]>",
        ),
        ("%again = remote %x, %i", "remote takes a shared tensor, not global"),
        ("%half = cast %i {dtype = f16}\n%again = remote %s, %half", "remote takes an integer rank, not f16"),
        ("copy_async %far, %x, [%i] {checked = [true]}", "copy_async takes a tensor in the block's own"),
        ("%b = barrier_alloc\ncopy_bulk %far, %x, [%i], %b", "copy_bulk takes a tensor in the block's own"),
        ("store_bulk %x, %far, [%i]", "store_bulk takes a tensor in the block's own"),
        ('%b = barrier_alloc\nbarrier_arrive %b {scope = "gpu"}', "a scope of block or cluster, not 'gpu'"),
    ],
)
def test_what_is_refused(line, words):
    with pytest.raises(ParseError) as error:
        parse_kernel(kernel_text(REMOTE + line, PARAMS))
    assert words in error.value.message


def test_text_of_remote_tensors_and_optional_operands_at_the_end():
    kernel = make(REMOTE + "%b = barrier_alloc\nbarrier_arrive %b\nbarrier_arrive %b, _, %i", PARAMS)
    text = print_kernel(kernel)
    assert "%far = remote %s, %i : remote<i32, [4]>" in text
    assert "barrier_arrive %b, _, _\n" in text
    assert "barrier_arrive %b, _, %i\n" in text
    assert print_kernel(parse_kernel(text)) == text
