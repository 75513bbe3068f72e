# SPDX-License-Identifier: Apache-2.0
"""Engines that can run two passes, and how each of them does. A new one is a class and a line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_sam.engines.deepspeed import DeepSpeed
from hf_sam.engines.engine import Engine, ReplicatedEngine, ShardedEngine

ENGINES: tuple[type[Engine], ...] = (DeepSpeed, ShardedEngine, ReplicatedEngine, Engine)
"""The first that says it runs a model is asked."""


def engine_for(model: nn.Module, optimizer: Any, accelerator: Any) -> Engine:
    """Return the engine of a model as the training step gets it; one for a run.

    Args:
        model: wrapped by its engine.
        optimizer: the user's, or a wrapper around it.
        accelerator: accelerate's.
    """
    return next(engine for engine in ENGINES if engine.runs(model, optimizer))(model, accelerator)


__all__ = ["ENGINES", "DeepSpeed", "Engine", "ReplicatedEngine", "ShardedEngine", "engine_for"]
