# SPDX-License-Identifier: Apache-2.0
"""Frozen weights that stay as they are stored, in few bits, and are measured as if they were wide.

Each is widened where it is used, and is gone after that: of the graph only the narrow weight is kept, and widened again
for the backward pass. Who writes into a frozen weight, as some teachers do in the forward pass, writes into a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

VIEWS = {Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
"""What gives a tensor through which a weight may be written to."""
TURNED = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag")}
GIVE = VIEWS | TURNED
DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
ABOUT = {
    "__deepcopy__", "__hash__", "__len__", "data_ptr", "dim", "element_size", "get_device", "is_complex",
    "is_contiguous", "is_floating_point", "nelement", "numel", "size", "storage_offset", "stride", "untyped_storage",
}  # fmt: skip
"""Methods that do not ask for the values."""
WRITES = {"__iadd__", "__imul__", "__isub__", "__itruediv__", "__set__", "__setitem__"}


class FrozenWeights(TorchFunctionMode):
    """Mode in which frozen weights have another dtype than they are stored in, and are not written to.

    Args:
        weights: stay in their place in the model.
        dtype: that operations see; None for the stored one.
    """

    def __init__(self, weights: Iterable[Tensor], dtype: torch.dtype | None) -> None:
        super().__init__()
        self._weights = {id(w): w for w in weights}
        self._dtype = dtype
        self._written: dict[int, Tensor] = {}
        self._wide: dict[int, tuple[StorageWeakRef, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with the weights widened."""
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if args and id(args[0]) in self._weights and (name in ABOUT or (name == "__get__" and func not in GIVE)):
            widened = func == DTYPE and self._dtype is not None and args[0].is_floating_point()
            return self._dtype if widened else func(self._written.get(id(args[0]), args[0]), *args[1:], **kwargs)
        if func is F.embedding and len(args) > 1 and id(args[1]) in self._weights and args[1].is_floating_point():
            rows = func(args[0], self._written.get(id(args[1]), args[1]), *args[2:], **kwargs)
            return rows if self._dtype is None else rows.to(self._dtype)  # not the whole table
        writes = func in VIEWS or name in WRITES or (name.endswith("_") and not name.endswith("__"))
        seen = tuple(self._seen(each, writes and not i) for i, each in enumerate(args))
        return func(*seen, **{key: self._seen(each, key == "out") for key, each in kwargs.items()})

    def _seen(self, value: Any, writes: bool) -> Any:
        """Return what an operation gets in place of `value`."""
        if type(value) in (list, tuple):
            return type(value)(self._seen(each, writes) for each in value)
        if not isinstance(value, Tensor) or id(value) not in self._weights:
            return value
        if id(value) in self._written:
            return self._written[id(value)]
        other = self._dtype is not None and value.is_floating_point() and value.dtype != self._dtype
        if writes:
            self._written[id(value)] = value.detach().to(self._dtype if other else value.dtype, copy=True)
            return self._written[id(value)]
        return self._widened(value) if other else value

    def _widened(self, weight: Tensor) -> Tensor:
        wide = weight.detach().to(self._dtype)
        storage = wide.untyped_storage()
        self._wide[storage._cdata] = (StorageWeakRef(storage), weight)  # type: ignore[no-untyped-call]
        return wide

    @contextmanager
    def used(self) -> Iterator[None]:
        """Be in force, for forward and backward passes."""
        try:
            with self, torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._written.clear()
            self._wide.clear()

    def _pack(self, tensor: Tensor) -> Any:
        """Return what the graph keeps: the narrow weight and how it is looked at, in place of the wide one."""
        if tensor.layout is not torch.strided:
            return tensor
        found = self._wide.get(tensor.untyped_storage()._cdata)
        if found is None:
            return tensor
        return found[1], tensor.size(), tensor.stride(), tensor.storage_offset()

    def _unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        weight, size, stride, offset = kept
        return self._widened(weight).as_strided(size, stride, offset)
