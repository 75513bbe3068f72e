# SPDX-License-Identifier: Apache-2.0
"""What are the weights good for afterwards: on another domain, merged with others, trained on for other tasks?

    python scripts/benchmarks/transfer.py --data DATA_FOLDER                       # a run that is there is not repeated
    python scripts/benchmarks/transfer.py --data DATA_FOLDER --methods adamw full --seeds 12

For each method and seed one model is trained for each of three tasks of `grids/radius.yaml`, all from the same encoder:
sentiment of sentences (SST-2), of phrases (MPQA), and subjectivity (Subj). Then

- the two of sentiment are evaluated on each other's test data (shift);
- the encoders are merged, by their mean and by task arithmetic, and each task is evaluated with its own head (merging);
- the encoder of the first task is trained on the second and then on the third, and the earlier tasks are evaluated with
  their own heads (forgetting).

The runs of single tasks are those of the grid: their results go to its folder if they are not there yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `python scripts/benchmarks/transfer.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import AutoConfig, AutoModel, AutoTokenizer

from hf_sam.cli.common.environment import environment
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import PlainParser, parse
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.from_folder import build_from
from hf_sam.robustness import Measurement, RobustnessAnalyzer
from scripts.benchmarks.common.choosing import arguments_of
from scripts.benchmarks.common.grids import Grid, read_grid
from scripts.benchmarks.common.lines import print_lines
from scripts.benchmarks.common.one_run import quiet, run, shown
from scripts.benchmarks.common.runs import Cell, read_run, write_run

HERE = Path(__file__).resolve().parent
SEQUENCE = ("sst2", "mpqa", "subj")
"""In the order in which one encoder is trained on them."""
SHIFTS = (("sst2", "mpqa"), ("mpqa", "sst2"))
"""Trained on the one, evaluated on the other: their labels mean the same."""
METHODS = ("adamw", "adamw, half of the epochs", "full")
ALPHAS = (0.2, 0.3, 0.5)
KEPT = ("accuracy", "nll", "ece")
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Place:
    """Where one method and seed is trained, with which arguments, and what is kept of it.

    Attributes:
        grid: of the single tasks.
        method, seed: of all its runs.
        models: folder of the models.
        runs: folder of the results of the single tasks.
        given: arguments for every run, over those of the grid.
    """

    grid: Grid
    method: str
    seed: int
    models: Path
    runs: Path
    given: dict[str, str]

    def train(self, task: str, encoder: Path | None = None) -> Path:
        """Train on a task, from an encoder other than the grid's if one is given; return the folder of the model."""
        cell = Cell(task if encoder is None else f"{task} after {encoder.name}", self.method, self.seed)
        folder = self.models / Path(cell.file).stem
        if (folder / "config.json").exists() and (folder / "all_results.json").exists():
            return folder
        arguments = self.arguments(task)
        if encoder is not None:
            arguments = {k: v for k, v in arguments.items() if k != "robustness"} | {"model_name_or_path": str(encoder)}
        row = run(arguments, cell, folder)
        if encoder is None and read_run(self.runs, cell) is None:
            write_run(self.runs, cell, row)
        return folder

    def arguments(self, task: str) -> dict[str, Any]:
        """Return the grid's arguments for a task."""
        return arguments_of(self.grid, Cell(task, self.method, self.seed), self.runs.parent, self.given)[0]

    def analyzer(self, folder: Path, task: str, encoder: Path | None = None) -> RobustnessAnalyzer:
        """Return the model in a folder with the test data of a task, with the encoder of another one if it is given."""
        arguments = {k: v for k, v in self.arguments(task).items() if k != "robustness"}
        flags = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
        flags += ["--output_dir", str(folder), "--seed", str(self.seed), "--disable_tqdm", "True"]
        args, training = parse(flags, {name: entry.defaults for name, entry in TASKS.items()})
        training.do_train, training.do_eval, training.do_predict = False, True, False
        built = build_from(str(folder), args, training)
        if encoder is not None:
            built.model.base_model.load_state_dict(AutoModel.from_pretrained(encoder).state_dict())
        data = next(iter(built.evaluation.values())).data
        return RobustnessAnalyzer(built.model, data, data_collator=built.data_collator, batch_size=64)


