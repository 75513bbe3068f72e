# SPDX-License-Identifier: Apache-2.0
"""Where does each set come from? A file, a folder, or a split of a data set on the Hub: one source for one set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.data import hub_splits, read_hub
from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.tables import Table, read_table

SPLITS = ("train", "validation", "test")
Tables = dict[str, Table]
ReadFolder = Callable[[str, str, bool], Table]  # the argument, the path, and whether it may be flat


def read_splits(args: ScriptArguments, training: Any, what: str, read_folder: ReadFolder) -> Tables:
    """Read every set that is wanted and given. Of an evaluation set that is not given, training rows take the place.

    Args:
        args: The script's arguments.
        training: The training arguments: what is to be done.
        what: What the rows are, for messages.
        read_folder: Reads a folder of them.

    Raises:
        UserError: if there is nothing to train, to evaluate or to predict on.
    """
    tables: Tables = {}
    for split, wanted in zip(SPLITS, (training.do_train, training.do_eval, training.do_predict), strict=True):
        table = _read_split(args, split, read_folder) if wanted else None
        if table is not None:
            tables[split] = table
    if training.do_train and "train" not in tables:
        raise UserError(f"--task {args.task} needs {what} to train on: --dataset_name, --train_dir or --train_file.")
    if training.do_predict and "test" not in tables:
        raise UserError(f"--do_predict needs {what} to predict: --test_dir or --test_file.")
    if training.do_eval and not tables.keys() & {"validation", "train"}:
        raise UserError(f"--do_eval needs {what} to evaluate on: --validation_dir or --validation_file.")
    if not tables:
        raise UserError("nothing is to be done: --do_train, --do_eval and --do_predict are all off.")
    return tables


def name_as_first(tables: Tables, read: str, wanted: str, labels: list[str]) -> None:
    """Give what has no column names of its own, as folders have not, those of the first set."""
    for table in tables.values():
        if table.unnamed and isinstance(table.source, dict):
            names = {read: wanted, **({"label": labels[0]} if len(labels) == 1 else {})}
            table.source = {names.get(name, name): values for name, values in table.source.items()}


def _read_split(args: ScriptArguments, split: str, read_folder: ReadFolder) -> Table | None:
    file, folder = getattr(args, f"{split}_file"), getattr(args, f"{split}_dir")
    sources = [name for name in (f"{split}_file", f"{split}_dir", "dataset_name") if getattr(args, name)]
    if len(sources) > 1:
        raise UserError(f"--{sources[0]} and --{sources[1]} are two sources for one set: give one.")
    if file:
        return read_table(f"{split}_file", file, encoding=args.encoding, separator=args.separator)
    if folder:
        return read_folder(f"{split}_dir", folder, split == "test")
    if args.dataset_name is None:
        return None
    name = getattr(args, f"{split}_split")
    known = hub_splits(args.dataset_name, args.dataset_config_name, f"--dataset_name {args.dataset_name}")
    if name not in known:
        if name == "validation":  # not asked for by name: a share of the training data takes its place
            return None
        raise UserError(f"--{split}_split {name}: {args.dataset_name} has the splits {', '.join(known)}.")
    where = f"--dataset_name {args.dataset_name} ({name})"
    return Table(where, read_hub(args.dataset_name, args.dataset_config_name, name, where))
