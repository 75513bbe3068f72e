# SPDX-License-Identifier: Apache-2.0
"""How does a `compute_loss` that counts something on its trainer count each example once?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

COUNTERS = (
    *("_metrics", "_total_train_tokens", "_stored_metrics"),  # TRL; the last one in CPO, ORPO, TPO and older versions
    "accum_loss_components",  # sentence-transformers, for losses of several parts
)
"""Where trainers keep what they count in `compute_loss`."""


@contextmanager
def counted_once(trainer: Any, names: Iterable[str]) -> Iterator[None]:
    """Undo whatever happens to the named attributes inside, also when something is raised.

    Inside, they are copies; afterwards they are the objects they were, for whoever else holds them.

    Args:
        trainer: whose attributes are kept.
        names: those it does not have are passed over.
    """
    kept = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
    try:
        for name, value in kept.items():
            setattr(trainer, name, copy.deepcopy(value))
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
