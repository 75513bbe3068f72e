# SPDX-License-Identifier: Apache-2.0
"""Copy a trainer, to train with the copy and leave the trainer alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import GeneralTracker
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import TrainerMemoryTracker

from hf_sam.rho_search.object_copy import ObjectCopy
from hf_sam.step.replay import RandomState

SHARED = (PartialState, AcceleratorState, GradientState, TrainerCallback, GeneralTracker)
WHOLE = (Trainer, Accelerator, CallbackHandler, Optimizer, GradScaler)
WAY_OUT = "Pass a function that makes a trainer instead: find_rho(lambda: SAMTrainer(...))."
NOT_COPIED = "{name} cannot be copied ({error}), and find_rho trains with a copy. " + WAY_OUT
NOT_APART = (
    "The optimizer of a copy of this trainer trains weights of the trainer itself, which a function reaches from "
    "outside (a global name?). " + WAY_OUT
)


class TrainerCopy:
    """A copy of a trainer and of all that its attributes lead to.

    Callbacks, trackers, accelerate's states of the process and the random streams of the process are shared.

    Args:
        trainer: a `transformers.Trainer` in one process; nothing of it changes.

    Attributes:
        trainer: the copy.

    Raises:
        NotImplementedError: if something cannot be copied, such as an iterator, an open file or a lock.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._copy = ObjectCopy(random_streams(), SHARED, WHOLE, _replaced(trainer))
        try:
            self.trainer: Any = self._copy(trainer)
        except Exception as error:
            name, text = "trainer" + self._copy.place, " ".join(str(error).split())
            raise NotImplementedError(NOT_COPIED.format(name=name, error=text)) from error

    def check(self, params: Iterable[Tensor]) -> None:
        """Raise NotImplementedError if one of the parameters that the copy trains is the trainer's own."""
        if any(self._copy.memo.get(id(p), p) is not p for p in params):
            raise NotImplementedError(NOT_APART)


def _replaced(trainer: Any) -> dict[int, dict[str, Any]]:
    """Return the attributes that a copy does not take over, by the id of their owner.

    What `train` empties at its beginning, and what only evaluations, searches and uploads use.
    """
    unused = ("compute_metrics", "preprocess_logits_for_metrics", "push_in_progress", "_trial")
    prepared = ("_models", "_optimizers", "_schedulers", "_dataloaders")
    return {
        id(trainer): {
            **{name: value for name, value in vars(trainer).items() if name in unused},
            "_memory_tracker": TrainerMemoryTracker(skip_memory_metrics=True),
            "_eval_dataloaders": {},
        },
        id(trainer.accelerator): {name: [] for name in prepared},
        id(trainer.callback_handler): {"train_dataloader": None, "eval_dataloader": None},
    }


def random_streams() -> list[Any]:
    """Return the generators that belong to the process; a copy of an object that draws from one draws from it too."""
    streams: list[Any] = [random.random.__self__, torch.default_generator]  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        streams.append(numpy.random.get_state.__self__)
    return streams + list(torch.cuda.default_generators)


@contextmanager
def process_as_found(devices: Iterable[torch.device]) -> Iterator[None]:
    """Leave the random streams of the process and accelerate's gradient state as they are now, whatever is raised.

    Args:
        devices: whose random streams are meant, as well as those of the CPU.
    """
    random_state, shared = RandomState(devices), vars(GradientState())
    found = dict(shared)

    def restore() -> None:
        random_state.restore()
        shared.clear()
        shared.update(found)

    try:
        yield
    finally:
        try:
            restore()
        except BaseException:  # Ctrl-C once more
            restore()
            raise
