# SPDX-License-Identifier: Apache-2.0
"""How long does an optimizer step take, and how long of it are its passes?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """Notes when each optimizer step ended.

    On one CPU thread it is the time that this process had, which others on the machine do not lengthen.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.inside = 0.0
        alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
        self.now = time.process_time if alone else time.perf_counter

    def read(self) -> float:
        """Return the time, when the device has done its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(self.read())

    @contextmanager
    def a_pass(self) -> Iterator[None]:
        """Add the time inside to `inside`."""
        start = self.read()
        yield
        self.inside += self.read() - start
