"""Launch plans: what the driver gets, and which calls a plan recognises. The driver is a stand-in that looks."""

from __future__ import annotations

import ctypes
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.runtime import kernels
from tilus.errors import LaunchError
from tilus.runtime import plans
from tilus.runtime.binary import Binary
from tilus.runtime.kernel import Kernel, compile_variant
from tilus.runtime.launch import Plan
from tilus.runtime.signature import Signature


@dataclass
class Driver:
    """Stands in for cuLaunchKernel: reads the arguments as the driver does, by the sizes of their types."""

    formats: list[str]
    launches: list[dict[str, Any]] = field(default_factory=list)
    slow: list[tuple[Any, ...]] = field(default_factory=list)
    status: int = 0
    device: int = 0
    pause: float = 0.0

    def launch(
        self, handle: Any, x: int, y: int, z: int, tx: int, ty: int, tz: int, *rest: int
    ) -> tuple[int]:
        shared, stream, address, extra = rest
        if self.pause:
            time.sleep(self.pause)
        pointers = (ctypes.c_uint64 * len(self.formats)).from_address(address)
        values = [
            struct.unpack(code, ctypes.string_at(place, struct.calcsize(code)))[0]
            for code, place in zip(self.formats, pointers, strict=True)
        ]
        place = {
            "grid": (x, y, z),
            "block": (tx, ty, tz),
            "shared": shared,
            "stream": stream,
            "values": values,
        }
        self.launches.append({"handle": handle, **place, "extra": extra, "places": list(pointers)})
        return (self.status,)

    def plan(self, kernel: Kernel, *args: Any, encoders: Any = (), **options: Any) -> Plan:
        """Return a plan for a call, and keep it in the kernel."""
        call = kernel._check(args, options)
        compiled = compile_variant(kernel.source, call.constexprs, call.types, "sm_90a", assemble=False)
        plan = Plan(
            Binary.of(compiled).signature, call.operands, 77, self.launch, lambda device: 5, lambda: self.device, 0,
            lambda *arguments: self.slow.append(arguments), encoders,
        )  # fmt: skip
        kernel._plans.keep(plan, args, options)
        return plan


def fresh(kernel: Kernel) -> Kernel:
    return Kernel(kernel.source)


