"""The `tilus` command: what it prints and writes, its errors and its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tilus
from tilus.cli import doctor, main
from tilus.cli.inspect import find_disassembler
from tilus.codegen.assemble import available

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import tilus
from tilus import Tensor, constexpr, float32

@tilus.kernel
def scale(x: Tensor["dtype", "n"], out: Tensor["dtype", "n"], *, dtype: constexpr = float32, block: constexpr = 128):
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, block), warps=4)
    i = tilus.block_id()
    tilus.store(out, tilus.load(x, [i * block], shape=[block]) * 2.0, [i * block])

@tilus.kernel
def broken(x: Tensor[float32, "n"]):
    tilus.grid(1)
    y = undefined_name

class group:
    inner = scale

tuned = tilus.autotune(tilus.Space(block=(128, 256)))(scale)
"""
needs_assembler = pytest.mark.skipif(
    available() is not None, reason="NVIDIA has no assembler for this platform"
)


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


def test_compile_writes_files_that_load(run, program: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    variant = "n <= 1000 and n % 2 == 0: block=32"
    result = run("compile", f"{program}::scale", "--target", "sm_80", "--target", "sm_90", "--set", "block=64",
                 "--arg", "x=float16", "--variant", variant, "-o", out)  # fmt: skip
    assert result.code == 0, result.err
    written = {path.name for path in out.iterdir()}
    kinds = ["ptx"] if available() is not None else ["ptx", "cubin"]
    expected = {f"scale.{v}.{t}.{kind}" for v in range(4) for t in ("sm_80", "sm_90a") for kind in kinds}
    assert written == expected | {"scale.c", "scale.h", "scale.json"}
    assert f"{len(written)} files in {out}:" in result.out
    data = json.loads((out / "scale.json").read_text())
    assert [p["dtype"] for p in data["parameters"]] == ["float16", "float16"]
    assert data["variants"][0]["comment"] == "16-byte aligned; block=32; if n <= 1000 and n % 2 == 0"
    import torch

    kernel = tilus.load_manifest(out / "scale.json")
    x, y = torch.randn(100).half(), torch.zeros(100).half()
    kernel(x, y)
    assert torch.equal(y, x * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compile", "{}::scale", "--target", "sm_80", "--set", "block"],
            "--set 'block': expected NAME=VALUE",
        ),
        (
            ["compile", "{}::scale", "--target", "sm_80", "--set", "block=wide"],
            "'wide' is no Python literal, dtype or layout",
        ),
        (
            ["compile", "{}::scale", "--target", "sm_80", "--set", "block=1", "--set", "block=2"],
            "block is given twice",
        ),
        (
            ["compile", "{}::scale", "--target", "sm_80", "--size", "n=many"],
            "--size n=many: expected a positive integer",
        ),
        (
            ["compile", "{}::scale", "--target", "sm_80", "--variant", "n < 3"],
            "expected CONDITION: NAME=VALUE",
        ),
        (
            ["compile", "{}::scael", "--target", "sm_80"],
            "has no kernel 'scael'; its kernels are: scale, broken",
        ),
        (
            ["compile", "{}", "--target", "sm_80"],
            "has several kernels or none (scale, broken, tuned), expected",
        ),
        (["compile", "{}::", "--target", "sm_80"], "names no kernel, expected FILE::KERNEL"),
        (["compile", "missing.py::scale", "--target", "sm_80"], "there is no file missing.py"),
        (
            ["compile", "no_such_module::scale", "--target", "sm_80"],
            "there is no file and no module no_such_module",
        ),
        (["inspect", "{}:scale"], "has one colon, expected"),
        (["inspect", "{}::scale", "--stage", "asm"], "there is no stage 'asm'; stages are ir, llvm, ptx"),
        (["layout", "spatial(8, 4)", "--bits", "0"], "--bits 0: expected a positive integer"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(run, program: str, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    result = run(*(argument.format(program) for argument in arguments))
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith(f"tilus {arguments[0]}: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["compil"], ["compile"], ["compile", "x.py::f"], ["inspect"], ["layout"]]
)
def test_arguments_that_are_missing_are_wrong_use(run, arguments: list[str]) -> None:  # type: ignore[no-untyped-def]
    result = run(*arguments)
    assert result.code == 2
    assert "usage: tilus" in result.err


def test_errors_of_a_kernel_have_their_line_and_code_1(run, program: str) -> None:  # type: ignore[no-untyped-def]
    result = run("inspect", f"{program}::broken", "--stage", "ir")
    assert result.code == 1
    assert result.err.startswith(f"error: {program}:15: ")
    assert "y = undefined_name" in result.err
    assert "Traceback" not in result.err
    result = run("compile", f"{program}::scale", "--target", "sm_11")
    assert (result.code, result.err.splitlines()[0]) == (1, "error: no target named 'sm_11'")


def test_file_that_raises_is_wrong_use(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "raising.py"
    path.write_text("1 / 0\n")
    result = run("inspect", f"{path}::f")
    assert (result.code, result.err) == (
        2,
        f"tilus inspect: {path} cannot be imported: ZeroDivisionError: division by zero\n",
    )
    path.write_text("import a_module_that_is_missing\n")
    assert "No module named 'a_module_that_is_missing'" in run("inspect", f"{path}::f").err


def test_file_imports_what_lies_beside_it(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "beside_it.py").write_text(PROGRAM)
    (tmp_path / "uses_it.py").write_text("from beside_it import scale\n")
    assert run("inspect", f"{tmp_path / 'uses_it.py'}::scale", "--stage", "ir").code == 0


def test_inspect_prints_each_stage(run, program: str) -> None:  # type: ignore[no-untyped-def]
    def stage(name: str, *more: str) -> str:
        result = run("inspect", f"{program}::group.inner", "--stage", name, "--target", "sm_80", *more)
        assert result.code == 0, result.err
        return str(result.out)

    assert "load_global" in stage("ir")
    passes = stage("passes").split()
    assert "infer-layouts" in passes
    before, after = stage(passes[0]), stage("infer-layouts")
    assert "spatial" not in before
    assert before != after
    assert "define ptx_kernel void @scale" in stage("llvm")
    assert ".target sm_80" in stage("ptx")
    assert "f16" not in stage("ptx")
    assert "f16" in stage("ptx", "--arg", "x=float16")
    assert "block_id" in stage("ir", "--locations")


def test_a_kernel_that_tunes_itself_is_one_too(run, program: str) -> None:  # type: ignore[no-untyped-def]
    result = run("inspect", f"{program}::tuned", "--set", "block=256", "--stage", "ir")
    assert result.code == 0
    assert "scale" in result.out


def test_inspect_may_assume_nothing(run, program: str) -> None:  # type: ignore[no-untyped-def]
    options = ["--stage", "ptx", "--set", "block=1024", "--target", "sm_80"]
    assert ".v4." in run("inspect", f"{program}::scale", *options).out
    unaligned = run("inspect", f"{program}::scale", *options, "--unaligned").out
    assert not re.search(r"\.v[24]\.", unaligned)


@needs_assembler
def test_inspect_prints_resources_and_sass(run, program: str) -> None:  # type: ignore[no-untyped-def]
    out = run("inspect", f"{program}::scale", "--stage", "resources").out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert int(rows["registers"]) > 0
    assert (rows["spill_stores"], rows["threads"]) == ("0", "128")
    result = run("inspect", f"{program}::scale", "--stage", "sass")
    if find_disassembler() is None:
        assert result.code == 1
        assert "SASS needs nvdisasm" in result.err
    else:
        assert "EXIT" in result.out


def test_source_that_the_output_cannot_encode_is_printed_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.replace("tilus.store(out, ", "tilus.store((out, 'ß →')[0], "), encoding="utf-8")
    command = [sys.executable, "-m", "tilus", "profile", f"{path}::scale", "--size", "n=256"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert r"tilus.store((out, '\xdf \u2192')[0]" in done.stdout


def test_constexprs_without_a_value_are_asked_for(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "program.py"
    path.write_text(
        PROGRAM.replace(
            "dtype: constexpr = float32, block: constexpr = 128", "dtype: constexpr, block: constexpr"
        )
    )
    for command in (["inspect"], ["compile", "--target", "sm_80", "-o", tmp_path]):
        result = run(*command, f"{path}::scale", "--arg", "x=float32")
        assert result.code == 2
        assert result.err.endswith("its constexpr parameter block, expected --set block=VALUE\n")
        assert "expected --set dtype=DTYPE or --arg x=DTYPE" in run(*command, f"{path}::scale").err


def test_layout_is_drawn(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    svg = tmp_path / "layout.svg"
    result = run("layout", "spatial(2, 2).local(1, 2)", "--svg", svg)
    assert result.code == 0
    assert result.out.startswith("2x4 over 4 threads, 2 elements each\n")
    assert result.out.endswith(f"1  2:0 2:1 3:0 3:1\nwrote {svg}\n")
    assert svg.read_text().startswith("<svg")
    shared = run("layout", "row_major(2, 4)", "--bits", "16")
    assert (shared.code, shared.err) == (0, "")
    assert "3/1" in shared.out, "element 3 of 16 bits is in bank 1"
    wrong = run("layout", "spatial(2")
    assert wrong.code == 1
    assert wrong.err.startswith("error: ")
    assert run("layout", "__import__('os').getcwd()").code == 1
    unwritable = run("layout", "spatial(2, 2)", "--svg", tmp_path / "missing" / "x.svg")
    assert unwritable.code == 2


def test_doctor_says_what_works(run) -> None:  # type: ignore[no-untyped-def]
    result = run("doctor")
    assert result.code == 0
    lines = result.out.splitlines()
    rows = {line[4:].split()[0]: line[:2] for line in lines[: len(doctor.LOOKS)]}
    assert list(rows) == [what for what, _ in doctor.LOOKS]
    assert (rows["python"], rows["llvm"], rows["simulator"], rows["cache"]) == ("ok",) * 4
    assert "Kernels compile to PTX." in lines
    assert "Kernels run on CPU tensors, on the simulator." in lines


def test_doctor_knows_misspelt_variables(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (line,) = (line for line in run("doctor").out.splitlines() if "variables" in line)
    assert line.startswith("ok")
    monkeypatch.setenv("TILUS_CACHEDIR", "/tmp")
    (line,) = (line for line in run("doctor").out.splitlines() if "variables" in line)
    assert line.startswith("--")
    assert "TILUS_CACHEDIR is read by nothing: did you mean TILUS_CACHE_DIR?" in line


def test_doctor_never_fails(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def fall_over() -> tuple[bool, str]:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(doctor, "LOOKS", tuple((what, fall_over) for what, _ in doctor.LOOKS))
    result = run("doctor")
    assert result.code == 0
    assert result.out.count("RuntimeError: two lines") == len(doctor.LOOKS)
    assert "Kernels do not compile: pip install llvmlite" in result.out


def test_doctor_without_the_optional_packages() -> None:
    code = """
        import sys
        for name in ("torch", "cuda", "llvmlite"):
            sys.modules[name] = None
        from tilus.cli import main
        sys.exit(main(["doctor"]))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert "Kernels do not compile" in result.stdout


def test_module_is_the_command_and_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "tilus", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
        == f"tilus {tilus.__version__}\n"
    )
    layout = subprocess.Popen(
        [sys.executable, "-m", "tilus", "layout", "spatial(64, 4).local(4, 64)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert layout.stdout is not None
    assert layout.stderr is not None
    layout.stdout.close()
    assert layout.stderr.read() == b""
    assert layout.wait() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tilus", "layout", "spatial(2, 2)"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("tilus layout: ")
    assert result.stderr.count("\n") == 1
