"""`QuantizedLinear`: values, state dicts, conversions, and `torch.compile`."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.ops.support import check_product, in_activations_type
from tilus.dtypes import float8_e4m3, float16, int4, int8, uint3
from tilus.errors import InvalidValue, ShapeMismatch, TypeMismatch
from tilus.ops import from_codes, gated_pair, quantize
from tilus.ops.prepack import order_name, pack_weight
from tilus.torch import QuantizedLinear, load_quantized, quantize_linears
from tilus.torch.modules import read_config, stored_config

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


# Whole models.


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformers_of_torch_work_with_quantised_layers(batch_first: bool) -> None:
    """Their fast path reads weights, so it must not be taken; attention reads its output projection's always."""
    torch.manual_seed(0)
    made = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 2, 96, batch_first=batch_first), 1, enable_nested_tensor=False
    ).eval()
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        expected = made(x)
        assert quantize_linears(made, "uint8", 32, zero_point=True) == [
            "layers.0.linear1",
            "layers.0.linear2",
        ]
        assert torch.allclose(made(x), expected, atol=0.03)
        assert not torch.equal(made(x), expected)


def test_a_layer_at_two_places_is_quantised_once() -> None:
    made = model()
    made.again = made[0]  # type: ignore[assignment]
    assert quantize_linears(made, "uint4", 32) == ["0", "again", "2"]
    assert made.again is made[0]
    assert isinstance(made[0], QuantizedLinear)
    other = model()
    other.again = other[0]  # type: ignore[assignment]
    assert load_quantized(other, saved(made.state_dict())) == ["0", "again", "2"]
    assert other.again is other[0]
    assert same(made[0], other[0])


def test_a_head_that_shares_its_weight_with_an_embedding_is_left_unless_selected() -> None:
    made = nn.ModuleDict({"embedding": nn.Embedding(96, 64), "inner": linear(64, 64), "head": linear(64, 96)})
    made["head"].weight = made["embedding"].weight
    selected = copy.deepcopy(made)
    assert quantize_linears(made, "uint4", 32) == ["inner"]
    assert made["head"].weight is made["embedding"].weight
    assert quantize_linears(selected, "uint4", 32, select=lambda name, layer: name == "head") == ["head"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_scales_have_the_type_of_the_models_activations(dtype: torch.dtype) -> None:
    layer = QuantizedLinear.from_linear(linear().to(dtype), "uint4", 32)
    assert layer.scale.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)
    # float16 ends at 65504.
    if dtype == torch.bfloat16:
        assert layer(torch.full((1, 64), 1e6, dtype=dtype)).isfinite().all()


def test_layers_keep_whether_they_are_trained() -> None:
    made = model().eval()
    quantize_linears(made, "uint4", 32)
    assert not any(module.training for module in made.modules())


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(TypeMismatch, match=r"^0: a lazy linear layer has no weight before its first call"):
        quantize_linears(nn.Sequential(nn.LazyLinear(64)), "uint4", 32)


def test_a_weight_is_no_tensor() -> None:
    weight = QuantizedLinear.from_linear(linear(), "uint4", 32).weight
    assert weight.device == torch.device("cpu")
    assert repr(weight) == (
        "QuantizedWeight(uint4, 64 x 40, group_size=32, scale=float16, zero_point=True, device='cpu')"
    )
    with pytest.raises(TypeMismatch, match="torch's linear does not take a quantised weight"):
        nn.functional.linear(torch.randn(3, 64), weight)  # type: ignore[arg-type]


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


def test_a_model_on_the_meta_device_takes_over_the_tensors() -> None:
    source = model()
    quantize_linears(source, "uint4", 32)
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64, bias=False), nn.LayerNorm(64))
    assert load_quantized(target, saved(source.state_dict())) == ["0", "2"]
    x = torch.randn(3, 64)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("name", ["scale", "zero"])
def test_scales_of_another_shape_are_refused(name: str) -> None:
    state = QuantizedLinear.from_linear(linear(), "uint4", 32, zero_point=True).state_dict()
    state[name] = state[name][:2]
    with pytest.raises(
        ShapeMismatch,
        match=rf"^{name} is torch.float16 of shape \(2, 64\), expected shape \(4, 64\) for groups of 32",
    ):
        QuantizedLinear.from_state_dict(state)


