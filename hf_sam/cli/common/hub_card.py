# SPDX-License-Identifier: Apache-2.0
"""What does the model card say beyond what the Trainer knows? Data, classes and results, as the Hub reads them."""

from __future__ import annotations

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


class WithCard:
    """Stands before a trainer, and lets its card say what the arguments and the task know.

    `card_results` are the run's results, once they are known.
    """

    card_arguments: ScriptArguments
    card_task: Task
    card_results: Mapping[str, Any] = {}

    def create_model_card(self, *given: Any, **named: Any) -> None:
        """Write the Trainer's card and complete it."""
        trainer: Any = super()
        args, task, training = self.card_arguments, self.card_task, self.args  # type: ignore[attr-defined]
        known = dict(task.card)
        local = args.model_name_or_path is not None and Path(args.model_name_or_path).is_dir()
        if args.model_name_or_path and not local:
            known["finetuned_from"] = args.model_name_or_path
        trainer.create_model_card(*given, **{**known, **named})
        path = Path(training.output_dir) / "README.md"
        if not (training.process_index == 0 and path.is_file()):
            return
        text = path.read_text(encoding="utf-8")
        if local:  # a card can only name a model of the Hub, and calls every other one trained from scratch
            name = Path(str(args.model_name_or_path)).name
            text = text.replace("was trained from scratch", f"is fine-tuned from a local checkpoint ({name})")
        path.write_text(completed(text, args, task, self.card_results), encoding="utf-8")


def with_card(kind: type, args: ScriptArguments, task: Task) -> Any:
    """Return a class of trainers whose card is complete."""
    return type(kind.__name__, (WithCard, kind), {"card_arguments": args, "card_task": task})


def completed(text: str, args: ScriptArguments, task: Task, results: Mapping[str, Any]) -> str:
    """Return a card's text with the data, the classes and the results in it."""
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    data.pipeline_tag = task.pipeline
    data.datasets = [name] if (name := _hub_data(args, task)) else None
    found = list(_eval_results(args, task, results))
    data.metrics = list(dict.fromkeys(result.metric_type for result in found)) or None
    data.model_name = data.model_name or _title(card.text)
    data.eval_results = found or None
    if not found:
        data.__dict__.pop("model_name")
    text = str(card)
    return text.replace(_DATA, "\n".join(_sections(args, task)) + "\n", 1)


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
    if task.model.config.problem_type == "regression" or len(names) < 2:
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
