"""Ahead of time: the C is compiled and run against a driver that writes down what it is asked; Python reads it back."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tilus
from tests.runtime import kernels
from tests.runtime.conftest import FAKE
from tilus import Tensor, constexpr, float32, int32
from tilus.codegen import target as find_target
from tilus.codegen.assemble import assemble, available
from tilus.errors import LaunchError, SyntaxNotSupported, TargetNotSupported, TilusError
from tilus.runtime import aot, manifest
from tilus.runtime.aot import Package, VariantRequest, build, capabilities

FLAGS = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-pthread"]
# On other systems than the ones of which NVIDIA's assembler is, PTX alone is embedded.
needs_assembler = pytest.mark.skipif(
    available() is not None, reason="NVIDIA has no assembler for this platform"
)


@tilus.kernel
def strided_scale(
    x: Tensor[float32, "m n"],
    out: Tensor[float32, "m n"],
    register: int32,
    scale: float32,
    *,
    block: constexpr = 128,
):
    m, n = x.shape
    tilus.grid(tilus.cdiv(n, block), tilus.max(m // register, 1) + n % 7, warps=4)
    bx, by = tilus.block_id()
    tilus.store(out, tilus.load(x, [by, bx * block], shape=[1, block]) * scale, [by, bx * block])


@pytest.fixture(scope="module")
def package() -> Package:
    return build(
        strided_scale, ["sm_80", "sm_90a"], variants=[VariantRequest({"block": 32}, "m <= 2 and n % 3 != 0")]
    )


@pytest.fixture(scope="module")
def tma_package() -> Package:
    return build(kernels.tma_copy, ["sm_90a"])


Program = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def c_program(c_compiler: str, fake_driver: Path, tmp_path: Path) -> Callable[[Package, str], Program]:
    """Compile a package's C with a main function; running it gives what it prints and what the driver was asked."""

    def make(package: Package, body: str) -> Program:
        package.write(tmp_path)
        name = package.name
        (tmp_path / "main.c").write_text(
            f'#define _GNU_SOURCE\n#include "{name}.h"\n#include <pthread.h>\n#include <stdio.h>\n#include <stdlib.h>\n'
            f"static float memory[4096];\n{body}\n"
        )
        sources = [str(tmp_path / file) for file in (f"{name}.c", "main.c")]
        options = [
            *FLAGS,
            f"-I{FAKE}",
            f"-I{tmp_path}",
            str(fake_driver / "libcuda.so.1"),
            "-o",
            str(tmp_path / "main"),
        ]
        subprocess.run([c_compiler, *sources, *options], check=True)

        def run(*arguments: object, **variables: object) -> tuple[list[str], list[str]]:
            log = tmp_path / "driver.log"
            log.unlink(missing_ok=True)
            environment = {**os.environ, "LD_LIBRARY_PATH": str(fake_driver), "FAKE_CUDA_LOG": str(log)}
            environment |= {f"FAKE_CUDA_{key.upper()}": str(value) for key, value in variables.items()}
            command = [str(tmp_path / "main"), *map(str, arguments)]
            result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
            assert result.returncode == 0, result.stderr
            return result.stdout.splitlines(), log.read_text().splitlines() if log.exists() else []

        return run

    return make


# Launches with m, n, the strides, the offset of x in elements, and the scalars from the command line.
LAUNCHER = """
int main(int count, char **text) {
    long v[9];
    int i;
    strided_scale_status status;
    for (i = 1; i < count && i < 10; ++i) v[i - 1] = atol(text[i]);
    {
        strided_scale_tensor2 x = {memory + v[4], {v[0], v[1]}, {v[2], v[3]}};
        strided_scale_tensor2 out = {memory, {v[7], v[1]}, {v[1], 1}};
        status = strided_scale((CUstream)5, &x, v[8] ? NULL : &out, (int32_t)v[5], 0.5f);
        printf("%d %s\\n", (int)status, strided_scale_strerror(status));
        printf("%p %p\\n", (void *)x.data, (void *)out.data);
    }
    return (int)v[6];
}
"""
ARGUMENTS = ("m", "n", "stride0", "stride1", "offset", "register", "exit", "rows", "null")


