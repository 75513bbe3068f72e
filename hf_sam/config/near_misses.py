# SPDX-License-Identifier: Apache-2.0
"""Say what a user meant by a name that is no setting: one spelt alike, or an option of a variant, schedule or gate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from hf_sam._checks import did_you_mean
from hf_sam.gate import GradientNormTest
from hf_sam.radius.controllers import SCHEDULES
from hf_sam.variants import VARIANTS

T = TypeVar("T")


def naming_near_misses(cls: type[T]) -> type[T]:
    """Let the constructor of a dataclass say what was meant by a keyword that it does not have; a class decorator.

    It also leaves in the new object which fields were given, as `_given`, until `__post_init__` takes it.
    """
    init: Any = cls.__init__
    names = tuple(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if unknown := [name for name in kwargs if name not in names]:
            raise TypeError(f"`{cls.__name__}` has no setting {unknown[0]!r}.{_meant(unknown[0], names)}")
        vars(self)["_given"] = frozenset((*names[: len(args)], *kwargs))
        try:
            init(self, *args, **kwargs)
        finally:
            vars(self).pop("_given", None)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def _meant(name: str, known: Iterable[str]) -> str:
    for setting, choice, options in _options():
        if name in options:
            return f" It is an option of {choice!r}: {setting}={choice!r}, {setting}_kwargs={{{name!r}: ...}}."
    known = list(known)
    if name == "preset":
        return " A preset is SAMConfig.preset('full'), or SAMTrainingArguments(preset='full')."
    prefixed = next((full for full in (f"sam_{name}", f"rho_{name}") if full in known), name)
    return did_you_mean(prefixed, known) or f" Its settings: {', '.join(known[:30])}."


def _options() -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield a setting, a choice for it, and the options that this one has."""
    yield from (("sam_variant", name, inspect.signature(kind).parameters) for name, kind in VARIANTS.items())
    for name, kind in SCHEDULES.items():
        yield "rho_schedule", name, list(inspect.signature(kind).parameters)[1:]
    yield "sam_gate", "gradient_norm", inspect.signature(GradientNormTest).parameters
