"""What finds differences between simulator and GPU finds them: with a simulator that stands in for the GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.differential import Differential, compare, tolerance
from tilus import simulator

ADD = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 x, .param .u64 y, .param .u32 n)
{
.reg .b64 %x, %y;
.reg .b32 %i, %n, %a;
.reg .pred %p;
ld.param.u64 %x, [x];
ld.param.u64 %y, [y];
ld.param.u32 %n, [n];
mov.u32 %i, %tid.x;
mad.wide.u32 %x, %i, 4, %x;
mad.wide.u32 %y, %i, 4, %y;
ld.global.b32 %a, [%x];
add.u32 %a, %a, %n;
st.global.b32 [%y], %a;
ret;
}
"""


class StandIn:
    """A GPU that is the simulator, with memory of its own, and that may add something to each result."""

    capability = (9, 0)

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.memory: dict[int, np.ndarray] = {}
        self.launched = 0

    def runs(self, ptx: str) -> bool:
        return True

    def load(self, ptx: str) -> Any:
        return simulator.load(ptx)

    def upload(self, data: bytes) -> int:
        address = 0x7000_0000_0000 + len(self.memory) * 2**32
        self.memory[address] = np.frombuffer(data, np.uint8).copy()
        return address

    def download(self, address: int, size: int) -> bytes:
        return self.memory[address][:size].tobytes()

    def free(self, address: int) -> None:
        pass

    def launch(
        self, module: Any, name: str, grid: Sequence[int], block: Sequence[int], cluster: Sequence[int], shared: int,
        parameters: Sequence[bytes],
    ) -> None:  # fmt: skip
        args: list[Any] = []
        for data in parameters:
            value = int.from_bytes(data, "little")
            base = next(
                (a for a, m in self.memory.items() if len(data) == 8 and a <= value < a + max(len(m), 1)),
                None,
            )
            args.append(value if base is None else self.memory[base][value - base :])
        args[-1] += self.error
        self.launched += 1
        self.original_launch(module[name], tuple(grid), tuple(block), args)

    original_launch: Any = None


def outcomes(stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    report = folder / "report.jsonl"
    differential = Differential(report, stand_in)  # type: ignore[arg-type]
    stand_in.original_launch = differential.module_launch
    differential.install(monkeypatch)
    x, y = np.arange(40, dtype=np.uint32), np.zeros(40, np.uint32)
    simulator.load(ADD)["add"].launch(1, 32, [x[4:], y, 7])
    assert (y[:32] == x[4:36] + 7).all()
    return [json.loads(line)["outcome"] for line in report.read_text().splitlines()]


def test_equal_memory_is_reported_as_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    assert outcomes(stand_in, tmp_path, monkeypatch) == ["started", "equal"]
    assert stand_in.launched == 1


def test_a_wrong_gpu_is_reported_with_the_first_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, outcome = outcomes(StandIn(error=1), tmp_path, monkeypatch)
    assert started == "started"
    assert outcome == "differs in 32 of 160 bytes, first at byte 0: the GPU has 0000000c for 0000000b"


def test_launches_with_hazards_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.jsonl"
    stand_in = StandIn()
    Differential(report, stand_in).install(monkeypatch)  # type: ignore[arg-type]
    simulator.load(ADD)["add"].launch(1, 32, [np.zeros(4, np.uint32), np.zeros(4, np.uint32), 7])
    assert json.loads(report.read_text())["outcome"] == "skipped: the simulator reports a hazard"
    assert stand_in.launched == 0


@pytest.mark.parametrize(
    ("ptx", "right"),
    [
        ("add.u32 %a, %b, %c;", "differs"),
        ("ex2.approx.ftz.f32 %a, %b;", "close"),
        ("rcp.approx.f32 %a, %b;", "close"),
        ("rcp.rn.f32 %a, %b;", "differs"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%a}, %b, %c;", "close"),
    ],
)
def test_approximate_instructions_may_differ_a_little(ptx: str, right: str) -> None:
    x = np.linspace(1, 2, 16, dtype=np.float32)
    near, far = np.nextafter(x, np.float32(4)), x * np.float32(1.01)
    assert compare(x.tobytes(), near.tobytes(), x.dtype, tolerance(ptx)).split()[0] == right
    assert compare(x.tobytes(), far.tobytes(), x.dtype, tolerance(ptx)).split()[0] == "differs"


def test_bits_of_floats_in_integer_arrays_count_as_floats() -> None:
    x = np.linspace(1, 2, 16, dtype=np.float32)
    near = np.nextafter(x, np.float32(4))
    assert compare(x.tobytes(), near.tobytes(), np.dtype(np.uint32), 2.0**-20) == "close"
