# SPDX-License-Identifier: Apache-2.0
"""The section of a model card that says how the model was trained."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_sam import _model_card
from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.variants import VARIANTS

SHOWN = ("rho", "sam_variant", "sam_variant_kwargs", "sam_scope")
"""Settings with a line of their own; the others have one where they are not at their default."""
TAG = "sharpness-aware-minimization"
HEADING = "### Sharpness-aware minimization"
NEXT_HEADING = "### Training hyperparameters"

_SECTION = """{heading}

Trained with [Sharpness-Aware Minimization](https://arxiv.org/abs/2010.01412) (not Segment Anything): each step takes
the gradient at the worst nearby point of the loss, within radius rho of the weights. The model itself is an ordinary
checkpoint.

- variant: {title}
- rho: {rho}
- scope: {scope}
{options}
```bibtex
{citation}
```
"""


def sam_section(config: SAMConfig) -> str:
    """Return the Markdown section for a run configured with `config`."""
    variant = VARIANTS[config.sam_variant]
    options = f"- options: {json.dumps(config.sam_variant_kwargs)}\n" if config.sam_variant_kwargs else ""
    for f in fields(SAMConfig):
        value = getattr(config, f.name)
        if f.name not in SHOWN and value != f.default:
            options += f"- {f.name}: {json.dumps(value)}\n"
    return _SECTION.format(
        heading=HEADING,
        title=variant.title,
        rho=config.rho,
        scope=config.sam_scope,
        options=options,
        citation=variant.citation,
    )


def with_section(card: str, config: SAMConfig) -> str:
    """Return the model card's text with our section before the hyperparameters, or at the end if it has none."""
    return _model_card.with_section(card, sam_section(config), end="```", before=NEXT_HEADING)


def with_tag(tags: str | list[str] | None) -> list[str]:
    """Return the card's tags with ours among them; never bare "sam", which is Segment Anything's."""
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    return tags if TAG in tags else [*tags, TAG]


def signing_saved_card(trainer: Any, output_dir: str | None, save: Callable[[], None]) -> None:
    """Call `save`; sign the card that some models (sentence-transformers, PEFT) write beside their weights.

    Args:
        trainer: whose settings the card is to name.
        output_dir: where it saves to; None for the training arguments'.
        save: the Trainer's own saving.
    """
    path = Path(output_dir if output_dir is not None else trainer.args.output_dir) / "README.md"
    before = _version(path)
    save()
    if trainer.sam_config.sam_variant != PLAIN and _version(path) not in (before, None):  # else it is the user's
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        data: Any = card.data
        data.tags = with_tag(data.tags)
        path.write_text(with_section(str(card), trainer.sam_config), encoding="utf-8")


def write_card(trainer: Any, create: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write the Trainer's model card with the tag, SAM's settings and the citation.

    Args:
        trainer: whose card it is.
        create: the Trainer's own `create_model_card`.
        args: for `create`.
        kwargs: likewise.
    """
    config = trainer.sam_config
    if config.sam_variant == PLAIN:
        create(*args, **kwargs)
        return
    call = inspect.signature(create).bind(*args, **kwargs)
    call.arguments["tags"] = with_tag(call.arguments.get("tags"))
    create(*call.args, **call.kwargs)
    path = Path(trainer.args.output_dir) / "README.md"
    if trainer.is_world_process_zero() and path.is_file():
        path.write_text(with_section(path.read_text(encoding="utf-8"), config), encoding="utf-8")


def _version(path: Path) -> tuple[int, int] | None:
    """Return something else whenever the file was written; None if there is none."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
