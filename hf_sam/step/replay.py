# SPDX-License-Identifier: Apache-2.0
"""What makes two passes over the same data the same function: random streams and buffers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RandomState:
    """The random streams a forward pass may draw from: Python, NumPy, the CPU and the devices of the model.

    Some models draw their masks with NumPy (SpecAugment) or Python's `random` (layer drop), so torch alone is not
    enough. NumPy is looked up, not imported: a program that has not imported it cannot draw from it.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        """Capture every stream as it is now."""
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None
        self._cpu = torch.get_rng_state()
        self._devices = [(d, _get_device_state(d)) for d in devices if d.type != "cpu"]

    def restore(self) -> None:
        """Put every stream back to where it was at capture."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            _set_device_state(device, state)


def _get_device_state(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def _set_device_state(device: torch.device, state: Tensor) -> None:
    module = torch.get_device_module(device)
    module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)


class BufferState:
    """The buffers of a model: running statistics, counters, power-iteration vectors.

    A forward pass may write into a buffer or bind a new tensor to its name; both are undone.
    """

    def __init__(self, model: nn.Module) -> None:
        """Capture every buffer of `model`, with the module and the name it hangs on."""
        self._copies: list[tuple[nn.Module, str, Any, Any]] = []
        for module in model.modules():
            for name, buffer in module._buffers.items():
                copy = buffer.detach().clone() if buffer is not None else None
                self._copies.append((module, name, buffer, copy))

    @torch.no_grad()
    def restore(self) -> None:
        """Put every buffer back: the same tensor object with the same bits."""
        for module, name, buffer, copy in self._copies:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            if buffer is not None and not _is_expanded(buffer):
                buffer.copy_(copy)


def _is_expanded(buffer: Tensor) -> bool:
    """Return whether elements share memory: such a constant can be written neither by a forward pass nor by us."""
    return any(step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True))


def devices_of(tensors: Iterable[Tensor]) -> list[torch.device]:
    """Return the distinct devices of `tensors`, in order of appearance."""
    return list(dict.fromkeys(t.device for t in tensors))
