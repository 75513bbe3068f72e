# SPDX-License-Identifier: Apache-2.0
"""Task: the nine GLUE tasks, from the Hub or from local files, with their official metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.data import check_rows, check_texts, encode_labels, encode_scores, read_file, read_hub, sample
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.losses import classification_loss, regression_loss
from hf_sam.cli.common.metrics import (
    F1,
    Accuracy,
    LocalMetric,
    MatthewsCorrelation,
    Pearson,
    Spearman,
    make_compute_metrics,
)
from hf_sam.cli.common.models import add_lora, load_config, load_model
from hf_sam.cli.common.noise import flip_labels, noise_seed
from hf_sam.cli.common.texts import load_tokenizer
from hf_sam.cli.tasks.base import Split, Task

HUB = "nyu-mll/glue"
Metrics = tuple[type[LocalMetric], ...]


@dataclass(frozen=True)
class GlueTask:
    """What differs between the nine tasks."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]  # none: scores from 0 to 5
    file_name: str
    metrics: Metrics = (Accuracy,)
    main_metric: str = "accuracy"
    predicts_names: bool = False  # GLUE wants names for some tasks and numbers for others


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        ("sentence",), ("unacceptable", "acceptable"), "CoLA", (MatthewsCorrelation,), "matthews_correlation"
    ),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), "SST-2"),
    "mrpc": GlueTask(_PAIR, ("not_equivalent", "equivalent"), "MRPC", (Accuracy, F1), "combined_score"),
    "stsb": GlueTask(_PAIR, (), "STS-B", (Pearson, Spearman), "combined_score"),
    "qqp": GlueTask(
        ("question1", "question2"), ("not_duplicate", "duplicate"), "QQP", (Accuracy, F1), "combined_score"
    ),
    "mnli": GlueTask(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "MNLI", predicts_names=True
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT, "QNLI", predicts_names=True),
    "rte": GlueTask(_PAIR, _ENTAILMENT, "RTE", predicts_names=True),
    "wnli": GlueTask(_PAIR, ("not_entailment", "entailment"), "WNLI"),
}
# Set name -> ending of the prediction file. MNLI has two evaluation and two test sets.
_ONE = {"": ""}
_TWO = {"matched": "-m", "mismatched": "-mm"}
_CARD = {"tasks": "text-classification", "language": "en", "dataset_tags": "glue"}


def defaults(name: str) -> dict[str, Any]:
    """Return the task's own defaults."""
    metric = GLUE[name].main_metric
    return {
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "num_train_epochs": 3,
        "metric_for_best_model": f"matched_{metric}" if name == "mnli" else metric,
    }


@dataclass
class Rows:
    """One set, read and checked."""

    data: Dataset
    labels: list[Any] | None
    flipped: int = 0


def build(args: ScriptArguments, training: Any) -> Task:
    """Read and check the data, then the model."""
    spec = GLUE[args.task]
    _check_arguments(args, spec)
    facts = Facts()
    rows = _read(args, training, spec, facts.notes)
    config = load_config(args, spec.classes or None)
    tokenizer = load_tokenizer(args, config)
    sets = {key: _tokenize(read, spec, tokenizer, args.max_length) for key, read in rows.items()}
    test = {
        name: Split(sets["test", name], rows["test", name].labels is not None, f"{spec.file_name}{ending}.tsv")
        for name, ending in _sets(args).items()
        if ("test", name) in rows
    }
    return Task(
        name=args.task,
        model=add_lora(args, load_model(args, AutoModelForSequenceClassification, config)),
        train=sets.get(("train", "")),
        evaluation={name: Split(data) for (split, name), data in sets.items() if split == "validation"},
        test=test,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training.fp16 else None),
        compute_loss=classification_loss(training.label_smoothing_factor) if spec.classes else regression_loss(),
        compute_metrics=make_compute_metrics([metric() for metric in spec.metrics], regression=not spec.classes),
        format_predictions=_formatter(spec),
        pipeline="text-classification",
        auto_class="AutoModelForSequenceClassification",
        example='"A text."' if len(spec.columns) == 1 else '{"text": "One text.", "text_pair": "Another."}',
        flipped_labels=rows["train", ""].flipped if ("train", "") in rows else 0,
        card=_CARD | {"dataset_args": args.task, "dataset": f"GLUE {args.task.upper()}"},
        facts=facts,
    )


