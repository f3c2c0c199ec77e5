"""Every example runs and finds itself right; small sizes, on the simulator."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tilus.runtime.kernel import Kernel

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
# The demonstration downloads weights: `make demo` runs it.
RUN_HERE = sorted(
    path.relative_to(EXAMPLES).as_posix()
    for path in EXAMPLES.rglob("*.py")
    if path.name != "quantize_minilm.py"
)
# These run on the simulator, whatever the machine has.
SIMULATED = ["hopper_matmul.py"]
# These run on the simulator unless the GPU is one of this capability.
NEEDS_CAPABILITY = {"hopper_attention.py": (9, 0)}
# These say what the simulator counts, beside what the GPU computes.
SAYS_NO_DEVICE = ["quantized_matmul.py"]
NO_DEFAULTS: dict[str, dict[str, object]] = {"mixture_of_experts.py": {"dtype": "uint4", "tokens": 65}}
SMALL: dict[str, dict[str, object]] = {
    "flash_attention.py": {"lengths": ((5, 70), (20, 9)), "sizes": (64,)},
    "hopper_attention.py": {"lengths": ((5, 70), (20, 9)), "sizes": (64,)},
    "hopper_matmul.py": {"m": 128, "n": 256, "k": 128},
    "layer_norm.py": {"shapes": ((5, 333),)},
    "load_gptq_awq.py": {"k": 128, "n": 64},
    "matmul/naive.py": {"m": 70, "n": 72, "k": 40},
    "matmul/pipelined.py": {"m": 70, "n": 72, "k": 160},
    "matmul/shared_memory.py": {"m": 70, "n": 72, "k": 40},
    "matmul/split_k.py": {"m": 10, "n": 72, "k": 500},
    "mixture_of_experts.py": {"dtype": "uint4", "tokens": 9},
    "paged_attention.py": {"lengths": (70, 64), "names": "float16 int4"},
    "quantize_safetensors.py": {"hidden": 64},
    "quantized_matmul.py": {"n": 64, "names": "uint3 float6_e3m2"},
    "softmax.py": {"shapes": ((7, 333), (2, 2001))},
    "vector_add.py": {"n": 1500},
}


NEEDS_SAFETENSORS = ["load_gptq_awq.py", "quantize_safetensors.py"]


def load(name: str) -> ModuleType:
    if name in NEEDS_SAFETENSORS:
        pytest.importorskip("safetensors", reason="this example reads and writes safetensors files")
    spec = importlib.util.spec_from_file_location("example_" + Path(name).stem, EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, **options: object) -> None:
    (module.main if hasattr(module, "main") else module.run)(**options)


@pytest.mark.parametrize("name", RUN_HERE)
def test_example_runs_and_is_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(load(name), **SMALL.get(name, {}))
    assert capsys.readouterr().out.strip()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in RUN_HERE if name not in SIMULATED])
def test_example_runs_on_the_gpu(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.get_device_capability() != NEEDS_CAPABILITY.get(name, torch.cuda.get_device_capability()):
        pytest.skip("this example is written for another GPU")
    run(load(name), **NO_DEFAULTS.get(name, {}))
    printed = capsys.readouterr().out
    assert printed.strip() if name in SAYS_NO_DEVICE else "cuda" in printed


def test_example_runs_from_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "vector_add.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "equal to torch's sum" in result.stdout


@pytest.mark.parametrize("name", RUN_HERE)
def test_examples_notice_wrong_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives zeros fails the example's own check."""
    module = load(name)
    simulate = Kernel.simulate

    def lose(kernel: Kernel, *arguments: Any, **options: Any) -> None:
        [x for x in arguments if isinstance(x, torch.Tensor)][-1].zero_()

    def simulate_and_lose(kernel: Kernel, *arguments: Any, **options: Any) -> Any:
        report = simulate(kernel, *arguments, **options)
        lose(kernel, *arguments)
        return report

    monkeypatch.setattr(Kernel, "__call__", lose)
    monkeypatch.setattr(Kernel, "simulate", simulate_and_lose)
    with pytest.raises((AssertionError, SystemExit)):
        run(module, **SMALL.get(name, {}))
