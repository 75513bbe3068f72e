# SPDX-License-Identifier: Apache-2.0
"""Which rho should a run start with? A range test, like that of a learning rate finder, a minute long.

    python scripts/find_rho.py scripts/recipes/digits_noise_sam.yaml
    python scripts/find_rho.py --task sst2 --model_name_or_path google-bert/bert-base-uncased --sam_variant asam

Takes the recipe and the arguments of finetune.py. Trains some plain steps, sees how far the loss rises at many radii on
a few batches, and recommends the largest radius with a small rise. Nothing of that training is kept. The numbers go to
<output_dir>/find_rho.json, the picture to <output_dir>/find_rho.png.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import set_seed

from hf_sam import RangeTest, find_rho
from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.checkpoints import check_links, check_output_dir
from hf_sam.cli.common.environment import environment
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.parsing import PlainParser, parse
from hf_sam.cli.common.range_plot import draw
from hf_sam.cli.finetune import make_trainer
from hf_sam.cli.tasks import TASKS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; wrong input is one line on stderr and status 2."""
    try:
        options, script_args, training_args = _parsed(sys.argv[1:] if argv is None else list(argv))
        result = _measured(options, script_args, training_args)
        _write(options, script_args, training_args, result)
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) <= 0:  # once, not once per process
            print(f"error: {error}", file=sys.stderr)
        return 2
    _show(result, options)
    return 0


def _parsed(argv: list[str]) -> tuple[argparse.Namespace, ScriptArguments, Any]:
    parser = PlainParser(
        prog="find_rho.py",
        usage="find_rho.py [recipe.yaml] [--argument value ...]",
        description=__doc__,
        epilog="And everything that finetune.py takes:",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--steps", type=int, default=30, help="plain steps before the measurement (30)")
    parser.add_argument("--batches", type=int, default=4, help="how many batches are measured (4)")
    parser.add_argument("--share", type=float, default=0.05, help="of the loss, by which it may rise (0.05)")
    parser.add_argument("--rhos", type=float, nargs="+", help="the radii to try (16 around the direction's default)")
    parser.add_argument("--plot", type=Path, help="where to draw (<output_dir>/find_rho.png)")
    parser.add_argument("--json", type=Path, help="where to write (<output_dir>/find_rho.json)")
    if {"-h", "--help"} & set(argv):
        parser.print_help()
    options, rest = parser.parse_known_args(argv)
    script_args, training = parse(rest, {name: entry.defaults for name, entry in TASKS.items()})
    options.plot = options.plot or Path(training.output_dir) / "find_rho.png"
    options.json = options.json or Path(training.output_dir) / "find_rho.json"
    return options, script_args, training


def _measured(options: argparse.Namespace, args: ScriptArguments, training: Any) -> RangeTest:
    if training.resume_from_checkpoint:
        raise UserError("--resume_from_checkpoint is not for find_rho.py: give the folder as --model_name_or_path.")
    # Only the training data are needed, and nothing leaves this machine.
    training.do_train, training.do_eval, training.do_predict = True, False, False
    training.eval_strategy, training.load_best_model_at_end = "no", False
    training.push_to_hub, training.report_to = False, []
    check_output_dir(Path(training.output_dir), resume=True, overwrite=False)  # files are only added to it
    check_links(Path(training.output_dir))
    if args.torch_threads is not None:
        torch.set_num_threads(args.torch_threads)
    set_seed(training.seed)
    task = TASKS[args.task].build(args, training)
    with Progress(console=Console(stderr=True), transient=True, disable=training.disable_tqdm) as bar:
        work = bar.add_task(f"{options.steps} plain steps, then {options.batches} batches", total=1.0)
        try:
            return find_rho(
                lambda: make_trainer(args, training, task),  # not a trainer, which would be copied
                steps=options.steps,
                batches=options.batches,
                rhos=options.rhos,
                share=options.share,
                progress=lambda done: bar.update(work, completed=done),
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            text = re.sub(r"`?find_rho\((\w+)=\.\.\.\)`?", r"--\1", one_line(error))  # as typed here
            raise UserError(text) from error


def _write(options: argparse.Namespace, args: ScriptArguments, training: Any, result: RangeTest) -> None:
    run = {
        "task": args.task,
        "model": args.model_name_or_path or args.model_type or args.config_name,
        "label_noise": args.label_noise,
        "seed": training.seed,
        "batch_size": training.train_batch_size * training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
    }
    found = {"run": run, "result": result.to_dict(), "environment": environment()}
    try:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(result, options.plot)
    except (OSError, ValueError) as error:  # ValueError: a suffix that names no format
        raise UserError(
            f"--json {options.json} or --plot {options.plot} cannot be written: {one_line(error)}"
        ) from error


def _show(result: RangeTest, options: argparse.Namespace) -> None:
    table = Table(title=f"{result.variant}: rise of the loss at w + epsilon, in % of the loss at w")
    for column in ("rho", "mean", "batches"):
        table.add_column(column, justify="right", no_wrap=True)
    for number, (rho, mean) in enumerate(zip(result.rhos, result.relative_rises, strict=True)):
        single = [row[number] / loss for row, loss in zip(result.rises, result.losses, strict=True)]
        style = "bold" if mean <= result.share else "dim"
        table.add_row(f"{rho:.3g}", _percent(mean), f"{_percent(min(single))} to {_percent(max(single))}", style=style)
    console = Console()
    console.print(table)
    console.print(f"Recommended: [bold]--rho {result.rho:.3g}[/bold]")
    console.print(result.reason, highlight=False)
    console.print(f"{result.seconds:.0f} s; {options.json}, {options.plot}", highlight=False, soft_wrap=True)


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if abs(share) < 0.1 else f"{100 * share:.0f}"
