# SPDX-License-Identifier: Apache-2.0
"""The settings of a user, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_sam.config.conflicts import refuse_combinations
from hf_sam.config.field_checks import PLAIN as PLAIN  # part of what this module offers
from hf_sam.config.field_checks import check_fields
from hf_sam.config.near_misses import naming_near_misses
from hf_sam.config.presets import preset_settings
from hf_sam.gate import WARMUP, Gate, make_test
from hf_sam.radius.auto import Auto
from hf_sam.radius.controllers import make_radius
from hf_sam.radius.schedules import AUTO, Radius
from hf_sam.variants import VARIANTS, Variant, make_variant


@naming_near_misses
@dataclass
class SAMConfig:
    """How to train sharpness-aware.

    The same fields are in `SAMTrainingArguments`, where they are command line options and reach the trackers.

    Args:
        rho: radius of the perturbation, in the units of the weights' Euclidean norm, >= 0; "auto" to have it follow the
            fall of the loss; None for the variant's default, which is "auto" for sam, asam and momentum.
        sam_variant: name of the variant, or "none"; "flat_lora" and "bi_lora" are experimental.
        sam_variant_kwargs: options of the variant; a mapping, or a JSON object as a string.
        sam_scope: which data shares one perturbation.
        sam_rounding: how weights stored in 16 bits take a perturbation that is finer than they are; "stochastic" is
            experimental.
        rho_schedule: how the radius changes over the run; "loss_budget" and "target_ascent" are experimental.
        rho_schedule_kwargs: options of the schedule; a mapping, or a JSON object as a string.
        sam_parameters: which parameters are perturbed.
        sam_start: when perturbations begin, as a share of the run in [0, 1], or "warmup".
        sam_stop: when they end, as a share of the run in [0, 1].
        sam_every: optimizer steps from one perturbation to the next, >= 1.
        sam_gate: a further test that a step has to pass to perturb.
        sam_gate_kwargs: options of that test; a mapping, or a JSON object as a string.
        ascent_fraction: share of the examples that the ascent gradient is computed from, in (0, 1].
        ascent_group_size: rows of a batch, one after the other, of which `ascent_fraction` takes all or none, >= 1.
        sam_sharpness_weight: a in g + a (h - g), the gradient for the optimizer, >= 0; 1 is h.
        sam_renormalise: whether that gradient is given the length of the clean one; experimental.
        sam_check_repeatable: what to do where a second pass at the same weights gives another gradient.

    Experimental: no measured run has gained by it yet, and it may change or be removed.

    Raises:
        ValueError: if a value is out of range, or two of them do not go together.
        TypeError: if a value is of the wrong type.

    Example:
        >>> SAMConfig(rho=0.5, sam_variant="asam", sam_variant_kwargs={"eta": 0.01}).rho
        0.5
        >>> SAMConfig(rho=-0.1)
        Traceback (most recent call last):
        ...
        ValueError: `SAMConfig(rho=...)` must be a finite number >= 0, got -0.1.
    """

    rho: float | str | None = field(
        default=None,
        metadata={
            "help": "Radius of the perturbation (Foret et al. 2021): a Euclidean norm over all perturbed weights, "
            ">= 0, or auto; around 0.01 to 0.2 for sam, 0.2 to 1.0 for asam. If left out: auto for sam, asam and "
            "momentum where rho_schedule is constant, else the variant's default."
        },
    )
    sam_variant: str = field(
        default="sam",
        metadata={
            "help": f"Which way the perturbation points: {', '.join(VARIANTS)}, or none (the plain Trainer). "
            "Experimental: flat_lora, bi_lora."
        },
    )
    sam_variant_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the variant, as a mapping or a JSON object such as '{\"eta\": 0.01}' for asam."},
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
            "of it is lost) or stochastic (right on average, with noise; experimental). Weights in float32 take all "
            "of it either way."
        },
    )
    rho_schedule: str = field(
        default="constant",
        metadata={
            "help": "How the radius changes over the run: constant, warmup (0 until the learning rate has warmed up), "
            "linear, cosine, lr (tied to the learning rate). Experimental: loss_budget (sigma / ||g||), target_ascent."
        },
    )
    rho_schedule_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the schedule: a mapping, or JSON such as '{\"end\": 0.1}' for linear."},
    )
    sam_parameters: str = field(
        default="all",
        metadata={
            "help": "Which trained parameters are perturbed: all, norm (normalisation layers), no_norm, last:k (the "
            "last k blocks and the head), adapters, or a regular expression for their names."
        },
    )
    sam_start: float | str | None = field(
        default=None,
        metadata={
            "help": "When perturbations begin: a share of the run in [0, 1], or warmup (when the learning rate has "
            "warmed up). The variant's default if left out: warmup for momentum, else 0. Other steps are plain ones."
        },
    )
    sam_stop: float = field(default=1.0, metadata={"help": "When perturbations end, as a share of the run in [0, 1]."})
    sam_every: int = field(
        default=1, metadata={"help": "Perturb at every so many-th optimizer step only; the others are plain steps."}
    )
    sam_gate: str = field(
        default="always",
        metadata={"help": "A test that a step has to pass: always, or gradient_norm (AE-SAM: a large gradient)."},
    )
    sam_gate_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of the test, as a mapping or a JSON object such as '{\"c_end\": 0}'."},
    )
    ascent_fraction: float = field(
        default=1.0,
        metadata={"help": "Share of each step's examples that the ascent gradient is computed from, in (0, 1]."},
    )
    ascent_group_size: int = field(
        default=1,
        metadata={
            "help": "Rows of a batch that belong together (pairs: 2), one after the other: ascent_fraction takes all "
            "of them or none. Other tensors may have one row for each such group."
        },
    )
    sam_sharpness_weight: float = field(
        default=1.0,
        metadata={"help": "a in g + a (h - g), the optimizer's gradient (WSAM: gamma / (1 - gamma)), >= 0; 1 is SAM."},
    )
    sam_renormalise: bool = field(
        default=False,
        metadata={"help": "Give the gradient at the perturbed weights the clean gradient's length. Experimental."},
    )
    sam_check_repeatable: str = field(
        default="warn",
        metadata={"help": "What to do if a pass cannot be repeated, tried in the first two steps: warn, error, off."},
    )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SAMConfig:
        """Return one of the combinations that were measured: "free", "fast", "full" or "lora" (see docs/choose.md).

        Args:
            name: of the preset.
            changes: fields that differ from it.

        Raises:
            ValueError: if there is no such preset.

        Example:
            >>> SAMConfig.preset("free").sam_variant
            'momentum'
        """
        return cls(**preset_settings(name, changes))

    def __post_init__(self) -> None:
        """Check every field, then let a `TrainingArguments` further up do its own checks."""
        check_fields(self)
        if self.sam_variant != PLAIN:
            make_test(self.sam_gate, _mapping(self.sam_gate_kwargs))  # each raises on a bad option
            refuse_combinations(self, variant_of(self), radius_of(self))
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


def variant_of(config: SAMConfig) -> Variant:
    """Return a new instance of the variant that `config` names; it must not be "none"."""
    return make_variant(config.sam_variant, _mapping(config.sam_variant_kwargs))


def radius_of(config: SAMConfig) -> Radius:
    """Return a new instance of the radius that `config` describes."""
    if config.rho == AUTO:
        variant = variant_of(config)
        return Auto(variant.auto_strength, scale_free=variant.scale_free, number=variant.default_rho)
    return make_radius(float(config.rho or 0.0), config.rho_schedule, _mapping(config.rho_schedule_kwargs))


def gate_of(config: SAMConfig, variant: Variant) -> Gate:
    """Return the gate that `config` describes for this variant."""
    start = config.sam_start if config.sam_start is not None else (WARMUP if variant.off_in_warmup else 0.0)
    return Gate(start, config.sam_stop, config.sam_every)


def _mapping(options: dict[str, Any] | str | None) -> dict[str, Any] | None:
    return options if isinstance(options, dict) else None
