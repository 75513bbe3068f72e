# SPDX-License-Identifier: Apache-2.0
"""Decide which rows are in each set, and with which label: from the tables as read to what a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.facts import Facts
from hf_sam.cli.common.held_out import held_out_rows
from hf_sam.cli.common.labels import encode, label_values
from hf_sam.cli.common.losses import Loss, balanced_weights, classification_loss, multilabel_loss, regression_loss
from hf_sam.cli.common.noise import flip_labels, noise_seed
from hf_sam.cli.common.reading.sources import SPLITS, Tables
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.common.target import Target, find_target
from hf_sam.cli.common.trained import agree_on_names, trained_target


@dataclass
class Labelled:
    """The sets, their labels as the model sees them, and what is to be predicted."""

    tables: Tables
    target: Target
    labels: dict[str, list[Any]]
    written: dict[str, list[Any]]  # the labels as they stand in the rows
    weights: list[float] | None
    flipped: int
    new_head: bool
    truth: list[Any] | None = None  # the training labels before some were flipped


def label_sets(
    args: ScriptArguments, training: Any, tables: Tables, columns: Sequence[str], config: Any, facts: Facts
) -> Labelled:
    """Find out what is to be predicted, hold rows out if there is no evaluation set, and number the labels.

    Raises:
        UserError: if the labels are no problem to learn, or the sets do not fit each other.
    """
    shown = ", ".join(map(repr, columns[:3])) + (", ..." if len(columns) > 3 else "")
    if "train" in tables:
        table = tables["train"]
        values = label_values(table, columns, empty=args.problem == "multilabel") or []
        target = find_target(
            values, f"{table.where}, {shown}", asked=args.problem, names=table.class_names(columns[0]),
            separator=args.label_separator,
        )  # fmt: skip
        new_head = agree_on_names(args, config, target)
        if training.do_eval and "validation" not in tables:
            tables = _hold_out(args, tables, values, target, facts)
    else:
        target, new_head = trained_target(config, separator=args.label_separator), False
    if len(columns) > 1:
        target.rule = "one column of 0 and 1 for each label"
    _check_arguments(args, training, target)
    facts.warnings += target.warnings
    tables = {split: chosen_rows(args, training, split, tables[split]) for split in SPLITS if split in tables}
    empty = target.kind == "multilabel"
    found = {
        split: label_values(table, columns, optional=split == "test", empty=empty) for split, table in tables.items()
    }
    written = {split: values for split, values in found.items() if values is not None}
    if "test" in written and _are_no_classes(tables["test"], written["test"], target):
        del written["test"]
        facts.notes.append(f"{tables['test'].where}: its folders are no classes, so nothing is scored on it")
    labels = {split: encode(written[split], target, f"{tables[split].where}, {shown}") for split in written}
    weights = balanced_weights(labels["train"], len(target.names)) if args.class_weights and "train" in labels else None
    flipped, truth = 0, labels.get("train") if args.label_noise else None
    if truth is not None:
        seed = noise_seed(training)
        labels["train"], flipped = flip_labels(truth, len(target.names), share=args.label_noise, seed=seed)
    return Labelled(tables, target, labels, written, weights, flipped, new_head, truth)


def loss_of(found: Labelled, training: Any) -> Loss:
    """Return the loss of this kind of target."""
    if found.target.kind == "regression":
        return regression_loss()
    if found.target.kind == "multilabel":
        return multilabel_loss(found.weights)
    return classification_loss(training.label_smoothing_factor, found.weights)


def _hold_out(args: ScriptArguments, tables: Tables, values: Sequence[Any], target: Target, facts: Facts) -> Tables:
    table = tables["train"]
    keys: list[Any] | None = None
    if target.kind != "regression":
        entries = [target.entries(value) for value in values]
        keys = [names[0] for names in entries] if target.kind == "classification" else entries
    train, held = held_out_rows(keys, len(table), args.validation_share, table.where)
    how = "the same share of each class" if target.kind == "classification" else "at random"
    facts.notes.append(f"{len(held):,} training rows are held out for evaluation, {how}, the same in every run")
    single = len(set(keys)) - len({keys[row] for row in held}) if keys and target.kind == "classification" else 0
    if single:
        facts.warnings.append(f"{single:,} classes have a single example, which is trained on and not evaluated")
    evaluation = table.select(held)
    evaluation.where, evaluation.notes = f"held out of {table.where} (--validation_share)", []
    return {**tables, "train": table.select(train), "validation": evaluation}


def _are_no_classes(table: Table, values: Sequence[Any], target: Target) -> bool:
    """Say whether folders of files to predict on are called something else, such as "unknown"."""
    return table.where.startswith("--test_dir") and not set(map(str, values)) & set(target.names)


def chosen_rows(args: ScriptArguments, training: Any, split: str, table: Table) -> Table:
    """Return as many rows as `--max_train_samples` and its kin ask for: of the training data a random choice."""
    limit = {"train": args.max_train_samples, "validation": args.max_eval_samples}.get(split, args.max_predict_samples)
    if limit is None or limit >= len(table):
        return table
    if split != "train":
        return table.select(list(range(limit)))
    return table.select(np.random.default_rng(noise_seed(training)).permutation(len(table))[:limit].tolist())


def _check_arguments(args: ScriptArguments, training: Any, target: Target) -> None:
    if args.label_noise and target.kind != "classification":
        raise UserError(f"--label_noise flips classes, and the labels are {target.kind}: leave it at 0.")
    if target.kind == "regression" and args.class_weights:
        raise UserError("--class_weights is for classes, and the labels are numbers: leave it out.")
    if target.kind != "classification" and training.label_smoothing_factor:
        raise UserError(
            f"--label_smoothing_factor is for one class a row, and the labels are {target.kind}: leave it at 0."
        )
