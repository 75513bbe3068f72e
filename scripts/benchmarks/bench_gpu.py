# SPDX-License-Identifier: Apache-2.0
"""What does a step cost on a GPU, for the models, precisions and options that people train with?

    python scripts/benchmarks/bench_gpu.py --output scripts/benchmarks/results/bench/gpu.json  # under 10 minutes
    python scripts/benchmarks/bench_gpu.py --dry-run                      # tiny models, on any machine

BERT-base, BERT-large and ViT-B/16 from their published sizes, with random weights and data, through `Trainer.train()`.
Each case is divided by the plain Trainer timed just before it; medians of the rounds. Peak memory is what torch
allocated. What does not fit into `--minutes` or into memory is left out, and said.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# `python scripts/benchmarks/bench_gpu.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.cli.common.environment import environment, write_results
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import PlainParser
from scripts.benchmarks.bench import run_quietly
from scripts.benchmarks.common.clock import StepClock
from scripts.benchmarks.common.memory import forget_peak, peak_bytes

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {"BERT-base": {}, "BERT-large": LARGE, "ViT-B/16": {}}
PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}}
OPTIONS: dict[str, dict[str, Any]] = {
    "": {"optim": "adamw_torch"},
    "fused AdamW": {"optim": "adamw_torch_fused"},
    "compile": {"torch_compile": True},
}
CASES: dict[str, SAMConfig | None] = {
    "plain": None,
    "sam": SAMConfig(rho=0.05),
    "asam": SAMConfig(rho=0.5, sam_variant="asam"),
    "free": SAMConfig.preset("free"),
    "ascent_fraction 0.25": SAMConfig(rho=0.05, ascent_fraction=0.25),
}


class Setting(NamedTuple):
    """What a case is measured on."""

    model: str
    precision: str
    option: str


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; wrong input is one line on stderr and status 2."""
    try:
        options = options_of(argv)
        if not (torch.cuda.is_available() or options.dry_run):
            raise UserError("there is no CUDA device here: add --dry-run to try the script.")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    transformers.utils.logging.set_verbosity_error()
    rows, left = [], []
    end = time.perf_counter() + 60 * options.minutes
    for setting in settings(options):
        if time.perf_counter() > end:
            left.append(" ".join(setting))
            continue
        rows += measured(setting, options)
    results = {
        "environment": environment(),
        "settings": vars(options) | {"output": None},
        "left_out": left,
        "rows": rows,
    }
    show(rows, left)
    write_results(options.output, results)
    return 0


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--batch", type=int, default=32, help="examples in a batch (32)")
    parser.add_argument("--length", type=int, default=128, help="tokens in a text (128)")
    parser.add_argument("--steps", type=int, default=12, help="in a round; the first two are not timed (12)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9.0, help="start nothing after so many (9)")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on any machine")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    options = parser.parse_args(argv)
    if options.dry_run:
        options.batch, options.length, options.steps, options.rounds = 4, 16, 3, 1
    return options


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """Yield what is measured: every precision, and the options with bf16."""
    cpu = not torch.cuda.is_available()
    for model in MODELS:
        for precision in PRECISIONS:
            if precision != "fp16" or not cpu:  # a gradient scaler needs a device
                yield Setting(model, precision, "")
        for option in ("fused AdamW", "compile"):
            if option != "compile" or not options.dry_run:  # minutes, and no answer to whether the script works
                yield Setting(model, "bf16", option)


def measured(setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each case on one setting."""
    times: dict[str, list[float]] = {name: [] for name in CASES}
    peaks: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, config in CASES.items():
            try:
                forget_peak()
                times[name].append(seconds(setting, config, options))
                peaks[name] = peak_bytes()
            except torch.cuda.OutOfMemoryError:
                times[name].append(float("nan"))
    rows = []
    for name, found in times.items():
        ratios = [own / plain for own, plain in zip(found, times["plain"], strict=True)]
        row = {**setting._asdict(), "case": name, "seconds_per_step": statistics.median(found)}
        row |= {"time_ratio": statistics.median(ratios), "time_ratio_range": [min(ratios), max(ratios)]}
        rows.append(row | {"peak_bytes": peaks.get(name)})
    return rows


def seconds(setting: Setting, config: SAMConfig | None, options: argparse.Namespace) -> float:
    """Train and return the mean time of the steps after the first two."""
    torch.manual_seed(0)
    model, data = built(setting.model, options)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=options.steps, per_device_train_batch_size=options.batch, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_strategy="no", use_cpu=not torch.cuda.is_available(),
            **PRECISIONS[setting.precision], **OPTIONS[setting.option],
        )  # fmt: skip
        if config is None:
            trainer = Trainer(model, arguments, train_dataset=data, callbacks=[clock])
        else:
            trainer = SAMTrainer(model, arguments, train_dataset=data, callbacks=[clock], sam_config=config)
        run_quietly(trainer)
    return (clock.ends[-1] - clock.ends[1]) / (len(clock.ends) - 2)


def built(name: str, options: argparse.Namespace) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """Return a model with random weights, and one batch of random data for each step."""
    size, changes = options.steps * options.batch, TINY if options.dry_run else MODELS[name]
    if name.startswith("ViT"):
        config = ViTConfig(**changes, num_labels=10, **({"image_size": 32} if options.dry_run else {}))
        pixels = torch.randn(options.batch, 3, config.image_size, config.image_size)  # one batch, again and again
        rows = [{"pixel_values": pixels[i % options.batch], "labels": torch.tensor(i % 10)} for i in range(size)]
        return ViTForImageClassification(config), rows
    tokens = torch.randint(1000, 30000, (size, options.length))
    rows = [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(tokens)]
    return BertForSequenceClassification(BertConfig(**changes)), rows


def show(rows: list[dict[str, Any]], left: list[str]) -> None:
    """Print the table."""
    table = Table("model", "precision", "", "case", "time", "range", "peak memory")
    for row in rows:
        low, high = row["time_ratio_range"]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f} GiB"
        name = (row["model"], row["precision"], row["option"], row["case"])
        table.add_row(*name, f"{row['time_ratio']:.2f}x", f"{low:.2f} to {high:.2f}", peak)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if left:
        console.print(f"Not measured, for want of time: {', '.join(left)}.", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
