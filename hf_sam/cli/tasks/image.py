# SPDX-License-Identifier: Apache-2.0
"""Task: images with a class or several labels each, from folders, from local files, or from the Hub."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForImageClassification

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.data import read_folder
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.images import Images, find_files, find_image_column, image_data, load_processor
from hf_sam.cli.common.labelled import Labelled, label_sets, loss_of
from hf_sam.cli.common.models import add_lora, load_config, load_model, set_labels
from hf_sam.cli.common.origins import Origin, origin_of
from hf_sam.cli.common.predictions import formatter
from hf_sam.cli.common.reading.columns import find_label_columns
from hf_sam.cli.common.reading.sources import Tables, name_as_first, read_splits
from hf_sam.cli.common.repeated import count_repeated_images, repeated_text
from hf_sam.cli.common.scores import Scores, check_best_metric
from hf_sam.cli.common.target import describe
from hf_sam.cli.tasks.base import Split, Task

DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "metric_for_best_model": "accuracy",
}


def build(args: ScriptArguments, training: Any) -> Task:
    """Read the data and the model."""
    args.refuse("image", "text_column", "text_pair_column")
    tables = read_splits(args, training, "images", read_folder)
    name = args.dataset_name or "local images"
    return assemble(args, training, tables, card={"dataset": name, "dataset_args": args.dataset_config_name})


def assemble(args: ScriptArguments, training: Any, tables: Tables, *, card: dict[str, Any]) -> Task:
    """Turn tables of images into a task. Everything is checked here, before anything is written."""
    facts = Facts()
    first = next(iter(tables.values()))
    column = find_image_column(first, args.image_column)
    labels = find_label_columns(
        first, column, label=args.label_column, label_columns=args.label_columns,
        labelled=bool(tables.keys() & {"train", "validation"}),
    )  # fmt: skip
    if "train" not in tables and args.model_name_or_path is None:
        raise UserError("--do_train False evaluates a trained model: give it with --model_name_or_path.")
    name_as_first(tables, "image", column, labels)
    for table in tables.values():
        find_files(table, column)
    config = load_config(args, None, keep_labels=True)
    found = label_sets(args, training, tables, labels, config, facts)
    check_best_metric(training, found.target.kind)
    if "train" in found.tables:
        set_labels(config, found.target.names, found.target.kind)
    model = add_lora(args, load_model(args, AutoModelForImageClassification, config, new_head=found.new_head))
    processor = load_processor(args, config)
    sets: dict[str, Images] = {}
    for split, table in found.tables.items():
        data = image_data(table, column)
        sets[split] = Images(data, table.where, column, found.labels.get(split), processor)
    _describe(found, tables, sets, facts, column, labels)
    shown = {"tasks": "image-classification", **{key: value for key, value in card.items() if value}}
    return _task(args, training, found, sets, model=model, processing_class=processor, card=shown, facts=facts)


def _task(args: ScriptArguments, training: Any, found: Labelled, sets: dict[str, Images], **parts: Any) -> Task:
    files = found.tables["test"].values("file") if "test" in sets and "file" in found.tables["test"].names else None
    return Task(
        name=args.task,
        train=sets.get("train"),
        evaluation={"": Split(sets["validation"])} if "validation" in sets else {},
        test={"": Split(sets["test"], sets["test"].labels is not None, files=files)} if "test" in sets else {},
        compute_loss=loss_of(found, training),
        compute_metrics=Scores(found.target),
        format_predictions=formatter(found.target),
        pipeline="image-classification",
        auto_class="AutoModelForImageClassification",
        example='"image.png"',
        flipped_labels=found.flipped,
        separator=args.label_separator,
        origins=_origins(found, {split: images.column for split, images in sets.items()}),
        **parts,
    )


def _origins(found: Labelled, columns: dict[str, str]) -> dict[str, Origin]:
    origins = {}
    for split, table in found.tables.items():
        listed = isinstance(table.source, dict)  # else the images have no names, or names of files on another machine
        files = [table.values("file" if table.unnamed else columns[split])] if listed else []
        origins[split] = origin_of(table, files, "file", found.truth if split == "train" else None)
    return origins


def _describe(
    found: Labelled, tables: Tables, sets: dict[str, Images], facts: Facts, column: str, labels: list[str]
) -> None:
    facts.sources = {split: table.where for split, table in found.tables.items()}
    facts.columns = f"image from {column}, label from {', '.join(labels)}"
    facts.problem = f"{found.target.kind}: {found.target.rule}"
    facts.notes += [f"{split}: {note}" for split, table in tables.items() for note in table.notes]
    if "train" not in sets:
        return
    table = found.tables["train"]
    for row in sorted({0, len(table) // 2, len(table) - 1}):
        name = table.values("file")[row] if "file" in table.names else f"image {row}"
        facts.examples.append((name, describe(found.written["train"][row])))
    for split in ("validation", "test"):
        if split in sets and (repeated := count_repeated_images(sets["train"], sets[split])):
            facts.warnings.append(repeated_text(repeated, split, len(sets[split])))