def pointers(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def test_driver_gets_pointers_and_sizes_in_order() -> None:
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i", "q"])
    source, target = torch.zeros(7, 100)[:, :50], torch.zeros(7, 50)
    driver.plan(kernel, source, target)
    kernel(source, target)
    (launch,) = driver.launches
    assert launch["values"] == [*pointers(source, target), 7, 50, 100]
    assert (launch["grid"], launch["block"], launch["shared"]) == ((2, 2, 1), (32, 1, 1), 0)
    assert (launch["handle"], launch["stream"], launch["extra"]) == (77, 5, 0)
    assert not driver.slow


def test_driver_gets_scalars_as_their_types() -> None:
    kernel, driver = fresh(kernels.scalars), Driver(["Q", "i", "f", "H", "e", "B", "q", "i"])
    out = torch.zeros(96)
    driver.plan(kernel, out, 3, 0.5, 1.5, 2.5, True, 2**40)
    kernel(out, 2, 0.25, -1.0, 3.5, False, -(2**40))
    (launch,) = driver.launches
    bfloat16_minus_one = 0xBF80
    assert launch["values"] == [out.data_ptr(), 2, 0.25, bfloat16_minus_one, 3.5, 0, -(2**40), 96]
    # The grid follows the scalar that it is computed from.
    assert launch["grid"] == (2, 1, 1)


def test_tensor_maps_are_aligned_and_follow_their_tensor() -> None:
    kernel, driver = fresh(kernels.tma_copy), Driver(["Q", "Q", "i", "i", "128s"])
    tensors = [torch.zeros(64, 64, dtype=torch.float16) for _ in range(3)]

    def encode(address: int) -> bytes:
        return struct.pack("<Q", address) * 16

    plan = driver.plan(kernel, tensors[0], tensors[1], encoders=[encode])
    assert [wanted.param for wanted in plan.signature.tensor_maps] == [0]
    for source in (tensors[0], tensors[2]):
        kernel(source, tensors[1])
    for launch, source in zip(driver.launches, (tensors[0], tensors[2]), strict=True):
        assert launch["values"][-1] == encode(source.data_ptr())
        assert launch["places"][-1] % 64 == 0
        assert launch["shared"] >= 64 * 64 * 2


class Subclass(torch.Tensor):
    """A tensor that may do anything when it is asked for its memory."""


def test_plan_is_recognised_by_all_that_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    backing = torch.zeros(4096, dtype=torch.float32)
    source, target = torch.zeros(4, 16), torch.zeros(4, 16)
    driver.plan(kernel, source, target)
    missed: list[tuple[Any, ...]] = []
    monkeypatch.setattr(kernel, "_launch_new", lambda args, options: missed.append(args))

    def launched(*args: Any, **options: Any) -> bool:
        before = len(driver.launches)
        kernel(*args, **options)
        assert len(driver.launches) - before + len(missed) == 1
        missed.clear()
        return len(driver.launches) > before

    assert launched(source, target)
    assert launched(torch.ones(4, 16), target)
    assert launched(backing[64:128].view(4, 16), target)
    assert not launched(backing[65:129].view(4, 16), target)  # other alignment
    assert not launched(torch.zeros(5, 16), torch.zeros(5, 16))
    assert not launched(torch.zeros(16, 4).t(), target)  # other strides
    assert not launched(torch.zeros(4, 16, dtype=torch.int32), torch.zeros(4, 16, dtype=torch.int32))
    assert not launched(torch.zeros(4, 16, device="meta"), target)
    assert not launched(torch.zeros(4, 16).as_subclass(Subclass), target)
    assert not launched(source.numpy(), target)
    assert not launched(source)
    assert not launched(source, target, source)
    assert not launched(source, target, dtype=kernels.float32)
    assert launched(source, target)


def test_plan_is_recognised_by_constexprs_of_one_type_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, driver = fresh(kernels.scale_add), Driver(["Q", "Q", "Q", "i"])
    x = torch.zeros(64)
    driver.plan(kernel, x, x, x, block=1024, factor=1)
    missed: list[dict[str, Any]] = []
    monkeypatch.setattr(kernel, "_launch_new", lambda args, options: missed.append(options))
    kernel(x, x, x, block=1024, factor=1)
    kernel(x, x, x, block=int("1024"), factor=1)  # an equal object, not the same
    assert (len(driver.launches), missed) == (2, [])
    for options in (
        {"block": 1024, "factor": True},
        {"block": 1024, "factor": 1.0},
        {"block": 512, "factor": 1},
        {},
    ):
        kernel(x, x, x, **options)
    assert (len(driver.launches), len(missed)) == (2, 4)


def test_many_shapes_are_all_recognised() -> None:
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    tensors = [torch.zeros(m, 16) for m in range(1, 10)]
    for tensor in tensors:
        driver.plan(kernel, tensor, tensor)
    for tensor in tensors * 2:
        kernel(tensor, tensor)
    assert [launch["values"][2] for launch in driver.launches] == list(range(1, 10)) * 2


def test_plans_beyond_the_limit_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "PLANS", 3)
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    for m in range(1, 6):
        driver.plan(kernel, torch.zeros(m, 16), torch.zeros(m, 16))
    assert len(kernel._plans) == 2


def test_works_without_torchs_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "comparison", lambda tensors: lambda *tensors: False)
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    tensor = torch.zeros(3, 16)
    driver.plan(kernel, tensor, tensor)
    kernel(tensor, tensor)
    assert driver.launches[0]["values"] == [*pointers(tensor, tensor), 3, 16]


def test_comparison_keeps_no_tensor_alive() -> None:
    import weakref

    tensor = torch.zeros(4)
    check = plans.comparison((tensor,))
    gone = weakref.ref(tensor)
    del tensor
    assert gone() is None
    assert check(torch.zeros(4))
    assert not check(torch.zeros(5))


