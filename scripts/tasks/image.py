# SPDX-License-Identifier: Apache-2.0
"""Task: image classification, from the Hub, from folders, or from local files."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForImageClassification

from scripts.common.arguments import ScriptArguments
from scripts.common.data import (
    check_rows,
    class_names,
    encode_labels,
    hub_splits,
    read_file,
    read_folder,
    read_hub,
    sample,
)
from scripts.common.errors import UserError
from scripts.common.images import Images, as_images, find_column, load_processor
from scripts.common.losses import classification_loss
from scripts.common.metrics import Accuracy, make_compute_metrics
from scripts.common.models import add_lora, load_config, load_model
from scripts.common.noise import flip_labels
from scripts.tasks.base import Split, Task, noise_seed

DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "metric_for_best_model": "accuracy",
}
SPLITS = ("train", "validation", "test")
Splits = dict[str, tuple[Dataset, str]]  # split -> its rows, and how the user named it


def build(args: ScriptArguments, training: Any) -> Task:
    """Read the data and the model."""
    splits = _read(args, training)
    name = args.dataset_name or "local images"
    return assemble(args, training, splits, card={"dataset": name, "dataset_args": args.dataset_config_name})


def assemble(args: ScriptArguments, training: Any, splits: Splits, *, card: dict[str, Any]) -> Task:
    """Turn raw splits into a task. Everything is checked here, before anything is written."""
    first, where = next(iter(splits.values()))
    image_column = find_column(first, where, "image_column", args.image_column, ("image", "img"))
    label_column = find_column(first, where, "label_column", args.label_column, ("label", "labels"))
    splits = {split: (_cut(args, training, split, data), where) for split, (data, where) in splits.items()}
    config, names = _config_and_names(args, splits, label_column)
    model = add_lora(args, load_model(args, AutoModelForImageClassification, config))
    processor = load_processor(args, config)
    sets: dict[str, Images] = {}
    flipped = 0
    for split, (data, where) in splits.items():
        check_rows(data, where, (image_column,), label=None if split == "test" else label_column)
        labels = encode_labels(data, where, label_column, names) if label_column in data.column_names else None
        if split == "train" and labels is not None:
            labels, flipped = flip_labels(labels, len(names), share=args.label_noise, seed=noise_seed(training))
        sets[split] = Images(as_images(data, where, image_column), where, image_column, labels, processor)
    shown = {"tasks": "image-classification", **{key: value for key, value in card.items() if value}}
    return _task(args, training, model, processor, sets, names, flipped_labels=flipped, card=shown)


def _task(
    args: ScriptArguments,
    training: Any,
    model: Any,
    processor: Any,
    sets: dict[str, Images],
    names: list[str],
    **facts: Any,
) -> Task:
    return Task(
        name=args.task,
        model=model,
        train=sets.get("train"),
        evaluation={"": Split(sets["validation"])} if "validation" in sets else {},
        test={"": Split(sets["test"], sets["test"].labels is not None)} if "test" in sets else {},
        processing_class=processor,
        compute_loss=classification_loss(training.label_smoothing_factor),
        compute_metrics=make_compute_metrics([Accuracy()]),
        format_predictions=lambda logits: [names[number] for number in np.argmax(logits, axis=-1)],
        pipeline="image-classification",
        auto_class="AutoModelForImageClassification",
        example='"image.png"',
        **facts,
    )


def _config_and_names(args: ScriptArguments, splits: Splits, column: str) -> tuple[Any, list[str]]:
    if "train" in splits:
        data, where = splits["train"]
        check_rows(data, where, (), label=column)
        names = class_names(data, column)
        if len(names) < 2:
            raise UserError(f"{where} has labels of {len(names)} class: at least 2 are needed.")
        return load_config(args, names), names
    if args.model_name_or_path is None:
        raise UserError("--do_train False evaluates a trained model: give it with --model_name_or_path.")
    config = load_config(args, None, keep_labels=True)
    return config, [config.id2label[number] for number in sorted(config.id2label)]


def _cut(args: ScriptArguments, training: Any, split: str, data: Dataset) -> Dataset:
    if split == "train":
        return sample(data, args.max_train_samples, seed=noise_seed(training))
    return sample(data, args.max_eval_samples if split == "validation" else args.max_predict_samples)


def _read(args: ScriptArguments, training: Any) -> Splits:
    wanted = [s for s, w in zip(SPLITS, (training.do_train, training.do_eval, training.do_predict), strict=True) if w]
    splits: Splits = {}
    for split in wanted:
        rows = _read_split(args, split)
        if rows is not None:
            splits[split] = rows
    if "train" in wanted and "train" not in splits:
        raise UserError("--task image needs images to train on: --dataset_name, --train_dir or --train_file.")
    if "test" in wanted and "test" not in splits:
        raise UserError("--do_predict needs images to predict: --test_dir or --test_file.")
    if "validation" in wanted and "validation" not in splits:
        if "train" not in splits:
            raise UserError("--do_eval needs images to evaluate on: --validation_dir or --validation_file.")
        splits = _hold_out(args, splits)
    return splits


def _read_split(args: ScriptArguments, split: str) -> tuple[Dataset, str] | None:
    file, folder = getattr(args, f"{split}_file"), getattr(args, f"{split}_dir")
    sources = [name for name in (f"{split}_file", f"{split}_dir", "dataset_name") if getattr(args, name)]
    if len(sources) > 1:
        raise UserError(f"--{sources[0]} and --{sources[1]} are two sources for one set: give one.")
    if file:
        return read_file(f"{split}_file", file), f"--{split}_file {file}"
    if folder:
        return read_folder(f"{split}_dir", folder), f"--{split}_dir {folder}"
    if args.dataset_name is None:
        return None
    name, known = (
        getattr(args, f"{split}_split"),
        hub_splits(args.dataset_name, args.dataset_config_name, f"--dataset_name {args.dataset_name}"),
    )
    if name not in known:
        if name == "validation":  # not asked for by name: a share of the training data takes its place
            return None
        raise UserError(f"--{split}_split {name}: {args.dataset_name} has the splits {', '.join(known)}.")
    where = f"--dataset_name {args.dataset_name} ({name})"
    return read_hub(args.dataset_name, args.dataset_config_name, name, where), where


def _hold_out(args: ScriptArguments, splits: Splits) -> Splits:
    """Keep a share of the training data for evaluation: always the same rows, whatever the seed."""
    data, where = splits["train"]
    count = round(args.validation_share * len(data))
    if not 0 < count < len(data):
        raise UserError(f"{where} has {len(data)} rows: --validation_share {args.validation_share} leaves a set empty.")
    order = np.random.default_rng(0).permutation(len(data))
    held_out = data.select(np.sort(order[:count])), f"{where} (--validation_share {args.validation_share})"
    return {**splits, "train": (data.select(np.sort(order[count:])), where), "validation": held_out}
