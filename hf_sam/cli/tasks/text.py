# SPDX-License-Identifier: Apache-2.0
"""Task: texts (or pairs of them) with a class, several labels or a number each, from files, folders or the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.labelled import Labelled, label_sets, loss_of
from hf_sam.cli.common.models import add_lora, load_config, load_model, set_labels
from hf_sam.cli.common.origins import Origin, origin_of
from hf_sam.cli.common.predictions import formatter
from hf_sam.cli.common.reading.columns import Columns, find_columns
from hf_sam.cli.common.reading.plain_text import read_text_folder
from hf_sam.cli.common.reading.sources import Tables, name_as_first, read_splits
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.common.repeated import count_contradictions, count_repeated, repeated_text
from hf_sam.cli.common.scores import Scores, check_best_metric
from hf_sam.cli.common.target import describe
from hf_sam.cli.common.texts import load_tokenizer, text_values, tokenize
from hf_sam.cli.tasks.base import Split, Task

DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 3,
    "metric_for_best_model": "loss",
}


def build(args: ScriptArguments, training: Any) -> Task:
    """Read the data, decide what is to be learnt, then load the model."""
    facts = Facts()
    config = load_config(args, None, keep_labels=True)
    tables = read_splits(args, training, "texts", lambda *where: _read_folder(args, *where))
    columns = _columns(args, tables, facts)
    found = label_sets(args, training, tables, columns.labels, config, facts)
    check_best_metric(training, found.target.kind)
    texts = {split: text_values(table, columns.texts) for split, table in found.tables.items()}
    _describe(found, texts, facts)
    if "train" in texts:
        set_labels(config, found.target.names, found.target.kind)
    tokenizer = load_tokenizer(args, config)
    sets, labels, common = {}, found.labels, (tokenizer, config, args.max_length)
    for split, values in texts.items():
        sets[split], facts.lengths[split] = tokenize(values, labels.get(split), *common, what=f"{split} texts")
    model = load_model(args, AutoModelForSequenceClassification, config, new_head=found.new_head)
    return Task(
        name="text",
        model=add_lora(args, model),
        train=sets.get("train"),
        evaluation={"": Split(sets["validation"])} if "validation" in sets else {},
        test={"": Split(sets["test"], "test" in labels, files=_files(found))} if "test" in sets else {},
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training.fp16 else None),
        compute_loss=loss_of(found, training),
        compute_metrics=Scores(found.target),
        format_predictions=formatter(found.target),
        pipeline="text-classification",
        auto_class="AutoModelForSequenceClassification",
        example='"A text."' if len(columns.texts) == 1 else '{"text": "One text.", "text_pair": "Another."}',
        flipped_labels=found.flipped,
        card={"tasks": "text-classification", "dataset": args.dataset_name or "local texts"},
        facts=facts,
        origins=_origins(found, texts),
        separator=args.label_separator,
    )


def _origins(found: Labelled, texts: dict[str, list[list[str]]]) -> dict[str, Origin]:
    truth = {"train": found.truth}
    return {split: origin_of(found.tables[split], values, truth=truth.get(split)) for split, values in texts.items()}


def _read_folder(args: ScriptArguments, argument: str, path: str, flat: bool) -> Table:
    where = f"--{argument} {path}"
    return Table(where, *read_text_folder(where, Path(path), encoding=args.encoding, flat=flat), unnamed=True)


def _columns(args: ScriptArguments, tables: Tables, facts: Facts) -> Columns:
    """Find the columns in the first set; the others have to have the same."""
    first = next(iter(tables.values()))
    labelled = bool(tables.keys() & {"train", "validation"})
    columns = find_columns(
        first, text=args.text_column, pair=args.text_pair_column, label=args.label_column,
        label_columns=args.label_columns, labelled=labelled,
    )  # fmt: skip
    columns.labels = columns.labels or [args.label_column or "label"]  # a set to predict on may have them or not
    facts.columns = f"text from {' and '.join(columns.texts)}, label from {', '.join(columns.labels)}"
    name_as_first(tables, "text", columns.texts[0], columns.labels)
    facts.notes += columns.notes
    facts.notes += [f"{split}: {note}" for split, table in tables.items() for note in table.notes]
    for split, table in tables.items():  # before rows are chosen, so that a row has its number in the file
        if args.drop_empty_texts and split != "test":  # a prediction belongs to each row
            tables[split] = _without_empty(split, table, columns.texts, facts)
        text_values(tables[split], columns.texts)
    return columns


def _without_empty(split: str, table: Table, columns: list[str], facts: Facts) -> Table:
    texts = [table.values(name) for name in columns if name in table.names]
    kept = [row for row, values in enumerate(zip(*texts, strict=True)) if all(str(v or "").strip() for v in values)]
    if len(kept) == len(table) or not kept:
        return table
    facts.notes.append(f"{split}: {len(table) - len(kept):,} rows without text are left out (--drop_empty_texts)")
    return table.select(kept)


def _describe(found: Labelled, texts: dict[str, list[list[str]]], facts: Facts) -> None:
    facts.sources = {split: table.where for split, table in found.tables.items()}
    facts.problem = f"{found.target.kind}: {found.target.rule}"
    if "train" in texts:
        rows = list(zip(*texts["train"], strict=True))
        count = len(rows)
        facts.examples = [
            (" || ".join(rows[row]), describe(found.written["train"][row]))
            for row in sorted({0, count // 2, count - 1})
        ]
        if (different := count_contradictions(texts["train"], found.labels["train"])) and not found.flipped:
            facts.warnings.append(f"{different:,} training texts occur with more than one label")
        for split in ("validation", "test"):
            if split in texts and (repeated := count_repeated(texts["train"], texts[split])):
                facts.warnings.append(repeated_text(repeated, split, len(texts[split][0])))


def _files(found: Labelled) -> list[str] | None:
    table = found.tables["test"]
    is_folder = table.where.startswith("--test_dir")
    return list(table.values("file")) if is_folder else None
