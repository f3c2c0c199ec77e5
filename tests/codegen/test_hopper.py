"""TMA, mbarriers and wgmma: right results with every check on, and planted mistakes that the checks report."""

from __future__ import annotations

import pytest
import torch

import tilus
from tilus import Tensor, constexpr, float16, float32
from tilus.errors import LayoutConflict, ShapeMismatch, TargetNotSupported, TilusError, TypeMismatch

TARGET = "sm_90a"


@tilus.kernel
def specialised(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 128,
    block_n: constexpr = 64,
    block_k: constexpr = 64,
    stages: constexpr = 3,
    mistake: constexpr = "",
):
    """c = a @ b.T with a producer warp and two consumer warpgroups, all written by hand."""
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=12)
    bi, bj = tilus.block_id()[:2]
    sa = tilus.shared(float16, (stages, block_m, block_k))
    sb = tilus.shared(float16, (stages, block_n, block_k))
    full = tilus.barrier(stages, arrivals=1)
    empty = tilus.barrier(stages, arrivals=8)
    steps = tilus.cdiv(k, block_k)
    with tilus.warps(8, 4, registers=40):
        with tilus.warps(8, 1):
            for i in range(steps):
                s = i % stages
                if mistake != "no wait for empty stages":
                    tilus.wait(empty, (i // stages + 1) % 2, index=s)
                size = (block_m + block_n) * block_k * 2
                tilus.arrive(full, index=s, bytes=size - 64 if mistake == "too few bytes" else size)
                tilus.copy_bulk(sa[s], a, (bi * block_m, i * block_k), full, index=s)
                tilus.copy_bulk(sb[s], b, (bj * block_n, i * block_k), full, index=s)
    with tilus.warps(0, 8, registers=232):
        acc = tilus.zeros((block_m, block_n), float32)
        for i in range(steps):
            s = i % stages
            if mistake == "wrong phase":
                tilus.wait(full, (i // stages + 1) % 2, index=s)
            elif mistake != "no wait for full stages":
                tilus.wait(full, (i // stages) % 2, index=s)
            acc = tilus.dot_async(sa[s], sb[s].transpose(), acc)
            if mistake == "free before read":
                tilus.arrive(empty, index=s)
            acc = tilus.dot_wait(acc)
            if mistake != "free before read":
                tilus.arrive(empty, index=s)
        tilus.store(c, acc.to(float16), (bi * block_m, bj * block_n))


def operands(m: int, n: int, k: int, dtype=torch.float16):
    generator = torch.Generator().manual_seed(m * n + k)
    a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    return a.to(dtype), b.to(dtype)


def allowed(a: torch.Tensor, b: torch.Tensor, out: torch.dtype) -> float:
    """Twice the error of torch's own product in float32, rounded to the output's dtype."""
    exact = a.double() @ b.double()
    return 2 * float(((a.float() @ b.float()).to(out).double() - exact).abs().max())


@pytest.mark.parametrize("shape", [(128, 64, 256), (200, 72, 320), (64, 8, 64), (1, 136, 72)])
def test_a_kernel_specialised_by_hand(shape):
    a, b = operands(*shape)
    c = torch.zeros(shape[0], shape[1], dtype=torch.float16)
    report = specialised.simulate(a, b, c, target=TARGET)
    report.raise_if_hazards()
    exact = a.double() @ b.double().t()
    assert (c.double() - exact).abs().max() <= allowed(a, b.t(), torch.float16)
    assert report.counters["shared_wavefronts"] == report.counters["shared_wavefronts_ideal"]


MISTAKES = [
    "no wait for empty stages",
    "too few bytes",
    "wrong phase",
    "no wait for full stages",
    "free before read",
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_reported(mistake):
    a, b = operands(128, 64, 512)
    c = torch.zeros(128, 64, dtype=torch.float16)
    report = specialised.simulate(a, b, c, target=TARGET, mistake=mistake)
    assert report.hazards, mistake


@tilus.kernel
def from_registers(
    a: Tensor["dtype", "m k"],
    b: Tensor["dtype", "n k"],
    c: Tensor[float32, "m n"],
    *,
    dtype: constexpr,
    fence: constexpr = True,
):
    """One tile: a from registers, b stored to shared memory by the threads themselves."""
    tilus.grid(1, warps=4)
    m, k, n = 64, 64, 32
    sb = tilus.shared(dtype, (n, k))
    tilus.store(sb, tilus.load(b, (0, 0), (n, k)))
    if fence:
        tilus.fence("async")
    tilus.sync()
    acc = tilus.dot_wait(tilus.dot_async(tilus.load(a, (0, 0), (m, k)), sb.transpose(), out_dtype=float32))
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_first_operand_from_registers(dtype):
    a, b = operands(64, 32, 64, dtype)
    c = torch.zeros(64, 32)
    chosen = tilus.dtype(dtype)
    from_registers.simulate(a, b, c, target=TARGET, dtype=chosen).raise_if_hazards()
    # Products of these types are exact in float32; only the sum rounds.
    torch.testing.assert_close(c.double(), a.double() @ b.double().t(), rtol=0, atol=64 * 2.0**-20)


@tilus.kernel
def without_barriers(a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float32, "m n"]):
    """The same with no word of fences and barriers."""
    tilus.grid(1, warps=4)
    sa, sb = tilus.shared(float16, (64, 64)), tilus.shared(float16, (32, 64))
    sc = tilus.shared(float32, (64, 32))
    tilus.store(sa, tilus.load(a, (0, 0), (64, 64)))
    tilus.store(sb, tilus.load(b, (0, 0), (32, 64)))
    acc = tilus.dot_wait(tilus.dot_async(sa, sb.transpose()))
    tilus.store(sc, acc)
    tilus.store_bulk(c, sc, (0, 0))
    tilus.bulk_commit()
    tilus.bulk_wait(0, read=False)


def test_fences_and_barriers_are_placed_before_what_reads_through_the_async_proxy():
    a, b = operands(64, 32, 64)
    c = torch.zeros(64, 32)
    without_barriers.simulate(a, b, c, target=TARGET).raise_if_hazards()
    torch.testing.assert_close(c.double(), a.double() @ b.double().t(), rtol=0, atol=64 * 2.0**-20)
    ptx = without_barriers.compile(a, b, c, target=TARGET).ptx
    assert ptx.count("fence.proxy.async") == 2


@tilus.kernel
def over_another(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float32, "m n"],
    *,
    added: constexpr = False,
    narrow: constexpr = False,
):
    """Two products, of which the second takes the registers of the first when that has been doubled."""
    tilus.grid(1, warps=4)
    sa, sb = tilus.shared(float16, (64, 64)), tilus.shared(float16, (64, 64))
    tilus.store(sa, tilus.load(a, (0, 0), (64, 64)))
    tilus.store(sb, tilus.load(b, (0, 0), (64, 64)))
    first = tilus.dot_wait(tilus.dot_async(sa, sb[:32].transpose()))
    doubled = first * 2.0
    over = first[:, :16] if narrow else first
    second = tilus.dot_async(sa, sb[32:].transpose(), first if added else None, over=over)
    tilus.store(c, doubled, (0, 0))
    tilus.store(c, tilus.dot_wait(second), (0, 32))


def test_a_product_takes_the_registers_of_another_but_not_its_values():
    a, b = operands(64, 64, 64)
    b[3, 5] = float("inf")
    c = torch.zeros(64, 64)
    over_another.simulate(a, b, c, target=TARGET).raise_if_hazards()
    exact = a.double() @ b.double().t() * torch.tensor([2.0] * 32 + [1.0] * 32)
    torch.testing.assert_close(c.double(), exact, rtol=0, atol=128 * 2.0**-20, equal_nan=True)
    assert c[:, 32:].isfinite().all()
    # The assembler is not told that nothing is added.
    assert over_another.compile(a, b, c, target=TARGET).ptx.count("setp.lt.s32 more, low, 0;") == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [(dict(added=True), TypeMismatch, "not both"), (dict(narrow=True), ShapeMismatch, "16")],
    ids=str,
)
def test_which_registers_a_product_cannot_take(options, error, words):
    a, b = operands(64, 64, 64)
    with pytest.raises(error, match=words):
        over_another.simulate(a, b, torch.zeros(64, 64), target=TARGET, **options)


def test_a_missing_proxy_fence_is_reported():
    a, b = operands(64, 32, 64)
    c = torch.zeros(64, 32)
    report = from_registers.simulate(a, b, c, target=TARGET, dtype=float16, fence=False)
    assert any("proxy" in h.kind or "proxy" in h.message for h in report.hazards)


@tilus.kernel
def through_shared(
    x: Tensor["dtype", "m n"],
    y: Tensor["dtype", "m n"],
    *,
    dtype: constexpr,
    block: constexpr,
    reduction: constexpr = "",
):
    """Bring tiles in by TMA and send them out by TMA."""
    m, n = x.shape
    tilus.grid(tilus.cdiv(m, block[0]), tilus.cdiv(n, block[1]), warps=4)
    i, j = tilus.block_id()[:2]
    tile = tilus.shared(dtype, block)
    done = tilus.barrier()
    with tilus.warps(0, 1):
        tilus.arrive(done, bytes=block[0] * block[1] * dtype.nbytes)
        tilus.copy_bulk(tile, x, (i * block[0], j * block[1]), done)
    tilus.wait(done, 0)
    tilus.store_bulk(y, tile, (i * block[0], j * block[1]), reduction=reduction)
    tilus.bulk_commit()
    tilus.bulk_wait(0, read=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int32])
@pytest.mark.parametrize("block", [(32, 64), (64, 32), (16, 128)])
def test_tiles_go_in_and_out_by_tma(dtype, block):
    x = (torch.randn(100, 144, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    y = torch.zeros_like(x)
    through_shared.simulate(x, y, target=TARGET, dtype=tilus.dtype(dtype), block=block).raise_if_hazards()
    assert torch.equal(x, y)


def test_a_bulk_store_adds():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    y = torch.ones_like(x)
    through_shared.simulate(
        x, y, target=TARGET, dtype=float32, block=(32, 32), reduction="add"
    ).raise_if_hazards()
    torch.testing.assert_close(y, x + 1, rtol=0, atol=0)


def test_rows_that_are_not_whole_16_bytes_are_refused():
    x = torch.zeros(64, 65, dtype=torch.float16)
    with pytest.raises(TypeMismatch, match="strides of whole 16 bytes, and stride 0 of x is only"):
        through_shared.simulate(x, x.clone(), target=TARGET, dtype=float16, block=(32, 64))


def test_targets_without_tma_refuse_with_what_to_use():
    x = torch.zeros(64, 64, dtype=torch.float16)
    with pytest.raises(TargetNotSupported, match="sm_80") as error:
        through_shared.simulate(x, x.clone(), target="sm_80", dtype=float16, block=(32, 64))
    assert error.value.hint


@tilus.kernel
def one_dot(
    a: Tensor[float16, "rows k"],
    b: Tensor["dtype", "columns k"],
    c: Tensor[float32, "c_rows c_columns"],
    *,
    dtype: constexpr,
    m: constexpr,
    n: constexpr,
    warps: constexpr,
):
    """A single product, to be refused."""
    tilus.grid(1, warps=warps)
    sa, sb = tilus.shared(float16, (m, 64)), tilus.shared(dtype, (n, 64))
    acc = tilus.dot_wait(tilus.dot_async(sa, sb.transpose()))
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (ShapeMismatch, dict(m=96, n=64, warps=4), "96 rows"),
        (ShapeMismatch, dict(m=64, n=12, warps=4), "12 columns"),
        (ShapeMismatch, dict(m=64, n=64, warps=2), "2 warps"),
        (TypeMismatch, dict(m=64, n=64, warps=4, dtype=tilus.bfloat16), "float16 by bfloat16"),
    ],
)
def test_what_wgmma_cannot_do_is_refused(error, options, words):
    chosen = {"dtype": float16, **options}
    torch_dtype = torch.bfloat16 if chosen["dtype"] is tilus.bfloat16 else torch.float16
    a, b = torch.zeros(128, 64, dtype=torch.float16), torch.zeros(128, 64, dtype=torch_dtype)
    with pytest.raises((error, LayoutConflict), match=words):
        one_dot.simulate(a, b, torch.zeros(128, 128), target=TARGET, **chosen)


@tilus.kernel
def plain(
    a: Tensor["dtype", "m k"],
    b: Tensor["dtype", "n k"],
    c: Tensor[float32, "m n"],
    *,
    dtype: constexpr,
    block_m: constexpr = 64,
    block_n: constexpr = 64,
    stages: constexpr = 3,
    warps: constexpr = 4,
):
    """A pipelined product without a word of Hopper."""
    m, k = a.shape
    n = b.shape[0]
    depth = 128 // (dtype.bits // 8)
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=warps)
    i, j = tilus.block_id()[:2]
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, k, depth), stages=stages):
        sa, sb = tilus.shared(dtype, (block_m, depth)), tilus.shared(dtype, (block_n, depth))
        tilus.copy_async(sa, a, (i * block_m, k0))
        tilus.copy_async(sb, b, (j * block_n, k0))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    tilus.store(c, acc, (i * block_m, j * block_n))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(("stages", "warps", "block_m"), [(2, 4, 64), (3, 8, 128), (4, 4, 128)])
