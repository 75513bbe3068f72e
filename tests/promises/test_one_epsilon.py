# SPDX-License-Identifier: Apache-2.0
"""Promise 2: one epsilon per optimizer step, however the batch is cut into micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_sam import SAMConfig
from tests.promises.runs import trainer_for, weights
from tests.tolerances import RELATIVE

VARIANTS = {"sam": 0.1, "asam": 0.5}
SHAPES = {"8x1": (8, 1), "4x2": (4, 2), "2x4": (2, 4)}


def without_dropout(model: nn.Module) -> None:
    """Masks are drawn per micro-batch, so only a model without dropout can be cut in different ways."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def final_weights(tmp_path: Any, shape: str, sam: SAMConfig | None) -> torch.Tensor:
    size, accumulation = SHAPES[shape]
    trainer = trainer_for(
        "llama",
        tmp_path,
        sam=sam,
        prepare=without_dropout,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
    )
    trainer.train()
    return weights(trainer)


@pytest.mark.parametrize("shape", ["4x2", "2x4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulation_does_not_change_the_step(variant: str, shape: str, tmp_path: Any) -> None:
    sam = SAMConfig(rho=VARIANTS[variant], sam_variant=variant)
    whole, cut = (final_weights(tmp_path, s, sam) for s in ("8x1", shape))
    assert (whole - cut).abs().max() <= RELATIVE[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_sgd_is_somewhere_else(variant: str, tmp_path: Any) -> None:
    sharp = final_weights(tmp_path, "8x1", SAMConfig(rho=VARIANTS[variant], sam_variant=variant))
    plain = final_weights(tmp_path, "8x1", None)
    assert (sharp - plain).abs().max() > 1e-3


def test_scope_micro_batch_gives_each_micro_batch_its_own_epsilon(tmp_path: Any) -> None:
    whole = final_weights(tmp_path, "8x1", SAMConfig(rho=0.1))
    cut = final_weights(tmp_path, "4x2", SAMConfig(rho=0.1, sam_scope="micro_batch"))
    assert (whole - cut).abs().max() > 1e-4


@pytest.mark.slow
def test_in_one_process_scope_device_is_scope_batch(tmp_path: Any) -> None:
    batch, device = (final_weights(tmp_path, "4x2", SAMConfig(rho=0.1, sam_scope=s)) for s in ("batch", "device"))
    assert torch.equal(batch, device)


@pytest.mark.slow
def test_scope_micro_batch_without_accumulation_is_scope_batch(tmp_path: Any) -> None:
    batch, alone = (final_weights(tmp_path, "8x1", SAMConfig(rho=0.1, sam_scope=s)) for s in ("batch", "micro_batch"))
    assert torch.equal(batch, alone)
