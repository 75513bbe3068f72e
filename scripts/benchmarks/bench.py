# SPDX-License-Identifier: Apache-2.0
"""What does each method cost in time and memory, against a plain step of the same Trainer?

    python scripts/benchmarks/bench.py                                       # every setting, as `make bench` does
    python scripts/benchmarks/bench.py --settings 23M --cases sam momentum
    python scripts/benchmarks/bench.py --settings 0.2M --output scripts/benchmarks/results/bench    # a file each

Time: the trainings run in one process, through `train()`, and take turns after every optimizer step, which is timed by
the CPU time of its thread. Each step is divided by the plain one of the same round; the median over the rounds has a
95 % bootstrap interval. "against the limit": where a step needs two passes, it is also divided by what these and one
update take at least, 2 (F + B) + O, as measured within the plain steps of the same rounds.
Memory: each side runs in a process of its own and reports its peak; the difference is given in copies of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import Trainer, TrainingArguments

# `python scripts/benchmarks/bench.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_sam import SAMTrainer
from hf_sam.cli.common.environment import environment, write_results
from scripts.benchmarks.common import memory
from scripts.benchmarks.common.bench_cases import CASES
from scripts.benchmarks.common.bench_settings import SETTINGS, Setting
from scripts.benchmarks.common.intervals import interval
from scripts.benchmarks.common.peers import ByHandTrainer
from scripts.benchmarks.common.trainings_in_turns import Step, TimedTrainer, Turns, in_turns

WARM_UP = 2
"""Steps: the first is without the optimizer's state."""
TOGETHER = 6
"""Cases that share one run of their base: all of them are in memory."""


def make_trainer(name: str, setting: Setting, folder: str, turns: Turns, *, steps: int) -> Trainer:
    """Return a trainer of that many steps on random examples."""
    case, model = CASES[name], setting.build()
    args = TrainingArguments(
        folder, use_cpu=True, max_steps=steps, per_device_train_batch_size=setting.batch,
        gradient_accumulation_steps=setting.accumulation, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    if case.lora:
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, target_modules="all-linear"))
    common = {"train_dataset": setting.data(steps), "callbacks": [turns]}
    if case.by_hand:
        trainer: Trainer = ByHandTrainer(model, args, **common)
    elif case.config is None:
        trainer = TimedTrainer(model, args, **common)
        trainer.turns = turns
    else:
        trainer = SAMTrainer(model, args, sam_config=case.config, **common)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def run_quietly(trainer: Trainer) -> None:
    """Train without the summary that transformers prints where there is no progress bar."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def measure_time(setting: Setting, options: argparse.Namespace, folder: str) -> dict[str, dict[str, Any]]:
    """Return what was measured of the time of each case, a few cases at a time beside their base."""
    rows: dict[str, dict[str, Any]] = {}
    rounds = options.rounds or setting.rounds
    groups = in_groups(options.cases)
    for base, names in track(groups, "time", transient=True):
        make = partial(make_trainer, setting=setting, folder=folder, steps=WARM_UP + rounds)
        sides = {name: partial(_made, make, name) for name in (base, *names)}
        steps = in_turns(sides, rounds, warm_up=WARM_UP, threads=options.threads)
        rows |= {name: times_of(name, own, steps[base]) for name, own in steps.items()}
    return rows


def _made(make: Any, name: str, turns: Turns) -> Trainer:
    trainer: Trainer = make(name, turns=turns)
    return trainer


def in_groups(cases: list[str]) -> list[tuple[str, list[str]]]:
    """Return (base, a few cases of that base), for all cases; a base alone has no cases."""
    bases = [name for name in cases if CASES[name].base == name]
    others = {base: [name for name in cases if name != base and CASES[name].base == base] for base in bases}
    return [
        (base, others[base][i : i + TOGETHER]) for base in bases for i in range(0, max(1, len(others[base])), TOGETHER)
    ]


def times_of(name: str, own: list[Step], plain: list[Step]) -> dict[str, Any]:
    """Return the time of a case against the plain steps of the same rounds."""
    case = CASES[name]
    centre = statistics.fmean if case.mixed else statistics.median
    pairs = list(zip(own, plain, strict=True))
    ratio = interval([a.seconds / b.seconds for a, b in pairs], centre)
    row = {
        "base": case.base,
        "seconds_per_step": centre([step.seconds for step in own]),
        "time_ratio": ratio.value,
        "time_ratio_interval": [ratio.low, ratio.high],
        "seconds": [step.seconds for step in own],
    }
    if name == case.base:
        row["limit"] = statistics.median(1 + step.in_passes / step.seconds for step in own)
    if case.passes is not None:
        # Two passes cost at least a plain step and its passes once more.
        least = [b.seconds + (case.passes - 1) * b.in_passes for b in plain]
        above = interval([a.seconds / limit for a, limit in zip(own, least, strict=True)])
        row |= {"against_limit": above.value, "against_limit_interval": [above.low, above.high]}
    return row


def peak_bytes(name: str, setting: Setting, folder: str) -> tuple[int, int]:
    """Train in this process; return its peak memory and the size of the trained weights, in bytes."""
    turns = Turns()
    turns.on_step_end = lambda *_, **__: None  # type: ignore[method-assign]  # nobody waits
    trainer = make_trainer(name, setting, folder, turns, steps=3)
    trainer.train()
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    return memory.peak_bytes(), weights  # of this program: the usage counts that of the process it was started by


def measure_memory(key: str, cases: list[str]) -> dict[str, tuple[int, int]]:
    """Return peak and weight bytes by case, each from a process of its own."""
    # glibc keeps freed blocks for later; told not to, the resident size is what is really in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    found = {}
    for name in track(cases, "memory", transient=True):
        command = [sys.executable, __file__, "--settings", key, "--memory-of", name]
        answer = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        peak, weights = json.loads(answer.stdout.splitlines()[-1])
        found[name] = (peak, weights)
    return found


def with_memory(rows: dict[str, Any], memory: dict[str, tuple[int, int]]) -> None:
    """Add the extra memory of each case to its row, in copies of the plain Trainer's weights."""
    for name, (peak, weights) in memory.items():
        extra = (peak - memory[CASES[name].base][0]) / memory["plain"][1]
        rows[name] |= {"peak_bytes": peak, "weights_bytes": weights, "extra_copies_of_the_weights": extra}


