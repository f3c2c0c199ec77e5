"""`tilus profile`: counts by line, totals, the estimate, and what it says when it is used wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilus import dtypes
from tilus.cli import main
from tilus.cli.arguments import random_array
from tilus.codegen.figures import FIGURES, figures
from tilus.codegen.target import TARGETS
from tilus.errors import TargetNotSupported

# The PTX is written out: its counts are known, and do not change with the compiler.
PROGRAM = '''
import numpy as np
import tilus
from tilus import Pointer, Tensor, constexpr, float32, int32, simulator

PTX = f"""
.version 8.0
.target sm_80
.address_size 64
.file 1 "{__file__}"
.visible .entry count(.param .u64 data) {{
.reg .b64 %p, %x; .reg .b32 %t, %v, %a, %o; .reg .pred %q; .shared .align 128 .b8 sh[8192];
.loc 1 37 0
ld.param.u64 %p, [data];
mov.u32 %t, %tid.x;
.loc 1 38 0
mul.wide.u32 %x, %t, 8;
add.u64 %x, %p, %x;
ld.global.u32 %v, [%x];
.loc 1 39 0
mov.u32 %a, sh;
mad.lo.u32 %a, %t, 128, %a;
st.shared.u32 [%a], %v;
.loc 1 40 0
bar.sync 0;
.loc 1 41 0
setp.lt.u32 %q, %t, 8;
@%q bra done;
.loc 1 42 0
atom.global.add.u32 %o, [%p+4], 1;
.loc 1 43 0
done: ret;
}}
"""

# What the lines of the PTX's line table hold:
# thread = thread_id()
# value = data[2 * thread]
# shared[32 * thread] = value
# barrier()
# if thread >= 8:
#     atomic_add(data[1], 1)
# return

def launch(times=1, words=512):
    kernel = simulator.load(PTX)["count"]
    for _ in range(times):
        kernel.launch(2, 64, [np.zeros(words, np.uint32)])

@tilus.kernel
def scale(x: Tensor["dtype", "n"], index: Tensor[int32, "n"], out: Pointer[float32], factor: float32, *, dtype: constexpr):
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, 128), warps=4)
    start = tilus.block_id() * 128
    picked = tilus.load(x, indices=tilus.load(index, start, 128))
    tilus.store(tilus.view(out, float32, (n,)), tilus.cast(picked, float32) * factor, start)

@tilus.kernel
def spill(x: Tensor[float32, "n"]):
    tilus.grid(1, warps=1)
    tilus.store(x, tilus.load(x, 32, 32, checked=False), 0)

def nothing():
    print("no kernel here")

def fails():
    raise RuntimeError("as it should")

number = 3
'''


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["profile", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_a_profile_of_known_counts(run: Run, program: str, golden: Callable[[str, str], None]) -> None:
    code, out, err = run(f"{program}::launch", "--arg", "times=3", "--target", "sm_80")
    assert code == 0, err
    golden(out, "count.txt")


def test_json_holds_the_same_counts_and_those_of_each_instruction(run: Run, program: str) -> None:
    code, out, err = run(f"{program}::launch", "--target", "sm_80", "--json")
    assert code == 0, err
    (profile,) = json.loads(out)
    assert profile["kernel"] == "count"
    assert profile["card"] == "A100"
    assert profile["launches"] == [{"grid": [2, 1, 1], "block": [64, 1, 1]}]
    counters = profile["counters"]
    assert counters["warp_instructions"] == 4 * 13
    assert counters["thread_instructions"] == 4 * 32 * 13 - 2 * 8
    # 4 warps read every other word of 64 words in 8 sectors of which 4 would do.
    assert (counters["global_load_sectors"], counters["global_load_sectors_ideal"]) == (32, 16)
    assert (counters["shared_wavefronts"], counters["shared_wavefronts_ideal"]) == (4 * 32, 4)
    assert counters["global_distinct_bytes_read"] == 512
    assert counters["barrier_waits"] == 4
    assert counters["divergent_branches"] == 2
    assert counters["atomic_lanes"] == 2 * 56
    # Of 24 or 32 lanes at one address all but the first wait.
    assert counters["atomic_conflicts"] == 2 * (23 + 31)
    lines = {line["source"][1]: line for line in profile["lines"]}
    assert lines[38]["warp_instructions"] == 12
    assert lines[38]["global_sectors"] == 32
    assert lines[42]["atomic_conflicts"] == 2 * (23 + 31)
    (store,) = [row for row in profile["instructions"] if row["instruction"].startswith("st.shared")]
    assert store["shared_wavefronts"] == 4 * 32
    assert profile["limit"] == next(iter(profile["seconds"])) == "shared_wavefronts"
    # Two blocks stand on two multiprocessors: the fuller has half of the wavefronts.
    assert profile["seconds"]["shared_wavefronts"] == pytest.approx(64 / 1.41e9)
    assert profile["estimate"] == pytest.approx(64 / 1.41e9)


def test_a_kernel_gets_random_arguments(run: Run, program: str) -> None:
    # `index` holds numbers below `n`, or the checked gather would leave its tensor.
    code, out, err = run(
        f"{program}::scale", "--size", "n=256", "--size", "out=256", "--arg", "x=bfloat16", "--arg", "factor=0.5",
        "--check", "--json",
    )  # fmt: skip
    assert code == 0, err
    (profile,) = json.loads(out)
    assert profile["kernel"] == "scale"
    assert profile["target"] == "sm_90a"
    assert profile["counters"]["global_bytes_written"] == 256 * 4
    assert profile["counters"]["global_bytes_read"] == 256 * (4 + 2)


def test_lines_without_a_line_table_are_those_of_the_ptx(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    ptx = ".version 8.0\\n.target sm_80\\n.address_size 64\\n.visible .entry k() {\\n.reg .b32 %a;\\nmov.u32 %a, 1;\\nret;\\n}"
    path.write_text(
        f"from tilus import simulator\ndef go():\n    simulator.load('{ptx}')['k'].launch(1, 32)\n"
    )
    code, out, _ = run(f"{path}::go")
    assert code == 0
    assert "PTX 6" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["launch"], 2, "'launch' names no function, expected FILE::FUNCTION"),
        (["{}::"], 2, "names no function, expected FILE::FUNCTION"),
        (["nowhere.py::launch"], 2, "there is no file nowhere.py"),
        (["{}::lunch"], 2, "has no kernel or function 'lunch'; it has: launch, scale, spill, nothing, fails"),
        (["{}::number"], 2, "has no kernel or function 'number'"),
        (["{}::nothing"], 2, "launched no kernel on the simulator, expected launches with CPU tensors"),
        (["{}::launch", "--size", "n=3"], 2, "launch is a Python function: --size and --set are for kernels"),
        (["{}::launch", "--arg", "rounds=3"], 2, "launch cannot be called so: got an unexpected keyword argument"),
        (["{}::launch", "--arg", "times"], 2, "--arg 'times': expected NAME=VALUE"),
        (["{}::scale", "--arg", "x=float16", "--size", "n=128"], 2,
         "scale needs the size of out, expected --size out=..."),
        (["{}::scale", "--arg", "x=float16", "--size", "m=128"], 2,
         "scale has no dimension 'm'; its dimensions are: n, out"),
        (["{}::scale", "--arg", "x=float16", "--size", "n=9", "--size", "out=9"], 2,
         "the scalar factor has no value, expected --arg factor=NUMBER"),
        (["{}::scale", "--size", "n=9"], 2,
         "scale needs a value of its constexpr parameter dtype, expected --set dtype=DTYPE or --arg x=DTYPE"),
        (["{}::launch", "--target", "sm_10"], 1, "no target named 'sm_10'"),
        (["{}::launch", "--card", "Voodoo"], 1, "there are no figures of 'Voodoo'"),
        (["{}::fails"], 1, "RuntimeError: as it should"),
        (["{}::spill", "--size", "n=32"], 1, "out-of-bounds"),
    ],
)  # fmt: skip
def test_what_it_says_to_wrong_use(
    run: Run, program: str, arguments: list[str], code: int, message: str
) -> None:
    got, out, err = run(*(argument.format(program) for argument in arguments))
    assert got == code
    assert message in err
    assert out in ("", "no kernel here\n")


def test_the_card_is_a_usual_one_of_the_target_or_that_asked_for(run: Run, program: str) -> None:
    code, out, _ = run(f"{program}::launch", "--target", "sm_100a")
    assert code == 0
    assert "roofline on B200" in out
    code, out, _ = run(f"{program}::launch", "--target", "sm_100a", "--card", "rtx-5090")
    assert code == 0
    assert "roofline on RTX 5090" in out


def test_every_target_has_a_card() -> None:
    for name in TARGETS:
        assert figures(name).target == name


def test_settings_end_with_the_command(run: Run, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_80")
    monkeypatch.delenv("TILUS_SIMULATOR_CHECKS", raising=False)
    assert run(f"{program}::launch", "--target", "sm_89")[0] == 0
    assert os.environ["TILUS_SIMULATOR_TARGET"] == "sm_80"
    assert "TILUS_SIMULATOR_CHECKS" not in os.environ


@pytest.mark.parametrize(
    "name",
    ["float32", "float16", "bfloat16", "float8_e4m3", "uint8", "int64", "uint4", "float6_e3m2", "tfloat32"],
)
def test_random_arrays_are_taken_by_kernels(name: str) -> None:
    from tilus.runtime.arguments import Declared, bind, read_array

    dtype = dtypes.dtype(name)
    array: Any = random_array(dtype, (6, 16), 6, np.random.default_rng(0))
    (operand,), sizes = bind([Declared("x", "tensor", dtype, ("rows", "columns"))], [read_array("x", array)])
    assert operand is not None
    assert sizes == {"rows": 6, "columns": 16}


def test_random_integers_are_indices() -> None:
    values = random_array(dtypes.dtype("int32"), (500,), 5, np.random.default_rng(1))
    assert values.min() == 0
    assert values.max() == 4


# Dense TFLOPS (TOPS of integers) at the boost clock, as white papers and data sheets state them.
RATES = {
    "T4": {"f16": 65, "int8": 130, "int4": 260, "b1": 1040},
    "A100": {"f16": 312, "tf32": 156, "f64": 19.5, "int8": 624, "int4": 1248, "b1": 4992},
    "RTX 3090": {"f16": 71, "f16 in f16": 142, "tf32": 35.6, "int8": 284, "int4": 568},
    "L40S": {"f16": 362, "tf32": 183, "f8": 733, "int8": 733},
    "RTX 4090": {"f16": 165.2, "f16 in f16": 330.3, "tf32": 82.6, "f8": 330.3, "f8 in f16": 660.6, "int8": 660.6,
                 "int4": 1321.2},
    "H200": {"f16": 989, "tf32": 494, "f8": 1979, "int8": 1979},
    "H100": {"f16": 989, "tf32": 494, "f8": 1979, "int8": 1979},
    "RTX 5090": {"f16": 209.5, "f16 in f16": 419, "tf32": 104.8, "f8": 419, "f8 in f16": 838, "f4": 1676, "int8": 838},
}  # fmt: skip


@pytest.mark.parametrize("name", RATES)
def test_cards_agree_with_their_data_sheets(name: str) -> None:
    card = FIGURES[name]
    assert card.target in TARGETS
    prefix = "tensor_core_flops."
    found = {
        key.removeprefix(prefix): rate for key, rate in card.per_second().items() if key.startswith(prefix)
    }
    # The data sheet's float64 of Hopper is at another clock than that of its other rates.
    assert set(found) - {"f64"} == set(RATES[name]) - {"f64"}
    for kind, rate in RATES[name].items():
        assert found[kind] / 1e12 == pytest.approx(rate, rel=0.02)


def test_figures_of_a_card_per_second() -> None:
    card = figures("sm_90").per_second()
    assert card == figures("h100").per_second()
    assert card["sm_count"] == 132
    assert card["shared_wavefronts"] == 132 * 1.83e9
    assert card["special_functions"] == 132 * 1.83e9 / 2
    assert card["dram_bytes"] == pytest.approx(FIGURES["H100"].global_share * 3.35e12)
    with pytest.raises(TargetNotSupported, match="no figures of 'GTX'"):
        figures("GTX")
