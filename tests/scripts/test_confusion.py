# SPDX-License-Identifier: Apache-2.0
"""Are the classes in the table those that were confused, on a screen of any width?"""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from hf_sam.cli.common.confusion import confusion
from hf_sam.cli.common.judged import Judged


def shown(given: list[str], predicted: list[str], names: list[str], width: int = 80) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width)
    zeros = np.zeros(len(given))
    table = confusion(Judged("classification", given, predicted, zeros, zeros, zeros), names, width)
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_matrix_of_few_classes() -> None:
    lines = shown(["a", "a", "b", "b", "b"], ["a", "b", "b", "b", "a"], ["a", "b"])
    assert lines[-3:] == [["a", "b"], ["a", "1", "1"], ["b", "1", "2"]]


def test_names_that_are_too_long_for_the_screen_become_numbers() -> None:
    names = [f"class-{letter * 15}" for letter in "abcdef"]
    lines = shown(names, names[1:] + names[:1], names, width=50)
    assert lines[-7] == list("012345")
    assert lines[-1] == ["5", names[5], "1", *"·" * 5]


def test_of_many_classes_the_most_confused_pairs() -> None:
    names = [str(number) for number in range(40)]
    lines = shown(["3"] * 4 + ["7"] * 2 + names, ["5"] * 4 + ["9"] * 2 + names, names)
    assert lines[-2:] == [["3", "5", "4", "80%"], ["7", "9", "2", "67%"]]


def test_many_classes_without_a_mistake_have_no_table() -> None:
    names = [str(number) for number in range(40)]
    assert shown(names, names, names) == [["None"]]


def test_brackets_in_a_name_are_no_markup() -> None:
    assert shown(["[red]"], ["b"], ["[red]", "b"])[-2] == ["[red]", "·", "1"]