def measure(place: Place) -> dict[str, Scores]:
    """Return scores by what was measured, such as "shift, sst2 to mpqa"."""
    experts = {task: place.train(task) for task in SEQUENCE}
    of = {task: place.analyzer(folder, task) for task, folder in experts.items()}
    found = {f"own, {task}": one.as_trained() for task, one in of.items()}
    found |= {f"half pruned, {task}": one.pruned(0.5) for task, one in of.items()}
    for source, target in SHIFTS:
        found[f"shift, {source} to {target}"] = of[source].on(of[target].examples.rows, target)
    found |= _merged(of, place.arguments(SEQUENCE[0])["model_name_or_path"])
    found |= _in_sequence(place, experts)
    return {name: {key: one.scores.get(key) for key in KEPT} for name, one in found.items()}


def _merged(of: dict[str, RobustnessAnalyzer], origin: str) -> dict[str, Measurement]:
    """Return the scores of each task with its own head on the merged encoders."""
    encoders = {task: _encoder(one.model) for task, one in of.items()}
    prefix = next(iter(of.values())).model.base_model_prefix
    start = {f"{prefix}.{name}": tensor for name, tensor in AutoModel.from_pretrained(origin).state_dict().items()}
    found = {}
    for task, one in of.items():
        others = [encoder for other, encoder in encoders.items() if other != task]
        found[f"merged, average, {task}"] = one.merged(others)
        for alpha in ALPHAS:
            found[f"merged, alpha {alpha}, {task}"] = one.merged(others, origin=start, alpha=alpha)
    return found


def _encoder(model: Any) -> dict[str, Any]:
    """Return the tensors of a model without its head, which is of another task."""
    return {name: t for name, t in model.state_dict().items() if name.startswith(f"{model.base_model_prefix}.")}


def _in_sequence(place: Place, experts: dict[str, Path]) -> dict[str, Measurement]:
    """Train one encoder on all tasks in turn; return the scores of all learnt so far after each, with their own heads.

    The second and third runs draw a new head; the encoder is that of the run before.
    """
    folders, found = [experts[SEQUENCE[0]]], {}
    for count, task in enumerate(SEQUENCE[1:], start=2):
        folders.append(place.train(task, _encoder_of(folders[-1], place.arguments(task))))
        for learnt, folder in zip(SEQUENCE, folders, strict=False):
            found[f"after {count} tasks, {learnt}"] = place.analyzer(folder, learnt, folders[-1]).as_trained()
    return found


def _encoder_of(folder: Path, arguments: dict[str, Any]) -> Path:
    """Return a folder with the encoder of a model alone: without its head, and without the names of its classes."""
    encoder = folder.parent / f"{folder.name}-encoder"
    config = AutoConfig.from_pretrained(arguments["model_name_or_path"])
    AutoModel.from_pretrained(folder, config=config).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(encoder)
    return encoder


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; wrong input is one line on stderr and status 2."""
    return print_lines(lambda: run_all(options_of(argv)))


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    results = HERE / "results"
    parser.add_argument("--data", type=Path, required=True, help="what {data} stands for in the grid")
    parser.add_argument("--grid", type=Path, default=HERE / "grids" / "radius.yaml", help="of the single tasks")
    parser.add_argument("--runs", type=Path, default=results / "radius" / "runs", help="results of the single tasks")
    parser.add_argument("--output", type=Path, default=results / "transfer" / "runs", help="folder of the results")
    parser.add_argument("--models", type=Path, default=Path("outputs/transfer"), help="folder of the models")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of the grid")
    parser.add_argument("--seeds", nargs="+", type=int, default=[12, 13, 14, 15, 16])
    parser.add_argument("--set", nargs="+", default=[], help="arguments for every run, name=value")
    return parser.parse_args(argv)


def run_all(options: argparse.Namespace) -> Iterator[str]:
    """Yield a line for people for each method and seed."""
    grid = read_grid(options.grid, options.data)
    missing = [name for name in SEQUENCE if name not in grid.tasks]
    foreign = [name for name in options.methods if name not in grid.methods]
    if missing or foreign:
        raise UserError(f"{options.grid} has no task or method {(missing + foreign)[0]!r}, or --data lacks its files.")
    given = dict(pair.split("=", 1) for pair in options.set)
    for seed in options.seeds:
        for method in options.methods:
            cell = Cell("transfer", method, seed)
            row = read_run(options.output, cell)
            if row is None:
                place = Place(grid, method, seed, options.models.absolute(), options.runs, given)
                with quiet():
                    scores = measure(place)
                how = {"arguments": {task: shown(place.arguments(task)) for task in SEQUENCE}}
                row = {**cell._asdict(), "scores": scores, **how, "environment": environment()}
                write_run(options.output, cell, row)
            yield f"{method}, seed {seed}: {len(row['scores'])} scores"


if __name__ == "__main__":
    sys.exit(main())
