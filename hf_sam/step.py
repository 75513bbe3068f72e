# SPDX-License-Identifier: Apache-2.0
"""What is one sharpness-aware step? Climb, re-evaluate, come back. Start reading here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_sam.config import ROUNDINGS, checked_choice, checked_rho
from hf_sam.excursion import Excursion
from hf_sam.layers import RandomState, devices_of
from hf_sam.numerics import restore_, snapshot
from hf_sam.report import Report, asked_norm_of, clean_copy, measure
from hf_sam.rounding import StochasticRounding, seed_from
from hf_sam.shards import held, is_dtensor, like, local
from hf_sam.variants import Variant, make_variant

Gradients = Sequence[Tensor | None]
_calls = itertools.count()


def sharpness_aware_grad(
    closure: Callable[[], Tensor],
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    *,
    rho: float = 0.05,
    variant: str | Variant = "sam",
    variant_kwargs: Mapping[str, Any] | None = None,
    buffers: Iterable[Tensor] = (),
    rounding: str | torch.Generator = "nearest",
) -> Tensor:
    """Fill every `.grad` with the sharpness-aware gradient (Foret et al. 2021, eq. 3), in any training loop.

        g = grad L(w);   epsilon = rho * g / ||g||;   .grad = grad L(w + epsilon);   w untouched, to the last bit

    Call it where `closure()` would have been called, then clip and step as always. Both calls of `closure` see the
    same random numbers; afterwards the random streams are where one call would have left them.

    Args:
        closure: runs forward and backward over the whole batch, leaves gradients in `.grad` and returns the loss. It is
            called twice and must use the same data both times; it may call `zero_grad`, it must not step.
        parameters: every parameter that `closure` gives a gradient, on one device; or `model.named_parameters()`.
            Gradients from before the call are dropped. Parameters sharded with `fully_shard` (FSDP2) are whole to rho;
            those of FullyShardedDataParallel (FSDP1) cannot be recognised here.
        rho: radius, a Euclidean norm over all parameters, >= 0.
        variant: a name ("sam", "asam") or an instance, which may keep state between calls.
        variant_kwargs: options for a variant given by name.
        buffers: tensors that a forward pass changes (`model.buffers()`, for batch normalisation): the second pass
            starts from what the first one started from, and leaves them as the first one did.
        rounding: how weights of 16 bits take a perturbation finer than they are: "nearest" loses most of it,
            "stochastic" none on average. The noise is another one at every call: it comes from torch's seed and the
            number of calls so far. To resume in the same bits give a `torch.Generator` on the CPU, and save its state.

    Returns:
        L(w), what the first call of `closure` returned.

    Raises:
        ValueError: if rho, the variant or an option is out of range, or no parameter requires a gradient.

    If either pass raises, the parameters have their original bits and the gradients are to be discarded.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> def closure():
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = sharpness_aware_grad(closure, model.parameters(), rho=0.05)
        >>> optimizer.step()
    """
    direction = _as_variant(variant, variant_kwargs)
    params = _trainable(parameters, direction)
    rho = checked_rho(rho, "sharpness_aware_grad(rho=...)")
    rounded = _as_rounding(rounding)
    kept = list(buffers)
    set_gradients(params, [None] * len(params))

    start, buffers_at_start = RandomState(devices_of(params)), snapshot(kept)
    loss = closure()
    end, buffers_at_end = RandomState(devices_of(params)), snapshot(kept)

    def evaluate_again() -> None:
        start.restore()
        restore_(kept, buffers_at_start)
        closure()

    try:
        descend(evaluate_again, held(params), direction, rho=rho, rounding=rounded)
    finally:
        end.restore()
        restore_(kept, buffers_at_end)
    return loss


def descend(
    evaluate: Callable[[], object],
    params: list[Tensor],
    direction: Variant,
    *,
    rho: float,
    onto: Gradients | None = None,
    comparable: bool = True,
    rounding: StochasticRounding | None = None,
) -> Report:
    """Turn the clean gradient in `.grad` into the perturbed one: climb, re-evaluate, come back.

    Args:
        evaluate: runs forward and backward at the weights as they then are, adding to `.grad`.
        params: the trainable parameters; those without a gradient stay where they are. `Shards` where they are spread
            over processes (see `hf_sam.shards.held`).
        direction: which way to climb.
        rho: how far.
        onto: gradients of earlier micro-batches to which the perturbed gradient is added; None to start from nothing.
        comparable: whether what `evaluate` adds to `onto` is h. It is not where `evaluate` ends by averaging the sum
            over processes (DDP); then there is no cosine.
        rounding: how weights of 16 bits are rounded; to nearest by default.

    Returns:
        What was measured. `.grad` holds h, or `direction.combine(g, h)`, on top of `onto`.
    """
    onto = onto if onto is not None else [None] * len(params)
    reached = [(p, earlier) for p, earlier in zip(params, onto, strict=True) if p.grad is not None]
    moved = like(params, [p for p, _ in reached])
    _check_gradients(moved)
    clean = clean_copy(moved, _gradients(moved), direction, rho)
    before = [None if earlier is None else local(earlier).clone() for _, earlier in reached]
    excursion = Excursion(moved)
    try:
        ascent = direction.ascend(moved, _gradients(moved), rho)
        usable, asked_norm = ascent.usable, asked_norm_of(ascent, moved)
        excursion.climb(ascent, rounding)
        del ascent
        set_gradients(params, onto)  # drops the clean gradient: from here on the copy of w is all that is extra
        torch.clear_autocast_cache()  # a context around both passes would keep casts of the weights as they were
        evaluate()
        h = list(map(_added, moved, before))
        epsilon_norm, grad_cosine = measure(excursion, moved, clean, h, direction)
    finally:
        _come_back(excursion)
        torch.clear_autocast_cache()
    if direction.combines and clean is not None:
        for p, b, grad in zip(moved, before, direction.combine(clean, h), strict=True):
            _put(p, grad if b is None else b.add_(grad))
    return Report(usable, epsilon_norm, grad_cosine if comparable else grad_cosine * torch.nan, asked_norm)


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [local(p.grad) for p in params if p.grad is not None]


def _put(p: Tensor, grad: Tensor) -> None:
    """Write what this process holds of the gradient."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    local(p.grad).copy_(grad)


