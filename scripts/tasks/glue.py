# SPDX-License-Identifier: Apache-2.0
"""Task: the nine GLUE tasks, from the Hub or from local files, with their official metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from scripts.common.arguments import ScriptArguments
from scripts.common.data import check_rows, check_texts, encode_labels, encode_scores, read_file, read_hub, sample
from scripts.common.errors import UserError, one_line
from scripts.common.losses import classification_loss, regression_loss
from scripts.common.metrics import F1, Accuracy, LocalMetric, MatthewsCorrelation, Pearson, Spearman, make_compute_metrics
from scripts.common.models import LOADING_ERRORS, add_lora, load_config, load_model
from scripts.common.noise import flip_labels
from scripts.tasks.base import Split, Task, noise_seed

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
# Set name -> file argument, split on the Hub, ending of the prediction file. MNLI has two of each.
_ONE = {"": ("", "", "")}
_TWO = {"matched": ("", "_matched", "-m"), "mismatched": ("_mismatched", "_mismatched", "-mm")}


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


def build(args: ScriptArguments, training: Any) -> Task:
    """Read and check the data, then the model."""
    spec = GLUE[args.task]
    sets = _TWO if args.task == "mnli" else _ONE
    if args.label_noise and not spec.classes:
        raise UserError(f"--label_noise flips classes, but --task {args.task} has scores: leave it at 0.")
    for name in (n for n in args.given_files() if getattr(args, n) and (n.endswith("_dir") or "mismatched" in n)):
        if name.endswith("_dir") or args.task != "mnli":
            raise UserError(f"--{name} does nothing with --task {args.task}: give --train_file, --validation_file.")
    raw = _read(args, training, spec, sets)
    config = load_config(args, spec.classes or None)
    tokenizer = _load_tokenizer(args, config)
    tokenized = {
        key: _tokenize(data, spec, tokenizer, args.max_length, labels) for key, (data, labels, _) in raw.items()
    }
    return Task(
        name=args.task,
        model=add_lora(args, load_model(args, AutoModelForSequenceClassification, config)),
        train=tokenized.get(("train", "")),
        evaluation={name: Split(tokenized["validation", name]) for name in sets if ("validation", name) in raw},
        test={
            name: Split(tokenized["test", name], raw["test", name][1] is not None, f"{spec.file_name}{ending}.tsv")
            for name, (_, _, ending) in sets.items()
            if ("test", name) in raw
        },
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training.fp16 else None),
        compute_loss=classification_loss(training.label_smoothing_factor) if spec.classes else regression_loss(),
        compute_metrics=make_compute_metrics([metric() for metric in spec.metrics], regression=not spec.classes),
        format_predictions=_formatter(spec),
        pipeline="text-classification",
        auto_class="AutoModelForSequenceClassification",
        example='"A text."' if len(spec.columns) == 1 else '{"text": "One text.", "text_pair": "Another."}',
        main_metric=f"matched_{spec.main_metric}" if args.task == "mnli" else spec.main_metric,
        flipped_labels=raw["train", ""][2] if ("train", "") in raw else 0,
        card={"tasks": "text-classification", "language": "en", "dataset_tags": "glue", "dataset_args": args.task}
        | {"dataset": f"GLUE {args.task.upper()}"},
    )


Rows = tuple[Dataset, "list[int] | list[float] | None", int]


def _read(args: ScriptArguments, training: Any, spec: GlueTask, sets: dict[str, tuple[str, str, str]]) -> dict:
    rows: dict[tuple[str, str], Rows] = {}
    if training.do_train:
        data, where = _open(args, "train", "train", "train_file", training.do_train)
        data = sample(data, args.max_train_samples, seed=noise_seed(training))
        labels = _labels(data, where, spec, args)
        flipped = 0
        if spec.classes:
            share, seed = args.label_noise, noise_seed(training)
            labels, flipped = flip_labels(labels or [], len(spec.classes), share=share, seed=seed)
        rows["train", ""] = data, labels, flipped
    for split, wanted, limit in (
        ("validation", training.do_eval, args.max_eval_samples),
        ("test", training.do_predict, args.max_predict_samples),
    ):
        for name, (file, ending, _) in sets.items() if wanted else ():
            data, where = _open(args, split, split + ending, f"{split}{file}_file", wanted)
            data = sample(data, limit)
            rows[split, name] = data, _labels(data, where, spec, args, optional=split == "test"), 0
    return rows


def _open(args: ScriptArguments, split: str, hub_split: str, argument: str, wanted: bool) -> tuple[Dataset, str]:
    path = getattr(args, argument)
    if path:
        return read_file(argument, path), f"--{argument} {path}"
    if any(getattr(args, name) for name in args.given_files()):
        flag = {"train": "--do_train False", "validation": "--do_eval False --eval_strategy no", "test": "no --do_predict"}
        raise UserError(f"--{argument} is missing, and other local files are given: add it, or {flag[split]}.")
    return read_hub(HUB, args.task, hub_split, argument="task"), f"{HUB} {args.task} ({hub_split})"


def _labels(
    data: Dataset, where: str, spec: GlueTask, args: ScriptArguments, *, optional: bool = False
) -> list[int] | list[float] | None:
    column = args.label_column or "label"
    has_labels = column in data.column_names
    check_rows(data, where, spec.columns if optional and not has_labels else (*spec.columns, column))
    check_texts(data, where, spec.columns)
    if optional and (not has_labels or set(data.unique(column)) <= {None, -1}):  # GLUE's test labels are secret: -1
        return None
    if spec.classes:
        return encode_labels(data, where, column, spec.classes)
    return encode_scores(data, where, column, 0.0, 5.0)


def _load_tokenizer(args: ScriptArguments, config: Any) -> Any:
    source = args.tokenizer_name or args.model_name_or_path or args.config_name
    if source is None:
        raise UserError(f"--model_type {args.model_type} needs a tokenizer: give --tokenizer_name.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=args.model_revision, trust_remote_code=args.trust_remote_code
        )
    except LOADING_ERRORS as error:
        raise UserError(f"no tokenizer in {source} (--tokenizer_name): {one_line(error)}") from error
    if tokenizer.pad_token is None:  # GPT and Llama have none, and no batch goes without
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > getattr(config, "vocab_size", len(tokenizer)):
        raise UserError(f"{source} has {len(tokenizer)} tokens, the model only {config.vocab_size}: they do not fit.")
    return tokenizer


def _tokenize(data: Dataset, spec: GlueTask, tokenizer: Any, max_length: int, labels: Any) -> Dataset:
    def encode(rows: dict[str, list[str]]) -> Any:
        return tokenizer(*(rows[column] for column in spec.columns), truncation=True, max_length=max_length)

    encoded = data.map(encode, batched=True, remove_columns=data.column_names, desc="Tokenizing")
    return encoded if labels is None else encoded.add_column("labels", labels)


def _formatter(spec: GlueTask) -> Callable[[np.ndarray], list[str]]:
    def scores(logits: np.ndarray) -> list[str]:
        return [f"{value:.3f}" for value in np.clip(np.squeeze(logits, axis=-1), 0.0, 5.0)]

    def classes(logits: np.ndarray) -> list[str]:
        return [spec.classes[n] if spec.predicts_names else str(n) for n in np.argmax(logits, axis=-1)]

    return classes if spec.classes else scores
