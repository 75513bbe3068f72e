# SPDX-License-Identifier: Apache-2.0
"""Copies of many objects that a pass may change: taken and written back together, and whether they are still there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_sam.step.changeable import Changeable, History, TensorState
from hf_sam.step.tensor_bits import is_readable, plain


def buffer_states(buffers: list[Tensor]) -> list[Changeable]:
    """Return the states of those of some buffers that a pass can change."""
    return [TensorState(b, "buffers", None, None) for b in buffers if is_readable(b)]


def copy_all(states: list[Changeable], starts: list[Any] | None = None) -> list[Any]:
    """Return copies of several objects; those of tensors are made together.

    Args:
        states: the objects.
        starts: earlier copies of the same objects, which are going to be written first.
    """
    copies: list[Any] = [None] * len(states)
    tensors: list[int] = []
    for i, state in enumerate(states):
        if isinstance(state, TensorState):
            tensors.append(i)
        elif starts is not None and isinstance(starts[i], History):
            copies[i] = starts[i].since(state.held)
        else:
            copies[i] = state.copy()
    if tensors:
        held = [plain(states[i].held) for i in tensors]
        made = [torch.empty_like(t) for t in held]
        torch._foreach_copy_(made, held)
        for i, copy in zip(tensors, made, strict=True):
            copies[i] = copy
    return copies


@torch.no_grad()
def write_all(states: list[Changeable], copies: list[Any]) -> None:
    """Write copies of several objects back; those of tensors together."""
    to: list[Tensor] = []
    source: list[Tensor] = []
    for state, copy in zip(states, copies, strict=True):
        if isinstance(state, TensorState) and state.held.shape == copy.shape:
            to.append(plain(state.held))
            source.append(copy)
        else:
            state.write(copy)
    if to:
        torch._foreach_copy_(to, source)


def chain_of(states: list[Changeable]) -> list[Changeable]:
    """Return these objects and those they are in, each of them once, whose place can be looked at."""
    chain: dict[int, Changeable] = {}
    for state in states:
        link: Changeable | None = state
        while link is not None and id(link) not in chain:
            chain[id(link)] = link
            link = link.owner
    return [link for link in chain.values() if link.place is not None]


def are_in_place(chain: list[Changeable]) -> bool:
    """Return whether every object of a chain is still where it was found; another tensor may have a tensor's place."""
    for state in chain:
        now = _held_at(state.place)
        if now is state.held:
            continue
        if isinstance(state, TensorState) and type(now) is type(state.held) and is_readable(now):
            state.held = now
        elif getattr(now, "__dict__", None) is not state.held:
            return False
    return True


def _held_at(place: Any) -> Any:
    container, key = place
    if isinstance(container, dict):
        return container.get(key)
    if isinstance(container, list):
        return container[key] if key < len(container) else None
    return container.cell_contents
