# SPDX-License-Identifier: Apache-2.0
"""The ablation without the same dropout masks in both passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.cli.common.fresh_dropout import FreshDropoutTrainer
from tests.models import VOCABULARY, bert


def run(trainer_class: type[SAMTrainer], folder: Path, dropout: float) -> SAMTrainer:
    torch.manual_seed(0)
    model = bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    data = [{"input_ids": torch.randint(VOCABULARY, (12,)), "labels": i % 2} for i in range(24)]
    args = TrainingArguments(
        str(folder), max_steps=3, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, seed=3
    )
    trainer = trainer_class(model, args, train_dataset=data, sam_config=SAMConfig(rho=1e-4))
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "same"), [(0.5, False), (0.0, True)])
def test_the_second_pass_has_masks_of_its_own_where_there_are_any(tmp_path: Path, dropout: float, same: bool) -> None:
    ours = run(SAMTrainer, tmp_path / "ours", dropout)
    fresh = run(FreshDropoutTrainer, tmp_path / "fresh", dropout)
    cosines = [entry["sam/grad_cosine"] for entry in fresh.state.log_history if "sam/grad_cosine" in entry]
    assert all((c > 0.9999) is same for c in cosines), cosines
    first, second = (torch.cat([p.flatten() for p in t.model.parameters()]) for t in (ours, fresh))
    assert torch.equal(first, second) is same


def test_the_random_stream_goes_on_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    run(SAMTrainer, tmp_path / "ours", 0.5)
    expected = torch.get_rng_state()
    run(FreshDropoutTrainer, tmp_path / "fresh", 0.5)
    assert torch.equal(torch.get_rng_state(), expected)
