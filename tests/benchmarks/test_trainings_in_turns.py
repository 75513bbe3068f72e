# SPDX-License-Identifier: Apache-2.0
"""Trainings that take a step each in turn, each timed by itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from scripts.benchmarks.common.intervals import interval
from scripts.benchmarks.common.trainings_in_turns import TimedTrainer, Turns, in_turns
from tests.promises.runs import trainer_for


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def maker(name: str, seconds: float, log: list[str], folder: Path, steps: int) -> Any:
    class Working(TimedTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            log.append(name)
            busy(seconds)
            return super().compute_loss(*args, **kwargs)

    def make(turns: Turns) -> Trainer:
        trainer: Any = trainer_for("bert", folder / name, sam=None, classes=(Working, Working), max_steps=steps)
        trainer.add_callback(turns)
        trainer.turns = turns
        return trainer

    return make


def test_steps_are_taken_back_and_forth_and_each_is_timed_alone(tmp_path: Path) -> None:
    log: list[str] = []
    trainings = {name: maker(name, s, log, tmp_path, 4) for name, s in (("a", 0.02), ("b", 0.06))}
    found = in_turns(trainings, 3, warm_up=1)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert [len(steps) for steps in found.values()] == [3, 3]
    assert all(0.02 <= step.in_passes <= step.seconds for step in found["a"])
    assert all(step.in_passes >= 0.06 for step in found["b"])
    assert min(step.seconds for step in found["a"]) < 0.06


def test_an_error_of_one_training_comes_out(tmp_path: Path) -> None:
    def make(turns: Turns) -> Trainer:
        trainer: Any = trainer_for("bert", tmp_path, sam=None, max_steps=2)
        trainer.training_step = None
        return trainer

    with pytest.raises(TypeError):
        in_turns({"a": make}, 1, warm_up=1)


def test_the_interval_of_a_median_holds_it_and_narrows_with_more_values() -> None:
    few, many = interval([1.0, 1.1, 1.2, 0.9]), interval([1.0, 1.1, 1.2, 0.9] * 20)
    assert few.low <= few.value <= few.high
    assert many.high - many.low < few.high - few.low
    assert interval([1.0, 1.1, 1.2, 0.9]) == few
