# SPDX-License-Identifier: Apache-2.0
"""How are predictions written down? A class by its name, several with a bar between them, a number with its digits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hf_sam.cli.common.problem import Problem


def formatter(problem: Problem) -> Callable[[np.ndarray], list[str]]:
    """Return what turns logits into texts, one a row."""

    def classes(logits: np.ndarray) -> list[str]:
        return [problem.names[number] for number in logits.argmax(axis=-1)]

    def several(logits: np.ndarray) -> list[str]:
        return [
            problem.separator.join(name for name, there in zip(problem.names, row > 0, strict=True) if there)
            for row in logits
        ]

    def numbers(logits: np.ndarray) -> list[str]:
        return [f"{value:.6g}" for value in np.squeeze(logits, axis=-1)]

    return {"classification": classes, "multilabel": several, "regression": numbers}[problem.kind]
