# SPDX-License-Identifier: Apache-2.0
"""Compare with plain training: the same run without SAM, first, and both side by side."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import release_memory
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.checkpoints import check_output_dir
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.processes import check_same, prepared_together, splits_weights
from hf_sam.cli.tasks.base import Task
from hf_sam.config.sam_config import PLAIN, SAMConfig

FOLDER = "_plain"  # a push leaves out what begins with _
_STATE = "plain_run.json"
_LEFT_OUT = ("_runtime", "_per_second", "_samples", "_model_preparation_time")
# They differ between a run and one that goes on from where it was, or say nothing about what is trained.
_INCIDENTAL = (
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "output_dir",
    "logging_dir",
    "run_name",
    "disable_tqdm",
)
_OF_THE_HUB = "hub_"
Run = Callable[[ScriptArguments, Any], dict[str, Any]]


@dataclass
class Comparison:
    """The results of plain training."""

    results: dict[str, Any]
    folder: Path
    rows: int  # of the evaluation
    seconds: float  # that it took now

    def facts(self) -> dict[str, Any]:
        """Return what goes into all_results.json of the run itself."""
        kept = [name for name in self.results if _is_metric(name) or name in ("train_runtime", "train_loss")]
        return {f"plain_{name}": self.results[name] for name in kept}

    def show(self, results: dict[str, Any], console: Console) -> None:
        """Print both side by side."""
        console.print("\nagainst plain training", style="italic")
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for name in ("plain", str(results["sam_variant"]).upper(), "difference"):
            table.add_column(name, justify="right")
        for name in filter(_is_metric, results):
            cells = _cells(self.results.get(name), results[name])
            table.add_row(Text(name.replace("_", " ")), *cells)
        plain, ours = (float(found.get("train_runtime") or 0) for found in (self.results, results))
        table.add_row("training", f"{plain:.1f} s", f"{ours:.1f} s", f"{ours / plain:.2f} x" if plain else "")
        console.print(table)
        console.print(self._caution(results), soft_wrap=True, markup=False, highlight=False)
        console.print(f"The plain model is in {self.folder}\n", soft_wrap=True, markup=False, highlight=False)

    def _caution(self, results: dict[str, Any]) -> str:
        accuracy = results.get("eval_accuracy")
        if accuracy is None or not self.rows:
            return "One run of each: another --seed may turn a small difference round."
        error = math.sqrt(max(accuracy * (1 - accuracy), 0.25 / self.rows) / self.rows)
        return (
            f"One run of each, on {self.rows:,} rows: an accuracy is known to about ±{error:.3f} (standard error), so "
            "another --seed may turn a smaller difference round."
        )


def check_compare(args: ScriptArguments, training: Any) -> None:
    """Refuse a comparison of nothing.

    Raises:
        UserError: with the reason.
    """
    if not args.compare:
        return
    if training.sam_variant == PLAIN:
        raise UserError("--compare trains without SAM first, and --sam_variant none is that: leave one of them out.")
    if not (training.do_train and training.do_eval):
        raise UserError("--compare needs a training and its evaluation: leave --do_train and --do_eval on.")
    if splits_weights(training):
        raise UserError(
            "--compare trains twice in one process, which FSDP and DeepSpeed do not take: "
            "run it again with --sam_variant none and another --output_dir instead."
        )


def compare(args: ScriptArguments, training: Any, task: Task, run: Run) -> Comparison | None:
    """Train without SAM if --compare asks for it.

    Args:
        args: Of the script.
        training: The training arguments.
        task: What is to be compared on.
        run: The whole run, as a function of both.
    """
    if not args.compare:
        return None
    rows = sum(len(split.data) for split in task.evaluation.values())
    before = time.perf_counter()
    with _same_random_numbers():
        results = train_plain(args, training, run)
    return Comparison(results, Path(training.output_dir) / FOLDER, rows, time.perf_counter() - before)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Let what comes after draw the random numbers that it would have drawn without what happens meanwhile."""
    own = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    random.setstate(own[0])
    np.random.set_state(own[1])


def train_plain(args: ScriptArguments, training: Any, run: Run) -> dict[str, Any]:
    """Run with the same arguments and without SAM, into a folder of its own, or return what that has reached before.

    The run is what `--sam_variant none` would be, to the bit. With `--resume_from_checkpoint` it goes on from its own
    last checkpoint, and is not repeated when it had ended.

    Args:
        args: Of the script.
        training: The training arguments.
        run: The whole run, as a function of both.

    Raises:
        UserError: if what was reached before was reached with other arguments.
    """
    folder = Path(training.output_dir) / FOLDER
    plain_args = dataclasses.replace(args, compare=False, suspects=False)
    plain = _without_sam(training, folder)
    arguments = _described(plain_args, plain)
    with prepared_together(training):
        check_output_dir(folder, resume=bool(plain.resume_from_checkpoint), overwrite=args.overwrite_output_dir)
        ended = _results_before(folder / _STATE, arguments) if plain.resume_from_checkpoint else None
    check_same(training, f"whether {folder} has ended", ended is not None)
    if ended is not None:
        return ended
    if training.should_save:
        _write(folder / _STATE, {"arguments": arguments})
    if training.process_index == 0:
        print(f"\nPlain training first (--compare), into {folder}", flush=True)
    results = run(plain_args, plain)
    if training.should_save:
        _write(folder / _STATE, {"arguments": arguments, "results": results})
    gc.collect()  # the model is in a circle of references
    release_memory()
    return results


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def _without_sam(training: Any, folder: Path) -> Any:
    plain = copy.copy(training)
    without = SAMConfig(sam_variant=PLAIN)
    for f in dataclasses.fields(SAMConfig):
        setattr(plain, f.name, getattr(without, f.name))
    plain.preset = None
    plain.output_dir, plain.run_name = str(folder), str(folder)
    plain.push_to_hub = False
    plain.report_to = []  # a tracker would take both runs for one
    plain.resume_from_checkpoint = "True" if training.resume_from_checkpoint else None
    return plain


def _described(args: ScriptArguments, training: Any) -> dict[str, Any]:
    found = {**training.to_dict(), **dataclasses.asdict(args)}
    return {
        name: json.loads(json.dumps(value, default=str))
        for name, value in found.items()
        if name not in _INCIDENTAL and not name.startswith(_OF_THE_HUB)
    }


def _results_before(path: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results of a run that has ended, None for one that has not, or has not begun."""
    if not path.is_file():
        return None
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, now in arguments.items():
        then = before["arguments"].get(name)
        if then != now:
            raise UserError(
                f"{path.parent} was trained with --{name} {one_line(then, 60)}, and now it is {one_line(now, 60)}: "
                "give the same, or remove the folder to train it again."
            )
    return before.get("results")


def _is_metric(name: str) -> bool:
    return name.startswith(("eval_", "test_")) and not name.endswith(_LEFT_OUT)


def _cells(plain: Any, ours: Any) -> Iterator[str]:
    numbers = [value if isinstance(value, (int, float)) else None for value in (plain, ours)]
    yield from ("not finite" if value is None else f"{value:.4f}" for value in numbers)
    yield "" if None in numbers else f"{ours - plain:+.4f}"
