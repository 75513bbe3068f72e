# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the families people train, each with data it can be trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 60
EXAMPLES = 26  # not a multiple of the batch sizes in use: the last window of an epoch is a short one


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        bert(), LoraConfig(task_type="SEQ_CLS", r=4, lora_dropout=0.1, target_modules=["query", "value"])
    )


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        attention_dropout=0.1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        num_local_experts=4,
        router_jitter_noise=0.1,
        output_router_logits=True,
    )
    return MixtralForCausalLM(config)


def t5() -> nn.Module:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def resnet() -> nn.Module:
    """A model with batch normalisation."""
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return ResNetForImageClassification(config)


def vit() -> nn.Module:
    """A model whose tensors have other names in its files than in memory."""
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        hidden_dropout_prob=0.1,
        num_labels=3,
    )
    return ViTForImageClassification(config)


def _tokens(length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (length,), generator=generator)


def classification_data(generator: torch.Generator) -> list[dict[str, Any]]:
    labels = torch.randint(0, 2, (EXAMPLES,), generator=generator)
    return [{"input_ids": _tokens(10, generator), "labels": label} for label in labels]


def language_data(generator: torch.Generator) -> list[dict[str, Any]]:
    """Sequences with ragged labels: every example has its own number of tokens that count."""
    data = []
    for i in range(EXAMPLES):
        tokens = _tokens(12, generator)
        labels = tokens.clone()
        labels[2 + i % 9 :] = -100
        data.append({"input_ids": tokens, "labels": labels})
    return data


def image_data(generator: torch.Generator) -> list[dict[str, Any]]:
    labels = torch.randint(0, 3, (EXAMPLES,), generator=generator)
    return [{"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": label} for label in labels]


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], list[dict[str, Any]]]]] = {
    "bert": (bert, classification_data),
    "lora": (lora, classification_data),
    "llama": (llama, language_data),
    "mixtral": (mixtral, language_data),
    "t5": (t5, language_data),
    "resnet": (resnet, image_data),
    "vit": (vit, image_data),
}


def build(family: str) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return a freshly initialised model of `family` and its data, the same at every call."""
    make_model, make_data = FAMILIES[family]
    torch.manual_seed(0)
    return make_model(), make_data(torch.Generator().manual_seed(1))
