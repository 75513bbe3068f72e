# SPDX-License-Identifier: Apache-2.0
"""Random generators of the user's own and of devices: which objects are one, and what their state is."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor


def is_generator(value: Any) -> bool:
    """Return whether numbers are drawn from `value`, with a state that can be read and written.

    torch's generators, NumPy's generators and bit generators, and Python's `random.Random`; none of the streams of the
    process, which a `RandomState` holds in any case.
    """
    if isinstance(value, torch.Generator):
        return value is not torch.default_generator
    if isinstance(value, random.Random):
        return value is not random.random.__self__ and not isinstance(value, random.SystemRandom)  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    of_process = numpy.random.get_state.__self__
    if isinstance(value, (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)):
        return value is not of_process and value is not of_process._bit_generator
    return False


def generator_state(generator: Any) -> Any:
    """Return a copy of the state of a generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "get_state"):  # NumPy's RandomState
        return generator.get_state()
    return getattr(generator, "bit_generator", generator).state


def set_generator_state(generator: Any, state: Any) -> None:
    """Put a generator back to what `generator_state` returned."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        getattr(generator, "bit_generator", generator).state = state


def device_state(device: torch.device) -> Tensor:
    """Return a copy of the state of a device's stream."""
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def set_device_state(device: torch.device, state: Tensor) -> None:
    """Put a device's stream back to what `device_state` returned."""
    module = torch.get_device_module(device)
    module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)
