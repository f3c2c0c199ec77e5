"""A cache folder of its own for the tests of the run time, and the fake CUDA driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "fake_cuda"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tilus-cache")


@pytest.fixture(autouse=True)
def cache_folder(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_CACHE_DIR", str(shared_cache))
    for name in ("TILUS_CACHE", "TILUS_SIMULATOR_CHECKS", "TILUS_SIMULATOR_TARGET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def fake_driver(c_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a libcuda.so.1 that writes down what it is asked."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the fake CUDA driver is a libcuda.so.1, which only Linux loads")
    folder = tmp_path_factory.mktemp("fake-cuda")
    command = [
        c_compiler,
        "-std=gnu99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{FAKE}",
    ]
    command += [*map(str, sorted(FAKE.glob("*.c"))), "-o", str(folder / "libcuda.so.1"), "-ldl"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def with_fake_driver(fake_driver: Path, tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """Run a program with the fake driver; return what it prints and what the driver was asked."""
    pytest.importorskip("cuda.bindings", reason="NVIDIA has no cuda-bindings for this platform")

    def run(command: list[str], **variables: object) -> tuple[str, list[str]]:
        log = tmp_path / "driver.log"
        log.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(fake_driver),
            "FAKE_CUDA_LOG": str(log),
            **{f"FAKE_CUDA_{name.upper()}": str(value) for name, value in variables.items()},
        }
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout, log.read_text().splitlines() if log.exists() else []

    return run
