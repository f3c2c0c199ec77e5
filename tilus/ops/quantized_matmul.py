"""`quantized_matmul`: activations times a quantised weight, as a function and as a torch op."""

from __future__ import annotations

import torch

from tilus import dtypes
from tilus.codegen.casts import stored_exponent
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.device import processors, target_of
from tilus.ops.library import LIBRARY
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_kernel import quantized_matmul_kernel, quantized_sums_kernel, sum_parts_kernel
from tilus.ops.quantized_schedule import Schedule, WeightForm, choose
from tilus.ops.tokens import QuantizedTokens, quantize_tokens
from tilus.ops.weights import BYTES, QuantizedWeight, interleave, operand_type

ACTIVATIONS = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16}
OPERANDS = {**ACTIVATIONS, **BYTES}
EPILOGUES = ("", "relu", "gelu", "silu")


def quantized_matmul(
    a: torch.Tensor | QuantizedTokens,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    activation: str = "",
) -> torch.Tensor:
    """Multiply activations with a quantised weight.

    Parameters
    ----------
    a : Tensor of float16 or bfloat16, shape (..., k), or QuantizedTokens
        Of the dtype of the weight's scales; on the GPU or, for the simulator, on the CPU. For a weight that was
        quantised for activations of 8 bits, `quantize_tokens` is applied to it.
    weight : QuantizedWeight, k x n
        On the same device.
    bias : Tensor, shape (n,), optional
        Added to each row. Of a gated pair that of the gate comes first.
    activation : str
        Applied last: relu, gelu or silu, or nothing. Of a gated pair to the gate, before it multiplies the rest.

    Returns
    -------
    Tensor of the dtype of the weight's scales, shape (..., n)
        ``activation(a @ weight.dequantize() + bias)``, accumulated in float32 (int32 for int8), with n / 2 columns for a
        gated pair.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where a, the weight and the bias do not fit.
    """
    k, n = weight.shape
    wanted = weight.activations or weight.scale.dtype
    if activation not in EPILOGUES:
        raise TypeMismatch(f"no activation named {activation!r}", hint="relu, gelu or silu, or leave it out")
    if bias is not None:
        if tuple(bias.shape) != (n,):
            raise ShapeMismatch(f"a bias of shape {tuple(bias.shape)} does not fit a weight of {k} x {n}")
        bias = bias.to(weight.scale.dtype)
        if weight.gated:
            bias = interleave(bias[: n // 2], bias[n // 2 :])
    if isinstance(a, QuantizedTokens):
        if a.values.dtype != wanted:
            raise TypeMismatch(
                f"activations are {a.values.dtype}, but the weight was quantised for {wanted}",
                hint=f"quantize(..., activations={a.values.dtype})",
            )
        if a.values.shape[-1] != k:
            raise ShapeMismatch(
                f"activations of shape {tuple(a.values.shape)} do not fit a weight of {k} x {n}"
            )
        if weight.order is not None:
            raise TypeMismatch(
                "the weight's rows are in an order of their own, which activations must be brought to before they are "
                "quantised",
                hint="pass activations of 16 bits",
            )
        tokens, leading = a, a.values.shape[:-1]
    else:
        if a.dtype not in ACTIVATIONS:
            raise TypeMismatch(f"quantized_matmul takes float16 or bfloat16 activations, not {a.dtype}")
        if a.dtype != weight.scale.dtype:
            raise TypeMismatch(
                f"activations are {a.dtype}, but the weight was quantised for {weight.scale.dtype}",
                hint=f"quantize(..., scale_dtype={a.dtype})",
            )
        if a.ndim == 0 or a.shape[-1] != k:
            raise ShapeMismatch(f"activations of shape {tuple(a.shape)} do not fit a weight of {k} x {n}")
        if wanted in ACTIVATIONS:
            out: torch.Tensor = torch.ops.tilus.quantized_matmul(
                a, weight.packed, weight.scale, weight.zero, weight.dtype.name, k, n, weight.group_size, weight.alpha,
                weight.order, bias, activation, weight.gated,
            )  # fmt: skip
            return out
        leading = a.shape[:-1]
        if weight.order is not None:
            a = a.index_select(-1, weight.order)
        tokens = quantize_tokens(a, wanted)
    found = torch.ops.tilus.quantized_matmul_bytes(
        tokens.values, tokens.scale, weight.packed, weight.scale, weight.zero, weight.dtype.name, k, n,
        weight.group_size, weight.alpha, bias, activation, weight.gated,
    )  # fmt: skip
    made: torch.Tensor = found.reshape(*leading, found.shape[-1])
    return made


def span_of(group: int, k: int) -> int:
    """Return over how many elements products of 8 bits are summed up before a scale multiplies them; 0 for all."""
    return 0 if group >= k else min(group, UNIT_K)


LIBRARY.define(
    "quantized_matmul(Tensor a, Tensor packed, Tensor scale, Tensor? zero, str dtype, SymInt k, SymInt n, int group, "
    "float alpha=1.0, Tensor? order=None, Tensor? bias=None, str activation='', bool gated=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "quantized_matmul_bytes(Tensor a, Tensor row_scale, Tensor packed, Tensor scale, Tensor? zero, str dtype, SymInt k, SymInt n, int group, float alpha=1.0, Tensor? bias=None, str activation='', "
    "bool gated=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _tiles(schedule: Schedule) -> dict[str, object]:
    return {
        "block_m": schedule.block_m, "block_n": schedule.block_n, "stages": schedule.stages, "warps": schedule.warps,
        "deep": schedule.deep, "swap": schedule.swap,
    }  # fmt: skip


def _multiply(
    rows: torch.Tensor,
    row_scale: torch.Tensor | None,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float,
    bias: torch.Tensor | None,
    activation: str,
    gated: bool,
) -> torch.Tensor:
    """Multiply rows of activations by the kernel and schedule chosen for the shape."""
    m = rows.shape[0]
    out = torch.empty((m, n // 2 if gated else n), dtype=scale.dtype, device=rows.device)
    if not m or not n:
        return out
    code_type, own, made = dtypes.dtype(dtype), OPERANDS[rows.dtype], OPERANDS[scale.dtype]
    operand, target = operand_type(code_type, rows.dtype), target_of(rows)
    form = WeightForm(code_type, own, group, zero is not None)
    schedule = choose(m, n, k, form, target, processors(rows)).schedule
    whole = schedule.splits == 1
    # With one part the kernel writes the result; else parts are summed in float32, in a fixed order.
    parts = out.unsqueeze(0)
    if not whole:
        parts = torch.empty((schedule.splits, m, n), dtype=torch.float32, device=rows.device)
    given = bias if bias is not None else scale[0]
    epilogue = {"has_bias": bias is not None, "activation": activation, "gated": gated}
    common: dict[str, object] = {
        "a_dtype": own, "b_dtype": code_type, "c_dtype": made if whole else dtypes.float32,
        "group": form.rows_of_scale(k), "has_zero": zero is not None, **_tiles(schedule), **(epilogue if whole else {}),
    }  # fmt: skip
    zeros = zero if zero is not None else scale
    exponent = stored_exponent(code_type, operand, target)
    if schedule.late:
        by_block = row_scale is not None and row_scale.shape[0] > 1
        span = span_of(group, k)
        quantized_sums_kernel(
            rows, packed, scale, zeros, row_scale if row_scale is not None else scale.view(torch.float32), given, parts, alpha, n,
            w_dtype=operand, s_dtype=made, span=UNIT_K if by_block and not span else span,
            has_row_scale=row_scale is not None, by_block=by_block, exponent=exponent,
            halves=own == dtypes.float8_e4m3 and not target.has("mma_fp8"), **common,
        )  # fmt: skip
    else:
        quantized_matmul_kernel(
            rows, packed, scale, zeros, given, parts, alpha, n, exponent=exponent, **common
        )
    if not whole:
        sum_parts_kernel(
            parts, bias if bias is not None else out[0], out, dtype=made, **epilogue
        )
    return out


def _run(
    a: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
) -> torch.Tensor:
    rows = a.reshape(-1, k)
    if order is not None:
        rows = rows.index_select(1, order)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    out = _multiply(rows, None, packed, scale, zero, dtype, k, n, group, alpha, bias, activation, gated)
    return out.reshape(*a.shape[:-1], out.shape[1])


def _fake(
    a: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    order: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], n // 2 if gated else n))


def _run_bytes(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
) -> torch.Tensor:
    return _multiply(a, row_scale, packed, scale, zero, dtype, k, n, group, alpha, bias, activation, gated)


def _fake_bytes(
    a: torch.Tensor,
    row_scale: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    dtype: str,
    k: int,
    n: int,
    group: int,
    alpha: float = 1.0,
    bias: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
) -> torch.Tensor:
    return a.new_empty((a.shape[0], n // 2 if gated else n), dtype=scale.dtype)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("quantized_matmul", _run, _device)
    LIBRARY.impl("quantized_matmul_bytes", _run_bytes, _device)
torch.library.register_fake("tilus::quantized_matmul", _fake, lib=LIBRARY)
torch.library.register_fake("tilus::quantized_matmul_bytes", _fake_bytes, lib=LIBRARY)
