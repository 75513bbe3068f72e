# SPDX-License-Identifier: Apache-2.0
"""A sharpness-aware gradient in any training loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_sam._checks import check_number, checked_choice
from hf_sam.config.sam_config import ROUNDINGS
from hf_sam.step.copies import buffer_states, copy_all, write_all
from hf_sam.step.one_pass import one_pass_step
from hf_sam.step.replay import RandomState, devices_of
from hf_sam.step.two_pass import set_gradients, two_pass_step
from hf_sam.step_context import StepContext
from hf_sam.variants import OnePass, Variant, make_variant
from hf_sam.vectors.shards import as_shards
from hf_sam.vectors.stochastic_rounding import StochasticRounding, seed_from
from hf_sam.vectors.vectors import gradients

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
    context: StepContext | None = None,
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

    Returns:
        L(w), what the first call of `closure` returned.

    Raises:
        ValueError: if rho, the variant or an option is out of range, or no parameter requires a gradient.
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
    made = _as_variant(variant, variant_kwargs)
    if made.remembers and made is not variant:
        raise ValueError(
            f"`variant={variant!r}` takes up what an earlier step left, and a name makes a new one each time: make it "
            f"once, before the loop, with hf_sam.VARIANTS[{variant!r}](...), and give that."
        )
    params = _trainable(parameters, made)
    rho = check_number("sharpness_aware_grad", "rho", rho, least=0)
    rounded = _as_rounding(rounding)
    kept = list(buffers)
    set_gradients(params, [None] * len(params))

    if isinstance(made, OnePass):
        losses: list[Tensor] = []
        where = context or StepContext(step=next(_calls), seed=torch.initial_seed())
        one_pass_step(
            lambda: losses.append(closure()), as_shards(params), made, rho=rho, context=where, rounding=rounded,
            measured=False,
        )  # fmt: skip
        return losses[0]
    if context is not None and context.step % made.every:
        loss = closure()
        reached = [p for p in params if p.grad is not None]
        if not reached:
            raise RuntimeError("No parameter received a gradient: does the loss depend on the parameters given?")
        made.reuse_(as_shards(reached), gradients(as_shards(reached)))
        return loss
    return _in_two_passes(closure, as_shards(params), made, rho, kept, rounded)


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
    loss = closure()
    end, buffers_at_end = RandomState(devices), copy_all(changing)

    def evaluate_again() -> None:
        start.restore()
        write_all(changing, buffers_at_start)
        closure()

    try:
        two_pass_step(evaluate_again, params, variant, rho=rho, rounding=rounding, measured=False)
    finally:
        end.restore()
        write_all(changing, buffers_at_end)
    return loss


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


def _trainable(parameters: Iterable[Any], variant: Variant) -> list[Tensor]:
    """Return the distinct parameters that require a gradient; tell the variant their names if they have any."""
    if isinstance(parameters, Tensor):
        raise TypeError("`parameters` must be an iterable of tensors, such as model.parameters(), got one tensor.")
    entries = list(parameters)
    if entries and isinstance(entries[0], tuple):
        variant.prepare(entries)
        entries = [p for _, p in entries]
    params = list({id(p): p for p in entries if p.requires_grad}.values())
    if not params:
        raise ValueError("`parameters` holds no tensor that requires a gradient.")
    return params
