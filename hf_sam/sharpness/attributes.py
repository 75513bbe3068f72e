# SPDX-License-Identifier: Apache-2.0
"""What an object holds, kept and put back: attributes, the contents of its containers, its random generators."""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
DEEPEST, LONGEST = 3, 1000
"""How far into containers, and into how long ones, is looked for generators and other containers."""
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Attributes:
    """The attributes of objects as they are now, to be put back.

    A container holds the same things afterwards, and a generator goes on where it was. Tensors among the attributes, or
    in a container there, are copied and get their values back. Other objects are not looked into.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        """Note everything."""
        self._seen: set[int] = set()
        self._undo: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        for each in objects:
            if isinstance(each, GENERATORS) or not hasattr(each, "__dict__"):
                self._note(each, 0)
                continue
            self._undo.append((_refill, vars(each), dict(vars(each))))
            known = OF_EVERY_MODULE if isinstance(each, nn.Module) else ()
            for name, value in list(vars(each).items()):
                if name not in known:
                    self._note(value, 0)

    def _note(self, value: Any, depth: int) -> None:
        if id(value) in self._seen:
            return
        if isinstance(value, GENERATORS):
            self._add(_set_state, value, _state(value))
        elif type(value) in CONTAINERS:
            self._add(_refill, value, copy.copy(value))
            if depth < DEEPEST and len(value) <= LONGEST:
                for each in list(value.values() if isinstance(value, dict) else value):
                    self._note(each, depth + 1)
        elif type(value) is Tensor and depth < 2 and value.layout is torch.strided and not value.is_inference():
            self._add(_rewrite, value, (value._version, value.detach().clone()))

    def _add(self, undo: Callable[[Any, Any], None], value: Any, before: Any) -> None:
        self._seen.add(id(value))
        self._undo.append((undo, value, before))

    def restore(self) -> None:
        """Put everything back."""
        for undo, value, before in self._undo:
            undo(value, before)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _refill(container: Any, before: Any) -> None:
    container.clear()
    container.extend(before) if isinstance(container, list | deque) else container.update(before)


def _rewrite(tensor: Tensor, before: tuple[int, Tensor]) -> None:
    version, values = before
    if tensor._version != version:
        with torch.no_grad():
            if tensor.shape != values.shape:
                tensor.resize_(values.shape)
            tensor.copy_(values)
