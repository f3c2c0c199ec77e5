"""The torch ops: schemas, fake implementations and dispatch, by torch's own checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tilus.torch  # noqa: F401  defines the ops
from tilus.ops import QuantizedWeight, quantize

CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")


def weight(
    dtype: str = "uint4", *, zero_point: bool = True, activations: torch.dtype = torch.float16
) -> QuantizedWeight:
    torch.manual_seed(0)
    return quantize(torch.randn(64, 40), dtype, 32, zero_point=zero_point, scale_dtype=activations)


def arguments(w: QuantizedWeight, a: torch.Tensor) -> tuple[Any, ...]:
    return a, w.packed, w.scale, w.zero, w.dtype.name, *w.shape, w.group_size


QUANTIZED = {
    "rows": lambda: arguments(weight(), torch.randn(3, 64).half()),
    "batches": lambda: arguments(weight(), torch.randn(2, 3, 64).half()),
    "vector": lambda: arguments(weight(), torch.randn(64).half()),
    "no rows": lambda: arguments(weight(), torch.randn(0, 64).half()),
    "strides": lambda: arguments(weight(), torch.randn(64, 5).half().t()),
    "bfloat16, no zero point": lambda: arguments(
        weight("int5", zero_point=False, activations=torch.bfloat16), torch.randn(3, 64).bfloat16()
    ),
    "factor and order": lambda: (
        *arguments(weight(), torch.randn(3, 64).half()), 0.5, torch.randperm(64),
    ),
}  # fmt: skip

PLAIN = {
    "rows": lambda: (torch.randn(3, 64).half(), torch.randn(64, 8).half()),
    "transposed": lambda: (torch.randn(3, 64).half(), torch.randn(8, 64).half().t()),
    "batches": lambda: (torch.randn(2, 3, 64).half(), torch.randn(2, 64, 8).half()),
    "vector": lambda: (torch.randn(64).half(), torch.randn(64, 8).half()),
    "no rows": lambda: (torch.randn(0, 64).half(), torch.randn(64, 8).half()),
    "bias": lambda: (torch.randn(3, 64).half(), torch.randn(64, 8).half(), torch.randn(8).half()),
    "int8": lambda: (torch.ones(16, 32).to(torch.int8), torch.ones(8, 32).to(torch.int8).t()),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_matmul_is_a_proper_op(name: str) -> None:
    torch.library.opcheck(torch.ops.tilus.quantized_matmul.default, QUANTIZED[name](), test_utils=CHECKS)


@pytest.mark.parametrize("name", PLAIN)
def test_matmul_is_a_proper_op(name: str) -> None:
    torch.library.opcheck(torch.ops.tilus.matmul.default, PLAIN[name](), test_utils=CHECKS)


@pytest.mark.parametrize("name", QUANTIZED)
def test_fake_tensors_have_the_shape_dtype_and_strides_of_the_result(name: str) -> None:
    inputs = QUANTIZED[name]()
    found = torch.ops.tilus.quantized_matmul(*inputs)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ops.tilus.quantized_matmul(*inputs)
    assert (fake.shape, fake.dtype, fake.stride()) == (found.shape, found.dtype, found.stride())


def test_meta_tensors_need_no_kernel() -> None:
    made = torch.ops.tilus.matmul(
        torch.empty(3, 64, device="meta").half(), torch.empty(64, 8, device="meta").half()
    )
    assert (made.shape, made.dtype, made.device.type) == ((3, 8), torch.float16, "meta")


def test_ops_take_inference_tensors() -> None:
    with torch.inference_mode():
        a = torch.randn(3, 64).half()
        assert torch.ops.tilus.quantized_matmul(*arguments(weight(), a)).shape == (3, 40)


def test_a_gradient_that_does_not_exist_is_not_silent() -> None:
    a = torch.randn(3, 64).half().requires_grad_()
    found = torch.ops.tilus.quantized_matmul(*arguments(weight(), a))
    with pytest.warns(UserWarning, match="tilus::quantized_matmul: an autograd kernel was not registered"):
        found.sum().backward()