@pytest.mark.parametrize("name", ["packed", "scale", "zero", "bias"])
def test_a_layer_loads_no_tensors_that_do_not_fit_and_none_less_than_were_saved(name: str) -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32, zero_point=True)
    state, x = layer.state_dict(), torch.randn(2, 64)
    before = layer(x)
    with pytest.raises(RuntimeError, match=rf"\b{name} is .* of shape .*, expected .*shape "):
        layer.load_state_dict({**state, name: state[name][..., :-1]})
    del state[name]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        layer.load_state_dict(state)
    with pytest.raises(ShapeMismatch, match=f"it lacks {name}$"):
        QuantizedLinear.from_state_dict(state)
    assert torch.equal(layer(x), before)


def test_codes_in_another_order_are_refused() -> None:
    layer = QuantizedLinear.from_linear(linear(bias=False), "int4", 32)
    state, x = layer.state_dict(), torch.randn(2, 64).half()
    before = layer(x)
    config = read_config(state["config"])
    assert config["order"] == order_name(int4, float16)
    for wrong, message in (
        (
            {**config, "order": order_name(int4, int8)},
            "packed was laid out by a version of tilus with another",
        ),
        ({k: v for k, v in config.items() if k != "order"}, "'config' does not say order"),
    ):
        changed = {**state, "config": stored_config(wrong)}
        with pytest.raises(InvalidValue, match=message):
            QuantizedLinear.from_state_dict(changed)
        with pytest.raises((InvalidValue, RuntimeError), match=message):
            layer.load_state_dict(changed)
        assert torch.equal(layer(x), before)


def test_every_order_of_codes_has_a_name() -> None:
    orders = {order_name(int4, operand) for operand in (float16, int8, float8_e4m3)}
    assert len(orders) == 3
    codes = np.random.default_rng(0).integers(0, 16, (128, 32), np.uint8)
    packed = {pack_weight(codes, int4, operand).tobytes() for operand in (float16, int8, float8_e4m3)}
    assert len(packed) == 3


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_are_loaded_by_any_of_their_names_and_stay_tied(kept: str, device: str) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict(
            {"embed": nn.Embedding(40, 64), "body": linear(64, 64), "head": nn.Linear(64, 40, bias=False)}
        )
        model["head"].weight = model["embed"].weight
        return model

    source = tied()
    quantize_linears(source, "uint4", 32)
    state = source.state_dict()
    with torch.device(device):
        target = tied()
    assert load_quantized(target, {k: v for k, v in state.items() if k == kept or ".weight" not in k}) == [
        "body"
    ]
    assert target["head"].weight is target["embed"].weight
    assert torch.equal(target["embed"].weight, source["embed"].weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_quantized(tied(), {k: v for k, v in state.items() if ".weight" not in k})


def test_keys_of_a_state_dict_are_attributes() -> None:
    """As `torch.distributed.checkpoint.state_dict` wants them to be."""
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    for key, tensor in layer.state_dict().items():
        assert torch.equal(getattr(layer, key), tensor)


def test_state_dicts_whose_floats_were_converted_are_refused() -> None:
    layer = QuantizedLinear.from_linear(linear(), "int3", 32)
    state = {k: t.bfloat16() if t.is_floating_point() else t for k, t in layer.state_dict().items()}
    message = r"scale is torch\.bfloat16, but was saved as torch\.float16"
    with pytest.raises(TypeMismatch, match=message):
        QuantizedLinear.from_state_dict(state)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)


def test_whole_modules_are_pickled_and_their_types_stay_what_they_are() -> None:
    layer = QuantizedLinear.from_linear(linear(), "float4_e2m1", 32, scale_dtype="float8_e8m0")
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(loaded(x), layer(x))
    assert loaded.scale_type is layer.scale_type
    assert copy.deepcopy(layer).scale_type is layer.scale_type