def _check_arguments(args: ScriptArguments, spec: GlueTask) -> None:
    if args.label_noise and not spec.classes:
        raise UserError(f"--label_noise flips classes, but --task {args.task} has scores: leave it at 0.")
    args.refuse(
        args.task, "text_column", "text_pair_column", "label_columns", "problem", "class_weights", "image_column"
    )
    for name in (*args.given_files(), "dataset_name"):
        foreign = not name.endswith("_file") or ("mismatched" in name and args.task != "mnli")
        if foreign and getattr(args, name):
            raise UserError(f"--{name} does nothing with --task {args.task}: use --train_file and --validation_file.")


def _sets(args: ScriptArguments) -> dict[str, str]:
    return _TWO if args.task == "mnli" else _ONE


def _read(args: ScriptArguments, training: Any, spec: GlueTask, notes: list[str]) -> dict[tuple[str, str], Rows]:
    rows: dict[tuple[str, str], Rows] = {}
    if training.do_train:
        rows["train", ""] = _read_train(args, training, spec, notes)
    for split, wanted, limit in (
        ("validation", training.do_eval, args.max_eval_samples),
        ("test", training.do_predict, args.max_predict_samples),
    ):
        for name in _sets(args) if wanted else ():
            data, where = _open(args, split, name, notes)
            data = sample(data, limit)
            rows[split, name] = Rows(data, _labels(data, where, spec, args, optional=split == "test"))
    return rows


def _read_train(args: ScriptArguments, training: Any, spec: GlueTask, notes: list[str]) -> Rows:
    seed = noise_seed(training)
    data, where = _open(args, "train", "", notes)
    data = sample(data, args.max_train_samples, seed=seed)
    labels = _labels(data, where, spec, args)
    if labels is None or not args.label_noise:
        return Rows(data, labels)
    return Rows(data, *flip_labels(labels, len(spec.classes), share=args.label_noise, seed=seed))


def _open(args: ScriptArguments, split: str, name: str, notes: list[str]) -> tuple[Dataset, str]:
    """Return one set and how the user named it."""
    argument = f"{split}_mismatched_file" if name == "mismatched" else f"{split}_file"
    path = getattr(args, argument)
    if path:
        return read_file(argument, path, args, notes), f"--{argument} {path}"
    if any(getattr(args, file) for file in args.given_files()):
        flag = {"train": "--do_train", "validation": "--do_eval", "test": "--do_predict"}[split]
        raise UserError(f"--{argument} is missing, and other local files are given: add it, or {flag} False.")
    hub_split = f"{split}_{name}" if name else split
    where = f"--task {args.task}: {HUB} on the Hub ({hub_split}; --{argument} reads a local file)"
    return read_hub(HUB, args.task, hub_split, where), where


def _labels(
    data: Dataset, where: str, spec: GlueTask, args: ScriptArguments, *, optional: bool = False
) -> list[Any] | None:
    column = args.label_column or "label"
    has_labels = column in data.column_names
    check_rows(data, where, spec.columns, label=None if optional else column)
    check_texts(data, where, spec.columns)
    if optional and (
        not has_labels or set(data.unique(column)) <= {None, -1, "-1", ""}
    ):  # GLUE's test labels are secret: -1
        return None
    if spec.classes:
        return encode_labels(data, where, column, spec.classes)
    return encode_scores(data, where, column, 0.0, 5.0)


def _tokenize(rows: Rows, spec: GlueTask, tokenizer: Any, max_length: int) -> Dataset:
    def encode(batch: dict[str, list[str]]) -> Any:
        return tokenizer(*(batch[column] for column in spec.columns), truncation=True, max_length=max_length)

    encoded = rows.data.map(encode, batched=True, remove_columns=rows.data.column_names, desc="Tokenizing")
    return encoded if rows.labels is None else encoded.add_column("labels", rows.labels)


def _formatter(spec: GlueTask) -> Callable[[np.ndarray], list[str]]:
    def scores(logits: np.ndarray) -> list[str]:
        return [f"{value:.3f}" for value in np.clip(np.squeeze(logits, axis=-1), 0.0, 5.0)]

    def classes(logits: np.ndarray) -> list[str]:
        return [spec.classes[n] if spec.predicts_names else str(n) for n in np.argmax(logits, axis=-1)]

    return classes if spec.classes else scores
