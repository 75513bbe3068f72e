# SPDX-License-Identifier: Apache-2.0
"""Complete the Trainer's model card with data, classes and results, as the Hub reads them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import HUB_ERROR, UserError, one_line
from hf_sam.cli.tasks.base import Task

# The Hub's names for metrics, where ours differ.
_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "auc": "roc_auc", "pearson": "pearsonr"}
_NO_METRIC = ("_runtime", "_per_second", "_samples", "_model_preparation_time")
_CLASSES = 100  # that are listed
_DATA = "## Training and evaluation data\n\nMore information needed\n"
_UNKNOWN = "unknown"  # what the Hub's cards call data that it does not have


class CompleteCard:
    """Takes the place of a trainer's `create_model_card`, which a push calls, and completes what that writes.

    Args:
        trainer: Whose card it is.
        args: Of the script.
        task: What it was trained on.
    """

    def __init__(self, trainer: Any, args: ScriptArguments, task: Task) -> None:
        self.args, self.task, self.training = args, task, trainer.args
        self.results: Mapping[str, Any] = {}  # of the run, once they are known
        self.create, self.kind = trainer.create_model_card, type(trainer)
        trainer.create_model_card = self

    def __call__(self, *given: Any, **named: Any) -> None:
        """Write the card."""
        known, base = dict(self.task.card), self.args.model_name_or_path
        local = base is not None and Path(base).is_dir()
        if base and not local:
            known["finetuned_from"] = base
        self.create(*given, **{**_understood(self.kind, known), **named})
        path = Path(self.training.output_dir) / "README.md"
        if not (self.training.process_index == 0 and path.is_file()):
            return
        text = path.read_text(encoding="utf-8")
        if local:  # a card can only name a model of the Hub, and calls every other one trained from scratch
            name = Path(str(base)).name
            text = text.replace("was trained from scratch", f"is fine-tuned from a local checkpoint ({name})")
        path.write_text(completed(text, self.args, self.task, self.results), encoding="utf-8")


def _understood(kind: type, known: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainer's own card has an argument for: other libraries' trainers write cards of their own."""
    for base in kind.__mro__:
        create = vars(base).get("create_model_card")
        arguments = inspect.signature(create).parameters if create else {}
        if arguments and not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
            renamed = {**known, "dataset_name": known.get("dataset")}
            return {name: value for name, value in renamed.items() if name in arguments}
    return known


def completed(text: str, args: ScriptArguments, task: Task, results: Mapping[str, Any]) -> str:
    """Return a card's text with the data, the classes and the results in it."""
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    data.pipeline_tag = task.pipeline
    data.datasets = [name] if (name := _hub_data(args, task)) else None
    found = list(_eval_results(args, task, results))
    data.metrics = list(dict.fromkeys(result.metric_type for result in found)) or None
    data.eval_results = found or None
    if found:
        data.model_name = data.model_name or _title(card.text)
    elif "model-index" in text:
        del data.model_name  # it was the name of an index without results
    text, sections = str(card), "\n".join(_sections(args, task)) + "\n"
    return text.replace(_DATA, sections, 1) if _DATA in text else f"{text.rstrip()}\n\n{sections}"


def _title(text: str) -> str:
    return next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), "model")


def _hub_data(args: ScriptArguments, task: Task) -> str | None:
    """Return the name of the data set on the Hub, None for local data."""
    if args.dataset_name and not Path(args.dataset_name).exists():
        return args.dataset_name
    tags = task.card.get("dataset_tags")
    return tags[0] if isinstance(tags, (list, tuple)) else tags


def _eval_results(args: ScriptArguments, task: Task, results: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Yield the metrics of the evaluation and of the test; a number that is not finite is no result."""
    config = args.dataset_config_name if args.dataset_name else task.card.get("dataset_args")
    for prefix, split in (("eval_", "validation"), ("test_", "test")):
        for key, value in results.items():
            name = key.removeprefix(prefix)
            if name == key or key.endswith((*_NO_METRIC, "_loss")):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            kind, of_set = name, split
            for several in filter(None, task.evaluation):  # MNLI: eval_matched_accuracy
                if name.startswith(f"{several}_"):
                    kind, of_set = name.removeprefix(f"{several}_"), f"{split}_{several}"
            yield EvalResult(
                task_type=task.pipeline,
                task_name=task.pipeline.replace("-", " ").capitalize(),
                dataset_type=_hub_data(args, task) or _UNKNOWN,
                dataset_name=_data_name(args, task),
                dataset_config=config if isinstance(config, str) else None,
                dataset_split=of_set,
                metric_type=_METRICS.get(kind, kind),
                metric_name=kind.replace("_", " ").capitalize(),
                metric_value=round(float(value), 6),
            )


def _data_name(args: ScriptArguments, task: Task) -> str:
    """Return the data set's name, or the names of the files without where they lie."""
    name = str(task.card.get("dataset", args.task))
    given = [Path(value).name for key in ("train_file", "train_dir") if (value := getattr(args, key))]
    return f"{name} ({', '.join(given)})" if given else name


def _sections(args: ScriptArguments, task: Task) -> Iterator[str]:
    yield "## Training and evaluation data\n"
    yield f"{_data_name(args, task)}:\n"
    sets = [("training", task.train)] if task.train is not None else []
    sets += [(f"evaluation {name}".strip(), split.data) for name, split in task.evaluation.items()]
    sets += [(f"test {name}".strip(), split.data) for name, split in task.test.items()]
    yield from (f"- {name}: {len(data):,} rows" for name, data in sets)
    if task.flipped_labels:
        yield f"- {task.flipped_labels:,} training labels were replaced by wrong ones on purpose"
    names = task.model.config.id2label
    if not task.pipeline.endswith("classification") or task.model.config.problem_type == "regression":
        return
    yield "\n### Labels\n"
    yield "| id | label |\n|---:|:---|"
    for number in sorted(names)[:_CLASSES]:
        label = " ".join(str(names[number]).split()).replace("|", "\\|").replace("<", "&lt;")
        yield f"| {number} | {label} |"
    if len(names) > _CLASSES:
        yield f"\n{len(names) - _CLASSES:,} more are in `config.json`."


def push(trainer: Any) -> None:
    """Push the folder.

    Raises:
        UserError: if the Hub cannot be reached or refuses it; nothing is lost then.
    """
    try:
        trainer.push_to_hub()
    except (OSError, ValueError, RuntimeError, HUB_ERROR) as error:
        raise UserError(
            f"--push_to_hub failed, and the model is saved in {trainer.args.output_dir}: {one_line(error)}"
        ) from error
