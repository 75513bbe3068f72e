# SPDX-License-Identifier: Apache-2.0
"""SAM's settings beside `TrainingArguments`, where the command line, the trackers and a search find them."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments

from hf_sam.config.sam_config import SAMConfig

FIELDS = tuple(f.name for f in fields(SAMConfig))
"""The names of SAM's settings."""


@dataclass(repr=False)  # TrainingArguments' own hides the tokens
class SAMTrainingArguments(SAMConfig, TrainingArguments):
    """`TrainingArguments` with the fields of `SAMConfig`, for scripts and `HfArgumentParser`.

    Args:
        output_dir: and every other argument of `transformers.TrainingArguments`.
        rho: and every other field of `SAMConfig`.

    Example:
        >>> SAMTrainingArguments("out", rho=0.1, use_cpu=True).rho
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
    if isinstance(args, SAMConfig):
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


def with_sam_fields(args: TrainingArguments, config: SAMConfig) -> TrainingArguments:
    """Return a copy of `args` that also has SAM's fields.

    Trackers log `args.to_dict()` and a hyperparameter search sets attributes of `args`, so this is where a composed
    `SAMConfig` has to be for both to work. The user's own object is left alone.
    """
    if isinstance(args, SAMConfig):
        return args
    base: Any = type(args)
    extended = copy.copy(args)
    extended.__class__ = _extended(base)
    for name in FIELDS:
        setattr(extended, name, getattr(config, name))
    return extended


class _Extended:
    """A class made at run time; copies and pickles find it again through the class it extends."""

    extends: type[TrainingArguments]

    def __reduce_ex__(self, protocol: Any) -> Any:
        del protocol
        return _rebuild, (self.extends, self.__dict__)


@functools.cache
def _extended(base: Any) -> Any:
    namespace = {"__module__": __name__, "__doc__": base.__doc__, "extends": base}
    return dataclass(repr=False)(type(base.__name__, (_Extended, SAMConfig, base), namespace))


def _rebuild(base: Any, state: dict[str, Any]) -> TrainingArguments:
    cls = _extended(base)
    args = cls.__new__(cls)
    args.__dict__.update(state)
    return args
