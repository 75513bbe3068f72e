# SPDX-License-Identifier: Apache-2.0
"""Is what is to be predicted found in the labels by the rule that is said, and refused where there is no rule?"""

from __future__ import annotations

from typing import Any

import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.held_out import held_out_rows
from hf_sam.cli.common.labels import encode, label_values
from hf_sam.cli.common.problem import find_problem
from hf_sam.cli.common.reading.tables import Table
from tests.looped import looped


@looped
@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (["b", "a", "b", "a"], "classification", ["a", "b"]),
        (["NA", "null", "NA", "null"], "classification", ["NA", "null"]),
        ([203094, 0, 5, 5, 0], "classification", ["0", "5", "203094"]),
        (["10", "9", "10", "9"], "classification", ["9", "10"]),
        ([True, False, True], "classification", ["False", "True"]),
        (["true", "false", "true"], "classification", ["false", "true"]),
        ([1.0, 2.0, 5.0] * 3, "classification", ["1", "2", "5"]),
        (["1.0", "2.0", "5.0"] * 3, "classification", ["1", "2", "5"]),
        ([1.0, 2.5, 5.0] * 3, "regression", []),
        (["0.5", "1", "1"], "regression", []),
        (["0,5", "1,25", "1"], "regression", []),
        ([float(n) for n in range(30)] * 2, "regression", []),
        (["a|b", "a", "b", "c|a"], "multilabel", ["a", "b", "c"]),
        (["a|b", "c", "a", "c"], "multilabel", ["a", "b", "c"]),
        (["x|y", "z", "x|y"], "classification", ["x|y", "z"]),  # a bar in a name: no part is there twice
        ([["a", "b"], [], ["b"]], "multilabel", ["a", "b"]),
        ([[3, 1], [1]], "multilabel", ["1", "3"]),
        (['["a", "b"]', "[]", '["b"]'], "multilabel", ["a", "b"]),
        (["['a', 'b']", "['b']"], "multilabel", ["a", "b"]),
    ],
)
def test_the_kind_of_problem_and_its_classes(values: list[Any], kind: str, names: list[str]) -> None:
    problem = find_problem(values, "x.csv, 'label'")
    assert (problem.kind, problem.names) == (kind, names)


@looped
@pytest.mark.parametrize(
    ("values", "asked", "kind", "names"),
    [
        ([1, 2, 3, 1], "regression", "regression", []),
        ([1.5, 2.5, 1.5], "classification", "classification", ["1.5", "2.5"]),
        (["a, b", "a", "b"], "multilabel", "multilabel", ["a", "b"]),
        (["1", "1", "none", "none"], "classification", "classification", ["1", "none"]),
        ([10**18, 10**18 + 1, 10**18], "classification", "classification", [str(10**18), str(10**18 + 1)]),
        ([5_000_000, 1, 1], "classification", "classification", ["1", "5000000"]),
    ],
)
def test_the_user_decides_otherwise(values: list[Any], asked: str, kind: str, names: list[str]) -> None:
    problem = find_problem(values, "x", asked=asked, separator=",")
    assert (problem.kind, problem.names) == (kind, names)


@looped
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", "a"], ["one class only (a)"]),
        (["a", "b", "c"], ["all 3 labels are different"]),
        ([1, 2, 3], ["all 3 labels are different", "--problem regression"]),
        ([1, "x", 1, "x"], ["mixed types", "numbers (row 0: 1)", "texts (row 1: 'x')"]),
        ([True, 3, True], ["mixed types", "true or false", "row 1"]),
        ([7, 2_000_000, 7], ["2000000", "above 1,000,000", "--problem regression"]),
        ([2.5, 2.5], ["every label is 2.5"]),
        ([1.5, float("inf"), 2.5], ["row 1", "a number is needed"]),
    ],
)
def test_labels_that_are_no_problem_to_learn(values: list[Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        find_problem(values, "x.csv, 'label'")
    assert not [word for word in ["x.csv, 'label'", *words] if word not in str(caught.value)], caught.value


def test_classes_that_look_alike_stay_apart_and_are_told() -> None:
    problem = find_problem(["Billing", "billing ", "tech"] * 2, "x")
    assert problem.names == ["Billing", "billing ", "tech"]
    assert problem.warnings == ["'Billing' (2) and 'billing ' (2) are classes of their own, as written"]
    problem = find_problem(["1", " 1", "2", "01"] * 2, "x")
    assert problem.names == ["1", "2"]
    assert problem.warnings == ["' 1', '01', '1' are one class, 1"]


def test_classes_of_the_evaluation_are_those_of_the_training_data() -> None:
    problem = find_problem([0, 5, 203094] * 2, "train")
    assert encode(["5", 203094, 0.0], problem, "dev") == [1, 2, 0]
    with pytest.raises(UserError, match=r"dev, row 1: .*lack: '7' \(2\), 'x' \(1\); there are 0, 5, 203094"):
        encode([0, 7, "x", 7], problem, "dev")
    several = find_problem(["a|b", "c", "a", "c"], "train")
    assert encode(["c|a", ["b"], ""], several, "dev") == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_rows_without_a_label_are_named() -> None:
    table = Table("x.csv", {"label": ["a", "", None, float("nan"), "b"]})
    with pytest.raises(UserError, match=r"x.csv, 3 rows \(1, 2, 3\): 'label' is missing"):
        label_values(table, ["label"])
    assert label_values(table, ["label"], empty=True) == ["a", [], [], [], "b"]
    assert label_values(Table("x.csv", {"label": ["", ""]}), ["label"], optional=True) is None
    with pytest.raises(UserError, match="no column 'label'; it has text"):
        label_values(Table("x.csv", {"text": ["a"]}), ["label"])


def test_one_column_for_each_label() -> None:
    table = Table("x.csv", {"rude": ["1", "0", "True"], "long": [0, 1, True]})
    assert label_values(table, ["rude", "long"]) == [["rude"], ["long"], ["rude", "long"]]
    with pytest.raises(UserError, match="row 1: 'rude' must be 0 or 1"):
        label_values(Table("x.csv", {"rude": ["1", "2"], "long": [0, 1]}), ["rude", "long"])


def test_each_class_gives_its_share_and_a_single_example_stays() -> None:
    labels = ["a"] * 60 + ["b"] * 20 + ["c"] * 2 + ["d"]
    train, held = held_out_rows(labels, len(labels), 0.2, "x")
    assert sorted(train + held) == list(range(len(labels)))
    assert {name: sum(labels[row] == name for row in held) for name in "abcd"} == {"a": 12, "b": 4, "c": 1, "d": 0}
    assert held_out_rows(labels, len(labels), 0.2, "x") == (train, held)
    assert held != list(range(len(held)))


def test_each_of_several_labels_stays_in_the_training_data() -> None:
    labels = [[name] for name in "abcdefgh"] + [["z"]] * 12
    train, held = held_out_rows(labels, len(labels), 0.4, "x")
    assert {entry for row in train for entry in labels[row]} == set("abcdefghz")
    assert held


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="leaves a set empty"):
        held_out_rows(["a", "b"], 2, 0.1, "x")
    with pytest.raises(UserError, match="no class has two examples"):
        held_out_rows(["a", "b", "c"], 3, 0.4, "x")
