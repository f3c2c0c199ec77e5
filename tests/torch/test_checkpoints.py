"""Layers and whole models from checkpoints of other projects, by the names and shapes that their writers give."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.ops.test_checkpoints import bit_string, words
from tilus import dtypes
from tilus.dtypes import decode
from tilus.errors import InvalidValue, ShapeMismatch, TilusError, TypeMismatch
from tilus.ops.checkpoint_layers import from_layer
from tilus.torch import QuantizedLinear, load_checkpoint

N, K = 32, 128
Layer = tuple[dict[str, torch.Tensor], dict[str, Any], torch.Tensor]
"""Tensors, the quantization_config, and the values of shape (n, k)."""


def draw(low: int, high: int, *shape: int) -> Any:
    return np.random.default_rng(100 + low + high + sum(shape)).integers(low, high, shape)


def powers(*shape: int) -> torch.Tensor:
    """Scales that all types hold."""
    return torch.from_numpy(2.0 ** draw(-6, 1, *shape))


def in_groups(codes: Any, zeros: Any, scales: torch.Tensor) -> torch.Tensor:
    """Return values of codes (n, k) with scales and zero points (n, groups)."""
    group = codes.shape[1] // scales.shape[1]
    values = torch.from_numpy(codes - np.repeat(zeros, group, 1)).double()
    return values * scales.double().repeat_interleave(group, 1)


def gptq(version: int) -> Layer:
    codes, zeros, scales = draw(0, 16, N, K), draw(1, 16, N, 2), powers(N, 2)
    tensors = {
        "qweight": words(np.array([bit_string(row, 4) for row in codes]).T),
        "qzeros": words([bit_string(row - (version == 1), 4) for row in zeros.T]),
        "scales": scales.t().contiguous().half(),
        "g_idx": torch.arange(K, dtype=torch.int32) // 64,
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    return tensors, config, in_groups(codes, zeros, scales)


def awq() -> Layer:
    codes, zeros, scales = draw(0, 16, N, K), draw(0, 16, N, 2), powers(N, 2)
    places = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of column j within its word

    def pack(rows: Any) -> torch.Tensor:
        eights = rows.T.reshape(rows.shape[1], -1, 8).astype(np.int64)
        return words((eights << 4 * places).sum(-1).tolist())

    tensors = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales.t().contiguous().half()}
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    return tensors, config, in_groups(codes, zeros, scales)


def compressed(weights: dict[str, Any], **others: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **others}


def packed_integers() -> Layer:
    values, scales = draw(-8, 8, N, K), powers(N, 2)
    tensors = {
        "weight_packed": words([bit_string(row + 8, 4) for row in values]),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor([N, K]),
    }
    config = compressed({"num_bits": 4, "type": "int", "symmetric": True}, format="pack-quantized")
    return tensors, config, in_groups(values, np.zeros((N, 2), int), scales)


def integers_of_8_bits(symmetric: bool) -> Layer:
    values, scales = draw(-128, 128, N, K), powers(N, 1)
    zeros = np.zeros((N, 1), int) if symmetric else draw(-128, 128, N, 1)
    tensors = {"weight": torch.from_numpy(values.astype(np.int8)), "weight_scale": scales.bfloat16()}
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy(zeros.astype(np.int8))
    config = compressed({"num_bits": 8, "type": "int", "symmetric": symmetric}, format="int-quantized")
    return tensors, config, in_groups(values, zeros, scales)


def float8(scale: torch.Tensor, name: str, method: str) -> Layer:
    weight = torch.from_numpy(draw(-16, 17, 256, K) / 8).to(torch.float8_e4m3fn)
    wide = scale.double().repeat_interleave(256 // scale.shape[0], 0) if scale.ndim else scale.double()
    return {"weight": weight, name: scale.float()}, {"quant_method": method}, weight.double() * wide


def float4(block: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = draw(0, 16, N, K).astype(np.uint8)
    packed = torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4)
    return packed, torch.from_numpy(decode(codes, dtypes.float4_e2m1)).double().reshape(N, K // block, block)


def nvfp4(writer: str) -> Layer:
    packed, values = float4(16)
    scale = torch.from_numpy(draw(1, 400, N, K // 16)).to(torch.float8_e4m3fn)
    exact = (values * scale.double()[..., None]).reshape(N, K) / 64
    if writer == "modelopt":
        tensors = {"weight": packed, "weight_scale": scale, "weight_scale_2": torch.tensor(1 / 64)}
        return tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, exact
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": torch.tensor([64.0])}
    return tensors, compressed({"num_bits": 4, "type": "float"}, format="nvfp4-pack-quantized"), exact


def mxfp4() -> Layer:
    packed, values = float4(32)
    scale = torch.from_numpy(draw(118, 128, N, K // 32).astype(np.uint8))
    exact = values * (2.0 ** (scale.double() - 127))[..., None]
    config = compressed({"num_bits": 4, "type": "float"}, format="mxfp4-pack-quantized")
    return {"weight_packed": packed, "weight_scale": scale}, config, exact.reshape(N, K)


def mxfp8() -> Layer:
    weight = torch.from_numpy(draw(-16, 17, N, K) / 8).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(draw(118, 128, N, K // 32).astype(np.uint8))
    exact = weight.double() * (2.0 ** (scale.double() - 127)).repeat_interleave(32, 1)
    config = compressed({"num_bits": 8, "type": "float"}, format="mxfp8-quantized")
    return {"weight": weight, "weight_scale": scale}, config, exact


def bitsandbytes(nested: bool, kind: str = "nf4") -> Layer:
    codes = draw(0, 16, N, K).astype(np.uint8)
    table = decode(np.arange(16, dtype=np.uint8), dtypes.nf4) if kind == "nf4" else np.linspace(-1, 1, 16)
    table = table.astype(np.float32)
    sizes: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [N, K]}
    tensors = {
        "weight": torch.from_numpy(codes[:, ::2] << 4 | codes[:, 1::2]).reshape(-1, 1),
        "weight.quant_map": torch.from_numpy(table),
    }
    absmax = powers(N * K // 64)
    if nested:
        # Two blocks of scales: powers of two are the nested values of both.
        indices = torch.from_numpy(draw(0, 7, N * K // 64))
        tensors["weight.absmax"] = indices.to(torch.uint8)
        tensors["weight.nested_quant_map"] = torch.from_numpy(2.0 ** (np.arange(256) % 7 - 6)).float()
        tensors["weight.nested_absmax"] = torch.tensor([0.5, 0.25])
        sizes |= {"nested_blocksize": 32, "nested_dtype": "float32", "nested_offset": 0.0}
        absmax = 2.0 ** (indices.double() - 6) * torch.tensor([0.5, 0.25]).repeat_interleave(32)
    else:
        tensors["weight.absmax"] = absmax.float()
    state = json.dumps(sizes).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(state), dtype=torch.uint8)
    exact = torch.from_numpy(table.astype(np.float64)[codes]).reshape(-1, 64) * absmax[:, None]
    return tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}, exact.reshape(N, K)


def bitsandbytes_of_8_bits() -> Layer:
    values = draw(-127, 128, N, K)
    scales = powers(N)
    tensors = {
        "weight": torch.from_numpy(values.astype(np.int8)),
        "SCB": (scales * 127).float(),
        "weight_format": torch.tensor(0),
    }
    return tensors, {"quant_method": "bitsandbytes"}, torch.from_numpy(values).double() * scales[:, None]


def bitnet(linear_class: str) -> Layer:
    values = draw(-1, 2, N, K)
    rows = N // 4
    packed = np.zeros((rows, K), np.uint8)
    for part in range(4):
        packed |= ((values[part * rows : (part + 1) * rows] + 1) << 2 * part).astype(np.uint8)
    factor = 0.25 if linear_class == "autobitlinear" else 4.0
    tensors = {"weight": torch.from_numpy(packed), "weight_scale": torch.tensor([factor]).bfloat16()}
    return (
        tensors,
        {"quant_method": "bitnet", "linear_class": linear_class},
        torch.from_numpy(values).double() / 4,
    )


def hqq(axis: int = 1) -> Layer:
    codes, scales, zeros = (
        draw(0, 16, N * K // 64, 64),
        powers(N * K // 64, 1),
        draw(0, 31, N * K // 64, 1) / 2,
    )
    half = len(codes) // 2
    numbers = {"nbits": 4, "group_size": 64, "axis": axis}
    tensors = {
        "W_q": torch.from_numpy((codes[:half] << 4 | codes[half:]).astype(np.uint8)),
        "scale": scales.half(),
        "zero": torch.from_numpy(zeros).half(),
        "shape": torch.tensor([N, K]),
        **{name: torch.tensor(value, dtype=torch.int32) for name, value in numbers.items()},
    }
    exact = (torch.from_numpy(codes) - torch.from_numpy(zeros)) * scales
    return tensors, {"quant_method": "hqq"}, exact.reshape(N, K)


LAYERS: dict[str, Callable[[], Layer]] = {
    "gptq": lambda: gptq(1),
    "gptq_v2": lambda: gptq(2),
    "awq": awq,
    "compressed-tensors, packed": packed_integers,
    "compressed-tensors, int8": lambda: integers_of_8_bits(symmetric=True),
    "compressed-tensors, int8 with zero points": lambda: integers_of_8_bits(symmetric=False),
    "compressed-tensors, float8": lambda: float8(powers(256, 1), "weight_scale", "compressed-tensors"),
    "compressed-tensors, nvfp4": lambda: nvfp4("compressed-tensors"),
    "compressed-tensors, mxfp4": mxfp4,
    "compressed-tensors, mxfp8": mxfp8,
    "float8 of a tensor": lambda: float8(torch.tensor(0.125), "weight_scale", "fp8"),
    "float8 in blocks": lambda: float8(powers(2, 1), "weight_scale_inv", "fp8"),
    "modelopt, nvfp4": lambda: nvfp4("modelopt"),
    "bitsandbytes, nf4": lambda: bitsandbytes(nested=False),
    "bitsandbytes, nf4 with scales of 8 bits": lambda: bitsandbytes(nested=True),
    "bitsandbytes, another table": lambda: bitsandbytes(nested=True, kind="fp4"),
    "bitsandbytes, int8": bitsandbytes_of_8_bits,
    "hqq": hqq,
    "bitnet": lambda: bitnet("bitlinear"),
    "bitnet, multiplied": lambda: bitnet("autobitlinear"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_values_that_its_writer_meant(name: str) -> None:
    tensors, config, values = LAYERS[name]()
    found = from_layer(tensors, config, dtype=torch.float16)
    assert found.result == torch.bfloat16 if name == "compressed-tensors, packed" else torch.float16
    assert torch.equal(found.dequantize(), values.t())


def wrong(name: str, drop: str = "", **changed: Any) -> Callable[[], object]:
    def call() -> object:
        tensors, config, _ = LAYERS[name]()
        tensors.pop(drop, None)
        return from_layer(tensors, {**config, **changed})

    return call


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no tensors": (lambda: from_layer({}, {}), "tensors that are given: there are none"),
    "names with the layer": (
        lambda: from_layer({"q_proj.qweight": torch.zeros(1)}, {}),
        r"no quantised layer has the tensors q_proj\.qweight",
    ),
    "a plain layer": (
        lambda: from_layer({"weight": torch.zeros(8, 8).half()}, {}),
        r"a weight of torch\.float16, but no weight_scale",
    ),
    "a plain layer with a scale": (
        lambda: from_layer({"weight": torch.zeros(8, 8).half(), "weight_scale": torch.ones(1)}, {}),
        r"a weight of torch\.float16 with a weight_scale of torch\.float32 is of no format",
    ),
    "gptq without zero points": (wrong("gptq", "qzeros"), "a qweight, but no qzeros"),
    "gptq of another method": (
        wrong("gptq", quant_method="exl2"),
        "quant_method 'exl2', expected gptq or awq",
    ),
    "awq of another version": (wrong("awq", version="gemv"), "AWQ of 4 bits, version 'gemv'"),
    "packed without scales": (wrong("compressed-tensors, packed", "weight_scale"), "but no weight_scale"),
    "packed of no number of bits": (
        wrong("compressed-tensors, packed", config_groups={}),
        r"the config says \[\] for num_bits",
    ),
    "hqq without numbers": (wrong("hqq", "nbits"), "a W_q, but no nbits"),
    "hqq along the outputs": (lambda: from_layer(*hqq(axis=0)[:2]), r"along its outputs \(axis 0\)"),
    "activations of single precision": (
        lambda: from_layer({}, {}, dtype=torch.float32),
        r"activations are torch\.float32",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_layer_is_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises((InvalidValue, ShapeMismatch, TypeMismatch), match=message):
        call()


# Whole models.


class Model(nn.Module):
    """An embedding, two layers and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, K)
        self.layers = nn.ModuleList([nn.Linear(K, N), nn.Linear(N, K, bias=False)])
        self.head = nn.Linear(K, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        found: torch.Tensor = self.head(x)
        return found


def checkpoint() -> tuple[dict[str, torch.Tensor], dict[str, Any], torch.Tensor]:
    """Return a checkpoint with one quantised layer, its config and the layer's values."""
    tensors, config, values = gptq(1)
    generator = torch.Generator().manual_seed(0)
    state = {
        "embedding.weight": torch.randn(40, K, generator=generator).half(),
        "layers.0.bias": torch.randn(N, generator=generator).half(),
        "layers.1.weight": torch.randn(K, N, generator=generator).half(),
        "layers.1.input_scale": torch.ones(1),
    }
    return state | {f"layers.0.{name}": tensor for name, tensor in tensors.items()}, config, values


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_takes_a_checkpoint(device: str) -> None:
    state, config, values = checkpoint()
    with torch.device(device):
        model = Model().half().eval()
    assert load_checkpoint(model, state, config) == ["layers.0"]
    layer = model.layers[0]
    assert isinstance(layer, QuantizedLinear)
    assert not layer.training
    assert torch.equal(layer.weight.dequantize(), values.t())
    assert layer.bias is not None
    assert torch.equal(layer.bias, state["layers.0.bias"])
    assert torch.equal(model.layers[1].weight, state["layers.1.weight"])
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, state["embedding.weight"])
    with torch.no_grad():
        assert model(torch.arange(3)).isfinite().all()