def set_gradients(params: list[Tensor], grads: Gradients) -> None:
    """Bind each parameter's `.grad`, without copying."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


def _come_back(excursion: Excursion) -> None:
    """Come back, also when Ctrl-C lands in the few instructions before the copy."""
    try:
        excursion.come_back()
    except BaseException:
        excursion.come_back()
        raise


def _added(p: Tensor, before: Tensor | None) -> Tensor:
    """Return what the descent pass added to `p.grad`; zeros if it never reached p."""
    if p.grad is None:
        return torch.zeros_like(local(p))
    return local(p.grad) if before is None else local(p.grad) - before


def _check_gradients(params: list[Tensor]) -> None:
    if not params:
        raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters given?")
    if any(p.grad is not None and is_dtensor(p.grad) and p.grad.placements != p.placements for p in params):  # type: ignore[attr-defined]
        raise NotImplementedError("Gradients placed otherwise than their parameters (tensor parallelism).")
    if any(grad.layout != torch.strided for grad in _gradients(params)):
        raise NotImplementedError("Sparse gradients are not supported: build the embedding with sparse=False.")


def _as_variant(variant: str | Variant, kwargs: Mapping[str, Any] | None) -> Variant:
    if isinstance(variant, Variant):
        if kwargs:
            raise ValueError(f"`variant_kwargs` goes with a variant's name, got {dict(kwargs)} with an instance.")
        return variant
    return make_variant(variant, kwargs, argument="variant")


def _as_rounding(rounding: str | torch.Generator) -> StochasticRounding | None:
    if isinstance(rounding, torch.Generator):
        return StochasticRounding(seed_from(int(torch.randint(2**62, (), generator=rounding))))
    checked_choice("sharpness_aware_grad(rounding=...)", rounding, ROUNDINGS)
    # Not drawn from torch's stream, which ends where one call of the closure leaves it: at the same place every time
    # where the closure draws nothing.
    return StochasticRounding(seed_from(torch.initial_seed(), next(_calls))) if rounding == "stochastic" else None


def _trainable(parameters: Iterable[Any], direction: Variant) -> list[Tensor]:
    """Return the distinct parameters that require a gradient; tell the direction their names if they have any."""
    if isinstance(parameters, Tensor):
        raise TypeError("`parameters` must be an iterable of tensors, such as model.parameters(), got one tensor.")
    entries = list(parameters)
    if entries and isinstance(entries[0], tuple):
        direction.prepare(entries)
        entries = [p for _, p in entries]
    params = list({id(p): p for p in entries if p.requires_grad}.values())
    if not params:
        raise ValueError("`parameters` holds no tensor that requires a gradient.")
    return params
