# SPDX-License-Identifier: Apache-2.0
"""--hold_out: arguments are chosen on training data, which are then not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import parse
from hf_sam.cli.tasks import TASKS
from hf_sam.cli.tasks.base import Task, hold_out


def task_of(*argv: object) -> Task:
    args, training = parse(
        [str(argument) for argument in argv], {name: entry.defaults for name, entry in TASKS.items()}
    )
    return TASKS[args.task].build(args, training)


@pytest.fixture
def digits(tmp_path: Path) -> Task:
    return task_of("--output_dir", tmp_path / "out", "--label_noise", 0.5)


def rows_of(data: Any) -> list[tuple[bytes, int]]:
    return sorted((data[row]["pixel_values"].numpy().tobytes(), int(data[row]["labels"])) for row in range(len(data)))


@pytest.mark.slow
def test_the_two_parts_are_the_training_data_with_the_labels_that_are_trained_on(digits: Task) -> None:
    before = rows_of(digits.train)
    hold_out(digits, 0.25)
    (name, split), *others = digits.evaluation.items()
    assert (name, others) == ("", [])
    assert len(split.data) == 359
    assert sorted(rows_of(digits.train) + rows_of(split.data)) == before


@pytest.mark.slow
def test_the_rows_are_the_same_every_time(tmp_path: Path) -> None:
    tasks = [task_of("--output_dir", tmp_path / "out", "--seed", seed) for seed in (1, 2)]
    for task in tasks:
        hold_out(task, 0.1)
    assert np.array_equal(tasks[0].evaluation[""].data.indices, tasks[1].evaluation[""].data.indices)


@pytest.mark.slow
def test_none_changes_nothing(digits: Task) -> None:
    before = digits.train, digits.evaluation
    hold_out(digits, None)
    assert (digits.train, digits.evaluation) == before


@pytest.mark.slow
@pytest.mark.parametrize("share", [1e-6, 0.9999])
def test_an_empty_part_is_refused(share: float, digits: Task) -> None:
    with pytest.raises(UserError, match=f"--hold_out {share} of 1437 training rows leaves a set empty"):
        hold_out(digits, share)


@pytest.mark.slow
def test_a_text_task_evaluates_on_held_out_rows(run: Any, sst2: list[object], tmp_path: Path) -> None:
    status, errors = run(*sst2, "--hold_out", 0.25)
    assert status == 0, errors
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert (results["train_samples"], results["eval_samples"]) == (9, 3)


@pytest.mark.parametrize("flag", ["--do_train", "--do_eval"])
def test_without_training_or_evaluation_it_is_refused(flag: str, refuses: Any, sst2: list[object]) -> None:
    refuses([*sst2, "--hold_out", 0.25, flag, False], "--hold_out needs training and evaluation")


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_outside_of_its_range_is_refused(share: float, refuses: Any, sst2: list[object]) -> None:
    refuses([*sst2, "--hold_out", share], "--hold_out must be in (0, 1)")


@pytest.mark.slow
def test_the_size_of_images_is_given_once(refuses: Any, tmp_path: Path) -> None:
    refuses(["--output_dir", tmp_path / "out", "--image_size", 16], "--image_size does nothing here", "config")


@pytest.mark.slow
def test_the_size_of_images_is_that_which_was_asked_for(tmp_path: Path) -> None:
    overrides = '{"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}'
    small = ["--model_type", "resnet", "--image_size", 16, "--config_overrides", overrides]
    task = task_of("--output_dir", tmp_path / "out", *small)
    assert task.train[0]["pixel_values"].shape == (3, 16, 16)