def show(title: str, rows: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("method", "time per step", "95 % interval", "against the limit", "memory, copies", title=title)
    for name, row in rows.items():
        low, high = row["time_ratio_interval"]
        cells = [f"{row['time_ratio']:.3f}", f"{low:.3f} to {high:.3f}", "", ""]
        if "against_limit" in row:
            low, high = row["against_limit_interval"]
            cells[2] = f"{row['against_limit']:.3f} ({low:.3f} to {high:.3f})"
        if "extra_copies_of_the_weights" in row:
            cells[3] = f"{row['extra_copies_of_the_weights']:.2f}"
        table.add_row(name, *cells)
    Console().print(table)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="models")
    parser.add_argument("--rounds", type=int, help="timed steps of each side; the setting's own by default")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--no-memory", action="store_true", help="measure the time alone")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output", type=Path, help="write the results of each setting to a JSON file in this folder")
    parser.add_argument("--memory-of", choices=list(CASES), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure(key: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measure and print one setting; return what was measured."""
    setting = SETTINGS[key]
    chosen = options.cases or setting.cases or list(CASES)
    wanted = {"plain", *chosen, *(CASES[name].base for name in chosen)}
    options = argparse.Namespace(**{**vars(options), "cases": [name for name in CASES if name in wanted]})
    rows = measure_time(setting, options, folder)
    if not options.no_memory:
        with_memory(rows, measure_memory(key, options.cases))
    rows = {name: rows[name] for name in options.cases}
    show(setting.title, rows)
    settings = {"setting": key, "title": setting.title, "rounds": options.rounds or setting.rounds}
    return {"settings": settings, "threads": options.threads, "environment": environment(), "results": rows}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was measured, by setting."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.memory_of:
            print(json.dumps(peak_bytes(options.memory_of, SETTINGS[options.settings[0]], folder)))
            return {}
        for key in options.settings:
            found[key] = measure(key, options, folder)
            write_results(options.output and options.output / f"{key}.json", found[key])
    return found


if __name__ == "__main__":
    main()
