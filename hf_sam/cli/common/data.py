# SPDX-License-Identifier: Apache-2.0
"""Read files, folders and Hub datasets, and refuse what cannot be trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DownloadMode, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import ArrowException

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import HUB_ERROR, UserError, one_line
from hf_sam.cli.common.reading.class_folders import list_class_folders
from hf_sam.cli.common.reading.image_files import READABLE, UNREADABLE, check_images
from hf_sam.cli.common.reading.tables import Table, read_table

if hasattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE"):  # datasets 3 would ask, and wait for an answer
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False

# RuntimeError: for a data set that is a program, which `datasets` no longer runs.
READING_ERRORS = (DatasetsError, ArrowException, OSError, ValueError, TypeError, KeyError, RuntimeError, HUB_ERROR)


def read_file(argument: str, path: str, args: ScriptArguments | None = None, notes: list[str] | None = None) -> Dataset:
    """Read a file given as `--argument path`; a csv file holds texts. `notes` gets what there is to say."""
    encoding, separator = (None, None) if args is None else (args.encoding, args.separator)
    table = read_table(argument, path, encoding=encoding, separator=separator)
    if notes is not None:
        notes += [f"{table.where}: {note}" for note in table.notes if f"{table.where}: {note}" not in notes]
    return table.dataset()


def read_folder(argument: str, path: str, flat: bool = False) -> Table:
    """Return the images of a folder with one folder of them per class (or flat, to predict on) by their paths.

    Raises:
        UserError: if there are no classes, or a file is an image that cannot be read.
    """
    where, root = f"--{argument} {path}", Path(path)
    found = list_class_folders(where, root, READABLE | UNREADABLE, "images", flat=flat)
    names = [str(file.relative_to(root)) for file in found.files]
    check_images(where, found.files, names)
    columns = {"image": [str(file.absolute()) for file in found.files], "file": names}
    return Table(where, columns | ({"label": found.labels} if found.labels else {}), found.notes, unnamed=True)


def read_hub(name: str, config: str | None, split: str, where: str) -> Dataset:
    """Download one split of a dataset of the Hub."""
    return _load(where, name, config, split=split)


def hub_splits(name: str, config: str | None, where: str) -> list[str]:
    """Return the names of the splits of a dataset of the Hub."""
    try:
        return list(get_dataset_split_names(name, config))
    except READING_ERRORS as error:
        raise UserError(f"{where} cannot be read: {one_line(error.__cause__ or error)}") from error


def _load(where: str, path: str, name: str | None = None, *, split: str = "train", **kwargs: Any) -> Dataset:
    try:
        return load_dataset(path, name, split=split, download_mode=DownloadMode.REUSE_DATASET_IF_EXISTS, **kwargs)
    except READING_ERRORS as error:
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise UserError(f"{where} is empty: at least one row is needed.") from error
        raise UserError(f"{where} cannot be read: {one_line(cause)}") from error


def check_rows(data: Dataset, where: str, columns: Iterable[str], label: str | None = None) -> None:
    """Refuse an empty split, and one that lacks a column. `label` is the column that an argument can name."""
    for column in (*columns, label):
        if column is not None and column not in data.column_names:
            hint = " (--label_column names another)" if column == label else ""
            raise UserError(f"{where} has no column {column!r}{hint}; it has {', '.join(data.column_names)}.")
    if len(data) == 0:
        raise UserError(f"{where} is empty: at least one row is needed.")


def check_texts(data: Dataset, where: str, columns: Iterable[str]) -> None:
    """Refuse rows whose text is missing or is no text."""
    for column in columns:
        check_values(data[column][:], where, column)


def check_values(values: Sequence[Any], where: str, column: str) -> None:
    """Refuse rows whose text is missing, empty, no text, or half a character."""
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"{where}, row {row}: {column!r} must be text, got {value!r:.60}.")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}, row {row}: {column!r} holds half of a character (a lone surrogate): correct it.")
    empty = [row for row, value in enumerate(values) if not value.strip()]
    if empty:
        raise UserError(
            f"{where}, {rows_text(empty)}: {column!r} must be text, got {values[empty[0]]!r}: remove it "
            "(--task text: --drop_empty_texts leaves such rows out)."
        )


def rows_text(rows: Sequence[int], shown: int = 5) -> str:
    """Return "row 3", or "4 rows (0, 2, 7, ...)", counted from 0 as in the prediction files."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = ", ..." if len(rows) > shown else ""
    return f"{len(rows):,} rows ({', '.join(map(str, rows[:shown]))}{more})"


def encode_labels(data: Dataset, where: str, column: str, names: Sequence[str]) -> list[int]:
    """Return the labels as class numbers. Takes numbers, names, and ClassLabel columns in any order of the names."""
    feature = data.features[column]
    values = data[column][:]
    if isinstance(feature, ClassLabel):  # by name: another file may count its classes differently
        known = range(len(feature.names))
        values = [feature.names[value] if value in known else value for value in values]
    numbers = {name: number for number, name in enumerate(names)}
    return [_class_number(value, numbers, f"{where}, row {row}: {column!r}") for row, value in enumerate(values)]


def _class_number(value: Any, numbers: dict[str, int], where: str) -> int:
    if value is None or value != value or value == "":
        raise UserError(f"{where} is missing or NaN: fill it in or drop the row.")
    if isinstance(value, str) and value in numbers:
        return numbers[value]
    if len(numbers) == 2 and str(value).strip().lower() in ("true", "false"):
        return int(str(value).strip().lower() == "true")
    number = -1.0
    if not isinstance(value, str) or not any(name.isdigit() for name in numbers):  # class "2" need not be number 2
        with contextlib.suppress(TypeError, ValueError):
            number = float(value)
    if not number.is_integer() or not 0 <= number < len(numbers):
        classes = ", ".join(list(numbers)[:10])
        raise UserError(f"{where} must be a number from 0 to {len(numbers) - 1} or one of {classes}; got {value!r}.")
    return int(number)


def encode_scores(data: Dataset, where: str, column: str, low: float, high: float) -> list[float]:
    """Return the labels of a regression task as floats in [low, high]."""
    scores = []
    for row, value in enumerate(data[column][:]):
        try:
            score = float("nan") if value is None else float(value)
        except (TypeError, ValueError):
            score = float("nan")
        if not low <= score <= high:
            raise UserError(f"{where}, row {row}: {column!r} must be a number from {low:g} to {high:g}, got {value!r}.")
        scores.append(score)
    return scores


def sample(data: Dataset, count: int | None, *, seed: int | None = None) -> tuple[Dataset, Sequence[int]]:
    """Return the first `count` rows, or with a seed a random choice of so many, and which rows these are."""
    rows: Sequence[int] = range(len(data))
    if count is None or count >= len(data):
        return data, rows
    rows = rows[:count] if seed is None else np.random.default_rng(seed).permutation(len(data))[:count].tolist()
    return data.select(rows), rows
