# SPDX-License-Identifier: Apache-2.0
"""What is to be predicted: one of several classes, any number of them, or a number? Found in the labels by a rule."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_sam.cli.common.errors import UserError, one_line

Kind = Literal["classification", "multilabel", "regression"]
KINDS: tuple[Kind, ...] = ("classification", "multilabel", "regression")
LARGEST_ID = 1_000_000  # an integer above is no class but a number, or an id
FEW = 20  # whole floats of at most so many values are classes, as ratings 1.0 to 5.0 are
_WHOLE = re.compile(r"[-+]?\d+")


@dataclass
class Problem:
    """What a label is, and how to read one."""

    kind: Kind
    names: list[str]  # of the classes; none for regression
    rule: str  # what decided, for people
    numeric: bool = False  # labels are whole numbers, however they are written
    separator: str = "|"
    comma: bool = False  # decimals are written with a comma
    warnings: list[str] = field(default_factory=list)

    def entries(self, value: Any) -> list[str]:
        """Return the names of the classes in one label."""
        parts = split_label(value, self.separator) if self.kind == "multilabel" else [value]
        return [class_name(part) if self.numeric else str(part) for part in parts]

    def number(self, value: Any) -> float:
        """Return a label of a regression; NaN if it is none."""
        return as_number(value, comma=self.comma)


def find_problem(
    values: Sequence[Any],
    where: str,
    *,
    asked: str | None = None,
    names: Sequence[str] | None = None,
    separator: str = "|",
) -> Problem:
    """Decide what the labels of the training data are.

    Args:
        values: The labels, none of them missing.
        where: The file and column, for messages.
        asked: What `--problem` says, None to decide by the rules.
        names: The classes that the data set itself declares.
        separator: What stands between the labels in a text that holds several.

    Raises:
        UserError: if they are of mixed types, all the same, or all different.
    """
    lists = any(isinstance(value, (list, tuple, set)) for value in values)
    if lists or (names is None and _all_texts(values) and all(_json_list(value) is not None for value in values)):
        if asked not in (None, "multilabel"):
            raise UserError(f"--problem {asked}: the labels of {where} are lists: leave it out or say multilabel.")
        return _classes("multilabel", values, where, "labels are lists", names, separator)
    if asked == "regression":
        return _regression(values, where, "--problem regression")
    if asked is not None:
        return _classes("multilabel" if asked == "multilabel" else "classification", values, where,
                        f"--problem {asked}", names, separator)  # fmt: skip
    if names is not None:
        return _classes("classification", values, where, "the data set names its classes", names, separator)
    _check_types(values, where)
    kind, rule = _decide(values, separator)
    if kind == "regression":
        return _regression(values, where, rule)
    return _classes(kind, values, where, rule, None, separator)


def _decide(values: Sequence[Any], separator: str) -> tuple[Kind, str]:
    comma = _has_commas(values)
    numbers = [as_number(value, comma=comma) for value in values if not isinstance(value, bool)]
    if not numbers or any(math.isnan(number) for number in numbers):
        parts = [part for text in {str(value) for value in values} for part in split_label(text, separator)]
        if any(separator in str(value) for value in values) and len(set(parts)) < len(parts):  # a part is there twice
            return "multilabel", f"labels hold several names, with {separator!r} between them"
        return "classification", "labels are names" if numbers else "labels are true or false"
    if all(_is_integer(value) for value in values):
        return "classification", "labels are whole numbers, each of them a class"
    counts = Counter(numbers)
    whole = all(number.is_integer() for number in counts)
    if whole and len(counts) <= FEW and min(counts.values()) > 1:
        return "classification", f"labels are whole numbers of at most {FEW} values, each of them a class"
    return "regression", "labels are numbers with decimals" if not whole else "labels are numbers of many values"


def _regression(values: Sequence[Any], where: str, rule: str) -> Problem:
    problem = Problem("regression", [], rule, comma=_has_commas(values))
    numbers = [problem.number(value) for value in values]
    bad = next((row for row, number in enumerate(numbers) if not math.isfinite(number)), None)
    if bad is not None:
        raise UserError(f"{where}, row {bad}: a number is needed for regression, got {values[bad]!r:.60}.")
    if len(set(numbers)) < 2:
        raise UserError(f"{where}: every label is {numbers[0]:g}, so that there is nothing to learn.")
    if problem.comma:
        problem.rule += ", with a decimal comma"
    return problem


def _classes(
    kind: Kind, values: Sequence[Any], where: str, rule: str, names: Sequence[str] | None, separator: str
) -> Problem:
    draft = Problem(kind, [], rule, separator=separator)
    parts = [part for value in values for part in (split_label(value, separator) if kind == "multilabel" else [value])]
    draft.numeric = bool(parts) and names is None and all(_is_whole(part) for part in parts)
    counts = Counter(class_name(part) if draft.numeric else str(part) for part in parts)
    if draft.numeric and rule != f"--problem {kind}" and (large := max(map(int, counts))) > LARGEST_ID:
        raise UserError(
            f"{where}: label {large} is above {LARGEST_ID:,}, so it is no class: "
            "add --problem regression to predict the number, or --problem classification if it is one."
        )
    draft.names = list(names) if names is not None else sorted(counts, key=int if draft.numeric else None)
    if len(counts) < (1 if kind == "multilabel" else 2):
        raise UserError(f"{where} has labels of one class only ({', '.join(counts)}): at least 2 are needed.")
    if kind == "classification" and len(counts) == len(values) > 2:
        number = ", or --problem regression if they are numbers to predict" if draft.numeric else ""
        raise UserError(
            f"{where}: all {len(values):,} labels are different, so they are no classes: "
            f"--label_column names another column{number}."
        )
    draft.warnings = _lookalikes(counts if names is None else Counter(draft.names), parts if draft.numeric else [])
    return draft


def _lookalikes(counts: Counter[str], written: Sequence[Any]) -> list[str]:
    """Say which classes differ in spaces or capitals only, and which numbers are written in several ways."""
    groups: dict[str, list[str]] = {}
    for name in counts:
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    found = [
        f"{' and '.join(f'{name!r} ({counts[name]:,})' for name in group)} are classes of their own, as written"
        for group in groups.values()
        if len(group) > 1
    ]
    spellings: dict[str, set[str]] = {}
    for part in written:
        spellings.setdefault(class_name(part), set()).add(str(part))
    return found + [
        f"{', '.join(map(repr, sorted(texts)))} are one class, {name}"
        for name, texts in spellings.items()
        if len(texts) > 1
    ]


def _check_types(values: Sequence[Any], where: str) -> None:
    """Refuse names among numbers: a class called "3" may be meant, or a cell that went wrong."""
    kinds: dict[str, int] = {}
    for row, value in enumerate(values):
        is_number = not isinstance(value, bool) and not math.isnan(as_number(value, comma=True))
        typed = isinstance(value, (int, float)) and not isinstance(value, bool)
        kinds.setdefault(
            "true or false" if isinstance(value, bool) else "numbers" if is_number or typed else "texts", row
        )
    if len(kinds) > 1:
        shown = " and ".join(f"{kind} (row {row}: {values[row]!r:.40})" for kind, row in kinds.items())
        raise UserError(
            f"{where} has labels of mixed types, {shown}: correct them, or add --problem classification to take each "
            "as the name of a class."
        )


def split_label(value: Any, separator: str) -> list[Any]:
    """Return the parts of a label that may hold several: a list, a list as JSON, or a text with a separator."""
    if isinstance(value, (list, tuple, set)):
        return list(value)
    if isinstance(value, str):
        parts = _json_list(value)
        return parts if parts is not None else [part.strip() for part in value.split(separator) if part.strip()]
    return [value]


def _json_list(text: str) -> list[Any] | None:
    """Return the list in a text such as ["a", "b"] or, as pandas writes it, ['a', 'b']."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        inner = [part.strip() for part in text[1:-1].split(",") if part.strip()]
        quoted = all(len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" for part in inner)
        return [part[1:-1] for part in inner] if quoted else None


def as_number(value: Any, *, comma: bool = False) -> float:
    """Return a label as a number, NaN if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value.replace(",", ".") if comma and isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return math.nan


def class_name(value: Any) -> str:
    """Return the name of a class that is a whole number: "5" for 5, "5", " 5" and 5.0."""
    return str(int(value if _is_integer(value) else float(value)))  # a float would merge ids of more than 15 digits


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return _WHOLE.fullmatch(value.strip()) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_integer(value) or (not isinstance(value, bool) and as_number(value).is_integer())


def _all_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _has_commas(values: Sequence[Any]) -> bool:
    """Say whether these are decimals with a comma. 1,500 alone could be thousands, which float() then refuses."""
    found = [value.strip() for value in values if isinstance(value, str) and "," in value]
    if not found or not all(re.fullmatch(r"[-+]?\d*,\d+", value) for value in found):
        return False
    return not any("." in str(value) for value in values) and not all(re.fullmatch(r".*,\d{3}", v) for v in found)


def describe(value: Any) -> str:
    """Return a label as it is shown to people."""
    return one_line(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value, 60)
