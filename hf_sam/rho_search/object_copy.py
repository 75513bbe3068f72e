# SPDX-License-Identifier: Apache-2.0
"""Copy objects so that what is done with the copies leaves the originals alone."""

from __future__ import annotations

import copyreg
import functools
import random
import weakref
from collections.abc import Iterable, Mapping
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

ATOMIC = (type(None), bool, int, float, complex, str, bytes, ModuleType, type)
SEEN_IN_CLOSURES = (nn.Module, Optimizer, LRScheduler, Tensor, torch.Generator, random.Random)
"""A function that closes over one of these is bound to its copy; any other closure is left as it is."""


class ObjectCopy:
    """A deep copy with one memo, so that the copies share what the originals share.

    Other than `copy.deepcopy`, it
    - binds functions to copies of the models, optimizers, tensors and generators that they close over,
    - lets weak references to these refer to the copies,
    - keeps gradients, hooks, attributes and shared memory of parameters, and copies results of a graph without it,
    - copies all attributes of the objects of some classes, whatever these leave out when they are pickled.

    Args:
        shared: objects that stand for themselves in the copies.
        shared_types: classes whose objects do.
        whole_types: classes whose objects are copied by their attributes.
        replaced: by the id of such an object, the attributes that its copy has instead, by name.

    Attributes:
        memo: the copies by the id of their original, as `__deepcopy__` takes it.
        place: where what is copied now is found, such as ".model.head['scale']".
    """

    def __init__(
        self,
        shared: Iterable[object],
        shared_types: tuple[type, ...],
        whole_types: tuple[type, ...],
        replaced: Mapping[int, Mapping[str, Any]],
    ) -> None:
        self._originals = list(shared)  # an id says something only as long as its object lives
        self.memo: dict[int, Any] = {id(x): x for x in self._originals}
        self._atomic, self._whole_types, self._replaced = (*ATOMIC, *shared_types), whole_types, replaced
        self._closed_over = (*SEEN_IN_CLOSURES, *whole_types)
        self._cells: dict[int, CellType] = {}
        self._path: list[tuple[str, Any]] = []

    @property
    def place(self) -> str:
        """The attributes, keys and positions that lead to what is copied now."""
        return "".join(step.format(key) for step, key in self._path)

    def __call__(self, x: Any) -> Any:
        """Return the copy of `x`, the same one at each call."""
        if id(x) in self.memo:
            return self.memo[id(x)]
        made = self._made(x)
        if made is not x:
            self.memo[id(x)] = made
            self._originals.append(x)
        return made

    def _made(self, x: Any) -> Any:
        kind = type(x)
        if isinstance(x, self._whole_types):
            return self._whole(x)
        if isinstance(x, self._atomic):
            return x
        if kind in (dict, list, tuple):
            return self._container(x)
        if isinstance(x, Tensor):
            return self._tensor(x)
        if kind is torch.Generator:
            return x.clone_state()
        if kind is MethodType:
            return MethodType(self(x.__func__), self(x.__self__))
        if kind in (FunctionType, BuiltinMethodType, weakref.ref):
            return self._reference(x) if self._reaches(x) else x
        return self._object(x)

    def _container(self, x: Any) -> Any:
        made: Any
        if isinstance(x, dict):
            made = self.memo[id(x)] = {}
            made.update((self(key), self._at("[{!r}]", key, value)) for key, value in x.items())
            return made
        if isinstance(x, list):
            made = self.memo[id(x)] = []
            made.extend(self._at("[{}]", i, entry) for i, entry in enumerate(x))
            return made
        made = tuple(self._at("[{}]", i, entry) for i, entry in enumerate(x))
        return x if all(a is b for a, b in zip(made, x, strict=True)) else made

    def _at(self, step: str, key: Any, x: Any) -> Any:
        """Copy what is found at a step from here; the step stays in `place` if that fails."""
        self._path.append((step, key))
        made = self(x)
        self._path.pop()
        return made

    def _attributes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._at(".{}", name, value) for name, value in values.items()}

    # ------------------------------------------------------------------------------------------------------------------
    # Functions and references
    # ------------------------------------------------------------------------------------------------------------------
    def _reaches(self, x: Any, seen: frozenset[int] = frozenset(), *, enclosed: bool = False) -> bool:
        """Return whether a function, a method, a reference or a small container leads to what closures are bound to."""
        if isinstance(x, self._closed_over) or type(x).__module__.startswith("numpy.random"):
            return True
        if id(x) in seen:
            return False
        parts: Iterable[Any] = ()
        if isinstance(x, FunctionType):
            parts = (*map(_content, x.__closure__ or ()), *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values())
        elif isinstance(x, (MethodType, BuiltinMethodType)):
            parts = (x.__self__, getattr(x, "__func__", None))
        elif isinstance(x, functools.partial):
            parts = (x.func, *x.args, *x.keywords.values())
        elif type(x) is weakref.ref:
            parts = (x(),)
        elif enclosed and type(x) in (list, tuple, dict):  # modules, an optimizer for each parameter
            entries = (*x.keys(), *x.values()) if isinstance(x, dict) else x
            return any(isinstance(entry, (nn.Module, nn.Parameter, *self._whole_types)) for entry in entries)
        return any(self._reaches(part, seen | {id(x)}, enclosed=True) for part in parts)

    def _reference(self, x: Any) -> Any:
        if isinstance(x, BuiltinMethodType):
            return getattr(self(x.__self__), x.__name__)
        return weakref.ref(self(x())) if isinstance(x, weakref.ref) else self._function(x)

    def _function(self, x: FunctionType) -> FunctionType:
        cells = x.__closure__ or ()
        bound = [self._reaches(_content(cell), enclosed=True) for cell in cells]
        for cell, is_bound in zip(cells, bound, strict=True):
            if is_bound and id(cell) not in self._cells:
                self._cells[id(cell)] = CellType()
                self._originals.append(cell)
        closure = tuple(self._cells.get(id(cell), cell) for cell in cells)
        made = FunctionType(x.__code__, x.__globals__, x.__name__, None, closure)
        self.memo[id(x)] = made  # before its cells: a function may close over itself
        made.__defaults__, made.__kwdefaults__ = self(x.__defaults__), self(x.__kwdefaults__)
        functools.update_wrapper(made, x)
        del made.__wrapped__  # type: ignore[attr-defined]
        made.__dict__.update(x.__dict__)
        for cell, is_bound in zip(cells, bound, strict=True):
            if is_bound:
                self._cells[id(cell)].cell_contents = self(cell.cell_contents)
        return made

    # ------------------------------------------------------------------------------------------------------------------
    # Tensors and other objects
    # ------------------------------------------------------------------------------------------------------------------
    def _tensor(self, x: Tensor) -> Tensor:
        if type(x) not in (Tensor, nn.Parameter):
            made: Tensor = type(x).__deepcopy__(x, self.memo)  # type: ignore[no-untyped-call]
            return made
        plain = x.detach()
        self._originals.append(plain)
        made = plain.__deepcopy__(self.memo)  # type: ignore[no-untyped-call]  # shared memory is copied once
        trained = x.requires_grad and x.is_leaf
        made = nn.Parameter(made, trained) if type(x) is nn.Parameter else made.requires_grad_(trained)
        self.memo[id(x)] = made
        vars(made).update(self._attributes(vars(x)))
        if trained:
            made.grad = self._at(".{}", "grad", x.grad)
            for hook in (x._backward_hooks or {}).values():
                made.register_hook(self(hook))  # type: ignore[no-untyped-call]
            for hook in (getattr(x, "_post_accumulate_grad_hooks", None) or {}).values():
                made.register_post_accumulate_grad_hook(self(hook))  # type: ignore[no-untyped-call]
        return made

    def _whole(self, x: Any) -> Any:
        made = self.memo[id(x)] = object.__new__(type(x))
        replaced = {name: new for name, new in self._replaced.get(id(x), {}).items() if name in vars(x)}
        vars(made).update(self._attributes({name: old for name, old in vars(x).items() if name not in replaced}))
        vars(made).update(replaced)
        return made

    def _object(self, x: Any) -> Any:
        """Copy as `copy.deepcopy` does: with a method of the object's, or by what it is pickled as."""
        if hasattr(type(x), "__deepcopy__"):
            return type(x).__deepcopy__(x, self.memo)
        reduce = copyreg.dispatch_table.get(type(x))
        reduced = reduce(x) if reduce is not None else x.__reduce_ex__(4)
        return x if isinstance(reduced, str) else self._rebuilt(x, *reduced)

    def _rebuilt(
        self, x: Any, make: Any, args: Any = (), state: Any = None, entries: Any = None, items: Any = None, *_: Any
    ) -> Any:
        made = self.memo[id(x)] = make(*map(self, args))
        if state is not None:
            state = self._attributes(state) if type(state) is dict else self(state)
            if hasattr(made, "__setstate__"):
                made.__setstate__(state)
            else:
                state, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, {})
                vars(made).update(state) if state else None
                for name, value in slots.items():
                    setattr(made, name, value)
        for entry in entries or ():
            made.append(self(entry))
        for key, value in items or ():
            made[self(key)] = self(value)
        return made


def _content(cell: CellType) -> Any:
    """Return what a cell of a closure holds; None if it is empty yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
