"""Quantise the linear layers of a safetensors model, save them packed, load them back, and see what each layer loses.

The model is a .safetensors file or a folder of them (a checkpoint in several files keeps its files); without one, a
small one is made. Every matrix called `*.weight` is quantised but those that --keep matches, which stay as they are,
like all other tensors. What is written holds the tensors of `QuantizedLinear`, so `tilus.torch.load_quantized` puts
them into a model. Kernels run on the GPU if there is one, else as PTX on the simulator.

    python examples/quantize_safetensors.py [model] [--output folder] [--dtype uint4] [--group 64] [--compare 8]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tilus import dtypes
from tilus.errors import TilusError
from tilus.ops import quantize
from tilus.ops.weights import check_group
from tilus.torch import QuantizedLinear

INDEX = "model.safetensors.index.json"
KEEP = "embed|norm|lm_head"
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Options:
    """How weights are quantised."""

    dtype: str = "uint4"
    group: int = 64
    keep: str = KEEP
    scale_dtype: torch.dtype = torch.float16

    @property
    def zero_point(self) -> bool:
        """Whether groups have zero points: unsigned integers gain most from them."""
        return dtypes.dtype(self.dtype).kind == "uint"

    def metadata(self) -> dict[str, str]:
        """Return what the files' headers say."""
        config = {"dtype": self.dtype, "group_size": self.group, "zero_point": self.zero_point}
        return {"format": "pt", "tilus": json.dumps(config)}


