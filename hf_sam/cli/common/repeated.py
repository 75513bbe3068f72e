# SPDX-License-Identifier: Apache-2.0
"""Which rows occur twice? In the training data and in the evaluation, or under two labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from datasets import Image as ImageFeature

from hf_sam.cli.common.images import Images


def count_repeated(train: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> int:
    """Return how many rows of the other set are in the training data, too, texts and all."""
    known = set(zip(*train, strict=True))
    return sum(row in known for row in zip(*other, strict=True))


def count_contradictions(columns: Sequence[Sequence[str]], labels: Sequence[Any]) -> int:
    """Return how many texts occur with more than one label."""
    found: dict[tuple[str, ...], Any] = {}
    different: set[tuple[str, ...]] = set()
    for row, label in zip(zip(*columns, strict=True), labels, strict=True):
        if found.setdefault(row, label) != label:
            different.add(row)
    return len(different)


def count_repeated_images(train: Images, other: Images) -> int:
    """Return how many files of the other set are in the training data, too, byte for byte."""
    left, right = _files(train), _files(other)
    sizes = {_size(file) for file in left} & {_size(file) for file in right}  # the others cannot be the same
    known = {_digest(file) for file in left if _size(file) in sizes}
    return sum(_digest(file) in known for file in right if _size(file) in sizes)


def _files(images: Images) -> list[dict[str, Any]]:
    return images.rows.cast_column(images.column, ImageFeature(decode=False))[images.column][:]


def _size(file: dict[str, Any]) -> int:
    return len(file["bytes"]) if file["bytes"] is not None else os.path.getsize(file["path"])


def _digest(file: dict[str, Any]) -> bytes:
    content = file["bytes"]
    if content is None:
        with open(file["path"], "rb") as opened:
            content = opened.read()
    return blake2b(content, digest_size=16).digest()


def repeated_text(count: int, split: str, rows: int) -> str:
    """Return the warning."""
    return f"{count:,} {split} rows ({count / rows:.0%}) are in the training data, too: their scores flatter"
