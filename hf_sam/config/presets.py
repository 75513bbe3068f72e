# SPDX-License-Identifier: Apache-2.0
"""Named combinations of settings."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from hf_sam._checks import did_you_mean

logger = logging.getLogger(__name__)

PRESETS: dict[str, dict[str, Any]] = {
    # One pass.
    "free": {"sam_variant": "momentum", "rho": "auto"},
    # A quarter of the ascent pass, and none while the learning rate warms up.
    "fast": {"sam_variant": "sam", "rho": "auto", "ascent_fraction": 0.25, "sam_start": "warmup"},
    # Two whole passes once the loss falls.
    "full": {"sam_variant": "sam", "rho": "auto"},
    # The same for the adapters of LoRA, which are small: two passes, too.
    "lora": {"sam_variant": "sam", "rho": "auto"},
}
"""Settings by the name in `SAMConfig.preset`. The documentation has what each costs and what it gained."""


def preset_settings(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a preset, with `changes` on top.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {name!r}.{did_you_mean(name, PRESETS)}")
    return {**PRESETS[name], **changes}


def fields_of_preset(name: str, values: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the fields that a preset sets where it stands beside other settings: those that were not given.

    Args:
        name: of the preset.
        values: of all settings, by name.
        given: names of those that the user gave.

    Raises:
        ValueError: if there is no such preset.
    """
    settings = preset_settings(name, {})
    for field, value in settings.items():
        if field in given and values[field] != value:
            logger.warning("preset=%r has %s=%r; %r, given beside it, is used.", name, field, value, values[field])
    return {field: value for field, value in settings.items() if field not in given}