def files_of(source: Path) -> list[Path]:
    """Return the model's files."""
    if source.is_file():
        return [source]
    found = sorted(source.glob("*.safetensors"))
    if not found:
        what = "holds no .safetensors file" if source.is_dir() else "does not exist"
        sys.exit(f"{source} {what}: name a .safetensors file, or a folder with some")
    if (source / INDEX).is_file():
        named = set(json.loads((source / INDEX).read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing = sorted(named - {path.name for path in found})
        if missing:
            sys.exit(f"{source} lacks {missing[0]}, which {INDEX} names: copy the whole checkpoint")
    return found


def layers_of(files: list[Path], options: Options) -> dict[str, Path]:
    """Return the layers to quantise and the files that hold them, after a look at all headers and no tensor."""
    found = {}
    for path in files:
        try:
            with safe_open(path, "pt") as stored:
                for name in stored.keys():
                    header = stored.get_slice(name)
                    shape = header.get_shape()
                    if not name.endswith(".weight") or len(shape) != 2 or re.search(options.keep, name):
                        continue
                    if header.get_dtype() not in FLOATS:
                        sys.exit(
                            f"{name} in {path.name} is {header.get_dtype()}, and this quantises {', '.join(FLOATS)}: "
                            "tilus.ops.checkpoints imports weights that are quantised already; --keep leaves them out"
                        )
                    try:
                        check_group(shape[1], options.group)
                    except TilusError as error:
                        sys.exit(f"{name} in {path.name}: {error}; or leave it out by --keep '{KEEP}|{name}'")
                    found[name.removesuffix(".weight")] = path
        except SafetensorError as error:
            sys.exit(f"{path} is not a safetensors file: {error}")
    if not found:
        sys.exit(
            f"nothing to quantise: no matrix is called *.weight that --keep '{options.keep}' does not match"
        )
    return found


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """Yield a folder that takes the output's name at the end, or is removed if something fails."""
    if output.exists():
        sys.exit(f"{output} exists: name another --output, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=output.name + ".", suffix=".partial", dir=output.parent))
    try:
        # A temporary folder is its maker's alone; a model is not.
        partial.chmod(0o777 & ~current_umask())
        yield partial
        os.rename(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def current_umask() -> int:
    """Return the process's umask, which can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def convert(source: Path, output: Path, options: Options) -> dict[str, Path]:
    """Quantise a model file by file, and return the layers and the files that they came from."""
    files = files_of(source)
    layers = layers_of(files, options)
    where: dict[str, str] = {}
    total = 0
    with written_whole(output) as folder:
        for path in files:
            made: dict[str, torch.Tensor] = {}
            for name, tensor in load_file(path).items():
                prefix, _, kind = name.rpartition(".")
                if kind == "weight" and prefix in layers:
                    try:
                        weight = quantize(
                            tensor.t(), options.dtype, options.group, zero_point=options.zero_point,
                            scale_dtype=options.scale_dtype,
                        )  # fmt: skip
                    except TilusError as error:
                        sys.exit(f"{name} in {path.name}: {error}")
                    made |= {f"{prefix}.{key}": x for key, x in QuantizedLinear(weight).state_dict().items()}
                elif kind == "bias" and prefix in layers:
                    made[name] = tensor.to(options.scale_dtype)
                else:
                    made[name] = tensor
            save_file({k: x.contiguous() for k, x in made.items()}, folder / path.name, options.metadata())
            where |= dict.fromkeys(made, path.name)
            total += sum(x.nbytes for x in made.values())
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for path in source.glob("*.json") if source.is_dir() else ():
            if path.name != INDEX:
                shutil.copy(path, folder)
    return layers


def read_layer(file: Path, name: str) -> dict[str, torch.Tensor]:
    """Return a layer's tensors, and read no others."""
    with safe_open(file, "pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys() if key.startswith(name + ".")}


def compare(layers: dict[str, Path], output: Path, rows: int, device: str) -> None:
    """Run layers as they were and as they were read back, and exit if a kernel is wrong."""
    print(f"{'layer':34}{'k x n':>12}{'bits':>7}{'lost':>8}{'error':>10}{'allowed':>10}")
    for name, file in layers.items():
        layer = QuantizedLinear.from_state_dict(read_layer(output / file.name, name), name + ".").to(device)
        given = read_layer(file, name)
        plain = given[name + ".weight"].double().t()
        bias = given.get(name + ".bias", torch.zeros(1)).to(layer.scale.dtype).double()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, layer.in_features, generator=generator).to(layer.scale.dtype)
        with torch.no_grad():
            out = layer(x.to(device)).double().cpu()
        # What the kernel does, against float64 of the weights in the file; then what the file's weights lost.
        stored = layer.weight.dequantize()
        exact = x.double() @ stored + bias
        error = float((out - exact).abs().max() / exact.abs().max())
        allowed = 2 * float((exact.to(x.dtype).double() - exact).abs().max() / exact.abs().max())
        lost = float((x.double() @ (stored - plain)).norm() / (x.double() @ plain).norm())
        size = f"{layer.in_features} x {layer.out_features}"
        bits = layer.weight.bits_per_weight
        print(f"{name:34}{size:>12}{bits:7.2f}{lost:8.1%}{error:10.1e}{allowed:10.1e}")
        if not error <= allowed:
            sys.exit(f"{name}: the kernel is off by {error:.1e} where rounding explains {allowed:.1e}")


def make_model(folder: Path, hidden: int) -> Path:
    """Write a small model in two files with an index, named as a transformer's are."""
    generator = torch.Generator().manual_seed(0)
    inner = 2 * hidden
    where = {}
    for number in (0, 1):
        prefix = f"model.layers.{number}."
        tensors = {prefix + "input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
        for name, n, k in (("self_attn.q_proj", hidden, hidden), ("mlp.down_proj", hidden, inner)):
            weight = torch.randn(n, k, generator=generator) / k**0.5
            tensors[f"{prefix}{name}.weight"] = weight.to(torch.bfloat16)
        tensors[prefix + "self_attn.q_proj.bias"] = torch.randn(hidden, generator=generator).to(
            torch.bfloat16
        )
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def run(
    source: Path | None = None, output: Path | None = None, options: Options | None = None, layers: int = 8,
    rows: int = 4, hidden: int = 128,
) -> None:  # fmt: skip
    """Quantise a model, or a small one made for it, and compare some layers."""
    options = options or Options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:
            source = Path(scratch, "model")
            source.mkdir()
            output = output or Path(scratch, f"model-{options.dtype}")
            make_model(source, hidden)
        name = source.stem if source.is_file() else source.resolve().name
        output = output or source.resolve().with_name(f"{name}-{options.dtype}")
        found = convert(source, output, options)
        size = [sum(path.stat().st_size for path in files_of(folder)) for folder in (source, output)]
        print(f"{len(found)} layers in {output}: {size[0] / 1e6:.2f} MB became {size[1] / 1e6:.2f} MB")
        ran = "the GPU (cuda)" if device == "cuda" else "the simulator (cpu)"
        print(f"{min(layers, len(found))} of them, {rows} rows of activations, on {ran}:")
        compare(dict(list(found.items())[:layers]), output, rows, device)


def command_line(arguments: list[str]) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="a .safetensors file, or a folder of them")
    parser.add_argument(
        "--output", type=Path, help="a new folder; the model's name and the type unless given"
    )
    parser.add_argument(
        "--dtype", default="uint4", help="any type of 1 to 8 bits, such as int6 or float6_e3m2"
    )
    parser.add_argument(
        "--group", type=int, default=64, help="elements along k that share a scale; -1 for all"
    )
    parser.add_argument(
        "--keep", default=KEEP, help="names that this regular expression matches stay as they are"
    )
    parser.add_argument("--compare", type=int, default=8, help="how many layers to run")
    given = parser.parse_args(arguments)
    try:
        re.compile(given.keep)
        dtypes.dtype(given.dtype)
    except (re.error, ValueError, TilusError) as error:
        parser.error(str(error))
    run(given.model, given.output, Options(given.dtype, given.group, given.keep), given.compare)


if __name__ == "__main__":
    command_line(sys.argv[1:])