def test_wrong_state_dicts_are_refused() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    other = QuantizedLinear.from_linear(linear(96, 40), "uint4", 32)
    with pytest.raises(RuntimeError, match="the layer is 96 x 40, but the state dict's weight is 64 x 40"):
        other.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(linear().state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({**layer.state_dict(), "extra": torch.zeros(1)})
    target = nn.Sequential(linear(64, 40), linear(96, 40))
    before = list(target)
    with pytest.raises(ShapeMismatch, match="1 is 96 x 40, but the state dict's weight is 64 x 40"):
        load_quantized(target, nn.Sequential(layer, layer).state_dict())
    assert list(target) == before


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


CONVERTED = ["uint3", "uint4", "int7", "float4_e2m1", "float6_e3m2", "float8_e1m6", "nf4", "ternary"]


@pytest.mark.parametrize("dtype", CONVERTED)
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_conversion_between_the_16_bit_floats_keeps_the_values(dtype: str, size: float) -> None:
    """Codes lie in memory as the kernel for the type wants them, and small scales are no subnormal numbers."""
    plain = linear(bias=False)
    plain.weight.data *= size
    layer = QuantizedLinear.from_linear(plain, dtype, 32, scale_dtype=torch.bfloat16)
    original = layer.weight.dequantize()
    for convert, kind in ((nn.Module.half, torch.float16), (nn.Module.bfloat16, torch.bfloat16)):
        convert(layer)
        assert layer.weight.result == kind
        # Eight bits of a bfloat16 scale are exact in either type.
        assert torch.equal(layer.weight.dequantize(), original)
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(kind)
        check_product(
            layer(x) / size, x.double() @ original / size, x @ in_activations_type(layer.weight) / size
        )


def test_conversion_keeps_the_order_of_rows_and_activations_of_8_bits() -> None:
    for activations in (None, torch.int8):
        weight = from_codes(
            torch.randint(0, 8, (64, 40)).numpy().astype("uint8"), uint3, torch.ones(2, 40).half(),
            torch.ones(2, 40).half(), 32, alpha=0.5, order=torch.randperm(64), activations=activations,
        )  # fmt: skip
        layer = QuantizedLinear(weight).bfloat16()
        assert torch.equal(layer.weight.dequantize(), weight.dequantize())
        assert layer.activations == activations
        assert layer(torch.randn(3, 64).bfloat16()).dtype == torch.bfloat16


def test_conversion_to_a_type_without_the_values_is_refused() -> None:
    layer = QuantizedLinear.from_linear(linear(), "float8_e7m0", 32, scale_dtype=torch.bfloat16)
    x = torch.randn(2, layer.in_features).bfloat16()
    expected = layer(x)
    with pytest.raises(
        TypeMismatch, match=r"a code of float8_e7m0 stands for .*, which torch.float16 does not hold"
    ):
        layer.half()
    assert torch.equal(layer(x), expected)


def test_layers_with_scales_of_8_bits_stay_in_all_conversions() -> None:
    layer = QuantizedLinear.from_linear(linear(), "float4_e2m1", 32, scale_dtype="float8_e8m0")
    state, before = saved(layer.state_dict()), copy.deepcopy(layer)
    x = torch.randn(3, 64)
    for convert in (nn.Module.half, nn.Module.float, nn.Module.bfloat16):
        assert torch.equal(convert(layer)(x), before(x))
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty(x), before(x))
    weight = before.weight.astype(torch.float16)
    assert weight.result == torch.float16
    assert torch.equal(weight.dequantize(), before.weight.dequantize())
    with pytest.raises(TypeMismatch, match=r"float16 or bfloat16, not torch\.float32"):
        weight.astype(torch.float32)


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


def test_exports_for_any_batch_and_is_saved() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(layer, (torch.randn(5, 64),), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    x = torch.randn(7, 64)
    assert torch.equal(torch.export.load(buffer).module()(x), layer(x))


def test_vmap_is_one_call_for_each_element() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    x = torch.randn(2, 3, 64)
    assert torch.equal(torch.vmap(layer)(x), torch.stack([layer(x[0]), layer(x[1])]))


def test_autocast_leaves_the_types_of_a_layer() -> None:
    layer = QuantizedLinear.from_linear(linear(), "uint4", 32)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer(x))


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
    made = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 8))
    with pytest.raises(ShapeMismatch, match=r"^2: a group of 64"):
        quantize_linears(made, "uint4", 64)
    assert not any(isinstance(module, QuantizedLinear) for module in made)
