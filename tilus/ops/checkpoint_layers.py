"""One layer of a quantised checkpoint, by the names of its tensors and what the model's config.json says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from tilus.errors import InvalidValue, ShapeMismatch, TypeMismatch
from tilus.ops.checkpoints import (
    FP8,
    SCALES,
    from_awq,
    from_bitnet,
    from_compressed_tensors,
    from_fp8,
    from_gptq,
    from_hqq,
    from_int8,
    from_mxfp4,
    from_mxfp8,
    from_nf4,
    from_nvfp4,
)
from tilus.ops.checks import checked
from tilus.ops.weights import QuantizedWeight

Tensors = Mapping[str, torch.Tensor]
STATE = "weight.quant_state.bitsandbytes__"
"""What the name begins with of the tensor in which bitsandbytes keeps sizes, as JSON in bytes."""


@checked
def from_layer(
    tensors: Mapping[str, torch.Tensor],
    quantization_config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    activations: torch.dtype | None = None,
) -> QuantizedWeight:
    """Import a linear layer of a checkpoint.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        What a safetensors file holds of the layer, by names without the layer's own, such as "qweight".
    quantization_config : mapping
        What the model's config.json holds under this name (of a layer with settings of its own, those).
    dtype : torch.dtype
        float16 or bfloat16: the type of activations and results. Of GPTQ, AWQ and packed integers it is that of the
        scales.
    activations : torch.dtype, optional
        int8 or float8_e4m3fn for activations of 8 bits; see `tilus.ops.quantize`.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    InvalidValue
        Where the names are those of no format.
    """
    if dtype not in SCALES:
        raise TypeMismatch(f"a layer's activations are {dtype}, expected torch.float16 or torch.bfloat16")
    method = quantization_config.get("quant_method", "")
    if "qweight" in tensors:
        return _in_words(tensors, quantization_config, activations)
    if "weight_packed" in tensors:
        return _packed(tensors, quantization_config, dtype, activations)
    if "W_q" in tensors:
        return _hqq(tensors, dtype)
    if "weight" not in tensors:
        raise InvalidValue(
            f"no quantised layer has the tensors {', '.join(sorted(tensors)) or 'that are given: there are none'}",
            hint="names without the layer's own, such as 'qweight' or 'weight_packed'",
        )
    weight = tensors["weight"]
    if any(name.startswith(STATE) for name in tensors):
        return _bitsandbytes(tensors, dtype)
    if "SCB" in tensors:
        return from_int8(weight, tensors["SCB"].double() / 127, scale_dtype=dtype, activations=activations)
    scale = tensors.get("weight_scale", tensors.get("weight_scale_inv"))
    if scale is None:
        raise InvalidValue(
            f"the layer has a weight of {weight.dtype}, but no weight_scale",
            hint="a layer that the checkpoint did not leave as it was",
        )
    if method == "bitnet":
        inverse = quantization_config.get("linear_class", "bitlinear") == "bitlinear"
        return from_bitnet(
            weight, 1 / scale.double() if inverse else scale, scale_dtype=dtype, activations=activations
        )
    if "weight_scale_2" in tensors:
        return from_nvfp4(
            weight, scale, tensors["weight_scale_2"], activations=activations or dtype, out_dtype=dtype
        )
    if weight.dtype == torch.int8:
        zero = tensors.get("weight_zero_point")
        return from_int8(weight, scale, zero, scale_dtype=dtype, activations=activations)
    if weight.dtype in FP8 and scale.dtype == torch.uint8:
        return from_mxfp8(weight, scale, activations=activations or dtype, out_dtype=dtype)
    if weight.dtype in FP8:
        return from_fp8(weight, scale, scale_dtype=dtype, activations=activations)
    raise InvalidValue(
        f"a weight of {weight.dtype} with a weight_scale of {scale.dtype} is of no format that is known",
        hint="tilus.ops.from_codes, for codes and scales of one's own",
    )


def _in_words(
    tensors: Tensors, config: Mapping[str, Any], activations: torch.dtype | None
) -> QuantizedWeight:
    """Import a layer of GPTQ or AWQ."""
    missing = [name for name in ("qzeros", "scales") if name not in tensors]
    if missing:
        raise ShapeMismatch(f"the layer has a qweight, but no {' and no '.join(missing)}")
    given = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    bits, method = config.get("bits", config.get("w_bit", 4)), config.get("quant_method")
    if method == "awq":
        version = str(config.get("version", "gemm")).lower()
        if bits != 4 or version != "gemm":
            raise InvalidValue(f"AWQ of {bits} bits, version {version!r}", hint="4 bits, version 'gemm'")
        return from_awq(*given, activations=activations)
    if method != "gptq":
        raise InvalidValue(f"a layer with a qweight is of the quant_method {method!r}, expected gptq or awq")
    version = 2 if config.get("checkpoint_format", config.get("format")) == "gptq_v2" else 1
    return from_gptq(*given, tensors.get("g_idx"), bits=bits, version=version, activations=activations)


def _packed(
    tensors: Tensors, config: Mapping[str, Any], dtype: torch.dtype, activations: torch.dtype | None
) -> QuantizedWeight:
    """Import a packed layer of compressed-tensors: integers, NVFP4 or MXFP4."""
    packed, scale = tensors["weight_packed"], tensors.get("weight_scale")
    if scale is None:
        raise ShapeMismatch("the layer has a weight_packed, but no weight_scale")
    if packed.dtype == torch.uint8:
        given: dict[str, Any] = {"activations": activations or dtype, "out_dtype": dtype}
        if "weight_global_scale" not in tensors:
            return from_mxfp4(packed, scale, **given)
        return from_nvfp4(packed, scale, 1 / tensors["weight_global_scale"].double(), **given)
    return from_compressed_tensors(
        packed, scale, tensors.get("weight_zero_point"), tensors.get("weight_g_idx"), bits=_bits_of(config),
        shape=tensors.get("weight_shape"), activations=activations,
    )  # fmt: skip


def _bits_of(config: Mapping[str, Any]) -> int:
    """Return the bits of a weight, of which all groups of layers of the config must have the same."""
    groups = config.get("config_groups", {"layer": config})
    found = {(group.get("weights") or {}).get("num_bits") for group in groups.values()}
    if len(found) != 1 or None in found:
        raise InvalidValue(
            f"the config says {sorted(map(str, found))} for num_bits of weights, expected one number",
            hint="a config with the layer's own group alone in its config_groups",
        )
    bits: int = found.pop()
    return bits


def _hqq(tensors: Tensors, dtype: torch.dtype) -> QuantizedWeight:
    """Import a layer of HQQ, whose numbers are tensors too."""
    needed = ("scale", "zero", "shape", "nbits", "group_size", "axis")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ShapeMismatch(f"the layer has a W_q, but no {' and no '.join(missing)}")
    if int(tensors["axis"]) != 1:
        raise InvalidValue("HQQ with groups along its outputs (axis 0)", hint="a layer with axis 1")
    return from_hqq(
        tensors["W_q"], tensors["scale"], tensors["zero"], tensors["shape"], bits=int(tensors["nbits"]),
        group_size=int(tensors["group_size"]), scale_dtype=dtype,
    )  # fmt: skip


def _bitsandbytes(tensors: Tensors, dtype: torch.dtype) -> QuantizedWeight:
    """Import a layer of 4 bits of bitsandbytes, with scales that may be quantised themselves."""
    state = next(tensor for name, tensor in tensors.items() if name.startswith(STATE))
    sizes = json.loads(bytes(state.cpu().tolist()))
    absmax = tensors["weight.absmax"]
    if "weight.nested_absmax" in tensors:
        values = tensors["weight.nested_quant_map"].double()[absmax.int()]
        each = tensors["weight.nested_absmax"].double().repeat_interleave(sizes["nested_blocksize"])
        absmax = values * each[: values.numel()] + sizes["nested_offset"]
    table = tensors["weight.quant_map"]
    nf4 = sizes["quant_type"] == "nf4"
    return from_nf4(
        tensors["weight"], absmax, tuple(sizes["shape"]), block_size=sizes["blocksize"],
        table=None if nf4 else table, scale_dtype=dtype,
    )  # fmt: skip
