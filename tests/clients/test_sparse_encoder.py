# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers' SparseEncoderTrainer, whose losses have several parts and a schedule in a callback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, set_seed

from hf_sam import SAMConfig, SAMTrainerMixin
from tests.clients.runs import (
    BOTH_SCOPES,
    SETTINGS,
    assert_logs_are_of_the_clean_pass,
    assert_plain_at_rho_zero,
    assert_trains,
)
from tests.clients.words import masked_folder

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset
from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.sparse_encoder import losses

from tests.clients.st_trainers import triplets


class SAMSparseEncoderTrainer(SAMTrainerMixin, SparseEncoderTrainer):
    pass


WEIGHTS = {"document_regularizer_weight": 3e-3, "query_regularizer_weight": 5e-3}
LOSSES: dict[str, Callable[..., Any]] = {
    "splade": partial(losses.SpladeLoss, **WEIGHTS),
    "cached": partial(losses.CachedSpladeLoss, mini_batch_size=2, **WEIGHTS),
}


def make(folder: Path, sam: SAMConfig | None, *, loss: str, **arguments: Any) -> Trainer:
    model = SparseEncoder(masked_folder(folder / "masked"), device="cpu")
    args = SparseEncoderTrainingArguments(str(folder), **{**SETTINGS, **arguments})
    set_seed(args.seed)
    given: dict[str, Any] = {} if sam is None else {"sam_config": sam}
    cls = SparseEncoderTrainer if sam is None else SAMSparseEncoderTrainer
    built = LOSSES[loss](model, losses.SparseMultipleNegativesRankingLoss(model))
    return cls(model=model, args=args, train_dataset=Dataset.from_dict(triplets()), loss=built, **given)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@BOTH_SCOPES
def test_it_is_plain_at_rho_zero_and_logs_the_parts_of_the_clean_loss(loss: str, scope: str, tmp_path: Path) -> None:
    plain = assert_plain_at_rho_zero(partial(make, tmp_path, loss=loss), scope, 2)
    assert any(entry.get("document_regularizer_loss", 0) > 0 for entry in plain.state.log_history)
    assert_logs_are_of_the_clean_pass(partial(make, tmp_path, loss=loss), scope)


@pytest.mark.slow
def test_it_trains_and_loads_as_a_sparse_encoder(tmp_path: Path) -> None:
    trainer = assert_trains(partial(make, tmp_path, loss="cached"), max_steps=6, save_strategy="steps", save_steps=6)
    loaded = SparseEncoder(str(tmp_path / "checkpoint-6"), device="cpu")
    found, expected = (m.encode(["w1 w2 w3"]).to_dense() for m in (loaded, trainer.model))
    assert torch.equal(found, expected)
