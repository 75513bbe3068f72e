# SPDX-License-Identifier: Apache-2.0
"""One step of a variant that knows its way before the pass: climb, evaluate once, come back."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from torch import Tensor

from hf_sam.step.measurement import Measurement, NormObserver
from hf_sam.step.perturbation import Perturbation
from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, LengthOf, OnePass
from hf_sam.vectors.stochastic_rounding import StochasticRounding


def one_pass_step(
    evaluate: Callable[[], object],
    params: list[Tensor],
    variant: OnePass,
    *,
    rho: Length | LengthOf,
    context: StepContext,
    rounding: StochasticRounding | None = None,
    measured: bool = True,
) -> Measurement | None:
    """Run `evaluate` at w + epsilon and leave the weights at w, to the last bit, also when it raises.

    Sharded weights that are still gathered from an evaluation have to be sharded again before
    (`FSDPModule.reshard`), or the pass would not see them move.

    Args:
        evaluate: forward and backward at the weights as they then are; finds and leaves `.grad` as a plain pass does.
        params: the parameters that may move. `Shards` where they are spread over processes.
        variant: which way to climb.
        rho: how far, >= 0; a number, a 0-dim tensor, or what computes one from the way.
        context: where in the run this is.
        rounding: how weights of 16 bits are rounded; to nearest by default.
        measured: whether epsilon is measured on the way back; None where it is not.

    Returns:
        What was measured, without a cosine; None where the variant does not know its way yet and the pass was at w.

    Raises:
        ValueError: what the variant raises, before anything has moved.
    """
    with KnownPerturbation(rounding, measured=measured) as perturbation:
        perturbation.apply(params, variant, rho, context)  # w + epsilon
        evaluate()
        return perturbation.undo()  # w


class KnownPerturbation:
    """A perturbation that is known before a pass and may last for several; a context that ends with the weights at w.

    Args:
        rounding: how weights of 16 bits are rounded; to nearest by default.
        measured: whether epsilon is measured on the way back.
    """

    def __init__(self, rounding: StochasticRounding | None = None, *, measured: bool = True) -> None:
        self._rounding, self._measured = rounding, measured
        self._parts: list[Perturbation] = []  # each noted before it moves
        self._observer: NormObserver | None = None
        self._usable: Tensor | None = None
        self._asked: list[Length] = []

    def apply(self, params: list[Tensor], variant: OnePass, rho: Length | LengthOf, context: StepContext) -> None:
        """Move to w + epsilon, or nowhere where the variant does not know its way yet."""
        count = 0
        for moved, ascent in variant.ways_before_pass(params, _noted(rho, self._asked), context):
            if self._measured and self._observer is None:
                self._observer = NormObserver(moved)
            self._parts.append(Perturbation(moved, self._rounding, self._observer, first=count))
            self._usable = self._parts[-1].apply(ascent)  # after this a copy of w is all that is extra
            count += len(moved)

    def undo(self) -> Measurement | None:
        """Move back to w, to the last bit; return what was measured, None where nothing had moved."""
        for part in reversed(self._parts):
            part.undo()
        if self._usable is None:
            return None
        if self._observer is None:
            return Measurement(self._usable, self._asked[0])
        return self._observer.result(self._usable, self._asked[0])

    def __enter__(self) -> KnownPerturbation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in reversed(self._parts):
            part.__exit__(kind, error, trace)


def _noted(rho: Length | LengthOf, asked: list[Length]) -> Length | LengthOf:
    """Return `rho`; note in `asked` what it is, now or when it is computed."""
    if not callable(rho):
        asked.append(rho)
        return rho

    def compute(params: list[Tensor], vectors: list[Tensor]) -> Tensor:
        asked.append(rho(params, vectors))
        return asked[-1]  # type: ignore[return-value]

    return compute
