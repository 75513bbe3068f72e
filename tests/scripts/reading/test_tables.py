# SPDX-License-Identifier: Apache-2.0
"""Are the rows of a file those that are in it, whatever it is called and however it was written?"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.reading.tables import read_table
from tests.looped import looped

ROWS = [{"text": "null", "label": "NA"}, {"text": "None", "label": "nan"}, {"text": "N/A", "label": "x"}]
COLUMNS = {"text": ["null", "None", "N/A"], "label": ["NA", "nan", "x"]}


def columns_of(path: Path) -> dict[str, list[Any]]:
    table = read_table("train_file", str(path))
    return {name: table.values(name) for name in table.names}


@looped
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\nnull,NA\nNone,nan\nN/A,x\n"),
        ("A.CSV", "text,label\nnull,NA\nNone,nan\nN/A,x\n"),
        ("a.tsv", "text\tlabel\nnull\tNA\nNone\tnan\nN/A\tx\n"),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("a.ndjson", "\n".join(map(json.dumps, ROWS)) + "\n"),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("data.json", json.dumps({"version": "1", "data": ROWS})),
        ("columns.json", json.dumps(COLUMNS)),
        ("pandas.json", pandas.DataFrame(COLUMNS).to_json()),
        ("a.txt", "__label__NA null\n__label__nan None\n__label__x N/A\n"),
        ("[1] *?.csv", "text,label\nnull,NA\nNone,nan\nN/A,x\n"),
    ],
)
def test_the_words_for_nothing_are_texts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert columns_of(tmp_path / name) == COLUMNS
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert columns_of(tmp_path / f"{name}.gz") == COLUMNS


def test_a_name_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    for name, text in (("train[1].csv", "mine"), ("train1.csv", "another"), ("train*.csv", "star")):
        (tmp_path / name).write_text(f"text\n{text}\n", encoding="utf-8")
    assert columns_of(tmp_path / "train[1].csv") == {"text": ["mine"]}
    assert columns_of(tmp_path / "train*.csv") == {"text": ["star"]}


def test_objects_in_rows_become_columns_and_gaps_are_missing(tmp_path: Path) -> None:
    rows = [{"review": {"text": "a", "by": {"age": 3}}}, {"review": {"text": "b"}, "label": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert columns_of(tmp_path / "a.jsonl") == {
        "review.text": ["a", "b"], "review.by.age": [3, None], "label": [None, 1]
    }  # fmt: skip


def test_parquet_keeps_its_classes_and_a_category_is_text(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    table = read_table("train_file", str(tmp_path / "a.parquet"))
    assert table.class_names("label") == ["no", "yes"]
    assert table.values("label") == ["yes", "no", None]  # -1 says that a row has no label
    frame = pandas.DataFrame({"text": ["a", "b"], "label": pandas.Categorical(["x", "y"])}, index=[7, 8])
    frame.to_parquet(tmp_path / "b.parquet")
    assert columns_of(tmp_path / "b.parquet")["label"] == ["x", "y"]


@looped
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.parquet", b"PAR1 cut off", ["cannot be read"]),
        ("x.json", b"{not json", ["cannot be read", "line 1"]),
        ("x.json", b'{"a": [{"t": 1}], "b": [{"t": 1}]}', ["several lists of rows (a, b)"]),
        ("x.json", b'{"a": {"b": [1]}, "c": 3}', ["holds no rows"]),
        ("x.json", b"[1, 2]", ["row 0", "an object"]),
        ("x.json", b"[]", ["is empty"]),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', ["line 2"]),
        ("x.jsonl", b'{"text": "a", "text": "b"}\n', ["line 1", "'text' twice"]),
        ("x.csv", b"text,label\n", ["is empty"]),
        ("x.csv", b"", ["is empty"]),
        ("x.csv.gz", b"no gzip", ["cannot be read"]),
        ("x.xlsx", b"PK", ["save it as csv"]),
        ("x.doc", b"", ["must end in .parquet, .csv"]),
    ],
)
def test_a_bad_file_ends_in_one_line(name: str, content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_table("train_file", str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert not [word for word in ["--train_file", name, *words] if word not in str(caught.value)], caught.value


def test_a_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"text": ["a"] * 100}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read_table("train_file", str(path))
