# SPDX-License-Identifier: Apache-2.0
"""How flat is the loss around a checkpoint, and is one flatter than another? A table, figures, a report to turn around.

    python scripts/measure.py outputs/digits-sam
    python scripts/measure.py adamw=runs/adamw sam=runs/sam --task sst2 --train_file train.parquet --examples 256

Takes checkpoints of one architecture, each as FOLDER or NAME=FOLDER (or a name on the Hub), and what finetune.py takes
to say which data: the loss is that of the training examples. All checkpoints see the same examples, tokenised for the
first one. Writes report.json, report.html (no network is needed to open it) and figures into --report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import set_seed

from hf_sam.cli.common.environment import environment
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.flatness import COLUMNS, NORMAL, Measured, cell, interval, measure, metric_of, ways
from hf_sam.cli.common.flatness_report import write_figures, write_html
from hf_sam.cli.common.parsing import PlainParser, parse
from hf_sam.cli.tasks import TASKS
from hf_sam.sharpness import SharpnessAnalyzer, add_to_card, compare


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; wrong input is one line on stderr and status 2."""
    try:
        options, script_args, training = _parsed(sys.argv[1:] if argv is None else list(argv))
        found = _measured(options, script_args, training)
        _write(options, found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(options, found)
    return 0


def _parsed(argv: list[str]) -> tuple[argparse.Namespace, Any, Any]:
    parser = PlainParser(
        prog="measure.py",
        usage="measure.py CHECKPOINT [CHECKPOINT ...] [--argument value ...]",
        description=__doc__,
        epilog="And finetune.py's arguments for the data: --task, --train_file, --max_length, ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--examples", type=int, default=256, help="at most so many, drawn with --seed (256)")
    parser.add_argument("--batch", type=int, default=32, help="examples at a time (32)")
    parser.add_argument("--graphs", type=int, default=1, help="batches whose graph is kept: more memory, less time (1)")
    parser.add_argument("--eigenvalues", type=int, default=5, help="of the Hessian (5)")
    parser.add_argument("--products", type=int, default=30, help="with the Hessian, for the trace (30)")
    parser.add_argument("--radius", type=float, default=0.05, help="rho of the rises of the loss (0.05)")
    parser.add_argument("--density", type=int, default=0, help="Lanczos steps for the spectrum, best 50 (0: none)")
    parser.add_argument("--landscape", type=int, default=11, help="points along each direction (11; 0: none)")
    parser.add_argument("--span", type=float, default=1.0, help="of the landscape, in norms of the weights' rows (1)")
    parser.add_argument("--interpolate", type=int, default=0, help="points between the checkpoints (0: none)")
    parser.add_argument("--folds", type=int, default=8, help="of the examples, for the comparison (8; 0: none)")
    parser.add_argument("--parameters", default="trainable", help="which, as sam_parameters (all)")
    parser.add_argument("--card", action="store_true", help="add the numbers to the checkpoints' model cards")
    parser.add_argument("--report", type=Path, default=Path("outputs/flatness"), help="folder (outputs/flatness)")
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    options, rest = parser.parse_known_args(argv)
    script_args, training = parse(rest, {name: entry.defaults for name, entry in TASKS.items()})
    options.named, options.metric = _named(options.checkpoints), metric_of(TASKS[script_args.task].defaults)
    return options, script_args, training


def _named(checkpoints: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for each in checkpoints:
        name, equals, path = each.partition("=")
        name, path = (name, path) if equals else (Path(each).name, each)
        if name in named:
            raise UserError(f"CHECKPOINT {name!r} is there twice: give names, as in first={named[name]} second={path}.")
        named[name] = path
    return named


def _measured(options: argparse.Namespace, args: Any, training: Any) -> dict[str, Any]:
    training.do_train, training.do_eval, training.do_predict = True, bool(options.interpolate), False
    if args.torch_threads is not None:
        torch.set_num_threads(args.torch_threads)
    models: dict[str, Any] = {}
    task: Any = None
    for name, path in options.named.items():
        set_seed(training.seed)
        built = TASKS[args.task].build(replace(args, model_name_or_path=path), training)
        models[name], task = built.model, task or built
    settings = {
        "batch_size": options.batch,
        "graphs": options.graphs,
        "max_examples": options.examples,
        "parameters": options.parameters,
        "seed": training.seed,
        "data_collator": task.data_collator,
    }
    found: dict[str, Measured] = {}
    try:
        with Progress(console=Console(stderr=True), transient=True, disable=training.disable_tqdm) as bar:
            for name, model in models.items():
                found[name] = measure(SharpnessAnalyzer(model, task.train, **settings), options, bar, name)
            comparison = None
            if options.folds and len(models) > 1:
                track = lambda todo: bar.track(todo, description="comparing fold by fold")  # noqa: E731
                comparison = compare(
                    models, task.train, folds=options.folds, rho=options.radius, progress=track, **settings
                )
            lines = ways(models, task, options, settings, bar) if options.interpolate else {}
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise UserError(one_line(error)) from error
    return {"models": found, "comparison": comparison, "lines": lines, "task": args.task, "metric": options.metric}


def _write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    report = {
        "task": found["task"],
        "checkpoints": options.named,
        "models": {name: each.as_dict() for name, each in found["models"].items()},
        "comparison": asdict(found["comparison"]) if found["comparison"] else None,
        "interpolation": {name: asdict(line) for name, line in found["lines"].items()},
        "environment": environment(),
    }
    try:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        figures = write_figures(found, options.report)
        write_html(report, found, figures, options.report / "report.html")
        for name, folder in options.named.items():
            if options.card:
                add_to_card(folder, found["models"][name].report)
    except OSError as error:
        which = "--card" if options.card else f"--report {options.report}"
        raise UserError(f"{which} cannot be written: {one_line(error)}") from error


def _show(options: argparse.Namespace, found: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"Flatness on {found['task']}, training examples")
    table.add_column("")
    for name in found["models"]:
        table.add_column(name, justify="right", no_wrap=True)
    for label, key in COLUMNS.items():
        values = [cell(each.report, key) for each in found["models"].values()]
        if any(values):
            table.add_row(label, *values)
    console.print(table)
    if found["comparison"]:
        console.print(_differences(found["comparison"]))
    console.print(NORMAL, highlight=False)
    console.print(
        f"{options.report / 'report.html'}, report.json and figures beside it", highlight=False, soft_wrap=True
    )


def _differences(comparison: Any) -> Table:
    table = Table(title=f"Against {comparison.baseline}, over {len(comparison.folds)} folds of the examples")
    table.add_column("")
    others = [name for name in next(iter(comparison.values.values())) if name != comparison.baseline]
    for name in others:
        table.add_column(f"{name}: difference, 95 % interval", justify="right", no_wrap=True)
    for measure_, differences in comparison.differences.items():
        table.add_row(measure_, *[interval(differences[name]) for name in others])
    return table
