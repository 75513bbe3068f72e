# SPDX-License-Identifier: Apache-2.0
"""What is one sharpness-aware step? Climb, re-evaluate, come back. Start reading here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_sam.step.gradient_mixing import UNMIXED, GradientMixing, mix_, renormalise_
from hf_sam.step.measurement import Measurement, asked_norm_of, clean_copy, measure
from hf_sam.step.perturbation import Perturbation, bring_back
from hf_sam.variants import Length, LengthOf, Variant
from hf_sam.vectors.shards import is_dtensor, local_shard, same_kind
from hf_sam.vectors.stochastic_rounding import StochasticRounding
from hf_sam.vectors.vectors import global_norm

Gradients = Sequence[Tensor | None]


def two_pass_step(
    evaluate: Callable[[], object],
    params: list[Tensor],
    direction: Variant,
    *,
    rho: Length | LengthOf,
    onto: Gradients | None = None,
    comparable: bool = True,
    rounding: StochasticRounding | None = None,
    mixing: GradientMixing = UNMIXED,
    measured: bool = True,
) -> Measurement:
    """Turn the clean gradient in `.grad` into the perturbed one: climb, re-evaluate, come back.

    Args:
        evaluate: runs forward and backward at the weights as they then are, adding to `.grad`.
        params: the trainable parameters; those without a gradient stay where they are. `Shards` where they are spread
            over processes (see `hf_sam.vectors.shards.as_shards`).
        direction: which way to climb.
        rho: how far; a number, a 0-dim tensor, or what computes one from the gradient.
        onto: gradients of earlier micro-batches to which the perturbed gradient is added; None to start from nothing.
        comparable: whether what `evaluate` adds to `onto` is h. It is not where `evaluate` ends by averaging the sum
            over processes (DDP); then there is no cosine.
        rounding: how weights of 16 bits are rounded; to nearest by default.
        mixing: what else is made of h.
        measured: whether epsilon and the cosine are measured on the way back; NaN where they are not.

    Returns:
        What was measured. `.grad` holds h, or `direction.combine(g, h)`, on top of `onto`.
    """
    onto = onto if onto is not None else [None] * len(params)
    reached = [(p, earlier) for p, earlier in zip(params, onto, strict=True) if p.grad is not None]
    moved = same_kind(params, [p for p, _ in reached])
    _check_gradients(moved)
    length = rho(moved, _gradients(moved)) if callable(rho) else rho
    mixes = direction.combines or mixing.weight != 1
    clean = clean_copy(moved, _gradients(moved), direction, length, needed=mixes) if mixes or measured else None
    clean_norm = global_norm(_gradients(moved), moved) if mixing.renormalise else None
    before = [None if earlier is None else local_shard(earlier).clone() for _, earlier in reached]
    perturbation = Perturbation(moved)
    try:
        ascent = direction.ascend(moved, _gradients(moved), length)
        usable, asked_norm = ascent.usable, asked_norm_of(ascent, moved) if measured else None
        perturbation.apply(ascent, rounding)
        del ascent
        set_gradients(params, onto)  # drops the clean gradient: from here on the copy of w is all that is extra
        torch.clear_autocast_cache()  # a context around both passes would keep casts of the weights as they were
        evaluate()
        h = list(map(_added, moved, before))
        epsilon_norm, grad_cosine = (
            measure(perturbation, moved, clean, h, direction) if measured else _only_back(perturbation, usable)
        )
    finally:
        bring_back(perturbation)
        torch.clear_autocast_cache()
    if direction.combines or mixing.changes:
        _put(moved, before, _finished(moved, h, clean, clean_norm, direction, mixing))
    return Measurement(usable, epsilon_norm, grad_cosine if comparable else grad_cosine * torch.nan, asked_norm, length)


def _only_back(perturbation: Perturbation, usable: Tensor) -> tuple[Tensor, Tensor]:
    # Here and not only at the end, where a Ctrl-C between two lines would be the last one that is noticed.
    perturbation.undo()
    return usable * torch.nan, usable * torch.nan


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [local_shard(p.grad) for p in params if p.grad is not None]


def _finished(
    params: list[Tensor],
    h: list[Tensor],
    clean: list[Tensor] | None,
    clean_norm: Tensor | None,
    direction: Variant,
    mixing: GradientMixing,
) -> list[Tensor]:
    """Return what the optimizer is to see instead of h, whose memory may be used."""
    if direction.combines and clean is not None:
        h = direction.combine(clean, h)
    if mixing.weight != 1 and clean is not None:
        mix_(h, clean, mixing.weight)
    if clean_norm is not None:
        renormalise_(h, clean_norm, params)
    return h


def _put(params: list[Tensor], before: list[Tensor | None], grads: list[Tensor]) -> None:
    """Write what this process holds of the gradients, on top of those of earlier micro-batches."""
    for p, earlier, grad in zip(params, before, grads, strict=True):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        local_shard(p.grad).copy_(grad if earlier is None else earlier.add_(grad))


def set_gradients(params: list[Tensor], grads: Gradients) -> None:
    """Bind each parameter's `.grad`, without copying."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def _added(p: Tensor, before: Tensor | None) -> Tensor:
    """Return what the descent pass added to `p.grad`; zeros if it never reached p."""
    if p.grad is None:
        return torch.zeros_like(local_shard(p))
    return local_shard(p.grad) if before is None else local_shard(p.grad) - before


def _check_gradients(params: list[Tensor]) -> None:
    if not params:
        raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters given?")
    if any(p.grad is not None and is_dtensor(p.grad) and p.grad.placements != p.placements for p in params):  # type: ignore[attr-defined]
        raise NotImplementedError("Gradients placed otherwise than their parameters (tensor parallelism).")
    if any(grad.layout != torch.strided for grad in _gradients(params)):
        raise NotImplementedError("Sparse gradients are not supported: build the embedding with sparse=False.")