def test_scalar_that_does_not_fit_is_named_and_nothing_is_launched() -> None:
    kernel, driver = fresh(kernels.scalars), Driver(["Q", "i", "f", "H", "e", "B", "q", "i"])
    out = torch.zeros(96)
    driver.plan(kernel, out, 3, 0.5, 1.5, 2.5, True, 7)
    with pytest.raises(LaunchError, match="scalars: b is 'x', expected a float32"):
        kernel(out, 3, "x", 1.5, 2.5, True, 7)
    with pytest.raises(LaunchError, match="scalars: f is 9223372036854775808, expected an int64"):
        kernel(out, 3, 0.5, 1.5, 2.5, True, 2**63)
    assert not driver.launches


def test_other_device_and_failures_take_the_slow_way() -> None:
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    tensor = torch.zeros(3, 16)
    driver.plan(kernel, tensor, tensor)
    driver.device = 1
    kernel(tensor, tensor)
    assert (len(driver.launches), len(driver.slow)) == (0, 1)
    driver.device, driver.status = 0, 701
    kernel(tensor, tensor)
    assert (len(driver.launches), len(driver.slow)) == (1, 2)
    handle, grid, threads, shared, address = driver.slow[1]
    assert (handle, grid, threads, shared) == (77, (1, 1, 1), 32, 0)
    assert list((ctypes.c_uint64 * 1).from_address(address)) == driver.launches[0]["places"][:1]


def test_empty_grid_launches_nothing() -> None:
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    tensor = torch.zeros(0, 16)
    driver.plan(kernel, tensor, tensor)
    kernel(tensor, tensor)
    assert not driver.launches
    assert not driver.slow


def test_threads_never_share_arguments() -> None:
    kernel, driver = fresh(kernels.copy_rows), Driver(["Q", "Q", "i", "i"])
    tensors = [torch.zeros(3, 16) for _ in range(4)]
    driver.plan(kernel, tensors[0], tensors[0])
    # Other threads launch while the driver has not yet read the arguments.
    driver.pause = 1e-4

    def many(tensor: torch.Tensor) -> None:
        for _ in range(50):
            kernel(tensor, tensor)

    threads = [threading.Thread(target=many, args=(tensor,)) for tensor in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.launches) == 200
    for tensor in tensors:
        mine = [launch for launch in driver.launches if launch["values"][:2] == pointers(tensor, tensor)]
        assert len(mine) == 50


def test_signature_survives_json() -> None:
    import json

    for kernel, arguments in (
        (kernels.tma_copy, [torch.zeros(64, 64, dtype=torch.float16)] * 2),
        (kernels.scalars, [torch.zeros(96), 3, 0.5, 1.5, 2.5, True]),
        (kernels.through_pointer, [torch.zeros(5), torch.zeros(5)]),
        (kernels.unpack_codes, [torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(2, 8, dtype=torch.uint8)]),
    ):
        call = kernel._check(tuple(arguments), {})
        compiled = compile_variant(kernel.source, call.constexprs, call.types, "sm_90a", assemble=False)
        signature = Signature.of(compiled)
        assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_signature_says_whether_launches_overlap() -> None:
    signature = Signature.of(kernels.next_copy.compile(target="sm_90a"))
    assert signature.overlaps
    data = signature.to_json()
    assert Signature.from_json(data) == signature
    del data["overlaps"]  # as written before there were such kernels
    assert not Signature.from_json(data).overlaps
    assert not Signature.of(kernels.scale_add.compile(target="sm_90a")).overlaps


@pytest.mark.parametrize("damage", ["name", "parameters", "grid", "cluster", "sizes", "tensor_maps"])
def test_damaged_signature_is_refused(damage: str) -> None:
    data = Signature.of(kernels.scale_add.compile(target="sm_80")).to_json()
    Signature.from_json(data)
    for wrong in (None, [None], "x"):
        if damage == "name":
            data.pop("name", None)
        else:
            data[damage] = wrong
        with pytest.raises(LaunchError):
            Signature.from_json(data)
