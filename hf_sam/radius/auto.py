# SPDX-License-Identifier: Apache-2.0
"""A radius without tuning, in sizes of the weights, from the fall of the loss and what of it is memorisation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import is_count
from hf_sam.radius.memorisation import Memorisation
from hf_sam.radius.schedules import Radius, checked_tensor
from hf_sam.step_context import StepContext
from hf_sam.variants.asam import ETA, is_scaled, scales_of
from hf_sam.variants.base import Length
from hf_sam.vectors.vectors import accumulation_dtype, chunks, contiguous_as, dot, is_finite, sums

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Most plain steps at the beginning of a run, whose mean loss is L_0; a third of a shorter one."""
BEGIN = 0.97
"""Share of the first loss that has to be left for a perturbation to begin."""
WHOLE = 0.7
"""Share of the first loss at which the perturbation has its whole length."""
ENOUGH = 0.3
"""Share of the fall of the loss that has to be memorisation for the whole length."""
MOST = 2.0
"""Times the whole length at most, where so many times that share is memorisation: as it is where labels are wrong."""
SURE = (0.3, 0.1)
"""Shares of the first loss left where a perturbation begins without memorisation, and where it is whole."""
REST = 0.01
"""Share of the first loss below which there is nothing left to gain, and steps are plain ones."""
CHECK = 10
"""Steps from one look at whether there is anything to gain to the next. Looking waits for the device.

A perturbation that a new share of memorisation leaves without a length comes to rest at once.
"""

NO_SHARE = (
    "`SAMConfig(rho='auto')` needs a loss that falls from above 0 towards 0, and the mean of the first %d is %.3g: no "
    "step of this run is perturbed. Give a number, such as rho=%g, or add a constant to the loss."
)


