# SPDX-License-Identifier: Apache-2.0
"""What does a checkpoint already know about the labels? Its classes and their order, if it has been trained on some."""

from __future__ import annotations

from typing import Any

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.problem import Kind, Problem

_KINDS: dict[str | None, Kind] = {
    "regression": "regression",
    "multi_label_classification": "multilabel",
    "single_label_classification": "classification",
}


def own_names(config: Any) -> list[str] | None:
    """Return the classes of a trained model in their order, None for the placeholders LABEL_0, LABEL_1, ..."""
    names = [str(config.id2label[number]) for number in sorted(config.id2label)]
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names


def trained_problem(config: Any, *, separator: str = "|") -> Problem:
    """Return what a trained model predicts, to evaluate it or to predict with it."""
    kind = _KINDS.get(config.problem_type, "regression" if config.num_labels == 1 else "classification")
    if kind == "regression":
        return Problem(kind, [], "as the model was trained")
    names = own_names(config) or [str(number) for number in range(config.num_labels)]
    numeric = all(name.isdigit() for name in names)
    return Problem(kind, names, "as the model was trained", numeric=numeric, separator=separator)


def agree_on_names(args: ScriptArguments, config: Any, problem: Problem) -> bool:
    """Take over the order of a checkpoint with the same classes. Returns whether its head has to be a new one.

    A head of classes without names is nothing to keep. One of other named classes is replaced when the user says so.

    Raises:
        UserError: if the checkpoint's head tells as many classes apart, but others.
    """
    theirs, wanted = own_names(config), len(problem.names) or 1
    if not args.model_name_or_path or theirs is None:
        return config.num_labels != wanted
    if problem.kind == "regression" or len(theirs) != wanted:  # refused when the weights are loaded
        return False
    if set(theirs) == set(problem.names):
        problem.names = theirs
        return False
    if args.ignore_mismatched_sizes:
        return True
    raise UserError(
        f"--model_name_or_path {args.model_name_or_path} was trained on the classes {one_line(', '.join(theirs), 80)}, "
        f"and the data have {one_line(', '.join(problem.names), 80)}: name them alike, "
        "or add --ignore_mismatched_sizes for a new head."
    )
