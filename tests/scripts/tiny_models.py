# SPDX-License-Identifier: Apache-2.0
"""A language model of two layers, and a tokenizer of bytes trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

TEXTS = ["What is the capital of France? Paris.", "user assistant system hello <|im_start|> <|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML) -> Any:
    """Return a byte-level tokenizer, with a template for chats unless it is None."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    inner.train_from_iterator(
        TEXTS * 9, trainers.BpeTrainer(vocab_size=320, special_tokens=marks, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", model_max_length=128, chat_template=template
    )


def save_language_model(folder: Path, template: str | None = CHATML) -> Path:
    """Save a Llama with its tokenizer, as a checkpoint folder."""
    tokenizer = byte_tokenizer(template)
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
