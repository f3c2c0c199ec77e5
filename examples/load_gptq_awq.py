"""Load layers of GPTQ and AWQ checkpoints as they stand in safetensors files, run them, and compare with float64.

A checkpoint is a folder with safetensors files and a config.json whose `quantization_config` says how layers are
packed. Without one, two tiny ones are made here, packed as AutoGPTQ and AutoAWQ pack. What is compared with is unpacked
here as well, by shifts, and not by what is shown. Kernels run on the GPU if there is one, else as PTX on the simulator.

    python examples/load_gptq_awq.py [folder] [--compare 4]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tilus.errors import TilusError
from tilus.ops import quantized_matmul
from tilus.ops.checkpoint_layers import from_layer

Tensors = dict[str, torch.Tensor]
# Bits 4 i of a word of AWQ hold this one of eight columns.
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def read(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Return the quantised layers of a checkpoint, and what its config.json says about them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        sys.exit(f"{folder} is no checkpoint: it needs a config.json and .safetensors files")
    config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    if config.get("quant_method") not in ("gptq", "awq"):
        sys.exit(
            f"{folder} holds quant_method {config.get('quant_method')!r}, and this reads 'gptq' and 'awq'"
        )
    if config["quant_method"] == "awq" and (config.get("bits"), config.get("version", "gemm").lower()) != (
        4,
        "gemm",
    ):
        sys.exit(
            f"{folder} holds AWQ of {config.get('bits')} bits, version {config.get('version')}; this reads 4, gemm"
        )
    layers: dict[str, Tensors] = {}
    for path in files:
        for name, tensor in load_file(path).items():
            prefix, _, kind = name.rpartition(".")
            layers.setdefault(prefix, {})[kind] = tensor
    found = {name: layer for name, layer in layers.items() if "qweight" in layer}
    for name, layer in found.items():
        missing = {"qzeros", "scales"} - layer.keys()
        if missing:
            sys.exit(f"{name} has a qweight, but no {' and no '.join(sorted(missing))}")
    if not found:
        sys.exit(f"{folder} has no layer with a qweight")
    return found, config


def dequantize(layer: Tensors, config: dict[str, Any]) -> torch.Tensor:
    """Return the float64 values of a layer, shape (k, n), straight from the formats' descriptions."""
    if config["quant_method"] == "awq":
        codes, zeros = unpack_columns(layer["qweight"]), unpack_columns(layer["qzeros"])
        group = torch.arange(len(codes)) // (len(codes) // len(zeros))
    else:
        bits = config["bits"]
        codes = unpack_rows(layer["qweight"], bits)
        zeros = unpack_rows(layer["qzeros"].t(), bits).t()
        zeros = zeros if config.get("checkpoint_format") == "gptq_v2" else zeros + 1
        group = layer.get("g_idx", torch.arange(len(codes)) // (len(codes) // len(zeros))).long()
    return (codes - zeros[group]).double() * layer["scales"].double()[group]


def unpack_rows(words: torch.Tensor, bits: int) -> torch.Tensor:
    """GPTQ: down each column the words are one long number, lowest bits first, and codes follow each other in it."""
    stored = (words.long()[:, None] >> torch.arange(32)[None, :, None]) & 1
    each = stored.reshape(-1, bits, words.shape[1])
    return (each << torch.arange(bits)[None, :, None]).sum(1)


def unpack_columns(words: torch.Tensor) -> torch.Tensor:
    """AWQ: a word holds eight neighbouring columns, in an order of its own."""
    out = torch.empty((*words.shape, 8), dtype=torch.long)
    for place, column in enumerate(AWQ_COLUMNS):
        out[..., column] = (words.long() >> 4 * place) & 15
    return out.reshape(words.shape[0], -1)


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes of shape (k, n) as GPTQ does."""
    columns = []
    for column in codes.t().tolist():
        number = sum(code << bits * i for i, code in enumerate(column))
        columns.append([number >> 32 * i & 0xFFFFFFFF for i in range(len(column) * bits // 32)])
    return torch.tensor(columns).t().to(torch.int32).contiguous()


def pack_columns(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes of shape (k, n) as AWQ does."""
    eights = codes.reshape(codes.shape[0], -1, 8)
    word = sum(eights[..., column] << 4 * place for place, column in enumerate(AWQ_COLUMNS))
    return torch.as_tensor(word).to(torch.int32)


def make_checkpoint(folder: Path, config: dict[str, Any], k: int, n: int) -> Path:
    """Write a checkpoint with one layer of random codes, k x n."""
    generator = torch.Generator().manual_seed(0)
    bits, groups = config["bits"], k // config["group_size"]
    codes = torch.randint(0, 1 << bits, (k, n), generator=generator)
    zeros = torch.randint(1, 1 << bits, (groups, n), generator=generator)
    scales = (torch.rand(groups, n, generator=generator) + 0.5) / (1 << bits) / k**0.5
    layer = {"scales": scales.half(), "bias": torch.randn(n, generator=generator).half()}
    if config["quant_method"] == "awq":
        layer |= {"qweight": pack_columns(codes), "qzeros": pack_columns(zeros)}
    else:
        # With "act-order", rows of one group lie anywhere. The first version stores zero points less one.
        group = torch.arange(k) // config["group_size"]
        if config["checkpoint_format"] == "gptq":
            zeros = zeros - 1
        if config["desc_act"]:
            group = group[torch.randperm(k, generator=generator)]
        layer |= {
            "qweight": pack_rows(codes, bits),
            "qzeros": pack_rows(zeros.t(), bits).t().contiguous(),
        }
        layer["g_idx"] = group.to(torch.int32)
    folder.mkdir()
    tensors = {f"model.layers.0.mlp.down_proj.{name}": x for name, x in layer.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}, indent=2) + "\n")
    return folder