def arguments(**changes: int) -> list[int]:
    values = {"m": 6, "n": 64, "stride1": 1, "offset": 0, "register": 2, "exit": 0, "null": 0, **changes}
    values.setdefault("stride0", values["n"])
    values.setdefault("rows", values["m"])
    return [values[name] for name in ARGUMENTS]


def image_hash(code: bytes) -> str:
    value = 2166136261
    for byte in code[: int.from_bytes(code[40:48], "little")] if code[:4] == b"\x7fELF" else code:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return f"{value:08x}"


@needs_assembler
def test_c_launches_with_grid_arguments_and_the_image_of_the_device(
    package: Package, c_program: Callable[..., Program]
) -> None:
    run = c_program(package, LAUNCHER)
    # m=6, n=64: not `m <= 2`, aligned: variant 2.
    for capability, target in ((80, "sm_80"), (86, "sm_80"), (90, "sm_90a")):
        printed, log = run(*arguments(), capability=capability)
        (binary,) = (b for b in package.variants[2].binaries if b.target == target)
        assert binary.cubin is not None
        assert log[:2] == [f"load cubin {image_hash(binary.cubin)}", "find strided_scale"]
        assert printed[0] == "0 success"
        x, out = (address[2:] for address in printed[1].split())
        half = "3f000000"
        (launch,) = log[2:]
        place = "grid 1 4 1 block 128 1 1 shared 0 stream 5 extra 0"
        # register, scale; m, n, and the stride of x's rows and of out's.
        assert launch.endswith(f"{place} args {x} {out} 2 {half} 6 40 40 40")


@needs_assembler
def test_c_falls_back_to_ptx_on_newer_devices(package: Package, c_program: Callable[..., Program]) -> None:
    run = c_program(package, LAUNCHER)
    printed, log = run(*arguments(), capability=120)
    (binary,) = (b for b in package.variants[2].binaries if b.target == "sm_80")
    assert printed[0] == "0 success"
    assert log[0] == f"load ptx {image_hash(binary.ptx.encode())}"
    printed, log = run(*arguments(), capability=75)
    assert printed[0] == "6 nothing was compiled for this device"
    assert log == []


@needs_assembler
@pytest.mark.parametrize(
    ("changes", "variant"),
    [
        ({}, 2),
        ({"m": 2}, 0),
        ({"m": 1, "n": 35}, 1),
        ({"n": 60}, 3),
        ({"offset": 1}, 3),
        ({"stride0": 80}, 2),
        ({"stride0": 81}, 3),
        ({"m": 2, "n": 48}, 2),
        ({"m": 1, "stride0": 7}, 0),  # the stride of one row means nothing
    ],
)
def test_c_dispatches_to_the_first_variant_that_fits(
    package: Package, c_program: Callable[..., Program], changes: dict[str, int], variant: int
) -> None:
    printed, log = c_program(package, LAUNCHER)(*arguments(**changes))
    assert printed[0] == "0 success"
    hashes = [image_hash(next(b.cubin for b in v.binaries if b.target == "sm_80")) for v in package.variants]
    assert len(set(hashes)) == 4
    assert log[0] == f"load cubin {hashes[variant]}"
    threads = (128, changes.get("n", 64))
    block = 32 if variant < 2 else 128
    assert f"grid {-(-threads[1] // block)} " in log[-1]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"rows": 5}, "3 sizes of one name differ, or a size is not the one that was compiled for"),
        ({"null": 1}, "1 an argument is null"),
        ({"m": -1}, "2 a size is negative or larger than 2147483647, or a stride is negative"),
        ({"n": 2**31}, "2 a size is negative or larger than 2147483647, or a stride is negative"),
        ({"stride0": -64}, "2 a size is negative or larger than 2147483647, or a stride is negative"),
        ({"stride1": 2}, "4 no variant was compiled for such strides, alignments, sizes or scalars"),
        (
            {"register": 0},
            "5 the grid is negative, too large, no multiple of the cluster, or divides by zero",
        ),
        (
            {"m": 70000, "register": 1},
            "5 the grid is negative, too large, no multiple of the cluster, or divides by zero",
        ),
        ({"n": 0}, "0 success"),
    ],
)
def test_c_checks_its_arguments(
    package: Package, c_program: Callable[..., Program], changes: dict[str, int], status: str
) -> None:
    printed, log = c_program(package, LAUNCHER)(*arguments(**changes))
    assert printed[0] == status
    assert log == []


