# SPDX-License-Identifier: Apache-2.0
"""Do adapters on a quantised base train with SAM, and does the base keep its bits?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    QuantoConfig,
    TorchAoConfig,
    Trainer,
)

from hf_sam import SAMConfig
from tests.models import build
from tests.options.pairs import Climbing, assert_climbs_at_rho, assert_plain_at_rho_zero, parts, trainer_on

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.slow


def torchao_config() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


BASES: dict[str, tuple[str, Any]] = {
    "bitsandbytes int8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes nf4": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    ),
    "torchao int8": ("torchao", torchao_config),
    "quanto int8": ("optimum.quanto", lambda: QuantoConfig(weights="int8")),
}


@pytest.mark.parametrize("base", BASES)
def test_adapters_on_a_quantised_base(base: str, tmp_path: Any) -> None:
    package, config = BASES[base]
    pytest.importorskip(package)
    model, data = build("llama")
    model.save_pretrained(tmp_path / "base")

    def body() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base",
            quantization_config=config(),
            dtype=torch.float32,
            device_map=None if package == "optimum.quanto" else "cpu",
        )

    def make(sam: SAMConfig | None) -> Trainer:
        quantised = body()
        if package == "bitsandbytes":
            quantised = peft.prepare_model_for_kbit_training(quantised, use_gradient_checkpointing=False)
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules=["q_proj", "down_proj"])
        torch.manual_seed(3)
        adapted = peft.get_peft_model(quantised, lora)
        return trainer_on(adapted, data, tmp_path / "out", sam=sam, classes=(Trainer, Climbing))

    plain, _ = assert_plain_at_rho_zero(make)
    found = {part.dtype for p in plain.model.parameters() for part in parts(p.detach())}
    assert found & {torch.int8, torch.uint8}  # the base is quantised
    trainer = assert_climbs_at_rho(make)
    trainer.save_model(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(body(), tmp_path / "adapter")
    ids = torch.stack([row["input_ids"] for row in data[:4]])
    answers = []
    for model in (trainer.model, again):
        torch.manual_seed(4)  # in training mode: evaluation packs 4-bit weights for the CPU, for larger models only
        with torch.no_grad():
            answers.append(model.train()(input_ids=ids).logits)
    assert torch.allclose(*answers, atol=1e-5)
