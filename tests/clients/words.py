# SPDX-License-Identifier: Apache-2.0
"""What do the clients' trainers train on, where there is no Hub? Tokenizers, models and texts made here."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
VOCABULARY = [*SPECIAL.values(), "user", "assistant", *WORDS]
CHAT = (
    "{% for message in messages %}{{ message['role'] + ' ' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' </s> ' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def tokenizer(*, pairs: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of WORDS with a chat template; with `pairs`, one that marks sentences as BERT's does."""
    numbers = {word: i for i, word in enumerate(VOCABULARY)}
    inner = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    if pairs:
        marks = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
        inner.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT, model_max_length=32, **SPECIAL)


def text(rng: random.Random, low: int = 3, high: int = 9, words: list[str] = WORDS) -> str:
    return " ".join(rng.choices(words, k=rng.randint(low, high)))


def good(rng: random.Random) -> str:
    """Return a text of the first half of the words, so that there is something to learn."""
    return " " + text(rng, words=WORDS[:20])


def bad(rng: random.Random) -> str:
    return " " + text(rng, words=WORDS[20:])


def columns(count: int, **makers: Any) -> dict[str, list[Any]]:
    """Return `count` rows; each maker is called with a random source."""
    rng = random.Random(1)
    return {name: [make(rng) for _ in range(count)] for name, make in makers.items()}


def _llama_config(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        attention_dropout=0.1,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        **more,
    )


def language_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(_llama_config())


def reward_model() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(_llama_config(num_labels=1))


def _saved(model: nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer(pairs=True).save_pretrained(folder)
    return str(folder)


def _bert_config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        **more,
    )


def encoder_folder(folder: Path) -> str:
    """Save a tiny BERT with its tokenizer; return where."""
    torch.manual_seed(0)
    return _saved(BertModel(_bert_config()), folder)


def scorer_folder(folder: Path) -> str:
    """Save a tiny BERT that gives a pair of texts one score; return where."""
    torch.manual_seed(0)
    return _saved(BertForSequenceClassification(_bert_config(num_labels=1)), folder)


def masked_folder(folder: Path) -> str:
    """Save a tiny BERT that predicts words, as a sparse encoder needs; return where."""
    torch.manual_seed(0)
    return _saved(BertForMaskedLM(_bert_config()), folder)
