# SPDX-License-Identifier: Apache-2.0
"""Is a csv file read as its writer meant it, record by record, or refused with the line?"""

from __future__ import annotations

import csv
import io

import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.separated import read_separated
from tests.looped import looped


def read(text: str, separator: str | None = None, *, tabs: bool = False) -> dict[str, list[str]]:
    return read_separated(text, "x.csv", separator, tabs=tabs)[0]


@looped
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_the_csv_module_writes_comes_back(mark: str, end: str) -> None:
    texts = ["plain", "a, b; c | d", 'she said "no"', "two\nlines", "", " spaces ", "naïve 😀", "null", "x" * 200_000]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=mark, lineterminator=end).writerows([["text", "label"], *([t, "1"] for t in texts)])
    assert read(file.getvalue()) == {"text": texts, "label": ["1"] * len(texts)}


@looped
@pytest.mark.parametrize(
    ("text", "columns"),
    [
        # Quotes that are characters: every line is a record without them, and fewer are with them.
        ('text\tlabel\n"good film\t1\nbad"\t0\n', {"text": ['"good film', 'bad"'], "label": ["1", "0"]}),
        ('text\tlabel\n"Good" he said\t1\n', {"text": ['"Good" he said'], "label": ["1"]}),
        ('text\tlabel\n5" disk\t1\n', {"text": ['5" disk'], "label": ["1"]}),
        ('text\tlabel\n"in quotes"\t1\n', {"text": ["in quotes"], "label": ["1"]}),
        # One column holds whatever a line holds.
        ("text\nwell, well; well\n", {"text": ["well, well; well"]}),
        ('text\n"two\nlines"\n', {"text": ["two\nlines"]}),
        ("sep=;\ntext;label\na,b;1\n", {"text": ["a,b"], "label": ["1"]}),
        ("text, label\na, 1\n", {"text": ["a"], "label": [" 1"]}),
        (",text\n0,a\n", {"column 1": ["0"], "text": ["a"]}),
        ("text,label\ra,1\rb,2\r", {"text": ["a", "b"], "label": ["1", "2"]}),
        ("\n\ntext,label\n\na,1\n\n", {"text": ["a"], "label": ["1"]}),
        ("text;label\n1,5;a\n2,5;b\n", {"text": ["1,5", "2,5"], "label": ["a", "b"]}),
        ("text,note;label\na,b;c\n", {"text": ["a"], "note;label": ["b;c"]}),
    ],
)
def test_a_file_is_read_as_it_was_meant(text: str, columns: dict[str, list[str]]) -> None:
    assert read(text) == columns


def test_the_separator_can_be_named() -> None:
    assert read("text~label\na,b~1\n", "~") == {"text": ["a,b"], "label": ["1"]}
    assert read("text\tlabel\na,b\t1\n", "tab") == {"text": ["a,b"], "label": ["1"]}


@looped
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,label\na,1\nb,c,1\n", ["line 3", "3 fields", "the header has 2", "--separator"]),
        ("text,label\na\n", ["line 2", "1 fields"]),
        ('text,label\n"a,1\nb\n', ["a double quote is not closed"]),
        ('text,label\n"a, b" c,1\n', ["line 2", "double quote"]),
        ("text,label,text\na,1,b\n", ["two columns called 'text'"]),
        (" \n", ["is empty"]),
    ],
)
def test_a_file_that_is_not_regular_is_refused_with_the_line(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    assert not [word for word in ["x.csv", *words] if word not in str(caught.value)], caught.value
