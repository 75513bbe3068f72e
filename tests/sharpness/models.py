# SPDX-License-Identifier: Apache-2.0
"""Models so small that their Hessian can be written out, with data, and the Hessian itself."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from hf_sam.sharpness.borrowed_model import StayFloat64

VOCABULARY = 12
EXAMPLES = 9
Examples = list[dict[str, Any]]


def bert(**settings: Any) -> nn.Module:
    sizes = {"hidden_size": 6, "intermediate_size": 8} | settings
    config = BertConfig(
        vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=10,
        initializer_range=0.3, **sizes,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def gpt2(**settings: Any) -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=10, n_embd=6, n_layer=2, n_head=2, n_inner=8, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def vit(**settings: Any) -> nn.Module:
    config = ViTConfig(
        image_size=4, patch_size=2, num_channels=1, hidden_size=6, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, num_labels=3, initializer_range=0.3, hidden_dropout_prob=0.2, **settings,
    )  # fmt: skip
    return ViTForImageClassification(config)


def t5(**settings: Any) -> nn.Module:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=6, d_kv=3, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
        **settings,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def resnet(**settings: Any) -> nn.Module:
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3,
        **settings,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def texts(labels: bool) -> Examples:
    """Sentences of two lengths, padded: a label each, or one for each token that is no padding."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for i in range(EXAMPLES):
        length = 4 + i % 3
        tokens = torch.zeros(6, dtype=torch.long)
        tokens[:length] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask = (torch.arange(6) < length).long()
        wanted = torch.tensor(i % 2) if labels else tokens.masked_fill(mask == 0, -100)
        examples.append({"input_ids": tokens, "attention_mask": mask, "labels": wanted})
    return examples


def images() -> Examples:
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(1, 4, 4, generator=generator), "labels": i % 3} for i in range(EXAMPLES)]


FAMILIES = {
    "bert": (bert, functools.partial(texts, True)),
    "gpt2": (gpt2, functools.partial(texts, False)),
    "vit": (vit, images),
    "t5": (t5, functools.partial(texts, False)),
    "resnet": (resnet, images),
}


def build(family: str, **settings: Any) -> tuple[nn.Module, Examples]:
    """Return a model in float64, the same at every call, and its examples, whose images are in float64 too."""
    make_model, make_examples = FAMILIES[family]
    torch.manual_seed(0)
    model = make_model(**settings).double()
    with torch.no_grad():
        for p in model.parameters():  # weights at which no unit is dead and no bias zero
            p.add_(torch.randn_like(p), alpha=0.05)
    examples = make_examples()
    for example in examples:
        if "pixel_values" in example:
            example["pixel_values"] = example["pixel_values"].double()
    return model, examples


def all_in_one(examples: Examples) -> dict[str, Tensor]:
    return {key: torch.stack([torch.as_tensor(e[key]) for e in examples]) for key in examples[0]}


def hessian(model: nn.Module, examples: Examples, names: list[str] | None = None) -> np.ndarray:
    """Return the Hessian of the loss in evaluation mode: a backward pass for 64 rows, written independently.

    All examples in one batch, so the model's own mean is the mean.
    """
    modes = [m.training for m in model.modules()]
    model.eval()
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    weights = {n: weights[n].requires_grad_() for n in names or weights}
    batch = all_in_one(examples)
    with sdpa_kernel(SDPBackend.MATH), StayFloat64():
        loss = functional_call(model, weights, kwargs=batch).loss
    params = list(weights.values())
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    whole = torch.cat([g.reshape(-1) for g in grads])
    rows = []
    for some in torch.eye(len(whole), dtype=whole.dtype).split(64):
        columns = torch.autograd.grad(
            whole, params, some, retain_graph=True, materialize_grads=True, is_grads_batched=True
        )
        rows.append(torch.cat([c.reshape(len(some), -1) for c in columns], dim=1))
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return torch.cat(rows).detach().numpy()
