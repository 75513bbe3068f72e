# SPDX-License-Identifier: Apache-2.0
"""Does the table that the Trainer draws in a notebook show what SAM measures? (In a kernel: test_quickstart.py.)"""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerCallback

from hf_sam import SAMConfig
from hf_sam.trainer.notebook_columns import NotebookColumns
from tests.models import build
from tests.promises.runs import trainer_for

pytest.importorskip("IPython")

from transformers.utils.notebook import NotebookProgressCallback

SAM = ["sam/rho", "sam/perturbed", "sam/sharpness", "sam/epsilon_norm", "sam/grad_cosine", "sam/skipped"]


class Keep(TrainerCallback):
    """Keep the table as it is at the end of the run, where the Trainer drops it."""

    trainer: Any
    table: list[list[Any]]

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        callbacks = self.trainer.callback_handler.callbacks
        (progress,) = [each for each in callbacks if isinstance(each, NotebookProgressCallback)]
        self.table = progress.training_tracker.inner_table


class LogsMore(TrainerCallback):
    """Log a flatness at the beginning and after the first step, as `SharpnessCallback` does."""

    trainer: Any

    def _log(self, control: Any) -> None:
        wanted = control.should_log
        self.trainer.log({"sharpness/sam": 0.25})
        control.should_log = wanted

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self._log(control)


@pytest.fixture
def in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    monkeypatch.setattr("hf_sam.trainer.trainer.is_in_notebook", lambda: True)


def table_of(folder: Any, *more: Any, sam: Any = "sam", **arguments: Any) -> list[Any]:
    keep = Keep()
    sam = SAMConfig(rho=0.1) if sam == "sam" else sam
    arguments = {"max_steps": 2, "logging_steps": 1, "disable_tqdm": False, "save_strategy": "no", **arguments}
    more_of_it = {"callbacks": [keep], "eval_dataset": build("bert")[1][:4]}
    trainer = trainer_for("bert", folder, sam=sam, trainer_kwargs=more_of_it, **arguments)
    for callback in more:
        callback.trainer = trainer
        trainer.add_callback(callback)
    keep.trainer = trainer
    trainer.train()
    return keep.table


@pytest.mark.usefixtures("in_notebook")
def test_a_line_has_what_sam_measured(tmp_path: Any) -> None:
    head, *lines = table_of(tmp_path)
    assert head == ["Step", "Training Loss", *SAM]
    assert [line[0] for line in lines] == [1, 2]
    assert all(line[2:4] == [0.1, 1.0] for line in lines)
    assert all(isinstance(value, float) for line in lines for value in line[1:])


@pytest.mark.usefixtures("in_notebook")
def test_a_flatness_that_is_logged_before_the_loss_has_a_column_too(tmp_path: Any) -> None:
    head, *lines = table_of(tmp_path, LogsMore())
    assert head == ["Step", "Training Loss", "sharpness/sam", *SAM]
    assert [line[:3] for line in lines[:1]] == [[0, "No log", 0.25]]
    assert [line[0] for line in lines] == [0, 1, 2]
    assert lines[1][2] == 0.25
    assert isinstance(lines[1][1], float)
    assert lines[2][2] == "No Log"


@pytest.mark.usefixtures("in_notebook")
@pytest.mark.parametrize(("strategy", "first"), [("steps", "Step"), ("epoch", "Epoch")])
def test_with_evaluations_a_line_is_one_of_them(strategy: str, first: str, tmp_path: Any) -> None:
    more = {"max_steps": -1, "num_train_epochs": 2} if strategy == "epoch" else {"eval_steps": 1}
    head, *lines = table_of(tmp_path, eval_strategy=strategy, **more)
    assert head == [first, "Training Loss", "Validation Loss", *SAM]
    assert [line[0] for line in lines] == [1, 2]
    assert all(isinstance(value, float) for line in lines for value in line[1:])


@pytest.mark.usefixtures("in_notebook")
def test_the_plain_trainer_keeps_its_table(tmp_path: Any) -> None:
    assert table_of(tmp_path, sam=SAMConfig(sam_variant="none"))[0] == ["Step", "Training Loss"]
    assert table_of(tmp_path, sam=None)[0] == ["Step", "Training Loss"]


@pytest.mark.usefixtures("in_notebook")
def test_without_a_table_nothing_is_written(tmp_path: Any) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1), max_steps=1, disable_tqdm=False)
    trainer.remove_callback(NotebookProgressCallback)
    trainer.train()
    assert "sam/rho" in trainer.state.log_history[0]


def test_outside_of_a_notebook_there_is_no_such_callback(tmp_path: Any) -> None:
    trainer = trainer_for("bert", tmp_path, sam=SAMConfig(rho=0.1))
    assert not [each for each in trainer.callback_handler.callbacks if isinstance(each, NotebookColumns)]
