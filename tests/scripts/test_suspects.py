# SPDX-License-Identifier: Apache-2.0
"""Are the suspects the labels that the model contradicts, by the rows of the user's file?"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.judged import judge
from hf_sam.cli.common.noise import flip_labels
from hf_sam.cli.common.origins import Origin
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.common.suspects import Suspects, keep_private
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.base import hold_out
from hf_sam.cli.tasks.digits import digits
from tests.scripts.conftest import WORDS

Run = Callable[..., tuple[int, str]]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def built(*arguments: Any) -> Any:
    args, training = parse([str(a) for a in arguments], {name: entry.defaults for name, entry in TASKS.items()})
    task = TASKS[args.task].build(args, training)
    hold_out(task, args.hold_out)
    return task


def suspects(truth: list[int] | None = None) -> Suspects:
    logits = np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    labels = [0, 1, 0, 1]
    judged = judge(EvalPrediction(logits, np.array(labels)), {0: "ham", 1: "spam"})
    assert judged is not None
    texts = ["a", 'two\nlines, "quoted"', "ü", "=1+1"]
    return Suspects(judged, Origin("--train_file a.csv", [4, 7, 9, 12], [texts], truth=truth), labels)


def test_the_file_holds_the_rows_that_are_contradicted_the_surest_first(tmp_path: Path) -> None:
    rows = read(suspects().write(tmp_path))
    assert [row["row"] for row in rows] == ["12", "7", "9"]
    assert rows[1] == {
        "row": "7", "text": 'two\nlines, "quoted"', "given": "spam", "predicted": "ham", "confidence": "0.9526"
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["suspects.csv"]


def test_what_was_flipped_on_purpose_is_counted() -> None:
    assert suspects().facts() == {"suspects": 3}
    facts = suspects(truth=[1, 0, 0, 0]).facts()  # rows 0, 1 and 3 are wrong; 1, 2 and 3 are in the list
    assert facts == {"suspects": 3, "suspects_precision": pytest.approx(2 / 3), "suspects_recall": pytest.approx(2 / 3)}


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "suspects.csv").mkdir()
    with pytest.raises(UserError, match=r"suspects\.csv cannot be written.*The model is saved"):
        suspects().write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["suspects.csv"]


def test_an_earlier_file_is_never_pushed(tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("row\n")
    training = SimpleNamespace(do_train=False, push_to_hub=False, should_save=True)
    keep_private(tmp_path, training)
    assert path.exists()
    training.push_to_hub = True
    with pytest.raises(UserError, match="--push_to_hub would publish"):
        keep_private(tmp_path, training)
    training.do_train = True
    keep_private(tmp_path, training)
    assert not path.exists()


@pytest.mark.parametrize("more", [[], ["--max_train_samples", 9], ["--hold_out", 0.3], ["--drop_empty_texts"]], ids=str)
def test_rows_are_those_of_the_file(more: list[Any], bert: Path, write_csv: Any) -> None:
    rows = [[f"{WORDS[row % 10]} {row}", "ab"[row % 2]] for row in range(20)]
    if more == ["--drop_empty_texts"]:
        rows[3][0] = ""
    path = write_csv("a.csv", ["text", "label"], rows)
    task = built("--task", "text", "--model_name_or_path", bert, "--train_file", path, "--use_cpu", *more)
    for split in ("train", "validation"):
        origin = task.origins[split]
        assert [origin.text(place) for place in range(len(origin.rows))] == [rows[row][0] for row in origin.rows]
    assert len(task.origins["train"].rows) == len(task.train)
    assert not set(task.origins["train"].rows) & set(task.origins["validation"].rows)


def test_rows_of_a_glue_task_are_those_of_the_file(sst2: list[Any], reviews: Path) -> None:
    task = built(*sst2, "--max_train_samples", 5, "--label_noise", 0.4)
    origin = task.origins["train"]
    labels = [int(row["label"]) for row in read(reviews)]
    assert origin.truth == [labels[row] for row in origin.rows]
    assert sum(a != b for a, b in zip(origin.truth, task.train["labels"], strict=True)) == 2


@pytest.mark.slow
def test_a_run_on_wrong_labels_finds_more_of_them_than_chance(run: Run, tmp_path: Path) -> None:
    argv = ["--max_steps", 200, "--learning_rate", 3e-3, "--warmup_steps", 20, "--label_noise", 0.4, "--use_cpu"]
    argv += ["--sam_variant", "none", "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "True"]
    assert run(*argv, "--output_dir", tmp_path)[0] == 0
    results = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    rows = read(tmp_path / "suspects.csv")
    truth = digits()[0]["label"][:]
    given, _ = flip_labels(truth, 10, share=0.4, seed=42)
    assert len(rows) == results["suspects"]
    assert all(int(row["given"]) == given[int(row["row"])] != int(row["predicted"]) for row in rows)
    hits = sum(given[int(row["row"])] != truth[int(row["row"])] for row in rows)
    assert results["suspects_precision"] == pytest.approx(hits / len(rows))
    assert results["suspects_recall"] == pytest.approx(hits / 575)
    assert results["suspects_precision"] > 0.5  # chance is 0.4
    assert [row["confidence"] for row in rows] == sorted((row["confidence"] for row in rows), reverse=True)


@pytest.mark.slow
def test_numbers_are_sorted_by_their_error_and_no_list_is_written_without_the_wish(
    run: Run, bert: Path, write_csv: Any, tmp_path: Path
) -> None:
    path = write_csv("a.csv", ["text", "score"], [[WORDS[row % 10], row / 7] for row in range(14)])
    argv = ["--task", "text", "--model_name_or_path", bert, "--train_file", path, "--use_cpu", "--disable_tqdm", "True"]
    argv += ["--num_train_epochs", 1, "--validation_file", path]
    assert run(*argv, "--output_dir", tmp_path / "a")[0] == 0
    errors = [abs(float(row["residual"])) for row in read(tmp_path / "a" / "suspects.csv")]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 14
    assert run(*argv, "--output_dir", tmp_path / "b", "--suspects", "False")[0] == 0
    assert not (tmp_path / "b" / "suspects.csv").exists()
