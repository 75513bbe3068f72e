# SPDX-License-Identifier: Apache-2.0
"""Warn once of a radius that does not do what it is there for: rounded away, too large, or never used."""

from __future__ import annotations

import logging
import math
from typing import Any

from hf_sam.step.measurement import Measurement
from hf_sam.trainer.run_totals import RunTotals
from hf_sam.variants import Variant

logger = logging.getLogger(__name__)

ROUNDED_AWAY = (
    "The weights are stored in 16 bits, which rounds much of a small perturbation away: a norm of %.3g was asked for, "
    "%.3g was realised (ratio %.2f). Load the model with dtype=torch.float32 and train with bf16=True or fp16=True, "
    "which keeps the weights in 32 bits; or set sam_rounding='stochastic', which is right on average, with noise."
)
MOSTLY_NOISE = (
    "The weights are stored in 16 bits, and stochastic rounding drowns the perturbation in noise: a norm of %.3g was "
    "asked for, %.3g was realised (cosine about %.2f). Take a larger rho, or load the model with dtype=torch.float32 "
    "and train with bf16=True or fp16=True, which keeps the weights in 32 bits."
)
LEAST_RATIO, LEAST_COSINE = 0.95, 0.1
TOO_LARGE = (
    "The radius seems too large: at the perturbed weights (rho %.3g) the loss is %.3g%s, where it was %.3g when the "
    "run began, so their gradient says little about the model. Try a smaller one, such as rho=%.2g."
)
NOTHING_LEARNT = (
    "The radius may be what keeps the model from learning: after %d steps the loss is %.3g, it was %.3g when the run "
    "began, and rho is %.3g%s. Try a smaller one, such as rho=%.2g, or sam_start='warmup'."
)
NOTHING_PERTURBED = (
    "No step of this run perturbed the weights: it was plain training, and its model card does not "
    "speak of SAM. How often and how far was set by %s; sam_variant='none' is the plain Trainer."
)
MANY_TIMES, NO_LONGER_ALIKE, FAR_TOO_MANY_TIMES = 3.0, 0.2, 10.0
"""A rise of so many times the loss is too large where the cosine is below the second; of the third, in any case."""
UNRELATED, SOME_STEPS, MANY_STEPS = 0.1, 10, 100
"""Below this cosine the smaller number of steps is enough to say that nothing is learnt."""


def tell_realised_norm(measurement: Measurement, rounding: str, told: set[str]) -> None:
    """Say once how much of epsilon survives in 16-bit weights; the only place in a step that waits for the device.

    Args:
        measurement: of a perturbation.
        rounding: the setting `sam_rounding`.
        told: which warnings have been given; "rounding" is added.
    """
    if measurement.asked_norm is None or measurement.epsilon_norm is None or "rounding" in told:
        return
    if not measurement.usable:
        return
    asked, realised = measurement.asked_norm.item(), measurement.epsilon_norm.item()
    if not asked > 0:
        return
    told.add("rounding")
    if rounding == "nearest" and realised < LEAST_RATIO * asked:
        logger.warning(ROUNDED_AWAY, asked, realised, realised / asked)
    elif rounding != "nearest" and asked < LEAST_COSINE * realised:
        # On average the asked-for epsilon is in it whole; the rest is noise.
        logger.warning(MOSTLY_NOISE, asked, realised, asked / realised)


def tell_large_radius(
    measured: dict[str, float], loss: float | None, totals: RunTotals, variant: Variant, told: set[str]
) -> None:
    """Say once that the radius seems too large, from numbers that a log has on the host anyway.

    All is held against the first loss of the run as well as the loss now: at the end of training a good radius may well
    multiply a loss that has become small.

    Args:
        measured: by log key, since the last log.
        loss: the mean of the reported losses since then; None where it is not known.
        totals: of the run so far.
        variant: that of the run.
        told: which warnings have been given; "large" is added.
    """
    first, rho, rise = totals.first_loss, measured["sam/rho"], measured.get("sam/sharpness")
    if "large" in told or loss is None or not first or not rho > 0 or not math.isfinite(loss):
        return
    smaller = min(rho / 10, variant.default_rho)
    most, cosine = max(abs(loss), abs(first)), measured.get("sam/grad_cosine", 1.0)
    if rise is None:
        far = variant.passes == "one" and measured["sam/perturbed"] > 0 and loss - first > MANY_TIMES * abs(first)
        learns = variant.passes != "one" or totals.steps < MANY_STEPS or not loss > first > 0
        raised, said = loss, ""
    else:
        far = rise > (MANY_TIMES if cosine < NO_LONGER_ALIKE else FAR_TOO_MANY_TIMES) * most
        enough, share = (SOME_STEPS, 0.1) if cosine < UNRELATED else (MANY_STEPS, 0.2)
        stays = loss > (0.97 if rise < most else 0.9) * first > 0
        learns = totals.steps < enough or not stays or rise < share * most
        raised, said = loss + rise, f" (cosine of the two gradients {cosine:.2f})"
    if far:
        logger.warning(TOO_LARGE, rho, raised, said, first, smaller)
    elif not learns:
        logger.warning(NOTHING_LEARNT, totals.steps, loss, first, rho, said, smaller)
    if far or not learns:
        told.add("large")


def tell_nothing_perturbed(totals: RunTotals, config: Any, told: set[str]) -> None:
    """Say once, when a run is over, that it was plain training; not where a radius of zero was asked for.

    Args:
        totals: of the run.
        config: its `SAMConfig`.
        told: which warnings have been given; "nothing" is added.
    """
    if totals.perturbed or not totals.steps or config.rho == 0 or "nothing" in told:
        return
    told.add("nothing")
    names = ("rho", "rho_schedule", "sam_start", "sam_stop", "sam_every", "sam_gate")
    logger.warning(NOTHING_PERTURBED, ", ".join(f"{name}={getattr(config, name)!r}" for name in names))
