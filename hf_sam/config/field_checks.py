# SPDX-License-Identifier: Apache-2.0
"""Check the settings one by one, each by itself."""

from __future__ import annotations

from typing import Any

from hf_sam._checks import check_count, check_number, checked_choice, did_you_mean, parsed_kwargs
from hf_sam.gate import GATES, WARMUP
from hf_sam.parameters.choose import checked_filter
from hf_sam.radius.controllers import SCHEDULES
from hf_sam.radius.schedules import AUTO
from hf_sam.variants import OTHER_NAMES, VARIANTS

SCOPES = ("batch", "device", "micro_batch")
ROUNDINGS = ("nearest", "stochastic")
REPEATABLE = ("warn", "error", "off")
PLAIN = "none"
"""The `sam_variant` that leaves the Trainer as it is: one pass per step, no cost."""


def check_fields(config: Any) -> None:
    """Check every field of a `SAMConfig`; write numbers and options back in the form that the rest expects.

    Raises:
        ValueError: if a value is out of range.
        TypeError: if a value is of the wrong type.
    """
    checked_choice("SAMConfig(sam_variant=...)", config.sam_variant, (*VARIANTS, PLAIN), OTHER_NAMES)
    checked_choice("SAMConfig(sam_scope=...)", config.sam_scope, SCOPES)
    checked_choice("SAMConfig(sam_rounding=...)", config.sam_rounding, ROUNDINGS)
    checked_choice("SAMConfig(sam_check_repeatable=...)", config.sam_check_repeatable, REPEATABLE)
    checked_choice("SAMConfig(rho_schedule=...)", config.rho_schedule, tuple(SCHEDULES))
    checked_choice("SAMConfig(sam_gate=...)", config.sam_gate, GATES)
    _check_numbers(config)
    if not isinstance(config.sam_renormalise, bool):
        raise TypeError(f"`SAMConfig(sam_renormalise=...)` must be true or false, got {config.sam_renormalise!r}.")
    config.sam_variant_kwargs = parsed_kwargs("sam_variant_kwargs", config.sam_variant_kwargs, '{"eta": 0.01}')
    config.rho_schedule_kwargs = parsed_kwargs("rho_schedule_kwargs", config.rho_schedule_kwargs, '{"end": 0.1}')
    config.sam_gate_kwargs = parsed_kwargs("sam_gate_kwargs", config.sam_gate_kwargs, '{"c_end": 0}')
    config.sam_parameters = checked_filter(config.sam_parameters)
    if config.sam_variant == PLAIN and config.sam_variant_kwargs:
        raise ValueError(
            f"`SAMConfig(sam_variant_kwargs=...)` must be empty for sam_variant={PLAIN!r}, "
            f"got {config.sam_variant_kwargs}."
        )


def _check_numbers(config: Any) -> None:
    variant = VARIANTS.get(config.sam_variant)  # None for the plain Trainer
    default = variant.default_rho if variant is not None else 0.0
    if config.rho is None and variant is not None and variant.auto_by_default and config.rho_schedule == "constant":
        config.rho = AUTO
    if config.rho != AUTO:
        given = default if config.rho is None else _number_or(AUTO, "rho", config.rho)
        config.rho = check_number("SAMConfig", "rho", given, least=0)
    if config.sam_start is not None and config.sam_start != WARMUP:
        config.sam_start = check_number(
            "SAMConfig", "sam_start", _number_or(WARMUP, "sam_start", config.sam_start), least=0, most=1
        )
    config.sam_stop = check_number("SAMConfig", "sam_stop", config.sam_stop, above=0, most=1)
    if isinstance(config.sam_start, float) and config.sam_start >= config.sam_stop:
        raise ValueError(
            f"`SAMConfig(sam_start=...)` must be below sam_stop, got {config.sam_start} and {config.sam_stop}: no "
            "step would perturb. sam_variant='none' is the plain Trainer."
        )
    check_count("SAMConfig", "sam_every", config.sam_every)
    check_count("SAMConfig", "ascent_group_size", config.ascent_group_size)
    config.ascent_fraction = check_number("SAMConfig", "ascent_fraction", config.ascent_fraction, above=0, most=1)
    weight = check_number("SAMConfig", "sam_sharpness_weight", config.sam_sharpness_weight, least=0)
    config.sam_sharpness_weight = weight


def _number_or(word: str, name: str, value: Any) -> Any:
    """Return a number written as text, as the command line has it, as a number; anything else as it is.

    Raises:
        TypeError: if it is spelt much like the word that may stand there.
    """
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        if hint := did_you_mean(value, [word]):
            raise TypeError(f"`SAMConfig({name}=...)` must be a number or {word!r}, got {value!r}.{hint}") from None
        return value
