"""The disk cache: what the key covers, damage, races, and folders that cannot be written to."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tilus
from tests.runtime import kernels
from tilus.errors import LaunchError
from tilus.runtime import cache
from tilus.runtime import kernel as kernel_module
from tilus.runtime.binary import Binary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count how often something is compiled."""
    made: list[str] = []
    original = kernel_module.compile_variant

    def counting(source: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(source.name)
        return original(source, *args, **kwargs)

    monkeypatch.setattr(kernel_module, "compile_variant", counting)
    return made


def launch(factor: float = 2.0, kernel: tilus.Kernel = kernels.scale_add) -> None:
    """Launch with nothing in memory, and check the numbers."""
    x, out = torch.arange(40.0), torch.zeros(40)
    tilus.Kernel(kernel.source)(x, x, out, factor=factor)
    assert torch.equal(out, x * factor + x)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels/*/*"))


def test_second_process_compiles_nothing(folder: Path, compilations: list[str]) -> None:
    launch()
    launch()
    assert (len(compilations), len(entries(folder))) == (1, 1)
    launch(factor=3.0)
    assert (len(compilations), len(entries(folder))) == (2, 2)


def test_a_kernel_that_is_kept_is_dumped_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch()
    monkeypatch.setenv("TILUS_DUMP", str(tmp_path / "dump"))
    launch()
    assert list(tmp_path.glob("dump/*/*.ir"))


def test_entry_gives_back_everything() -> None:
    binary = Binary.of(kernels.tma_copy.compile(target="sm_90a"))
    assert binary.signature.tensor_maps
    assert cache.binary_from_json(cache.binary_to_json(binary)) == binary


@pytest.mark.parametrize("where", ["checksum", "body", "end"])
def test_flipped_byte_is_noticed_and_made_anew(folder: Path, compilations: list[str], where: str) -> None:
    launch()
    (path,) = entries(folder)
    whole = path.read_bytes()
    position = {"checksum": 5, "body": len(whole) // 2, "end": len(whole) - 1}[where]
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    launch()
    assert len(compilations) == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, 64, 65, 300, -1])
