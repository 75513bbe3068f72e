# SPDX-License-Identifier: Apache-2.0
"""Seq2SeqTrainer that generates at its evaluations in the middle of training."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, Trainer

from hf_sam import SAMConfig
from tests.clients.runs import Make, assert_plain_at_rho_zero, assert_trains
from tests.covering import covering
from tests.models import build
from tests.promises.runs import trainer_for


def tokens_generated(prediction: Any) -> dict[str, float]:
    generated = prediction.predictions
    return {"mean_token": float(generated.clip(0).mean()), "length": generated.shape[1]}


def make(folder: Path, sam: SAMConfig | None, *, how: Any = None, **arguments: Any) -> Trainer:
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "predict_with_generate": True,
        "generation_max_length": 8,
        "max_steps": 4,
        **arguments,
    }
    given = {"eval_dataset": build("t5")[1][:6], "compute_metrics": tokens_generated}
    return trainer_for("t5", folder, sam=sam, prepare=how, trainer_kwargs=given, **settings)


def maker(folder: Path, **fixed: Any) -> Make:
    return partial(make, folder, **fixed)


def sample(model: nn.Module) -> None:
    model.generation_config.do_sample = True


@pytest.mark.parametrize(
    ("how", "accumulation", "scope"),
    covering(
        product([None, sample], (1, 2), ("batch", "micro_batch")),
        slow=[(None, 2, "batch"), (sample, 2, "batch"), (sample, 1, "micro_batch")],
    ),
)
def test_rho_zero_generates_what_the_plain_trainer_generates(
    how: Any, accumulation: int, scope: str, tmp_path: Path
) -> None:
    plain = assert_plain_at_rho_zero(maker(tmp_path, how=how), scope, accumulation)
    evaluations = [entry for entry in plain.state.log_history if "eval_mean_token" in entry]
    assert len(evaluations) == 5
    assert len({entry["eval_mean_token"] for entry in evaluations}) > 1


@pytest.mark.slow
def test_it_trains_and_the_checkpoint_generates_the_same(tmp_path: Path) -> None:
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 12, "eval_strategy": "no"}
    trainer = assert_trains(maker(tmp_path), eval_on_start=False, **settings)
    tokens = torch.arange(3, 13).unsqueeze(0)
    options = {"max_length": 12, "do_sample": False}
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint-12").eval()
    ours = trainer.model.eval().generate(tokens, **options)
    assert ours.shape[1] > 1
    assert torch.equal(ours, loaded.generate(tokens, **options))
