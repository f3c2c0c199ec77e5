"""stmatrix: chosen where a tile's layout is made of its matrices, right in every form, and free of bank conflicts."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilus
from tests.codegen import differential as d
from tilus.dtypes import bfloat16, float8_e4m3, float16, float32, uint8
from tilus.lang import Tensor, constexpr
from tilus.layout import local, parse, spatial

TARGET = "sm_90a"
STORES = re.compile(r"stmatrix\.sync\.aligned\.m8n8\.(x\d(?:\.trans)?)\.shared\.b16")


def through(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], *,
    dtype: constexpr, layout: constexpr, turned: constexpr = False, warps: constexpr = 1,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    s = tilus.shared(dtype, layout.shape[::-1] if turned else layout.shape)
    seen = s.transpose() if turned else s
    tilus.store(seen, tilus.load(a, (0, 0), layout.shape, layout=layout))
    tilus.store(out, tilus.load(seen), (0, 0))


def forms(ptx: str) -> Counter[str]:
    """Count the stores by their form."""
    return Counter(STORES.findall(ptx))


FRAGMENT = "spatial(8, 4).local(1, 2)"


@pytest.mark.parametrize(
    ("dtype", "layout", "turned", "expected"),
    [
        (float16, FRAGMENT, False, {"x1": 1}),
        (bfloat16, "local(2, 1)." + FRAGMENT, False, {"x2": 1}),
        (float16, "local(2, 3)." + FRAGMENT, False, {"x2": 3}),
        (float16, "column_local(2, 4)." + FRAGMENT, False, {"x4": 2}),
        (float16, "local(2, 2)." + FRAGMENT, True, {"x4.trans": 1}),
        (float16, "local(1, 2).column_spatial(4, 8).local(2, 1)", False, {"x2.trans": 1}),
        (uint8, "local(4, 2).spatial(8, 4).local(1, 4)", False, {"x4": 2}),
        (float32, "local(1, 8).spatial(8, 4)", False, {"x4": 2}),
        # Bytes are not transposed, and accumulators of 32 bits hold pairs of neighbours.
        (uint8, "local(2, 1).spatial(8, 4).local(1, 4)", True, {}),
        (float8_e4m3, FRAGMENT, False, {}),
        (float32, FRAGMENT, False, {}),
    ],
)
def test_the_instruction_is_chosen_where_it_fits(dtype, layout, turned, expected):
    made = parse(layout)
    a = d.random(dtype, *made.shape)
    found = d.run(through, a, np.zeros_like(a), target=TARGET, dtype=dtype, layout=made, turned=turned)
    assert forms(found.ptx) == expected
    older = d.run(through, a, np.zeros_like(a), dtype=dtype, layout=made, turned=turned)
    assert not forms(older.ptx)


@pytest.mark.parametrize("turned", [False, True])
def test_of_warps_with_copies_one_stores(turned):
    layout = (local(2, 2) * parse(FRAGMENT)).with_replication(2)
    a = d.random(float16, *layout.shape)
    options = dict(dtype=float16, layout=layout, turned=turned, warps=2)
    made = d.run(through, a, np.zeros_like(a), target=TARGET, **options)
    assert len(re.findall(r"@%p\d+ stmatrix", made.ptx)) == sum(forms(made.ptx).values()) == 1


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_arrangement_of_matrices_is_stored_right(data):
    atom = parse(data.draw(st.sampled_from([FRAGMENT, "column_spatial(4, 8).local(2, 1)"])))
    sizes = st.sampled_from([1, 2, 3, 4])
    warps = data.draw(st.sampled_from([1, 2, 4]))
    outer = spatial(warps, 1) if data.draw(st.booleans()) else spatial(1, warps)
    layout = outer * local(data.draw(sizes), data.draw(sizes)) * atom
    a = d.random(float16, *layout.shape)
    options = dict(dtype=float16, layout=layout, turned=data.draw(st.booleans()), warps=warps)
    made = d.run(through, a, np.zeros_like(a), target=TARGET, **options)
    if all(extent & (extent - 1) == 0 for extent in layout.shape):
        assert sum(forms(made.ptx).values()) > 0


@tilus.kernel
def product(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor["out", "m n"],
    turned: Tensor["out", "n m"],
    *,
    m: constexpr,
    n: constexpr,
    warps: constexpr,
    out: constexpr,
):
    """Send a product and its transpose out by TMA."""
    tilus.grid(1, warps=warps)
    sa, sb = tilus.shared(float16, (m, 64)), tilus.shared(float16, (n, 64))
    tilus.store(sa, tilus.load(a, (0, 0), (m, 64)))
    tilus.store(sb, tilus.load(b, (0, 0), (n, 64)))
    tile = tilus.dot_wait(tilus.dot_async(sa, sb.transpose())).to(out)
    sc, st = tilus.shared(out, (m, n)), tilus.shared(out, (n, m))
    tilus.store(sc, tile)
    tilus.store_bulk(c, sc, (0, 0))
    tilus.store(st.transpose(), tile)
    tilus.store_bulk(turned, st, (0, 0))
    tilus.bulk_commit()
    tilus.bulk_wait(0, read=False)


@pytest.mark.parametrize(
    ("m", "n", "warps"), [(64, 8, 4), (64, 32, 4), (64, 40, 4), (128, 96, 4), (128, 128, 8), (64, 256, 4)]
)
@pytest.mark.parametrize("out", [torch.float16, torch.float32])
def test_accumulators_leave_through_shared_memory_without_bank_conflicts(m, n, warps, out):
    generator = torch.Generator().manual_seed(m + n)
    a, b = (torch.randn(rows, 64, generator=generator).half() for rows in (m, n))
    c, turned = torch.zeros(m, n, dtype=out), torch.zeros(n, m, dtype=out)
    options = dict(m=m, n=n, warps=warps, out=tilus.dtype(out))
    report = product.simulate(a, b, c, turned, target=TARGET, **options)
    report.raise_if_hazards()
    exact = a.double() @ b.double().t()
    allowed = 2 * float(((a.float() @ b.float().t()).to(out).double() - exact).abs().max())
    assert (c.double() - exact).abs().max() <= allowed
    assert torch.equal(turned, c.t())
    assert report.counters["shared_wavefronts"] == report.counters["shared_wavefronts_ideal"]
    found = forms(product.compile(a, b, c, turned, target=TARGET, **options).ptx)
    if out is torch.float32:
        assert not found
        return
    # A matrix is 64 elements; each instruction of a warp stores up to 4 of what it holds.
    width = 4 if m // warps // 4 * n % 64 == 0 and n % 16 == 0 else 2
    count = m * n // 64 // warps // width
    assert found == {f"x{width}": count, f"x{width}.trans": count}
