# SPDX-License-Identifier: Apache-2.0
"""Notice when training arguments with SAM's settings train in a Trainer that knows nothing of them."""

from __future__ import annotations

import functools
import logging
import sys
from types import FrameType
from typing import Any

from transformers import Trainer

from hf_sam.config.sam_config import PLAIN

logger = logging.getLogger(__name__)

FORGOTTEN = (
    "%s trains without SAM: the settings in %s, rho among them, are read by SAMTrainer and classes with "
    "SAMTrainerMixin alone. Use hf_sam.SAMTrainer; or plain TrainingArguments, or sam_variant='none', if plain "
    "training is meant."
)


class NoticesPlainTrainer:
    """Training arguments that say so when they are the `args` of a plain Trainer that trains."""

    __slots__ = ()

    @property
    def n_gpu(self) -> int:
        """The number of GPUs of this process. Every Trainer asks for it where it trains, and only there as below."""
        _notice(self, sys._getframe(1))
        return int(super().n_gpu)  # type: ignore[misc]


def _notice(args: Any, caller: FrameType) -> None:
    """Warn if the caller is a plain Trainer at its work; a script may ask for the number of GPUs when it likes.

    The arguments are told nothing but this: a Trainer keeps them, and reads them.
    """
    if caller.f_code.co_name not in ("_wrap_model", "training_step"):
        return
    names = caller.f_locals
    trainer, trains = names.get("self"), names.get("training", True)
    plain = isinstance(trainer, Trainer) and not hasattr(type(trainer), "sam_config")
    if plain and trains and args.sam_variant != PLAIN:
        _say(type(trainer).__name__, type(args).__name__)


@functools.cache
def _say(trainer: str, args: str) -> None:
    """Warn, once for each pair."""
    logger.warning(FORGOTTEN, trainer, args)
