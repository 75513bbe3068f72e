# SPDX-License-Identifier: Apache-2.0
"""Is a part of the examples taken where it is certain, refused before anything has happened where it is not?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.trainer.batch_rows import UnknownRowsError


class Packed(nn.Module):
    """Examples of several rows each, all in one tensor; `owner` says whose a row is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor, owner: torch.Tensor | None = None) -> dict[str, Any]:
        z = self.layer(x)
        if owner is not None:
            z = torch.zeros(len(labels), 2).index_add(0, owner, z)
        return {"loss": nn.functional.cross_entropy(z, labels), "logits": z}


def pack(parts: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    rows = [len(part["x"]) for part in parts]
    batch = {"x": torch.cat([part["x"] for part in parts]), "labels": torch.tensor([p["labels"] for p in parts])}
    return {**batch, "owner": torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(rows))}


def flat(parts: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"x": torch.cat([part["x"][:1] for part in parts]), "labels": torch.tensor([p["labels"] for p in parts])}


def trainer_for(
    folder: Path, collate: Any, sam: dict[str, Any], cls: type = SAMTrainer, **arguments: Any
) -> SAMTrainer:
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(2 + i % 3, 4, generator=generator), "labels": i % 2} for i in range(24)]
    settings = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    settings |= {"per_device_train_batch_size": 4, "remove_unused_columns": False, "disable_tqdm": True, **arguments}
    set_seed(0)
    args = TrainingArguments(str(folder), **settings)
    return cls(Packed(), args, sam_config=SAMConfig(rho=0.05, **sam), train_dataset=data, data_collator=collate)


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: list[bool] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients.append(all(p.grad is not None for p in kwargs["model"].parameters()))


def logged(trainer: SAMTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_unknown_batch_is_refused_at_the_first_step_and_nothing_has_happened(
    accumulation: int, tmp_path: Path
) -> None:
    sam = {"ascent_fraction": 0.25}
    trainer = trainer_for(tmp_path, pack, sam, gradient_accumulation_steps=accumulation)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(UnknownRowsError, match="different numbers of rows"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(p, w) for p, w in zip(trainer.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_whole_micro_batches_of_an_unknown_kind_are_taken_also_in_a_short_window(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """24 examples are windows of four and two micro-batches of four; half of two is one, a quarter of two is none."""
    trainer = trainer_for(
        tmp_path, pack, {"ascent_fraction": 0.25}, gradient_accumulation_steps=4, max_steps=-1, num_train_epochs=2
    )
    trainer.add_callback(steps := Steps())
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer.train()
    assert steps.gradients == [True] * 4
    assert not caplog.messages


def test_a_later_batch_of_another_kind_is_taken_whole_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns: list[int] = []

    def now_and_then(parts: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        turns.append(len(turns))
        return pack(parts) if len(turns) > 2 else flat(parts)

    trainer = trainer_for(tmp_path, now_and_then, {"ascent_fraction": 0.5})
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert sum("taken whole" in message for message in caplog.messages) == 1


def test_the_rise_over_other_examples_is_not_logged(tmp_path: Path) -> None:
    part = trainer_for(tmp_path, flat, {"ascent_fraction": 0.5})
    part.train()
    assert len(logged(part, "sam/rho")) == len(logged(part, "sam/epsilon_norm")) == 4
    assert not logged(part, "sam/sharpness")
    whole = trainer_for(tmp_path, flat, {})
    whole.train()
    assert len(logged(whole, "sam/sharpness")) == 4


def test_a_radius_that_steers_by_the_rise_is_refused_with_a_part() -> None:
    with pytest.raises(ValueError, match=r"ascent_fraction=0\.5.*target_ascent.*Leave ascent_fraction=1"):
        SAMConfig(ascent_fraction=0.5, rho_schedule="target_ascent")
    SAMConfig(ascent_fraction=0.5, rho="auto")


def test_rows_of_a_group_are_taken_together(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Noting(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(inputs["x"].clone())
            return super().compute_loss(model, inputs, *args, **kwargs)

    sam = {"ascent_fraction": 0.5, "ascent_group_size": 2}
    trainer_for(tmp_path, flat, sam, Noting, max_steps=1).train()
    part, whole = seen
    assert torch.equal(part, whole[2:])
