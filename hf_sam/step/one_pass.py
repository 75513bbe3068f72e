# SPDX-License-Identifier: Apache-2.0
"""What is a step whose direction is known before the pass? Climb, evaluate once, come back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hf_sam.step.measurement import Measurement, asked_norm_of
from hf_sam.step.perturbation import Perturbation, bring_back
from hf_sam.step_context import StepContext
from hf_sam.variants.base import Length, LengthOf, OnePass
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from hf_sam.vectors.vectors import accumulation_dtype, dot, sum_of


def one_pass_step(
    evaluate: Callable[[], object],
    params: list[Tensor],
    direction: OnePass,
    *,
    rho: Length | LengthOf,
    context: StepContext,
    rounding: StochasticRounding | None = None,
    measured: bool = True,
) -> Measurement | None:
    """Run `evaluate` at w + epsilon and come back to w, to the last bit, also when it raises.

    Called once per micro-batch, each of which finds the same epsilon. Sharded weights that are still gathered from an
    evaluation have to be sharded again before (`FSDPModule.reshard`), or the pass would not see them move.

    Args:
        evaluate: forward and backward at the weights as they then are; finds and leaves `.grad` as a plain pass does.
        params: the parameters that may move. `Shards` where they are spread over processes.
        direction: which way to climb.
        rho: how far, >= 0.
        context: where in the run this is.
        rounding: how weights of 16 bits are rounded; to nearest by default.
        measured: whether epsilon is measured on the way back; NaN where it is not.

    Returns:
        What was measured, without a cosine; None where the direction does not know its way yet and the pass was at w.

    Raises:
        ValueError: what the direction raises, before anything has moved.
    """
    asked: list[Length] = []
    way = direction.direction_before_pass(params, _noted(rho, asked), context)
    if way is None:
        evaluate()
        return None
    moved, ascent = way
    perturbation = Perturbation(moved)
    try:
        usable, asked_norm = ascent.usable, asked_norm_of(ascent, moved) if measured else None
        perturbation.apply(ascent, rounding)
        del ascent, way  # from here on the copy of w is all that is extra
        torch.clear_autocast_cache()  # a context around the pass would keep casts of the weights as they were
        evaluate()
        if measured:
            epsilon_norm = _norm_on_the_way_back(perturbation, moved)
        else:
            perturbation.undo()
            epsilon_norm = usable * torch.nan
    finally:
        bring_back(perturbation)
        torch.clear_autocast_cache()
    asked_norm = None if asked_norm is None else asked_norm.abs()  # the way may be against a vector
    return Measurement(usable, epsilon_norm, epsilon_norm * math.nan, asked_norm, asked[0])


def _noted(rho: Length | LengthOf, asked: list[Length]) -> Length | LengthOf:
    """Return `rho`; note in `asked` what it is, now or when it is computed."""
    if not callable(rho):
        asked.append(rho)
        return rho

    def compute(params: list[Tensor], vectors: list[Tensor]) -> Tensor:
        asked.append(rho(params, vectors))
        return asked[-1]  # type: ignore[return-value]

    return compute


def _norm_on_the_way_back(perturbation: Perturbation, moved: list[Tensor]) -> Tensor:
    """Come back; on the way measure ||epsilon|| as it was realised."""
    dtype, squares = accumulation_dtype(moved), []

    def visit(number: int, owners: list[Tensor], w: list[Tensor], copies: list[Tensor]) -> None:
        del number, owners
        torch._foreach_sub_(w, copies)
        squares.append(dot(w, w, dtype))

    perturbation.undo(visit)
    return sum_of(squares[::-1], moved).sqrt()
