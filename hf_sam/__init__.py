# SPDX-License-Identifier: Apache-2.0
"""Sharpness-Aware Minimization for the Hugging Face Trainer (Foret et al. 2021, arXiv:2010.01412).

Not Segment Anything: "SAM" is the optimisation method everywhere in this package.
"""

import warnings
from typing import Any

from hf_sam.config.sam_config import SAMConfig
from hf_sam.functional import sharpness_aware_grad
from hf_sam.rho_search.find_rho import find_rho
from hf_sam.rho_search.recommendation import RangeTest
from hf_sam.step_context import StepContext
from hf_sam.trainer.arguments import SAMSeq2SeqTrainingArguments, SAMTrainingArguments
from hf_sam.trainer.messages import name_the_package
from hf_sam.trainer.trainer import SAMSeq2SeqTrainer, SAMTrainer, SAMTrainerMixin
from hf_sam.trainer.weight_averaging import WeightAveraging
from hf_sam.variants import (
    ASAM,
    GSAM,
    NBAR,
    OBAR,
    SAM,
    VARIANTS,
    BiLoRA,
    FlatLoRA,
    FriendlySAM,
    LookSAM,
    Momentum,
    OnePass,
    RandomDirection,
    Regulariser,
    Variant,
)

name_the_package(__name__)

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (by subject, not by letter)
    # trainers
    "SAMTrainer",
    "SAMSeq2SeqTrainer",
    "SAMTrainerMixin",
    # configuration
    "SAMConfig",
    "SAMTrainingArguments",
    "SAMSeq2SeqTrainingArguments",
    # a radius to start with
    "find_rho",
    "RangeTest",
    # what to combine it with, and to compare it with
    "WeightAveraging",
    # the step, for any loop
    "sharpness_aware_grad",
    # variants
    "VARIANTS",
    "SAM",
    "ASAM",
    "GSAM",
    "FriendlySAM",
    "LookSAM",
    "Momentum",
    "RandomDirection",
    # for LoRA
    "NBAR",
    "OBAR",
    "FlatLoRA",
    "BiLoRA",
    # to write one's own
    "Variant",
    "OnePass",
    "Regulariser",
    "StepContext",
]


def __getattr__(name: str) -> Any:
    """Answer to the former name of `StepContext`, with a warning."""
    if name == "Moment":
        warnings.warn("hf_sam.Moment is called hf_sam.StepContext now.", DeprecationWarning, stacklevel=2)
        return StepContext
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
