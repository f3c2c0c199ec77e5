"""`QuantizedLinear`: values, state dicts, conversions, and `torch.compile`."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from tests.ops.support import check_product, in_activations_type
from tilus.dtypes import uint3
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import from_codes, gated_pair, quantize
from tilus.torch import QuantizedLinear, load_quantized, quantize_linears

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def linear(inputs: int = 64, outputs: int = 40, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64, bias=False), nn.LayerNorm(64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_product_with_the_dequantised_weight(
    bias: bool, dtype: torch.dtype, device: str
) -> None:
    layer = QuantizedLinear.from_linear(linear(bias=bias), "uint4", 32, zero_point=True).to(device)
    x = torch.randn(5, 64, dtype=dtype, device=device)
    found = layer(x)
    assert found.dtype == dtype
    a = x.half().cpu()
    exact = a.double() @ layer.weight.dequantize()
    by_torch = a @ in_activations_type(layer.weight)
    if bias:
        assert layer.bias is not None
        exact, by_torch = exact + layer.bias.double().cpu(), by_torch + layer.bias.cpu()
    check_product(found, exact, by_torch.to(dtype))


@pytest.mark.parametrize("activations", [None, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(3, 60), (3, 80), ()])
def test_an_input_of_another_width_is_refused(
    shape: tuple[int, ...], activations: torch.dtype | None
) -> None:
    layer = QuantizedLinear(quantize(torch.randn(64, 40), "uint4", 32, activations=activations))
    with pytest.raises(ShapeMismatch, match="takes 64 features, but its input has shape"):
        layer(torch.randn(shape))


def test_bfloat16_layers() -> None:
    layer = QuantizedLinear.from_linear(linear(), "int6", 32, scale_dtype=torch.bfloat16)
    assert layer(torch.randn(5, 64).bfloat16()).dtype == torch.bfloat16
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16


def test_factor_and_order_reach_the_kernel() -> None:
    codes = torch.randint(0, 8, (64, 8), generator=torch.Generator().manual_seed(0)).numpy().astype("uint8")
    weight = from_codes(codes, uint3, torch.ones(2, 8).half(), None, 32, alpha=0.5, order=torch.randperm(64))
    layer = QuantizedLinear(weight)
    x = torch.eye(64).half()
    assert torch.equal(layer(x).double(), weight.dequantize())


def test_a_bias_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"bias has shape \(8,\), expected \(40,\)"):
        QuantizedLinear(quantize(torch.randn(64, 40), "int4", 32), torch.zeros(8))


def test_it_says_what_it_is() -> None:
    layer = QuantizedLinear.from_linear(linear(), "float6_e3m2", 32)
    assert "in_features=64, out_features=40, dtype=float6_e3m2, group_size=32" in repr(layer)


# Replacing the linear layers of a model.


def test_all_linears_of_a_model_are_replaced() -> None:
    made, seen = model(), []
    assert quantize_linears(made, "uint4", 32, progress=seen.append) == ["0", "2"] == seen
    assert [type(m).__name__ for m in made] == ["QuantizedLinear", "GELU", "QuantizedLinear", "LayerNorm"]


def test_selected_linears_of_a_model_are_replaced() -> None:
    made = nn.ModuleDict({"outer": model(), "head": nn.Linear(64, 8)})
    names = quantize_linears(made, "int8", 32, select=lambda name, layer: layer.out_features == 64)
    assert names == ["outer.2"]


def test_quantised_model_is_close_to_the_original() -> None:
    x = torch.randn(4, 64)
    original = model()
    made = copy.deepcopy(original)
    quantize_linears(made, "uint8", 32, zero_point=True)
    assert nn.functional.cosine_similarity(original(x), made(x)).min() > 0.9999


# State dicts.


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict after a way through a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def same(a: QuantizedLinear, b: QuantizedLinear) -> bool:
    x = torch.randn(5, a.in_features).half()
    return a.weight.dtype == b.weight.dtype and torch.equal(a(x), b(x))


@pytest.mark.parametrize(
    ("dtype", "zero_point", "bias"),
    [("uint4", True, True), ("float6_e3m2", False, False), ("nf4", False, True)],
)
def test_state_dict_round_trip(dtype: str, zero_point: bool, bias: bool) -> None:
    layer = QuantizedLinear.from_linear(linear(bias=bias), dtype, 32, zero_point=zero_point)
    state = saved(layer.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert same(QuantizedLinear.from_state_dict(state), layer)


def test_loading_takes_over_type_group_and_zero_points() -> None:
    source = QuantizedLinear.from_linear(linear(), "uint3", 16, zero_point=True)
    target = QuantizedLinear.from_linear(linear(bias=False), "int8", 64)
    assert not target.load_state_dict(saved(source.state_dict())).missing_keys
    assert (target.weight_dtype, target.group_size) == ("uint3", 16)
    assert same(source, target)
    assert not source.load_state_dict(
        QuantizedLinear.from_linear(linear(bias=False), "int8", 64).state_dict()
    ).missing_keys
    assert source.zero is None
    assert source.bias is None


def test_a_model_without_quantised_layers_loads_a_quantised_one() -> None:
    source, target = model(), model()
    quantize_linears(source, "float4_e2m1", 32)
    assert load_quantized(target, saved(source.state_dict())) == ["0", "2"]
    x = torch.randn(3, 64).half().float()
    assert torch.equal(source(x), target(x))


def test_a_quantised_model_loads_into_its_like() -> None:
    source, target = model(), model()
    quantize_linears(source, "uint4", 32)
    quantize_linears(target, "int8", 16, select=lambda name, layer: name == "2")
    quantize_linears(target, "int8", 32)
    target.load_state_dict(saved(source.state_dict()))
    x = torch.randn(3, 64)
    assert torch.equal(source(x), target(x))


def test_wrong_state_dicts_are_refused() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    other = QuantizedLinear.from_linear(linear(96, 40), "uint4", 32)
    with pytest.raises(RuntimeError, match="the layer is 96 x 40, but the state dict's weight is 64 x 40"):
        other.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(linear().state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({**layer.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(ShapeMismatch, match="0 is 96 x 40, but the state dict's weight is 64 x 40"):
        load_quantized(nn.Sequential(linear(96, 40)), nn.Sequential(layer).state_dict())


def test_loading_does_not_share_memory_with_the_state_dict() -> None:
    source = QuantizedLinear.from_linear(linear(), "uint4", 32)
    target = copy.deepcopy(source)
    state = source.state_dict()
    target.load_state_dict(state)
    state["scale"].zero_()
    assert target.scale.any()


def test_copies_are_independent() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    twin = copy.deepcopy(layer)
    layer.packed.zero_()
    assert twin.packed.any()


# Conversions of a whole model.


def test_conversion_of_a_model_keeps_codes_and_16_bit_scales() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32, zero_point=True)
    before = copy.deepcopy(layer)
    for convert in (nn.Module.float, nn.Module.double):
        convert(layer)
        assert layer.scale.dtype == torch.float16
        assert same(layer, before)
    layer.bfloat16()
    assert layer.scale.dtype == torch.bfloat16
    assert layer.packed.dtype == torch.uint8
    assert layer(torch.randn(3, 64).bfloat16()).dtype == torch.bfloat16


def test_moving_to_meta_and_back_by_state_dict() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    state = saved(layer.state_dict())
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert same(empty, layer)


# torch.compile.


def has_cpp_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:  # inductor has several errors for this
        return False


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not has_cpp_compiler(), reason="inductor needs a C++ compiler for CPU tensors"
                ),
            ],
        ),
    ],
)
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch._dynamo.reset()
    made = model()
    quantize_linears(made, "uint4", 32, zero_point=True)
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = made(x)
        found = torch.compile(made, backend=backend, fullgraph=True)(x)
    # Inductor adds the bias before it rounds to float16, eager after.
    eager = backend == "aot_eager"
    assert torch.equal(found, expected) if eager else torch.allclose(found, expected, rtol=0, atol=4e-3)
    assert torch._dynamo.explain(made)(x).graph_break_count == 0
    torch._dynamo.reset()


def test_changing_the_weight_of_a_compiled_layer_changes_its_results() -> None:
    torch._dynamo.reset()
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 64).half()
    with torch.no_grad():
        compiled(x)
        layer.load_state_dict(QuantizedLinear.from_linear(linear(), "int8", 64).state_dict())
        assert torch.equal(compiled(x), layer(x))
    torch._dynamo.reset()


def test_exports() -> None:
    made = model()
    quantize_linears(made, "uint4", 32)
    x = torch.randn(5, 64)
    exported = torch.export.export(made, (x,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("tilus.quantized_matmul.default") == 2
    with torch.no_grad():
        assert torch.equal(exported.module()(x), made(x))


@pytest.mark.parametrize("activations", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_layers_with_activations_of_8_bits(activations: torch.dtype) -> None:
    plain = linear(128, 40)
    layer = QuantizedLinear.from_linear(plain, "uint4", 32, zero_point=True, activations=activations)
    x = torch.randn(2, 5, 128).half()
    found = layer(x)
    exact = x.double() @ layer.weight.dequantize() + layer.bias.double()
    # Each row is rounded to 8 bits: to 1/127 of its largest value, or with 3 bits of mantissa.
    step = (
        x.abs().amax(-1, keepdim=True).double() / 127 if activations == torch.int8 else x.abs().double() / 8
    )
    allowed = (step / 2).expand(x.shape) @ layer.weight.dequantize().abs() + 1e-2
    assert ((found - exact).abs() <= allowed).all()
    assert exact.abs().max() > allowed.max()
    again = QuantizedLinear.from_state_dict(saved(layer.state_dict()))
    assert again.activations == activations
    assert torch.equal(again(x), found)
    other = QuantizedLinear.from_linear(plain, "uint4", 32, zero_point=True)
    other.load_state_dict(saved(layer.state_dict()))
    assert torch.equal(other(x), found)


def test_gated_pairs_are_no_linear_layer() -> None:
    weight = quantize(torch.randn(64, 32), "uint4", 32)
    with pytest.raises(TypeMismatch, match="no gate"):
        QuantizedLinear(gated_pair(weight, weight))


def test_wrong_inputs_of_layers() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    with pytest.raises(ShapeMismatch, match=r"takes 64 features, but its input has shape \(4, 128\)"):
        layer(torch.zeros(4, 128))
    with pytest.raises(ShapeMismatch, match=r"it lacks x\.packed, x\.scale, x\.config"):
        QuantizedLinear.from_state_dict({}, "x.")
    with pytest.raises(ShapeMismatch, match=r"^2: a group of 64"):
        quantize_linears(nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 8)), "uint4", 64)
