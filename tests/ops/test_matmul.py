"""`matmul` against float64: shapes, operand orders, dtypes, epilogues, batches, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.ops.support import FLOATS, check_product
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import matmul

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def normal(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def check(a: torch.Tensor, b: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    found = matmul(a.to(device), b.to(device))
    assert (found.dtype, found.device.type) == (a.dtype, device)
    check_product(found, a.double() @ b.double(), a @ b)
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("turned", [False, True], ids=["row-major b", "transposed b"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("m", [1, 3, 16, 17, 64, 129])
def test_numbers_of_rows(m: int, dtype: torch.dtype, turned: bool, device: str) -> None:
    b = normal(72, 104, dtype=dtype).t() if turned else normal(104, 72, dtype=dtype)
    check(normal(m, 104, dtype=dtype), b, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 1, 1), (5, 3, 7), (33, 65, 31), (100, 130, 70), (16, 200, 33), (130, 9, 257), (64, 64, 8)],
)
def test_ragged_shapes(m: int, n: int, k: int, device: str) -> None:
    """Odd extents leave no vector whole, so each element is moved and masked for itself."""
    check(normal(m, k), normal(k, n), device)
    check(normal(m, k), normal(n, k).t(), device)


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("m", [16, 130])
def test_every_target(target: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", target)
    check(normal(m, 96), normal(96, 136))
    check(normal(m, 96), normal(136, 96).t())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (normal(96, 20).t(), normal(96, 40)),
        (normal(96, 20).t(), normal(40, 96).t()),
        (normal(40, 96)[::2], normal(96, 80)[:, ::2]),
        (normal(20, 192)[:, ::2], normal(192, 40)[::2]),
        (normal(20, 104)[:, 3:99], normal(96, 48)[:, 5:45]),
        (normal(1, 96).expand(20, 96), normal(96, 40)),
    ],
    ids=["a transposed", "both transposed", "outer steps", "inner steps", "unaligned", "expanded"],
)
def test_operands_of_any_strides(a: torch.Tensor, b: torch.Tensor) -> None:
    check(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_batches(device: str) -> None:
    check(normal(2, 3, 20, 40), normal(2, 3, 40, 24), device)
    check(normal(2, 20, 40), normal(40, 24), device)
    check(normal(3, 20, 40), normal(3, 24, 40).transpose(1, 2), device)
    check(normal(4, 20, 3, 40)[:, :, 1], normal(40, 24), device)


def test_a_vector() -> None:
    found = matmul(normal(40), normal(40, 24))
    assert found.shape == (24,)
    check_product(found, normal(40).double() @ normal(40, 24).double(), normal(40) @ normal(40, 24))


@pytest.mark.parametrize(
    ("a", "b"), [((0, 8), (8, 4)), ((4, 8), (8, 0)), ((0, 4, 8), (8, 4)), ((0, 4, 8), (0, 8, 4))]
)
def test_empty_results(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    found = matmul(normal(*a), normal(*b))
    assert found.shape == (torch.empty(a) @ torch.empty(b)).shape


def test_a_sum_over_nothing_is_zero() -> None:
    found = matmul(torch.empty(4, 0).half(), torch.empty(0, 8).half())
    assert torch.equal(found, torch.zeros(4, 8).half())
    # Slices of a matrix that has elements: torch gives them no address.
    some = torch.ones(8, 8).half()
    assert torch.equal(matmul(some[:4, 8:], some[8:], bias=some[0]), some[:4])


ACTIVATIONS = {
    "": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def epilogue(a: torch.Tensor, b: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Return the formula in the dtype of `a` and `b`."""
    out = a @ b * options.get("alpha", 1.0)
    if "a_scale" in options:
        out = out * options["a_scale"].to(a.dtype)[:, None] * options["b_scale"].to(a.dtype)
    if "bias" in options:
        out = out + options["bias"].to(a.dtype)
    out = ACTIVATIONS[options.get("activation", "")](out)
    if "residual" in options:
        out = out + options.get("beta", 1.0) * options["residual"].to(a.dtype)
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        {"bias": normal(72)},
        {"residual": normal(33, 72), "beta": 0.5, "alpha": 0.25},
        {"bias": normal(72), "activation": "relu"},
        {"bias": normal(72), "activation": "gelu", "alpha": 0.1},
        {"activation": "silu", "residual": normal(33, 72)},
        {
            "a_scale": normal(33, dtype=torch.float32).abs(),
            "b_scale": normal(72, dtype=torch.float32),
            "bias": normal(72),
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_epilogues(options: dict[str, Any], device: str) -> None:
    a, b = normal(33, 40), normal(40, 72)
    there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    found = matmul(a.to(device), b.to(device), **there)
    check_product(found, epilogue(a.double(), b.double(), options), epilogue(a, b, options))


def test_output_dtypes() -> None:
    a, b = normal(33, 40), normal(40, 72)
    exact = a.double() @ b.double()
    found = matmul(a, b, out_dtype=torch.float32)
    assert found.dtype == torch.float32
    check_product(found, exact, a.float() @ b.float())
    assert matmul(a, b, out_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_multiplied_as_tf32(device: str) -> None:
    a, b = normal(33, 40, dtype=torch.float32), normal(40, 72, dtype=torch.float32)

    def tf32(x: torch.Tensor) -> torch.Tensor:
        # 10 of the 23 mantissa bits, by truncation: what an instruction does with float32 bits at worst.
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)

    check_product(matmul(a.to(device), b.to(device)), a.double() @ b.double(), tf32(a) @ tf32(b))


@pytest.mark.parametrize("device", DEVICES)
def test_int8_is_exact(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (33, 48), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (72, 48), generator=generator, dtype=torch.int8).t()
    found = matmul(a.to(device), b.to(device), out_dtype=torch.float32)
    assert torch.equal(found.cpu().double(), a.double() @ b.double())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "types", [(torch.float8_e4m3fn,) * 2, (torch.float8_e5m2, torch.float8_e4m3fn)], ids=str
)
def test_float8(types: tuple[torch.dtype, torch.dtype], device: str) -> None:
    a, b = normal(33, 64).to(types[0]), normal(72, 64).to(types[1]).t()
    found = matmul(a.to(device), b.to(device))
    exact = a.double() @ b.double()
    assert found.dtype == torch.bfloat16
    check_product(found, exact, (a.float() @ b.float()).bfloat16())


