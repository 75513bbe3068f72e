# SPDX-License-Identifier: Apache-2.0
"""A sharpness-aware gradient in any training loop."""

from __future__ import annotations

import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_sam._checks import check_number, checked_choice
from hf_sam.config.field_checks import ROUNDINGS
from hf_sam.parameters.given import entries_of, entries_of_group, refuse_complex, tensors_of
from hf_sam.step.copies import buffer_states, copy_all, write_all
from hf_sam.step.one_pass import one_pass_step
from hf_sam.step.replay import RandomState, devices_of
from hf_sam.step.two_pass import set_gradients, take_gradients, two_pass_step
from hf_sam.step_context import StepContext
from hf_sam.variants import OnePass, Variant, make_variant
from hf_sam.vectors.shards import Shards, as_shards
from hf_sam.vectors.stochastic_rounding import StochasticRounding, seed_from
from hf_sam.vectors.vectors import gradients

logger = logging.getLogger(__name__)

_calls = itertools.count()
_left: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
"""Gradients that earlier calls have left, by id."""
DROPPED = (
    "sharpness_aware_grad drops the gradients that `.grad` held before the call: call zero_grad first if that is "
    "meant, or give accumulate=True to add to them (those of earlier micro-batches)."
)


def sharpness_aware_grad(
    closure: Callable[[], Tensor],
    parameters: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
    *,
    rho: float = 0.05,
    variant: str | Variant = "sam",
    variant_kwargs: Mapping[str, Any] | None = None,
    buffers: Iterable[Tensor] = (),
    rounding: str | torch.Generator = "nearest",
    context: StepContext | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Fill every `.grad` with the sharpness-aware gradient (Foret et al. 2021, eq. 3), in any training loop.

        g = grad L(w);   epsilon = rho * g / ||g||;   .grad = grad L(w + epsilon);   w untouched, to the last bit

    Call it where `closure()` would have been called, then clip and step as always. Both calls of `closure` see the
    same random numbers; afterwards the random streams are where one call would have left them.

    Args:
        closure: runs forward and backward over the whole batch, leaves gradients in `.grad` and returns the loss. It is
            called twice and must use the same data both times; it may call `zero_grad`, it must not step.
        parameters: every parameter that `closure` gives a gradient, on one device; or `model.named_parameters()`, the
            model, or parameter groups such as `optimizer.param_groups`. Parameters sharded with `fully_shard` (FSDP2)
            are whole to rho; those of FullyShardedDataParallel (FSDP1) cannot be recognised here.
        rho: radius, a Euclidean norm over all parameters, >= 0.
        variant: a name ("sam", "asam"), or an instance, which variants that keep gradients between calls have to be.
        variant_kwargs: options for a variant given by name.
        buffers: tensors that a forward pass changes (`model.buffers()`, for batch normalisation): the second pass
            starts from what the first one started from, and leaves them as the first one did.
        rounding: how weights of 16 bits take a perturbation finer than they are: "nearest" loses most of it,
            "stochastic" none on average. The noise is another one at every call: it comes from torch's seed and the
            number of calls so far. To resume in the same bits give a `torch.Generator` on the CPU, and save its state.
        context: where in the run this is, for variants that look at the optimizer or at the number of the step:
            `StepContext(optimizer=optimizer)` for "momentum", `StepContext(step=i)` for "random" and LookSAM, of which
            one instance serves all steps. Variants that know their way before the pass call `closure` once, and
            L(w + epsilon) is returned.
        accumulate: whether the gradient is added to what `.grad` holds before the call, as `backward` does (earlier
            micro-batches of the step, which are then no part of g), or takes its place.

    Returns:
        L(w), what the first call of `closure` returned.

    Raises:
        ValueError: if rho, the variant or an option is out of range, or no parameter requires a gradient.
        TypeError: if the closure, the parameters or the buffers are something else.
        RuntimeError: if the closure steps an optimizer, or leaves no gradient.
        NotImplementedError: for methods that need a Trainer.

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
    if not callable(closure):
        raise TypeError(f"`closure` must be a function that runs forward and backward, got a {type(closure).__name__}.")
    made = _as_variant(variant, variant_kwargs)
    if made.remembers and made is not variant:
        raise ValueError(
            f"`variant={variant!r}` takes up what an earlier step left, and a name makes a new one each time: make it "
            f"once, before the loop, with hf_sam.VARIANTS[{variant!r}](...), and give that."
        )
    params = _trainable(parameters, made)
    rho = check_number("sharpness_aware_grad", "rho", rho, least=0)
    rounded = _as_rounding(rounding)
    kept = tensors_of("buffers", buffers, "model.buffers()")
    if not accumulate:
        _drop_gradients(params)

    if isinstance(made, OnePass):
        losses: list[Tensor] = []
        where = context or StepContext(step=next(_calls), seed=torch.initial_seed())
        one_pass_step(
            lambda: losses.append(closure()), as_shards(params), made, rho=rho, context=where, rounding=rounded,
            measured=False,
        )  # fmt: skip
        _note_gradients(params)
        return losses[0]
    if context is not None and context.step % made.every:
        loss = closure()
        reached = [p for p in params if p.grad is not None]
        if not reached:
            raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters given?")
        made.reuse_(as_shards(reached), gradients(as_shards(reached)))
        _note_gradients(params)
        return loss
    loss = _in_two_passes(closure, as_shards(params), made, rho, kept, rounded)
    _note_gradients(params)
    return loss


def _in_two_passes(
    closure: Callable[[], Tensor],
    params: list[Tensor],
    variant: Variant,
    rho: float,
    kept: list[Tensor],
    rounding: StochasticRounding | None,
) -> Tensor:
    """Call the closure at w and at w + epsilon; return L(w)."""
    devices, changing = devices_of(params), buffer_states(kept)
    start, buffers_at_start = RandomState(devices), copy_all(changing)
    earlier, versions = take_gradients(params), [p._version for p in params]
    loss = closure()
    _refuse_step(params, versions)
    end, buffers_at_end = RandomState(devices), copy_all(changing)

    def evaluate_again() -> None:
        start.restore()
        write_all(changing, buffers_at_start)
        closure()

    try:
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        two_pass_step(
            evaluate_again, params, variant, rho=rho, onto=earlier, onto_after=alone, rounding=rounding, measured=False
        )
    finally:
        end.restore()
        write_all(changing, buffers_at_end)
    return loss


def _note_gradients(params: list[Tensor]) -> None:
    """Note the gradients as left by a call, which the next one may drop."""
    _left.update((id(p.grad), p.grad) for p in params if p.grad is not None)


def _drop_gradients(params: list[Tensor]) -> None:
    """Drop the gradients from before; say so once if they are others than an earlier call has left."""
    grads = [p.grad for p in params if p.grad is not None]
    if any(_left.get(id(grad)) is not grad for grad in grads):
        _say_dropped()
    set_gradients(params, [None] * len(params))


@functools.cache
def _say_dropped() -> None:
    """Warn, once."""
    logger.warning(DROPPED)


def _refuse_step(params: list[Tensor], versions: list[int]) -> None:
    """Raise if every parameter with a gradient has been written to: that was an optimizer."""
    if torch.compiler.is_compiling():  # versions are not followed in a traced step
        return
    written = [p._version != before for p, before in zip(params, versions, strict=True) if p.grad is not None]
    if written and all(written) and not isinstance(params, Shards):
        raise RuntimeError(
            "`closure` has changed every parameter, as an optimizer's step does: it must compute the loss and call "
            "backward, no more. Step after sharpness_aware_grad."
        )


def _as_variant(variant: str | Variant, kwargs: Mapping[str, Any] | None) -> Variant:
    if isinstance(variant, Variant) and kwargs:
        raise ValueError(f"`variant_kwargs` goes with a variant's name, got {dict(kwargs)} with an instance.")
    made = variant if isinstance(variant, Variant) else make_variant(variant, kwargs, argument="variant")
    if made.passes == "plain":
        raise NotImplementedError(f"{made.title} acts on a model's adapters between passes: use SAMTrainer.")
    return made


def _as_rounding(rounding: str | torch.Generator) -> StochasticRounding | None:
    if isinstance(rounding, torch.Generator):
        return StochasticRounding(seed_from(int(torch.randint(2**62, (), generator=rounding))))
    checked_choice("sharpness_aware_grad(rounding=...)", rounding, ROUNDINGS)
    # Not drawn from torch's stream, which ends where one call of the closure leaves it: at the same place every time
    # where the closure draws nothing.
    return StochasticRounding(seed_from(torch.initial_seed(), next(_calls))) if rounding == "stochastic" else None


def _trainable(parameters: Any, variant: Variant) -> list[Tensor]:
    """Return the distinct parameters that require a gradient; tell the variant their names if they have any."""
    if isinstance(parameters, torch.optim.Optimizer):
        raise TypeError("`parameters` must be an iterable of tensors, got an optimizer: give its `param_groups`.")
    entries = entries_of("parameters", parameters, "model.parameters()")
    if entries and all(isinstance(entry, Mapping) and "params" in entry for entry in entries):
        entries = [entry for group in entries for entry in entries_of_group(group)]
    if entries and all(isinstance(entry, tuple) for entry in entries):
        variant.prepare(entries)
        entries = [p for _, p in entries]
    tensors = tensors_of("parameters", entries, "model.parameters()")
    params = list({id(p): p for p in tensors if p.requires_grad}.values())
    for number, p in enumerate(params):
        refuse_complex(f"`parameters[{number}]`", p)
    if not params:
        raise ValueError("`parameters` holds no tensor that requires a gradient.")
    return params
