# SPDX-License-Identifier: Apache-2.0
"""Settings that do not go together, each with the reason and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_sam.radius.schedules import AUTO, Radius
from hf_sam.variants import Variant


def refuse_combinations(config: Any, variant: Variant, radius: Radius) -> None:
    """Raise for settings that are each right but do not go together.

    Args:
        config: a `SAMConfig` whose fields are checked one by one.
        variant: the one it names.
        radius: the radius it describes.

    Raises:
        ValueError: naming both, the reason and the way out.
    """
    checks = [_of_one_pass(config, variant, radius)] if variant.passes != "two" else []
    for what, reason in (*(pair for check in checks for pair in check), *_of_two(config, variant, radius)):
        name = f"sam_variant={config.sam_variant!r}"
        raise ValueError(f"`SAMConfig({what})` does not go with {reason.format(name=name)}")


def _of_one_pass(config: Any, variant: Variant, radius: Radius) -> Iterator[tuple[str, str]]:
    """Yield what a step without a clean gradient cannot do."""
    no_gradient = "{name}: its steps compute no clean gradient. Leave it out, or use sam_variant='sam'."
    if config.ascent_fraction != 1:
        yield f"ascent_fraction={config.ascent_fraction}", no_gradient
    if config.sam_gate != "always":
        yield f"sam_gate={config.sam_gate!r}", no_gradient
    if config.sam_sharpness_weight != 1:
        yield f"sam_sharpness_weight={config.sam_sharpness_weight}", no_gradient
    if config.sam_renormalise:
        yield "sam_renormalise=True", no_gradient
    if not radius.for_one_pass:
        yield f"rho_schedule={config.rho_schedule!r}", no_gradient
    if config.sam_scope != "batch":
        reason = "{name}, which perturbs all data alike. Leave sam_scope='batch'."
        yield f"sam_scope={config.sam_scope!r}", reason
    if config.sam_parameters != "all" and not variant.filters:
        reason = "{name}, which chooses for itself what it changes. Leave sam_parameters='all'."
        yield f"sam_parameters={config.sam_parameters!r}", reason


def _of_two(config: Any, variant: Variant, radius: Radius) -> Iterator[tuple[str, str]]:
    """Yield what two passes cannot do together."""
    what = _mixing(config, variant) if variant.passes == "two" else None
    mixes = f"{what}, which mixes in the clean gradient: that is computed "
    if config.sam_parameters != "all" and what:
        reason = mixes + "for the perturbed parameters only. Leave sam_parameters='all'."
        yield f"sam_parameters={config.sam_parameters!r}", reason
    if config.ascent_fraction != 1 and what:
        reason = mixes + "from a part of the examples only. Leave ascent_fraction=1."
        yield f"ascent_fraction={config.ascent_fraction}", reason
    if config.ascent_fraction != 1 and radius.steers_by_rise:
        reason = f"rho_schedule={config.rho_schedule!r}, which needs the rise of the loss over the same examples: "
        yield f"ascent_fraction={config.ascent_fraction}", reason + "they differ. Leave ascent_fraction=1."
    if config.rho == AUTO and not variant.adapts_radius:
        yield "rho='auto'", "{name}, whose rho is no length of a perturbation. Leave rho out for its default."
    if config.rho == AUTO and config.rho_schedule != "constant":
        yield "rho='auto'", f"rho_schedule={config.rho_schedule!r}: it is a schedule itself. Leave rho_schedule out."
    if variant.every > 1 and config.sam_every != 1:
        yield f"sam_every={config.sam_every}", "{name}, whose option k says the same. Set k in sam_variant_kwargs."
    if variant.every > 1 and config.sam_gate != "always":
        yield f"sam_gate={config.sam_gate!r}", "{name}, which needs its turn. Leave sam_gate='always'."
    if variant.every > 1 and config.sam_scope != "batch":
        reason = "{name}, which adds one direction to the whole step's gradient. Use sam_scope='batch'."
        yield f"sam_scope={config.sam_scope!r}", reason
    if config.sam_gate != "always":
        yield from _of_the_test(config)


def _mixing(config: Any, variant: Variant) -> str | None:
    """Return what puts the clean gradient into the one for the optimizer, None if nothing does."""
    if variant.combines:
        return "{name}"
    if config.sam_sharpness_weight != 1:
        return f"sam_sharpness_weight={config.sam_sharpness_weight}"
    return "sam_renormalise=True" if config.sam_renormalise else None


def _of_the_test(config: Any) -> Iterator[tuple[str, str]]:
    """Yield what makes the clean gradient another one than a plain step's, which a step left out by the test needs."""
    gate = f"sam_gate={config.sam_gate!r}: a step that it leaves out needs the whole clean gradient. "
    if config.ascent_fraction != 1:
        yield f"ascent_fraction={config.ascent_fraction}", gate + "Leave ascent_fraction=1."
    if config.sam_parameters != "all":
        yield f"sam_parameters={config.sam_parameters!r}", gate + "Leave sam_parameters='all'."
    if config.sam_scope != "batch":
        yield f"sam_scope={config.sam_scope!r}", gate + "Use sam_scope='batch'."
