# SPDX-License-Identifier: Apache-2.0
"""What makes two passes over the same data the same function: random streams, and whatever passes change."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_sam.step.changeable import Changeable, GivenState
from hf_sam.step.copies import are_in_place, copy_all, write_all
from hf_sam.step.generators import device_state, generator_state, set_device_state, set_generator_state
from hf_sam.step.inputs import Repeated, changed_inputs, inputs_as_before, nested_states
from hf_sam.step.reach import Reach
from hf_sam.step.search import FirstLook, late_contents, warn_of_late_change

TWISTER_BYTES = 625 * 4
"""Size of a Mersenne twister."""
FIRST, AGAIN = 3, 256
"""How many perturbations look at everything, and after how many others one more does."""


class RandomState:
    """The random streams as they are now: Python, NumPy, the CPU, the devices of the model, and given generators.

    Some models draw masks with NumPy (SpecAugment) or Python's `random` (layer drop). NumPy is looked up, not imported:
    a program that has not imported it cannot draw from it.

    Args:
        devices: whose streams are meant, as well as those of the CPU.
        generators: others that a pass draws from (see `hf_sam.step.generators`).
    """

    def __init__(self, devices: Iterable[torch.device], generators: Sequence[Any] = ()) -> None:
        """Capture every stream as it is now."""
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = _numpy_state(numpy.random) if numpy is not None else None
        self._cpu = torch.get_rng_state()
        self._devices = [(d, device_state(d)) for d in devices if d.type != "cpu"]
        self._own = [(one, generator_state(one)) for one in generators]

    def restore(self) -> None:
        """Put every stream back to where it was at capture."""
        random.setstate(self._python)
        if self._numpy is not None and not self._numpy.is_present():
            self._numpy.restore()
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            set_device_state(device, state)
        for generator, state in self._own:
            set_generator_state(generator, state)


class _NumpyState:
    """NumPy's stream as it was.

    Reading it takes longer than a small layer does. Its memory is read in no time, and says whether anything was drawn,
    but for one number: of two normal ones the second is not in it. A state that holds one never counts as present.
    """

    last: _NumpyState | None = None

    def __init__(self, stream: Any) -> None:
        self._stream, self._state, self._memory = stream, stream.get_state(), self._read(stream)

    def is_present(self) -> bool:
        """Return whether the stream is certainly still there."""
        return self._memory is not None and not self._state[3] and self._memory == self._read(self._stream)

    def restore(self) -> None:
        """Put the stream back."""
        self._stream.set_state(self._state)

    @staticmethod
    def _read(stream: Any) -> bytes | None:
        """Return the memory of the global twister, None where there is another generator."""
        generator: Any = stream.get_bit_generator() if hasattr(stream, "get_bit_generator") else None
        if type(generator) is not stream.MT19937:
            return None
        return ctypes.string_at(generator.ctypes.state_address, TWISTER_BYTES)


def _numpy_state(stream: Any) -> _NumpyState:
    """Return the present state of NumPy's stream; the last one that was taken, where it is that."""
    if _NumpyState.last is None or not _NumpyState.last.is_present():
        _NumpyState.last = _NumpyState(stream)
    return _NumpyState.last


def _ids(content: Any) -> list[int]:
    return list(map(id, content.values() if isinstance(content, dict) else content))


def devices_of(tensors: Iterable[Tensor]) -> list[torch.device]:
    """Return the distinct devices of `tensors`, in order of appearance."""
    return list(dict.fromkeys(t.device for t in tensors))


class ChangedState:
    """What the passes of a run change, found by looking at everything at first, and copied from then on.

    Args:
        find: searches what the passes can reach.
        room: returns how many bytes the first look may copy.
    """

    def __init__(self, find: Callable[[], Reach], room: Callable[[], int]) -> None:
        self.find, self.room = find, room
        self.generators: list[Any] = []
        self.iterators: list[str] = []  # where they are
        self.changing: list[Changeable] = []  # what a pass has changed so far
        self.chain: list[Changeable] = []  # the same, and what it is in
        self.paths: set[str] = set()  # where that was
        self.known: set[str] = set()  # where there were tensors that have been looked at
        self.watched: list[Tensor] = []  # tensors that no pass has changed, which are not copied
        self.contents: list[Any] = []  # of the user's own objects, which no pass has changed
        self.own: list[Changeable] = []  # the same
        self.perturbations, self.look_again, self.told = 0, False, False
        self.behind_versions = False  # whether a pass writes to batches by `.data`, which their versions do not show

    def now(self, given: Iterable[Any] = ()) -> StateAtStart:
        """Return the state as it is now, before the first pass of a perturbation.

        Args:
            given: objects with `state_dict` and `load_state_dict` that the user has named.
        """
        named: list[Changeable] = [GivenState(one, "replayed_state()", None, None) for one in given]
        self.perturbations += 1
        if (
            self.perturbations <= FIRST
            or self.perturbations % AGAIN == 0
            or self.look_again
            or (self.chain and not are_in_place(self.chain))
        ):
            self.look_again = True  # until it has been seen what changed
            return StateAtStart(self, [], [], FirstLook(self), named)
        return StateAtStart(self, self.changing, copy_all(self.changing) if self.changing else [], None, named)

    def __getstate__(self) -> tuple[Any, Any]:
        """Leave the rest behind: a trainer that is pickled or copied finds its own."""
        return self.find, self.room

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self.__init__(*state)  # type: ignore[misc]