def test_truncated_entry_is_made_anew(
    folder: Path, compilations: list[str], kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    launch()
    (path,) = entries(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    with caplog.at_level(logging.DEBUG, "tilus.cache"):
        launch()
    assert len(compilations) == 2
    assert path.read_bytes() == whole
    assert "is damaged and is made anew" in caplog.text


def test_bytes_that_are_no_text_are_made_anew(folder: Path, compilations: list[str]) -> None:
    launch()
    (path,) = entries(folder)
    path.write_bytes(b"\xff\xfe" * 100)
    launch()
    assert len(compilations) == 2


def test_entry_of_another_kernel_is_not_taken(folder: Path, compilations: list[str]) -> None:
    launch(factor=2.0)
    (first,) = entries(folder)
    launch(factor=3.0)
    (second,) = (path for path in entries(folder) if path != first)
    second.write_bytes(first.read_bytes())
    launch(factor=3.0)
    assert len(compilations) == 3


def test_changed_compiler_finds_nothing(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch()
    monkeypatch.setattr(cache, "compiler_digest", lambda: "another compiler")
    launch()
    assert len(compilations) == 2


def test_compiler_digest_covers_each_file_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tilus"
    files = [
        "codegen/lower/dot.py",
        "passes/layouts.py",
        "ir/grammar.lark",
        "lang/source.py",
        "layout/x.py",
        "dtypes/y.py",
        "runtime/host_expression.py",
        "runtime/signature.py",
    ]
    for name in [*files, "runtime/kernel.py"]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("a = 1\n")
    monkeypatch.setattr(tilus, "__file__", str(package / "__init__.py"))
    digest = cache.compiler_digest.__wrapped__
    before = digest()
    assert digest() == before
    for name in files:
        (package / name).write_text("a = 2\n")
        changed = digest()
        (package / name).write_text("a = 1\n")
        assert changed != before, name
    (package / "codegen/new.py").write_text("")
    assert digest() != before
    (package / "codegen/new.py").unlink()
    (package / "runtime/kernel.py").write_text("a = 2\n")
    assert digest() == before
    for library in ("llvmlite", "nvjitlink"):
        with monkeypatch.context() as patch:
            if library == "llvmlite":
                patch.setattr("importlib.metadata.version", lambda name: "0.0")
            else:
                patch.setattr(cache, "assemblers", lambda: "nvjitlink 0.0")
            assert digest() != before, library
    monkeypatch.setattr(tilus, "__version__", "0.0.0")
    assert digest() != before


def test_compiler_digest_covers_a_package_without_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = cache.compiler_digest.__wrapped__
    package, archive = tmp_path / "compiled" / "tilus", tmp_path / "tilus.zip"
    for root, file in ((package, package / "codegen" / "lower.pyc"), (archive / "tilus", archive)):
        file.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(tilus, "__file__", str(root / "__init__.py"))
        file.write_bytes(b"one")
        before = digest()
        assert digest() == before
        file.write_bytes(b"two")
        assert digest() != before


def test_key_covers_source_values_types_and_target(folder: Path, compilations: list[str]) -> None:
    source = textwrap.dedent(
        """
        import tilus
        from tilus import Tensor, constexpr, float32

        @tilus.kernel
        def program(x: Tensor[float32, "n"], *, value: constexpr = 1.0):
            tilus.grid(1, warps=1)
            tilus.store(x, tilus.full([32], value, float32), [0])
        """
    )

    def run(text: str, size: int = 32, **options: Any) -> None:
        path = folder.parent / "program.py"
        path.write_text(text)
        import linecache

        linecache.clearcache()
        namespace: dict[str, Any] = {"__name__": "program"}
        exec(compile(text, str(path), "exec", dont_inherit=True), namespace)
        namespace["program"](torch.zeros(size), **options)

    for expected, arguments in enumerate(
        (
            {"text": source},
            {"text": source, "value": 2.0},
            {"text": source, "size": 33},
            {"text": source.replace("value, float32), [0]", "value * 2.0, float32), [0]")},
        ),
        1,
    ):
        run(**arguments)
        run(**arguments)
        assert len(compilations) == expected
    os.environ["TILUS_SIMULATOR_TARGET"] = "sm_80"
    try:
        run(source)
    finally:
        del os.environ["TILUS_SIMULATOR_TARGET"]
    assert len(compilations) == 5


def test_a_folder_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("TILUS_CACHE_DIR", os.path.join("~", "kept"))
    assert cache.directory() == tmp_path / "kept"


def test_switched_off_cache_keeps_nothing(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILUS_CACHE", "0")
    launch()
    launch()
    assert len(compilations) == 2
    assert not folder.exists()


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_CACHE", "/var/cache/tilus")
    with pytest.raises(LaunchError, match="TILUS_CACHE is '/var/cache/tilus', expected 0 or 1") as caught:
        launch()
    assert "TILUS_CACHE_DIR" in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no folders that are read-only for their owner")
def test_folder_that_cannot_be_written_to_costs_one_warning(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):
        # The administrator may write anywhere: a file in the place of the folder has the same effect.
        folder.rmdir()
        folder.write_text("in the way")
    cache._first_failure.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            launch()
            launch(factor=3.0)
        assert len(found) == 1
        assert len(compilations) == 2
        assert found[0].category is RuntimeWarning
        assert "compiled kernels are not kept" in str(found[0].message)
        assert "TILUS_CACHE_DIR" in str(found[0].message)
    finally:
        folder.chmod(stat.S_IRWXU)
        cache._first_failure.cache_clear()


def test_failed_write_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        cache.write_file(tmp_path / "entry.json", b"data")
    assert list(tmp_path.iterdir()) == []


RACER = """
import sys, time
import torch
from tests.runtime import kernels
x, out = torch.arange(40.0), torch.zeros(40)
print("ready", flush=True)
sys.stdin.readline()
for factor in range(2, 6):
    out.zero_()
    kernels.scale_add(x, x, out, factor=float(factor))
    assert torch.equal(out, x * factor + x)
print("done")
"""


def test_racing_processes_agree(folder: Path) -> None:
    command = [sys.executable, "-c", RACER]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    racers = [subprocess.Popen(command, env=environment, **options) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    outputs = [racer.communicate("go\n", timeout=120)[0] for racer in racers]
    assert outputs == ["done\n", "done\n"]
    found = entries(folder)
    assert len(found) == 4
    assert all(path.suffix == ".json" for path in found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(cache.read(path.stem) is not None for path in found)


def test_no_entry_is_read_through_pickle_or_code() -> None:
    source = Path(cache.__file__).read_text()
    assert not any(
        word in source.replace("no pickle", "") for word in ("import pickle", "marshal", "eval(", "exec(")
    )
