# SPDX-License-Identifier: Apache-2.0
"""SAM's settings beside `TrainingArguments`, where the command line, the trackers and a search find them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_sam.config.near_misses import naming_near_misses
from hf_sam.config.presets import PRESETS, fields_of_preset
from hf_sam.config.sam_config import SAMConfig
from hf_sam.trainer.forgotten_class import NoticesPlainTrainer
from hf_sam.trainer.shared_arguments import FIELDS, holds_settings

WORDS = ("rho", "sam_start")
"""Those of SAM's settings that are a number or a word."""


@naming_near_misses
@dataclass(repr=False)  # TrainingArguments' own hides the tokens
class SAMTrainingArguments(NoticesPlainTrainer, SAMConfig, TrainingArguments):
    """`TrainingArguments` with the fields of `SAMConfig`, for scripts and `HfArgumentParser`.

    It takes every argument of `transformers.TrainingArguments`, `output_dir` first, and every field of `SAMConfig`.

    Args:
        preset: name of a combination (`SAMConfig.preset`). Settings that are given beside it win, and that is said. A
            parser gives all of them: there, those that are not at their default win.

    Example:
        >>> SAMTrainingArguments("out", rho=0.1, use_cpu=True).rho
        0.1
        >>> SAMTrainingArguments("out", preset="free", use_cpu=True).sam_variant
        'momentum'
    """

    preset: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": f"A combination of SAM's settings: {', '.join(PRESETS)}. Settings that are given win."},
    )

    def __post_init__(self) -> None:
        """Fill in the preset, then check all fields."""
        given = set(self.__dict__.pop("_given", FIELDS))
        if self.preset:
            values = {name: getattr(self, name) for name in FIELDS}
            if given >= set(FIELDS):  # by a parser, or to copy other arguments
                given = {f.name for f in fields(SAMConfig) if values[f.name] != f.default}
            for name, value in fields_of_preset(self.preset, values, given).items():
                setattr(self, name, value)
        super().__post_init__()


# The field's default must not stand in the way of the method that it shares its name with.
del SAMTrainingArguments.preset


@naming_near_misses
@dataclass(repr=False)
class SAMSeq2SeqTrainingArguments(SAMTrainingArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the fields of `SAMTrainingArguments`."""


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


def refuse_misplaced(init: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise for settings of SAM that were given to the trainer itself, one or all of them.

    Args:
        init: the constructor of the trainer that the mixin stands before.
        args: what it is to be called with.
        kwargs: likewise, by name.

    Raises:
        TypeError: with the right place.
    """
    if any(isinstance(one, SAMConfig) and not isinstance(one, TrainingArguments) for one in (*args, *kwargs.values())):
        raise TypeError("`args` must be TrainingArguments, got a SAMConfig: give it as sam_config=SAMConfig(...).")
    for name in (*FIELDS, "preset"):
        if name in kwargs and name not in inspect.signature(init).parameters:
            one = f"SAMConfig.preset({kwargs[name]!r})" if name == "preset" else f"SAMConfig({name}={kwargs[name]!r})"
            raise TypeError(f"`{name}` is a setting of SAM and no argument of the trainer: give sam_config={one}.")


def config_of(args: SAMConfig) -> SAMConfig:
    """Return SAM's settings out of `args`, checked again: a hyperparameter search writes into it."""
    return SAMConfig(**{name: getattr(args, name) for name in FIELDS})


@contextmanager
def keeping_words(args: Any) -> Iterator[None]:
    """Let a hyperparameter search write a number or a word where either may stand.

    It casts what it tries to the type of the value before, unless that is None: "auto" is no float.

    Raises:
        ValueError: if the search tries presets, which are read when the arguments are made.
    """
    before = {name: getattr(args, name) for name in WORDS}
    preset = getattr(args, "preset", None)
    try:
        for name in before:
            setattr(args, name, None)
        yield
    finally:
        for name, value in before.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    if getattr(args, "preset", None) != preset:
        raise ValueError(
            f"`preset={args.preset!r}` was set by a search, and is read only when the arguments are made. Search over "
            "the settings that it stands for (SAMConfig.preset shows them)."
        )
