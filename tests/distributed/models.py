# SPDX-License-Identifier: Apache-2.0
"""Tiny models set up for an engine, and the ways in which tests change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.models import FAMILIES, llama


def paired() -> nn.Module:
    """A Llama with two key-value heads, which two processes can divide."""
    config = llama().config
    config.num_key_value_heads = 2
    return LlamaForCausalLM(config)


OTHERS = {"paired": paired}


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def with_unused_layer(model: nn.Module) -> nn.Module:
    model.unused = nn.Linear(3, 3)
    return model


def in_bfloat16(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


def with_lora(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def with_trainable_norms(model: nn.Module) -> nn.Module:
    """Train sharded weights beside replicated ones."""
    for name, param in model.named_parameters():
        if "norm" in name or "down_proj" in name:
            param.requires_grad_(True)
    return model


CHANGES = {f.__name__: f for f in (without_dropout, with_unused_layer, in_bfloat16, with_lora, with_trainable_norms)}


def make_model(job: Any, folder: Path) -> nn.Module:
    """Return the model of a job, the same on every process."""
    torch.manual_seed(0)
    model = FAMILIES[job.family][0]() if job.family in FAMILIES else OTHERS[job.family]()
    if job.engine == "native":
        model = sharded_at_load(model, folder, job)
    for name in job.prepare:
        model = CHANGES[name](model)
    return model


def sharded_at_load(model: nn.Module, folder: Path, job: Any) -> nn.Module:
    from transformers.distributed import DistributedConfig

    saved = folder / f"{job.name}-start"
    if torch.distributed.get_rank() == 0:
        model.save_pretrained(saved)
    torch.distributed.barrier()
    size = {"fsdp_size": torch.distributed.get_world_size(), **job.options}
    return type(model).from_pretrained(saved, distributed_config=DistributedConfig(**size), dtype=torch.float32)
