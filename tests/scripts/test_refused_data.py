# SPDX-License-Identifier: Apache-2.0
"""Does each kind of data that cannot be trained on end in one line with the place, the rule and the way out?

Status 2 and nothing written: the readers themselves are tested in `reading/`, the rules of labels in `test_target.py`.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from transformers import BertTokenizerFast

from tests.scripts.conftest import WORDS

Refuses = Callable[..., None]
ROWS = [[f"the film {WORDS[row % 10]}", "ab"[row % 2]] for row in range(12)]
VIT = '{"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}'


@pytest.fixture
def argv(bert: Path, tmp_path: Path) -> Any:
    yield ["--task", "text", "--model_name_or_path", bert, "--use_cpu", "--output_dir", tmp_path / "out"]
    assert not (tmp_path / "out").exists()


def as_csv(rows: list[list[Any]], header: tuple[str, ...] = ("text", "label")) -> bytes:
    return "\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]).encode()


def as_parquet() -> bytes:
    written = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [text for text, _ in ROWS], "label": [n for _, n in ROWS]}), written)
    return written.getvalue()


def labelled(*labels: Any) -> bytes:
    return as_csv([[text, labels[row % len(labels)]] for row, (text, _) in enumerate(ROWS)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", as_csv([["a", "b", "c"]] * 4, ("text", "klass", "more")), ["text, klass, more", "--label_column"]),
        ("x.csv", b"", ["is empty", "header"]),
        ("x.csv", b"text,label\n", ["is empty", "at least one row"]),
        ("x.json", b"[]", ["is empty", "at least one row"]),
        ("x.jsonl", b"\n", ["is empty", "at least one row"]),
        ("x.csv", labelled("a"), ["'label'", "one class only (a)", "at least 2", "--label_column"]),
        ("x.csv", labelled(*(f"id {row}" for row in range(12))), ["'label'", "all 12 labels", "--label_column"]),
        ("x.csv", labelled(3, "b"), ["'label'", "mixed types", "row 1: 'b'", "--problem classification"]),
        ("x.csv", labelled(5, 2_000_000, 7), ["'label', row 1", "1,000,000", "--problem regression"]),
        ("x.json", json.dumps([{"text": 5, "label": "a"}, {"text": "b", "label": "b"}]).encode(),
         ["row 0", "'text' must be text, got 5"]),
        ("x.csv", "text,label\nфильм хороший,a\nфильм,b\n".encode("cp1251"), ["line 2", "neither", "--encoding"]),
        ("x.parquet", as_parquet()[:-100], ["cannot be read", "copy it again"]),
        ("x.csv.gz", gzip.compress(as_csv(ROWS), mtime=0)[:-10], ["cannot be read", "copy it again"]),
        ("x.csv", as_csv([["", "a"], *ROWS]), ["row 0", "'text'", "--drop_empty_texts"]),
    ],
)  # fmt: skip
def test_texts(refuses: Refuses, argv: list[Any], tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    refuses([*argv, "--train_file", tmp_path / name], f"--train_file {tmp_path / name}", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (as_csv(ROWS, ("text", "klass")), ["no column 'label'", "text, klass", "--label_column"]),
        (as_csv(ROWS, ("body", "label")), ["no column 'text'", "body, label"]),
        (as_csv([*ROWS, ["the plot", "c"]]), ["'label', row 12", "'c' (1)", "a, b", "add such rows"]),
        (as_csv([*ROWS, ["the plot", ""]]), ["row 12", "'label' is missing"]),
    ],
)
def test_evaluation_texts(refuses: Refuses, argv: list[Any], tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "train.csv").write_bytes(as_csv(ROWS))
    (tmp_path / "dev.csv").write_bytes(content)
    files = ["--train_file", tmp_path / "train.csv", "--validation_file", tmp_path / "dev.csv"]
    refuses([*argv, *files], f"--validation_file {tmp_path / 'dev.csv'}", *words)


@pytest.fixture
def train(tmp_path: Path) -> list[Any]:
    (tmp_path / "train.csv").write_bytes(as_csv(ROWS))
    return ["--train_file", tmp_path / "train.csv"]


def tokenizer_of(words: list[str], folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_tokenizer_that_does_not_fit(refuses: Refuses, argv: list[Any], train: list[Any], tmp_path: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    larger = tokenizer_of([*special, *WORDS, *(f"word{n}" for n in range(9))], tmp_path / "larger")
    refuses([*argv, *train, "--tokenizer_name", larger], "24 tokens, the model only 15", "leave --tokenizer_name out")
    turned = tokenizer_of([*special, *reversed(WORDS)], tmp_path / "turned")
    refuses([*argv, *train, "--tokenizer_name", turned], f"--tokenizer_name {turned} does not fit",
            "10 of 15 tokens have another number", "leave --tokenizer_name out")  # fmt: skip


def relabelled(bert: Path, folder: Path) -> Path:
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_model_of_other_classes(
    refuses: Refuses, argv: list[Any], train: list[Any], bert: Path, tmp_path: Path
) -> None:
    other = ["--model_name_or_path", relabelled(bert, tmp_path / "other")]
    refuses([*argv, *train, *other], "--model_name_or_path", "cat, dog", "a, b", "--ignore_mismatched_sizes")
    evaluated = ["--do_train", "False", "--validation_file", tmp_path / "train.csv"]
    refuses([*argv, *other, *evaluated], "row 0", "labels that the model lacks: 'a' (6), 'b' (6)", "cat, dog")


@pytest.mark.slow
def test_a_checkpoint_of_other_classes(
    run: Any, refuses: Refuses, bert: Path, train: list[Any], tmp_path: Path
) -> None:
    argv = ["--task", "text", "--model_name_or_path", bert, "--use_cpu", "--output_dir", tmp_path / "run"]
    argv += ["--max_steps", 2, "--save_strategy", "steps", "--save_steps", 2, "--do_eval", "False"]
    assert run(*argv, *train)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for labels in ("cd", "abc"):
        (tmp_path / "train.csv").write_bytes(labelled(*labels))
        again = [*argv, *train, "--resume_from_checkpoint", "True"]
        refuses(again, "--resume_from_checkpoint", "another model: id2label is {0: 'a', 1: 'b'} there", "{0: ")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "csv", "parquet"])
def test_a_text_that_is_called_an_image(refuses: Refuses, tmp_path: Path, kind: str) -> None:
    names = [f"{name}/{number}.png" for name in "ab" for number in range(4)]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "b" / "2.png").write_text("just a text", encoding="utf-8")
    labels = [name[0] for name in names]
    if kind == "parquet":
        files = [{"bytes": (tmp_path / "photos" / name).read_bytes(), "path": None} for name in names]
        parquet.write_table(pyarrow.table({"image": files, "label": labels}), tmp_path / "photos.parquet")
    rows = [[f"photos/{name}", label] for name, label in zip(names, labels, strict=True)]
    (tmp_path / "photos.csv").write_bytes(as_csv(rows, ("image", "label")))
    given = ["--train_dir", tmp_path / "photos"] if kind == "folder" else ["--train_file", tmp_path / f"photos.{kind}"]
    argv = ["--task", "image", "--model_type", "vit", "--config_overrides", VIT, "--use_cpu"]
    where = "row 6 (no image)" if kind == "parquet" else "b/2.png (no image)"
    refuses([*argv, *given, "--output_dir", tmp_path / "out"], f"{given[0]} {given[1]}", "1 of 8 images", where)
    assert not (tmp_path / "out").exists()
