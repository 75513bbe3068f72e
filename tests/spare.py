# SPDX-License-Identifier: Apache-2.0
"""Leave out what torch and accelerate do anew at each seed and each model, and what changes nothing in a test."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from accelerate.utils import imports


def _forget(seed: Any, **kwargs: Any) -> None:
    """Take the place of a function that keeps a seed, and the stack that asked for it, until there is a device."""
    del seed, kwargs


def spare() -> None:
    """Make this process quicker: tests set seeds and build trainers by the thousand."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            device._lazy_call = _forget
    imports._is_package_available = cache(imports._is_package_available)  # reads and parses a file each time
