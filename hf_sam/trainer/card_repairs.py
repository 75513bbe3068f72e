# SPDX-License-Identifier: Apache-2.0
"""Put right what a Trainer's or an adapter's model card gets wrong: tags, where the model comes from, the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

TAG = "sharpness-aware-minimization"
FROM_NOTHING = "This model is a fine-tuned version of [](https://huggingface.co/) on"
FROM_SCRATCH = "This model was trained from scratch on"


def with_tag(tags: str | list[str] | None) -> list[str]:
    """Return the card's tags with ours among them; never bare "sam", which is Segment Anything's."""
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    return tags if TAG in tags else [*tags, TAG]


def with_right_metadata(text: str) -> str:
    """Return a card's text with our tag, and without a folder of this machine as the base model.

    PEFT writes tags of its own over those of the Trainer, and the path that the base was loaded from.
    """
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    tags, base = with_tag(data.tags), data.base_model
    if isinstance(base, str) and is_local(base):
        tags = [tag for tag in tags if not (tag.startswith("base_model:") and tag.endswith(base))]
        data.base_model = None
    elif tags == data.tags:
        return text
    data.tags = tags
    return str(card)


def with_right_origin(text: str, model: Any) -> str:
    """Return a card's text that says where the model comes from.

    A model without a name was trained from scratch; the Trainer calls it a fine-tuned version of nothing. A base of
    adapters that was loaded from a folder was not trained from scratch, and its path is of no use to a reader.
    """
    text = text.replace(FROM_NOTHING, FROM_SCRATCH)
    name = getattr(getattr(model, "config", None), "_name_or_path", None) or ""
    if name and is_local(name) and hasattr(model, "peft_config"):
        local = f"This model is fine-tuned from a local checkpoint ({Path(name).name}) on"
        linked = f"This model is a fine-tuned version of [{name}](https://huggingface.co/{name}) on"
        text = text.replace(linked, local).replace(FROM_SCRATCH, local)
    return text


def is_local(name: str) -> bool:
    """Return whether the name of a model is a path, and not a name on the Hub."""
    return os.path.isabs(name) or name.startswith((".", "~")) or os.path.isdir(name)


@contextmanager
def keys_in_one_order(state: Any) -> Iterator[None]:
    """Let all entries of the Trainer's history have their keys in the order of the last evaluation's, its loss first.

    A checkpoint sorts them, so that after a resume the table of results has other columns in its later lines than in
    its first ones.
    """
    history = state.log_history
    last: dict[str, Any] = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    place = {key: number for number, key in enumerate(["eval_loss", *(key for key in last if key != "eval_loss")])}
    try:
        state.log_history = [dict(sorted(e.items(), key=lambda item: place.get(item[0], len(place)))) for e in history]
        yield
    finally:
        state.log_history = history
