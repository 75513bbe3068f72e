# SPDX-License-Identifier: Apache-2.0
"""Does what a trainer counts survive the second pass as it was, whatever the second pass does?"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from hf_sam.trainer.micro_batches import COUNTERS, counted_once


class Counting:
    def __init__(self) -> None:
        self._metrics: Any = {"train": defaultdict(list)}
        self._total_train_tokens = 7
        self.accum_loss_components = {"train": {"part": torch.ones(()), "steps": torch.tensor(3)}}
        self.other = [1]

    def count(self) -> None:
        self._metrics["train"]["entropy"].append(1.0)
        self._total_train_tokens += 7
        self.accum_loss_components["train"]["steps"] += 1
        self.other.append(2)


def interrupted(trainer: Counting) -> None:
    with counted_once(trainer, COUNTERS):
        trainer.count()
        raise KeyboardInterrupt


def kept(trainer: Counting) -> str:
    return repr((trainer._metrics, trainer._total_train_tokens, trainer.accum_loss_components))


def test_what_is_counted_inside_is_not_counted_and_the_rest_is_left_alone() -> None:
    trainer = Counting()
    trainer.count()
    before = kept(trainer)
    with counted_once(trainer, COUNTERS):
        trainer.count()
        assert kept(trainer) != before  # it counts on from where it was
    assert kept(trainer) == before
    assert trainer.other == [1, 2, 2]


def test_the_objects_are_the_same_for_whoever_else_holds_them() -> None:
    trainer = Counting()
    held = trainer._metrics
    with counted_once(trainer, COUNTERS):
        trainer.count()
    trainer.count()
    assert trainer._metrics is held
    assert held["train"]["entropy"] == [1.0]


def test_nothing_is_counted_either_when_the_pass_is_interrupted() -> None:
    trainer = Counting()
    before = kept(trainer)
    with pytest.raises(KeyboardInterrupt):
        interrupted(trainer)
    assert kept(trainer) == before


def test_a_trainer_that_counts_nothing_gets_no_attribute() -> None:
    trainer = object()
    with counted_once(trainer, COUNTERS):
        pass
    assert not hasattr(trainer, "_metrics")
