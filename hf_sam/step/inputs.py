# SPDX-License-Identifier: Apache-2.0
"""What a pass has changed in the arguments of a model, and how it is undone for the second one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_sam.step.changeable import ATOMS, Changeable
from hf_sam.step.copies import copy_all, write_all
from hf_sam.step.left_alone import is_iterator
from hf_sam.step.reach import Reach
from hf_sam.step.tensor_bits import bits, is_readable

Before = tuple[int, bool, Tensor | None]
"""Of a tensor: its version, whether it required a gradient, and that."""


class Repeated:
    """The items of an iterator, kept as they come, so that it can be run more than once.

    Args:
        source: the iterator.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source, self._items = source, []  # type: ignore[var-annotated]

    def __iter__(self) -> Iterator[Any]:
        """Yield all items from the first one on."""
        for number in itertools.count():
            if number == len(self._items):
                try:
                    self._items.append(next(self._source))
                except StopIteration:
                    return
            yield self._items[number]


def nested_states(inputs: Any) -> tuple[list[Changeable], dict[str, Repeated]]:
    """Return what a pass may change inside of arguments that are no tensors, and the iterators among the arguments."""
    reach = Reach()
    iterators: dict[str, Repeated] = {}
    items = inputs.items() if hasattr(inputs, "items") else [("inputs", inputs)]
    for name, value in items:
        if type(value) is Tensor or isinstance(value, ATOMS):
            continue
        if is_iterator(value) and type(value).__module__ in ("builtins", "itertools") and inputs is not value:
            iterators[name] = Repeated(value)
        else:
            reach.visit(value, str(name))
    return reach.states, iterators


def changed_inputs(tensors: list[Tensor], copies: list[Tensor], written: list[int], changed: Any) -> list[int]:
    """Return which of the tensors have changed. Waits for the device.

    Args:
        tensors: of the batch.
        copies: theirs, from before the first pass.
        written: which of them have changed by their version.
        changed: the `ChangedState` of the run.
    """
    readable = [i for i, t in enumerate(tensors) if i not in written and is_readable(t)]
    more = [i for i in readable if not torch.equal(bits(tensors[i].detach()), bits(copies[i]))]
    changed.behind_versions |= bool(more)
    return [*written, *more]


@contextmanager
def inputs_as_before(
    tensors: list[tuple[Tensor, Tensor, Before]], nested: list[Changeable], nested_copies: list[Any]
) -> Iterator[None]:
    """Let a pass find a batch as it was, and leave it as it is now.

    Args:
        tensors: those that have changed, with their copies and what else they were.
        nested: objects inside of other arguments.
        nested_copies: theirs.
    """
    left = [(t.detach().clone(), t.requires_grad, t.grad if t.is_leaf else None) for t, _, _ in tensors]
    nested_left = copy_all(nested, nested_copies)
    for tensor, copy, (_, required, grad) in tensors:
        _write(tensor, copy, required, grad)
    write_all(nested, nested_copies)
    try:
        yield
    finally:
        for (tensor, _, _), (copy, required, grad) in zip(tensors, left, strict=True):
            _write(tensor, copy, required, grad)
        write_all(nested, nested_left)


@torch.no_grad()
def _write(tensor: Tensor, copy: Tensor, required: bool, grad: Tensor | None) -> None:
    if tensor.shape != copy.shape:
        tensor.detach().resize_(copy.shape)
    tensor.detach().copy_(copy)
    if tensor.is_leaf and (tensor.requires_grad, tensor.grad) != (False, None):
        tensor.requires_grad_(required)
        tensor.grad = grad
