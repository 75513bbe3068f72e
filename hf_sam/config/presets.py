# SPDX-License-Identifier: Apache-2.0
"""Named combinations of settings."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # One pass.
    "free": {"sam_variant": "momentum", "rho": "auto"},
    # A quarter of the ascent pass, and none while the learning rate warms up.
    "fast": {"sam_variant": "sam", "rho": "auto", "ascent_fraction": 0.25, "sam_start": "warmup"},
    # Two whole passes at each step.
    "full": {"sam_variant": "sam", "rho": "auto"},
    # For LoRA, in one pass.
    "lora": {"sam_variant": "nbar", "rho_schedule": "linear"},
}
"""Settings by the name in `SAMConfig.preset`. The README has what each costs and what it gained."""


def preset_settings(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a preset, with `changes` on top.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"`SAMConfig.preset(name)` must be one of {', '.join(PRESETS)}, got {name!r}.")
    return {**PRESETS[name], **changes}
