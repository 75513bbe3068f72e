# SPDX-License-Identifier: Apache-2.0
"""Write predictions down: a class by its name, several with a bar between them, a number with its digits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hf_sam.cli.common.target import Target


def formatter(target: Target) -> Callable[[np.ndarray], list[str]]:
    """Return what turns logits into texts, one a row."""

    def classes(logits: np.ndarray) -> list[str]:
        return [target.names[number] for number in logits.argmax(axis=-1)]

    def several(logits: np.ndarray) -> list[str]:
        return [
            target.separator.join(name for name, there in zip(target.names, row > 0, strict=True) if there)
            for row in logits
        ]

    def numbers(logits: np.ndarray) -> list[str]:
        return [f"{value:.6g}" for value in np.squeeze(logits, axis=-1)]

    return {"classification": classes, "multilabel": several, "regression": numbers}[target.kind]
