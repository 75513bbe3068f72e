# SPDX-License-Identifier: Apache-2.0
"""The share of the fall of the training loss that is memorisation, from the shape of its curve."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import is_count
from hf_sam.radius.schedules import checked_tensor

JUST_BEFORE = 1e-6
"""Passes by which a step may lie before a whole pass and still begin it: passes are quotients."""


class Memorisation:
    """The share of the fall of the loss that is due to having seen the very examples before.

    What is learnt of the task makes the loss fall at every step, as all examples help each other. What is memorised
    makes it fall where a new pass over the data begins: from there on each example has been seen once more. So the
    curve of a model that memorises has the shape of stairs. With A_e and B_e the mean loss over the first and the
    second half of pass e, the fall from B_e to A_(e+1), less that from A_e to B_e where there is one, is the jump J_e:
    both are half a pass apart. The share is sum_e J_e / (L_0 - A_e), held in [0, 1]; 0 in the first pass and a half.

    Where a pass is a single step the two cannot be told apart.

    Args:
        enough: the share that counts as the whole, in (0, 1].
        most: the largest multiple of it that is returned, > 0.
    """

    def __init__(self, enough: float, most: float = 1.0) -> None:
        self.enough, self.most = enough, most
        self._pass, self._counts, self._second = 0, [0, 0], False
        self._single = False  # whether the last pass was one step
        # The sums of the losses of both halves of this pass, the means of those of the last one, the sum of the jumps,
        # and the part of enough.
        self._sums, self._before, self._found = torch.zeros(2), torch.zeros(2), torch.zeros(2)
        self.known = False  # whether the passes are counted

    def note(self, passes: float | None) -> None:
        """Take in where the run is before a step."""
        self.known = passes is not None
        if passes is None:
            return
        whole = math.floor(passes + JUST_BEFORE)
        if whole > self._pass:
            counts = torch.tensor([max(1, n) for n in self._counts], device=self._sums.device)
            means = self._sums / counts
            self._single = not self._counts[1]
            self._before, self._sums, self._counts = means, torch.zeros_like(self._sums), [0, 0]
            self._pass, self._second = whole, False
        self._second = passes + JUST_BEFORE - whole >= 0.5

    def observe(self, loss: Tensor, first: Tensor) -> bool:
        """Take in the loss of that step and L_0, both finite and 0-dim; return whether the share is another now."""
        self._sums, self._before, self._found = (
            kept.to(loss.device) for kept in (self._sums, self._before, self._found)
        )
        jumps = self._second and not self._counts[1] and self._pass > 0
        if jumps:
            self._jump(first)
        half = int(self._second)
        self._sums[half].add_(loss)
        self._counts[half] += 1
        return jumps

    def _jump(self, first: Tensor) -> None:
        """Add the jump into this pass, of which the first half is over."""
        now = self._sums[0] / max(1, self._counts[0])
        began, ended = self._before.unbind()
        jumps = self._found[0] + (ended - now) - (began - ended).clamp(min=0)
        fall = first - now
        part = torch.where(fall > 0, jumps / (fall * self.enough), 0.0).clamp(0, self.most)
        self._found = torch.stack([jumps, part])

    @property
    def begins(self) -> bool:
        """Whether the data have been seen too seldom to know anything: once and a half."""
        return self.known and not self._single and self._pass + (0.5 if self._second else 0.0) < 1.5

    def part(self) -> Tensor | None:
        """Return share / enough, 0-dim, in [0, most]; None where it cannot be known."""
        return self._found[1] if self.known and not self._single else None

    def state_dict(self) -> dict[str, Any]:
        """Return the pass, what its halves hold, and what the former ones came to."""
        counts = {"pass": self._pass, "first_half": self._counts[0], "second_half": self._counts[1]}
        counts["single"] = int(self._single)
        return {**counts, "sums": self._sums.clone(), "before": self._before.clone(), "found": self._found.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ValueError: if `state` is something else.
        """
        for name in ("pass", "first_half", "second_half", "single"):
            if not is_count(value := state.get(name), least=0):
                raise ValueError(f"the state of rho='auto' has no whole number {name!r} >= 0, but {value!r}")
        self._sums, self._before, self._found = (
            checked_tensor(state, name, (2,)).clone() for name in ("sums", "before", "found")
        )
        self._pass, self._counts = int(state["pass"]), [int(state["first_half"]), int(state["second_half"])]
        self._single = bool(state["single"])
