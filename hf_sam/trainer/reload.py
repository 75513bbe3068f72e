# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of models whose tensors are renamed on the way to the file.

transformers 5 gives some models (ViT, Mixtral) other tensors in memory than in their files, and converts them in
`save_pretrained` and `from_pretrained`. The Trainer's own loading (resume, best model at the end), of one file and of
shards, does not convert: it warns of missing keys and goes on with the weights it has (seen in transformers 5.23.0,
issues 40187, 43701 and 48805 there). Here such a checkpoint is loaded as a user would load it. What is missing after
that is left to the Trainer's own warning.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_sam.parameters.unwrap import unwrapped
from hf_sam.step.replay import RandomState, devices_of


@contextmanager
def loading(trainer: Any, folder: str | Path, model: Any = None) -> Iterator[None]:
    """Note what is loaded into what, for `load_renamed` to know, as long as the Trainer loads it."""
    trainer._sam.loading = (trainer.model if model is None else model, Path(folder))
    try:
        yield
    finally:
        trainer._sam.loading = None


def load_renamed(model: nn.Module, folder: Path, result: Any) -> Any:
    """Load what the Trainer has not found in a checkpoint because its name in the file is another one.

    Args:
        model: what the Trainer has loaded into; only a `PreTrainedModel` renames.
        folder: of the checkpoint.
        result: of the Trainer's loading: `missing_keys` and `unexpected_keys`.

    Returns:
        The same after this loading. A tensor that is tied to a loaded one is not missing.

    Raises:
        RuntimeError: if the names differ, and `from_pretrained` cannot load the checkpoint either.
    """
    model = unwrapped(model)
    missing, unexpected = _without_ties(model, result.missing_keys), list(result.unexpected_keys)
    if missing and unexpected and isinstance(model, PreTrainedModel):
        missing, unexpected = _converted(model, folder)
    return type(result)(missing, unexpected)


def _without_ties(model: nn.Module, missing: list[str]) -> list[str]:
    """Return those of the missing names whose tensor has come under no other name."""
    tensors = model.state_dict(keep_vars=True) if missing else {}
    come = {id(tensor) for name, tensor in tensors.items() if name not in set(missing)}
    return [name for name in missing if name not in tensors or id(tensors[name]) not in come]


def _converted(model: PreTrainedModel, folder: Path) -> tuple[list[str], list[str]]:
    """Load as `from_pretrained` does; return what is missing and what is unexpected then."""
    widest = functools.reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})
    streams = RandomState(devices_of(model.parameters()))  # building a model draws, the run must not notice
    try:
        again, found = type(model).from_pretrained(folder, config=model.config, dtype=widest, output_loading_info=True)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"The tensors in the checkpoint {folder} have other names than the model's, and "
            f"{type(model).__name__}.from_pretrained cannot load them: {error}"
        ) from error
    finally:
        streams.restore()
    missing = sorted(found["missing_keys"])
    model.load_state_dict({n: t for n, t in again.state_dict().items() if n not in set(missing)}, strict=False)
    return missing, sorted(found["unexpected_keys"])
