"""Passes run in order, are verified, and leave their text where TILUS_DUMP says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.ir.kernels import make
from tilus.errors import InvalidValue
from tilus.ir import Kernel
from tilus.ir.parser import parse_kernel
from tilus.ir.printer import print_kernel
from tilus.ir.verifier import InvalidIR
from tilus.passes import Pass, run
from tilus.passes.canonicalise import canonicalise

TEXT = '%v = binary %x, %x {kind = "sub"} @ "k.py":2:0\nprint [%v] {format = ""}'


def renamed(kernel: Kernel) -> Kernel:
    return dataclasses.replace(kernel, name=kernel.name + "_1")


def broken(kernel: Kernel) -> Kernel:
    return dataclasses.replace(kernel, warps=99)


STEPS = [Pass("canonicalise", canonicalise), Pass("rename (1)", renamed)]


def test_passes_run_in_order():
    steps = [Pass("a", lambda k: dataclasses.replace(k, name=k.name + "a")), Pass("b", renamed)]
    assert run(make(""), steps).name == "testa_1"
    assert STEPS[1](make("")).name == "test_1"


def test_what_a_pass_breaks_is_named():
    with pytest.raises(InvalidIR, match="after pass break: a thread block has 1 to 32 warps, not 99"):
        run(make(""), [*STEPS, Pass("break", broken)])
    with pytest.raises(InvalidIR, match="after the input: a thread block has"):
        run(broken(make("")), STEPS)
    assert run(make(""), [Pass("break", broken)], check=False).warps == 99


def test_layouts_are_required_from_the_pass_on_that_makes_them():
    laid = make('%t = iota {shape = [32], layout = #reg([32], [32@0:1], [])}\nprint [%t] {format = ""}')
    tiles = make('%t = iota {shape = [32]}\nprint [%t] {format = ""}')
    steps = [Pass("early", renamed), Pass("infer", renamed, layouts=True), Pass("late", renamed)]
    with pytest.raises(InvalidIR, match="after pass infer: no layout for the tile"):
        run(tiles, steps)
    run(tiles, steps[:1])
    with pytest.raises(InvalidIR, match="after pass lose: no layout for the tile"):
        run(laid, [*steps, Pass("lose", lambda kernel: tiles)])


@pytest.mark.parametrize("by_environment", [True, False])
def test_each_step_is_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool):
    kernel = make(TEXT, "%x: i32")
    if by_environment:
        monkeypatch.setenv("TILUS_DUMP", str(tmp_path))
        made = run(kernel, STEPS)
    else:
        made = run(kernel, STEPS, dump=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("test-")
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert sorted(files) == ["00-input.ir", "01-canonicalise.ir", "02-rename_1.ir"]
    assert files["00-input.ir"] == print_kernel(kernel, locations=True)
    assert '@ "k.py":2:0' in files["00-input.ir"]
    assert files["02-rename_1.ir"] == print_kernel(made, locations=True)
    assert print_kernel(parse_kernel(files["01-canonicalise.ir"])) == print_kernel(canonicalise(kernel))


def test_a_folder_for_dumps_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidValue, match=r"the folder for dumps, .*, cannot be written to"):
        run(make(""), [], dump=tmp_path / "file")


def test_a_kernel_that_a_pass_broke_is_dumped_all_the_same(tmp_path: Path):
    with pytest.raises(InvalidIR):
        run(make(""), [Pass("break", broken)], dump=tmp_path)
    assert [path.name for path in tmp_path.glob("*/*")].count("01-break.ir") == 1


def test_specialisations_of_one_kernel_do_not_overwrite_each_other(tmp_path: Path):
    run(make("", "%x: i32"), [], dump=tmp_path)
    run(make("", "%x: i64"), [], dump=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_dumped_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILUS_DUMP", "")
    run(make(""), STEPS)
    assert not list(tmp_path.iterdir())
