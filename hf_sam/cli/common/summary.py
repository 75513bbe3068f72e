# SPDX-License-Identifier: Apache-2.0
"""Say what came out: numbers as JSON for programs, a page on the screen for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.tasks.base import Task


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity by None: neither is JSON."""
    bad = {key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    return {key: None if key in bad else value for key, value in metrics.items()}


def run_facts(args: ScriptArguments, training: Any, task: Task, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a reader of all_results.json needs to tell two runs apart."""
    facts: dict[str, Any] = {
        "task": task.name,
        "sam_variant": training.sam_variant,
        "seed": training.seed,
        "processes": training.world_size,
        "label_noise": args.label_noise,
        "flipped_labels": task.flipped_labels,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
    }
    logged = [entry for entry in history if entry.get("sam/perturbed") and "sam/sharpness" in entry]
    if training.sam_variant != "none":
        facts["rho"] = training.rho
    if args.average_weights is not None:
        facts["average_weights"] = args.average_weights
    if logged:
        facts["sharpness"] = logged[-1]["sam/sharpness"]
    return facts


def snippet(task: Task, folder: Path) -> str:
    """Return code that loads the result. It needs transformers only."""
    name = "generate" if task.pipeline == "text-generation" else "classify"
    return (
        f"from transformers import {task.auto_class}, pipeline\n\n"
        f'model = {task.auto_class}.from_pretrained("{folder}")\n'
        f'{name} = pipeline("{task.pipeline}", model="{folder}")\n'
        f"print({name}({task.example}))"
    )


def show(task: Task, results: dict[str, Any], folder: Path, *, console: Console | None = None) -> None:
    """Print the page."""
    console = console or Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _lines(task, results, folder):
        table.add_row(Text(name, "bold"), Text(value))
    console.print()
    console.print(Panel(table, title=f"{task.name}: done", expand=False))
    if "train_runtime" in results:  # otherwise there is no model in the folder
        console.print("Load it, without hf_sam:\n", highlight=False)
        console.print(snippet(task, folder), soft_wrap=True, markup=False)


def _lines(task: Task, results: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    lines = [("model", f"{type(task.model).__name__}, {results['parameters']:,} parameters")]
    lines.append(("method", _method(results)))
    if "average_weights" in results and "train_runtime" in results:
        lines.append(("kept", f"the mean of the weights after {results['average_weights']:.0%} of the run"))
    if results["label_noise"]:
        lines.append(
            ("label noise", f"{results['flipped_labels']:,} training labels ({results['label_noise']:.0%}) are wrong")
        )
    for key, value in results.items():
        if key.startswith(("eval_", "test_")) and not key.endswith(
            ("_runtime", "_per_second", "_samples", "_model_preparation_time")
        ):
            lines.append(
                (key.replace("_", " "), "not finite: the training diverged" if value is None else f"{value:.4f}")
            )
    if results.get("sharpness") is not None:
        lines.append(("sharpness", f"{results['sharpness']:.4f}  (loss at w + eps minus loss at w, end of training)"))
    lines.append(("time", _time(results)))
    lines += [("predictions", path) for path in results.get("predictions", [])]
    lines.append(("saved in" if "train_runtime" in results else "results in", str(folder)))
    return lines


def _time(results: dict[str, Any]) -> str:
    text = f"{results['wall_time']:.1f} s"
    if "train_runtime" not in results:
        return text
    text += f", of which training {results['train_runtime']:.1f} s"
    before = results.get("train_runtime_before")
    return text + (f" (and {before:.1f} s before it was resumed)" if before else "")


def _method(results: dict[str, Any]) -> str:
    """Return what was done, which is not always what was asked for."""
    if "train_runtime" not in results:
        only = "evaluation" if "predictions" not in results or "eval_loss" in results else "prediction"
        return f"{only} only: nothing was trained here"
    if results["sam_variant"] == "none":
        return "plain training"
    asked = f"{results['sam_variant'].upper()}, rho {results['rho']}"
    share, rho = results.get("sam/run_perturbed", 0.0), results.get("sam/run_rho", 0.0)
    if not share or not rho:
        return f"plain training: no step perturbed ({asked})"
    done = [] if share == 1 else [f"{100 * share:.3g} % of the steps"]
    if results["rho"] == "auto" or abs(rho - results["rho"]) > 1e-6 * rho:
        done.append(f"rho {rho:.3g} on average")
    return f"{asked} ({', '.join(done)})" if done else asked
