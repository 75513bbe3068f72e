# SPDX-License-Identifier: Apache-2.0
"""A context in which a pass computes the gradients of some parameters only, and stops early."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

REENTRANT = (
    "Reentrant checkpointing leaves blocks without gradients whose input has none, as where nothing before them is "
    "perturbed. Set gradient_checkpointing_kwargs={'use_reentrant': False}, or sam_parameters='all'."
)
INPUT_HOOK = "make_inputs_require_grad"  # as transformers and PEFT call it, with and without an s at the end


@contextmanager
def frozen_except(params: Iterable[Tensor], chosen: Iterable[Tensor], model: nn.Module | None = None) -> Iterator[None]:
    """Let autograd compute gradients for `chosen` only, inside the context.

    Enter it before the forward pass: autograd then neither computes nor keeps what only the others need. This works
    with checkpointing and every engine, where `backward(inputs=...)` does not. The `.grad` of the others stays.

    Args:
        params: the trained parameters.
        chosen: those of them that get a gradient.
        model: where its activations are checkpointed, transformers makes the output of the embeddings require a
            gradient, and the backward pass goes down to them. Only the reentrant kind needs that. Given the model, this
            is switched off for the other kind.

    Raises:
        NotImplementedError: if `model` has reentrant checkpointing that would leave out chosen parameters.
    """
    kept = {id(p) for p in chosen}
    frozen = [p for p in params if p.requires_grad and id(p) not in kept]
    with _inputs_without_gradient(model if frozen else None):
        try:
            for p in frozen:
                p.requires_grad_(False)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(True)


@contextmanager
def _inputs_without_gradient(model: nn.Module | None) -> Iterator[None]:
    """Remove the hooks that make inputs require a gradient where nothing needs them; put them back at the end."""
    kinds = _checkpointing(model) if model is not None else set()
    hooked = _hooked(model) if model is not None and kinds else []
    if True in kinds:
        if not hooked:
            raise NotImplementedError(REENTRANT)
        hooked = []
    before = [dict(hooks) for hooks in hooked]
    try:
        for hooks in hooked:
            for key in [k for k, hook in hooks.items() if _asks_for_gradients(hook)]:
                del hooks[key]
        yield
    finally:
        for hooks, all_of_them in zip(hooked, before, strict=True):
            hooks.clear()
            hooks.update(all_of_them)


def _checkpointing(model: nn.Module) -> set[bool]:
    """Return which kinds of checkpointing transformers has switched on: reentrant (True) or not (False)."""
    active = [vars(m) for m in model.modules() if vars(m).get("gradient_checkpointing")]
    functions = [own["_gradient_checkpointing_func"] for own in active if "_gradient_checkpointing_func" in own]
    return {bool(getattr(f, "keywords", {}).get("use_reentrant", True)) for f in functions}


def _hooked(model: nn.Module) -> list[dict[int, Any]]:
    """Return the forward hooks of each module where one of them makes the output require a gradient."""
    return [m._forward_hooks for m in model.modules() if any(map(_asks_for_gradients, m._forward_hooks.values()))]


def _asks_for_gradients(hook: Any) -> bool:
    return getattr(hook, "__name__", "").startswith(INPUT_HOOK)
