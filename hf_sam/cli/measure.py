# SPDX-License-Identifier: Apache-2.0
"""Measure how flat the loss is around checkpoints, and what rounding, pruning and noise leave of them.

    hf-sam measure outputs/digits-sam
    hf-sam measure --robustness adamw=runs/adamw sam=runs/sam --task sst2 --train_file train.parquet
    hf-sam measure --robustness adamw=runs/a1,runs/a2,runs/a3 sam=runs/s1,runs/s2,runs/s3

Takes checkpoints of one architecture, each as FOLDER or NAME=FOLDER (or a name on the Hub), and the arguments of
hf-sam finetune that say which data. Several folders of one name are seeds, which are compared in pairs, for robustness
only: flatness is that of the first. The loss is that of the training examples, robustness is measured on the evaluation
examples. All checkpoints see the same examples, tokenised for the first one. Writes report.json, report.html, which
needs no network, and figures into --report.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed

from hf_sam import robustness, sharpness
from hf_sam.cli.common import measure_table, report
from hf_sam.cli.common import robustness as asked
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.flatness import NORMAL, Measured, measure, metric_of, ways
from hf_sam.cli.common.parsing import PlainParser, parse
from hf_sam.cli.common.programs import COMMAND, Names, run_program
from hf_sam.cli.common.progress import parts_of_work, progress_bars
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.from_folder import build_from
from hf_sam.sharpness import SharpnessAnalyzer, compare

EXAMPLES = 256
"""Of which the flatness is measured; half of them beside the robustness, whose table people wait for."""
FAULTS = (ValueError, TypeError, RuntimeError, NotImplementedError, OSError, ImportError)


def main(argv: Sequence[str] | None = None, *, names: Names = COMMAND) -> int:
    """Run the program; wrong input is one line on stderr and status 2."""
    given = sys.argv[1:] if argv is None else list(argv)

    def run() -> None:
        options, script_args, training = _parsed(given, names)
        found = _measured(options, script_args, training)
        found["command"] = f"{names.of('measure')} {shlex.join(given)}"
        _write(options, found)
        _show(options, found)

    return run_program(names.of("measure"), run)


def _parsed(argv: list[str], names: Names) -> tuple[argparse.Namespace, Any, Any]:
    parser = PlainParser(
        prog=names.of("measure"),
        usage=f"{names.of('measure')} CHECKPOINT [CHECKPOINT ...] [--argument value ...]",
        description=names.in_text(__doc__ or ""),
        epilog=f"And the arguments of {names.of('finetune')} for the data: --task, --train_file, --max_length, ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--examples", type=int, help="at most so many, drawn with --seed (256; with --robustness 128)")
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
    where = Path("outputs/flatness")
    parser.add_argument("--report", "--output_dir", type=Path, default=where, help=f"folder of the report ({where})")
    asked.add_arguments(parser)
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    options, rest = parser.parse_known_args(argv)
    asked.check(options)
    if options.examples is None:
        options.examples = EXAMPLES // 2 if options.robustness else EXAMPLES
    script_args, training = parse(rest, {name: entry.defaults for name, entry in TASKS.items()}, names=names)
    options.named, options.metric = _named(options.checkpoints), metric_of(TASKS[script_args.task].defaults)
    return options, script_args, training


def _named(checkpoints: list[str]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for each in checkpoints:
        name, equals, path = each.partition("=")
        name, path = (name, path) if equals else (Path(each).name, each)
        if name in named:
            raise UserError(
                f"CHECKPOINT {name!r} is there twice: give names, as in first={named[name][0]} second={path}, or seeds "
                f"of one name as {name}={named[name][0]},{path}."
            )
        named[name] = path.split(",") if equals else [path]
    return named


def _built(options: argparse.Namespace, args: Any, training: Any) -> tuple[dict[str, list[Any]], Any, dict[str, Any]]:
    """Return the models by name, one a seed, the task of the first, and the other evaluation data by name."""
    training.do_train = not options.no_flatness or options.calibration == "train"
    training.do_eval = bool(options.interpolate) or options.robustness
    training.do_predict = options.calibration == "test"
    models: dict[str, list[Any]] = {}
    task: Any = None
    for name, paths in options.named.items():
        models[name] = []
        for path in paths:
            set_seed(training.seed)
            with progress_bars(not training.disable_tqdm and task is None):  # the data are the same for all
                built = build_from(path, args, training)
            models[name].append(built.model)
            task = task or built
    shifted = {}
    for each in options.shifted:
        name, equals, path = each.partition("=")
        if not equals:
            raise UserError(f"--shifted {each}: say what it is called, as in --shifted other={each}.")
        where = "validation_dir" if Path(path).is_dir() else "validation_file"
        other = {"validation_file": None, "validation_dir": None, where: path}
        first = next(iter(options.named.values()))[0]
        built = build_from(first, replace(args, **other), training)
        shifted[name] = next(iter(built.evaluation.values())).data
    return models, task, shifted


def _measured(options: argparse.Namespace, args: Any, training: Any) -> dict[str, Any]:
    if args.torch_threads is not None:
        torch.set_num_threads(args.torch_threads)
    models, task, shifted = _built(options, args, training)
    first = next(iter(models.values()))[0]
    regression = getattr(first.config, "problem_type", None) == "regression"
    found: dict[str, Any] = {
        "models": {}, "comparison": None, "lines": {}, "robustness": None,
        "task": args.task, "metric": options.metric, "kind": type(first).__name__,
        "sources": dict(task.facts.sources),
        "loss_unit": "loss (squared error)" if regression else "loss (nats)",
    }  # fmt: skip
    settings = {"batch_size": options.batch, "seed": training.seed, "data_collator": task.data_collator}
    try:
        with parts_of_work(training) as bar:
            if options.robustness:
                found["robustness"] = asked.measure(models, task, shifted, options, settings, bar)
            if not options.no_flatness:
                found |= _flatness({name: seeds[0] for name, seeds in models.items()}, task, options, settings, bar)
    except FAULTS as error:
        raise UserError(one_line(error)) from error
    return found


def _flatness(
    models: dict[str, Any], task: Any, options: argparse.Namespace, settings: dict[str, Any], bar: Any
) -> dict[str, Any]:
    settings = {
        **settings,
        "graphs": options.graphs,
        "max_examples": options.examples,
        "parameters": options.parameters,
    }
    found: dict[str, Measured] = {}
    for name, model in models.items():
        found[name] = measure(SharpnessAnalyzer(model, task.train, **settings), options, bar, name)
    comparison = None
    if options.folds and len(models) > 1:
        track = lambda todo: bar.track(todo, description="comparing fold by fold")  # noqa: E731
        comparison = compare(models, task.train, folds=options.folds, rho=options.radius, progress=track, **settings)
    lines = ways(models, task, options, settings, bar) if options.interpolate else {}
    return {"models": found, "comparison": comparison, "lines": lines}


def _write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    try:
        report.write(options, found)
        for name, folders in options.named.items() if options.card else ():
            if found["models"]:
                sharpness.add_to_card(folders[0], found["models"][name].report)
            if found["robustness"] is not None:
                for folder, each in zip(folders, found["robustness"].reports[name], strict=True):
                    robustness.add_to_card(folder, each, found["robustness"].main)
    except OSError as error:
        which = "--card" if options.card else f"--report {options.report}"
        raise UserError(f"{which} cannot be written: {one_line(error)}") from error


def _show(options: argparse.Namespace, found: dict[str, Any]) -> None:
    console = Console()
    console.print(measure_table.values(found, list(options.named)))
    if found["robustness"] is not None and found["robustness"].comparison is not None:
        console.print(measure_table.robustness_differences(found["robustness"]))
    if found["comparison"]:
        console.print(measure_table.flatness_differences(found["comparison"]))
    if found["models"]:
        console.print(NORMAL, highlight=False)
    if found["robustness"] is not None:
        console.print(asked.MEANING, highlight=False)
    console.print(
        f"{options.report / 'report.html'}, report.json and figures beside it", highlight=False, soft_wrap=True
    )