class StateAtStart:
    """The state that the first pass of a perturbation found.

    Args:
        changed: what knows which objects change.
        states: of those that are known to.
        copies: theirs.
        look: where everything is looked at, the copies of everything.
        given: what the user has named.
    """

    def __init__(
        self,
        changed: ChangedState,
        states: list[Changeable],
        copies: list[Any],
        look: FirstLook | None,
        given: list[Changeable],
    ) -> None:
        self._changed, self._look, self._states, self._copies = changed, look, states, copies
        if given:
            self._states, self._copies = [*states, *given], [*copies, *copy_all(given)]
        self._versions = [t._version for t in changed.watched] if look is None else []
        self._contents = [one.copy() for one in changed.contents] if look is None else []

    @contextmanager
    def again(self, *, stays: bool = False, ends: bool = True) -> Iterator[None]:
        """Let a pass start from this state, and leave the present one behind, whatever is raised.

        Args:
            stays: whether what the pass leaves is to stay instead.
            ends: whether the first passes of the perturbation have all been run.
        """
        states, copies, late = self._differences(ends)
        if not states and not late:
            yield
            return
        left = [] if stays else copy_all([*states, *late], [*copies, *([None] * len(late))])
        write_all(states, copies)
        try:
            yield
        finally:
            if not stays:
                write_all([*states, *late], left)

    def _differences(self, ends: bool) -> tuple[list[Changeable], list[Any], list[Changeable]]:
        """Return what has changed, its copies, and what has changed without a copy."""
        if self._look is None:
            if list(map(_ids, self._changed.contents)) != list(map(_ids, self._contents)):
                more, copies = late_contents(self._changed, self._contents)
                self._states, self._copies = [*self._states, *more], [*self._copies, *copies]
            if [t._version for t in self._changed.watched] != self._versions:
                return self._states, self._copies, warn_of_late_change(self._changed, self._versions)
            return self._states, self._copies, []
        states, copies, late = self._look.differences(self._changed)
        states, copies = [*states, *self._states], [*copies, *self._copies]
        if ends:  # the other copies have served
            self._look, self._states, self._copies = None, states, copies
            self._versions = [t._version for t in self._changed.watched]
            self._contents = [one.copy() for one in self._changed.contents]
        return states, copies, late


class InputsAtStart:
    """The arguments of a model as a pass found them: it may mix images or mask tokens in place.

    They are copied: when one is written to for the first time, it is too late. Only those that were are written back:
    others may lie in memory that cannot be (a file's).
    """

    def __init__(self, inputs: Any, changed: ChangedState) -> None:
        values = list(inputs.values()) if hasattr(inputs, "values") else [inputs]
        self._tensors = [v for v in values if type(v) is Tensor and v.layout is torch.strided and not v.is_inference()]
        self._before = [(t._version, t.requires_grad, t.grad if t.requires_grad else None) for t in self._tensors]
        self._copies = [torch.empty_like(t, requires_grad=False) for t in self._tensors]
        if self._copies:
            torch._foreach_copy_(self._copies, [t.detach() for t in self._tensors])
        self._changed = changed
        self.iterators: dict[str, Repeated] = {}
        self._nested: list[Changeable] = []
        if len(values) > len(self._tensors):
            self._nested, self.iterators = nested_states(inputs)
        self._nested_copies = copy_all(self._nested) if self._nested else []

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let a pass find them as they were, and leave them as they are now, whatever is raised."""
        written = [i for i, t in enumerate(self._tensors) if (t._version, t.requires_grad) != self._before[i][:2]]
        if self._changed.perturbations <= FIRST or self._changed.behind_versions:
            written = changed_inputs(self._tensors, self._copies, written, self._changed)
        if not written and not self._nested:
            yield
            return
        tensors = [(self._tensors[i], self._copies[i], self._before[i]) for i in written]
        with inputs_as_before(tensors, self._nested, self._nested_copies):
            yield
