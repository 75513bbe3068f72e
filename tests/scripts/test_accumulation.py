# SPDX-License-Identifier: Apache-2.0
"""The same batch gives the same model, however it is cut into micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_sam import SAMTrainer, SAMTrainingArguments
from hf_sam.cli.common.losses import classification_loss, regression_loss

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model_of(kind: str, labels: int) -> torch.nn.Module:
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=labels, **SMALL, **STILL))
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=labels, **SMALL, **STILL))
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=20, num_labels=labels, pad_token_id=0, **SMALL))


def rows_of(kind: str, count: int, labels: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, torch.Tensor]] = []
    for row in range(count):
        label = torch.tensor(row % 3) if labels > 1 else torch.randn((), generator=generator)
        if kind == "vit":
            rows.append({"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": label})
        else:
            tokens = torch.randint(1, 20, (6,), generator=generator)
            rows.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": label})
    return rows


def trained(
    kind: str, folder: Path, *, batch: int, accumulation: int, labels: int = 3, own_loss: bool = True, count: int = 16
) -> torch.Tensor:
    set_seed(0)
    args = SAMTrainingArguments(
        folder, sam_variant="sam", rho=0.1, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_steps=3,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_grad_norm=0.5, use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    loss = (classification_loss() if labels > 1 else regression_loss()) if own_loss else None
    model = model_of(kind, labels)
    SAMTrainer(model=model, args=args, train_dataset=rows_of(kind, count, labels), compute_loss_func=loss).train()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
@pytest.mark.parametrize("labels", [3, 1])
def test_micro_batches_of_any_size_train_the_same_model(kind: str, labels: int, tmp_path: Path) -> None:
    whole = trained(kind, tmp_path, batch=8, accumulation=1, labels=labels)
    for batch, accumulation in ((4, 2), (2, 4)):
        cut = trained(kind, tmp_path, batch=batch, accumulation=accumulation, labels=labels)
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_last_and_smaller_micro_batch_counts_by_its_examples(tmp_path: Path) -> None:
    whole = trained("bert", tmp_path, batch=10, accumulation=1, count=10)
    torch.testing.assert_close(trained("bert", tmp_path, batch=4, accumulation=3, count=10), whole, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_models_own_loss_would_fail(tmp_path: Path) -> None:
    whole = trained("bert", tmp_path, batch=8, accumulation=1, own_loss=False)
    cut = trained("bert", tmp_path, batch=2, accumulation=4, own_loss=False)
    assert (whole - cut).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("labels", [3, 1])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_it_is_the_models_own_loss_without_accumulation(kind: str, labels: int, tmp_path: Path) -> None:
    own = trained(kind, tmp_path, batch=8, accumulation=1, labels=labels, own_loss=False)
    torch.testing.assert_close(trained(kind, tmp_path, batch=8, accumulation=1, labels=labels), own, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_label_smoothing_is_that_of_torch_and_parts_add_up() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(0.1)({"logits": logits}, labels), expected)
    halves = [
        classification_loss(0.1)({"logits": logits[part]}, labels[part], 6) for part in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(halves), expected)
