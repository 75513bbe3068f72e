# SPDX-License-Identifier: Apache-2.0
"""What does a model card say about how the model was trained?"""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard

from hf_sam import _model_card
from hf_sam.config.sam_config import PLAIN, SAMConfig
from hf_sam.variants import VARIANTS

# The mixin stands before a Trainer in the bases of a class; type checkers need to be told.
if TYPE_CHECKING:
    from transformers import Trainer as SomeTrainer
else:
    SomeTrainer = object

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


class WritesModelCard(SomeTrainer):
    """A mixin for a Trainer whose model cards say how SAM was used."""

    @property
    def sam_config(self) -> SAMConfig:
        """The settings in force; the trainer's."""
        raise NotImplementedError

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save as the Trainer does; sign the card that some models (sentence-transformers, PEFT) write beside it."""
        path = Path(output_dir if output_dir is not None else self.args.output_dir) / "README.md"
        before = _version(path)
        super()._save(output_dir, *args, **kwargs)
        if self.sam_config.sam_variant != PLAIN and _version(path) not in (before, None):  # else it is the user's
            card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
            data: Any = card.data
            data.tags = with_tag(data.tags)
            path.write_text(with_section(str(card), self.sam_config), encoding="utf-8")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's model card with the tag, SAM's settings and the citation."""
        config = self.sam_config
        if config.sam_variant == PLAIN:
            super().create_model_card(*args, **kwargs)
            return
        call = inspect.signature(super().create_model_card).bind(*args, **kwargs)
        call.arguments["tags"] = with_tag(call.arguments.get("tags"))
        super().create_model_card(*call.args, **call.kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if self.is_world_process_zero() and path.is_file():
            path.write_text(with_section(path.read_text(encoding="utf-8"), config), encoding="utf-8")


def _version(path: Path) -> tuple[int, int] | None:
    """Return something else whenever the file was written; None if there is none."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
