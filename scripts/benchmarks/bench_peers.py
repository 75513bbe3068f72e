# SPDX-License-Identifier: Apache-2.0
"""What does a SAM step cost here and with other libraries, on top of its two passes, and which of them break?

    python scripts/benchmarks/bench_peers.py                                # 22M parameters
    python scripts/benchmarks/bench_peers.py --hidden 768 --layers 12       # 110M, BERT-base
    python scripts/benchmarks/bench_peers.py --output scripts/benchmarks/results/bench/peers.json

Same model, data and base optimizer (AdamW). Each library is a process of its own, and they take their steps in turns
with one that does two plain passes and an update, which their steps are divided by; medians of the rounds. Memory: the
peak of a process of its own. The last table takes each through what a
training run brings: "accumulation" and "resume" are differences of float64 weights after three and six steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# `python scripts/benchmarks/bench_peers.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.cli.common.environment import environment, write_results
from hf_sam.cli.common.parsing import PlainParser
from scripts.benchmarks.bench import run_quietly
from scripts.benchmarks.common.clock import StepClock
from scripts.benchmarks.common.memory import peak_bytes
from scripts.benchmarks.common.peer_checks import checks
from scripts.benchmarks.common.peers import LOOPS, RHO, TwoPassTrainer
from scripts.benchmarks.common.relay import Turns, in_turns

TRAINERS: dict[str, Callable[..., Trainer]] = {
    "two plain passes of the Trainer": TwoPassTrainer,
    "SAMTrainer": lambda *args, **rest: SAMTrainer(*args, sam_config=SAMConfig(rho=RHO), **rest),
}
"""In the Trainer; the first is what the others are divided by."""
NAMES = [*LOOPS, *TRAINERS]
Round = dict[str, list[list[float]]]
"""By name, for each step: its seconds, and those of its passes."""
FLOORS = [next(iter(LOOPS)), next(iter(TRAINERS))]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = options_of(argv)
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    if options.alone:
        run(options.alone, options, InTurns() if options.in_turns else StepClock())
        print(json.dumps(peak_bytes()))
        return 0
    names = options.sides
    peaks = {name: peak_of(name) for name in track(names, "memory", transient=True)}
    rounds = [a_round(names, options.steps) for _ in track(range(options.rounds), "time", transient=True)]
    weights = 4 * sum(p.numel() for p in model_of(options).parameters())
    rows = {name: row_of(name, rounds, peaks, weights) for name in names}
    transformers.utils.logging.disable_progress_bar()
    survived = {name: checks(LOOPS[name]) for name in names if name in LOOPS and name != FLOORS[0]}
    results = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("output", "alone", "in_turns")},
        "parameters": weights // 4,
        "environment": environment(),
        "results": rows,
        "checks": survived,
    }
    show(results)
    write_results(options.output, results)
    return 0


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--hidden", type=int, default=384, help="hidden size, a multiple of 64 (384)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32, help="examples in a batch (32)")
    parser.add_argument("--length", type=int, default=64, help="tokens in an example (64)")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches that a batch is cut into (1)")
    parser.add_argument("--sides", nargs="+", choices=NAMES, default=NAMES, metavar="SIDE", help=", ".join(NAMES))
    parser.add_argument("--steps", type=int, default=4, help="of each in a round; the first is not timed (4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--alone", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--in-turns", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.sides = [name for name in NAMES if name in options.sides or name in FLOORS]
    return options


def model_of(options: argparse.Namespace) -> Any:
    """Return the encoder."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": options.hidden // 64, "intermediate_size": 4 * options.hidden}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BertConfig(hidden_size=options.hidden, num_hidden_layers=options.layers, **heads)
    model: Any = BertForSequenceClassification(config)
    return model.to(device)


class InTurns(StepClock):
    """Tells how long each step took and how long of it its passes, and waits for the steps of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(self.now)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        super().on_step_end()
        self.turns.end_step(self.inside)
        self.inside = 0.0


def a_round(names: Sequence[str], steps: int) -> Round:
    """Return the seconds of each one's steps after the first, and of their passes; loops, then Trainers."""
    found: Round = {}
    for group in (LOOPS, TRAINERS):
        found |= in_turns({name: [*alone(name), "--in-turns"] for name in names if name in group}, steps)
    return found


