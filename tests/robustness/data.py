# SPDX-License-Identifier: Apache-2.0
"""Tiny models in 32 bits with their examples, an image processor, and a tokenizer of thirty words."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

from torch import nn
from transformers import BertTokenizerFast

from tests.sharpness.models import build

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase),
    "the", "film", "was", "good", "bad", "very", ".", ",",
]  # fmt: skip


class Processor:
    """What an image processor says about its numbers."""

    image_mean = (0.5,)
    image_std = (0.25,)
    do_rescale = do_normalize = True


def small(family: str) -> tuple[nn.Module, Any]:
    """Return a model in 32 bits, in evaluation mode, and its examples."""
    model, examples = build(family)
    for example in examples:
        if "pixel_values" in example:
            example["pixel_values"] = example["pixel_values"].float()
    return model.float().eval(), examples


def tokenizer(folder: Path) -> Any:
    """Return a tokenizer that knows all letters and a few words."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
