# SPDX-License-Identifier: Apache-2.0
"""Is what a model is good for afterwards measured with the weights, heads and data that the table says?"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")

from transformers import AutoModel, AutoModelForSequenceClassification

from scripts.benchmarks import pretrained_image, transfer
from scripts.benchmarks.common.runs import Cell, write_run
from scripts.benchmarks.evidence import afterwards_tables
from scripts.benchmarks.evidence.afterwards_tables import BASE, IMAGE, LONG, SHORT, TRANSFER
from tests.scripts.conftest import WORDS

GRID = """
seeds: [1]
common: {{task: text, model_name_or_path: "{model}", max_steps: 8, learning_rate: 1e-2, per_device_train_batch_size: 4,
  eval_strategy: "no", save_strategy: "no", logging_steps: 1, torch_threads: 1, use_cpu: true, max_eval_samples: 20}}
tasks:
  sst2: {{train_file: "{folder}/sst2.csv", validation_file: "{folder}/sst2.csv"}}
  mpqa: {{train_file: "{folder}/mpqa.csv", validation_file: "{folder}/mpqa.csv"}}
  subj: {{train_file: "{folder}/subj.csv", validation_file: "{folder}/subj.csv"}}
methods:
  adamw: {{sam_variant: none}}
"""


@pytest.fixture
def command(tmp_path: Path, bert: Path) -> list[str]:
    for number, task in enumerate(transfer.SEQUENCE):
        with (tmp_path / f"{task}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows(
                [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(3)), (i >> number) % 2] for i in range(20)
            )
    (tmp_path / "grid.yaml").write_text(GRID.format(model=bert, folder=tmp_path), encoding="utf-8")
    places = {"--data": tmp_path, "--grid": tmp_path / "grid.yaml", "--runs": tmp_path / "single" / "runs"}
    places |= {"--output": tmp_path / "out", "--models": tmp_path / "models", "--methods": "adamw", "--seeds": 1}
    return [str(part) for pair in places.items() for part in pair]


@pytest.mark.slow
def test_what_was_learnt_first_is_measured_with_its_own_head_and_the_last_encoder(
    command: list[str], tmp_path: Path
) -> None:
    assert transfer.main(command) == 0
    row = json.loads((tmp_path / "out" / "transfer_adamw_1.json").read_text(encoding="utf-8"))
    assert set(TRANSFER.values()) <= set(row["scores"])
    first = AutoModelForSequenceClassification.from_pretrained(tmp_path / "models" / "sst2_adamw_1")
    (last,) = (tmp_path / "models").glob("subj-after-*_adamw_1")
    first.base_model.load_state_dict(AutoModel.from_pretrained(last).state_dict())
    assert row["scores"]["after 3 tasks, sst2"]["accuracy"] == pytest.approx(accuracy(first, tmp_path, "sst2"))
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path / "models" / "sst2_adamw_1")
    assert row["scores"]["own, sst2"]["accuracy"] == pytest.approx(accuracy(own, tmp_path, "sst2"))
    assert row["scores"]["shift, sst2 to mpqa"]["accuracy"] == pytest.approx(accuracy(own, tmp_path, "mpqa"))
    assert row["scores"]["after 3 tasks, sst2"]["nll"] != row["scores"]["own, sst2"]["nll"]

    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert transfer.main(command) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before, (
        "what is there is not run again"
    )


def accuracy(model: Any, folder: Path, task: str) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "sst2_adamw_1")
    with (folder / f"{task}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.eval()(**batch).logits.argmax(-1)
    return sum(int(a) == int(row["label"]) for a, row in zip(found, rows, strict=True)) / len(rows)


def test_a_grid_without_these_tasks_is_one_line(command: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "grid.yaml").write_text(
        "seeds: [1]\ncommon: {}\ntasks: {sst2: {}}\nmethods: {adamw: {}}\n", encoding="utf-8"
    )
    assert transfer.main(command) == 2
    assert "has no task or method 'mpqa'" in capsys.readouterr().err


@pytest.fixture
def results(tmp_path: Path) -> Path:
    accuracies = {BASE: [0.6, 0.5, 0.4], SHORT: [0.6, 0.6, 0.7], LONG: [0.8, 0.8, 0.8]}
    for method, values in accuracies.items():
        for seed, value in enumerate(values, start=1):
            scores = {name: {"accuracy": value, "nll": 1 - value} for name in TRANSFER.values()}
            cell = Cell("transfer", method, seed)
            write_run(tmp_path / "transfer" / "runs", cell, {**cell._asdict(), "scores": scores})
            one = Cell("noise", method, seed)
            kept = {condition: {"accuracy": value, "nll": 1 - value} for condition in IMAGE}
            write_run(tmp_path / "image" / "runs", one, {**one._asdict(), "robustness": kept})
    return tmp_path


def test_tables_have_means_and_paired_differences_corrected_over_the_table(results: Path) -> None:
    head, _, line, *_ = afterwards_tables.transfer(results, "accuracy")
    assert head.startswith("| accuracy (%) (n = 3) | adamw | adamw, half of the epochs | full | full - adamw |")
    assert line.startswith(
        "| SST-2, as trained | 50.0 ± 10.0 | 63.3 ± 5.8 | 80.0 ± 0.0 | +30.0 (+5.2 to +54.8), p 0.035, Holm "
    )
    lines = afterwards_tables.image(results, "noise", "nll")
    assert lines[0].startswith("| test loss (n = 3) | adamw | adamw, half of the epochs | full | full - adamw |")
    assert lines[2].startswith(
        "| as trained | 0.500 ± 0.100 | 0.367 ± 0.058 | 0.200 ± 0.000 | -0.300 (-0.548 to -0.052)"
    )
    assert len(lines) == 2 + len(IMAGE)


def test_wrong_labels_are_as_many_as_asked_for_and_of_other_classes() -> None:
    rows = [{"labels": torch.tensor(i % 10)} for i in range(100)]
    found = pretrained_image.with_wrong_labels(rows, 0.3, 10, seed=4)
    wrong = [i for i, (a, b) in enumerate(zip(rows, found, strict=True)) if a["labels"] != b["labels"]]
    assert len(wrong) == 30
    assert all(0 <= int(row["labels"]) < 10 for row in found)
    again = pretrained_image.with_wrong_labels(rows, 0.3, 10, seed=4)
    assert [int(row["labels"]) for row in again] == [int(row["labels"]) for row in found]


def test_without_the_images_it_is_one_line(tmp_path: Path, capsys: Any) -> None:
    assert pretrained_image.main(["--data", str(tmp_path)]) == 2
    assert "has no images/cifar10" in capsys.readouterr().err
