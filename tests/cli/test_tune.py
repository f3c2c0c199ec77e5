"""`tilus tune`: what it prints, its errors, and that a search goes on in another process where one dies."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tilus.cli import UsageError, tune
from tilus.errors import TilusError

torch = pytest.importorskip("torch")

PROGRAM = """
import tilus
from tilus import Tensor, constexpr, float32

@tilus.kernel
def scale(x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, block: constexpr = 128, factor: constexpr = 2.0):
    (n,) = x.shape
    tilus.static_assert(block != 96, "ninety-six is not good")
    tilus.grid(tilus.cdiv(n, block), warps=1)
    i = tilus.block_id()
    tilus.store(out, tilus.load(x, [i * block], shape=[block]) * factor, [i * block])
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return f"{path}::scale"


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "has_gpu", lambda: False)


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    tune.add_command(parser.add_subparsers())
    options = parser.parse_args(["tune", *map(str, words)])
    code: int = options.run(options)
    return code


def test_candidates_are_listed_with_the_fastest_first(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--size", "n=1000000")
    assert command(program, *size, "--space", "block=32,96,1024", "--card", "A100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["block", "microseconds"]
    # With 32 elements a block has nothing to do but to begin and to end.
    assert [line.split()[0] for line in lines[1:4]] == ["1024", "32", "96"]
    assert lines[3].split()[1] == "failed"
    assert "ninety-six is not good" in lines[3]
    assert lines[-1] == "fastest, estimated for A100: --set block=1024"


def test_a_condition_leaves_candidates_out(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    command(
        program, "--size", "n=4096", "--space", "block=32,64,128,256", "--set", "factor=3.0", "--json",
        "--where", "block * 64 <= n and block > 32",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["kernel"] == "scale"
    assert found["device"] == "H200"
    assert found["method"] == "model"
    assert [trial["values"] for trial in found["trials"]] == [{"block": 64}]
    assert found["trials"][0]["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--size", "n=64"],
            "scale has nothing to choose from, expected --space NAME=VALUE,VALUE for some of: block",
        ),
        (["--size", "n=64", "--space", "block"], "--space 'block': expected NAME=VALUE"),
        (["--size", "n=64", "--space", "block=x"], "'x' is no Python literal, dtype or layout"),
        (["--size", "n=64", "--space", "block=32", "--card", "TPU"], "--card: there are no figures of 'TPU'"),
        (["--space", "block=32"], "scale needs the size of n, expected --size n=..."),
    ],
)
def test_wrong_use_is_said_in_one_sentence(program: str, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        command(program, *words)


def test_a_condition_that_is_none_is_an_error(program: str) -> None:
    for text, message in (
        ("block >", "is no expression"),
        ("size > 3", "reads size, which is neither chosen nor"),
    ):
        with pytest.raises(TilusError, match=message):
            command(program, "--size", "n=64", "--space", "block=32", "--where", text)


def test_lists_in_a_space_stay_whole() -> None:
    assert tune.split("1, (2, 3), [4, 5], 6") == ["1", " (2, 3)", " [4, 5]", " 6"]


# Ops.


def test_an_op_gets_a_schedule_for_each_shape(capsys: pytest.CaptureFixture[str]) -> None:
    command("matmul", "--shape", "256x1024x512", "--shape", "16x1024x512", "--card", "A100", "--keep", 2)
    out = capsys.readouterr().out
    assert "matmul 256x1024x512, 16 bits, estimated on A100" in out
    assert "matmul 16x1024x512, 16 bits, estimated on A100" in out
    assert out.count("block_m  block_n  block_k") == 2


def test_an_ops_schedules_as_json_are_what_the_generator_takes(capsys: pytest.CaptureFixture[str]) -> None:
    command(
        "quantized_matmul", "--shape", "1x1024x1024", "--bits", 3, "--card", "L40S", "--keep", 1, "--json"
    )
    (found,) = json.loads(capsys.readouterr().out)
    assert found["op"] == "quantized_matmul"
    assert found["target"] == "sm_89"
    assert found["key"] == {
        "code": "int3", "m": 1, "n": 1024, "k": 1024, "activations": 16, "group": 128, "zero": False,
    }  # fmt: skip
    assert found["schedule"]["block_n"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["matmul"], "matmul needs a problem, expected --shape MxNxK"),
        (["matmul", "--shape", "16x16"], "--shape '16x16': expected MxNxK"),
        (["matmul", "--shape", "0x16x16"], "--shape '0x16x16': expected MxNxK"),
        (["matmul", "--shape", "16x16x16", "--bits", "4"], "--bits 4: expected one of 8, 16, 32"),
        (["quantized_matmul", "--shape", "16x16x16", "--bits", "9"], "--bits 9: expected one of 1, 2"),
    ],
)
def test_wrong_use_of_an_op_is_said_in_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command(*words)


# Processes that die.


def test_another_process_goes_on_where_one_died(capsys: pytest.CaptureFixture[str]) -> None:
    codes, calls = iter([-6, 3, 0]), []

    def start(line: list[str], env: dict[str, str]) -> Any:
        calls.append((line[1:], env["TILUS_TUNE_CHILD"]))
        return SimpleNamespace(returncode=next(codes))

    assert tune.restarted(["tune", "x.py"], start) == 0
    assert calls == [(["-m", "tilus", "tune", "x.py"], "1")] * 3
    assert "the process ended with -6; another one goes on" in capsys.readouterr().err


def test_wrong_use_and_too_many_deaths_end_the_command() -> None:
    assert tune.restarted([], lambda *_, **__: SimpleNamespace(returncode=2)) == 2
    assert tune.restarted([], lambda *_, **__: SimpleNamespace(returncode=3), most=2) == 1


def test_with_a_gpu_the_work_is_done_by_a_child(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "has_gpu", lambda: True)
    monkeypatch.delenv("TILUS_TUNE_CHILD", raising=False)
    monkeypatch.setattr(tune, "restarted", lambda line: 42)
    assert command(program, "--size", "n=64", "--space", "block=32") == 42
