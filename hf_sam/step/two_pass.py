# SPDX-License-Identifier: Apache-2.0
"""One sharpness-aware step: climb, evaluate again, come back (Foret et al. 2021, algorithm 1). Start reading here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_sam.step.gradient_mixing import UNMIXED, GradientMixing, MixedGradient
from hf_sam.step.measurement import CosineObserver, Measurement, clean_copy
from hf_sam.step.perturbation import Perturbation
from hf_sam.variants import Length, LengthOf, Variant
from hf_sam.vectors.shards import Shards
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from hf_sam.vectors.vectors import gradients, restore_, same_kind

Gradients = Sequence[Tensor | None]


def two_pass_step(
    evaluate: Callable[[], object],
    params: list[Tensor],
    variant: Variant,
    *,
    rho: Length | LengthOf,
    onto: Gradients | None = None,
    onto_after: bool = False,
    rounding: StochasticRounding | None = None,
    mixing: GradientMixing = UNMIXED,
    measured: bool = True,
) -> Measurement:
    """Turn the clean gradient g in `.grad` into the perturbed one, h, and leave the weights at w, to the last bit.

        epsilon = rho * g / ||g||;   h = grad L(w + epsilon);   back to w        (SAM; eq. 2 and 3 of the paper)

    Args:
        evaluate: runs forward and backward at the weights as they then are, adding to `.grad`.
        params: the trainable parameters; those without a gradient stay where they are. `Shards` where they are spread
            over processes (see `hf_sam.vectors.shards.as_shards`).
        variant: which way to climb.
        rho: how far; a number, a 0-dim tensor, or what computes one from the gradient.
        onto: gradients of earlier micro-batches to which the perturbed gradient is added; None to start from nothing.
        onto_after: whether they are added after the pass where h is mixed with g, so that h is not rounded with them;
            not where the pass reduces what is in `.grad` over processes.
        rounding: how weights of 16 bits are rounded; to nearest by default.
        mixing: what else is made of h.
        measured: whether epsilon and the cosine are measured on the way back; None where they are not.

    Returns:
        What was measured. `.grad` holds h, or what `variant.combine` and `mixing` make of g and h, on top of `onto`.

    Raises:
        RuntimeError: if no parameter has a gradient.
        NotImplementedError: for sparse gradients, and for gradients placed otherwise than their parameters.
    """
    onto = onto if onto is not None else [None] * len(params)
    moved = _with_gradient(params)
    radius = rho(moved, gradients(moved)) if callable(rho) else rho
    mixed = MixedGradient(moved, variant, mixing) if variant.combines or mixing != UNMIXED else None
    onto, later = ([None] * len(params), onto) if mixed and onto_after else (onto, None)
    added = _AddedGradient(params, onto) if measured or mixed else None
    observer = None
    if measured and added:
        clean = (mixed and mixed.clean) or clean_copy(moved, variant, radius)
        observer = CosineObserver(moved, variant, added.read, clean)

    try:
        with Perturbation(moved, rounding, observer) as perturbation:
            usable = perturbation.apply(variant.ascend(moved, gradients(moved), radius))  # w + epsilon
            set_gradients(params, onto)  # drops g: from here on the copy of w is all that is extra
            evaluate()  # h
            perturbation.undo()  # w
        if mixed and added:
            added.write(mixed.of(added.read()))
    finally:  # an error in the pass leaves them too
        if later:
            put_gradients_under(params, later)
    return Measurement(usable, radius) if observer is None else observer.result(usable, radius)


def set_gradients(params: list[Tensor], grads: Gradients) -> None:
    """Bind each parameter's `.grad`, without copying."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def take_gradients(params: list[Tensor]) -> Gradients | None:
    """Take gradients from before a step (a penalty's) out of the way of the clean pass; None if there are none.

    They are no part of g. Given as `onto`, they have the gradient of the step added to them, as any step would do.
    """
    earlier = [p.grad for p in params]
    if set(map(type, earlier)) <= {type(None)}:
        return None
    set_gradients(params, [None] * len(params))
    return earlier


@torch.no_grad()
def put_gradients_under(params: list[Tensor], earlier: Gradients | None) -> None:
    """Add the gradient of a step to the gradients from before it, where no pass has done so."""
    for p, grad in zip(params, earlier, strict=True) if earlier else ():
        if grad is not None:
            p.grad = grad if p.grad is None else grad.add_(p.grad)


class _AddedGradient:
    """What a pass adds to `.grad` on top of earlier gradients: h, read and written where it stands.

    Args:
        params: the trainable parameters; those with a gradient are the ones that move.
        onto: their gradients from before the pass, or None; copied here, as the pass adds to them in place.
    """

    def __init__(self, params: list[Tensor], onto: Gradients) -> None:
        pairs = [(p, earlier) for p, earlier in zip(params, onto, strict=True) if p.grad is not None]
        self._params = same_kind(params, [p for p, _ in pairs])
        self._earlier = [None if earlier is None else self._local([earlier])[0].clone() for _, earlier in pairs]

    def read(self) -> list[Tensor]:
        """Return h; zeros for parameters that the pass did not reach."""
        grads = self._local([torch.zeros_like(p) if p.grad is None else p.grad for p in self._params])
        pairs = zip(grads, self._earlier, strict=True)
        return [grad if earlier is None else grad - earlier for grad, earlier in pairs]

    def write(self, grads: list[Tensor]) -> None:
        """Write what takes the place of h, on top of the earlier gradients."""
        for p in self._params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        places = self._local([p.grad for p in self._params if p.grad is not None])
        pairs = zip(self._earlier, grads, strict=True)
        written = [grad if earlier is None else earlier.add_(grad) for earlier, grad in pairs]
        others = [i for i, (place, grad) in enumerate(zip(places, written, strict=True)) if grad is not place]
        restore_([places[i] for i in others], [written[i] for i in others])

    def _local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the parts of these tensors on this process."""
        return self._params.local(tensors) if isinstance(self._params, Shards) else tensors


def _with_gradient(params: list[Tensor]) -> list[Tensor]:
    """Return the parameters that move: those with a gradient."""
    moved = same_kind(params, [p for p in params if p.grad is not None])
    if not moved:
        raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters given?")
    if {grad.layout for grad in gradients(moved)} != {torch.strided}:
        raise NotImplementedError("Sparse gradients are not supported: build the embedding with sparse=False.")
    return moved