def test_a_layer_at_two_places_stays_one() -> None:
    tensors, config, _ = gptq(1)
    linear = nn.Linear(K, N, bias=False)
    model = nn.ModuleDict({"a": linear, "b": linear})
    state = {f"{name}.{key}": tensor for name in "ab" for key, tensor in tensors.items()}
    assert load_checkpoint(model, state, config) == ["a", "b"]
    assert model["a"] is model["b"]


def test_zeros_that_stand_for_no_bias_are_dropped() -> None:
    tensors, config, _ = gptq(1)
    for bias, kept in ((torch.zeros(N), False), (torch.ones(N), True)):
        model = nn.Sequential(nn.Linear(K, N, bias=False))
        state = {f"0.{key}": tensor for key, tensor in (tensors | {"bias": bias.half()}).items()}
        load_checkpoint(model, state, config)
        assert isinstance(model[0], QuantizedLinear)
        assert (model[0].bias is not None) == kept


def test_wrong_checkpoints_name_the_layer() -> None:
    state, config, _ = checkpoint()
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({k: t for k, t in state.items() if k != "layers.0.qzeros"}, "^layers.0: .*but no qzeros"),
        ({k: t for k, t in state.items() if k != "layers.0.bias"}, "lacks layers.0.bias"),
        ({k: t for k, t in state.items() if k != "embedding.weight"}, "lacks embedding.weight, head.weight"),
        (
            {k.replace("layers.0", "layers.1"): t for k, t in state.items()},
            "layers.1 is 32 x 128, but the checkpoint's weight is 128 x 32",
        ),
    ]
    for wrong_state, message in cases:
        with pytest.raises(TilusError, match=message):
            load_checkpoint(Model().half(), wrong_state, config)


@pytest.mark.parametrize("lost", ["1.qzeros", "2.weight"])
def test_a_refused_checkpoint_leaves_the_model_as_it_was(lost: str) -> None:
    tensors, config, _ = gptq(1)
    model = nn.Sequential(nn.Linear(K, N, bias=False), nn.Linear(K, N, bias=False), nn.LayerNorm(N)).half()
    state = {f"{number}.{key}": tensor for number in range(2) for key, tensor in tensors.items()}
    state |= {"2.weight": torch.ones(N).half(), "2.bias": torch.ones(N).half()}
    layers = list(model)
    with pytest.raises(ShapeMismatch):
        load_checkpoint(model, {key: tensor for key, tensor in state.items() if key != lost}, config)
    assert list(model) == layers
    assert load_checkpoint(model, state, config) == ["0", "1"]
