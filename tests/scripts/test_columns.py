# SPDX-License-Identifier: Apache-2.0
"""Are the columns of text and label those that a person would point at, and asked for where it is open?"""

from __future__ import annotations

from typing import Any

import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.columns import find_columns
from hf_sam.cli.common.reading.tables import Table
from tests.looped import looped


def table(header: str, **values: list[Any]) -> Table:
    columns = {name: values.get(name, [f"{name} one", f"{name} two"]) for name in header.split(",")}
    return Table("x.csv", columns)


@looped
@pytest.mark.parametrize(
    ("header", "texts", "labels"),
    [
        ("text,label", ["text"], ["label"]),
        ("id,Review,Sentiment", ["Review"], ["Sentiment"]),
        ("index,subject,body,queue,created_at", ["body"], ["queue"]),
        ("sentence1,sentence2,score", ["sentence1", "sentence2"], ["score"]),
        ("premise,hypothesis,gold_label,label", ["premise", "hypothesis"], ["label"]),
        ("Question 1,Question 2,is_duplicate", ["Question 1", "Question 2"], ["is_duplicate"]),
        ("column 1,beanstandung,abteilung_text,label", None, None),
        ("beanstandung,label", ["beanstandung"], ["label"]),
        ("text,abteilung", ["text"], ["abteilung"]),
        ("review.text,review.by", ["review.text"], ["review.by"]),
    ],
)
def test_columns_by_their_names(header: str, texts: list[str] | None, labels: list[str] | None) -> None:
    if texts is None:
        with pytest.raises(UserError, match=r"x\.csv: which column holds the text\? It has .*--text_column"):
            find_columns(table(header))
    else:
        found = find_columns(table(header))
        assert (found.texts, found.labels) == (texts, labels)


def test_columns_of_0_and_1_are_labels_of_their_own() -> None:
    found = find_columns(table("id,comment_text,toxic,rude", toxic=["0", "1"], rude=["1", "1"]))
    assert (found.texts, found.labels) == (["comment_text"], ["toxic", "rude"])


def test_named_columns_win() -> None:
    both = find_columns(table("text,title,label,kind"), text="title", pair="text", label="kind")
    assert (both.texts, both.labels) == (["title", "text"], ["kind"])
    several = find_columns(table("text,a,b"), label_columns=["a", "b"])
    assert several.labels == ["a", "b"]


@looped
@pytest.mark.parametrize(
    ("header", "named", "words"),
    [
        ("text,label", {"text": "words"}, ["--text_column words", "has the columns text, label"]),
        ("text,label", {"label_columns": ["label", "x"]}, ["--label_columns x"]),
        ("text,label", {"text": "text", "label": "text"}, ["'text' cannot be two things"]),
        ("text,a,b", {}, ["no column of labels found", "text, a, b", "--label_column"]),
    ],
)
def test_what_is_open_is_asked_for(header: str, named: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        find_columns(table(header), **named)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_a_file_without_a_header_is_not_guessed_at() -> None:
    rows = {"text": ["good", "bad"], "positive": ["positive", "negative"]}
    with pytest.raises(UserError, match="the first line has to name the columns"):
        find_columns(Table("x.csv", rows))
