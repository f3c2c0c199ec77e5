"""The examples that read checkpoints: what they write is right and whole, and what they refuse they explain."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors", reason="these examples read and write safetensors files")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tilus.torch import QuantizedLinear, load_quantized  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_" + name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quantizing() -> ModuleType:
    return load("quantize_safetensors")


@pytest.fixture(scope="module")
def loading() -> ModuleType:
    return load("load_gptq_awq")


def message(function: Any, *arguments: Any) -> str:
    with pytest.raises(SystemExit) as error:
        function(*arguments)
    return str(error.value)


def model(folder: Path, **tensors: Any) -> Path:
    folder.mkdir()
    save_file({name.replace("__", "."): x for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def test_quantised_files_keep_their_names_and_other_tensors(quantizing: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "model-v1.5"
    source.mkdir()
    quantizing.make_model(source, 64)
    (source / "config.json").write_text("{}")
    output = tmp_path / "out"
    layers = quantizing.convert(source, output, quantizing.Options("int5", 32))
    assert len(layers) == 4
    files = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in output.iterdir()) == files
    index = json.loads((output / quantizing.INDEX).read_text())["weight_map"]
    for path in output.glob("*.safetensors"):
        tensors = load_file(path)
        assert all(index.pop(name) == path.name for name in tensors)
        with safe_open(path, "pt") as stored:
            said = json.loads(stored.metadata()["tilus"])
        assert said == {"dtype": "int5", "group_size": 32, "zero_point": False}
        before = load_file(source / path.name)
        norm = next(name for name in before if "layernorm" in name)
        assert torch.equal(tensors[norm], before[norm])
    assert not index


def test_quantised_weights_are_near_the_given_ones_and_load_into_a_model(
    quantizing: ModuleType, tmp_path: Path
) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 32, bias=False))
    source = model(tmp_path / "in", **{k.replace(".", "__"): v for k, v in plain.state_dict().items()})
    weights = [layer.weight.detach().double() for layer in plain]
    bias = plain[0].bias.detach().half()
    quantizing.convert(source, tmp_path / "out", quantizing.Options("uint6", 16))
    load_quantized(plain, load_file(tmp_path / "out" / "model.safetensors"))
    assert torch.equal(plain[0].bias, bias)
    for layer, weight in zip(plain, weights):
        assert isinstance(layer, QuantizedLinear)
        # Half a step of the group's own range, which is at most that of the whole weight, and float16 scales.
        step = (weight.max() - weight.min()) / 63
        assert (layer.weight.dequantize() - weight.t()).abs().max() <= 0.51 * step


@pytest.mark.parametrize(
    ("tensors", "options", "expected"),
    [
        ({"a__weight": torch.zeros(8, 60)}, {}, "a.weight in model.safetensors: a group of 64 elements does not divide k = 60"),
        ({"a__weight": torch.zeros(8, 64, dtype=torch.int32)}, {}, "a.weight in model.safetensors is I32"),
        ({"a__weight": torch.full((8, 64), torch.nan)}, {}, "a.weight in model.safetensors: quantize takes finite weights"),
        ({"embed__weight": torch.zeros(8, 64)}, {}, "nothing to quantise"),
        ({"a__weight": torch.zeros(8, 64)}, {"keep": "a"}, "nothing to quantise"),
    ],
    ids=["group", "dtype", "finite", "kept", "kept by request"],
)  # fmt: skip
def test_what_cannot_be_quantised_is_said_and_nothing_is_written(
    quantizing: ModuleType, tmp_path: Path, tensors: dict[str, Any], options: dict[str, str], expected: str
) -> None:
    source = model(tmp_path / "in", **tensors)
    assert expected in message(quantizing.convert, source, tmp_path / "out", quantizing.Options(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_failure_in_a_later_file_leaves_nothing(quantizing: ModuleType, tmp_path: Path) -> None:
    source = model(tmp_path / "in", a__weight=torch.ones(8, 64))
    save_file({"b.weight": torch.full((8, 64), torch.inf)}, source / "z.safetensors")
    assert "b.weight in z.safetensors" in message(
        quantizing.convert, source, tmp_path / "out", quantizing.Options()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_wrong_files_and_outputs_are_named(quantizing: ModuleType, tmp_path: Path) -> None:
    convert, options = quantizing.convert, quantizing.Options()
    assert "missing does not exist" in message(convert, tmp_path / "missing", tmp_path / "out", options)
    assert "holds no .safetensors file" in message(convert, tmp_path, tmp_path / "out", options)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not one")
    assert "is not a safetensors file" in message(convert, broken, tmp_path / "out", options)
    source = model(tmp_path / "in", a__weight=torch.ones(8, 64))
    assert f"{source} exists" in message(convert, source, source, options)
    (source / quantizing.INDEX).write_text('{"weight_map": {"b.weight": "of-2.safetensors"}}')
    assert f"{source} lacks of-2.safetensors" in message(convert, source, tmp_path / "out", options)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--dtype", "uint9", "did you mean 'uint8'?"),
        ("--keep", "(", "unterminated subpattern"),
        ("--group", "many", "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments_are_refused(
    quantizing: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as error:
        quantizing.command_line([option, value])
    assert error.value.code == 2
    assert expected in capsys.readouterr().err


def test_packing_is_that_of_the_formats(loading: ModuleType) -> None:
    """Words written out by hand from AutoGPTQ's and AutoAWQ's packing."""
    eight = torch.arange(8)
    assert loading.pack_rows(eight[:, None], 4).tolist() == [[0x76543210]]
    # 32 codes of 3 bits fill three words; the eleventh and the twenty-second cross from one to the next.
    word = sum(6 << 3 * i for i in range(32))
    assert [x & 0xFFFFFFFF for x in loading.pack_rows(torch.full((32, 1), 6), 3).flatten().tolist()] == [
        word >> shift & 0xFFFFFFFF for shift in (0, 32, 64)
    ]
    assert loading.pack_columns(eight[None]).tolist() == [[0x75316420]]
    for bits in (2, 3, 4, 8):
        codes = torch.randint(0, 1 << bits, (64, 5), generator=torch.Generator().manual_seed(bits))
        assert torch.equal(loading.unpack_rows(loading.pack_rows(codes, bits), bits), codes)


def checkpoint(loading: ModuleType, folder: Path, **changes: Any) -> Path:
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    made: Path = loading.make_checkpoint(folder, config, 64, 32)
    (made / "config.json").write_text(json.dumps({"quantization_config": config | changes}))
    return made


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq', and this reads 'gptq' and 'awq'"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ of 4 bits, version gemv; this reads 4, gemm"),
        ({"bits": 8}, "model.layers.0.mlp.down_proj: GPTQ tensors of shapes"),
        ({"bits": 5}, "GPTQ of 5 bits"),
    ],
    ids=["method", "version", "shapes", "bits"],
)
def test_other_checkpoints_are_refused(
    loading: ModuleType, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in message(loading.check, checkpoint(loading, tmp_path / "c", **changes), 1, 2)


def test_missing_parts_of_a_checkpoint_are_named(loading: ModuleType, tmp_path: Path) -> None:
    assert "is no checkpoint" in message(loading.read, tmp_path)
    made = checkpoint(loading, tmp_path / "c")
    tensors = load_file(made / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "zeros" not in k}, made / "model.safetensors")
    assert "has a qweight, but no qzeros" in message(loading.read, made)
