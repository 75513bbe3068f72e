# SPDX-License-Identifier: Apache-2.0
"""One step of a variant that knows its way before the pass: climb, evaluate once, come back."""

from __future__ import annotations

from collections.abc import Callable

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

    Called once per micro-batch, each of which finds the same epsilon. Sharded weights that are still gathered from an
    evaluation have to be sharded again before (`FSDPModule.reshard`), or the pass would not see them move.

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
    asked: list[Length] = []
    way = variant.direction_before_pass(params, _noted(rho, asked), context)
    if way is None:
        evaluate()
        return None
    moved, ascent = way
    observer = NormObserver(moved) if measured else None
    with Perturbation(moved, rounding, observer) as perturbation:
        usable = perturbation.apply(ascent)  # w + epsilon
        del ascent, way  # from here on the copy of w is all that is extra
        evaluate()
        perturbation.undo()  # w
    return Measurement(usable, asked[0]) if observer is None else observer.result(usable, asked[0])


def _noted(rho: Length | LengthOf, asked: list[Length]) -> Length | LengthOf:
    """Return `rho`; note in `asked` what it is, now or when it is computed."""
    if not callable(rho):
        asked.append(rho)
        return rho

    def compute(params: list[Tensor], vectors: list[Tensor]) -> Tensor:
        asked.append(rho(params, vectors))
        return asked[-1]  # type: ignore[return-value]

    return compute