def test_c_reports_what_the_driver_reports(package: Package, c_program: Callable[..., Program]) -> None:
    run = c_program(package, LAUNCHER)
    for function, code, text in (
        ("cuLibraryLoadData", 2, "1002 out of memory, says the fake"),
        ("cuLibraryGetKernel", 500, "1500 unknown status"),
        ("cuCtxGetDevice", 201, "1201 invalid context, says the fake"),
        ("cuLaunchKernel", 701, "1701 too many resources, says the fake"),
    ):
        printed, log = run(*arguments(), fail=f"{function}={code}")
        assert printed[0] == text
        assert ("unload" in log) == (function == "cuLibraryGetKernel")


def test_c_does_not_load_while_a_graph_is_captured(
    package: Package, c_program: Callable[..., Program]
) -> None:
    printed, log = c_program(package, LAUNCHER)(*arguments(), capturing=1)
    assert printed[0] == "7 a CUDA graph is being captured and strided_scale_prepare was not called before"
    assert log == []


PREPARE = """
static void *work(void *result) {
    strided_scale_tensor2 x = {memory, {6, 64}, {64, 1}};
    int i;
    for (i = 0; i < 50; ++i) *(int *)result |= (int)strided_scale(0, &x, &x, 2, 0.5f);
    return NULL;
}

int main(void) {
    pthread_t threads[8];
    int results[8] = {0}, i;
    printf("%d\\n", (int)strided_scale_prepare());
    setenv("FAKE_CUDA_CAPTURING", "1", 1);
    for (i = 0; i < 8; ++i) pthread_create(&threads[i], NULL, work, &results[i]);
    for (i = 0; i < 8; ++i) pthread_join(threads[i], NULL);
    for (i = 0; i < 8; ++i) printf("%d", results[i]);
    return 0;
}
"""


def test_c_prepares_all_variants_once_and_then_launches_in_captures(
    package: Package, c_program: Callable[..., Program]
) -> None:
    printed, log = c_program(package, PREPARE)()
    assert printed == ["0", "00000000"]
    kinds = [line.split()[0] for line in log]
    assert kinds[:8] == ["load", "find"] * 4
    assert kinds[8:] == ["launch"] * 400


def test_c_loads_once_when_threads_race(package: Package, c_program: Callable[..., Program]) -> None:
    without = PREPARE.replace("strided_scale_prepare()", "0").replace(
        'setenv("FAKE_CUDA_CAPTURING", "1", 1);', ""
    )
    printed, log = c_program(package, without)(load_milliseconds=50)
    assert printed == ["0", "00000000"]
    kinds = [line.split()[0] for line in log]
    assert (kinds.count("load"), kinds.count("launch")) == (1, 400)


