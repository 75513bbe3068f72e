# SPDX-License-Identifier: Apache-2.0
"""Which rows are in each set, and with which label? From the tables as read to what a model is trained on."""

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
from hf_sam.cli.common.problem import Problem, find_problem
from hf_sam.cli.common.reading.sources import SPLITS, Tables
from hf_sam.cli.common.reading.tables import Table
from hf_sam.cli.common.trained import agree_on_names, trained_problem


@dataclass
class Labelled:
    """The sets, their labels as the model sees them, and what is to be predicted."""

    tables: Tables
    problem: Problem
    labels: dict[str, list[Any]]
    written: dict[str, list[Any]]  # the labels as they stand in the rows
    weights: list[float] | None
    flipped: int
    new_head: bool


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
        problem = find_problem(
            values, f"{table.where}, {shown}", asked=args.problem, names=table.class_names(columns[0]),
            separator=args.label_separator,
        )  # fmt: skip
        new_head = agree_on_names(args, config, problem)
        if training.do_eval and "validation" not in tables:
            tables = _hold_out(args, tables, values, problem, facts)
    else:
        problem, new_head = trained_problem(config, separator=args.label_separator), False
    if len(columns) > 1:
        problem.rule = "one column of 0 and 1 for each label"
    _check_arguments(args, training, problem)
    facts.warnings += problem.warnings
    tables = {split: _cut(args, training, split, tables[split]) for split in SPLITS if split in tables}
    empty = problem.kind == "multilabel"
    found = {
        split: label_values(table, columns, optional=split == "test", empty=empty) for split, table in tables.items()
    }
    written = {split: values for split, values in found.items() if values is not None}
    if "test" in written and _are_no_classes(tables["test"], written["test"], problem):
        del written["test"]
        facts.notes.append(f"{tables['test'].where}: its folders are no classes, so nothing is scored on it")
    labels = {split: encode(written[split], problem, f"{tables[split].where}, {shown}") for split in written}
    weights = (
        balanced_weights(labels["train"], len(problem.names)) if args.class_weights and "train" in labels else None
    )
    flipped = 0
    if args.label_noise and "train" in labels:
        seed = noise_seed(training)
        labels["train"], flipped = flip_labels(labels["train"], len(problem.names), share=args.label_noise, seed=seed)
    return Labelled(tables, problem, labels, written, weights, flipped, new_head)


def loss_of(found: Labelled, training: Any) -> Loss:
    """Return the loss of this kind of problem."""
    if found.problem.kind == "regression":
        return regression_loss()
    if found.problem.kind == "multilabel":
        return multilabel_loss(found.weights)
    return classification_loss(training.label_smoothing_factor, found.weights)


def _hold_out(args: ScriptArguments, tables: Tables, values: Sequence[Any], problem: Problem, facts: Facts) -> Tables:
    table = tables["train"]
    keys: list[Any] | None = None
    if problem.kind != "regression":
        entries = [problem.entries(value) for value in values]
        keys = [names[0] for names in entries] if problem.kind == "classification" else entries
    train, held = held_out_rows(keys, len(table), args.validation_share, table.where)
    how = "the same share of each class" if problem.kind == "classification" else "at random"
    facts.notes.append(f"{len(held):,} training rows are held out for evaluation, {how}, the same in every run")
    single = len(set(keys)) - len({keys[row] for row in held}) if keys and problem.kind == "classification" else 0
    if single:
        facts.warnings.append(f"{single:,} classes have a single example, which is trained on and not evaluated")
    evaluation = table.select(held)
    evaluation.where, evaluation.notes = f"held out of {table.where} (--validation_share)", []
    return {**tables, "train": table.select(train), "validation": evaluation}


def _are_no_classes(table: Table, values: Sequence[Any], problem: Problem) -> bool:
    """Say whether folders of files to predict on are called something else, such as "unknown"."""
    return table.where.startswith("--test_dir") and not set(map(str, values)) & set(problem.names)


def _cut(args: ScriptArguments, training: Any, split: str, table: Table) -> Table:
    limit = {"train": args.max_train_samples, "validation": args.max_eval_samples}.get(split, args.max_predict_samples)
    if limit is None or limit >= len(table):
        return table
    if split != "train":
        return table.select(list(range(limit)))
    return table.select(np.random.default_rng(noise_seed(training)).permutation(len(table))[:limit].tolist())


def _check_arguments(args: ScriptArguments, training: Any, problem: Problem) -> None:
    if args.label_noise and problem.kind != "classification":
        raise UserError(f"--label_noise flips classes, and the labels are {problem.kind}: leave it at 0.")
    if problem.kind == "regression" and args.class_weights:
        raise UserError("--class_weights is for classes, and the labels are numbers: leave it out.")
    if problem.kind != "classification" and training.label_smoothing_factor:
        raise UserError(
            f"--label_smoothing_factor is for one class a row, and the labels are {problem.kind}: leave it at 0."
        )
