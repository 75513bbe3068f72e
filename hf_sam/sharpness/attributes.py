# SPDX-License-Identifier: Apache-2.0
"""What an object holds, kept and put back: attributes, the contents of its containers, its random generators."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam.step.changeable import Changeable, DictState, ItemsState, TensorState
from hf_sam.step.copies import copy_all, write_all
from hf_sam.step.generators import generator_state, is_generator, set_generator_state

CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
DEEPEST, LONGEST = 3, 1000
"""How far into containers, and into how long ones, is looked for generators and other containers."""
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Attributes:
    """The attributes of objects as they are now, to be put back.

    A container holds the same things afterwards, and a generator goes on where it was. Tensors among the attributes, or
    in a container there, are copied and get their values back. Other objects are not looked into: weights and buffers
    may be as large as the memory, and a measurement works on copies of them.

    Args:
        objects: whose attributes are meant; containers and generators stand for themselves.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        """Note everything."""
        self._seen: set[int] = set()
        self._states: list[Changeable] = []
        self._generators: list[tuple[Any, Any]] = []
        for each in objects:
            if is_generator(each) or not hasattr(each, "__dict__"):
                self._note(each, 0)
                continue
            self._states.append(DictState(vars(each), "", None, None))
            known = OF_EVERY_MODULE if isinstance(each, nn.Module) else ()
            for name, value in list(vars(each).items()):
                if name not in known:
                    self._note(value, 0)
        self._copies = copy_all(self._states)
        self._versions = [getattr(state.held, "_version", None) for state in self._states]

    def _note(self, value: Any, depth: int) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if is_generator(value):
            self._generators.append((value, generator_state(value)))
        elif type(value) in CONTAINERS:
            kind = DictState if isinstance(value, dict) else ItemsState
            self._states.append(kind(value, "", None, None))
            if depth < DEEPEST and len(value) <= LONGEST:
                for each in list(value.values() if isinstance(value, dict) else value):
                    self._note(each, depth + 1)
        elif type(value) is Tensor and depth < 2 and value.layout is torch.strided and not value.is_inference():
            self._states.append(TensorState(value, "", None, None))

    def restore(self) -> None:
        """Put everything back; a tensor that was not written to is not either."""
        found = zip(self._states, self._copies, self._versions, strict=True)
        changed = [
            (state, copy)
            for state, copy, version in found
            if not isinstance(state, TensorState) or state.held._version != version
        ]
        write_all([state for state, _ in changed], [copy for _, copy in changed])
        for generator, state in self._generators:
            set_generator_state(generator, state)