def test_c_makes_tensor_maps_and_asks_for_shared_memory(
    tma_package: Package, c_program: Callable[..., Program]
) -> None:
    body = """
        int main(void) {
            tma_copy_tensor2 x = {memory, {64, 96}, {96, 1}}, empty = {memory, {64, 0}, {96, 1}};
            int first, second;
            first = (int)tma_copy(0, &x, &x);
            second = (int)tma_copy(0, &empty, &empty);
            printf("%d %d %p\\n", first, second, (void *)memory);
            return 0;
        }
    """
    printed, log = c_program(tma_package, body)(capability=90)
    address = printed[0].split()[-1][2:]
    assert printed[0].startswith("0 0")
    (line,) = (line for line in log if line.startswith("map"))
    assert re.fullmatch(
        rf"map 1 type 6 at {address} \[96 step 0 box 64 by 1\] \[64 step 192 box 64 by 1\] 0 \d 2 0", line
    )
    (launch,) = (line for line in log if line.startswith("launch"))
    assert "grid 1 2 1 " in launch
    assert launch.endswith(" 1")
    shared = int(re.search(r"shared (\d+)", launch)[1])  # type: ignore[index]
    assert shared >= 64 * 64 * 2
    assert not any(line.startswith("attribute") for line in log), "48 KiB need no asking"


NEXT = """
    int main(int count, char **text) {
        next_copy_tensor1 x = {memory, {atol(text[1])}, {1}};
        next_copy_status status = next_copy(0, &x, &x);
        printf("%d %s %d\\n", (int)status, next_copy_strerror(status), count);
        return 0;
    }
"""


@pytest.mark.parametrize(("length", "blocks"), [(256, 2), (400, 4)])
def test_c_lets_launches_overlap_that_wait_for_the_one_before(
    c_program: Callable[..., Program], length: int, blocks: int
) -> None:
    run = c_program(build(kernels.next_copy, ["sm_90a"]), NEXT)
    _, log = run(length, capability=90)
    assert log[-2] == "with 6 is 1", "programmatic stream serialisation"
    assert f" grid {blocks} 1 1 block 128 1 1 " in log[-1]


def test_c_checks_that_the_grid_is_made_of_clusters(c_program: Callable[..., Program]) -> None:
    printed, log = c_program(build(kernels.next_copy, ["sm_90a"]), NEXT)(600, capability=90)
    assert printed == ["5 the grid is negative, too large, no multiple of the cluster, or divides by zero 2"]
    assert log == []


def test_c_without_such_kernels_launches_as_ever(tma_package: Package) -> None:
    assert b"cuLaunchKernelEx" not in tma_package.files()["tma_copy.c"]


def test_c_makes_tensor_maps_only_for_code_that_takes_them(
    tma_package: Package, c_program: Callable[..., Program]
) -> None:
    (variant,) = tma_package.variants
    (binary,) = variant.binaries
    taken = ", ".join(f".param .u{bits} p{bits}_{i}" for i, bits in enumerate((64, 64, 32, 32, 64, 64)))
    ptx = f".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry tma_copy({taken}) {{ ret; }}"
    cubin = assemble(ptx, find_target("sm_80"), "tma_copy")[0]
    without = replace(
        binary, target="sm_80", cubin=cubin, signature=replace(binary.signature, tensor_maps=())
    )
    for binaries in ((binary, without), (without, binary)):
        package = replace(tma_package, variants=(replace(variant, binaries=binaries),))
        body = "int main(void) { tma_copy_tensor2 x = {memory, {64, 96}, {96, 1}}; return (int)tma_copy(0, &x, &x); }"
        run = c_program(package, body)
        for capability, maps in ((90, 1), (80, 0), (86, 0)):
            _, log = run(capability=capability)
            assert sum(line.startswith("map") for line in log) == maps
            (launch,) = (line for line in log if line.startswith("launch"))
            assert launch.split(" args ")[1].split()[2:] == ["40", "60", "60", "60", "1"][: 4 + maps]


