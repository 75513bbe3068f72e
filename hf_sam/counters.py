# SPDX-License-Identifier: Apache-2.0
"""How does a `compute_loss` that counts something on its trainer count each example once?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

COUNTERS = ("_metrics", "_total_train_tokens")
"""Where TRL's trainers keep what they count in `compute_loss`."""


@contextmanager
def counted_once(trainer: Any, names: Iterable[str]) -> Iterator[None]:
    """Undo whatever happens to the named attributes inside, also when something is raised.

    Args:
        trainer: whose attributes are kept.
        names: those it does not have are passed over.
    """
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in names if hasattr(trainer, name)}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
