"""Wrong arguments of every public function of the library: each is refused in one sentence that says what to do."""

# ruff: noqa: F401  (what is imported is used by the expressions below)
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import tilus
from tilus import dtypes
from tilus.errors import TilusError
from tilus.ops import (
    checkpoints,
    combine,
    from_codes,
    gated_pair,
    gather_rows,
    grouped_matmul,
    grouped_matmul_block_scaled,
    grouped_quantized_matmul,
    matmul,
    matmul_block_scaled,
    quantize,
    quantize_blocks,
    quantize_tokens,
    quantized_matmul,
    route,
    sort_by_expert,
    stack_experts,
)
from tilus.ops.checkpoint_layers import from_layer
from tilus.torch import QuantizedLinear, QuantizedMoE, load_checkpoint, load_quantized, quantize_linears


def h(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def f(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def f8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(torch.float8_e4m3fn)


def words(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def octets(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def moe(top_k: int = 1, **options: str) -> QuantizedMoE:
    return QuantizedMoE.from_weights(
        f(128, 2), [f(128, 64)] * 2, [f(128, 64)] * 2, [f(64, 128)] * 2, top_k, "uint4", 64, **options
    )


w = quantize(f(128, 64), "uint4", 64)
ex = stack_experts([w, w])
wt, ids = torch.ones(6, 2), torch.arange(12, dtype=torch.int32).reshape(6, 2) % 4
r = sort_by_expert(ids, 4, 16)
r2 = sort_by_expert(ids % 2, 2, 16)
rows = r2.rows.shape[0]
a8, b8, sa, sb = f8(16, 128), f8(64, 128), torch.ones(16, 1), torch.ones(1, 1)
lay = QuantizedLinear(w)

# Expressions that are evaluated with the names above; what each answers is in the golden file.
CALLS = {
    "products": """
matmul([[1.0]], [[1.0]])
matmul(np.zeros((2, 2)), h(2, 2))
matmul(h(2, 2), np.zeros((2, 2)))
matmul(h(2, 2), None)
matmul(f(2, 2).double(), f(2, 2).double())
matmul(h(2, 2), f(2, 2))
matmul(h(8, 16), h(32, 16))
matmul(h(2, 2), h(2))
matmul(h(2, 4, 8), h(3, 8, 4))
matmul(h(2, 2), meta(2, 2))
matmul(h(2, 2), h(2, 2), activation="tanh")
matmul(h(2, 2), h(2, 2), activation=None)
matmul(h(2, 2), h(2, 2), activation=torch.relu)
matmul(h(2, 2), h(2, 2), activation=["relu"])
matmul(h(2, 2), h(2, 2), alpha="1")
matmul(h(2, 2), h(2, 2), alpha=torch.ones(1))
matmul(h(2, 2), h(2, 2), alpha=None)
matmul(h(2, 2), h(2, 2), beta="1")
matmul(h(2, 2), h(2, 2), out_dtype="float16")
matmul(h(2, 2), h(2, 2), out_dtype=tilus.float16)
matmul(h(2, 2), h(2, 2), out_dtype=[])
matmul(h(2, 2), h(2, 2), bias=1.0)
matmul(h(2, 2), h(2, 2), bias=f(2))
matmul(h(4, 8), h(8, 4), a_scale=h(4), b_scale=h(4))
matmul(h(4, 8), h(8, 4), a_scale=1.0, b_scale=1.0)
matmul(h(4, 8), h(8, 4), a_scale=f(4))
matmul(h(4, 8).to_sparse(), h(8, 4))
matmul(h(4, 128), w)
matmul(h(2, 2, 4, 8), h(2, 8, 4))
quantized_matmul(h(2, 128), f(128, 64))
quantized_matmul(w, h(2, 128))
quantized_matmul(np.zeros((2, 128)), w)
quantized_matmul(h(2, 128), w, 1.0)
quantized_matmul(h(2, 128), w, np.zeros(64))
quantized_matmul(h(2, 128), w, meta(64))
quantized_matmul(h(2, 128), w, "relu")
quantized_matmul(h(2, 128), w, activation=["relu"])
quantized_matmul(meta(2, 128), w)
quantized_matmul(f(2, 128), w)
quantized_matmul(f(2, 128).bfloat16(), w)
quantized_matmul(quantize_tokens(h(2, 128)), w)
grouped_matmul(h(rows, 8), h(2, 8, 4), [3, 3])
grouped_matmul([1], h(2, 8, 4), r2)
grouped_matmul(h(rows, 8), [h(8, 4)], r2)
grouped_matmul(h(2, 4, 8), h(2, 8, 4), torch.tensor([1, 2]))
grouped_matmul(h(rows, 8), meta(2, 8, 4), r2)
grouped_matmul(h(rows, 8), h(2, 8, 4), r2, activation=[])
grouped_matmul(h(rows, 8), h(2, 8, 4), r2, bias=1.0)
grouped_matmul(h(rows, 8), h(2, 8, 4), r2, a_scale=1.0)
grouped_quantized_matmul(h(rows, 128), w, r2)
grouped_quantized_matmul(h(rows, 128), ex, None)
grouped_quantized_matmul([1], ex, r2)
grouped_quantized_matmul(meta(rows, 128), ex, r2)
matmul_block_scaled([1], b8, sa, sb)
matmul_block_scaled(a8, b8, 1.0, 1.0)
matmul_block_scaled(a8, b8, None, None)
matmul_block_scaled(a8, b8, sa, sb.to("meta"))
matmul_block_scaled(a8, b8, sa, sb, out_dtype=None)
quantize_blocks([1.0])
quantize_blocks(np.zeros((2, 2)))
quantize_blocks(f(4, 4), rows="1")
quantize_tokens(np.zeros((2, 2)))
quantize_tokens(f(2, 2), "int8")
quantize_tokens(f(2, 2), [])
quantize_tokens(f(2, 2), by_block="no")
route(np.zeros((2, 2)), 1)
route(f(2, 4), "1")
route(f(2, 4), 1.0)
route(f(2, 4), 1, scoring=[])
sort_by_expert([1, 2], 2)
sort_by_expert(torch.tensor([1]), 2)
sort_by_expert(ids, 4.0)
sort_by_expert(ids, 4, "16")
gather_rows(np.zeros((2, 2)), r, 2)
gather_rows(f(6, 8), ids, 2)
gather_rows(f(6, 8), r, "2")
gather_rows(f(6, 8), r)
combine([1], wt, r)
combine(f(r.rows.shape[0], 8), None, r)
combine(f(r.rows.shape[0], 8), wt, None)
combine(f(r.rows.shape[0], 8).to("meta"), wt, r)
grouped_matmul_block_scaled([1], b8, sa, sb, r2)
grouped_matmul_block_scaled(torch.zeros(rows, 128).to(torch.float8_e4m3fn), torch.zeros(2, 64, 128).to(torch.float8_e4m3fn), None, None, r2)
""",
    "weights": """
quantize(np.zeros((128, 64)), "uint4")
quantize([[1.0]], "uint4")
quantize(f(128, 0), "uint4")
quantize(f(0, 64), "uint4")
quantize(f(128, 64), "uint9")
quantize(f(128, 64), "foo")
quantize(f(128, 64), None)
quantize(f(128, 64), 4)
quantize("uint4", f(128, 64))
quantize(f(128, 64), torch.float64)
quantize(f(128, 64), torch.quint4x2)
quantize(f(128, 64), "uint4", "64")
quantize(f(128, 64), "uint4", None)
quantize(f(128, 64), "uint4", 64.0)
quantize(f(128, 64), "uint4", True)
quantize(f(128, 64), "uint4", 0)
quantize(f(128, 64), "uint4", -2)
quantize(f(128, 64), "uint4", 64, zero_point=None)
quantize(f(128, 64), "uint4", 64, zero_point=torch.zeros(2, 64))
quantize(f(128, 64), "int4", 64, activations="int8")
quantize(f(128, 64), "int4", 64, activations=torch.float64)
quantize(f(128, 64), "int4", 64, seed="a")
quantize(f(128, 64), "int4", 64, seed=2**70)
quantize(torch.zeros(128, 64, dtype=torch.complex64), "int4", 64)
quantize(torch.full((128, 64), float("nan")), "int4", 64)
quantize(torch.empty(128, 64, device="meta"), "int4", 64)
quantize(f(128, 64).to_sparse(), "int4", 64)
from_codes(np.zeros(128, np.uint8), tilus.uint4, h(2, 64), None, 64)
from_codes(octets(128, 64), tilus.uint4, h(2, 64), None, 64)
from_codes(np.zeros((128, 64), np.uint8), "uint9", h(2, 64), None, 64)
from_codes(np.zeros((128, 64), np.uint8), tilus.uint4, np.ones((2, 64)), None, 64)
from_codes(np.full((128, 64), 200, np.uint8), tilus.uint4, h(2, 64), None, 64)
from_codes(np.zeros((128, 64), np.uint8), tilus.uint4, f(2, 64), None, 64)
from_codes(np.zeros((128, 64), np.uint8), tilus.uint4, h(2, 64), None, 64, alpha="1")
from_codes(np.zeros((128, 64), np.uint8), tilus.uint4, h(2, 64), None, 64, order=list(range(128)))
gated_pair(w, None)
gated_pair(f(2, 2), w)
stack_experts([])
stack_experts(w)
stack_experts([f(2, 2)])
stack_experts(None)
""",
    "checkpoints": """
checkpoints.from_gptq(torch.zeros(16, 64, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int64), h(1, 64))
checkpoints.from_gptq(words(16, 64), words(1, 8), h(64))
checkpoints.from_gptq(np.zeros((16, 64), np.int32), words(1, 8), h(1, 64))
checkpoints.from_gptq(words(16, 64), None, h(1, 64))
checkpoints.from_gptq(words(16, 64), words(1, 8), h(1, 64), torch.full((128,), -1))
checkpoints.from_gptq(words(16, 64), words(1, 8), h(1, 64), [0] * 128)
checkpoints.from_gptq(words(16, 64), words(1, 8), h(1, 64), bits="4")
checkpoints.from_int8(f(64, 128), torch.ones(64))
checkpoints.from_int8(a8, f(1))
checkpoints.from_int8(words(64, 128), f(1))
checkpoints.from_int8(torch.zeros(64, 128, dtype=torch.int8), 0.5)
checkpoints.from_int8(torch.zeros(64, 128, dtype=torch.int8), torch.ones(63))
checkpoints.from_hqq(octets(64, 64), torch.ones(128), torch.ones(128), (64, 128), bits=5)
checkpoints.from_hqq(octets(64, 64), torch.ones(128), torch.ones(128), (64, 128), group_size=0)
checkpoints.from_hqq(octets(64, 64), torch.ones(128), 0, (64, 128))
from_layer([words(16, 64)], {})
from_layer({"qweight": words(16, 64)}, "gptq")
from_layer({"weight": f8(64, 128)}, {})
checkpoints.from_gptq(words(16, 64), words(1, 8), h(1, 64), bits=[])
checkpoints.from_awq(words(16), words(1, 8), h(1, 64))
checkpoints.from_awq(np.zeros((16, 8), np.int32), words(1, 8), h(1, 64))
checkpoints.from_compressed_tensors(np.zeros((16, 8), np.int32), h(16, 1))
checkpoints.from_compressed_tensors(words(16, 8), h(16, 1), bits="4")
checkpoints.from_compressed_tensors(words(16, 8), h(16, 1), shape=(64,))
checkpoints.from_fp8(np.zeros((16, 8)), f(1))
checkpoints.from_fp8(torch.zeros(16, 8, dtype=torch.int8), f(1))
checkpoints.from_fp8(octets(16, 8), f(1))
checkpoints.from_fp8(a8, 1.0)
checkpoints.from_fp8(a8, f(1), scale_dtype=torch.float32)
checkpoints.from_mxfp4(f(8, 16), octets(8, 1))
checkpoints.from_mxfp4(octets(8, 16), f(8, 1))
checkpoints.from_mxfp4(octets(8, 16), np.zeros((8, 1), np.uint8))
checkpoints.from_mxfp4(octets(8, 16), torch.full((8, 1), 127, dtype=torch.uint8), scale_dtype=torch.float32)
checkpoints.from_nvfp4(octets(8, 8), f(8, 1), 1.0)
checkpoints.from_nvfp4(octets(8, 8), torch.ones(8, 1).to(torch.float8_e4m3fn), torch.ones(2))
checkpoints.from_nvfp4(octets(8, 8), torch.ones(8, 1).to(torch.float8_e4m3fn), None)
checkpoints.from_mxfp8(a8, f(16, 4))
checkpoints.from_mxfp8(a8[0], octets(4))
checkpoints.from_nf4(octets(64), f(2), (128,))
checkpoints.from_nf4(octets(64), f(2), 128)
checkpoints.from_nf4(octets(64), f(2).abs(), (2, 64), table=torch.ones(3))
checkpoints.from_nf4(octets(64), [1.0, 1.0], (2, 64))
checkpoints.from_nf4(np.zeros(64, np.uint8), f(2), (2, 64))
checkpoints.from_nf4(octets(64), f(2), (2, 64), block_size="64")
checkpoints.from_bitnet(np.zeros((16, 128), np.uint8), 1.0)
checkpoints.from_bitnet(torch.ones((16, 128), dtype=torch.uint8), torch.ones(3))
checkpoints.from_bitnet(torch.ones((16, 128), dtype=torch.uint8), None)
""",
    "modules": """
QuantizedLinear(f(128, 64))
QuantizedLinear(w, 1.0)
QuantizedLinear(w, torch.ones(64, dtype=torch.int64))
lay(np.zeros((2, 128)))
lay(f(4, 64))
lay(torch.ones(2, 128, dtype=torch.int64))
lay(meta(2, 128))
QuantizedLinear.from_linear(nn.ReLU(), "uint4")
QuantizedLinear.from_linear(nn.Conv2d(3, 4, 3), "uint4")
QuantizedLinear.from_linear(f(64, 64), "uint4")
QuantizedLinear.from_state_dict({}, "x.")
QuantizedLinear.from_state_dict(None)
QuantizedLinear.from_state_dict({**lay.state_dict(), "config": octets(3)})
QuantizedLinear.from_state_dict({**lay.state_dict(), "config": torch.tensor(list(b"{}"), dtype=torch.uint8)})
QuantizedLinear.from_state_dict({**lay.state_dict(), "packed": torch.zeros(3)})(h(2, 128))
quantize_linears(f(2, 2), "uint4")
quantize_linears(nn.Sequential(nn.Linear(100, 10)), "uint4", 64)
quantize_linears(nn.Linear(128, 64), "uint4", 64)
quantize_linears(nn.Sequential(nn.Linear(128, 64)), "uint4", 64, select="0")
load_quantized(nn.Sequential(nn.Linear(128, 64)), None)
load_checkpoint(nn.Linear(128, 64), {"qweight": words(16, 64)}, {})
load_checkpoint(nn.Sequential(nn.Linear(128, 64)), {}, {})
load_checkpoint(nn.Sequential(nn.Linear(128, 64)), {"0.qweight": words(16, 64)}, {})
load_checkpoint(nn.Sequential(nn.Linear(128, 64)), "model.safetensors", {})
load_quantized(f(2), lay.state_dict())
QuantizedMoE(f(2, 2), None, None, 2)
QuantizedMoE.from_weights(f(128, 2), [f(128, 64)], [f(128, 64)] * 2, [f(64, 128)] * 2, 2, "uint4", 64)
moe(9)(h(2, 128))
moe(1, scoring="x")
moe(1, activation="x")
moe(1)(h(2, 64))
moe(1)(np.zeros((2, 128)))
""",
    "types": """
dtypes.dtype("uint9")
dtypes.dtype(None)
dtypes.dtype(torch.complex64)
dtypes.dtype("Uint4")
dtypes.dtype(4)
dtypes.table_type([1.0, 2.0, 3.0])
dtypes.table_type("abcd")
dtypes.table_type([])
dtypes.table_type([1.0, float("nan")])
dtypes.unpack(np.zeros(4, np.float32), dtypes.uint4, 8)
dtypes.pack(np.zeros(4, np.float32), dtypes.uint4)
dtypes.encode("abc", dtypes.uint4)
dtypes.decode(np.array([200], np.uint8), dtypes.uint4)
""",
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments(name: str, golden: Callable[[str, str], None]) -> None:
    lines = []
    for text in CALLS[name].strip().splitlines():
        try:
            eval(text)
        except TilusError as error:
            lines += [f">>> {text}", f"{type(error).__name__}: {error}"]
        else:
            pytest.fail(f"{text} is accepted")
    golden("\n".join(lines), f"{name}.txt")