def test_code_for_targets_that_takes_other_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = aot._compile

    def compile(kernel: Any, values: Any, types: Any, target: str) -> Any:
        binary = original(kernel, values, types, target)
        if target == "sm_80":
            return replace(binary, signature=replace(binary.signature, grid=(1, 2, 3)))
        return binary

    monkeypatch.setattr(aot, "_compile", compile)
    with pytest.raises(TilusError, match="scale_add takes other arguments on sm_80 than on sm_90a"):
        build(kernels.scale_add, ["sm_90a", "sm_80"])


def test_c_asks_for_much_shared_memory_on_each_device(c_program: Callable[..., Program]) -> None:
    large = build(kernels.tma_copy, ["sm_90a"], constexprs={"rows": 128, "columns": 256})
    body = """
        int main(void) {
            tma_copy_tensor2 x = {memory, {128, 256}, {256, 1}};
            int status = (int)tma_copy(0, &x, &x);
            setenv("FAKE_CUDA_DEVICE", "1", 1);
            printf("%d %d\\n", status, (int)tma_copy(0, &x, &x));
            return 0;
        }
    """
    printed, log = c_program(large, body)(capability=90)
    assert printed == ["0 0"]
    shared = large.variants[0].binaries[0].signature.shared_bytes
    asked = [line for line in log if line.startswith("attribute")]
    assert [re.sub(r"of \d+ ", "", line) for line in asked] == [
        f"attribute 8 is {shared} on device 0",
        f"attribute 8 is {shared} on device 1",
    ]
    assert [line.split()[0] for line in log].count("load") == 1


