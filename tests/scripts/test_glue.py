# SPDX-License-Identifier: Apache-2.0
"""Every GLUE task trains, evaluates with its metrics and writes GLUE's prediction files, from local files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import pipeline

from hf_sam.cli.tasks.glue import GLUE

Run = Callable[..., tuple[int, str]]
TEXTS = ["good film", "bad plot", "a very fine film", "not good", "the poor plot", "very bad"]


def frame(task: str, *, labels: bool = True) -> pandas.DataFrame:
    spec = GLUE[task]
    columns: dict[str, Any] = {column: TEXTS[shift:] + TEXTS[:shift] for shift, column in enumerate(spec.columns)}
    if labels:
        count = len(spec.classes)
        columns["label"] = [row % count if count else row / 1.5 for row in range(len(TEXTS))]
    return pandas.DataFrame(columns)


def argv(task: str, bert: Path, folder: Path) -> list[Any]:
    frame(task).to_json(folder / "train.jsonl", orient="records", lines=True)
    frame(task).to_parquet(folder / "dev.parquet")
    frame(task, labels=False).to_csv(folder / "test.csv", index=False)
    arguments: list[Any] = ["--task", task, "--model_name_or_path", bert, "--train_file", folder / "train.jsonl"]
    for split, name in (("validation", "dev.parquet"), ("test", "test.csv")):
        for middle in ("", "_mismatched") if task == "mnli" else ("",):
            arguments += [f"--{split}{middle}_file", folder / name]
    arguments += ["--output_dir", folder / "out", "--num_train_epochs", 1, "--do_predict", "--ignore_mismatched_sizes"]
    return [*arguments, "--use_cpu", "--disable_tqdm", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("task", GLUE)
def test_each_task_from_local_files(task: str, run: Run, bert: Path, tmp_path: Path) -> None:
    assert run(*argv(task, bert, tmp_path))[0] == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    keys = [metric.key for metric in GLUE[task].metrics]
    middles = ("matched_", "mismatched_") if task == "mnli" else ("",)
    assert {f"eval_{middle}{key}" for middle in middles for key in keys} <= results.keys()
    assert {"train_runtime", "wall_time", "label_noise", "sam_variant", "rho", "seed"} <= results.keys()
    endings = ("-m", "-mm") if task == "mnli" else ("",)
    for ending in endings:
        lines = (tmp_path / "out" / f"{GLUE[task].file_name}{ending}.tsv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [str(row) for row in range(len(TEXTS))]
        predictions = {line.split("\t")[1] for line in lines[1:]}
        if not GLUE[task].classes:
            assert all(0 <= float(prediction) <= 5 for prediction in predictions)
        else:
            numbers = {str(number) for number in range(len(GLUE[task].classes))}
            assert predictions <= (set(GLUE[task].classes) if GLUE[task].predicts_names else numbers)


def test_prediction_file_pipeline_and_test_metrics_agree(run: Run, bert: Path, tmp_path: Path) -> None:
    arguments = argv("rte", bert, tmp_path)
    assert run(*arguments, "--test_file", tmp_path / "dev.parquet", "--learning_rate", "0.01")[0] == 0
    lines = (tmp_path / "out" / "RTE.tsv").read_text(encoding="utf-8").splitlines()[1:]
    written = [line.split("\t")[1] for line in lines]
    truth = [GLUE["rte"].classes[row % 2] for row in range(len(TEXTS))]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert results["test_accuracy"] == pytest.approx(sum(a == b for a, b in zip(written, truth, strict=True)) / 6)
    classify = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    pairs = [{"text": row.sentence1, "text_pair": row.sentence2} for row in frame("rte").itertuples()]
    assert [answer["label"] for answer in classify(pairs)] == written


@pytest.mark.slow
def test_labels_are_matched_by_name_whatever_their_order(tmp_path: Path, tokenized: Any) -> None:
    names = ["positive", "negative"]  # the other way round than GLUE
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict({"sentence": ["good", "bad"], "label": [0, 1]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    pandas.DataFrame({"sentence": ["good", "bad"], "label": ["positive", "negative"]}).to_csv(tmp_path / "b.csv")
    pandas.DataFrame({"sentence": ["good", "bad"], "label": [1.0, 0.0]}).to_csv(tmp_path / "c.csv")
    for name in ("a.parquet", "b.csv", "c.csv"):
        assert tokenized(tmp_path / name) == [1, 0]


@pytest.fixture
def tokenized(bert: Path, tmp_path: Path) -> Callable[[Path], list[int]]:
    """Build sst2 from a file and return its training labels."""
    from hf_sam.cli.common.parsing import parse
    from hf_sam.cli.tasks import TASKS

    def labels(path: Path) -> list[int]:
        arguments = ["--task", "sst2", "--model_name_or_path", bert, "--train_file", path, "--validation_file", path]
        parsed = parse([str(argument) for argument in [*arguments, "--use_cpu"]], {"sst2": TASKS["sst2"].defaults})
        return list(TASKS["sst2"].build(*parsed).train["labels"])

    return labels


@pytest.mark.slow
def test_label_noise_flips_training_labels_only(run: Run, sst2: list[Any], tmp_path: Path) -> None:
    assert run(*sst2, "--label_noise", "0.25")[0] == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert (results["label_noise"], results["flipped_labels"]) == (0.25, 3)


@pytest.mark.slow
def test_evaluating_a_trained_model_writes_no_model(run: Run, sst2: list[Any], bert: Path, tmp_path: Path) -> None:
    at = sst2.index("--train_file")
    assert run(*sst2[:at], *sst2[at + 2 :], "--do_train", "False")[0] == 0
    assert "eval_accuracy" in json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_early_stopping_keeps_the_best_model(run: Run, sst2: list[Any], tmp_path: Path) -> None:
    stop = ["--early_stopping_patience", 2, "--num_train_epochs", 20, "--learning_rate", 0]
    assert run(*sst2, *stop)[0] == 0  # with learning rate 0 nothing gets better after the first evaluation
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert results["epoch"] == 3


@pytest.mark.slow
def test_the_baseline_runs_every_batch_once(run: Run, sst2: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertForSequenceClassification

    calls: list[bool] = []
    forward = BertForSequenceClassification.forward

    @functools.wraps(forward)  # Trainer reads the signature
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", counted)
    assert run(*sst2, "--sam_variant", "none")[0] == 0
    plain = sum(calls)
    calls.clear()
    unchecked = "--sam_check_repeatable", "off"
    assert run(*sst2, "--sam_variant", "sam", *unchecked, "--overwrite_output_dir")[0] == 0
    assert (plain, sum(calls)) == (3, 6)


@pytest.mark.slow
def test_results_are_strict_json_and_the_card_has_the_facts(run: Run, sst2: list[Any], tmp_path: Path) -> None:
    assert run(*sst2)[0] == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "local texts in the format of SST2" in card
    assert "GLUE" not in card
    assert "sharpness-aware-minimization" in card
    assert "trained from scratch" not in card
    for path in (tmp_path / "out").glob("*_results.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
