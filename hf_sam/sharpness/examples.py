# SPDX-License-Identifier: Apache-2.0
"""The examples that a model is measured on, and their batches."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import default_data_collator, set_seed

from hf_sam.step.replay import RandomState, devices_of

Batch = dict[str, Any]
Collator = Callable[[list[Any]], Mapping[str, Any]]
LABELS = ("label", "label_ids", "labels")


class Examples:
    """The examples, chosen once and in a fixed order, and their batches.

    Every process holds the same examples and takes every n-th batch, so that sums over processes are over all of them.

    Args:
        model: without a wrapper. Columns that its `forward` does not take are dropped, as the Trainer drops them.
        dataset: of what the collator takes: a data set with a length, or anything that can be iterated over.
        collator: makes a batch of a list of examples; transformers' default without one.
        batch_size: examples per batch, >= 1. No result depends on it beyond rounding.
        most: at most so many examples, drawn with `seed` if there are more (the first ones, where there is no length).
        seed: also of the collator's random streams.
        columns: to keep besides those that `forward` takes; None for all.
        owner: whose argument the data set is, for messages.

    Raises:
        ValueError: if there is no example.
        TypeError: if the examples do not go into one batch.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Iterable[Any],
        collator: Collator | None,
        batch_size: int,
        most: int,
        seed: int,
        columns: Iterable[str] | None = (),
        owner: str = "SharpnessAnalyzer",
    ) -> None:
        self.model, self.batch_size, self.seed, self.owner = model, batch_size, seed, owner
        self.collator = collator or _default_collator()
        taken = _accepted(model) if columns is not None else None
        self.accepted = None if taken is None or columns is None else taken | set(columns)
        with _streams_kept(model, seed):
            self.rows = [self._cleaned(e) for e in _selected(dataset, most, seed)]
        if not self.rows:
            raise ValueError(f"`{owner}(dataset=...)` must have at least one example, and has none.")
        self._made: dict[int, list[Batch]] = {}

    def batches(self, size: int | None = None) -> list[Batch]:
        """Return all batches of `size` examples (`batch_size` by default), on the model's device.

        They are made once. Texts of about the same length come into one batch.
        """
        size = min(size or self.batch_size, len(self.rows))
        if size not in self._made:
            ordered = [self.rows[i] for i in self.order()]
            self._made = {size: self._batches_of([ordered[i : i + size] for i in range(0, len(ordered), size)])}
        return self._made[size]

    def order(self) -> list[int]:
        """Return the numbers of the examples as they stand in the batches, one batch after the other."""
        # Little padding, and the largest batch first.
        return sorted(range(len(self.rows)), key=lambda i: _length(self.rows[i]), reverse=True)

    def parts(self) -> list[Batch]:
        """Return a batch of examples of all lengths in two unequal parts, and whole: first, second, whole."""
        count = min(len(self.rows), max(4, self.batch_size))
        ordered = sorted(self.rows, key=_length)
        rows = [ordered[i * len(ordered) // count] for i in range(count)]
        cut = max(1, count // 3)
        [whole] = self._batches_of([rows])
        if all(isinstance(v, Tensor) and v.dim() and len(v) == count for v in whole.values()):
            # Not collated again: a collator that draws would draw something else.
            return [{k: v[:cut] for k, v in whole.items()}, {k: v[cut:] for k, v in whole.items()}, whole]
        return [*self._batches_of([rows[:cut], rows[cut:]]), whole]

    def _batches_of(self, parts: list[list[Any]]) -> list[Batch]:
        device = devices_of(self.model.parameters())[0]
        with _streams_kept(self.model, self.seed):
            return [dict(mapped(self._collated(part), lambda t: t.to(device))) for part in parts]

    def groups(self, m: int) -> list[Examples]:
        """Return the examples in groups of m; the last one may be smaller."""
        parts = [self.rows[i : i + m] for i in range(0, len(self.rows), m)]
        return [self.with_rows(part) for part in parts]

    def folds(self, count: int) -> list[Examples]:
        """Return the examples in `count` groups of about the same size, every count-th one in each."""
        return [self.with_rows(self.rows[i::count]) for i in range(count)]

    def with_rows(self, rows: list[Any]) -> Examples:
        """Return other examples that make batches in the same way."""
        other = copy.copy(self)
        other.rows, other._made = rows, {}
        return other

    def _cleaned(self, example: Any) -> Any:
        if self.accepted is None or not isinstance(example, Mapping):
            return example
        return {key: value for key, value in example.items() if key in self.accepted}

    def _collated(self, examples: list[Any]) -> Batch:
        try:
            return dict(self.collator(examples))
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`{self.owner}(data_collator=...)` made no batch of {len(examples)} examples: {error} "
                "Give the one that the Trainer has, such as DataCollatorWithPadding(tokenizer)."
            ) from error


def base_of(model: nn.Module) -> nn.Module:
    """Return the model inside of PEFT's wrapper."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner


def _default_collator() -> Collator:
    collator: Collator = default_data_collator
    return collator


def _accepted(model: nn.Module) -> set[str] | None:
    """Return the names of the columns that `forward` uses; None if it takes any."""
    signature = inspect.signature(base_of(model).forward)
    kinds = {p.kind for p in signature.parameters.values()}
    named = set(signature.parameters)
    if inspect.Parameter.VAR_KEYWORD in kinds and not named & {"labels", "input_ids", "pixel_values"}:
        return None
    return named | set(LABELS)


def _length(example: Any) -> int:
    """Return the number of tokens of a text; the same for all other examples."""
    tokens = example.get("input_ids") if isinstance(example, Mapping) else None
    return len(tokens) if isinstance(tokens, Sized) else 0


def _selected(dataset: Iterable[Any], most: int, seed: int) -> Sequence[Any]:
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return list(itertools.islice(iter(dataset), most))
    count = len(dataset)
    if count <= most:
        return [dataset[i] for i in range(count)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]
    return [dataset[i] for i in sorted(order.tolist())]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the value with every tensor in it changed, in mappings, lists and tuples too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(each, change) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


@contextmanager
def _streams_kept(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed the random streams for collators and data sets; put the streams back at the end."""
    state = RandomState(devices_of(model.parameters()))
    set_seed(seed)
    try:
        yield
    finally:
        state.restore()
