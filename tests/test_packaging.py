"""The package as users get it: what the wheel holds, what importing it costs, and what depends on what."""

from __future__ import annotations

import ast
import configparser
import email
import importlib
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tilus"

# The distributions of pyproject.toml by the module that each brings.
RUNTIME_MODULES = {
    "numpy": "numpy",
    "llvmlite": "llvmlite",
    "lark": "lark",
    "filelock": "filelock",
    "platformdirs": "platformdirs",
    "cuda": "cuda-bindings",
    "torch": "torch",
    "rich": "rich",
}


def run(code: str, python: Path | str = sys.executable, cwd: Path = ROOT) -> str:
    """Run code in a fresh process that sees neither the user's site nor a local path, and return its output."""
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the build backend that is installed, so that no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, timeout=300)
    (path,) = folder.glob("tilus-*.whl")
    return path


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def test_wheel_holds_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    held = {name for name in names if ".dist-info/" not in name}
    present = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert held == {path.relative_to(ROOT).as_posix() for path in present}
    assert {"tilus/__init__.py", "tilus/py.typed"} <= held
    assert wheel.name.endswith("-py3-none-any.whl")
    assert metadata(wheel, "licenses/LICENSE").startswith(" " * 33 + "Apache License")


def test_wheel_states_version_python_and_dependencies(wheel: Path) -> None:
    fields = email.message_from_string(metadata(wheel, "METADATA"))
    assert (fields["Name"], fields["Version"], fields["Requires-Python"]) == ("tilus", "0.1.0", ">=3.10")
    assert fields["License-Expression"] == "Apache-2.0"
    needed = [line for line in fields.get_all("Requires-Dist") if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line).group() for line in needed}
    assert names == {*RUNTIME_MODULES.values(), "nvidia-nvjitlink"} - {"torch", "rich"}
    assert all("platform" in line for line in needed if re.match("cuda|nvidia", line))
    assert {"torch", "ptxas", "tune", "demo", "test", "dev", "bench"} <= set(fields.get_all("Provides-Extra"))


def test_entry_points_name_what_exists(wheel: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(metadata(wheel, "entry_points.txt"))
    targets = {(group, name): target for group in parser for name, target in parser[group].items()}
    assert targets == {
        ("console_scripts", "tilus"): "tilus.cli:main",
        ("torch_dynamo_backends", "tilus"): "tilus.torch:backend",
    }
    for target in targets.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_installed_alone_in_an_empty_environment_it_imports(wheel: Path, tmp_path: Path) -> None:
    # Installed without its dependencies: an import that needs even one of them fails.
    venv.create(tmp_path / "env", with_pip=False)
    (python,) = (path for path in (tmp_path / "env").glob("*/python*") if path.stem == "python")
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, timeout=300)
    code = "import tilus, sys; print(tilus.__file__, 'numpy' in sys.modules)"
    file, numpy_loaded = run(
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]; {code}", python, cwd=tmp_path
    ).split()
    assert Path(file).is_relative_to((tmp_path / "env").resolve())
    assert numpy_loaded == "False"


def test_import_loads_nothing_heavy() -> None:
    loaded = set(run("import sys, tilus; print(*{name.split('.')[0] for name in sys.modules})").split())
    assert "tilus" in loaded
    assert not loaded & {"torch", "llvmlite", "lark", "numpy", "cuda"}


def test_all_but_ops_and_torch_imports_without_torch_and_cuda_bindings() -> None:
    code = """
        import importlib, pkgutil, sys
        sys.modules["torch"] = sys.modules["cuda"] = None  # importing either raises ImportError
        import tilus
        def walk(package):
            for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                if info.name in ("tilus.ops", "tilus.torch") or info.name.endswith(".__main__"):
                    continue
                module = importlib.import_module(info.name)
                print(info.name)
                if info.ispkg:
                    walk(module)
        walk(tilus)
    """
    imported = run("\n".join(line[8:] for line in code.splitlines())).split()
    present = {path.parent.name if path.name == "__init__.py" else path.stem for path in PACKAGE.glob("*.py")}
    assert {f"tilus.{name}" for name in present} - {"tilus.tilus", "tilus.__main__"} <= set(imported)


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports anywhere."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*prefix, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if base == "tilus")


def test_every_folder_of_the_package_is_a_package() -> None:
    # The import contract does not see into a folder without __init__.py.
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_every_import_is_declared() -> None:
    known = sys.stdlib_module_names | RUNTIME_MODULES.keys() | {"tilus"}
    unknown = {
        (str(path.relative_to(ROOT)), name)
        for path in PACKAGE.rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] not in known
    }
    assert not unknown


def test_simulator_imports_nothing_of_tilus() -> None:
    others = {
        (path.name, name)
        for path in (PACKAGE / "simulator").rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] == "tilus" and not name.startswith("tilus.simulator")
    }
    assert not others


def test_only_runtime_and_cli_import_the_simulator() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        for name in imports(path)
        if name.startswith("tilus.simulator")
    }
    assert importers <= {"simulator", "runtime", "cli", "cli.py"}
