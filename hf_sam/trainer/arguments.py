# SPDX-License-Identifier: Apache-2.0
"""SAM's settings beside `TrainingArguments`, where the command line, the trackers and a search find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_sam.config.sam_config import SAMConfig
from hf_sam.trainer.forgotten_class import NoticesPlainTrainer
from hf_sam.trainer.shared_arguments import FIELDS, holds_settings


@dataclass(repr=False)  # TrainingArguments' own hides the tokens
class SAMTrainingArguments(NoticesPlainTrainer, SAMConfig, TrainingArguments):
    """`TrainingArguments` with the fields of `SAMConfig`, for scripts and `HfArgumentParser`.

    Args:
        output_dir: and every other argument of `transformers.TrainingArguments`.
        rho: and every other field of `SAMConfig`.

    Example:
        >>> SAMTrainingArguments("out", rho=0.1, use_cpu=True).rho
        0.1
    """


@dataclass(repr=False)
class SAMSeq2SeqTrainingArguments(NoticesPlainTrainer, SAMConfig, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the fields of `SAMConfig`, for `SAMSeq2SeqTrainer`.

    Args:
        output_dir: and every other argument of `transformers.Seq2SeqTrainingArguments`.
        rho: and every other field of `SAMConfig`.

    Example:
        >>> SAMSeq2SeqTrainingArguments("out", rho=0.1, predict_with_generate=True, use_cpu=True).rho
        0.1
    """


def resolve_config(args: Any, sam_config: SAMConfig | None) -> SAMConfig:
    """Return the one configuration meant by the two arguments of the trainer.

    Raises:
        TypeError: if `sam_config` is not a `SAMConfig`.
        ValueError: if both carry one: there is no precedence to guess.
    """
    if sam_config is not None and not isinstance(sam_config, SAMConfig):
        raise TypeError(f"`sam_config` must be a SAMConfig, got {sam_config!r}.")
    if holds_settings(args):
        if sam_config is not None:
            raise ValueError(
                f"`sam_config` was given beside `args` of type {type(args).__name__}, which already holds SAM's "
                "settings. Give them once: either in `args`, or plain TrainingArguments with `sam_config`."
            )
        return config_of(args)
    return sam_config if sam_config is not None else SAMConfig()


def config_of(args: SAMConfig) -> SAMConfig:
    """Return SAM's settings out of `args`, checked again: a hyperparameter search writes into it."""
    return SAMConfig(**{name: getattr(args, name) for name in FIELDS})
