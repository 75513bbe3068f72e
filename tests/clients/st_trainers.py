# SPDX-License-Identifier: Apache-2.0
"""How are sentence-transformers' trainers built, plain and with the mixin, with each kind of loss, on a tiny BERT?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, set_seed

from hf_sam import SAMConfig, SAMTrainerMixin
from tests.clients.runs import SETTINGS, Make
from tests.clients.words import bad, columns, encoder_folder, good, scorer_folder

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")

from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder import losses as pair_losses
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling

ROWS = 24
Loss = Callable[[Any], Any]  # from the model to its loss


class SAMSentenceTransformerTrainer(SAMTrainerMixin, SentenceTransformerTrainer):
    pass


class SAMCrossEncoderTrainer(SAMTrainerMixin, CrossEncoderTrainer):
    pass


class TwoParts(nn.Module):
    """A loss of two parts, which the trainer adds up and logs one by one."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.ranking = losses.MultipleNegativesRankingLoss(model)
        self.spread = losses.GlobalOrthogonalRegularizationLoss(model)

    def forward(self, features: Any, labels: Any = None) -> dict[str, torch.Tensor]:
        embeddings = [self.model(feature)["sentence_embedding"] for feature in features]
        ranking = self.ranking.compute_loss_from_embeddings(embeddings, labels)
        return {"ranking": ranking, **self.spread.compute_loss_from_embeddings(embeddings)}


def encoder(folder: Path) -> SentenceTransformer:
    bert = Transformer(encoder_folder(folder / "encoder"))
    return SentenceTransformer(modules=[bert, Pooling(bert.get_embedding_dimension())], device="cpu")


def scorer(folder: Path) -> CrossEncoder:
    return CrossEncoder(scorer_folder(folder / "scorer"), num_labels=1, device="cpu")


def pairs() -> dict[str, list[Any]]:
    return columns(ROWS, anchor=good, positive=good)


def triplets() -> dict[str, list[Any]]:
    return columns(ROWS, anchor=good, positive=good, negative=bad)


def scored() -> dict[str, list[Any]]:
    rows = columns(ROWS, first=good, second=good, other=bad)
    labels = [float(i % 2) for i in range(ROWS)]
    second = [rows["second" if label else "other"][i] for i, label in enumerate(labels)]
    return {"first": rows["first"], "second": second, "label": labels}


def classified() -> dict[str, list[Any]]:
    rows = scored()
    return {**rows, "label": [int(label) for label in rows["label"]]}


def sentences() -> dict[str, list[Any]]:
    return columns(ROWS, sentence=good)


RANKING = losses.MultipleNegativesRankingLoss
CACHED = partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=2)

LOSSES: dict[str, tuple[Loss, Callable[[], dict[str, list[Any]]]]] = {
    "ranking": (RANKING, pairs),
    "cosent": (losses.CoSENTLoss, scored),
    "two parts": (TwoParts, pairs),
    "matryoshka": (lambda m: losses.MatryoshkaLoss(m, RANKING(m), [32, 16, 8], n_dims_per_step=2), pairs),
    "adaptive layers": (lambda m: losses.AdaptiveLayerLoss(m, RANKING(m)), triplets),
    # gradients that a hook computes during backward, from embeddings computed again
    "cached": (CACHED, triplets),
    "cached symmetric": (partial(losses.CachedMultipleNegativesSymmetricRankingLoss, mini_batch_size=2), pairs),
    "cached gist": (lambda m: losses.CachedGISTEmbedLoss(m, frozen(m), mini_batch_size=2), pairs),
    "cached matryoshka": (lambda m: losses.MatryoshkaLoss(m, CACHED(m), [32, 16], n_dims_per_step=1), pairs),
    # parameters of the loss's own
    "softmax": (lambda m: losses.SoftmaxLoss(m, 32, 2), classified),
    "contrastive tension": (losses.ContrastiveTensionLossInBatchNegatives, sentences),
}
# One of each kind: simple, of several parts, around another loss, with gradients from a hook, with its own parameters.
KINDS = ("ranking", "two parts", "matryoshka", "cached", "softmax")
OWN_PARAMETERS = ("softmax", "contrastive tension")

PAIR_LOSSES: dict[str, tuple[Loss, Callable[[], dict[str, list[Any]]]]] = {
    "cross-entropy": (pair_losses.BinaryCrossEntropyLoss, scored),
    "ranking": (partial(pair_losses.MultipleNegativesRankingLoss, num_negatives=2), pairs),
    "cached": (
        partial(pair_losses.CachedMultipleNegativesRankingLoss, num_negatives=2, mini_batch_size=2),
        pairs,
    ),
}


def frozen(model: SentenceTransformer) -> SentenceTransformer:
    """Return a guide: the model as it is now, which is not trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def make(
    folder: Path,
    sam: SAMConfig | None,
    *,
    loss: str = "ranking",
    pair: bool = False,
    rows: Any = None,
    build: Any = None,
    extra: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trainer:
    """Return a trainer of an encoder, or with `pair` of a cross-encoder: plain when `sam` is None."""
    settings = {**SETTINGS, **arguments}
    folder.mkdir(exist_ok=True, parents=True)
    make_loss, data = (PAIR_LOSSES if pair else LOSSES)[loss]
    model = scorer(folder) if pair else encoder(folder)
    if pair:
        args = CrossEncoderTrainingArguments(str(folder), **settings)
        plain, sharp = CrossEncoderTrainer, SAMCrossEncoderTrainer
    else:
        args = SentenceTransformerTrainingArguments(str(folder), **settings)
        plain, sharp = SentenceTransformerTrainer, SAMSentenceTransformerTrainer
    set_seed(args.seed)
    built = (build or make_loss)(model)
    given = dict(extra or {}) if sam is None else {"sam_config": sam, **(extra or {})}
    cls = plain if sam is None else sharp
    dataset = rows if rows is not None else Dataset.from_dict(data())
    return cls(model=model, args=args, train_dataset=dataset, loss=built, **given)


def maker(folder: Path, **fixed: Any) -> Make:
    return partial(make, folder, **fixed)


def two_data_sets() -> DatasetDict:
    return DatasetDict(
        {"pairs": Dataset.from_dict(pairs()), "classes": Dataset.from_dict(classified()).select(range(12))}
    )


def two_losses(model: SentenceTransformer) -> dict[str, nn.Module]:
    return {"pairs": RANKING(model), "classes": losses.SoftmaxLoss(model, 32, 2)}
