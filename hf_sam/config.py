# SPDX-License-Identifier: Apache-2.0
"""What can a user set, and which values make sense?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hf_sam.variants import VARIANTS, Variant, make_variant

SCOPES = ("batch", "device", "micro_batch")
ROUNDINGS = ("nearest", "stochastic")
PLAIN = "none"
"""The `sam_variant` that leaves the Trainer as it is: one pass per step, no cost."""


@dataclass
class SAMConfig:
    """How to train sharpness-aware.

    The same fields are in `SAMTrainingArguments`, where they are command line options and reach the trackers.

    Args:
        rho: radius of the perturbation, in the units of the weights' Euclidean norm; >= 0.
        sam_variant: name of the direction, or "none".
        sam_variant_kwargs: options of the direction; a mapping, or a JSON object as a string.
        sam_scope: which data shares one perturbation.
        sam_rounding: how weights stored in 16 bits take a perturbation that is finer than they are.

    Raises:
        ValueError: if a value is out of range.
        TypeError: if a value is of the wrong type.

    Example:
        >>> SAMConfig(rho=0.5, sam_variant="asam", sam_variant_kwargs={"eta": 0.01}).rho
        0.5
        >>> SAMConfig(rho=-0.1)
        Traceback (most recent call last):
        ...
        ValueError: `SAMConfig(rho=...)` must be a finite number >= 0, got -0.1.
    """

    rho: float = field(
        default=0.05,
        metadata={
            "help": "Radius of the perturbation (Foret et al. 2021): a Euclidean norm over all perturbed weights, "
            ">= 0; around 0.01 to 0.2 for sam, 0.2 to 1.0 for asam."
        },
    )
    sam_variant: str = field(
        default="sam",
        metadata={
            "help": "Direction of the perturbation: sam, asam, or none (the plain Trainer, at its cost).",
        },
    )
    sam_variant_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Options of the direction as a mapping or a JSON object, such as '{\"eta\": 0.01}' for asam."
        },
    )
    sam_scope: str = field(
        default="batch",
        metadata={
            "help": "Which data shares one perturbation: batch (everything that goes into one optimizer step), device "
            "(this process's part of it), micro_batch (each micro-batch by itself: m-sharpness)."
        },
    )
    sam_rounding: str = field(
        default="nearest",
        metadata={
            "help": "How weights stored in bfloat16 or float16 take a perturbation finer than they are: nearest (much "
            "of it is lost) or stochastic (right on average, with noise). Weights in float32 take all of it either way."
        },
    )

    def __post_init__(self) -> None:
        """Check every field, then let a `TrainingArguments` further up do its own checks."""
        self.rho = checked_rho(self.rho, "SAMConfig(rho=...)")
        checked_choice("SAMConfig(sam_variant=...)", self.sam_variant, (*VARIANTS, PLAIN))
        checked_choice("SAMConfig(sam_scope=...)", self.sam_scope, SCOPES)
        checked_choice("SAMConfig(sam_rounding=...)", self.sam_rounding, ROUNDINGS)
        self.sam_variant_kwargs = _parsed_kwargs(self.sam_variant_kwargs)
        if self.sam_variant == PLAIN:
            if self.sam_variant_kwargs:
                raise ValueError(
                    f"`SAMConfig(sam_variant_kwargs=...)` must be empty for sam_variant={PLAIN!r}, "
                    f"got {self.sam_variant_kwargs}."
                )
        else:
            variant_of(self)  # raises on a bad option
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


def variant_of(config: SAMConfig) -> Variant:
    """Return a new instance of the direction that `config` names; it must not be "none"."""
    options = config.sam_variant_kwargs
    return make_variant(config.sam_variant, options if isinstance(options, dict) else None)


def checked_rho(rho: Any, argument: str) -> float:
    """Return `rho` as a float; raise, naming `argument`, unless it is a finite number >= 0."""
    if isinstance(rho, bool) or not isinstance(rho, Real):
        raise TypeError(f"`{argument}` must be a number >= 0, got {rho!r}.")
    if not math.isfinite(rho) or rho < 0:
        raise ValueError(f"`{argument}` must be a finite number >= 0, got {rho!r}.")
    return float(rho)


def checked_choice(argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value`; raise, naming `argument`, unless it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{argument}` must be one of {', '.join(choices)}, got {value!r}.")
    return str(value)


def _parsed_kwargs(value: Any) -> dict[str, Any] | None:
    """Return the options as a dict; the command line passes them as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`SAMConfig(sam_variant_kwargs=...)` must be a JSON object such as '{{\"eta\": 0.01}}', "
                f"got {value!r} ({error})."
            ) from None
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"`SAMConfig(sam_variant_kwargs=...)` must be a mapping or None, got {value!r}.")
    return value
