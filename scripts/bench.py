# SPDX-License-Identifier: Apache-2.0
"""What does a SAM step cost in time and memory, against a plain step of the same Trainer?

    python scripts/bench.py                     # a 35M-parameter encoder, as `make bench` does
    python scripts/bench.py --rounds 9 --output scripts/results/bench/cpu.json

Time: both sides run through `train()` in one process, in turns; each round gives one ratio, the median is the result.
Memory: each side runs in a process of its own and reports its peak; the difference is given in copies of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

# `python scripts/bench.py` puts scripts/ on the path, the imports below need the folder above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_sam import SAMConfig, SAMTrainer
from scripts.common.environment import environment

VARIANTS = {"none": 0.0, "sam": 0.05, "asam": 0.5}


class StepClock(TrainerCallback):
    """Notes when each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def make_trainer(variant: str, options: argparse.Namespace, folder: str) -> tuple[Trainer, StepClock]:
    """Return a trainer for random token sequences and the clock that watches it."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
    )
    size = options.steps * options.batch * options.accumulation
    tokens = torch.randint(1000, 30000, (size, options.length))
    data = [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(tokens)]
    args = TrainingArguments(
        folder,
        use_cpu=not torch.cuda.is_available(),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    clock = StepClock()
    sam = SAMConfig(rho=VARIANTS[variant], sam_variant=variant)
    common = {"train_dataset": data, "callbacks": [clock]}
    model = BertForSequenceClassification(config)
    if variant == "none":
        return Trainer(model, args, **common), clock
    return SAMTrainer(model, args, sam_config=sam, **common), clock


def run_quietly(trainer: Trainer) -> None:
    """Train without the summary that transformers prints where there is no progress bar."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def measure_time(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Return seconds per step by variant, one entry a round, the sides alternating; a first step warms up."""
    sides = {variant: make_trainer(variant, options, folder) for variant in options.variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in sides}
    for number in track(range(options.rounds + 1), "rounds", transient=True):
        for variant in sorted(sides, reverse=number % 2 == 1):
            trainer, clock = sides[variant]
            clock.ends.clear()
            run_quietly(trainer)
            if number:  # the first round allocates the optimizer's state
                seconds[variant].append((clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1))
    return seconds


def peak_bytes(variant: str, options: argparse.Namespace, folder: str) -> tuple[int, int]:
    """Train in this process; return its peak memory and the size of the weights, in bytes."""
    trainer, _ = make_trainer(variant, options, folder)
    run_quietly(trainer)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), weights
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, weights


def measure_memory(options: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """Return peak and weight bytes by variant, each from a process of its own."""
    # glibc keeps freed blocks for later; told not to, the resident size is what is really in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    found = {}
    for variant in track(options.variants, "memory", transient=True):
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", variant]
        answer = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        peak, weights = json.loads(answer.stdout.splitlines()[-1])
        found[variant] = (peak, weights)
    return found


def summarise(seconds: dict[str, list[float]], memory: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Return the median time ratio, its range and the extra memory, by variant."""
    rows = {}
    for variant in seconds:
        ratios = [s / plain for s, plain in zip(seconds[variant], seconds["none"], strict=True)]
        peak, weights = memory[variant]
        rows[variant] = {
            "seconds_per_step": statistics.median(seconds[variant]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
            "peak_bytes": peak,
            "weights_bytes": weights,
            "extra_copies_of_the_weights": (peak - memory["none"][0]) / weights,
        }
    return rows


def show(rows: dict[str, Any], options: argparse.Namespace, parameters: int) -> None:
    """Print the table."""
    title = (
        f"{parameters / 1e6:.1f}M parameters, {options.batch} x {options.length} tokens, "
        f"accumulation {options.accumulation}, {options.rounds} alternating rounds"
    )
    table = Table("variant", "time per step", "range", "extra peak memory", title=title)
    for variant, row in rows.items():
        low, high = row["time_ratio_range"]
        table.add_row(
            variant if variant != "none" else "plain Trainer",
            f"{row['time_ratio']:.2f}x",
            f"{low:.2f} to {high:.2f}",
            f"{row['extra_copies_of_the_weights']:.2f} copies of the weights",
        )
    Console().print(table)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32, help="examples in a micro-batch")
    parser.add_argument("--length", type=int, default=128, help="tokens in an example")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches in an optimizer step")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps in a round; the first is not timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.variants = list(dict.fromkeys(["none", *options.variants]))
    return options


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        if options.memory_of:
            print(json.dumps(peak_bytes(options.memory_of, options, folder)))
            return {}
        memory = measure_memory(options)
        rows = summarise(measure_time(options, folder), memory)
    show(rows, options, memory["none"][1] // 4)
    settings = {k: v for k, v in vars(options).items() if k not in ("output", "memory_of")}
    results = {"settings": settings, "environment": environment(), "results": rows}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