def alone(name: str) -> list[str]:
    """Return the command of one of them in a process of its own."""
    return [sys.executable, __file__, *sys.argv[1:], "--alone", name]


def run(name: str, options: argparse.Namespace, clock: StepClock) -> None:
    """Take the steps of one of them."""
    model = model_of(options)
    size = options.steps * options.batch
    tokens = torch.randint(1000, 30000, (size, options.length))
    labels = torch.arange(size) % 2
    if name in TRAINERS:
        data = [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, max_steps=options.steps, save_strategy="no",
                per_device_train_batch_size=options.batch // options.accumulation,
                gradient_accumulation_steps=options.accumulation,
                report_to="none", disable_tqdm=True, logging_strategy="no", use_cpu=not torch.cuda.is_available(),
                max_grad_norm=0.0, optim="adamw_torch",
            )  # fmt: skip
            run_quietly(TRAINERS[name](model, args, train_dataset=data, callbacks=[clock]))
    else:
        model.train()
        batches = torch.split(tokens, options.batch), torch.split(labels, options.batch)
        step_through(LOOPS[name](model), model, *batches, options.accumulation, clock)


def step_through(peer: Any, model: Any, tokens: Any, labels: Any, accumulation: int, clock: StepClock) -> None:
    """Take a step on every batch."""
    for ids, label in zip(tokens, labels, strict=True):
        chunks = list(zip(ids.chunk(accumulation), label.chunk(accumulation), strict=True))

        def closure(chunks: list[Any] = chunks) -> torch.Tensor:
            total = torch.zeros((), device=model.device)
            with clock.a_pass():
                for x, y in chunks:
                    loss = model(input_ids=x.to(model.device), labels=y.to(model.device)).loss / len(chunks)
                    loss.backward()
                    total += loss.detach()
            return total

        peer.step(closure)
        clock.on_step_end()


def peak_of(name: str) -> int:
    """Return the peak memory of a process of its own, in bytes."""
    # glibc keeps freed blocks for later; told not to, the resident size is what is really in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    two = [*alone(name), "--steps", "2"]  # in the second step the optimizer has its state
    answer = subprocess.run(two, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return int(answer.stdout.splitlines()[-1])


def row_of(name: str, rounds: list[Round], peaks: dict[str, int], weights: int) -> dict[str, Any]:
    """Return what was measured of one way."""
    floor = FLOORS[name in TRAINERS]
    steps = {side: [step[0] for each in rounds for step in each[side]] for side in (name, floor)}
    outside = {side: statistics.median(s - i for each in rounds for s, i in each[side]) for side in (name, floor)}
    ratios = [statistics.median(s[0] / f[0] for s, f in zip(each[name], each[floor], strict=True)) for each in rounds]
    own = (outside[name] - outside[floor]) / statistics.median(steps[floor])
    return {
        "floor": floor,
        "seconds_and_seconds_in_passes": [each[name] for each in rounds],
        "share_outside_passes": None if name in TRAINERS else own,
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": peaks[name],
        "extra_copies_of_the_weights": (peaks[name] - peaks[floor]) / weights,
    }


def show(results: dict[str, Any]) -> None:
    """Print both tables."""
    table = Table(
        "",
        "time, two plain passes = 1",
        "range",
        "outside of the passes",
        "extra peak memory, in copies of the weights",
    )
    table.title = f"{results['parameters'] / 1e6:.1f}M parameters"
    for name, row in results["results"].items():
        low, high = row["time_ratio_range"]
        memory = f"{row['extra_copies_of_the_weights']:.2f}"
        own = "" if row["share_outside_passes"] is None else f"{row['share_outside_passes']:.2%}"
        table.add_row(name, f"{row['time_ratio']:.3f}", f"{low:.3f} to {high:.3f}", own, memory)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    table = Table("", *next(iter(results["checks"].values()), []))
    for name, found in results["checks"].items():
        table.add_row(name, *found.values())
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
