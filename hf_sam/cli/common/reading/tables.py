# SPDX-License-Identifier: Apache-2.0
"""Which rows does a file hold? Read by its ending, in memory, by its very path, and without guessing a pattern."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
from datasets import ClassLabel, Dataset
from pyarrow import parquet

from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.reading.encodings import OPENERS, decode, read_bytes
from hf_sam.cli.common.reading.json_rows import read_json
from hf_sam.cli.common.reading.plain_text import read_lines
from hf_sam.cli.common.reading.separated import read_separated

ENDINGS = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")


@dataclass
class Table:
    """Rows of one set by column, how the user named it, and what there is to say about how it was read."""

    where: str
    source: dict[str, list[Any]] | Dataset
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None  # where the file lies, to which paths in it are relative
    unnamed: bool = False  # whether what was read has no names for its columns, so that these are ours

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.source.column_names if isinstance(self.source, Dataset) else self.source)

    def __len__(self) -> int:
        if isinstance(self.source, Dataset):
            return len(self.source)
        return len(next(iter(self.source.values()), []))

    def class_names(self, column: str) -> list[str] | None:
        """Return the names of the classes that the data set itself declares for the column."""
        feature = self.source.features[column] if isinstance(self.source, Dataset) else None
        feature = getattr(feature, "feature", feature)  # a list of classes
        return list(feature.names) if isinstance(feature, ClassLabel) else None

    def values(self, column: str) -> list[Any]:
        """Return a column as Python values, classes by their names; -1 is no class, so it is missing."""
        if not isinstance(self.source, Dataset):
            return self.source[column]
        values = self.source[column][:]
        names = self.class_names(column)
        return values if names is None else [_named(value, names) for value in values]

    def dataset(self) -> Dataset:
        """Return the rows as a data set.

        Raises:
            UserError: if a column mixes types.
        """
        if isinstance(self.source, Dataset):
            return self.source
        try:
            return Dataset.from_dict(self.source)
        except (pyarrow.ArrowException, TypeError, ValueError, UnicodeEncodeError) as error:
            raise UserError(f"{self.where} mixes types in a column: {one_line(error)}") from error

    def select(self, rows: list[int]) -> Table:
        """Return these rows, in this order."""
        if isinstance(self.source, Dataset):
            return replace(self, source=self.source.select(rows))
        chosen = {name: [values[row] for row in rows] for name, values in self.source.items()}
        return replace(self, source=chosen)


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(entry, names) for entry in value]
    return names[value] if value is not None and 0 <= value < len(names) else None


def read_table(argument: str, path: str, *, encoding: str | None = None, separator: str | None = None) -> Table:
    """Read the file given as `--argument path`.

    Raises:
        UserError: if it is no file, of no known kind, empty, or cannot be read.
    """
    where, file = f"--{argument} {path}", Path(path)
    if not file.is_file():
        raise UserError(f"{where} does not exist (or is no file).")
    ending = _ending(file)
    if ending in _SHEETS:
        raise UserError(f"{where} is a spreadsheet: save it as csv (UTF-8) and give that.")
    if ending not in ENDINGS:
        raise UserError(f"{where} must end in {', '.join(ENDINGS)} (or one of these and {', '.join(OPENERS)}).")
    if ending == ".parquet":
        return Table(where, _read_parquet(where, file))
    content = read_bytes(where, file)
    text, note = decode(content, where, encoding)
    readers: dict[str, Callable[[], tuple[dict[str, list[Any]], list[str]]]] = {
        ".csv": lambda: read_separated(text, where, separator),
        ".tsv": lambda: read_separated(text, where, separator, tabs=True),
        ".json": lambda: read_json(text, where),
        ".txt": lambda: read_lines(text, where),
    }
    columns, notes = readers.get(ending, lambda: read_json(text, where, lines=True))()
    table = Table(where, columns, [note, *notes] if note else notes, file.absolute().parent, ending == ".txt")
    if len(table) == 0:
        raise UserError(f"{where} is empty: at least one row is needed.")
    return table


def _ending(file: Path) -> str:
    """Return the ending that says what is in the file: .csv for data.csv.gz and DATA.CSV."""
    endings = [ending.lower() for ending in file.suffixes]
    if len(endings) > 1 and endings[-1] in OPENERS:
        return endings[-2]
    return endings[-1] if endings else ""


def _read_parquet(where: str, file: Path) -> Dataset:
    try:
        table = parquet.ParquetFile(file).read()
        for place, entry in enumerate(table.schema):  # a category of pandas
            if pyarrow.types.is_dictionary(entry.type):
                table = table.set_column(place, entry.name, table.column(place).cast(entry.type.value_type))
        data = Dataset(table)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UserError(f"{where} cannot be read: {one_line(error)}") from error
    if len(data) == 0:
        raise UserError(f"{where} is empty: at least one row is needed.")
    return data
