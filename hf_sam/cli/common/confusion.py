# SPDX-License-Identifier: Apache-2.0
"""Show which classes are taken for which: a matrix of few classes, of many the pairs that are confused most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hf_sam.cli.common.errors import one_line
from hf_sam.cli.common.judged import Judged

_CLASSES = 12  # of more, a matrix is no longer read
_PAIRS = 10
_NAME = 24  # characters of a class


def confusion(judged: Judged, names: Sequence[str], width: int) -> Group | None:
    """Return the table; None where there are no classes, or none was taken for another one of many.

    Args:
        judged: The examples.
        names: Of the classes, in their order.
        width: Of the screen, in characters.
    """
    if judged.kind != "classification":
        return None
    counts = Counter(zip(judged.given, judged.predicted, strict=True))
    return _matrix(counts, names, width) if len(names) <= _CLASSES else _pairs(counts)


def _matrix(counts: Counter[tuple[str, str]], names: Sequence[str], width: int) -> Group:
    short = [one_line(name, _NAME) for name in names]
    cells = [
        max(len(name), *(len(f"{counts[given, full]:,}") for given in names))
        for name, full in zip(short, names, strict=True)
    ]
    fits = max(map(len, short)) + sum(cells) + 2 * len(names) <= width
    heads = short if fits else [str(place) for place in range(len(names))]
    rows = short if fits else [f"{place} {name}" for place, name in enumerate(short)]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for row, given in zip(rows, names, strict=True):
        numbers = [(f"{counts[given, predicted]:,}" if counts[given, predicted] else "·") for predicted in names]
        styles = ["bold" if predicted == given else "" for predicted in names]
        table.add_row(Text(row), *(Text(number, style) for number, style in zip(numbers, styles, strict=True)))
    return Group(Text("\ngiven label (a line each) and prediction (a column each)", "italic"), table)


def _pairs(counts: Counter[tuple[str, str]]) -> Group | None:
    of_class: Counter[str] = Counter()
    for (given, _), count in counts.items():
        of_class[given] += count
    wrong = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]]
    if not wrong:
        return None
    table = Table(box=None, pad_edge=False)
    for name in ("given", "predicted", "times", "of the given"):
        table.add_column(name, justify="left" if name in ("given", "predicted") else "right")
    for (given, predicted), count in wrong[:_PAIRS]:
        share = f"{count / of_class[given]:.0%}"
        table.add_row(Text(one_line(given, 30)), Text(one_line(predicted, 30)), f"{count:,}", share)
    return Group(Text("\nmost confused classes", "italic"), table)
