# SPDX-License-Identifier: Apache-2.0
"""The search for what passes change: everything is compared before and after, at a few perturbations of a run."""

from __future__ import annotations

import logging
from typing import Any

from hf_sam.step.changeable import ArrayState, Changeable, DictState, ItemsState, TensorState
from hf_sam.step.copies import chain_of, copy_all
from hf_sam.step.tensor_bits import SAMPLE, glance, same_glance

logger = logging.getLogger(__name__)

SMALL, MANY = 1_000, 64
"""Items in a namespace or container of the user's own, and how many of these are compared at every perturbation."""
LATE = (
    "A forward pass has changed `%s`, which none had before, and whose elements had not been copied: the second "
    "pass of this step started from the changed ones. From the next step on it starts from a copy."
)


class FirstLook:
    """Everything that the passes can reach, as it is now.

    Small objects are copied. Of tensors, those that are new are copied as far as there is room for, the smallest first;
    of the others, and of those that an earlier look has found unchanged, there is a glance at a part of the elements.

    Args:
        changed: the `ChangedState` of the run.
    """

    def __init__(self, changed: Any) -> None:
        reach = changed.find()
        changed.generators, changed.iterators = reach.generators, reach.iterators
        room = changed.room()
        self.states: list[Changeable] = []
        self.glances: list[tuple[TensorState, Any]] = []
        tensors = [state for state in reach.states if isinstance(state, TensorState)]
        for state in sorted(tensors, key=lambda state: state.held.numel() * state.held.element_size()):
            size = state.held.numel() * state.held.element_size()
            if state.path in changed.paths or state.held.numel() <= SAMPLE:
                self.states.append(state)
            elif state.path not in changed.known and size <= room:
                room -= size
                self.states.append(state)
            else:
                self.glances.append((state, glance(state.held)))
        self.states += [state for state in reach.states if not isinstance(state, TensorState)]
        self.copies = copy_all(self.states)
        self.versions = [state.held._version if isinstance(state, TensorState) else 0 for state in self.states]

    def differences(self, changed: Any) -> tuple[list[Changeable], list[Any], list[Changeable]]:
        """Return what has changed since, its copies, and what has changed without having been copied.

        Args:
            changed: the `ChangedState` of the run, which remembers it.
        """
        found = [
            (state, copy)
            for state, copy, version in zip(self.states, self.copies, self.versions, strict=True)
            if state.path in changed.paths
            or (isinstance(state, TensorState) and state.held._version != version)  # perhaps with what was there
            or state.differs(copy)
        ]
        late = [state for state, before in self.glances if not same_glance(glance(state.held), before)]
        changed.paths.update(state.path for state, _ in found)
        changed.paths.update(state.path for state in late)
        everything = [*self.states, *(state for state, _ in self.glances)]
        changed.known.update(state.path for state in everything)
        changed.paths.update(state.path for state in everything if _is_kept(state))
        changed.changing = [state for state in everything if state.path in changed.paths]
        changed.chain = chain_of(changed.changing)
        changed.watched = [s.held for s in everything if isinstance(s, TensorState) and s.path not in changed.paths]
        changed.look_again = False
        own = [
            s for s in everything if s.own and s.path not in changed.paths and isinstance(s, (DictState, ItemsState))
        ]
        changed.own = [state for state in own if len(state.held) <= SMALL][:MANY]
        changed.contents = [state.held for state in changed.own]
        _tell(changed, late)
        return [state for state, _ in found], [copy for _, copy in found], list(late)


def late_contents(changed: Any, copies: list[Any]) -> tuple[list[Changeable], list[Any]]:
    """Return the namespaces and containers that have changed for the first time, and their copies.

    Args:
        changed: the `ChangedState` of the run, which looks at everything next time.
        copies: of its `contents`.
    """
    found = []
    for state, copy in zip(changed.own, copies, strict=True):
        before = (
            {k: v for k, v in copy.items() if k not in state.skipped} if isinstance(state, DictState) else list(copy)
        )
        if state.differs(before):
            found.append((state, before))
    changed.paths.update(state.path for state, _ in found)
    changed.look_again |= bool(found)
    return [state for state, _ in found], [copy for _, copy in found]


def _is_kept(state: Changeable) -> bool:
    """Return whether a tensor is copied although it has not changed yet: a small one of the user's own objects."""
    if not state.own or not isinstance(state, (TensorState, ArrayState)):
        return False
    count = state.held.numel() if isinstance(state, TensorState) else state.held.size
    return bool(count <= SAMPLE)


def warn_of_late_change(changed: Any, versions: list[int]) -> list[Changeable]:
    """Return the tensors that were written to although none had been before, and look at everything next time.

    Args:
        changed: the `ChangedState` of the run.
        versions: of the watched tensors, as they were.
    """
    late = [tensor for tensor, version in zip(changed.watched, versions, strict=True) if tensor._version != version]
    ids = {id(tensor) for tensor in late}
    states = [s for s in changed.find().states if isinstance(s, TensorState) and id(s.held) in ids]
    changed.paths.update(state.path for state in states)
    changed.look_again = True
    _tell(changed, states)
    return list(states)


def _tell(changed: Any, late: list[Any]) -> None:
    if late and not changed.told:
        changed.told = True
        logger.warning(LATE, late[0].path)
