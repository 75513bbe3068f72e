# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch that belong to an example, as far as they are known for certain.

A tensor, an array or a list goes by example where its length says so and nothing else can be meant. Everything that is
not certain is refused: an ascent gradient of examples that were put together wrongly trains, and does not show.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SIZED = ("labels", "input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
"""Inputs whose first dimension is certainly the batch, by transformers' names; one row of them is one example."""
PACKED = re.compile(r"(^|_)(cu_seq_?lens|grid_thw|edge_(index|attr|weight))(_|$)|^(seq_idx|ptr)$")
"""Names of what says how examples share the rows of other tensors: packed sequences, patches of images, graphs."""
BY_CLASS = re.compile(r"(class|pos|label)_weights?$")
"""Names of what has a row for each class."""
WAY_OUT = (
    "Leave ascent_fraction=1, or take whole micro-batches: gradient_accumulation_steps x ascent_fraction >= 1. Where "
    "several rows are one example, ascent_group_size says how many."
)
PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)


class UnknownRowsError(ValueError):
    """A batch of which it is not certain what belongs to an example."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"`SAMConfig(ascent_fraction=...)` below 1 has to cut a batch, and {reason}. {WAY_OUT}")


class Rows:
    """How a batch is made of examples.

    Args:
        inputs: the batch.
        group_size: rows of an example, >= 1.
        placeholders: ids of the tokens that stand for images, sounds or films in the texts of the model.

    Attributes:
        examples: how many there are.

    Raises:
        UnknownRowsError: if it is not certain.
    """

    def __init__(self, inputs: Mapping[str, Any], group_size: int = 1, placeholders: Sequence[int] = ()) -> None:
        self.group_size = group_size
        sizes = dict(_sizes(inputs)) or dict(_sizes(inputs, within_lists=True))
        if not sizes:
            raise UnknownRowsError(f"this one has no tensor that says how many examples there are: {sorted(inputs)}")
        known = {name: size for name, size in sizes.items() if name in SIZED}
        if known and 1 not in known.values():  # others may have one row for all examples
            sizes = {name: size for name, size in sizes.items() if size > 1}
        self.examples = self._counted(known if 1 in known.values() else sizes)
        if self.examples > 1:
            _refuse_packed(inputs)
            _refuse_other_images(inputs, placeholders)

    def _counted(self, sizes: dict[str, int]) -> int:
        """Return the number of examples that all of these fit."""
        several = sorted(set(sizes.values()) - {0})
        most, least = several[-1], several[0]
        fits = len(several) == 1 or (len(several) == 2 and most == least * self.group_size)
        if not fits:
            names = {size: next(name for name, of_it in sizes.items() if of_it == size) for size in several}
            listed = ", ".join(f"{size} in {name!r}" for size, name in names.items())
            raise UnknownRowsError(f"its tensors have different numbers of rows: {listed}")
        if most % self.group_size and most > 1:
            raise UnknownRowsError(f"its {most} rows are no multiple of ascent_group_size={self.group_size}")
        return max(1, most // self.group_size)

    def take(self, inputs: Mapping[str, Any], chosen: Sequence[int]) -> Any:
        """Return the batch with the chosen examples only, in new memory; containers keep their type.

        Raises:
            UnknownRowsError: if it is not certain what of it belongs to them.
        """
        return self._of(inputs, tuple(chosen), "the batch")

    def _of(self, value: Any, chosen: tuple[int, ...], name: str) -> Any:
        if isinstance(value, PLAIN):
            return value
        if _is_array(value):
            rows = self._indices(_length(value), chosen, name) if value.ndim else None
            return value if rows is None else value[_index(rows, _device(value))]
        if isinstance(value, Mapping):
            parts = {key: self._of(item, chosen, str(key)) for key, item in value.items()}
            try:
                return type(value)(parts)  # type: ignore[call-arg]  # a BatchEncoding stays one
            except TypeError as error:
                raise UnknownRowsError(f"{name!r} is a {type(value).__name__}") from error
        if isinstance(value, list | tuple):
            return self._of_list(value, chosen, name)
        raise UnknownRowsError(f"{name!r} is a {type(value).__name__}, of which it does not know the rows")

    def _of_list(self, value: Any, chosen: tuple[int, ...], name: str) -> Any:
        """Take items of a list of one for each example (texts, an object detector's labels), or rows of each item."""
        make = getattr(type(value), "_make", type(value))  # of named tuples
        by_item = len(value) in (self.examples, self.examples * self.group_size)
        rows = bool(value) and all(self._has_rows(item) for item in value)
        numbers = isinstance(value, tuple) and all(isinstance(item, int | float) for item in value)
        if by_item and (rows or numbers):
            raise UnknownRowsError(f"{name!r} may be one item for each example or {len(value)} parts of the batch")
        if numbers or len(value) == 0:
            return value
        if rows:
            return make([self._of(item, chosen, name) for item in value])
        if not by_item:
            raise UnknownRowsError(f"{name!r} has {len(value)} items for {self.examples} examples")
        taken = self._indices(len(value), chosen, name) or ()
        return make([value[i] for i in taken])

    def _has_rows(self, value: Any) -> bool:
        """Return whether `value` is a tensor with a row for each example, or holds only such."""
        if _is_array(value):
            return value.ndim > 0 and len(value) in (self.examples, self.examples * self.group_size)
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return bool(items) and all(self._has_rows(item) for item in items)

    def _indices(self, size: int, chosen: tuple[int, ...], name: str) -> tuple[int, ...] | None:
        """Return which of so many rows belong to the chosen examples; None where there is one for all of them."""
        if size == self.examples:
            return chosen
        if size == self.examples * self.group_size:
            return tuple(example * self.group_size + i for example in chosen for i in range(self.group_size))
        if size > 1:
            raise UnknownRowsError(f"{name!r} has {size} rows for {self.examples} examples")
        return None


def _sizes(inputs: Mapping[Any, Any], within_lists: bool = False) -> Iterator[tuple[str, int]]:
    """Yield name and length of each tensor that is not in a list, or in lists only."""
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _sizes(value, within_lists)
        elif isinstance(value, list | tuple) and within_lists:
            yield from _sizes({f"{name}[{i}]": item for i, item in enumerate(value)}, within_lists)
        elif _is_array(value) and value.ndim:
            yield str(name), _length(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (type(value).__module__ == "numpy" and hasattr(value, "ndim"))


def _length(value: Any) -> int:
    """Return the number of rows of a tensor.

    Raises:
        UnknownRowsError: if it is of a layout that has none to take.
    """
    if isinstance(value, Tensor) and (value.is_nested or value.layout != torch.strided):
        raise UnknownRowsError("one of its tensors is sparse or nested")
    return len(value)


def _refuse_packed(inputs: Mapping[Any, Any]) -> None:
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            _refuse_packed(value)
        elif PACKED.search(str(name)) and value is not None:
            raise UnknownRowsError(f"{name!r} says that examples share the rows of its tensors")
        elif BY_CLASS.search(str(name)) and isinstance(value, Tensor) and value.dim() == 1:
            raise UnknownRowsError(f"{name!r} may have a row for each class")
        elif name == "position_ids" and isinstance(value, Tensor) and value.dim() > 2:
            raise UnknownRowsError("the first dimension of 'position_ids' is not that of the examples")


def _refuse_other_images(inputs: Mapping[Any, Any], placeholders: Sequence[int]) -> None:
    """Raise where texts have different numbers of images: as many images as texts are then not one for each.

    This waits for the device, in models that read images at their tokens only.
    """
    ids = inputs.get("input_ids")
    media = [name for name in inputs if re.search(r"pixel|image|video|audio|input_features", str(name))]
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not media:
        return
    for token in placeholders:
        counts = (ids == token).sum(1)
        if not bool((counts == counts[0]).all()):
            raise UnknownRowsError(f"its texts hold different numbers of the images or sounds in {media[0]!r}")


def _device(value: Any) -> torch.device | None:
    return value.device if isinstance(value, Tensor) else None


@functools.lru_cache(maxsize=64)
def _index(rows: tuple[int, ...], device: torch.device | None) -> Any:
    """Return an index; a device has it from the first step on, so that no later one copies and waits."""
    return list(rows) if device is None else torch.tensor(rows, device=device)
