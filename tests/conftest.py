"""What all tests share: golden text, the C compiler, and which tests a machine without a GPU leaves out."""

from __future__ import annotations

import ctypes
import difflib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Two test processes on two cores: threads of the numeric libraries would only fight each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def count_gpus() -> int:
    """Return how many CUDA devices the driver shows, by asking the driver library alone."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("TILUS_REQUIRE_GPU") and count_gpus() == 0:
        pytest.exit("no CUDA GPU on this machine: the driver shows no device", returncode=1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # A GPU machine has the packages that it has; a file without GPU tests must not need to import there.
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(tryfirst=True)  # before -m selects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.golden)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and count_gpus() == 0:
        skip = pytest.mark.skip(reason="no CUDA GPU on this machine")
        for item in gpu_items:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests compile in a folder of this run, which all its processes share."""
    base = tmp_path_factory.getbasetemp()
    os.environ["TILUS_CACHE_DIR"] = str(
        (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with the file ``goldens/<test file>/<name>`` beside the test.

    Use it as ``golden(text, "unknown_name.txt")``. With ``--update-golden`` the file is written instead.
    """
    test_file = Path(request.path)
    folder = test_file.parent / "goldens" / test_file.stem.removeprefix("test_")

    def compare(text: str, name: str) -> None:
        path = folder / name
        text = text if text.endswith("\n") else text + "\n"
        if request.config.getoption("--update-golden"):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        if not path.exists():
            pytest.fail(f"there is no {path}: run `make goldens` and read what it writes")
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), str(path), "now", lineterm=""
            )
            pytest.fail("\n".join(["the text differs from the golden file:", *lines]), pytrace=False)

    return compare


@pytest.fixture(scope="session")
def c_compiler() -> str:
    """Return a C compiler's path; the test is skipped where there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    pytest.skip("no C compiler (cc, gcc or clang) on this machine")
