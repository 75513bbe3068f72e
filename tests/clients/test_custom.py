# SPDX-License-Identifier: Apache-2.0
"""A trainer somebody wrote: a loss with weights of its own, a teacher, and things counted in `compute_loss`."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainerMixin
from tests.clients.runs import (
    ACCUMULATION,
    BOTH_SCOPES,
    Make,
    assert_logs_are_of_the_clean_pass,
    assert_plain_at_rho_zero,
    assert_trains,
)
from tests.promises.runs import trainer_for


class Centres(nn.Module):
    """A loss that pulls logits towards one learned centre per class."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.ones(2, 2))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - self.centres[labels]).square().mean()


class DistillingTrainer(Trainer):
    """Cross-entropy, a teacher's logits, a loss with weights of its own in the optimizer, and a count of labels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.loss = Centres()
        self.seen: Counter[int] = Counter()
        self.parts: list[float] = []

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if id(self.loss.centres) not in known:
            optimizer.add_param_group({"params": [self.loss.centres], "weight_decay": 0.0})
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        with torch.no_grad():
            target = self.teacher(**inputs).logits.softmax(-1)
        distance = self.loss(logits, labels)
        self.seen.update(labels.tolist())
        self.parts.append(distance.item())
        return nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits, target) + distance

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs.update({f"seen_{label}": count for label, count in self.seen.items()})
        logs["distance"] = sum(self.parts) / max(1, len(self.parts))
        self.parts.clear()
        self.loss.zero_grad()  # the Trainer clears the model's gradients only
        super().log(logs, *args, **kwargs)


class SAMDistillingTrainer(SAMTrainerMixin, DistillingTrainer):
    counters = (*SAMTrainerMixin.counters, "seen", "parts")


def maker(folder: Path) -> Make:
    return partial(make, folder)


def make(folder: Path, sam: SAMConfig | None, **arguments: Any) -> Trainer:
    classes = (DistillingTrainer, SAMDistillingTrainer)
    return trainer_for("bert", folder, sam=sam, classes=classes, **{"max_steps": 4, **arguments})


@ACCUMULATION
@BOTH_SCOPES
def test_rho_zero_is_the_trainer_as_it_was_written(accumulation: int, scope: str, tmp_path: Path) -> None:
    plain = assert_plain_at_rho_zero(maker(tmp_path), scope, accumulation)
    assert not torch.equal(plain.loss.centres, torch.ones(2, 2))


@BOTH_SCOPES
def test_what_it_counts_is_the_clean_pass(scope: str, tmp_path: Path) -> None:
    assert_logs_are_of_the_clean_pass(maker(tmp_path), scope)


def test_it_trains(tmp_path: Path) -> None:
    trainer = assert_trains(maker(tmp_path), max_steps=6)
    assert sum(trainer.seen.values()) == 6 * 4  # each example once
