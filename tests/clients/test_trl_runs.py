# SPDX-License-Identifier: Apache-2.0
"""What else a TRL run does: adapters, model cards, resuming, evaluation in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_sam import SAMConfig
from tests.clients.runs import BOTH_SCOPES, assert_plain_at_rho_zero, assert_trains, everything, mostly_slow
from tests.promises.runs import differences

pytest.importorskip("trl")

from datasets import Dataset

from tests.clients.trl_trainers import language, maker, preferences
from tests.clients.words import language_model


def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_slow(["sft", "dpo"], "sft"))
@BOTH_SCOPES
def test_rho_zero_is_the_plain_trainer_with_peft_config(kind: str, scope: str, tmp_path: Path) -> None:
    assert_plain_at_rho_zero(maker(kind, tmp_path, extra={"peft_config": lora()}), scope, 2)


@pytest.mark.slow
def test_adapters_trained_by_sft_load_onto_the_base_model(tmp_path: Path) -> None:
    from peft import PeftModel

    make = maker("sft", tmp_path, extra={"peft_config": lora()})
    trainer = assert_trains(make, max_steps=12, save_strategy="steps", save_steps=12, learning_rate=0.05)
    assert all(("lora_" in name) == p.requires_grad for name, p in trainer.model.named_parameters())
    trainer.model.eval()
    language_model().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "checkpoint-12").eval()
    tokens = torch.tensor([[9, 10, 11, 12]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, trainer.model(tokens).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_slow(["sft", "dpo"], "sft"))
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    whole = maker(kind, tmp_path / "whole")(SAMConfig(rho=0.1), **settings)
    whole.train()
    again = maker(kind, tmp_path / "whole")(SAMConfig(rho=0.1), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    expected, found = everything(whole), everything(again)
    expected.pop("logs")
    found.pop("logs")  # TRL's count of tokens starts afresh, with the plain trainer too
    assert differences(expected, found) == []


@pytest.mark.slow
@BOTH_SCOPES
def test_evaluations_in_between_see_the_plain_trainers_model(scope: str, tmp_path: Path) -> None:
    rows = {"sft": language, "dpo": preferences}
    for kind, data in rows.items():
        make = maker(kind, tmp_path, extra={"eval_dataset": Dataset.from_dict(data()).select(range(5))})
        plain = assert_plain_at_rho_zero(make, scope, 2, eval_strategy="steps", eval_steps=1, eval_on_start=True)
        evaluations = [entry for entry in plain.state.log_history if "eval_loss" in entry]
        assert len(evaluations) == 4
        assert all("eval_mean_token_accuracy" in entry for entry in evaluations)
