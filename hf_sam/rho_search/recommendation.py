# SPDX-License-Identifier: Apache-2.0
"""Hold what a range test of the radius has measured, and recommend the radius that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_sam.rho_search import range_table

NO_MATPLOTLIB = "`RangeTest.plot` needs matplotlib, which is not installed: pip install 'hf-sam[sharpness]'."
AT = (
    "At rho {rho:.3g} the loss rises by {share} of its value {loss:.3g}: by {low} at {below:.3g} and by {high} at "
    "{above:.3g}, the nearest radii tried"
)
UP_TO = (
    "{rho:.3g} is the largest rho tried at which the loss, {loss:.3g}, rises by no more than {share} of its value: by "
    "{low}, and by {high} at {above:.3g}"
)
NEVER = (
    "Up to rho {rho:.3g}, the largest tried, the loss rises by no more than {high} of its value {loss:.3g}, where "
    "{share} may be: so the largest is recommended, and larger `rhos` are worth a try"
)
ALWAYS = (
    "At rho {rho:.3g}, the smallest tried, the loss rises by {high} of its value {loss:.3g} already, where {share} may "
    "be: so the smallest is recommended, and may be too large; try smaller `rhos`"
)


@dataclass(frozen=True, repr=False)
class RangeTest:
    """The result of `find_rho`: what it has measured, and what follows.

    `print(result)` shows the reason and a table, a notebook does so with `result` alone, and `result.plot()` draws it.

    Attributes:
        rho: the recommended radius.
        reason: why, in one sentence with numbers.
        share: of the clean loss, by which the loss may rise.
        variant: which way epsilon points, as in `sam_variant`.
        steps: plain optimizer steps before the measurement.
        rhos: the radii tried, ascending.
        losses: L(w), one for each batch.
        rises: L(w + epsilon) - L(w), one row for each batch and one column for each radius; inf or nan where the
            perturbed loss is.
        seconds: how long it took.
    """

    rho: float
    reason: str
    share: float
    variant: str
    steps: int
    rhos: tuple[float, ...]
    losses: tuple[float, ...]
    rises: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def relative_rises(self) -> tuple[float, ...]:
        """The mean rise at each radius, as a share of the mean clean loss."""
        return relative_rises(self.losses, self.rises)

    def __repr__(self) -> str:
        return range_table.line(self)

    def __str__(self) -> str:
        return range_table.text(self)

    def _repr_html_(self) -> str:
        return range_table.as_html(self)

    def plot(self, axes: Any = None) -> Any:
        """Draw how the loss rises with the radius: each batch, their mean, the limit, and the recommendation.

        Args:
            axes: matplotlib's, to draw on; None for those of a new figure.

        Returns:
            The axes.

        Raises:
            ImportError: without matplotlib.
        """
        try:
            from hf_sam.rho_search.range_plot import draw
        except ModuleNotFoundError as error:
            raise ImportError(NO_MATPLOTLIB) from error
        return draw(self, axes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it: None where a number is not finite."""
        found: dict[str, Any] = _as_json({**asdict(self), "relative_rises": self.relative_rises})
        return found


def relative_rises(losses: Sequence[float], rises: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean of each column of `rises` (batches x radii), divided by the mean of `losses` (one a batch)."""
    return tuple(sum(column) / sum(losses) for column in zip(*rises, strict=True))


def recommend(rhos: Sequence[float], relative: Sequence[float], share: float, loss: float) -> tuple[float, str]:
    """Return the radius at which the relative rise first reaches `share`, rounded down to two digits, and why.

    Between the radii tried it is interpolated, both axes logarithmic.

    Args:
        rhos: the radii tried, ascending, > 0.
        relative: the rise of the loss at each of them, as a share of the loss; not finite counts as too large.
        share: how large it may be, > 0.
        loss: L(w), for the reason.

    Example:
        >>> recommend([0.1, 0.2, 0.4], [0.01, 0.04, 0.16], share=0.08, loss=2.0)[0]
        0.28
    """
    beyond = next((i for i, rise in enumerate(relative) if not rise <= share), None)
    if beyond is None:
        most = _percent(max(relative))
        return rhos[-1], NEVER.format(rho=rhos[-1], high=most, loss=loss, share=_percent(share))
    above, high = rhos[beyond], relative[beyond]
    if beyond == 0:
        return above, ALWAYS.format(rho=above, high=_percent(high), loss=loss, share=_percent(share))
    rho, low = rhos[beyond - 1], relative[beyond - 1]
    numbers = {"loss": loss, "share": _percent(share), "low": _percent(low), "high": _percent(high), "above": above}
    if not (low > 0 and math.isfinite(high)):  # no logarithm
        return rho, UP_TO.format(rho=rho, **numbers)
    exact = rho * (above / rho) ** (math.log(share / low) / math.log(high / low))
    best = max(rho, _rounded_down(exact))
    return best, AT.format(rho=best, below=rho, **numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if abs(share) < 1 else f"{100 * share:.0f} %"


def _rounded_down(value: float) -> float:
    """Return `value` with two digits; what comes out as 0.27999... for want of bits is 0.28."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit + 1e-9) * unit:.2g}")


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
