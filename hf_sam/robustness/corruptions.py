# SPDX-License-Identifier: Apache-2.0
"""Built-in perturbations of inputs, at five severities: which there are, and the examples that they make."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_sam.robustness.images import IMAGES, Pixels, corrupted_image
from hf_sam.robustness.texts import TEXTS, Tokens, corrupted_text

SEVERITIES = (1, 2, 3, 4, 5)
Change = Callable[[Any, int], Any]
"""From an example and its number, the changed example."""


def corruptions_for(example: Any) -> tuple[str, ...]:
    """Return the names of the corruptions that an example can have: those of images or of texts; none for others."""
    keys = set(example) if isinstance(example, Mapping) else set()
    return tuple(IMAGES) if "pixel_values" in keys else tuple(TEXTS) if "input_ids" in keys else ()


def corruption(name: str, severity: int, rows: list[Any], processing_class: Any, seed: int) -> Change:
    """Return the function that corrupts an example.

    What is random depends on the seed, the corruption, its severity and the example's number alone: every model sees
    the same corrupted examples.

    Args:
        name: of the corruption.
        severity: 1 to 5.
        rows: all examples.
        processing_class: the image processor, or the tokenizer.
        seed: of what is random.

    Raises:
        ValueError: if `processing_class` is not what these examples need.
        NotImplementedError: if the examples hold something that corrupted texts would not fit.
    """
    if name in IMAGES:
        pixels = Pixels.of(processing_class)
        return lambda row, i: {
            **row,
            "pixel_values": corrupted_image(
                row["pixel_values"], name, severity, pixels, _stream(seed, name, severity, i)
            ),
        }
    tokens = Tokens.of(processing_class, rows)
    return lambda row, i: corrupted_text(row, name, severity, tokens, random.Random(f"{seed}/{name}/{severity}/{i}"))


def _stream(seed: int, name: str, severity: int, i: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{severity}/{i}".encode()))
