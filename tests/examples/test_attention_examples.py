"""The attention examples: right at the edges of sequences, and as tight in machine code as they say."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tilus
from tilus.cli.inspect import disassemble, find_disassembler
from tilus.codegen.assemble import ptxas_path

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"attention_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


flash, hopper, paged = (example(name) for name in ("flash_attention", "hopper_attention", "paged_attention"))
# Both take the same arguments; each is tested on the target that it is written for.
KERNELS = {"sm_80": flash.flash_attention, "sm_90a": hopper.hopper_attention}
both = pytest.mark.parametrize("target", KERNELS)


def starts(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def simulate(
    kernel: Any, q: Any, k: Any, v: Any, bounds: Any, target: str, **options: Any
) -> tuple[Any, Any, Any]:
    """Return the result, the logarithms and the report of a launch without hazards."""
    q_starts, k_starts = bounds
    longest, scale = int(q_starts.diff().max()), options.pop("scale", q.shape[2] ** -0.5)
    lse = options.pop("lse", torch.full(q.shape[:2], float("nan")))
    out = torch.full_like(q, float("nan"))
    arguments = (q, k, v, q_starts, k_starts, longest, scale, lse, out)
    report = kernel.simulate(*arguments, d=q.shape[2], target=target, **options)
    report.raise_if_hazards()
    return out, lse, report


def attend(
    target: str, lengths: list[tuple[int, int]], heads: tuple[int, int] = (2, 1), d: int = 64, **options: Any
) -> tuple[Any, Any, Any]:
    """Check the kernel against torch for these numbers of queries and keys; return its results and its report."""
    torch.manual_seed(1)
    bounds = starts(*(x for x, _ in lengths)), starts(*(y for _, y in lengths))
    q = torch.randn(heads[0], int(bounds[0][-1]), d).half()
    k, v = (torch.randn(heads[1], int(bounds[1][-1]), d).half() for _ in range(2))
    out, lse, report = simulate(
        options.pop("kernel", None) or KERNELS[target], q, k, v, bounds, target, **options
    )
    causal = options.get("causal", False)
    exact, exact_lse = flash.reference(q, k, v, *bounds, causal, torch.float64)
    rounded = flash.reference(q, k, v, *bounds, causal, torch.float16)[0]
    assert (out.double() - exact).abs().max() <= 2 * (rounded - exact).abs().max() + 1e-5
    if options.get("with_lse", True):
        torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
    return out, lse, report


@pytest.mark.parametrize("target", ["sm_89", "sm_90a"])
def test_the_first_example_serves_later_targets(target: str) -> None:
    attend(target, [(33, 70)], kernel=flash.flash_attention, causal=True)


@both
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [[(65, 129)], [(1, 1), (3, 400), (130, 63)]], ids=str)
def test_lengths_at_the_edges_of_tiles(target: str, lengths: list[tuple[int, int]], causal: bool) -> None:
    attend(target, lengths, causal=causal)


@both
def test_queries_that_see_no_key_get_zeros(target: str) -> None:
    """The last query sees the last key, so with 10 keys the first 30 of 40 queries see none."""
    out, lse, _ = attend(target, [(40, 10), (5, 0)], causal=True)
    for rows in (slice(0, 30), slice(40, 45)):
        assert (out[:, rows] == 0).all()
        assert (lse[:, rows] == float("-inf")).all()


@both
def test_a_sequence_reads_nothing_of_its_neighbour(target: str) -> None:
    """Both have lengths that fit no tile; the neighbour's keys would win every maximum."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 100, 64).half() for _ in range(3))
    k[:, 70:] = 100 * q[:, :1]
    bounds = (starts(70, 30),) * 2
    out, _, _ = simulate(KERNELS[target], q, k, v, bounds, target)
    alone = torch.nn.functional.scaled_dot_product_attention(*(x[:, :70].double() for x in (q, k, v)))
    assert (out[:, :70].double() - alone).abs().max() < 2e-3


