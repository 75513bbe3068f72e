# SPDX-License-Identifier: Apache-2.0
"""What SAM has done in a run, from its first step on, also where it was resumed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

STATE = "totals."
"""What the names of these numbers begin with in the state that a checkpoint keeps."""


@dataclass
class RunTotals:
    """Sums over the optimizer steps of a run. Plain numbers, which know nothing of the device.

    Attributes:
        steps: optimizer steps.
        perturbed: those of them that perturbed, or in which a regulariser did its work.
        passes: passes over the data, of which a plain step takes one.
        radius: mean of the radii asked for, over `radius_count` perturbations; 0 where there was none.
        radius_count: see `radius`.
        last_radius: the last one.
        rises: sum of the rises of the loss, L(w + epsilon) - L(w), over `rise_count` optimizer steps.
        rise_count: see `rises`.
        first_loss: of the first step whose clean loss is known; 0 before.
    """

    steps: int = 0
    perturbed: int = 0
    passes: float = 0.0
    radius: float = 0.0
    radius_count: int = 0
    last_radius: float = 0.0
    rises: float = 0.0
    rise_count: float = 0.0
    first_loss: float = 0.0

    def plus(self, later: RunTotals) -> RunTotals:
        """Return the sums over the steps of both."""
        added = {f.name: getattr(self, f.name) + getattr(later, f.name) for f in fields(self)}
        added["radius"] = self.radius + (later.radius - self.radius) * later.radius_count / (added["radius_count"] or 1)
        added["last_radius"] = later.last_radius if later.radius_count else self.last_radius
        added["first_loss"] = self.first_loss or later.first_loss
        return RunTotals(**added)

    @property
    def share_perturbed(self) -> float:
        """Share of the optimizer steps that perturbed, in [0, 1]."""
        return self.perturbed / self.steps if self.steps else 0.0

    @property
    def mean_rise(self) -> float | None:
        """Mean over the steps of L(w + epsilon) - L(w); None where none was measured."""
        return self.rises / self.rise_count if self.rise_count else None

    @property
    def passes_a_step(self) -> float:
        """Passes over the data in a step, on average."""
        return self.passes / self.steps if self.steps else 1.0

    def summary(self, *, knows_rise: bool) -> dict[str, float]:
        """Return what the last log of a run says, by log key.

        Args:
            knows_rise: whether L(w) and L(w + epsilon) of the same examples are known.
        """
        logs = {
            "sam/run_perturbed": self.share_perturbed,
            "sam/run_rho": self.radius,
            "sam/run_last_rho": self.last_radius,
            "sam/run_passes": self.passes_a_step,
        }
        return {**logs, "sam/run_sharpness": self.mean_rise or 0.0} if knows_rise else logs

    def state_dict(self) -> dict[str, float]:
        """Return what a resume needs."""
        return {f"{STATE}{name}": value for name, value in asdict(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunTotals:
        """Return what `state_dict` said; sums that begin now where a checkpoint has none.

        Raises:
            ValueError: if a number is missing, or is none.
        """
        own = {name.removeprefix(STATE): value for name, value in state.items() if name.startswith(STATE)}
        if not own:
            return cls()
        names = {f.name for f in fields(cls)}
        if own.keys() != names or not all(map(_is_number, own.values())):
            raise ValueError(f"the totals of the run are {own}, not one number for each of {sorted(names)}")
        return cls(**own)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