class Auto(Radius):
    """`rho="auto"`: rho = strength * a * b * ||T v|| / ||v||, which is 0 until the model memorises.

    v is the direction of the variant (the clean gradient, or the momentum), T that of ASAM (see `hf_sam.variants.asam`)
    and ||T v|| / ||v|| the size of the weights along it. A variant whose rho is in sizes of the weights, as ASAM's is,
    takes strength * a * b itself. To first order the loss of SAM then rises as ASAM's does at that rho.

    r = L / L_0 in [0, 1] says how far training has got: L is the running mean of the loss, L_0 its mean over the first
    steps, which are plain steps. r is taken one standard error of its noise too high, as a share of itself, so that
    luck does not pass for progress. The noise is that from one of the first losses to the next (von Neumann 1941), so
    their fall is not in it.

    a(r) = (0.97 - r) / 0.27, between 0 and 1. While nothing is learnt there is no perturbation, so a plateau is left as
    the plain Trainer leaves it, and a perturbation that keeps the model from learning makes the loss rise, and so
    shrinks itself. Where 0.01 of the first loss is left there is nothing to gain.

    b = s / 0.3, between 0 and 2, or (0.3 - r) / 0.2, between 0 and 1; the larger. s is the share of the loss's fall
    that is memorisation (see `Memorisation`): most of it where labels are wrong. A model that still learns what holds
    for all examples is left alone, however often it has seen the data. In the first pass and a half over them s is 0.
    Where the passes are not counted b is 1. Where little of the loss is left, a model grows surer than it is right,
    memorising or not.

    All steps without a perturbation are plain ones, at a plain step's cost, and so are those of the learning rate's
    warm-up.

    Args:
        strength: a factor, > 0; the variant's own by default.
        scale_free: whether the variant's rho is measured in sizes of the weights, as ASAM's is.
        smoothing: weight of the past in the running mean of the loss, in [0, 1).
        number: the rho that a message names for where this one cannot be.
    """

    needs_gradient = True
    needs_loss = True

    def __init__(
        self, strength: float = 1.0, *, scale_free: bool = False, smoothing: float = 0.95, number: float = 0.05
    ) -> None:
        self.strength, self.scale_free, self.smoothing, self.number = strength, scale_free, smoothing, number
        self._steps, self._patience, self._idle = 0, PATIENCE, False
        # L_0, L and the noise of L; while L_0 is being measured, of the finite losses the number, the mean and the sum
        # of squares of the differences from each to the next. And the last of them.
        self._losses, self._last = torch.zeros(3), torch.zeros(())
        self._lines = torch.zeros(2, 2)  # slopes and intercepts of a and of the second part of b, as lines in L
        self._memorisation = Memorisation(ENOUGH, MOST)
        self._planned: Tensor | None = None  # the length that `at` returned for the step that is under way

    def note(self, context: StepContext) -> None:
        """Take in how often the data have been seen."""
        self._memorisation.note(context.passes)

    def at(self, context: StepContext) -> Length:
        """Return the length in sizes of the weights; the number 0 for plain steps."""
        if context.steps and self._steps < self._patience:
            # A gate that was closed so far has kept the length of the run from being known: no fewer than were counted.
            self._patience = max(self._steps + 1, min(PATIENCE, context.steps // 3))
        measuring = self._steps < self._patience or self._memorisation.begins
        if self._idle or measuring or context.step < context.warmup_steps:
            return 0.0
        self._planned = self._length()
        return self._planned

    def from_gradient(self, params: list[Tensor], grads: list[Tensor], loss_scale: Length) -> Tensor:
        """Return rho; only the direction of `grads` counts."""
        del loss_scale
        length = self._length() if self._planned is None else self._planned
        return length if self.scale_free else length.to(grads[0].device) * size_along(params, grads)

    def _length(self) -> Tensor:
        """Return strength * a * b."""
        slopes, intercepts = self._lines
        a, sure = torch.addcmul(intercepts, self._losses[1], slopes).clamp(0, 1).unbind()
        memorised = self._memorisation.part()
        return self.strength * (a if memorised is None else a * torch.maximum(sure, memorised.to(a.device)))

    def observe(self, loss: Tensor, rise: Tensor | None) -> None:
        """Take in the loss of a step; one that is not finite is passed over."""
        del rise
        loss = loss.detach().float()
        self._losses, self._lines = self._losses.to(loss.device), self._lines.to(loss.device)
        good, mean = is_finite(loss), self._losses[1]
        kept = torch.where(good, loss, mean)
        measuring = self._steps < self._patience
        jumped = self._memorisation.observe(kept, mean if measuring else self._losses[0])
        if measuring:
            self._losses = torch.where(good, self._first(loss), self._losses)
            self._last = torch.where(good, loss, self._last.to(loss.device))
        else:
            mean.lerp_(kept, 1 - self.smoothing)
        self._steps, self._planned = self._steps + 1, None
        if self._steps == self._patience:
            self._losses = self._known()
            self._lines = self._lines_in_the_loss()
        since = self._steps - self._patience
        if since > 0 and (since % CHECK == 0 or (jumped and not self._idle)):
            self._look()

    def _look(self) -> None:
        """See whether there is anything to gain; the only wait for the device, and one for all that it is asked."""
        first, left, length = torch.stack([self._losses[0], self._left(), self._length()]).tolist()
        self._idle = left < REST or length == 0
        if self._steps == self._patience + CHECK and not first > 0:
            logger.warning(NO_SHARE, self._patience, first, self.number)

    def _first(self, loss: Tensor) -> Tensor:
        """Return the number, the mean and the squared differences of the losses with one more."""
        number, mean, squares = self._losses.unbind()
        step = torch.where(number > 0, (loss - self._last.to(loss.device)).square(), 0.0)
        return torch.stack([number + 1, mean + (loss - mean) / (number + 1), squares + step])

    def _known(self) -> Tensor:
        """Return L_0, L, which begins there, and the standard error of L - L_0 where the loss does not fall."""
        number, mean, squares = self._losses.unbind()
        of_means = 1 / number + (1 - self.smoothing) / (1 + self.smoothing)
        return torch.stack([mean, mean, (squares / (2 * (number - 1).clamp(min=1)) * of_means).sqrt()])

    def _lines_in_the_loss(self) -> Tensor:
        """Return slopes and intercepts (2 x 2) of (0.97 - r) / 0.27 and (0.3 - r) / 0.2, as r is a multiple of L."""
        begin, span = torch.tensor([[BEGIN, SURE[0]], [BEGIN - WHOLE, SURE[0] - SURE[1]]], device=self._losses.device)
        can_fall = self._losses[0] > 0
        slopes = torch.where(can_fall, -self._multiple() / span, 0.0)
        return torch.stack([slopes, torch.where(can_fall, begin, begin - 1) / span])

    def _multiple(self) -> Tensor:
        """Return r / L."""
        first, _, noise = self._losses.unbind()
        return (1 + noise / first) / first

    def _left(self) -> Tensor:
        """Return r; 1, where nothing is to be perturbed, if the first losses are none that can fall."""
        return torch.where(self._losses[0] > 0, (self._losses[1] * self._multiple()).clamp(0, 1), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, how many of them were the first ones, whether it rests, and the losses."""
        counts = {"steps": self._steps, "patience": self._patience, "idle": self._idle}
        seen = {f"memorisation_{name}": value for name, value in self._memorisation.state_dict().items()}
        return {**counts, "losses": self._losses.clone(), "last": self._last.clone(), **seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ValueError: if `state` is something else.
        """
        for name in ("steps", "patience"):
            if not is_count(value := state.get(name), least=0):
                raise ValueError(f"the state of rho='auto' has no whole number {name!r} >= 0, but {value!r}")
        if not isinstance(state.get("idle"), bool):
            raise ValueError(f"the state of rho='auto' has no 'idle' that is true or false, but {state.get('idle')!r}")
        losses, last = checked_tensor(state, "losses", (3,)), checked_tensor(state, "last", ())
        own = "memorisation_"
        self._memorisation.load_state_dict({n.removeprefix(own): v for n, v in state.items() if n.startswith(own)})
        self._steps, self._patience, self._idle = int(state["steps"]), int(state["patience"]), state["idle"]
        self._losses, self._last = losses.clone(), last.clone()
        if self._steps >= self._patience:
            self._lines = self._lines_in_the_loss()


@torch.no_grad()
def size_along(
    params: list[Tensor],
    vectors: list[Tensor],
    *,
    eta: float = ETA,
    scales: Callable[[Tensor], bool] = is_scaled,
) -> Tensor:
    """Return ||T v|| / ||v||, with the T of ASAM (see `hf_sam.variants.asam`).

    Args:
        params: the parameters, at w.
        vectors: v, one tensor per parameter, not changed.
        eta: added to |w|, >= 0.
        scales: whether T is |w| + eta for a parameter, and not 1.

    Returns:
        0-dim tensor; not a number where v is zero or not finite.
    """
    products: list[tuple[Tensor | float, Tensor | float]] = []
    for owners, w, v in chunks(params, contiguous_as(params, vectors)):
        through = [i for i, p in enumerate(owners) if scales(p)]
        # In at least float32: 16 bits round T, and may overflow.
        t = scales_of([w[i] for i in through], eta, dtype=accumulation_dtype([*w, *v]))
        if t:
            torch._foreach_mul_(t, [v[i] for i in through])
        tv = list(v)
        for i, scaled in zip(through, t, strict=True):
            tv[i] = scaled
        products.append(_squares(tv, v))
    with_t, without = sums([list(column) for column in zip(*products, strict=True)], params)
    return (with_t / without).sqrt()


def _squares(left: list[Tensor], right: list[Tensor]) -> tuple[Tensor | float, Tensor | float]:
    """Return the inner products of two lists of equal length with themselves, on an accelerator in one go."""
    if left[0].device.type == "cpu":
        return dot(left, left), dot(right, right)
    both = [*left, *right]
    norms = torch.stack(list(torch._foreach_norm(both, 2, dtype=accumulation_dtype(both))))
    of_left, of_right = norms.square().view(2, -1).sum(1).unbind()
    return of_left, of_right