def check(folder: Path, count: int, rows: int) -> None:
    """Run some layers of a checkpoint, and exit if one is wrong."""
    layers, config = read(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, layer in list(layers.items())[:count]:
        try:
            # This is all that using a checkpoint takes.
            weight = from_layer(layer, config)
        except TilusError as error:
            sys.exit(f"{name}: {error}")
        values = dequantize(layer, config)
        if not torch.equal(weight.dequantize(), values):
            sys.exit(f"{name}: what was imported is not what the file holds")
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(rows, weight.shape[0], generator=generator).to(weight.scale.dtype)
        bias = layer.get("bias")
        on = [None if t is None else t.to(device) for t in (x, bias)]
        out = quantized_matmul(on[0], weight.to(device), on[1]).double().cpu()
        exact = x.double() @ values + (0 if bias is None else bias.double())
        error, allowed = ((t - exact).abs().max() for t in (out, exact.to(x.dtype).double()))
        order = "act-order, " if weight.order is not None else ""
        print(
            f"{config['quant_method']:5} {name}: {weight.shape[0]} x {weight.shape[1]}, {weight.dtype}, {order}"
            f"groups of {weight.group_size}, on {device}: off by {error:.1e}, rounding explains {2 * allowed:.1e}"
        )
        if not error <= 2 * allowed:
            sys.exit(f"{name}: the kernel is wrong")


def run(folder: Path | None = None, count: int = 4, rows: int = 4, k: int = 256, n: int = 128) -> None:
    """Check a checkpoint, or four tiny ones that are made for it."""
    if folder is not None:
        check(folder, count, rows)
        return
    gptq = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    made = [
        gptq,
        gptq | {"bits": 3, "checkpoint_format": "gptq_v2"},
        gptq | {"desc_act": True},
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for number, config in enumerate(made):
            check(make_checkpoint(Path(scratch, str(number)), config, k, n), count, rows)


def command_line(arguments: list[str]) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, help="a checkpoint: config.json and .safetensors files"
    )
    parser.add_argument("--compare", type=int, default=4, help="how many layers to run")
    given = parser.parse_args(arguments)
    run(given.folder, given.compare)


if __name__ == "__main__":
    command_line(sys.argv[1:])