def test_not_even_what_is_not_a_number() -> None:
    """Bulk copies know no sequences, so this is said of the first example alone."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 100, 64).half() for _ in range(3))
    bounds = (starts(70, 30),) * 2
    expected, _, _ = simulate(flash.flash_attention, q, k, v, bounds, "sm_80")
    k[:, 70:], v[:, 70:] = float("nan"), float("inf")
    out, _, _ = simulate(flash.flash_attention, q, k, v, bounds, "sm_80")
    assert torch.equal(out[:, :70], expected[:, :70])


@both
def test_query_heads_share_keys(target: str) -> None:
    attend(target, [(17, 40)], (4, 2))


@both
def test_large_scores_do_not_overflow(target: str) -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 64, 64).half() for _ in range(3))
    q *= 60
    out, _, _ = simulate(KERNELS[target], q, k, v, (starts(64),) * 2, target, scale=1.0)
    expected = torch.softmax(q.double() @ k.double().mT, dim=2) @ v.double()
    assert (out.double() - expected).abs().max() < 5e-3


def test_the_logarithms_are_optional() -> None:
    _, _, with_lse = attend("sm_80", [(20, 30)])
    _, _, without = attend("sm_80", [(20, 30)], lse=torch.empty(2, 0), with_lse=False)
    assert without.counters["global_store_requests"] < with_lse.counters["global_store_requests"]


def grown(target: str, d: int, keys: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Return how many instructions of each kind `keys` more keys take, and the counters of the longer run."""
    few, more = (attend(target, [(64, n)], (1, 1), d)[2].counters for n in (2 * keys, 3 * keys))
    kinds = {
        kind: count - few["instructions_by_kind"].get(kind, 0)
        for kind, count in more["instructions_by_kind"].items()
    }
    return kinds, more


