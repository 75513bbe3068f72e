# SPDX-License-Identifier: Apache-2.0
"""Is it said when SAM's arguments train in a plain Trainer, and only then?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer

from hf_sam import SAMSeq2SeqTrainer, SAMSeq2SeqTrainingArguments, SAMTrainer, SAMTrainingArguments
from hf_sam.trainer import forgotten_class

PLAIN = {"use_cpu": True, "report_to": "none", "max_steps": 1, "save_strategy": "no", "disable_tqdm": True}


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.slope(x).square().mean()}


@pytest.fixture(autouse=True)
def _not_said_yet() -> Iterator[None]:
    forgotten_class._say.cache_clear()
    yield
    forgotten_class._say.cache_clear()


def said(caplog: pytest.LogCaptureFixture, cls: type, kind: type, folder: Path, act: str = "train", **more: Any) -> str:
    args = kind(str(folder), **{**PLAIN, **more})
    data = [{"x": torch.ones(1)}] * 4
    trainer = cls(Line(), args, train_dataset=data, eval_dataset=data)
    with caplog.at_level(logging.WARNING, "hf_sam"):
        getattr(trainer, act)()
    return caplog.text


@pytest.mark.parametrize(
    ("cls", "kind"), [(Trainer, SAMTrainingArguments), (Seq2SeqTrainer, SAMSeq2SeqTrainingArguments)]
)
def test_a_plain_trainer_that_trains_with_sams_arguments_is_told(
    cls: type, kind: type, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = said(caplog, cls, kind, tmp_path, rho=0.05)
    assert text.count(f"{cls.__name__} trains without SAM: the settings in {kind.__name__}") == 1
    assert "Use hf_sam.SAMTrainer" in text


def test_a_trainer_with_a_step_of_its_own_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Own(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    assert "Own trains without SAM" in said(caplog, Own, SAMTrainingArguments, tmp_path, rho=0.05)


@pytest.mark.parametrize(
    ("cls", "kind", "act", "more"),
    [
        (SAMTrainer, SAMTrainingArguments, "train", {}),
        pytest.param(SAMSeq2SeqTrainer, SAMSeq2SeqTrainingArguments, "train", {}, marks=pytest.mark.slow),
        (Trainer, SAMTrainingArguments, "train", {"sam_variant": "none"}),
        (Trainer, SAMTrainingArguments, "evaluate", {}),
    ],
    ids=["SAM", "seq2seq", "plain", "evaluation"],
)
def test_nothing_is_said_where_nothing_is_forgotten(
    cls: type, kind: type, act: str, more: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "trains without SAM" not in said(caplog, cls, kind, tmp_path, act, **more)


def test_a_script_may_ask_for_the_number_of_gpus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def training_step(self: Any) -> int:
        return self.n_gpu

    args = SAMTrainingArguments(str(tmp_path), **PLAIN)
    with caplog.at_level(logging.WARNING, "hf_sam"):
        assert args.n_gpu == training_step(args) <= 1
    assert not caplog.text