REFUSED = {
    "dtypes_differ": lambda: matmul(normal(2, 4), normal(4, 2, dtype=torch.bfloat16)),
    "float64": lambda: matmul(normal(2, 4).double(), normal(4, 2).double()),
    "depths_differ": lambda: matmul(normal(2, 4), normal(5, 2)),
    "vector_b": lambda: matmul(normal(2, 4), normal(4)),
    "batches_differ": lambda: matmul(normal(2, 4, 4), normal(3, 4, 4)),
    "activation": lambda: matmul(normal(2, 4), normal(4, 2), activation="tanh"),
    "bias_shape": lambda: matmul(normal(2, 4), normal(4, 2), bias=normal(3)),
    "bias_dtype": lambda: matmul(normal(2, 4), normal(4, 2), bias=normal(2, dtype=torch.float32)),
    "residual": lambda: matmul(normal(2, 4), normal(4, 2), residual=normal(2, 3)),
    "one_scale": lambda: matmul(normal(2, 4), normal(4, 2), a_scale=torch.ones(2)),
    "scale_shape": lambda: matmul(normal(2, 4), normal(4, 2), a_scale=torch.ones(3), b_scale=torch.ones(2)),
    "out_dtype": lambda: matmul(normal(2, 4), normal(4, 2), out_dtype=torch.int8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden: Any) -> None:
    with pytest.raises((ShapeMismatch, TypeMismatch)) as error:
        REFUSED[name]()
    golden(str(error.value), f"{name}.txt")


def test_arguments_that_are_no_tensors_or_elsewhere() -> None:
    a, b = torch.zeros(4, 8).half(), torch.zeros(8, 4).half()
    with pytest.raises(TypeMismatch, match="b is a list, expected a tensor"):
        matmul(a, [1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeMismatch, match="a is 'a', expected a tensor"):
        matmul("a", b)  # type: ignore[arg-type]
    with pytest.raises(TypeMismatch, match="a is on cpu, but b on meta"):
        matmul(a, b.to("meta"))
    with pytest.raises(TypeMismatch, match="a is on cpu, but bias on meta"):
        matmul(a, b, bias=torch.zeros(4, device="meta").half())


@pytest.mark.parametrize("name", ["sm_75", "sm_80"])
def test_float8_is_multiplied_as_float16_where_tensor_cores_lack_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", name)
    a, b = normal(17, 48).to(torch.float8_e5m2), normal(24, 48).to(torch.float8_e4m3fn).t()
    factors = torch.rand(17) + 0.5, torch.rand(24) + 0.5
    found = matmul(a, b, a_scale=factors[0], b_scale=factors[1])
    exact = a.double() @ b.double() * factors[0].double()[:, None] * factors[1].double()
    assert found.dtype == torch.bfloat16
    check_product(found, exact, (a.float() @ b.float() * factors[0][:, None] * factors[1]).bfloat16())
