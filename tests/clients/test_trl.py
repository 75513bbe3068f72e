# SPDX-License-Identifier: Apache-2.0
"""TRL's offline trainers with the mixin: the same bits at rho = 0, counts of one pass, checkpoints TRL's users load."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.clients.runs import (
    BOTH_SCOPES,
    assert_logs_are_of_the_clean_pass,
    assert_plain_at_rho_zero,
    assert_trains,
    mostly_slow,
)
from tests.covering import covering

pytest.importorskip("trl")

from tests.clients.trl_trainers import EXPERIMENTAL, chats, completions, maker

KINDS = ["sft", "dpo", "reward", "kto"]


@pytest.mark.parametrize(
    ("kind", "accumulation", "scope"),
    covering(
        product(KINDS, (1, 2), ("batch", "micro_batch")),
        fast=[("sft", 2, "batch")],
        slow=[*((kind, 2, "batch") for kind in KINDS), ("sft", 2, "micro_batch"), ("dpo", 1, "micro_batch")],
    ),
)
def test_rho_zero_is_trls_own_trainer(kind: str, accumulation: int, scope: str, tmp_path: Path) -> None:
    plain = assert_plain_at_rho_zero(maker(kind, tmp_path), scope, accumulation)
    assert any(entry.get("num_tokens", 0) > 0 for entry in plain.state.log_history) or kind == "kto"


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "sft"))
@BOTH_SCOPES
def test_what_is_counted_and_logged_is_the_clean_pass(kind: str, scope: str, tmp_path: Path) -> None:
    assert_logs_are_of_the_clean_pass(maker(kind, tmp_path), scope)


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_slow(KINDS, "sft", "reward"))
def test_it_trains_and_its_checkpoint_loads_as_trls_users_load_it(kind: str, tmp_path: Path) -> None:
    trainer = assert_trains(maker(kind, tmp_path), max_steps=12, save_strategy="steps", save_steps=12)
    loader = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    loaded = loader.from_pretrained(tmp_path / "checkpoint-12")
    for (name, ours), theirs in zip(trainer.model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPERIMENTAL)
@BOTH_SCOPES
def test_trls_experimental_offline_trainers(kind: str, scope: str, tmp_path: Path) -> None:
    assert_plain_at_rho_zero(maker(kind, tmp_path), scope, 2)
    assert_logs_are_of_the_clean_pass(maker(kind, tmp_path), scope)
    assert_trains(maker(kind, tmp_path), max_steps=6)


SFT_OPTIONS: dict[str, dict[str, Any]] = {
    "packing": {"packing": True, "padding_free": False},
    "packing by wrapping": {"packing": True, "packing_strategy": "wrapped"},
    "loss on assistant tokens": {"assistant_only_loss": True, "data": chats},
    "loss on completions": {"completion_only_loss": True, "data": completions},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "neftune": {"neftune_noise_alpha": 5.0},
    "dft": {"loss_type": "dft"},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")  # blamed on who calls the constructor: us
@pytest.mark.parametrize("option", mostly_slow(SFT_OPTIONS, "packing", "loss on assistant tokens"))
def test_rho_zero_is_sft_with_each_of_its_options(option: str, tmp_path: Path) -> None:
    assert_plain_at_rho_zero(maker("sft", tmp_path), accumulation=2, **SFT_OPTIONS[option])
