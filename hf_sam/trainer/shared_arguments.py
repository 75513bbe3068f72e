# SPDX-License-Identifier: Apache-2.0
"""The user's own arguments with SAM's settings beside them, and what of both is saved with a model."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments

from hf_sam.config.sam_config import SAMConfig

FIELDS = tuple(f.name for f in fields(SAMConfig))
"""The names of SAM's settings."""


def holds_settings(args: Any) -> bool:
    """Return whether training arguments have SAM's fields: by their class, or as saved by `as_plain`."""
    return isinstance(args, SAMConfig) or (isinstance(args, TrainingArguments) and set(FIELDS) <= vars(args).keys())


def with_sam_fields(args: TrainingArguments, config: SAMConfig) -> TrainingArguments:
    """Return `args` with SAM's fields: another object, whose attributes are those of the user's own.

    Trackers log `args.to_dict()` and a hyperparameter search sets attributes of `args`, so this is where a composed
    `SAMConfig` has to be for both to work. What is set on either object later is seen on both, as with a Trainer, which
    keeps the user's object itself; SAM's fields are on this one alone, so that other trainers can have the same `args`.
    """
    if isinstance(args, SAMConfig):
        return args
    apart = () if holds_settings(args) else FIELDS
    return _joined(type(args), vars(args), {name: getattr(config, name) for name in apart})


def as_plain(args: TrainingArguments) -> TrainingArguments:
    """Return a copy of a class that loads where `hf_sam` is not installed, with SAM's settings as plain attributes.

    A class that a user derived from one of `hf_sam` stays what it is: its own module imports `hf_sam`.
    """
    cls: Any = next(base for base in type(args).__mro__ if base.__module__.partition(".")[0] != "hf_sam")
    plain: TrainingArguments = cls.__new__(cls)
    vars(plain).update(vars(args))
    vars(plain).update((name, getattr(args, name)) for name in FIELDS if hasattr(args, name))
    return plain


class _Extended:
    """A class made at run time; copies and pickles find it again through the class it extends."""

    __slots__ = ()
    extends: type[TrainingArguments]
    apart: tuple[str, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        del protocol
        return _joined, (self.extends, dict(vars(self)), {name: getattr(self, name) for name in self.apart})


@functools.cache
def _extended(base: Any, apart: tuple[str, ...]) -> Any:
    """Return a class that keeps some of the settings apart from its other attributes."""
    namespace = {"__module__": __name__, "__doc__": base.__doc__, "extends": base, "apart": apart}
    made = type(base.__name__, (_Extended, SAMConfig, base), {**namespace, "__slots__": apart})
    return dataclass(repr=False)(made)


def _joined(base: Any, attributes: dict[str, Any], settings: dict[str, Any]) -> TrainingArguments:
    """Return arguments that extend `base`: with these very attributes, and settings beside them."""
    cls = _extended(base, tuple(settings))
    args: TrainingArguments = cls.__new__(cls)
    args.__dict__ = attributes
    for name, value in settings.items():
        setattr(args, name, value)
    return args
