"""The mixture of experts, against float64 of its dequantised weights."""

from __future__ import annotations

import pytest
import torch

from tilus.errors import ShapeMismatch
from tilus.ops import quantize
from tilus.torch import QuantizedMoE
from tilus.torch.modules import read_config, stored_config
from tilus.torch.moe import rows_of_block

HIDDEN, INNER, EXPERTS, TOP_K, DTYPE, GROUP = 128, 96, 6, 2, "uint4", 32


def weights() -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(HIDDEN, EXPERTS, generator=generator) / HIDDEN**0.5
    shapes = ((HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN))
    return router, [
        [torch.randn(s, generator=generator) / s[0] ** 0.5 for _ in range(EXPERTS)] for s in shapes
    ]


def reference(x: torch.Tensor, layer: QuantizedMoE, matrices: list[list[torch.Tensor]]) -> torch.Tensor:
    """Sum the experts' outputs in float64; the choice of experts is that of the logits in float16."""
    logits = (x @ layer.router).double()
    weights, ids = torch.softmax(logits, dim=1).topk(TOP_K)
    weights = weights / weights.sum(dim=1, keepdim=True)
    out = torch.zeros(x.shape, dtype=torch.float64)
    exact = [[quantize(m, DTYPE, GROUP).dequantize() for m in kind] for kind in matrices]
    for expert, (gate, up, down) in enumerate(zip(*exact, strict=True)):
        inner = torch.nn.functional.silu(x.double() @ gate) * (x.double() @ up)
        out += inner @ down * (weights * (ids == expert)).sum(dim=1)[:, None]
    return out


@pytest.mark.parametrize("tokens", [1, 21])
def test_a_layer(tokens: int) -> None:
    router, matrices = weights()
    layer = QuantizedMoE.from_weights(router, *matrices, TOP_K, DTYPE, GROUP)
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens)).half()
    found = layer(x[None])[0]
    exact = reference(x, layer, matrices)
    # Three products in a row, each rounded to float16.
    assert (found.double() - exact).abs().max() <= 4 * torch.finfo(torch.float16).eps * exact.abs().max()
    assert found.dtype == x.dtype


def test_a_layer_compiles_without_graph_breaks() -> None:
    router, matrices = weights()
    layer = QuantizedMoE.from_weights(router, *matrices, TOP_K, DTYPE, GROUP)
    x = torch.randn(5, HIDDEN).half()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_a_layer_is_saved_and_keeps_its_types() -> None:
    router, matrices = weights()
    layer = QuantizedMoE.from_weights(router, *matrices, TOP_K, DTYPE, GROUP)
    other = QuantizedMoE.from_weights(
        router * 0, *[[m * 0 for m in kind] for kind in matrices], TOP_K, DTYPE, GROUP
    )
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, HIDDEN).half()
    assert torch.equal(other.float()(x), layer(x))
    assert "experts=6, top_k=2, dtype=uint4" in repr(layer)


def test_loading_takes_over_the_types_of_the_experts() -> None:
    """These two types have weights of one size: nothing else would tell them apart."""
    router, matrices = weights()
    layer, other = (
        QuantizedMoE.from_weights(router, *matrices, TOP_K, dtype, GROUP) for dtype in ("float4_e2m1", "int4")
    )
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, HIDDEN).half()
    assert torch.equal(other(x), layer(x))
    assert "dtype=float4_e2m1" in repr(other)
    small = QuantizedMoE.from_weights(
        router, *[[m[:, :64] for m in kind] for kind in matrices[:2]],
        [m[:64] for m in matrices[2]], TOP_K, DTYPE, GROUP,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="but the state dict's experts are"):
        small.load_state_dict(layer.state_dict())
    changed = {k: t.bfloat16() if t.is_floating_point() else t for k, t in layer.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"gate_up_scale is torch\.bfloat16, but was saved as torch\.float16"
    ):
        other.load_state_dict(changed)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({k: t for k, t in layer.state_dict().items() if k != "config"})
    state = layer.state_dict()
    for name in ("gate_up_packed", "down_scale", "down_alpha"):
        with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
            layer.load_state_dict({k: t for k, t in state.items() if k != name})
        with pytest.raises(RuntimeError, match=rf"{name} is .* of shape .*, expected .*shape "):
            layer.load_state_dict({**state, name: state[name][1:]})
    config = read_config(state["config"], ("gate_up", "down"))
    config["down"]["order"] = "0"
    with pytest.raises(
        RuntimeError, match="down_packed was laid out by a version of tilus with another order"
    ):
        layer.load_state_dict({**state, "config": stored_config(config)})


def test_shapes_that_make_no_layer() -> None:
    router, matrices = weights()
    layer = QuantizedMoE.from_weights(router, *matrices, TOP_K, DTYPE, GROUP)
    with pytest.raises(ShapeMismatch, match="do not make a layer"):
        QuantizedMoE(router[:, :3], layer.experts("gate_up"), layer.experts("down"), TOP_K)
    with pytest.raises(ShapeMismatch, match="do not make a layer"):
        QuantizedMoE(router, layer.experts("down"), layer.experts("gate_up"), TOP_K)


def test_rows_of_a_block_follow_the_average() -> None:
    assert [rows_of_block(rows, 8) for rows in (1, 64, 65, 200, 512, 100_000)] == [8, 8, 16, 32, 64, 64]
