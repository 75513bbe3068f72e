# SPDX-License-Identifier: Apache-2.0
"""What does each method cost in time and memory, against a plain step of the same Trainer?

    python scripts/benchmarks/bench.py                     # a 35M-parameter encoder, as `make bench` does
    python scripts/benchmarks/bench.py --cases sam momentum --rounds 9
    python scripts/benchmarks/bench.py --output scripts/benchmarks/results/bench/cpu.json

Time: all sides run through `train()` in one process, in turns, and each is divided by the plain run just before it; the
median of the rounds is the result. A round times five optimizer steps, so that what happens at every fifth or in the
last fifth of a run has its share.
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
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

# `python scripts/benchmarks/bench.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_sam import SAMTrainer
from scripts.benchmarks.common.bench_cases import CASES
from scripts.benchmarks.common.clock import StepClock
from scripts.common.environment import environment, write_results

GROUP = 3
"""Cases that share one run of their base."""


def make_trainer(name: str, options: argparse.Namespace, folder: str) -> tuple[Trainer, StepClock]:
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
    sam = CASES[name].config
    common = {"train_dataset": data, "callbacks": [clock]}
    model: Any = BertForSequenceClassification(config)
    if CASES[name].lora:
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, target_modules="all-linear"))
    if sam is None:
        return Trainer(model, args, **common), clock
    return SAMTrainer(model, args, sam_config=sam, **common), clock


def run_quietly(trainer: Trainer) -> None:
    """Train without the summary that transformers prints where there is no progress bar."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def measure_time(options: argparse.Namespace, folder: str) -> dict[str, list[tuple[float, float]]]:
    """Return seconds per step, of each case and of its base, one pair a round; a first step warms up.

    The base runs anew before every few cases: a machine's speed wanders over the minutes that a round takes.
    """
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in options.cases}
    groups = in_groups(options.cases)
    for number in track(range(options.rounds * len(groups)), "time", transient=True):
        turn, place = divmod(number, len(groups))
        base, names = groups[:: -1 if turn % 2 else 1][place]
        plain = seconds_per_step(base, options, folder)
        pairs[base].append((plain, plain))
        for name in names[:: -1 if turn % 2 else 1]:
            pairs[name].append((seconds_per_step(name, options, folder), plain))
    return pairs


def in_groups(cases: list[str]) -> list[tuple[str, list[str]]]:
    """Return (base, a few cases of that base), for all cases; a base alone has no cases."""
    bases = [name for name in cases if CASES[name].base == name]
    others = {base: [name for name in cases if name != base and CASES[name].base == base] for base in bases}
    return [(base, others[base][i : i + GROUP]) for base in bases for i in range(0, max(1, len(others[base])), GROUP)]


def seconds_per_step(name: str, options: argparse.Namespace, folder: str) -> float:
    """Train and return the mean time of the steps after the first."""
    trainer, clock = make_trainer(name, options, folder)
    run_quietly(trainer)
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)


def peak_bytes(name: str, options: argparse.Namespace, folder: str) -> tuple[int, int]:
    """Train in this process; return its peak memory and the size of the weights, in bytes."""
    trainer, _ = make_trainer(name, options, folder)
    run_quietly(trainer)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), weights
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, weights


def measure_memory(options: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """Return peak and weight bytes by case, each from a process of its own."""
    # glibc keeps freed blocks for later; told not to, the resident size is what is really in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    found = {}
    for name in track(options.cases, "memory", transient=True):
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        answer = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        peak, weights = json.loads(answer.stdout.splitlines()[-1])
        found[name] = (peak, weights)
    return found


def summarise(seconds: dict[str, list[tuple[float, float]]], memory: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Return the median time ratio, its range and the extra memory, by case, each against its plain Trainer."""
    rows = {}
    for name in seconds:
        base = CASES[name].base
        ratios = [own / plain for own, plain in seconds[name]]
        peak, weights = memory[name]
        rows[name] = {
            "base": base,
            "seconds_per_step": statistics.median(own for own, _ in seconds[name]),
            "time_ratio": statistics.median(ratios),
            "time_ratio_range": [min(ratios), max(ratios)],
            "peak_bytes": peak,
            "weights_bytes": weights,
            "extra_copies_of_the_weights": (peak - memory[base][0]) / memory["plain"][1],
        }
    return rows


def show(rows: dict[str, Any], options: argparse.Namespace, parameters: int) -> None:
    """Print the table."""
    title = (
        f"{parameters / 1e6:.1f}M parameters, {options.batch} x {options.length} tokens, "
        f"accumulation {options.accumulation}, {options.rounds} alternating rounds"
    )
    table = Table("method", "time per step", "range", "extra peak memory", title=title)
    for name, row in rows.items():
        low, high = row["time_ratio_range"]
        table.add_row(
            name,
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
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps in a round; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE", help=", ".join(CASES)
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--memory-of", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    wanted = {"plain", *options.cases, *(CASES[name].base for name in options.cases)}
    options.cases = [name for name in CASES if name in wanted]
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
    show(rows, options, memory["plain"][1] // 4)
    settings = {k: v for k, v in vars(options).items() if k not in ("output", "memory_of")}
    results = {"settings": settings, "environment": environment(), "results": rows}
    write_results(options.output, results)
    return results


if __name__ == "__main__":
    main()