@pytest.mark.parametrize("d", [64, 128])
def test_what_a_tile_of_keys_costs(d: int) -> None:
    """Weights go from one product to the next in registers: no warp stores to shared memory or meets others for it."""
    kinds, counters = grown("sm_80", d, 64)
    warps, products = 4, 2 * (64 // 8) * (d // 16)
    assert kinds["mma"] == warps * products
    assert kinds["ldmatrix"] == warps * products // 2
    # Largest and sum of two rows in each thread, over the four threads that share a row.
    assert kinds["shfl"] == warps * 8
    # One power of two for each of a thread's 32 scores, and one for each of its two rows.
    assert kinds["ex2"] == warps * 34
    assert kinds["bar"] == warps
    assert kinds.get("st", 0) == 0
    assert kinds.get("ld", 0) == 0
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"]
    assert counters["global_load_sectors"] == counters["global_load_sectors_ideal"]


@pytest.mark.parametrize("d", [64, 128])
def test_what_a_tile_of_keys_costs_on_hopper(d: int) -> None:
    kinds, counters = grown("sm_90a", d, 128)
    groups, warps = 2, 8
    # Each counts once for a group of four warps: depth d for scores, depth 128 for values.
    assert kinds["wgmma"] >= groups * (d // 16 + 128 // 16)
    assert sum(counters["tensor_core_instructions"].values()) == groups * 3 * (d // 16 + 128 // 16)
    assert kinds["ex2"] == warps * 66
    assert kinds["shfl"] == warps * 8
    # Rows of 128 bytes are what a bulk copy swizzles: keys and values of 128 elements are two copies each.
    assert kinds["cp"] == 2 * (d // 64)
    for kind in ("st", "ld", "ldmatrix", "fence"):
        assert kinds.get(kind, 0) == 0, kind
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"]


@pytest.mark.parametrize(("target", "part"), [("sm_80", 10 / 16), ("sm_90a", 3 / 4)])
def test_tiles_above_the_diagonal_are_skipped(target: str, part: float) -> None:
    """256 queries and keys are 4 x 4 tiles of 64 x 64, or 2 x 2 of 128 x 128."""
    full, causal = (
        sum(attend(target, [(256, 256)], (1, 1), causal=x)[2].counters["tensor_core_instructions"].values())
        for x in (False, True)
    )
    assert causal / full == part


def compile_for(target: str, d: int, dtype: str = "float16") -> Any:
    kernel = KERNELS["sm_90a" if target == "sm_90a" else "sm_80"]
    return kernel.compile(target=target, dtype=tilus.dtypes.dtype(dtype), d=d, causal=True)


@pytest.mark.parametrize(("d", "dtype"), [(64, "float16"), (128, "bfloat16")])
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_nothing_spills(target: str, d: int, dtype: str) -> None:
    if target == "sm_90a" and d == 128 and ptxas_path() is None:
        pytest.skip("no ptxas, which alone follows setmaxnreg: pip install nvidia-cuda-nvcc")
    compiled = compile_for(target, d, dtype)
    if compiled.resources is None:
        pytest.skip("NVIDIA's assembler is not installed")
    assert compiled.resources.spill_stores == 0
    assert compiled.resources.stack == 0
    # Not that wgmma is serialised, either.
    assert compiled.resources.warnings == ()


@pytest.mark.parametrize(("d", "block_n"), [(64, 128), (128, 64)])
def test_without_ptxas_there_are_tiles_that_fit(
    d: int, block_n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing, such as a division's slow path, makes nvJitLink serialise the products."""
    monkeypatch.setattr("tilus.codegen.assemble.ptxas_path", lambda: None)
    options = {"target": "sm_90a", "dtype": tilus.float16, "d": d, "block_n": block_n}
    resources = hopper.hopper_attention.compile(**options).resources
    if resources is None:
        pytest.skip("NVIDIA's assembler is not installed")
    assert (resources.spill_stores, resources.warnings) == (0, ())


def step_of_a_group(compiled: Any) -> str:
    """Return the machine code of the loop with both products, from its label to the branch back."""
    if compiled.cubin is None or find_disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    lines = disassemble(compiled.cubin).splitlines()
    labels = {line.strip().rstrip(":"): i for i, line in enumerate(lines) if line.startswith(".L_x_")}
    loops = []
    for end, line in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        begin = labels.get(target[1], end) if target else end
        loop = "\n".join(lines[begin : end + 1])
        if begin < end and "tnspB" in loop and re.search(r"HGMMA(?!.*tnspB)", loop):
            loops.append(loop)
    return min(loops, key=len)


@pytest.mark.parametrize("d", [64, 128])
def test_powers_run_beside_products(d: int) -> None:
    """Both products are begun, scores waited for, powers taken; then only the values' product is waited for."""
    if d == 128 and ptxas_path() is None:
        pytest.skip("no ptxas, which alone follows setmaxnreg: pip install nvidia-cuda-nvcc")
    loop = step_of_a_group(compile_for("sm_90a", d))
    begun, taken, rest = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x[10]", loop)
    assert (begun.count("HGMMA"), begun.count("tnspB")) == (d // 16 + 8, 8)
    assert taken.count("MUFU.EX2") == 66
    assert "MUFU" not in rest
    assert "HGMMA" not in taken + rest
    assert not re.search(r"\b(LDS|STS|LDG|STG|LDL|STL|LDSM|BAR)\b", loop)


def paged_arguments(kind: str, length: int, parts: int = 1) -> tuple[Any, ...]:
    """Return arguments for one sequence of two heads of keys for two query heads each, with pages of 64 tokens in order."""
    torch.manual_seed(4)
    count = -(-length // 64)
    k, v = (paged.quantized(torch.randn(count, 2, 64, 128), tilus.dtypes.dtype(kind)) for _ in range(2))
    table = torch.arange(count, dtype=torch.int32)[None]
    q = torch.randn(1, 4, 128).half()
    lse, found = torch.empty(1, parts, 4), torch.empty(1, parts, 4, 128)
    inputs = (q, k[0], v[0], k[1], v[1], table, torch.tensor([length], dtype=torch.int32), 128**-0.5)
    return inputs, lse, found, (k[2], v[2])


def attend_to_pages(kind: str, length: int, parts: int, target: str = "sm_80") -> Any:
    """Check the two kernels against float64; return the report of the first."""
    inputs, lse, found, meant = paged_arguments(kind, length, parts)
    dtype = tilus.dtypes.dtype(kind)
    report = paged.attend_to_parts.simulate(
        *inputs, lse, found, kv_dtype=dtype, d=128, page=64, target=target
    )
    report.raise_if_hazards()
    out = torch.empty_like(inputs[0])
    size = paged.piece(128, 8, dtype.bits, 16)
    paged.join_parts.simulate(
        lse, found, out, parts=parts, d=128, size=size, target=target
    ).raise_if_hazards()
    keys, values = (
        x.transpose(0, 1).reshape(2, -1, 128)[:, :length].repeat_interleave(2, dim=0) for x in meant
    )
    scores = inputs[0][0, :, None].double() @ keys.mT * 128**-0.5
    exact = (torch.softmax(scores, dim=2) @ values)[:, 0]
    assert (out[0].double() - exact).abs().max() < 2e-3
    return report


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_more_parts_than_pages(target: str) -> None:
    """Parts without a page have nothing to say; their sums are zero."""
    attend_to_pages("int8", 70, 4, target)


def test_a_sequence_without_keys_gets_zeros() -> None:
    inputs, lse, found, _ = paged_arguments("float16", 64, 2)
    inputs[6].zero_()
    options = {"d": 128, "target": "sm_80"}
    paged.attend_to_parts.simulate(*inputs, lse, found, kv_dtype=tilus.float16, page=64, **options)
    out = torch.full((1, 4, 128), float("nan")).half()
    paged.join_parts.simulate(lse, found, out, parts=2, size=8, **options)
    assert (out == 0).all()


@pytest.mark.parametrize("kind", ["uint2", "int5", "float6_e3m2", "float8_e5m2"])
def test_a_cache_of_any_width(kind: str) -> None:
    attend_to_pages(kind, 100, 1)


@pytest.mark.parametrize(("kind", "width"), [("float16", 256), ("int8", 128)])
def test_pages_move_in_whole_vectors_without_conflicts(kind: str, width: int) -> None:
    report = attend_to_pages(kind, 256, 1)
    counters = report.counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"]
    # For each of two heads keys and values of 256 tokens, 16 bytes for each of 32 threads.
    copies = [x for x in report.instructions if "cp.async.cg.shared.global" in x.instruction]
    assert sum(x.warp_instructions for x in copies) == 2 * 2 * 256 * width // 512
    assert counters["instructions_by_kind"].get("ldmatrix", 0) == 0


@pytest.mark.parametrize("kind", ["float16", "int8", "int4"])
def test_pages_do_not_spill(kind: str) -> None:
    dtype = tilus.dtypes.dtype(kind)
    resources = paged.attend_to_parts.compile(target="sm_80", kv_dtype=dtype, d=128, page=64).resources
    if resources is None:
        pytest.skip("NVIDIA's assembler is not installed")
    assert (resources.spill_stores, resources.stack) == (0, 0)


def test_the_page_shows_the_examples() -> None:
    page = (EXAMPLES.parent / "docs" / "attention.md").read_text(encoding="utf-8")
    for module, names in (
        (flash, ["flash_attention"]),
        (paged, ["in_memory", "as_operand"]),
    ):
        source = Path(module.__file__).read_text(encoding="utf-8")
        lines = source.splitlines()
        shown = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
        assert len(shown) == len(names)
        for node in shown:
            assert isinstance(node, ast.FunctionDef)
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            assert "\n".join(lines[first - 1 : node.end_lineno]) in page, node.name
    source = Path(hopper.__file__).read_text(encoding="utf-8")
    step = source[
        source.index("            for step in range(1, steps)") : source.index("            last = (steps")
    ]
    assert textwrap.dedent(step).strip() in page
