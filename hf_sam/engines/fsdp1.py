# SPDX-License-Identifier: Apache-2.0
"""FSDP1, whose parameters look like any others: the one place that reads torch's private names for it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

SYNC_SWITCH = "_sync_gradients"
"""Attribute of an FSDP1 module that says whether its next backward pass reduces gradients."""


def fsdp1_modules(model: nn.Module) -> list[Any]:
    """Return the FullyShardedDataParallel modules of `model`."""
    # Looked up, not imported: without the import there can be no such module.
    fsdp = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    return [m for m in model.modules() if isinstance(m, fsdp.FullyShardedDataParallel)] if fsdp else []


def flat_copies(model: nn.Module) -> dict[int, int]:
    """Return, by `id` of a parameter that FSDP1 keeps in a flat one, how many processes hold the same elements."""
    copies = {}
    for module in fsdp1_modules(model):
        handle = module._handle
        if handle is None:
            continue
        shards = handle.process_group.size() if handle.uses_sharded_strategy else 1
        flat = handle.flat_param
        for param in (flat, *(getattr(flat, "_params", None) or ())):
            copies[id(param)] = torch.distributed.get_world_size() // shards
    return copies
