# SPDX-License-Identifier: Apache-2.0
"""Do the weights of a checkpoint really come back?

transformers 5 gives some models (ViT is one) other tensor names in memory than in their files, and renames in
`save_pretrained` and `from_pretrained`. The Trainer's own loading (resume, best model at the end) does not rename: it
warns of missing keys and goes on with the weights it has. Here such a checkpoint is loaded as a user would load it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

# The mixin stands before a Trainer in the bases of a class; type checkers need to be told.
if TYPE_CHECKING:
    from transformers import Trainer as SomeTrainer
else:
    SomeTrainer = object


class ReloadsRenamedTensors(SomeTrainer):
    """A mixin for a Trainer that also resumes models whose tensors are renamed on the way to the file."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *model: Any, **named: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *model, **named)  # sentence-transformers' takes no model
        if self.is_fsdp_enabled:
            return  # accelerate has loaded its own files, which have the names in memory
        given = model[0] if model else named.get("model")
        load_renamed(self.model if given is None else given, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_fsdp_enabled:
            load_renamed(self.model, Path(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if not isinstance(self.model, PreTrainedModel):
            super()._issue_warnings_after_load(load_result)  # else load_renamed is strict, a warning would be wrong


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
