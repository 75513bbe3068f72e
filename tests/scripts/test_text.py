# SPDX-License-Identifier: Apache-2.0
"""Does a file of one's own become a trained model, with nothing said but its name?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, pipeline

from hf_sam.cli.common.parsing import parse
from hf_sam.cli.tasks import TASKS
from tests.scripts.conftest import WORDS
from tests.scripts.hub_cards import card_errors

Run = Callable[..., tuple[int, str]]
TICKETS = [
    [f"{row}", f"the {WORDS[row % 10]} film\n“Größe”; {row}", ["billing", "technical", "other"][row % 3]]
    for row in range(30)
]


@pytest.fixture
def argv(bert: Path, tmp_path: Path) -> list[Any]:
    arguments = ["--task", "text", "--model_name_or_path", bert, "--output_dir", tmp_path / "out"]
    return [*arguments, "--num_train_epochs", 1, "--use_cpu", "--disable_tqdm", "True", "--rho", 0.05]


def built(*arguments: Any) -> Any:
    return TASKS["text"].build(*parse([str(argument) for argument in arguments], {"text": TASKS["text"].defaults}))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """Support tickets as Excel writes them in Germany."""
    text = "".join(";".join(f'"{cell}"' for cell in row) + "\r\n" for row in [["id", "body", "queue"], *TICKETS])
    (tmp_path / "tickets.csv").write_bytes(text.encode("cp1252"))
    return tmp_path / "tickets.csv"


@pytest.mark.slow
def test_a_csv_of_tickets_needs_no_other_argument(
    run: Run, bert: Path, tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--task", "text", "--train_file", tickets.name, "--model_name_or_path", bert, "--compare")[0] == 0
    folder = tmp_path / "outputs" / "text-sam"
    found = results(folder)
    assert {"plain_eval_accuracy", "plain_eval_loss", "plain_train_runtime"} <= found.keys()
    assert (folder / "_plain" / "model.safetensors").is_file()
    assert (folder / "suspects.csv").read_text(encoding="utf-8").startswith("row,text,given,predicted,confidence\n")
    assert card_errors((folder / "README.md").read_text(encoding="utf-8")) == []
    assert {f"eval_{name}" for name in ("accuracy", "macro_f1", "micro_f1", "matthews_correlation")} <= found.keys()
    assert (found["train_samples"], found["eval_samples"]) == (26, 4)
    assert AutoConfig.from_pretrained(folder).id2label == {0: "billing", 1: "other", 2: "technical"}
    assert pipeline("text-classification", model=str(folder), device="cpu")("a film")[0]["label"] in {
        "billing", "other", "technical"
    }  # fmt: skip


@pytest.mark.slow
def test_several_labels_are_predicted_as_they_are_written(run: Run, argv: list[Any], tmp_path: Path) -> None:
    rows = [{"text": f"a {WORDS[n % 2]} film", "tags": [["x"], ["x", "y"], []][n % 3]} for n in range(12)]
    path = write(tmp_path / "a.jsonl", rows)
    more = ["--validation_file", path, "--do_predict", "--test_file", path, "--class_weights", "balanced"]
    best = ["--load_best_model_at_end", "--metric_for_best_model", "micro_f1"]
    assert run(*argv, "--train_file", path, *more, *best)[0] == 0
    assert {"eval_micro_f1", "eval_macro_f1", "eval_accuracy", "eval_auc"} <= results(tmp_path / "out").keys()
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.problem_type, config.id2label) == ("multi_label_classification", {0: "x", 1: "y"})
    lines = (tmp_path / "out" / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    assert {line.split("\t")[1] for line in lines[1:]} <= {"", "x", "y", "x|y"}


@pytest.mark.slow
def test_numbers_are_learnt_and_the_best_error_is_the_smallest(run: Run, argv: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text1": "a film", "text2": WORDS[n], "score": n / 3} for n in range(10)])
    best = ["--load_best_model_at_end", "--metric_for_best_model", "mae", "--num_train_epochs", 3]
    assert run(*argv, "--train_file", path, "--validation_file", path, *best)[0] == 0
    assert {"eval_pearson", "eval_spearmanr", "eval_mae", "eval_rmse"} <= results(tmp_path / "out").keys()
    states = sorted((tmp_path / "out").glob("checkpoint-*/trainer_state.json"), key=lambda p: p.stat().st_mtime)
    state = json.loads(states[-1].read_text(encoding="utf-8"))
    assert state["best_metric"] == min(entry["eval_mae"] for entry in state["log_history"] if "eval_mae" in entry)


def test_a_trained_model_keeps_the_order_of_its_classes(argv: list[Any], bert: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    for file in bert.iterdir():
        (trained / file.name).write_bytes(file.read_bytes())
    config = AutoConfig.from_pretrained(bert)
    config.id2label, config.label2id = {0: "spam", 1: "ham"}, {"spam": 0, "ham": 1}
    config.save_pretrained(trained)
    path = write(tmp_path / "a.jsonl", [{"text": f"film {n}", "label": ["ham", "spam"][n % 2]} for n in range(8)])
    task = built(*argv, "--train_file", path, "--model_name_or_path", trained, "--validation_file", path)
    assert task.model.config.id2label == {0: "spam", 1: "ham"}
    assert list(task.train["labels"]) == [1, 0] * 4


@pytest.mark.slow
def test_a_trained_model_of_other_classes_needs_a_new_head(
    refuses: Any, argv: list[Any], bert: Path, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(bert)
    config.id2label, config.label2id = {0: "spam", 1: "ham"}, {"spam": 0, "ham": 1}
    path = write(tmp_path / "a.jsonl", [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(8)])
    (tmp_path / "trained").mkdir()
    for file in bert.iterdir():
        (tmp_path / "trained" / file.name).write_bytes(file.read_bytes())
    config.save_pretrained(tmp_path / "trained")
    more = [*argv, "--train_file", path, "--validation_file", path, "--model_name_or_path", tmp_path / "trained"]
    refuses(more, "was trained on the classes spam, ham", "the data have a, b", "--ignore_mismatched_sizes")
    old = built(*argv, "--train_file", path, "--validation_file", path).model
    new = built(*more, "--ignore_mismatched_sizes").model
    assert new.config.id2label == {0: "a", 1: "b"}
    assert not new.classifier.weight.equal(old.classifier.weight)
    assert new.bert.pooler.dense.weight.equal(old.bert.pooler.dense.weight)


@pytest.mark.slow
def test_a_trained_model_is_evaluated_and_predicts_with_its_own_classes(
    run: Run, argv: list[Any], tickets: Path, tmp_path: Path
) -> None:
    assert run(*argv, "--train_file", tickets)[0] == 0
    (tmp_path / "new.txt").write_text("a film\nthe plot\n", encoding="utf-8")
    more = ["--do_train", "False", "--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "again"]
    more += ["--validation_file", tickets, "--do_predict", "--test_file", tmp_path / "new.txt"]
    assert run(*argv, *more)[0] == 0
    assert results(tmp_path / "again")["eval_samples"] == 30
    lines = (tmp_path / "again" / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3


@pytest.mark.slow
def test_texts_in_folders_are_predicted_with_their_names(run: Run, argv: list[Any], tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "mails [1]" / ("spam", "test")[number % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{WORDS[number]} film", encoding="utf-8")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "b.txt").write_text("good", encoding="utf-8")
    predict = ["--do_predict", "--test_dir", tmp_path / "new"]
    assert run(*argv, "--train_dir", tmp_path / "mails [1]", *predict)[0] == 0
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "spam", 1: "test"}
    line = (tmp_path / "out" / "predictions.tsv").read_text(encoding="utf-8").splitlines()[1]
    assert line in {"0\tspam\tb.txt", "0\ttest\tb.txt"}


@pytest.mark.parametrize(
    ("rows", "extra", "words"),
    [
        ([["good", "a"], ["", "b"], [" ", "a"], ["bad", "b"]], [], ["2 rows (1, 2)", "'text'"]),
        ([["good", "a"], ["bad", "b"]] * 4, ["--metric_for_best_model", "f1", "--early_stopping_patience", 1],
         ["--metric_for_best_model f1", "macro_f1"]),
        ([["good", "0.5"], ["bad", "1"]] * 4, ["--class_weights", "balanced"], ["--class_weights", "numbers"]),
        ([["good", "a|b"], ["bad", "b"]] * 4, ["--label_smoothing_factor", 0.1], ["one class a row", "multilabel"]),
        ([["good", "0.5"], ["bad", "1"]] * 4, ["--label_noise", 0.2], ["--label_noise", "regression"]),
        ([["good " * 40, "a"], ["bad", "b"]] * 4, [], ["--max_length 128", "at most 32", "--max_length 32"]),
        ([["good", "a"], ["bad", "b"]] * 4, ["--problem", "sorting"], ["--problem", "classification or multilabel"]),
        ([["good", "a"], ["bad", "b"]] * 4, ["--do_predict"], ["--do_predict needs texts"]),
        ([["good", "a"], ["bad", "b"]], [], ["leaves a set empty"]),
    ],
)  # fmt: skip
def test_bad_input(
    refuses: Any, argv: list[Any], write_csv: Any, rows: list[Any], extra: list[Any], words: list[str]
) -> None:
    refuses([*argv, "--train_file", write_csv("bad.csv", ["text", "label"], rows), *extra], *words)


def test_rows_without_text_can_be_left_out(argv: list[Any], write_csv: Any) -> None:
    path = write_csv("gaps.csv", ["text", "label"], [["good", "a"], ["", "b"], ["bad", "b"], ["film", "a"]])
    task = built(*argv, "--train_file", path, "--validation_file", path, "--drop_empty_texts")
    assert list(task.train["labels"]) == [0, 1, 0]
    assert "train: 1 rows without text are left out (--drop_empty_texts)" in task.facts.notes


def test_a_class_that_the_training_data_lack(refuses: Any, argv: list[Any], write_csv: Any) -> None:
    train = write_csv("train.csv", ["text", "label"], [["good", "a"], ["bad", "b"]] * 3)
    dev = write_csv("dev.csv", ["text", "label"], [["good", "a"], ["bad", "c"]])
    refuses([*argv, "--train_file", train, "--validation_file", dev], "--validation_file", "row 1", "'c' (1)", "a, b")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["agnews", "subj", "mpqa"])
def test_real_texts_with_their_own_names(name: str, argv: list[Any], real_data: Path) -> None:
    files = ["--train_file", real_data / "text" / name / "train.parquet"]
    files += ["--validation_file", real_data / "text" / name / "validation.parquet"]
    task = built(
        *argv, *files, "--max_length", 24, "--max_train_samples", 300, "--max_eval_samples", 100, "--drop_empty_texts"
    )
    assert (len(task.train), len(task.evaluation[""].data)) == (300, 100)
    assert "LABEL_0" not in task.model.config.id2label.values()
    assert set(task.train["labels"]) == set(task.model.config.id2label)
    assert not [warning for warning in task.facts.warnings if "own, as written" in warning]