def test_header_is_c_plus_plus_too(package: Package, tmp_path: Path, c_compiler: str) -> None:
    package.write(tmp_path)
    (tmp_path / "main.cpp").write_text(
        '#include "strided_scale.h"\nint f() { return STRIDED_SCALE_ABI_VERSION; }\n'
    )
    command = [
        c_compiler,
        "-x",
        "c++",
        "-fsyntax-only",
        "-Wall",
        "-Werror",
        f"-I{FAKE}",
        str(tmp_path / "main.cpp"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if "cc1plus" in result.stderr:
        pytest.skip("this C compiler comes without C++")
    assert result.returncode == 0, result.stderr


def test_scalars_pointers_and_names_of_c(c_program: Callable[..., Program]) -> None:
    scalars = build(kernels.scalars, ["sm_80"], name="all_scalars")
    body = """
        int main(void) {
            all_scalars_tensor1 out = {memory, {96}, {1}};
            printf("%d", (int)all_scalars(0, &out, 3, 0.5f, 0x3fc0, 0x4100, 1, -2));
            return 0;
        }
    """
    printed, log = c_program(scalars, body)()
    assert printed == ["0"]
    assert log[-1].endswith(" 3 3f000000 3fc0 4100 1 fffffffffffffffe 60")
    assert " register_" not in aot.aot_c.header("f", scalars.parameters, [], "")
    through = build(kernels.through_pointer, ["sm_80"])
    body = """
        int main(void) {
            through_pointer_tensor1 out = {memory, {96}, {1}};
            printf("%d ", (int)through_pointer(0, memory + 4, &out));
            printf("%d", (int)through_pointer(0, NULL, &out));
            return 0;
        }
    """
    assert c_program(through, body)()[0] == ["0 1"]


def test_same_input_gives_the_same_bytes_in_another_place(tmp_path: Path) -> None:
    source = Path(kernels.__file__).read_text()
    outputs = []
    for folder in ("first", "second/deeper"):
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "program.py").write_text(source)
        code = "import sys; from tilus.cli import main; sys.exit(main())"
        command = [
            sys.executable,
            "-c",
            code,
            "compile",
            "program.py::scale_add",
            "--target",
            "sm_80",
            "-o",
            "out",
        ]
        root = str(Path(tilus.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": str(len(outputs))}
        subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
        outputs.append({path.name: path.read_bytes() for path in (place / "out").iterdir()})
    assert outputs[0] == outputs[1]
    assert not any(str(tmp_path).encode() in data for data in outputs[0].values())


# Python reads it back.


@pytest.fixture
def loaded(package: Package, tmp_path: Path) -> manifest.LoadedKernel:
    package.write(tmp_path)
    return tilus.load_manifest(tmp_path / "strided_scale.json")


@pytest.mark.parametrize("shape", [(6, 64), (2, 35), (1, 32), (5, 60)])
def test_manifest_gives_a_callable(loaded: manifest.LoadedKernel, shape: tuple[int, int]) -> None:
    x, out = torch.randn(shape), torch.zeros(shape)
    loaded(x, out, 1, 0.5)
    assert torch.equal(out, x * 0.5)
    out.zero_()
    loaded(x, out, scale=2.0, register=1)
    assert torch.equal(out, x * 2)


def test_manifest_runs_without_compiler_and_source(package: Package, tmp_path: Path) -> None:
    package.write(tmp_path)
    code = f"""
        import sys
        sys.modules["llvmlite"] = None
        import torch, tilus
        kernel = tilus.load_manifest({str(tmp_path / "strided_scale.json")!r})
        x, out = torch.randn(4, 64), torch.zeros(4, 64)
        kernel(x, out, 1, 0.5)
        print(torch.equal(out, x * 0.5))
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    result = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, cwd=FAKE.parents[2]
    )
    assert result.stdout == "True\n", result.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x: k(x, x, 1), "there is no argument for scale, expected float32"),
        (lambda k, x: k(x, x[:1], 1, 1.0), "m is 1 in out and 4 in x, expected one size for one name"),
        (lambda k, x: k(x, x.half(), 1, 1.0), "out has dtype float16, expected float32"),
        (lambda k, x: k(x, x, 1, 1.0, 2), "5 arguments were given, expected 4: x, out, register, scale"),
        (lambda k, x: k(x, x, 1.5, 1.0), "register is 1.5, expected an int32"),
        (lambda k, x: k(x, x, 1, 1.0, block=3), "there is no parameter 'block'"),
        (
            lambda k, x: k(x.t().contiguous().t(), x, 1, 1.0),
            "no variant was compiled for such strides, alignments, sizes or scalars",
        ),
    ],
)
def test_loaded_kernel_checks_its_arguments(loaded: manifest.LoadedKernel, call: Any, message: str) -> None:
    with pytest.raises(LaunchError) as error:
        call(loaded, torch.zeros(4, 32))
    assert error.value.message == f"strided_scale: {message}"


def test_loaded_kernel_chooses_as_the_c_does(
    loaded: manifest.LoadedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(loaded, "_simulate", lambda number, *rest: chosen.append(number))
    backing = torch.zeros(4096)
    for m, n, stride, offset in ((6, 64, 64, 0), (2, 64, 64, 0), (1, 35, 35, 0), (6, 60, 60, 0), (6, 64, 64, 1),
                                 (6, 64, 80, 0), (6, 64, 81, 0), (2, 48, 48, 0), (1, 64, 7, 0)):  # fmt: skip
        x = backing.as_strided((m, n), (stride, 1), offset)
        loaded(x, torch.zeros(m, n), 2, 0.5)
    assert chosen == [2, 0, 1, 3, 3, 2, 3, 2, 0]


def test_loaded_kernel_keeps_plans_where_tensors_choose(loaded: manifest.LoadedKernel) -> None:
    assert loaded._keeps_plans
    assert loaded._plans.tensors_of(("x", "out", 1, 0.5)) == ("x", "out")
    assert loaded._plans.scalars_of(("x", "out", 1, 0.5)) == (1, 0.5)


def test_a_scalar_chooses_in_a_loaded_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(strided_scale, ["sm_80"], variants=[VariantRequest({"block": 32}, "register == 7")]).write(tmp_path)
    loaded = tilus.load_manifest(tmp_path / "strided_scale.json")
    assert not loaded._keeps_plans
    chosen: list[int] = []
    monkeypatch.setattr(loaded, "_simulate", lambda number, *rest: chosen.append(number))
    for register in (7, 2, 7):
        loaded(torch.zeros(6, 64), torch.zeros(6, 64), register, 0.5)
    assert chosen[0] == chosen[2] != chosen[1]


@pytest.mark.parametrize("capability", [80, 89, 90, 120, 75])
def test_loaded_kernel_takes_the_image_of_the_device(
    loaded: manifest.LoadedKernel, monkeypatch: pytest.MonkeyPatch, capability: int
) -> None:
    from tilus.runtime import driver

    monkeypatch.setattr(driver, "capability", lambda device: divmod(capability, 10))
    if capability == 75:
        with pytest.raises(
            LaunchError, match=r"compiled for sm_90a, sm_80, and the device has capability 7\.5"
        ):
            loaded._image(0, 0)
        return
    binary, image = loaded._image(0, 0)
    assert binary.target == ("sm_90a" if capability == 90 else "sm_80")
    expected_ptx = capability == 120 or binary.cubin is None
    assert image == (binary.ptx.encode() + b"\0" if expected_ptx else binary.cubin)


def damaged(tmp_path: Path, package: Package, change: Callable[[dict[str, Any]], Any]) -> str:
    package.write(tmp_path)
    path = tmp_path / f"{package.name}.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(LaunchError) as error:
        tilus.load_manifest(path)
    return str(error.value)


def test_manifest_that_does_not_fit_is_refused(package: Package, tmp_path: Path) -> None:
    def image(data: dict[str, Any]) -> dict[str, Any]:
        return data["variants"][0]["images"][0]  # type: ignore[no-any-return]

    assert "has ABI version 99, expected 1" in damaged(tmp_path, package, lambda d: d.update(abi=99))
    assert "no manifest of tilus" in damaged(tmp_path, package, lambda d: d.pop("abi"))
    assert "no manifest of tilus" in damaged(tmp_path, package, lambda d: d.update(variants=[]))
    assert "no manifest of tilus" in damaged(tmp_path, package, lambda d: d["parameters"].pop())
    assert "no manifest of tilus" in damaged(tmp_path, package, lambda d: d["variants"][0].update(images=[]))
    assert "no file beside the manifest" in damaged(
        tmp_path, package, lambda d: image(d)["ptx"].update(file="../strided_scale.0.sm_80.ptx")
    )
    assert "checksums differ" in damaged(tmp_path, package, lambda d: image(d)["ptx"].update(sha256="0" * 64))
    assert "no expression" in damaged(
        tmp_path, package, lambda d: d["variants"][0].update(condition=["exec", 1])
    )
    with pytest.raises(LaunchError, match="cannot be read"):
        tilus.load_manifest(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("not JSON")
    with pytest.raises(LaunchError, match="is no manifest"):
        tilus.load_manifest(tmp_path / "text.json")


# What can be asked for.


def test_fixed_sizes_are_constants_of_the_code(tmp_path: Path) -> None:
    made = build(kernels.copy_rows, ["sm_80"], dtypes={"source": "float16"}, sizes={"n": 96})
    signature = made.variants[0].binaries[0].signature
    assert [size.name for size in signature.sizes] == ["m", "source_s0", "target_s0"]
    assert signature.grid[0] == 3
    made.write(tmp_path)
    kernel = tilus.load_manifest(tmp_path / "copy_rows.json")
    source, target = torch.randn(5, 96).half(), torch.zeros(5, 96).half()
    kernel(source, target)
    assert torch.equal(source, target)
    with pytest.raises(LaunchError, match="source has size 64 along dimension 1, expected 96"):
        kernel(source[:, :64], target[:, :64])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": []}, TilusError, "nothing to compile for"),
        ({"targets": ["sm_12"]}, TargetNotSupported, "no target named 'sm_12'"),
        ({"constexprs": {"blok": 3}}, TilusError, "has no constexpr parameter 'blok'"),
        (
            {"dtypes": {"x": "float16"}},
            TilusError,
            "x is declared as float32, but is given the dtype float16",
        ),
        ({"dtypes": {"z": "float16"}}, TilusError, "has no run-time parameter 'z'"),
        ({"dtypes": {"x": "flat16"}}, TilusError, "the dtype of x: there is no dtype named 'flat16'"),
        ({"sizes": {"q": 3}}, TilusError, "has no dimension 'q'"),
        (
            {"variants": [VariantRequest({"block": 64}, "q < 3")]},
            SyntaxNotSupported,
            "the sizes and scalars are register, m, n",
        ),
        ({"name": "naïve"}, TilusError, "cannot be a name in C"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any], error: type, message: str) -> None:
    targets = options.pop("targets", ["sm_80"])
    with pytest.raises(error, match=re.escape(message)):
        build(strided_scale, targets, **options)


def test_kernel_that_needs_alignment_has_no_other_variant(tma_package: Package) -> None:
    assert [variant.comment for variant in tma_package.variants] == ["16-byte aligned; always"]
    assert tma_package.notes == (
        "no variant for any alignment; always: a bulk copy needs a tensor aligned to 16 bytes, and x is to 2",
    )


def test_variants_have_the_same_parameters() -> None:
    with pytest.raises(TilusError, match="has other parameters than the first"):
        build(kernels.fixed_columns, ["sm_80"], variants=[VariantRequest({"width": 32}, "m < 3")])


def test_capabilities_follow_the_rules_of_compatibility() -> None:
    assert capabilities("sm_80", is_ptx=False) == (80, 89)
    assert capabilities("sm_86", is_ptx=False) == (86, 89)
    assert capabilities("sm_89", is_ptx=True) == (89, 9999)
    assert capabilities("sm_90a", is_ptx=True) == capabilities("sm_90a", is_ptx=False) == (90, 90)
    assert capabilities("sm_120a", is_ptx=False) == (120, 120)


@tilus.kernel
def exp(
    catch: Tensor[float32, "xor"],
    log: Tensor[float32, "xor"],
    nullptr: int32,
    int64_t: int32,
    CUstream: int32,
    CUDA_SUCCESS: int32,
    FLAG_SET: int32,
    linux: int32,
):
    tilus.grid(1, warps=1)
    other = int64_t + CUstream + CUDA_SUCCESS + FLAG_SET + linux
    tilus.store(log, tilus.exp(tilus.load(catch, 0, 32)) + (nullptr + other).to(float32), 0)


@pytest.mark.parametrize("language", ["-std=c99", "-std=gnu11", "c++"])
def test_names_of_the_headers_and_keywords_of_c_plus_plus_get_an_underscore(
    language: str, tmp_path: Path, c_compiler: str
) -> None:
    build(exp, ["sm_80"]).write(tmp_path)
    assert {path.name for path in tmp_path.glob("exp_.*")} > {"exp_.h", "exp_.c", "exp_.json"}
    (tmp_path / "main.c").write_text('#include "exp_.h"\n#include <math.h>\n')
    command = [
        c_compiler,
        *(["-x", language] if language == "c++" else [language]),
        "-fsyntax-only",
        "-pedantic",
        "-Wshadow",
    ]
    command += [
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{FAKE}",
        str(tmp_path / "main.c"),
        str(tmp_path / "exp_.c"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if "cc1plus" in result.stderr:
        pytest.skip("this C compiler comes without C++")
    assert result.returncode == 0, result.stderr


def test_a_copy_of_what_holds_a_loaded_kernel_holds_the_same(package: Package, tmp_path: Path) -> None:
    package.write(tmp_path)
    kernel = tilus.load_manifest(tmp_path / "strided_scale.json")
    assert copy.deepcopy([kernel])[0] is kernel
    assert copy.copy(kernel) is kernel
