"""The mixture-of-experts benchmark: right results without a GPU, and opponents that get what they ask for."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.benchmarks.test_dry_run import dry_run
from tests.benchmarks.test_harness import module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("mixture_of_experts", monkeypatch)


def test_all_types_and_steps_are_right_without_a_gpu(tmp_path: Path, bench: ModuleType) -> None:
    rows = dry_run("mixture_of_experts", tmp_path / "out.json")
    found = {(row["case"]["type"], row["contender"]): row["status"] for row in rows}
    for name in (*bench.TYPES, *bench.STEPS):
        assert found[name, "tilus"] == "checked"
        assert found[name, "torch ops" if name in bench.STEPS else "grouped_mm bf16"] == "checked"
    assert found["fp8", "scaled_grouped_mm"] == "skipped"
    assert all(row["cold"] is None for row in rows)


def test_without_a_gpu_it_says_so(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("sys.argv", ["mixture_of_experts.py"])
    bench.main()
    assert "no CUDA GPU on this machine" in capsys.readouterr().out


def test_cases_are_of_every_layer_and_type(bench: ModuleType) -> None:
    found = list(bench.cases(False, list(bench.TYPES)))
    assert len({(layer.name, m, name) for layer, m, name in found}) == len(found)
    products = [(layer, m, name) for layer, m, name in found if name in bench.TYPES]
    assert len(products) == len(bench.LAYERS) * len(bench.ROWS) * len(bench.TYPES)
    assert sorted({m for _, m, _ in products}) == [1, 16, 64, 256, 1024, 4096]
    # Columns are repeated, and rows of every type are whole for bulk copies.
    assert all(layer.n % bench.COLUMNS == 0 == layer.k % 64 for layer in bench.LAYERS)


@pytest.mark.parametrize(
    ("m", "least", "most", "block"), [(1, 8, 64, 8), (1, 16, 128, 16), (100, 16, 128, 64), (4096, 8, 64, 64)]
)
def test_blocks_hold_an_experts_share(bench: ModuleType, m: int, least: int, most: int, block: int) -> None:
    """Two of five experts for each token: 40 rows of 100 tokens."""
    assert bench.block_of(bench.DRY_LAYERS[0], m, least, most) == block


def test_float8_in_torch_has_its_own_reference(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's product runs on a GPU only: one in float64 takes its place, with the same arguments."""
    layer = bench.DRY_LAYERS[0]
    here = SimpleNamespace(device=torch.device("cpu"))
    found = bench.problem(here, layer, 13, 16)

    def by_group(
        a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, ends: torch.Tensor
    ) -> torch.Tensor:
        out, first = torch.zeros(a.shape[0], b.shape[2], dtype=torch.float64), 0
        for expert, last in enumerate(ends.tolist()):
            plain = a[first:last].double() @ b[expert].double()
            out[first:last] = plain * a_scale[first:last, None] * b_scale[expert]
            first = last
        return out

    monkeypatch.setattr(bench, "scaled_grouped", by_group)
    made = bench.grouped_fp8(
        SimpleNamespace(device=SimpleNamespace(type="cuda")), found, bench.narrow(here, layer)
    )
    torch.testing.assert_close(made.view(made.run()), made.reference, rtol=1e-6, atol=1e-9)
    assert (made.reference.roll(1, 0) - made.reference).norm() > 0.1 * made.reference.norm()


def test_torch_takes_the_arguments_of_its_float8_product(bench: ModuleType) -> None:
    if not hasattr(torch, "_scaled_grouped_mm"):
        pytest.skip("this torch has no _scaled_grouped_mm")
    a = torch.empty(64, 256, dtype=bench.FLOAT8, device="meta")
    b = torch.empty(4, 128, 256, dtype=bench.FLOAT8, device="meta").transpose(1, 2)
    scales = torch.empty(64, device="meta"), torch.empty(4, 128, device="meta")
    out = bench.scaled_grouped(a, b, *scales, torch.empty(4, dtype=torch.int32, device="meta"))
    assert (out.shape, out.dtype) == ((64, 128), torch.bfloat16)


def test_opponents_that_torch_lacks_are_left_out(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(device=torch.device("cpu"))
    found = bench.problem(here, bench.DRY_LAYERS[0], 3, 16)
    some = bench.narrow(here, bench.DRY_LAYERS[0])
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    with pytest.raises(bench.SkipContender, match="no grouped_mm"):
        bench.grouped_bf16(found, some)
    monkeypatch.delattr(torch, "_scaled_grouped_mm", raising=False)
    with pytest.raises(bench.SkipContender, match="no _scaled_grouped_mm"):
        bench.grouped_fp8(SimpleNamespace(device=SimpleNamespace(type="cuda")), found, some)
