# SPDX-License-Identifier: Apache-2.0
"""What does one run of a grid leave behind?"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging

from hf_sam.cli.common.environment import environment
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.finetune import finetune
from hf_sam.cli.tasks import TASKS
from scripts.benchmarks.common.kept_scores import kept_scores
from scripts.benchmarks.common.memory import forget_peak, peak_bytes
from scripts.benchmarks.common.runs import Cell

HELD_OUT = 0.2
"""Share of the training data, wrong labels and all, that a run is stopped by, or a radius chosen by."""
Curve = list[list[float | None]]


def run(arguments: dict[str, Any], cell: Cell, keep: Path | None = None) -> dict[str, Any]:
    """Train and evaluate; return what to keep of it. The model goes into `keep` if that is given.

    The argument "robustness" is not one of finetune.py: it says what `kept_scores` measures of the model. A run that
    holds training data out to stop by is judged on the evaluation file, which it has not seen.
    """
    stops = "early_stopping_patience" in arguments
    if stops:
        arguments = arguments | _judged_on_test(arguments)
    flags = [str(part) for name, value in arguments.items() if name != "robustness" for part in (f"--{name}", value)]
    if "suspects" not in arguments:
        flags += ["--suspects", "False"]  # a pass over the training data that a grid does not need
    defaults = {name: entry.defaults for name, entry in TASKS.items()}
    with _folder(keep) as folder, quiet():
        flags += ["--output_dir", folder, "--seed", str(cell.seed), "--disable_tqdm", "True"]
        flags += ["--overwrite_output_dir", "True"]  # what a run that was interrupted has left there
        args, training = parse(flags, defaults)
        forget_peak()
        results = finetune(args, training)
        if stops:
            results |= {f"eval_{name[5:]}": value for name, value in results.items() if name.startswith("test_")}
        memory = peak_bytes()
        wanted = arguments.get("robustness")
        robustness = {"robustness": kept_scores(folder, args, training, wanted)} if wanted else {}
        state = json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))
    metric = f"eval_{training.metric_for_best_model or TASKS[args.task].defaults['metric_for_best_model']}"
    evaluations = [entry for entry in state["log_history"] if "eval_runtime" in entry]
    kept = {name: value for name, value in results.items() if name.startswith(("eval_", "train_", "suspects"))}
    curves = curves_of(state["log_history"], metric)
    reached = [entry[2] for entry in curves["eval"] if entry[2] is not None and not stops]
    radii = [entry["sam/rho"] for entry in state["log_history"] if entry.get("sam/perturbed")]
    return {
        **cell._asdict(),
        "metric": metric,
        "final": results.get(metric),
        "best": max(reached) if reached else results.get(metric),
        "steps": state["global_step"],
        "train_time": _train_time(results, sum(e["eval_runtime"] for e in evaluations)),
        "peak_memory": memory,
        **kept,
        **robustness,
        **({"rho_mean": statistics.mean(radii), "rho_last": radii[-1]} if radii else {}),
        "curves": curves,
        "arguments": shown(arguments),
        "environment": environment(),
    }


def _judged_on_test(arguments: dict[str, Any]) -> dict[str, Any]:
    of_test = {"test_file": arguments["validation_file"], "max_predict_samples": arguments["max_eval_samples"]}
    kept = {"save_strategy": arguments["eval_strategy"], "save_only_model": True, "save_total_limit": 1}
    return {"hold_out": HELD_OUT, **of_test, **kept, "do_predict": True}


def _train_time(results: dict[str, Any], evaluations: float) -> float:
    """Return the time without the evaluations on the way.

    On one CPU thread it is that which the process had, which others on the machine do not lengthen.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    share = 1 - evaluations / results["train_runtime"]
    return share * float(results["train_cpu_time" if alone else "train_runtime"])


def curves_of(history: list[dict[str, Any]], metric: str) -> dict[str, Curve]:
    """Return (step, loss) while training and (step, loss, metric) of the evaluations on the way."""
    train = [[e["step"], *_finite(e["loss"])] for e in history if "loss" in e]
    evaluated = [[e["step"], *_finite(e.get("eval_loss"), e[metric])] for e in history if metric in e]
    return {"train": train, "eval": evaluated}


def _finite(*values: float | None) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]  # NaN is not JSON


def shown(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments as another machine would give them: files by their last two names, models by one."""
    return {
        name: str(Path(*Path(value).parts[-2:])) if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in arguments.items()
    }


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[str]:
    if keep is not None:
        yield str(keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep finetune.py's summary, the Trainer's lines and all bars to itself."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
