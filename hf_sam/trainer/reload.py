# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of models whose tensors are renamed on the way to the file.

transformers 5 gives some models (ViT is one) other tensor names in memory than in their files, and renames in
`save_pretrained` and `from_pretrained`. The Trainer's own loading (resume, best model at the end) does not rename: it
warns of missing keys and goes on with the weights it has. Here such a checkpoint is loaded as a user would load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel


def load_renamed(model: Any, checkpoint: Path) -> None:
    """Load a checkpoint whose file has other names than `model`; do nothing if the names are the same.

    Args:
        model: what to load into; only a `PreTrainedModel` renames.
        checkpoint: folder with a `model.safetensors`.

    Raises:
        RuntimeError: if the checkpoint is of another model.
    """
    weights = checkpoint / "model.safetensors"
    if not isinstance(model, PreTrainedModel) or not weights.is_file():
        return
    with safe_open(weights, framework="pt") as saved:
        if set(saved.keys()) <= model.state_dict().keys():
            return
    with torch.random.fork_rng():  # building a model draws random numbers, the run must not notice
        again = type(model).from_pretrained(checkpoint, dtype=model.dtype)
    model.load_state_dict(again.state_dict())
