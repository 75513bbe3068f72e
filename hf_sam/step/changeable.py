# SPDX-License-Identifier: Apache-2.0
"""Objects that a pass may change in place: how each kind is copied, compared and written back.

Every object stands for itself alone: what a list or a namespace holds are objects of their own. A copy of each of
them is a copy of everything, and writing it back leaves every object where others may hold it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from copy import deepcopy
from types import CellType
from typing import Any

import torch
from torch import Tensor

from hf_sam.step.tensor_bits import bits, plain

ATOMS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)
"""Types of what nothing can change."""
LONG = 10_000
"""Items from which on a list is taken to be a history, which is appended to and not otherwise changed."""


class Changeable:
    """One object that a pass may change in place.

    Args:
        held: the object.
        path: where it was found, as a user would write it.
        place: the namespace or container that it was found in, and the key there; None at the root.
        owner: the state of what `place` is in, if that is one.

    Attributes:
        own: whether it is of an object of the user's own class, and no library's.
    """

    __slots__ = ("held", "own", "owner", "path", "place")

    def __init__(self, held: Any, path: str, place: tuple[Any, Any] | None, owner: Changeable | None) -> None:
        self.held, self.path, self.place, self.owner, self.own = held, path, place, owner, False

    def copy(self) -> Any:
        """Return a copy, from which `write` makes the object what it is now."""
        raise NotImplementedError

    def write(self, copy: Any) -> None:
        """Make the object what it was when `copy` was taken."""
        raise NotImplementedError

    def differs(self, copy: Any) -> bool:
        """Return whether the object has changed since `copy` was taken."""
        raise NotImplementedError


class TensorState(Changeable):
    """The elements of a plain tensor, and its size."""

    __slots__ = ()

    def copy(self) -> Tensor:
        """Return a copy of the elements."""
        return plain(self.held).clone()

    def write(self, copy: Tensor) -> None:
        """Write the elements back, in place; a tensor that was resized gets its size back."""
        if self.held.shape != copy.shape:
            self.held.resize_(copy.shape)
        plain(self.held).copy_(copy)

    def differs(self, copy: Tensor) -> bool:
        """Return whether the size or a bit has changed. Waits for the device."""
        return self.held.shape != copy.shape or not torch.equal(bits(plain(self.held)), bits(copy))


class ArrayState(Changeable):
    """The elements of a NumPy array."""

    __slots__ = ()

    def copy(self) -> Any:
        """Return a copy of the array."""
        return self.held.copy()

    def write(self, copy: Any) -> None:
        """Write the elements back, in place."""
        self.held[...] = copy

    def differs(self, copy: Any) -> bool:
        """Return whether an element has changed."""
        return bool(self.held.shape != copy.shape or self.held.tobytes() != copy.tobytes())


class DictState(Changeable):
    """What a dictionary or the namespace of an object holds under each key.

    Args:
        skipped: keys that are none of ours.
    """

    __slots__ = ("skipped",)

    def __init__(
        self, held: Any, path: str, place: Any, owner: Changeable | None, skipped: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(held, path, place, owner)
        self.skipped = skipped

    def copy(self) -> dict[Any, Any]:
        """Return the items."""
        if not self.skipped:
            return dict(self.held)
        return {key: value for key, value in self.held.items() if key not in self.skipped}

    def write(self, copy: dict[Any, Any]) -> None:
        """Bind every key to what it was bound to."""
        held = self.held
        for key in [key for key in held if key not in copy and key not in self.skipped]:
            del held[key]
        for key, value in copy.items():
            if key not in held or held[key] is not value:
                held[key] = value
        if not self.skipped and list(held) != list(copy):  # some dictionaries are read in their order
            held.clear()
            for key, value in copy.items():
                held[key] = value

    def differs(self, copy: dict[Any, Any]) -> bool:
        """Return whether a key came, went, or was bound to another object."""
        now = self.copy()
        return len(now) != len(copy) or any(key not in copy or copy[key] is not value for key, value in now.items())


class ItemsState(Changeable):
    """What a list, a set or a deque holds; of a long list only how many."""

    __slots__ = ()

    def copy(self) -> list[Any]:
        """Return the items; of a long list its length."""
        held = self.held
        return History(len(held)) if isinstance(held, list) and len(held) > LONG else list(held)

    def write(self, copy: list[Any]) -> None:
        """Put the items back."""
        held = self.held
        if isinstance(copy, History):
            del held[copy.length :]
            held.extend(copy)
        elif isinstance(held, list):
            held[:] = copy
        else:
            held.clear()
            held.extend(copy) if isinstance(held, deque) else held.update(copy)

    def differs(self, copy: list[Any]) -> bool:
        """Return whether other items are held."""
        if isinstance(copy, History):
            return len(self.held) != copy.length
        return len(self.held) != len(copy) or any(a is not b for a, b in zip(self.held, copy, strict=True))


class History(list[Any]):
    """A copy of the end of a long list: everything from `length` on."""

    def __init__(self, length: int, items: Iterable[Any] = ()) -> None:
        super().__init__(items)
        self.length = length

    def since(self, held: list[Any]) -> History:
        """Return what has been appended."""
        return History(self.length, held[self.length :])


class SlotsState(Changeable):
    """What an object without a namespace holds in its slots."""

    __slots__ = ()

    def copy(self) -> dict[str, Any]:
        """Return what each slot holds."""
        return {name: getattr(self.held, name) for name in slots_of(type(self.held)) if hasattr(self.held, name)}

    def write(self, copy: dict[str, Any]) -> None:
        """Fill the slots again."""
        for name in slots_of(type(self.held)):
            if name in copy:
                setattr(self.held, name, copy[name])
            elif hasattr(self.held, name):
                delattr(self.held, name)

    def differs(self, copy: dict[str, Any]) -> bool:
        """Return whether a slot holds another object."""
        now = self.copy()
        return now.keys() != copy.keys() or any(copy[name] is not value for name, value in now.items())


class VariableState(Changeable):
    """What a variable is bound to that a function shares with the one around it."""

    __slots__ = ()
    held: CellType

    def copy(self) -> Any:
        """Return what the variable is bound to."""
        return self.held.cell_contents

    def write(self, copy: Any) -> None:
        """Bind it again."""
        self.held.cell_contents = copy

    def differs(self, copy: Any) -> bool:
        """Return whether it was bound to another object."""
        return self.held.cell_contents is not copy


class GivenState(Changeable):
    """An object that a user has named, with `state_dict` and `load_state_dict`."""

    __slots__ = ()

    def copy(self) -> Any:
        """Return a copy of its state."""
        return deepcopy(self.held.state_dict())

    def write(self, copy: Any) -> None:
        """Load that state; the object may keep what it loads."""
        self.held.load_state_dict(deepcopy(copy))

    def differs(self, copy: Any) -> bool:
        """Return True: named by the user, it is replayed in any case."""
        del copy
        return True


def slots_of(cls: type) -> list[str]:
    """Return the names of the slots of a class."""
    named = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    return [name for names in named for name in ([names] if isinstance(names, str) else names) if name[:2] != "__"]


def is_array(value: Any) -> bool:
    """Return whether `value` is a NumPy array of numbers that can be written to."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray):
        return False
    return bool(value.flags.writeable and not value.dtype.hasobject)
