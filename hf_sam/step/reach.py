# SPDX-License-Identifier: Apache-2.0
"""What a pass can reach and change: a walk through the attributes of modules and of the user's own objects."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_sam.step.changeable import (
    ATOMS,
    LONG,
    ArrayState,
    Changeable,
    DictState,
    ItemsState,
    SlotsState,
    TensorState,
    VariableState,
    is_array,
    slots_of,
)
from hf_sam.step.generators import is_generator
from hf_sam.step.left_alone import ENGINES, LIBRARIES, SHARED_WITH_THREADS, is_iterator, is_users_own, root_of
from hf_sam.step.tensor_bits import is_readable

MODULE_PARTS = frozenset(vars(nn.Module()))
"""What every module has: its children, parameters, buffers and hooks."""
HOOKS = tuple(sorted(name for name in MODULE_PARTS if name.endswith("hooks")))
MOST = 2_000
"""Objects below one attribute from which on it is taken for data, and left alone."""
NOTHING: frozenset[str] = frozenset()
Place = tuple[Any, Any] | None


class Reach:
    """What was found.

    Args:
        left_alone: objects that are none of ours, such as the optimizer, with all below them.

    Attributes:
        states: objects that a pass may change in place, each of them once.
        generators: random generators.
        iterators: where iterators were found, which cannot be run twice.
    """

    def __init__(self, left_alone: Iterable[Any] = ()) -> None:
        self.states: list[Changeable] = []
        self.generators: list[Any] = []
        self.iterators: list[str] = []
        self._seen: dict[int, Any] = {id(one): one for one in left_alone}  # alive: no other object gets its id
        self._owner: Changeable | None = None  # the state of what is searched
        self._own = False  # whether that is of the user's own class
        self._room = math.inf  # how many states there may be after the attribute that is searched

    def visit(self, value: Any, path: str, place: Place = None) -> None:
        """Find what can be changed in `value`, found at `path`, and below it; `place` is what holds it, and the key."""
        if isinstance(value, ATOMS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if len(self.states) > self._room:
            raise _TooMuch
        if isinstance(value, Tensor):
            self._visit_tensor(value, path, place)
        elif is_generator(value):
            self.generators.append(value)
        elif isinstance(value, nn.Module):
            self._visit_module(value, path, place)
        elif isinstance(value, (dict, list, set, deque, tuple, frozenset)):
            self._visit_container(value, path, place)
        elif is_array(value):
            self._add(ArrayState(value, path, place, self._owner))
        else:
            self._visit_other(value, path, place)

    def _visit_other(self, value: Any, path: str, place: Place) -> None:
        if isinstance(value, (functools.partial, MethodType, FunctionType, CellType)):
            self._visit_callable(value, path)
        elif isinstance(value, torch.utils.data.DataLoader):
            self._visit_sampler(value, path)
        elif is_iterator(value):
            self.iterators.append(path)
        elif is_users_own(type(value)) and not _is_shared(value):  # type: ignore[arg-type]
            if hasattr(value, "__dict__"):
                self.visit_namespace(value, path, place)
            elif slots_of(type(value)):
                self._add(SlotsState(value, path, place, self._owner))
                for name in slots_of(type(value)):
                    self.visit(getattr(value, name, None), f"{path}.{name}")

    def visit_namespace(self, owner: Any, path: str, place: Place = None, skipped: frozenset[str] = NOTHING) -> None:
        """Find what can be changed in the attributes of `owner`, those in `skipped` aside."""
        namespace, own = vars(owner), self._own
        self._own = is_users_own(type(owner), itself=True)  # type: ignore[arg-type]
        state = self._add(DictState(namespace, path, place, self._owner, skipped))
        items = [(name, value) for name, value in namespace.items() if name not in skipped]
        for name, value in items:
            if not isinstance(value, ATOMS):
                with self._below(state), self._small(value):
                    self.visit(value, f"{path}.{name}" if path else name, (namespace, name))
        self._visit_class(type(owner))
        self._own = own

    def _add(self, state: Changeable) -> Changeable:
        state.own = self._own
        self.states.append(state)
        return state

    @contextmanager
    def _below(self, owner: Changeable | None) -> Iterator[None]:
        """Let what is found inside belong to `owner`."""
        before, self._owner = self._owner, owner
        try:
            yield
        finally:
            self._owner = before

    @contextmanager
    def _small(self, value: Any) -> Iterator[None]:
        """Forget what is found inside if it is so much that `value` is data; modules may hold any number."""
        before = self._room
        found: tuple[list[Any], ...] = (self.states, self.generators, self.iterators)
        lengths = [len(one) for one in found]
        self._room = math.inf if isinstance(value, nn.Module) else min(before, len(self.states) + MOST)
        try:
            yield
        except _TooMuch:
            if before != math.inf:
                raise
            for one, length in zip(found, lengths, strict=True):
                del one[length:]
        finally:
            self._room = before

    def _visit_tensor(self, tensor: Tensor, path: str, place: Place) -> None:
        inner: Any = tensor
        if is_traceable_wrapper_subclass(inner):  # a shard, or quantised: what it is made of
            for name in inner.__tensor_flatten__()[0]:
                self.visit(getattr(tensor, name), f"{path}.{name}")
        elif is_readable(tensor):
            self._add(TensorState(tensor, path, place, self._owner))

    def _visit_module(self, module: nn.Module, path: str, place: Place) -> None:
        buffers = None
        if not type(module).__module__.startswith(ENGINES):
            self.visit_namespace(module, path, place, MODULE_PARTS)
            buffers = self._add(DictState(module._buffers, path, None, self._owner))
            for name in HOOKS:
                self._add(DictState(vars(module)[name], f"{path}.{name}", None, self._owner))
        for kind in (module._buffers, module._parameters, module._modules):
            for name, value in list(kind.items()):
                with self._below(buffers if kind is module._buffers else None), self._small(value):
                    self.visit(value, f"{path}.{name}" if path else name, (kind, name))

    def _visit_container(self, value: Any, path: str, place: Place) -> None:
        owner = self._owner
        if len(value) > LONG and not isinstance(value, list):
            return
        if isinstance(value, dict):
            owner = self._add(DictState(value, path, place, self._owner))
        elif not isinstance(value, (tuple, frozenset)):
            owner = self._add(ItemsState(value, path, place, self._owner))
        if len(value) > LONG:
            return
        with self._below(owner):
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if not isinstance(item, ATOMS):
                    self.visit(item, f"{path}[{key!r}]", (value, key) if isinstance(value, (dict, list)) else None)

    def _visit_callable(self, value: Any, path: str) -> None:
        if isinstance(value, functools.partial):
            self.visit((value.func, value.args, value.keywords), path)
        elif isinstance(value, MethodType):
            self.visit(value.__self__, path)
            self.visit(value.__func__, path)
        elif isinstance(value, CellType):
            if _is_bound(value):
                with self._below(self._add(VariableState(value, path, None, self._owner))):
                    self.visit(value.cell_contents, path, (value, None))
        elif root_of(value.__module__) not in LIBRARIES:
            for name, variable in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                self.visit(variable, f"{path}.{name}")
            self.visit_namespace(value, path)
            self.visit(value.__defaults__, path)
            self._visit_globals(value)

    def _visit_globals(self, function: FunctionType) -> None:
        """Find the generators that a function reads from its file, itself or through others of the same file."""
        if id(function.__code__) in self._seen:
            return
        self._seen[id(function.__code__)] = function.__code__
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if is_generator(value):
                self.visit(value, name)
            elif isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
                self._visit_globals(value)

    def _visit_class(self, cls: type) -> None:
        """Find the generators that a class of the user's holds for all of its objects, or its methods read."""
        for base in cls.__mro__:
            if id(base) in self._seen or not is_users_own(base, itself=True):
                continue
            self._seen[id(base)] = base
            for name, value in list(vars(base).items()):
                if is_generator(value):
                    self.visit(value, f"{base.__name__}.{name}")
                elif isinstance(value, FunctionType):
                    self._visit_globals(value)

    def _visit_sampler(self, loader: Any, path: str) -> None:
        """Find the generators that the next iterator of a data loader draws its order from."""
        sampler = getattr(loader, "sampler", None)
        for owner in (loader, sampler, getattr(loader.batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if is_generator(generator):
                self.visit(generator, f"{path}.generator")


class _TooMuch(Exception):
    """Raised where an attribute holds so much that it is data."""


def _is_bound(variable: CellType) -> bool:
    try:
        variable.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_shared(value: Any) -> bool:
    """Return whether other threads act on an object (a writer of logs)."""
    attributes = getattr(value, "__dict__", {})
    return any(root_of(type(one).__module__) in SHARED_WITH_THREADS for one in attributes.values())