def test_the_same_source_becomes_producer_and_consumers(dtype, stages, warps, block_m):
    chosen = tilus.dtype(dtype)
    for m, n, k in [(130, 72, 16), (64, 64, 640)]:
        a, b = operands(m, n, k, dtype)
        c = torch.zeros(m, n)
        options = dict(dtype=chosen, stages=stages, warps=warps, block_m=block_m)
        plain.simulate(a, b, c, target=TARGET, **options).raise_if_hazards()
        torch.testing.assert_close(c.double(), a.double() @ b.double().t(), rtol=0, atol=k * 2.0**-18)
    ptx = plain.compile(a, b, c, target=TARGET, **options).ptx
    assert "wgmma.mma_async" in ptx
    assert "cp.async.bulk.tensor" in ptx
    assert "mma.sync" not in ptx


def test_what_tma_cannot_feed_falls_back_to_asynchronous_copies():
    a, b = operands(64, 64, 68)
    c = torch.zeros(64, 64)
    plain.simulate(a, b, c, target=TARGET, dtype=float16).raise_if_hazards()
    torch.testing.assert_close(c.double(), a.double() @ b.double().t(), rtol=0, atol=68 * 2.0**-18)
    ptx = plain.compile(a, b, c, target=TARGET, dtype=float16).ptx
    assert "cp.async.bulk" not in ptx
    assert "mma.sync" in ptx


@pytest.mark.parametrize("kernel", [specialised, plain])
def test_the_assembler_serialises_and_spills_nothing(kernel):
    a, b = operands(128, 64, 256)
    c = torch.zeros(128, 64, dtype=torch.float16 if kernel is specialised else torch.float32)
    options = {} if kernel is specialised else dict(dtype=float16, warps=8, block_m=128)
    try:
        made = kernel.compile(a, b, c, target=TARGET, **options)
    except TilusError as error:
        if "no cubin can be made here" in str(error):
            pytest.skip("nvJitLink is not installed, so nothing is assembled")
        raise
    assert made.resources is not None
    assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0
    assert made.resources.warnings == ()


@tilus.kernel
def one_box(x: Tensor[float16, "m n"], y: Tensor[float16, "p q"], at: tilus.int64):
    """Copy one box, at a row given in 64 bits."""
    tilus.grid(1, warps=4)
    s = tilus.shared(float16, (16, 64))
    full = tilus.barrier(1, arrivals=1)
    with tilus.warps(0, 1):
        tilus.arrive(full, bytes=16 * 64 * 2)
        tilus.copy_bulk(s, x, (at, 0), full)
    tilus.wait(full, 0)
    tilus.store(y, tilus.load(s), (0, 0))


@pytest.mark.parametrize("at", [0, 1 << 32, -(1 << 32), (1 << 31) - 1, -(1 << 31), 1 << 31])
def test_a_box_beyond_32_bits_lies_outside(at: int) -> None:
    y = torch.full((16, 64), 7.0).half()
    one_box(torch.ones(16, 64).half(), y, at)
    assert y.eq(1.0 if at == 0 else 0.0).all()


@tilus.kernel
def six_dimensions(x: Tensor[float16, "a b c d e f"]):
    """Copy a box of a tensor that has too many dimensions."""
    tilus.grid(1, warps=4)
    s = tilus.shared(float16, (16, 64))
    full = tilus.barrier(1, arrivals=1)
    with tilus.warps(0, 1):
        tilus.arrive(full, bytes=16 * 64 * 2)
        tilus.copy_bulk(s, x, (0, 0, 0, 0, 0, 0), full)
    tilus.wait(full, 0)


def test_a_bulk_copy_of_a_tensor_of_six_dimensions_is_refused() -> None:
    with pytest.raises(TypeMismatch, match="at most 5 dimensions, and x has 6"):
        six_dimensions.compile(torch.zeros(1, 1, 1, 1, 16, 64).half(), target=TARGET)
